"""`data.template`: the chat template that a tokenizer gets, checked before anything uses it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from mlx_ft.data.jinja import RenderError, Template, compile_template
from mlx_ft.data.render import PLAIN_TEMPLATE, control_tokens, thinking, written_by_hand
from mlx_ft.data.tokens import Tokenizer
from mlx_ft.errors import AdapterError, ConfigError

EOS = "{{ eos_token }}"
BOS = "{{ bos_token }}"
# The token that ends a turn in each named template, and the BOS of its authors' tokenizer.
NAMED: Mapping[str, tuple[str, str | None]] = {
    "alpaca": (EOS, None),
    "chatml": ("<|im_end|>", None),
    "llama2": ("</s>", "<s>"),
    "llama3": ("<|eot_id|>", "<|begin_of_text|>"),
    "mistral": ("</s>", "<s>"),
}
USER, ANSWER, USER2, ANSWER2 = "Sky 4711?", "Blue 4712.", "Grass 4713?", "Green 4714."


@dataclass(frozen=True)
class TemplateChoice:
    """A template that a tokenizer now has. name: `model`, `plain`, a named one, a file's path or
    `custom`. note: what a person should know. stop: the control token that ends an answer.
    """

    name: str
    text: str
    note: str | None
    stop: str | None = None


def install(tokenizer: Tokenizer, choice: str | None) -> TemplateChoice:
    """Give the tokenizer its chat template, as plain Jinja; generation then stops at its end.

    choice: None (the model's own, of several the default one; without one `PLAIN_TEMPLATE`), a
    key of `NAMED`, a `.jinja` file's path, or a template's text. Raises ConfigError.
    """
    notes: list[str] = []
    if choice is None:
        if written_by_hand(tokenizer):
            return TemplateChoice("model", "", None)
        name, text = _own(tokenizer, notes)
    elif choice in NAMED:
        name, text = choice, named(choice, tokenizer, notes)
    elif is_jinja(choice):
        name, text = "custom", choice
    else:
        name, text = choice, _file(choice)
    where = {"custom": "data.template", "model": "the model's chat template"}.get(name, name)
    stop = _check(text, tokenizer, where, notes, strict=name != "model")
    chosen = TemplateChoice(name, text, " ".join(notes) or None, stop)
    put(tokenizer, chosen)
    return chosen


def install_text(tokenizer: Tokenizer, text: str, where: str) -> TemplateChoice:
    """The same for a text that came with an adapter: never taken for a name or a path.

    where: what it came with. Raises AdapterError for what is no Jinja, else as `install`.
    """
    if not is_jinja(text):
        raise AdapterError(
            f"the chat template of {where} is no Jinja: neither {{{{ nor {{% is in it. Put the "
            "template's own text there, or take the file away"
        )
    return install(tokenizer, text)


def is_jinja(text: str) -> bool:
    """Whether it is a template itself, and not a name or a path."""
    return "{{" in text or "{%" in text


def put(tokenizer: Tokenizer, chosen: TemplateChoice) -> None:
    """Give the tokenizer a template that `install` chose for it."""
    if not chosen.text:  # it has one that is written in Python
        return
    tokenizer.chat_template = chosen.text
    if hasattr(tokenizer, "has_chat_template"):
        tokenizer.has_chat_template = True
    add_stop = getattr(tokenizer, "add_eos_token", None)  # mlx-lm's wrapper; elsewhere it is a flag
    if chosen.stop is not None and callable(add_stop):
        add_stop(chosen.stop)


def _own(tokenizer: Tokenizer, notes: list[str]) -> tuple[str, str]:
    own = tokenizer.chat_template
    if isinstance(own, Mapping) and own:
        name = "default" if "default" in own else next(iter(own))
        if len(own) > 1:
            notes.append(f"Of the model's chat templates ({', '.join(own)}) {name!r} is used.")
        return "model", str(own[name])
    if own:
        return "model", str(own)
    ends = "an answer ends in " + (_eos(tokenizer) or "nothing: the model has no EOS token")
    notes.append(
        f"The model has no chat template: each turn is a line, {ends}. data.template names others."
    )
    return "plain", (BOS if _adds_bos(tokenizer) else "") + PLAIN_TEMPLATE


def named(name: str, tokenizer: Tokenizer, notes: list[str]) -> str:
    """The template of a name, with a stop and a BOS that this tokenizer knows. name: in `NAMED`.

    notes: gets what a person should know. Raises ConfigError.
    """
    folder = resources.files("mlx_ft.data") / "templates"
    text = (folder / f"{name}.jinja").read_text("utf-8").rstrip("\n")
    stop, bos = NAMED[name]
    controls = control_tokens(tokenizer)
    if stop not in controls:
        if (eos := _eos(tokenizer)) is None:
            raise ConfigError(
                f"data.template={name} needs a token to end answers with: the tokenizer has "
                f"neither {stop} nor an EOS token"
            )
        text = text.replace(stop, EOS)
        if stop != EOS:
            notes.append(f"The tokenizer has no {stop}: with data.template={name}, turns end in "
                         f"its EOS token {eos}.")  # fmt: skip
    begins = _adds_bos(tokenizer) or (
        bos is not None and tokenizer.special_tokens_map.get("bos_token") == bos
    )
    return (BOS if begins else "") + text


def _file(choice: str) -> str:
    path = Path(choice).expanduser()
    if path.suffix not in (".jinja", ".jinja2", ".j2"):
        near = difflib.get_close_matches(choice, NAMED, 1)
        meant = f"; did you mean {near[0]}?" if near else ""
        raise ConfigError(
            f"data.template: found {choice!r}; expected one of {', '.join(NAMED)}, a .jinja file, "
            f"or a template with {{{{ or {{%{meant}"
        )
    try:
        return path.read_text("utf-8")
    except OSError as error:
        reason = error.strerror or type(error).__name__
        raise ConfigError(f"data.template: {choice} cannot be read: {reason}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"data.template: {choice} is not UTF-8: save it as UTF-8") from error


def _check(
    text: str, tokenizer: Tokenizer, where: str, notes: list[str], *, strict: bool
) -> str | None:
    """Render two turns, and look at what came. Returns the control token that ends an answer.

    strict: what a person chose has to work; the model's own has only to compile, as some want
    more than two plain turns.
    """
    try:
        template = compile_template(text)
    except RenderError as error:
        raise _faulty(where, error, "mend the template") from error
    asked = [{"role": "user", "content": USER}]
    answered = [*asked, {"role": "assistant", "content": ANSWER}]
    try:
        prompt = rendered(template, asked, tokenizer, prompt=True)
        whole = rendered(template, answered, tokenizer)
    except RenderError as error:
        if not strict:
            return None
        raise _faulty(where, error, "it has to render a user turn and its answer") from error
    faults = [
        f"{what} is not in what it renders for {role}: {shown!r}"
        for what, role, shown in (
            (f"the question {USER!r}", "a question", prompt),
            (f"the answer {ANSWER!r}", "a question and its answer", whole),
        )
        if what.split("'")[1] not in shown
    ]
    if not faults and not whole.startswith(prompt):
        faults = [f"an answer does not begin where generation would: {prompt!r}, then {whole!r}"]
    if faults and strict:
        raise ConfigError(f"{where} cannot be used as a chat template; mend it:", faults)
    if faults:
        return None
    _note_bos(template, answered, tokenizer, where, notes)
    stop = _stop(whole, tokenizer)
    if stop is None:
        notes.append(f"{where} ends answers with no control token: nothing teaches when to stop.")
    return stop


def _note_bos(
    template: Template,
    answered: list[dict[str, str]],
    tokenizer: Tokenizer,
    where: str,
    notes: list[str],
) -> None:
    bos = tokenizer.special_tokens_map.get("bos_token")
    more = [{"role": "user", "content": USER2}, {"role": "assistant", "content": ANSWER2}]
    try:
        longer = rendered(template, [*answered, *more], tokenizer)
    except RenderError:
        return
    # Where BOS opens every turn, as in SmolLM2's ChatML, it is no BOS of a conversation.
    if isinstance(bos, str) and longer.count(bos) == 2 and longer.startswith(bos):
        notes.append(f"{where} writes {bos} before every exchange, not once per conversation.")


def rendered(
    template: Template, turns: list[dict[str, str]], tokenizer: Tokenizer, *, prompt: bool = False
) -> str:
    """The text that a template gives these turns. prompt: with what begins the answer."""
    variables: dict[str, Any] = {"messages": turns, "tools": None, "documents": None}
    return template.render(
        {
            **variables,
            "add_generation_prompt": prompt,
            **thinking(tokenizer),
            **tokenizer.special_tokens_map,
        }
    )


def _stop(whole: str, tokenizer: Tokenizer) -> str | None:
    """The control token right after the answer, white space aside."""
    after = whole[whole.rindex(ANSWER) + len(ANSWER) :].lstrip()
    controls = sorted(control_tokens(tokenizer), key=len, reverse=True)
    return next((token for token in controls if after.startswith(token)), None)


def _faulty(where: str, error: RenderError, then: str) -> ConfigError:
    line = "" if error.line is None else f":{error.line}"
    return ConfigError(f"{where}{line}: {error.reason}; {then}")


def _eos(tokenizer: Tokenizer) -> str | None:
    eos = tokenizer.special_tokens_map.get("eos_token")
    return eos if isinstance(eos, str) else None


def _adds_bos(tokenizer: Tokenizer) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer.encode("", add_special_tokens=True)[:1] == [bos]
