"""Ollama's Modelfile: the weights' file, and the chat template in the syntax of Go's text/template.

A Go template is only written for a template that renders conversations exactly as one of ours
does. Nothing is translated or guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from mlx_ft.data.jinja import RenderError, compile_template
from mlx_ft.data.render import PLAIN_TEMPLATE, Renderer
from mlx_ft.data.rows import RowError
from mlx_ft.data.template import named, rendered
from mlx_ft.data.tokens import Tokenizer
from mlx_ft.errors import ConfigError

STOP = "<STOP>"  # stands for the token that ends an answer
# What our templates render, BOS left out: llama.cpp adds that. Ollama joins turns of one role, and
# gives the system text both as a turn and as .System.
GO: Mapping[str, str] = {
    "chatml": (
        "{{ range .Messages }}<|im_start|>{{ .Role }}\n"
        "{{ .Content }}<STOP>\n"
        "{{ end }}<|im_start|>assistant\n"
    ),
    "llama3": (
        "{{ range .Messages }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n"
        "{{ .Content }}<STOP>{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
    "llama2": (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}[INST] '
        "{{ if and $.System (le $i 1) }}<<SYS>>\n{{ $.System }}\n<</SYS>>\n\n{{ end }}"
        "{{ .Content }} [/INST]"
        '{{ else if eq .Role "assistant" }} {{ .Content }} <STOP>{{ end }}{{ end }}'
    ),
    "mistral": (
        '{{ range $i, $_ := .Messages }}{{ if eq .Role "user" }}[INST] '
        "{{ if and $.System (eq (len (slice $.Messages $i)) 1) }}{{ $.System }}\n\n{{ end }}"
        "{{ .Content }}[/INST]"
        '{{ else if eq .Role "assistant" }} {{ .Content }}<STOP>{{ end }}{{ end }}'
    ),
    "alpaca": (
        "{{ if .System }}{{ .System }}\n\n{{ else }}Below is an instruction that describes a task. "
        "Write a response that appropriately completes the request.\n\n{{ end }}"
        '{{ range .Messages }}{{ if eq .Role "user" }}### Instruction:\n{{ .Content }}\n\n'
        '{{ else if eq .Role "assistant" }}### Response:\n{{ .Content }}<STOP>\n\n'
        "{{ end }}{{ end }}### Response:\n"
    ),
    "plain": (
        '{{ range .Messages }}{{ .Content }}{{ if eq .Role "assistant" }}<STOP>'
        "{{ else }}\n{{ end }}{{ end }}"
    ),
}
MARK = "Be brief 4711"
Turn = dict[str, str]


@dataclass(frozen=True)
class Family:
    """A template of ours that renders the same. system: what it says where no system turn is."""

    name: str
    system: str | None

    def go(self, stop: str) -> str:
        """The template for Ollama. stop: the token that ends an answer."""
        return GO[self.name].replace(STOP, stop)


def family(tokenizer: Tokenizer) -> Family | None:
    """Which of our templates the one of this tokenizer is; None: none of them."""
    own = Renderer(tokenizer)
    for name in GO:
        try:
            text = PLAIN_TEMPLATE if name == "plain" else named(name, tokenizer, [])
            found = _same(own, text, tokenizer)
        except (ConfigError, RenderError):
            continue  # it has no token to end with, or refuses plain turns
        if found is not None:
            return Family(name, found or None)
    return None


def _same(own: Renderer, text: str, tokenizer: Tokenizer) -> str | None:
    """The system text that `own` adds by itself, or ""; None: it is another template."""
    template = compile_template(text)

    def theirs(*turns: Turn) -> str:
        return rendered(template, list(turns), tokenizer, prompt=True)

    def ours(*turns: Turn) -> str | None:
        try:
            return own.text(turns, prompt=True)
        except RowError:
            return None

    asked, said, again = _turn("user", "Sky?"), _turn("assistant", "Blue."), _turn("user", "Why?")
    talks = ([asked], [asked, said, again])
    system = _turn("system", MARK)
    for talk in talks:
        if ours(system, *talk) not in (None, theirs(system, *talk)):
            return None
    added = _added(ours(asked), theirs(asked), theirs(system, asked))
    if added is None:
        return None
    begin = [_turn("system", added)] if added else []
    if any(ours(*talk) != theirs(*begin, *talk) for talk in talks):
        return None
    return added


def _added(own: str | None, bare: str, with_system: str) -> str | None:
    """What stands in `own` where `with_system` has the mark; "": nothing, it is `bare`."""
    if own is None or own == bare:
        return None if own is None else ""
    before, _, after = with_system.partition(MARK)
    if not own.startswith(before) or not own.endswith(after):
        return None
    return own[len(before) : len(own) - len(after)] or None


def _turn(role: str, content: str) -> Turn:
    return {"role": role, "content": content}


def modelfile(file: str, found: Family, stop: str, system: str | None) -> str:
    """The Modelfile. file: the weights beside it. system: the message to begin with, if any.

    Raises ConfigError for a text that a Modelfile has no way to write.
    """
    template = found.go(stop)
    for what, text in (("the system message", system or ""), ("the chat template", template)):
        if '"""' in text:
            raise ConfigError(
                f'{what} has three quotation marks in a row, which end a text in a Modelfile: "'
                f'{text[:60]}". Export to gguf, and give Ollama that text yourself'
            )
    lines = [f"FROM ./{file}", f'TEMPLATE """{template}"""']
    if system:
        lines.append(f'SYSTEM """{system}"""')
    lines.append(f'PARAMETER stop "{stop}"')
    return "\n".join(lines) + "\n"
