"""Lists of turns to messages: roles, contents, weights, calls, and the order of the turns."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

from mlx_ft.data.parse_tools import read_calls, written_calls
from mlx_ft.data.parse_values import MEDIA, blank, check_media, kind, quoted, shown, string
from mlx_ft.data.rows import Fault, Message

CALL = "call"  # a turn of the assistant's that holds nothing but calls, written as JSON
KNOWN_ROLES = ("system", "user", "assistant", "tool")
# OpenAI's roles.
ROLES = {
    **{role: role for role in KNOWN_ROLES},
    "developer": "system",
    "function": "tool",
}
# What is found in ShareGPT's `from`.
SPEAKERS = {
    **ROLES,
    **dict.fromkeys(("human", "prompter"), "user"),
    **dict.fromkeys(("gpt", "chatgpt", "bard", "bing", "bot", "model"), "assistant"),
    **dict.fromkeys(("observation", "function_response", "tool_response"), "tool"),
    **dict.fromkeys(("function_call", "tool_call"), CALL),
}
# The keys of a turn that are looked at, beside those of its role and content.
TURN_KEYS = frozenset({"role", "content", "weight", "loss_weight", "tool_calls", "function_call",
                       "name", "tool_call_id", *MEDIA})  # fmt: skip
_UNKNOWN = Message("", "")


class Dialect(NamedTuple):
    """How a list of turns names things. roles: name -> one of `KNOWN_ROLES`, or `CALL`."""

    roles: Mapping[str, str]
    role_key: str = "role"
    content_key: str = "content"


def read_turns(
    value: Any, where: str, dialect: Dialect, faults: list[Fault], weight: int = 1
) -> tuple[Message, ...]:
    """The messages of a list of turns. weight: of assistant turns that do not say it."""
    if not isinstance(value, list):
        faults.append(Fault("wrong_type", f"{where!r} is not a list of turns but {kind(value)}"))
        return ()
    if not value:
        faults.append(Fault("no_assistant", f"{where!r} is empty"))
    return tuple(
        [read_turn(turn, f"{where}[{i}]", dialect, faults, weight) for i, turn in enumerate(value)]
    )


def read_turn(
    turn: Any, where: str, dialect: Dialect, faults: list[Fault], weight: int = 1
) -> Message:
    """The message of one turn; see `read_turns`."""
    roles, role_key, content_key = dialect
    if not isinstance(turn, dict):
        keys = f"{role_key!r} and {content_key!r}"
        faults.append(Fault("wrong_type", f"{where} is not an object with {keys}"))
        return _UNKNOWN
    if role_key not in turn and "role" in turn:
        role_key, content_key = "role", "content"
    name, content = turn.get(role_key), turn.get(content_key)
    role = roles.get(name) if isinstance(name, str) else None
    if role is None:
        faults.append(_bad_role(name, f"{where}.{role_key}", where, roles))
        role = ""
    if role not in ("assistant", CALL):
        weight = 1
    if len(turn) == 2 and isinstance(content, str) and role != CALL:  # the usual turn
        if not content or content.isspace():
            faults.append(Fault("empty_turn", f"{where}.{content_key} is empty"))
        return Message(role, content, weight)
    return _full(turn, role, content, where, content_key, faults, weight)


def _full(
    turn: dict[str, Any],
    role: str,
    content: Any,
    where: str,
    content_key: str,
    faults: list[Fault],
    weight: int,
) -> Message:
    """A message with all that a turn can have."""
    given = _weight(turn, where, weight, faults)
    if role == CALL:
        role, calls = "assistant", written_calls(content, f"{where}.{content_key}", faults)
        text = ""
    else:
        calls = _calls(turn, role, where, faults)
        calling = not (blank(turn.get("tool_calls")) and blank(turn.get("function_call")))
        text = _content(content, f"{where}.{content_key}", calling, faults)
    check_media(turn, where, (text,), faults)
    return Message(
        role,
        text,
        given if role == "assistant" else 1,
        calls,
        _name(turn.get("name"), f"{where}.name", faults),
        _name(turn.get("tool_call_id"), f"{where}.tool_call_id", faults),
    )


def _calls(
    turn: dict[str, Any], role: str, where: str, faults: list[Fault]
) -> tuple[dict[str, Any], ...]:
    calls = read_calls(turn.get("tool_calls"), f"{where}.tool_calls", faults)
    if (legacy := turn.get("function_call")) is not None:
        calls += read_calls([legacy], f"{where}.function_call", faults)
    if calls and role not in ("assistant", ""):
        faults.append(Fault("tools", f"{where}: a {role} turn cannot call tools"))
    return calls


def _content(value: Any, where: str, calls: bool, faults: list[Fault]) -> str:
    """A text, or the parts of one. calls: beside calls of tools it may be missing or empty."""
    if calls and (value is None or value == ""):
        return ""
    if not isinstance(value, list):
        return string(value, where, faults)
    before = len(faults)
    text = "".join([_part(part, f"{where}[{i}]", faults) for i, part in enumerate(value)])
    if len(faults) == before and not calls:
        string(text, where, faults)
    return text


def _part(part: Any, where: str, faults: list[Fault]) -> str:
    if not isinstance(part, dict) or part.get("type") != "text":
        faults.append(Fault("wrong_type", f"{where} is {_other_part(part)}"))
        return ""
    given = {key: part[key] for key in ("text", "value") if part.get(key) is not None}
    for key, text in given.items():
        if not isinstance(text, str):
            found = f"{where} is a text part whose {key!r} is {kind(text)}; expected a string"
            faults.append(Fault("wrong_type", found))
            return ""
    if not given:
        found = f"{where} is a text part without text; write it as 'text'"
        faults.append(Fault("wrong_type", found))
    elif len(set(given.values())) == 2:
        found = f"{where} has a 'text' and a 'value', and they differ; keep one"
        faults.append(Fault("wrong_type", found))
    return next(iter(given.values()), "")


def _other_part(part: Any) -> str:
    """What a part that is no text is, and what to do with it."""
    given = part.get("type") if isinstance(part, dict) else None
    if given in ("reasoning", "thinking"):
        return (
            f"a part of type {given!r}, which no template shows; "
            "remove it, or write it into the text as the model's template does"
        )
    if isinstance(given, str) and given.startswith(("tool", "function")):
        return (
            f"a part of type {quoted(given)}; write calls as 'tool_calls' beside the content, "
            "and what the tool says as a turn of role 'tool'"
        )
    found = f"a part of type {quoted(given)}" if isinstance(given, str) else kind(part)
    return f"{found}; expected {{'type': 'text', 'text': ...}}"


def _weight(turn: dict[str, Any], where: str, default: int, faults: list[Fault]) -> int:
    """What a turn's `weight` says, or `loss_weight`, as LLaMA-Factory names it."""
    said = {}
    for key in ("weight", "loss_weight"):
        value = turn.get(key)
        if isinstance(value, (int, float)) and value in (0, 1):
            said[key] = int(value)
        elif value is not None:
            sentence = f"{where}.{key} is {shown(value)}; expected 0 or 1"
            faults.append(Fault("weight", sentence))
    if len(set(said.values())) == 2:
        found = " and ".join(f"{key} {value}" for key, value in said.items())
        faults.append(Fault("weight", f"{where} has {found}; keep one"))
    return next(iter(said.values()), default)


