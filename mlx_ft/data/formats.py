"""Records to conversations: one function for each known shape of a row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from mlx_ft.data.load import Record
from mlx_ft.errors import DataError

ROLES = ("system", "user", "assistant")

# Keys that change what a row means and that are not understood yet: ignoring them would be wrong.
UNSUPPORTED = {
    "record": ("tools", "functions", "documents"),
    "message": ("weight", "tool_calls", "function_call", "tool_call_id"),
}


@dataclass(frozen=True)
class Message:
    """One turn. role: `system`, `user` or `assistant`."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """What a row says: turns, or else raw text. label: used to keep a split balanced."""

    messages: tuple[Message, ...]
    text: str | None
    label: str | None
    record: Record


def detect(fields: dict[str, Any]) -> str | None:
    """The format that a row's keys show, or None. The first match in `KEYS` wins."""
    for name, keys in KEYS.items():
        if all(key in fields for key in keys):
            return name
    return None


def parse(record: Record, format: str = "auto") -> Conversation:
    """A row as a conversation. format: a name in `KEYS`, or `auto` to go by the row's keys.

    Raises DataError whose `faults` are sentences, all of this row.
    """
    name = detect(record.fields) if format == "auto" else format
    if name is None or any(key not in record.fields for key in KEYS[name]):
        raise DataError("The row cannot be used.", [_no_format(record.fields, name)])
    faults = [
        f"the key {key!r} is not supported; remove it"
        for key in UNSUPPORTED["record"]
        if record.fields.get(key)
    ]
    messages, text = PARSERS[name](record.fields, faults)
    label = _label(record.fields.get("label"), faults)
    if faults:
        raise DataError("The row cannot be used.", faults)
    return Conversation(messages, text, label, record)


def unused_keys(fields: dict[str, Any], format: str = "auto") -> list[str]:
    """The keys of a row that nothing looks at (`kind` groups the answers in `samples.jsonl`)."""
    name = detect(fields) if format == "auto" else format
    used = {*KEYS.get(name or "", ()), "label", "kind"}
    return [key for key in fields if key not in used]


def fingerprint(conversation: Conversation) -> str:
    """SHA-256 of what a row says, apart from case and white space."""
    turns = [(message.role, message.content) for message in conversation.messages]
    turns = turns or [("text", conversation.text or "")]
    said = "\0".join(" ".join([role, *content.casefold().split()]) for role, content in turns)
    return hashlib.sha256(said.encode()).hexdigest()


def parse_messages(
    fields: dict[str, Any], faults: list[str]
) -> tuple[tuple[Message, ...], str | None]:
    """`{"messages": [{"role": ..., "content": ...}, ...]}`: chat, any number of turns."""
    turns = fields["messages"]
    if not isinstance(turns, list) or not turns:
        faults.append("'messages' is not a list of turns" if turns else "'messages' is empty")
        return (), None
    messages = tuple(_message(turn, f"messages[{i}]", faults) for i, turn in enumerate(turns))
    roles = [turn.get("role") for turn in turns if isinstance(turn, dict)]
    if "assistant" not in roles:
        faults.append("no assistant turn: nothing to learn from")
    elif roles[0] == "assistant":
        faults.append("starts with an assistant turn: there is nothing that it answers")
    return messages, None


def parse_prompt_completion(
    fields: dict[str, Any], faults: list[str]
) -> tuple[tuple[Message, ...], str | None]:
    """`{"prompt": ..., "completion": ...}`: a user turn and the assistant's."""
    return (
        Message("user", _string(fields["prompt"], "prompt", faults)),
        Message("assistant", _string(fields["completion"], "completion", faults)),
    ), None


def parse_text(fields: dict[str, Any], faults: list[str]) -> tuple[tuple[Message, ...], str | None]:
    """`{"text": ...}`: raw text, every token of which is to be learned."""
    return (), _string(fields["text"], "text", faults)


KEYS = {
    "messages": ("messages",),
    "prompt_completion": ("prompt", "completion"),
    "text": ("text",),
}
PARSERS: dict[
    str, Callable[[dict[str, Any], list[str]], tuple[tuple[Message, ...], str | None]]
] = {
    "messages": parse_messages,
    "prompt_completion": parse_prompt_completion,
    "text": parse_text,
}


def _message(turn: Any, where: str, faults: list[str]) -> Message:
    if not isinstance(turn, dict):
        faults.append(f"{where} is not an object with 'role' and 'content'")
        return Message("", "")
    role = turn.get("role")
    if role not in ROLES:
        faults.append(f"{where}: unknown role {role!r}; expected system, user or assistant")
    faults.extend(
        f"{where}: the key {key!r} is not supported; remove it"
        for key in UNSUPPORTED["message"]
        if turn.get(key) is not None
    )
    return Message(str(role), _string(turn.get("content"), f"{where}.content", faults))


def _string(value: Any, where: str, faults: list[str]) -> str:
    if not isinstance(value, str):
        faults.append(f"{where} is not a string but {_kind(value)}")
        return ""
    if not value.strip():
        faults.append(f"{where} is empty")
    elif not _encodes(value):
        faults.append(f"{where} holds half of a surrogate pair, which is no character")
    return value


def _encodes(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _label(value: Any, faults: list[str]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, int):  # bool is one
        return str(value).lower()
    faults.append(f"label is {_kind(value)}; expected a string, a whole number, true or false")
    return None


def _no_format(fields: dict[str, Any], name: str | None) -> str:
    found = ", ".join(repr(key) for key in fields) or "none"
    if name is not None:
        missing = " and ".join(repr(key) for key in KEYS[name] if key not in fields)
        return f"data.format={name} needs {missing}; found the keys {found}"
    expected = "; ".join(" with ".join(map(repr, keys)) for keys in KEYS.values())
    return f"no known format: found the keys {found}; expected one of {expected}"


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", type(None): "missing or null"}
    return names.get(type(value), "a string" if isinstance(value, str) else "a number")
