"""One function for each format but pairs: the fields of a row to messages or a text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

from mlx_ft.data.parse_turns import (
    KNOWN_ROLES,
    ROLES,
    SPEAKERS,
    Dialect,
    check_order,
    read_turns,
)
from mlx_ft.data.parse_values import kind, optional_string, quoted, string
from mlx_ft.data.rows import Fault, Message
from mlx_ft.errors import DataError


@dataclass(frozen=True)
class FormatOptions:
    """Names of a user's own. roles: name -> `system`, `user`, `assistant` or `tool`.

    conversations_key, from_key, value_key: of ShareGPT's format. Raises DataError for a role
    that there is not.
    """

    conversations_key: str = "conversations"
    from_key: str = "from"
    value_key: str = "value"
    roles: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        faults = [
            f"data.roles: {quoted(name)} is {quoted(role)}; "
            "expected system, user, assistant or tool"
            for name, role in self.roles.items()
            if role not in KNOWN_ROLES
        ]
        if faults:
            raise DataError("The names of the roles cannot be used.", faults)

    @cached_property
    def messages(self) -> Dialect:
        """How `messages` and other lists of turns are read."""
        return Dialect({**ROLES, **self.roles})

    @cached_property
    def conversations(self) -> Dialect:
        """How ShareGPT's `conversations` are read."""
        return Dialect({**SPEAKERS, **self.roles}, self.from_key, self.value_key)


Fields = dict[str, Any]
Turns = tuple[Message, ...]
Keys = Mapping[str, str]  # field of a format -> key of the row


class Said(NamedTuple):
    """What a row says; see `rows.Conversation`."""

    messages: tuple[Message, ...] = ()
    text: str | None = None
    rejected: tuple[Message, ...] = ()


def parse_messages(fields: Fields, keys: Keys, options: FormatOptions, faults: list[Fault]) -> Said:
    """`{"messages": [{"role": ..., "content": ...}, ...]}`: chat, any number of turns."""
    return _chat(fields, keys, keys["messages"], options.messages, faults)


def parse_conversations(
    fields: Fields, keys: Keys, options: FormatOptions, faults: list[Fault]
) -> Said:
    """`{"conversations": [{"from": ..., "value": ...}, ...]}`: ShareGPT's chat."""
    return _chat(fields, keys, keys["conversations"], options.conversations, faults)


def _chat(fields: Fields, keys: Keys, where: str, dialect: Dialect, faults: list[Fault]) -> Said:
    messages = read_turns(fields[where], where, dialect, faults)
    check_order(messages, where, faults)
    if "system" in keys:
        messages = with_system(fields, keys, messages, faults)
    return Said(messages)


def parse_alpaca(fields: Fields, keys: Keys, _: FormatOptions, faults: list[Fault]) -> Said:
    """`{"instruction": ..., "input": ..., "output": ...}`, with `system` and `history`.

    The question is the instruction and, after an empty line, the input.
    """
    key = keys["instruction"]
    first = optional_string(fields[key], key, faults)
    second = ""
    if "input" in keys:
        second = optional_string(fields[keys["input"]], keys["input"], faults)
    if not first and not second and not faults:
        string(fields[key] or "", key, faults)
    answer = string(fields[keys["output"]], keys["output"], faults)
    turns = [*_history(fields, keys, faults), Message("user", joined(first, second))]
    turns.append(Message("assistant", answer))
    return Said(with_system(fields, keys, tuple(turns), faults))


def joined(instruction: str, more: str) -> str:
    """Alpaca's instruction and input as one question."""
    return f"{instruction}\n\n{more}" if instruction and more else instruction or more


def _history(fields: Fields, keys: Keys, faults: list[Fault]) -> list[Message]:
    pairs = fields[keys["history"]] if "history" in keys else None
    if pairs is None or pairs == "":
        return []
    if not isinstance(pairs, list):
        found = kind(pairs)
        faults.append(Fault("wrong_type", f"history is not a list of pairs but {found}"))
        return []
    turns = []
    for i, pair in enumerate(pairs):
        where = f"history[{i}]"
        if not isinstance(pair, list) or len(pair) != 2:
            faults.append(Fault("wrong_type", f"{where} is not a pair [question, answer]"))
            continue
        turns.append(Message("user", string(pair[0], f"{where}[0]", faults)))
        turns.append(Message("assistant", string(pair[1], f"{where}[1]", faults)))
    return turns


def parse_prompt_completion(
    fields: Fields, keys: Keys, options: FormatOptions, faults: list[Fault]
) -> Said:
    """`{"prompt": ..., "completion": ...}`: texts, or lists of turns.

    Only the completion is learned: answers within the prompt have weight 0 unless they say 1.
    """
    asked = side(fields, keys["prompt"], "user", options.messages, faults)
    answer = side(fields, keys["completion"], "assistant", options.messages, faults)
    check_order((*asked, *answer), "turns", faults)
    return Said(with_system(fields, keys, asked + answer, faults))


def side(
    fields: Fields, key: str, role: str, dialect: Dialect, faults: list[Fault]
) -> tuple[Message, ...]:
    """The turns of a prompt (role: user) or of an answer (assistant): one text, or a list."""
    value = fields[key]
    if isinstance(value, list):
        return read_turns(value, key, dialect, faults, int(role == "assistant"))
    return (Message(role, string(value, key, faults)),)


def parse_text(fields: Fields, keys: Keys, _: FormatOptions, faults: list[Fault]) -> Said:
    """`{"text": ...}`: raw text, every token of which is to be learned."""
    return Said(text=string(fields[keys["text"]], keys["text"], faults))


def parse_wikisql(fields: Fields, keys: Keys, _: FormatOptions, faults: list[Fault]) -> Said:
    """WikiSQL as the hub has it: a question, `table.header`, and `sql.human_readable`."""
    table, sql = fields[keys["table"]], fields[keys["sql"]]
    header = table.get("header") if isinstance(table, dict) else None
    names = header if isinstance(header, list) else []
    if not names or not all(isinstance(name, str) for name in names):
        faults.append(Fault("wrong_type", "table.header is not a list of the columns' names"))
        names = []
    question = string(fields[keys["question"]], "question", faults)
    query = sql.get("human_readable") if isinstance(sql, dict) else None
    answer = string(query, "sql.human_readable", faults)
    asked = f"Columns of the table: {' | '.join(names)}\n\n{question}"
    return Said((Message("user", asked), Message("assistant", answer)))


def with_system(
    fields: Fields, keys: Keys, messages: tuple[Message, ...], faults: list[Fault]
) -> tuple[Message, ...]:
    """The messages with the row's own `system` text in front."""
    key = keys.get("system")
    system = optional_string(fields[key], key, faults) if key is not None else ""
    if not system:
        return messages
    if messages and messages[0].role == "system":
        if messages[0].content != system:
            sentence = f"{key!r} and the first turn are both system texts, and not the same"
            faults.append(Fault("role_order", sentence))
        return messages
    return (Message("system", system), *messages)