def _name(value: Any, where: str, faults: list[Fault]) -> str | None:
    if value is None or isinstance(value, str):
        return value
    faults.append(Fault("wrong_type", f"{where} is not a string but {kind(value)}"))
    return None


def _bad_role(name: Any, key: str, where: str, roles: Mapping[str, str]) -> Fault:
    if not isinstance(name, str):
        return Fault("wrong_type", f"{key} is not a string but {kind(name)}")
    meant = _meant(name[:80], tuple(roles))
    return Fault(
        "unknown_role",
        f"{where}: unknown role {quoted(name)}; expected system, user, assistant or tool, "
        f"or an entry in data.roles{meant}",
    )


@lru_cache(maxsize=256)
def _meant(name: str, roles: tuple[str, ...]) -> str:
    """` Did you mean ...?` for a role, in the words of its format."""
    name = name.strip().lower()
    known = SPEAKERS.get(name)
    if known in roles:
        return f". Did you mean {known}?"
    close = difflib.get_close_matches(name, roles, n=1)
    return f". Did you mean {close[0]}?" if close else ""


def check_order(messages: Sequence[Message], where: str, faults: list[Fault]) -> None:
    """Faults of the order: who begins, where the system turn stands, what a tool answers.

    Several turns of the user or of the assistant in a row are allowed. Nothing is said of turns
    of which a role is unknown: one mistake is told once.
    """
    roles = [message.role for message in messages]
    if not roles or "" in roles:
        return
    if "assistant" not in roles:
        faults.append(Fault("no_assistant", "no assistant turn: nothing to learn from"))
    elif roles[roles[0] == "system"] == "assistant":
        faults.append(
            Fault("role_order", "starts with an assistant turn: there is nothing that it answers")
        )
    if "system" in roles[1:]:
        again = "a second system turn" if roles[0] == "system" else "a system turn is not the first"
        place = roles.index("system", 1)
        faults.append(Fault("role_order", f"{where}[{place}]: {again}"))
    if "tool" in roles:
        _check_tools(messages, where, faults)


def _check_tools(messages: Sequence[Message], where: str, faults: list[Fault]) -> None:
    caller: Message | None = None  # the assistant turn that the tools answer
    for i, message in enumerate(messages):
        if message.role != "tool":
            caller = message if message.role == "assistant" and _calls_tools(message) else None
        elif caller is None:
            faults.append(Fault("role_order", f"{where}[{i}]: a tool's turn that answers no call"))
        elif message.tool_call_id is not None:
            ids = [call.get("id") for call in caller.tool_calls]
            if None not in ids and ids and message.tool_call_id not in ids:
                found = quoted(message.tool_call_id)
                sentence = f"{where}[{i}]: tool_call_id {found} is none of the calls before it"
                faults.append(Fault("tools", sentence))


def _calls_tools(message: Message) -> bool:
    # A call may be written in the text: `<tool_call>{...}`, `search(...)`, `Action: find[...]`.
    return bool(message.tool_calls) or any(mark in message.content for mark in "{[(<")
