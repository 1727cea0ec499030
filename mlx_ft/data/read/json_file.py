"""JSON that is not one object per line: a list of rows, an object around it, or many objects."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from mlx_ft.data.read.blocks import failure_row
from mlx_ft.data.read.chunks import LINE_LIMIT, huge_row
from mlx_ft.data.read.json_row import DECODER, checked, encoding_fault
from mlx_ft.data.read.json_text import JsonText, TooLong
from mlx_ft.data.read.stats import ReadStats
from mlx_ft.data.rows import BadRow, Fault, Record, RowError

# Names of a list of rows. Under any other name a list belongs to a row, unless it is all there is.
CONTAINERS = frozenset(
    "data dataset documents entries examples instances items list pairs records results rows "  # noqa: SIM905
    "samples test train training val valid validation".split()
)
ROW_KEYS = frozenset(
    "chosen completion conversation conversations dialog dialogue functions history messages "  # noqa: SIM905
    "prompt rejected tool_calls tools turns".split()
)
MEMBER = re.compile(r'[\s,]*"((?:[^"\\]|\\.)*)"\s*:\s*')
LIST_OF_OBJECTS = re.compile(r"\[\s*\{")
NOT_FOUND = "no next row was found from there to the end of the file ({:,} characters)"


def read_json(
    data: Iterator[bytes],
    path: Path,
    stats: ReadStats,
    encoding: str = "UTF-8",
    limit: int = LINE_LIMIT,
) -> Iterator[Record | BadRow]:
    """The rows of JSON in UTF-8, each with the line that it begins in."""
    return _JsonFile(JsonText(data, limit), path, stats, encoding, limit).rows()


def is_container(key: str, value: object, alone: bool) -> bool:
    """Whether this member of an object is a list of rows. alone: the object has no other."""
    listed = isinstance(value, list) and value and isinstance(value[0], dict)
    return bool(listed) and (key in CONTAINERS or (alone and key not in ROW_KEYS))


class _JsonFile:
    def __init__(
        self, text: JsonText, path: Path, stats: ReadStats, encoding: str, limit: int
    ) -> None:
        self.text, self.path, self.stats = text, path, stats
        self.encoding, self.limit = encoding, limit

    def rows(self) -> Iterator[Record | BadRow]:
        text = self.text
        if text.next() == "{" and (key := self._container()) is not None:
            self.stats.notes.append(f"{self.path}: the rows are those of {key!r}.")
            yield from self._list()
            yield from self._after_list(key)
        while (mark := text.next()) != "":
            if mark == "[":
                text.take(text.at + 1)
                yield from self._list()
            elif mark == ",":
                text.take(text.at + 1)
            elif mark in "]}":
                yield self._stray(mark)
            else:
                yield self._element()
        if text.failure is not None:
            yield failure_row(self.path, text.line, text.failure)

    def _list(self) -> Iterator[Record | BadRow]:
        """The elements of a list whose bracket was passed."""
        text, comma, first = self.text, True, True
        missing, where = 0, 0  # rows without a comma before them, and the first one's line
        while (mark := text.next()) not in ("", "]"):
            if mark == ",":
                comma = True
                text.take(text.at + 1)
                continue
            if not comma and not first:
                missing, where = missing + 1, where or text.line
            yield self._stray(mark) if mark == "}" else self._element()
            comma = first = False
        if missing:
            more = f", and {missing - 1} more" if missing > 1 else ""
            self.stats.notes.append(
                f"{self.path}:{where}: no comma before this row{more}; read all the same."
            )
        if mark == "]":
            text.take(text.at + 1)
        elif text.failure is None:
            sentence = "the list of rows has no end: expected ']'; the file may be cut off"
            yield BadRow(self.path, text.line, "json_syntax", sentence, "")

    def _stray(self, mark: str) -> BadRow:
        line, raw = self.text.line, self.text.take(self.text.at + 1)
        sentence = f"found {mark!r} where a row should begin; remove it, or mend the row before it"
        return BadRow(self.path, line, "json_syntax", sentence, raw)

    def _element(self) -> Record | BadRow:
        """The row that begins here; afterwards the text stands behind it."""
        text, line = self.text, self.text.line
        try:
            value, end = text.value()
        except (RowError, TooLong) as error:
            return self._broken(error)
        raw = text.text[text.at : end]
        try:
            self._encodable(raw)
            fields = checked(value, raw)
        except RowError as error:
            [fault] = error.found
            return BadRow(self.path, line, fault.code, fault.sentence, text.take(end))
        text.take(end)
        return Record(fields, self.path, line)

    def _encodable(self, raw: str) -> None:
        if raw.isascii():
            return
        try:
            raw.encode()
        except UnicodeEncodeError as error:
            line = raw[: error.start].rpartition("\n")[2].encode()
            byte = bytes([ord(raw[error.start]) & 0xFF])
            raise RowError(encoding_fault(line + byte, len(line), self.encoding)) from None

    def _broken(self, error: RowError | TooLong) -> BadRow:
        """A value that cannot be had; the text moves on to the next one as far as it is found."""
        text, line = self.text, self.text.line
        raw, length, found = text.skip()
        if not found and text.failure is not None:
            failure, text.failure = text.failure, None
            return failure_row(self.path, line, failure, raw)
        if isinstance(error, TooLong):
            return huge_row(self.path, line, length, self.limit)
        [fault] = error.found
        more = "" if found else "; " + NOT_FOUND.format(length)
        return BadRow(self.path, line, fault.code, fault.sentence + more, raw)

    def _container(self) -> str | None:
        """The name of the list of rows in the first object; the text then stands in the list.

        Looks only at what is in the window: what stands before the list is small.
        """
        text, at = self.text, self.text.at + 1
        names: list[str] = []
        while member := MEMBER.match(text.text, at):
            key, at = member[1], member.end()
            if text.text.startswith("[", at) and LIST_OF_OBJECTS.match(text.text, at):
                alone = not names and key not in ROW_KEYS and key not in CONTAINERS
                offset = at - text.at
                if key in CONTAINERS or (alone and self._alone()):
                    text.take(text.at + offset + 1)
                    self._unused(names)
                    return key
                at = text.at + offset
            try:
                _, at = DECODER.raw_decode(text.text, at)
            except (ValueError, RecursionError, RowError):
                return None
            names.append(key)
        return None

    def _alone(self) -> bool:
        """Whether the object has no other member, or is too large to be a row."""
        try:
            value, _ = self.text.value()
        except RowError:
            return False
        except TooLong:
            return True
        return len(value) == 1

    def _after_list(self, key: str) -> Iterator[Record | BadRow]:
        """What follows the list in the object around it: nothing that is a row is passed over."""
        text = self.text
        names: list[str] = []
        while (mark := text.next()) not in ("", "}"):
            line = text.line
            if mark == ",":
                text.take(text.at + 1)
                continue
            if mark == "]":
                yield self._stray(mark)
                continue
            member = MEMBER.match(text.text, text.at) if mark == '"' else None
            if member is None and text.fill():  # its key may go on in the next block
                member = MEMBER.match(text.text, text.at)
            if member is None:
                yield self._broken(RowError(Fault("json_syntax", f"not JSON: found {mark!r}")))
                continue
            text.take(member.end())
            text.next()
            second = LIST_OF_OBJECTS.match(text.text, text.at)
            text.skip()
            names.append(member[1])
            if second:
                sentence = (
                    f"a second list of objects, {member[1]!r}, stands beside the rows in {key!r} "
                    "and is not read; write each list to a file of its own"
                )
                yield BadRow(self.path, line, "not_an_object", sentence, "")
        self._unused(names)
        if mark == "}":
            text.take(text.at + 1)
        elif text.failure is None:
            sentence = f"the object around {key!r} has no end: expected '}}'; is the file cut off?"
            yield BadRow(self.path, text.line, "json_syntax", sentence, "")

    def _unused(self, names: list[str]) -> None:
        if names:
            self.stats.notes.append(f"{self.path}: not used beside the rows: {', '.join(names)}.")
