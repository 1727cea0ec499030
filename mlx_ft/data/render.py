"""Conversations to text: the tokenizer's template, and the system text folded where it must be."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from mlx_ft.data.jinja import RenderError, Span, compile_template
from mlx_ft.data.rows import Conversation, Fault, Message, RowError
from mlx_ft.data.tokens import Tokenizer

# For models that bring no chat template: a prompt is its turns, a line each; an answer ends in EOS.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% else %}{{ '\n' }}{% endif %}"
    "{% endfor %}"
)
BASE = "PreTrainedTokenizerBase.apply_chat_template"  # of transformers

Turn = dict[str, Any]  # a message as templates see it: OpenAI's keys
Folding = Literal["no", "first", "last"]


class Renderer:
    """The chat template of a tokenizer. Everything it raises is RowError `template_refused`."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        # Some tokenizers write their chats in Python: those do it themselves.
        self._template = None if written_by_hand(tokenizer) else template_text(tokenizer)
        self._variables = {
            "tools": None,
            "documents": None,
            **thinking(tokenizer),
            **tokenizer.special_tokens_map,
        }

    def text(
        self, turns: Sequence[Turn], tools: Sequence[Any] = (), *, prompt: bool = False
    ) -> str:
        """The turns' text. prompt: with what begins the answer."""
        turns = self.folded(turns)
        if self._template is None:
            return self._by_hand(turns, tools, prompt)
        try:
            template = compile_template(self._template)
            return template.render(self._filled(turns, tools, prompt))
        except RenderError as error:
            raise _refused(error.reason) from error

    def marked(self, turns: Sequence[Turn], tools: Sequence[Any]) -> tuple[str, list[Span]] | None:
        """The turns' text and its generation marks, in characters; None without marks."""
        if self._template is None:
            return None
        try:
            template = compile_template(self._template)
            if not template.marked:
                return None
            return template.render_marked(self._filled(self.folded(turns), tools, prompt=False))
        except RenderError as error:
            raise _refused(error.reason) from error

    def shown(self) -> str:
        """A conversation, to see which control tokens the template writes."""
        turns = [_user("Sky?"), {"role": "assistant", "content": "Blue."}, _user("Grass?")]
        return self._tried(turns) + self._tried(turns, prompt=True)

    @functools.cached_property
    def folding(self) -> Folding:
        """Where the system text goes when the template refuses or drops a system turn.

        Into the user turn where the template itself puts it, if it does so now and then; else
        into the last one for the tokenizers of Mistral that had no system turn yet, and into the
        first one for all others (Gemma's authors do so).
        """
        said = {"role": "system", "content": "Be brief 4711"}
        talk = [_user("Sky?"), {"role": "assistant", "content": "Blue."}]
        if said["content"] in self._tried([said, *talk]):
            return "no"
        later = self._tried([said, *talk, _user("Grass?")], prompt=True)
        if said["content"] in later:
            return "last" if later.index(said["content"]) > later.index("Blue.") else "first"
        controls = set(control_tokens(self._tokenizer))
        return "last" if {"[INST]"} <= controls and "[SYSTEM_PROMPT]" not in controls else "first"

    def folded(self, turns: Sequence[Turn]) -> Sequence[Turn]:
        """The turns with the system text inside a user turn, where `folding` says so."""
        if not turns or turns[0]["role"] != "system" or self.folding == "no":
            return turns
        users = [i for i, turn in enumerate(turns) if turn["role"] == "user"]
        if not users:
            raise _refused("it takes no system turn, and there is no user turn to put it into")
        place = users[0] if self.folding == "first" else users[-1]
        system, *rest = turns
        content = f"{system['content']}\n\n{turns[place]['content']}"
        rest[place - 1] = {**turns[place], "content": content}
        return rest

    def _filled(self, turns: Sequence[Turn], tools: Sequence[Any], prompt: bool) -> dict[str, Any]:
        filled = {**self._variables, "messages": list(turns), "add_generation_prompt": prompt}
        if tools:
            filled["tools"] = list(tools)
        return filled

    def _tried(self, turns: list[Turn], *, prompt: bool = False) -> str:
        try:
            if self._template is None:
                return self._by_hand(turns, (), prompt)
            return compile_template(self._template).render(self._filled(turns, (), prompt))
        except (RenderError, RowError):
            return ""

    def _by_hand(self, turns: Sequence[Turn], tools: Sequence[Any], prompt: bool) -> str:
        options: dict[str, Any] = {"tokenize": False, "add_generation_prompt": prompt}
        if tools:
            options["tools"] = list(tools)
        try:
            return str(self._tokenizer.apply_chat_template(list(turns), **options))
        except Exception as error:  # the model's author wrote it: anything may come
            raise _refused(f"{type(error).__name__}: {error}") from error


