"""What a row is: as it was read, as it was understood, or why it could not be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from mlx_ft.errors import DataError

# Every code that a row can be rejected with, and what to do about it. Reports group by these.
FAULTS = {
    "file_unreadable": "check that the file is there and may be read",
    "archive_damaged": "the compressed file is cut off or damaged: make it again",
    "encoding": "save the file as UTF-8",
    "huge_line": "no row is that long: check for a missing line break",
    "json_syntax": "mend the JSON",
    "nan_literal": "write a number or null: NaN and Infinity are not JSON",
    "duplicate_key": "name each key once",
    "not_an_object": "write one JSON object for each row",
    "nesting": "the JSON is nested too deeply to be a row",
    "columns": "give every line of the table as many cells as its header",
    "no_format": "use the keys of a known format, or set data.format; see docs/data.md",
    "wrong_type": "give each field the type that its format has",
    "unknown_role": "use system, user, assistant or tool",
    "role_order": "begin with an optional system turn, then a user's; a tool answers a call",
    "empty_turn": "remove the turn, or write it",
    "no_assistant": "add the answer to learn from",
    "label": "use desirable or undesirable, or true or false",
    "no_preference": "let chosen and rejected answer the same prompt, and differ",
    "weight": "use 0 or 1",
    "tools": "describe tools and calls as OpenAI's chat format does",
    "lone_surrogate": "half of a surrogate pair is no character: write it in full",
    "control_character": "remove the character, or write what it stands for",
    "overlong": "raise memory_profile.max_seq_length, or choose another data.overlong",
    "cut_off": "raise memory_profile.max_seq_length, or set data.overlong=truncate_left or drop",
    "no_target": "give an answer the weight 1, or remove the row",
    "template_refused": "the chat template does not take these turns: mend them or the template",
    "mask_in_doubt": "remove white space at the borders of the turns, or use another template",
    "unjudgeable": "end the row with an answer that data.metric can judge",
}


@dataclass(frozen=True)
class Record:
    """A row as it was read. line: its first line in the file, or its row in a table, from 1."""

    fields: dict[str, Any]
    path: Path
    line: int

    @property
    def where(self) -> str:
        """`path:line`, as editors understand it."""
        return f"{self.path}:{self.line}"


@dataclass(frozen=True)
class BadRow:
    """A row that was rejected. code: a key of `FAULTS`. raw: its text, for the quarantine file."""

    path: Path
    line: int
    code: str
    sentence: str
    raw: str

    @property
    def where(self) -> str:
        """`path:line`, as editors understand it."""
        return f"{self.path}:{self.line}"


class Fault(NamedTuple):
    """One thing that is wrong with a row. code: a key of `FAULTS`."""

    code: str
    sentence: str


class RowError(DataError):
    """A row that cannot be used; every fault of it."""

    def __init__(self, *found: Fault) -> None:
        self.found: Sequence[Fault] = found
        super().__init__("The row cannot be used.", [fault.sentence for fault in found])


class CutOff(RowError):
    """A row of which truncation leaves nothing to learn. tokens: those of the whole row."""

    def __init__(self, fault: Fault, tokens: int) -> None:
        self.tokens = tokens
        super().__init__(fault)


@dataclass(frozen=True)
class Message:
    """One turn. role: `system`, `user`, `assistant` or `tool`.

    weight: 0 keeps an assistant turn out of the loss. tool_calls: as in OpenAI's chat format,
    with `arguments` as an object. name, tool_call_id: of a tool's answer.
    """

    role: str
    content: str
    weight: int = 1
    tool_calls: tuple[dict[str, Any], ...] = ()
    name: str | None = None
    tool_call_id: str | None = None


@dataclass(frozen=True)
class Conversation:
    """What a row says: turns, or else raw text (`text` is not None, `messages` is empty).

    label: `desirable`, `undesirable`, or any other class of the row. rejected: the turns that
    answer in place of the last ones of `messages` in a preference pair. tools: JSON schemas that
    the template shows to the model. format: which of `formats.FORMATS` the row was.
    """

    messages: tuple[Message, ...]
    text: str | None
    label: str | None
    record: Record
    rejected: tuple[Message, ...] = ()
    tools: tuple[dict[str, Any], ...] = ()
    format: str = field(default="messages", compare=False)
