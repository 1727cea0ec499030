"""Conversations to the rows of another format, saying what it has no place for."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from mlx_ft.data.formats import DEFAULTS, TOOL_KEYS, FormatOptions, read_label, unused_keys
from mlx_ft.data.parse_keys import RULES
from mlx_ft.data.parse_rows import joined
from mlx_ft.data.parse_values import blank
from mlx_ft.data.rows import Conversation, Fault, Message, RowError
from mlx_ft.errors import DataError

# Code of a loss -> what is lost, to follow "has no place for".
LOSSES = {
    "weight": "which answers carry no loss",
    "answers": "which tokens are answers: raw text is trained on whole",
    "earlier_answers": "loss on the answers before the last question",
    "turn_borders": "several turns of one speaker in a row: they are joined by an empty line",
    "call_text": "text beside a call: it becomes a turn of its own",
    "unanswered": "turns that nobody answers: they are left out",
    "markers": "ChatML's own marks within a turn: they would end it",
    "tools": "descriptions of tools",
    "names": "names of speakers and tools, ids of calls",
    "rejected": "the rejected answer",
    "label": "the label",
    "other_keys": "keys of other formats, and keys of turns that no format has",
}
Row = dict[str, Any]


def convert(
    conversation: Conversation, to: str, options: FormatOptions = DEFAULTS
) -> tuple[Row, list[str]]:
    """The row of a conversation in another format, and the codes (`LOSSES`) of what is lost.

    to: one of `TARGETS`. options: those that the row was parsed with. Raises RowError
    (`no_format`) where the format cannot say it at all.
    """
    if to not in TARGETS:
        raise DataError(f"cannot convert to {to!r}; expected one of {', '.join(TARGETS)}")
    format, write = TARGETS[to]
    losses: list[str] = []
    if conversation.text is None:
        row = write(conversation, losses)
        if conversation.rejected:
            losses.append("rejected")
    elif format == "text":
        row = {"text": conversation.text}
    else:
        raise RowError(Fault("no_format", f"raw text has no turns, so it cannot become {to}"))
    _carry_label(conversation.label, format, row, losses)
    _carry_others(conversation, options, row, losses)
    return row, list(dict.fromkeys(losses))


def _carry_label(label: str | None, format: str, row: Row, losses: list[str]) -> None:
    if label is None:
        return
    if read_label(label, format, []) != label:  # a class that would be read as a judgement
        losses.append("label")
    elif format == "prompt_completion" and label in ("desirable", "undesirable"):
        row["label"] = label == "desirable"  # as TRL has it
    else:
        row["label"] = label


def _carry_others(
    conversation: Conversation, options: FormatOptions, row: Row, losses: list[str]
) -> None:
    fields = conversation.record.fields
    unused = unused_keys(fields, conversation.format, options) if fields else []
    for key in ("kind", *unused):
        if key in fields and key not in CLAIMED:
            row[key] = fields[key]
        elif key in unused:
            losses.append("other_keys")


# Keys that would make another row of it.
CLAIMED = {"label", "kto_tag", "documents", *TOOL_KEYS}.union(
    *(names for rule in RULES for names in (*rule.needs.values(), *rule.takes.values()))
)


def _messages(conversation: Conversation, _: list[str]) -> Row:
    row: Row = {"messages": [_turn(message) for message in conversation.messages]}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row


def _turn(message: Message) -> Row:
    """A turn in OpenAI's form."""
    turn: Row = {"role": message.role, "content": message.content}
    if message.tool_calls:
        turn["content"] = message.content or None
        turn["tool_calls"] = [
            {**call, "function": {**function, "arguments": _json(function["arguments"])}}
            for call in message.tool_calls
            for function in (call["function"],)
        ]
    return turn | _about(message)


def _about(message: Message) -> Row:
    """What a turn says of itself beside its role and content."""
    given = {"name": message.name, "tool_call_id": message.tool_call_id}
    about: Row = {key: value for key, value in given.items() if value is not None}
    if message.weight != 1:
        about["weight"] = message.weight
    return about


SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt", "tool": "observation"}


def _sharegpt(conversation: Conversation, losses: list[str]) -> Row:
    turns: list[Row] = []
    for message in conversation.messages:
        about = _about(message)
        if message.content or not message.tool_calls:
            turns.append({"from": SPEAKERS[message.role], "value": message.content} | about)
        if message.tool_calls:
            turns.append({"from": "function_call", "value": _calls(message)} | about)
            if message.content:
                losses.append("call_text")
    row: Row = {"conversations": turns}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row


