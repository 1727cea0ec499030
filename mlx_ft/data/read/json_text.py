"""A sliding window over JSON text: its values one by one, and the way past broken ones."""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterator
from typing import Any

from mlx_ft.data.read.blocks import Damaged
from mlx_ft.data.read.json_row import DECODER, limit_fault, syntax_fault
from mlx_ft.data.rows import RowError

WHITE = re.compile(r"[ \t\n\r\ufeff]*")
UNQUOTED = re.compile(r'["\[\]{},\n]')
QUOTED = re.compile(r'["\\\n]')
# The decoder's word for "the text ends here" differs; what it was reading is no longer than this.
LONGEST_LITERAL = 16
LONGEST_INDENT = 200
DEEPEST = 1_000_000


class TooLong(Exception):
    """A value is longer than the limit."""


class JsonText:
    """Text that arrives in blocks. `line`: the number of the line that `at` stands in.

    failure: what ended the stream early (OSError or Damaged).
    """

    def __init__(self, data: Iterator[bytes], limit: int) -> None:
        self.text, self.at, self.line = "", 0, 1
        self.failure: Exception | None = None
        self._data, self._limit = data, limit
        self._decode = codecs.getincrementaldecoder("utf-8")("surrogateescape").decode
        self._column = 0  # characters of the line that `at` stands in which were dropped
        self.indent: str | None = ""  # what is before `at` in its line, when that is white space
        self.ended = False

    def fill(self, wanted: int = 1) -> bool:
        """Drop what was read and add at least `wanted` characters. False at the end."""
        if self.ended:
            return False
        start = self.text.rfind("\n", 0, self.at) + 1
        self._column = self.at - start + (0 if start else self._column)
        parts, size = [self.text[self.at :]], 0
        self.at = 0
        try:
            while size < wanted and (block := next(self._data, None)) is not None:
                parts.append(self._decode(block))
                size += len(parts[-1])
        except (Damaged, OSError) as error:
            self.failure = error
        if size < wanted:
            self.ended = True
            parts.append(self._decode(b"", True))
        self.text = "".join(parts)
        return size > 0 or len(parts[-1]) > 0

    def take(self, to: int) -> str:
        """Move `at` forward over something, counting lines; what was passed."""
        passed = self.text[self.at : to]
        self.line += passed.count("\n")
        self.at, self.indent = to, None
        return passed

    def next(self) -> str:
        """Skip white space; the character that is next, or "" at the end."""
        while True:
            indent = self.indent
            gap = self.take(WHITE.match(self.text, self.at).end())  # type: ignore[union-attr]
            if "\n" in gap:
                indent = gap.rpartition("\n")[2]
            elif indent is not None:
                indent += gap
            self.indent = indent if indent is not None and len(indent) < LONGEST_INDENT else None
            if self.at < len(self.text):
                return self.text[self.at]
            if not self.fill():
                return ""

    def value(self) -> tuple[Any, int]:
        """The value at `at` and where it ends. Raises RowError with one fault, and TooLong."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end < len(self.text) or self.ended:
                    return value, end
            except json.JSONDecodeError as error:
                cut = error.msg.startswith("Unterminated") or (
                    error.pos > len(self.text) - LONGEST_LITERAL
                )
                if not cut or self.ended:
                    raise RowError(syntax_fault(error, self.place(error.pos))) from None
            except (RecursionError, ValueError) as error:
                raise RowError(limit_fault(error)) from None
            if len(self.text) - self.at > self._limit:
                raise TooLong
            self.fill(len(self.text) - self.at)  # twice as much: all tries together stay linear

    def place(self, at: int) -> str:
        """`line 3, column 7` of a position at or after `at`."""
        start = self.text.rfind("\n", 0, at) + 1
        column = at - start + 1 + (0 if start else self._column)
        return f"line {self.line + self.text.count(chr(10), self.at, at)}, column {column}"

    def skip(self) -> tuple[str, int, bool]:
        """Move past a broken value: to its own end as far as brackets and quotes tell it, or to a
        line that begins with `{` as far to the left as the value's own line does.

        Returns its text ("" when longer than the limit), its length, and whether an end was found.
        """
        following = None if self.indent is None else self.indent + "{"
        brackets, quoted, scan = _Brackets(), False, self.at
        parts: list[str] = []
        length = 0
        while True:
            found = (QUOTED if quoted else UNQUOTED).search(self.text, scan)
            mark, i = (found[0], found.start()) if found else ("", len(self.text))
            unseen = mark in ("\\", "\n") and i + LONGEST_INDENT >= len(self.text)
            if not mark or (unseen and not self.ended):
                length += i - self.at
                passed = self.take(i)
                parts = [*parts, passed] if length <= self._limit else []
                if not self.fill() and not mark:
                    return "".join(parts), length, False
                scan = self.at
                continue
            scan, end = i + 1, None
            if mark == "\n":  # no text in quotes goes on in the next line
                quoted = False
                next_row = following is not None and self.text.startswith(following, i + 1)
                end = i if next_row or not brackets.open else None
            elif mark == '"':
                quoted = not quoted
            elif mark == "\\":
                scan += self.text[i + 1 : i + 2] != "\n"
            else:
                end = brackets.end(mark, i)
            if end is not None:
                length += end - self.at
                passed = self.take(end)
                parts = [*parts, passed] if length <= self._limit else []
                return "".join(parts), length, True


class _Brackets:
    """Which brackets are open."""

    def __init__(self) -> None:
        self.open: list[str] = []
        self._counts = {"{": 0, "[": 0}

    def end(self, mark: str, at: int) -> int | None:
        """Where the value ends if this bracket or comma ends it."""
        if mark == ",":
            return None if self.open else at
        if mark in "{[":
            if len(self.open) < DEEPEST:
                self.open.append(mark)
                self._counts[mark] += 1
            return None
        partner = "{" if mark == "}" else "["
        if not self._counts[partner]:
            return at if mark == "]" or not self.open else None  # the list's own end
        while True:  # an unclosed bracket inside of this pair ends with it
            last = self.open.pop()
            self._counts[last] -= 1
            if last == partner:
                return None if self.open else at + 1