def as_turn(message: Message) -> Turn:
    """A message as templates expect it."""
    turn: Turn = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["tool_calls"] = list(message.tool_calls)
    if message.name is not None:
        turn["name"] = message.name
    if message.tool_call_id is not None:
        turn["tool_call_id"] = message.tool_call_id
    return turn


def check_tools(renderer: Renderer, conversation: Conversation, text: str) -> None:
    """Refuse a template that leaves out the tools or the calls of a conversation.

    text: the conversation as rendered. It is rendered again with every tool and call under a name
    of its own, as the chat or the template may say a tool's name by chance.
    """
    if not conversation.tools and not any(m.tool_calls for m in conversation.messages):
        return
    names: dict[str, str] = {}  # a new name -> the tool's

    def renamed(tool: dict[str, Any]) -> dict[str, Any]:
        function = tool.get("function", tool)
        if not isinstance(name := function.get("name"), str):
            return tool
        new = f"{name}z{len(names)}z4711"
        names[new] = name
        function = {**function, "name": new}
        return {**tool, "function": function} if "function" in tool else function

    tools = [renamed(tool) for tool in conversation.tools]
    turns = [
        as_turn(replace(message, tool_calls=tuple(map(renamed, message.tool_calls))))
        for message in conversation.messages
    ]
    again = renderer.text(turns, tools)
    for new, name in names.items():
        if again.count(new) <= text.count(new):
            raise RowError(
                Fault(
                    "template_refused",
                    f"the model's chat template leaves out the tool {name!r}: "
                    "use a template with tools",
                )
            )


def template_text(tokenizer: Tokenizer) -> str:
    """The tokenizer's template; of several the default one; of none `PLAIN_TEMPLATE`."""
    own = tokenizer.chat_template
    if isinstance(own, Mapping):
        own = own.get("default") or next(iter(own.values()), None)
    return PLAIN_TEMPLATE if own is None else str(own)


def control_tokens(tokenizer: Tokenizer) -> list[str]:
    """The texts of the tokens that are no text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = [token.content for token in added.values() if token.special]
    return list(dict.fromkeys([*tokenizer.all_special_tokens, *found]))


def thinking(tokenizer: Tokenizer) -> dict[str, bool]:
    """What mlx-lm tells a template, in generation and in serving: whether the model thinks."""
    has_thinking = getattr(tokenizer, "has_thinking", None)
    return {} if has_thinking is None else {"enable_thinking": bool(has_thinking)}


def written_by_hand(tokenizer: Tokenizer) -> bool:
    """Whether the tokenizer's chats are Python code rather than a template."""
    if getattr(tokenizer, "_chat_template", None) is not None:  # mlx-lm's wrapper, for a few models
        return True
    inner: Any = getattr(tokenizer, "_tokenizer", None)
    inner = inner if hasattr(inner, "apply_chat_template") else tokenizer
    return getattr(type(inner).apply_chat_template, "__qualname__", BASE) != BASE


def _user(content: str) -> Turn:
    return {"role": "user", "content": content}


def _refused(reason: str) -> RowError:
    return RowError(
        Fault("template_refused", f"the model's chat template refuses these turns: {reason}")
    )