def _calls(message: Message) -> str:
    """The calls of a turn as JSON: bare ones where that says all."""
    calls = [
        function
        if set(call) == {"type", "function"} and set(function) == {"name", "arguments"}
        else call
        for call in message.tool_calls
        for function in (call["function"],)
    ]
    return _json(calls[0] if len(calls) == 1 else calls)


def _alpaca(conversation: Conversation, losses: list[str]) -> Row:
    messages = conversation.messages
    if any(message.tool_calls or message.role == "tool" for message in messages):
        raise RowError(Fault("no_format", "alpaca has no place for calls of tools"))
    system = messages[0].content if messages[0].role == "system" else None
    said = _alternating(messages[system is not None :], losses)
    pairs = [list(pair) for pair in zip(said[::2], said[1::2], strict=True)]
    instruction, more = _parts(conversation, pairs[-1][0])
    row: Row = {"instruction": instruction, "input": more, "output": pairs[-1][1]}
    if system is not None:
        row["system"] = system
    if len(pairs) > 1:
        row["history"] = pairs[:-1]
    _note(messages, losses)
    if conversation.tools:
        losses.append("tools")
    return row


def _alternating(messages: Sequence[Message], losses: list[str]) -> list[str]:
    """Questions and answers in turn, ending with an answer."""
    said = []
    for _, group in groupby(messages, key=lambda message: message.role):
        contents = [message.content for message in group]
        if len(contents) > 1:
            losses.append("turn_borders")
        said.append("\n\n".join(contents))
    if len(said) % 2:
        losses.append("unanswered")
        said.pop()
    return said


def _parts(conversation: Conversation, question: str) -> tuple[str, str]:
    """Instruction and input: apart if the row had them so."""
    fields = conversation.record.fields
    for rule in RULES if conversation.format == "alpaca" else ():
        if rule.format == "alpaca":
            names = {**rule.needs, **rule.takes}
            first, second = (
                next((fields[key] for key in names[field] if not blank(fields.get(key))), "")
                for field in ("instruction", "input")
            )
            if (first or second) and joined(first, second) == question:
                return first, second
    return question, ""


def _chatml(conversation: Conversation, losses: list[str]) -> Row:
    losses.append("answers")
    parts = []
    for message in conversation.messages:
        calls = [
            f"<tool_call>\n{_json(call['function'])}\n</tool_call>" for call in message.tool_calls
        ]
        said = "\n".join([*([message.content] if message.content else []), *calls])
        if "<|im_start|>" in said or "<|im_end|>" in said:
            losses.append("markers")
        if any("id" in call for call in message.tool_calls):
            losses.append("names")
        parts.append(f"<|im_start|>{message.role}\n{said}<|im_end|>\n")
    _note(conversation.messages, losses)
    if conversation.tools:
        losses.append("tools")
    return {"text": "".join(parts)}


def _prompt_completion(conversation: Conversation, losses: list[str]) -> Row:
    """The completion is all that follows the last question that has an answer."""
    messages = conversation.messages
    start = max(i for i, message in enumerate(messages) if message.role == "assistant")
    while start > 0 and messages[start - 1].role in ("assistant", "tool"):
        start -= 1
    weights = [message.weight if message.role == "assistant" else None for message in messages]
    if 1 in weights[:start]:
        losses.append("earlier_answers")
    if 0 in weights[start:]:
        losses.append("weight")
    turns = [_turn(replace(message, weight=1)) for message in messages]
    prompt, completion = turns[:start], turns[start:]
    if len(turns) == 2 and len(prompt) == 1 and all(set(turn) == PLAIN for turn in turns):
        row: Row = {"prompt": prompt[0]["content"], "completion": completion[0]["content"]}
    else:
        row = {"prompt": prompt, "completion": completion}
    if conversation.tools:
        row["tools"] = list(conversation.tools)
    return row


PLAIN = {"role", "content"}  # the keys of a turn that a bare text can stand for


def _note(messages: Sequence[Message], losses: list[str]) -> None:
    """The losses of a format that keeps only who says what."""
    if any(message.weight != 1 for message in messages if message.role == "assistant"):
        losses.append("weight")
    if any(message.name or message.tool_call_id for message in messages):
        losses.append("names")


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


TARGETS: dict[str, tuple[str, Callable[[Conversation, list[str]], Row]]] = {
    "messages": ("messages", _messages),
    "sharegpt": ("conversations", _sharegpt),
    "alpaca": ("alpaca", _alpaca),
    "chatml": ("text", _chatml),
    "prompt-completion": ("prompt_completion", _prompt_completion),
}
