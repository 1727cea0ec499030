"""CSV and TSV: one record at a time, so that a broken quote costs its own row and not the rest."""

from __future__ import annotations

import csv
import json
import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlx_ft.data.read.chunks import LINE_LIMIT, Chunk
from mlx_ft.data.read.json_row import DECODER, character_fault, encoding_fault, limit_fault
from mlx_ft.data.read.kind import delimiter
from mlx_ft.data.read.stats import ReadStats
from mlx_ft.data.rows import BadRow, Fault, Record, RowError

# Cells of these columns are JSON; of the others, only lists of turns are.
LISTS = frozenset(
    ["conversations", "functions", "history", "messages", "tool_calls", "tools", "turns"]
)
TURNS = frozenset(["chosen", "completion", "conversation", "prompt", "rejected"])
# The longest record of several lines: beyond it, its quote is taken for one that has no end.
LONGEST = 8 << 20
CONTROLS = bytes(i for i in range(32) if i not in (9, 10, 13)) + b"\x7f"
UNDECODED = re.compile("[\udc80-\udcff]")

Line = tuple[int, str]


def read_table(
    parts: Iterable[Chunk | BadRow], path: Path, stats: ReadStats, ending: str
) -> Iterator[Record | BadRow]:
    """The rows of a table with a header, each with the line that it begins in.

    Cells are texts, without empty list columns. ending: ".tsv" prefers the tab.
    """
    # The module's own limit of 128 KiB is shorter than many a training text.
    csv.field_size_limit(max(csv.field_size_limit(), LINE_LIMIT))
    lines = _Lines(parts, stats)
    header = next(lines, None)
    if isinstance(header, tuple) and (named := re.fullmatch(r"sep=(.)\s*", header[1])):
        mark = named[1]  # Excel's own first line
        header = next(lines, None)
    else:
        mark = delimiter(header[1], ending) if isinstance(header, tuple) else ","
    if header is None:
        return
    if isinstance(header, BadRow):
        yield _headless(header)
        return
    lines.back([header])
    records = _Records(lines, path, mark)
    names = records.header()
    if isinstance(names, BadRow):
        yield names
        return
    if "" in names:
        stats.notes.append(f"{path}: columns without a name are not used.")
    yield from records


def _headless(header: BadRow) -> BadRow:
    """A table's faulty header, which costs all of its rows."""
    if header.code == "archive_damaged":  # nothing is below it
        return header
    sentence = f"{header.sentence}. It is the header: the rows below it were not read"
    return replace(header, code="file_unreadable", sentence=sentence)


class _Lines(Iterator["Line | BadRow"]):
    """Lines of text that are not blank; some can be given back.

    dirty: a line had bad characters or bytes, so that records must be looked at.
    """

    def __init__(self, parts: Iterable[Chunk | BadRow], stats: ReadStats) -> None:
        self.dirty, self.encoding = False, "UTF-8"
        self.stats = stats
        self._ahead: deque[Line | BadRow] = deque()
        self._fresh = self._read(parts)

    def __next__(self) -> Line | BadRow:
        line = self.any()
        while isinstance(line, tuple) and not line[1].strip(" \r"):
            self.stats.blank_lines += 1
            line = self.any()
        if line is None:
            raise StopIteration
        return line

    def any(self) -> Line | BadRow | None:
        """The next line, blank or not."""
        return self._ahead.popleft() if self._ahead else next(self._fresh, None)

    def back(self, lines: list[Line | BadRow]) -> None:
        self._ahead.extendleft(reversed(lines))

    def _read(self, parts: Iterable[Chunk | BadRow]) -> Iterator[Line | BadRow]:
        for part in parts:
            if isinstance(part, BadRow):
                yield part
                continue
            data = part.data
            self.encoding = part.encoding
            try:
                text = data.decode()
                self.dirty = self.dirty or len(data.translate(None, CONTROLS)) != len(data)
            except UnicodeDecodeError:
                text = data.decode("utf-8", "surrogateescape")
                self.dirty = True
            yield from enumerate(text.split("\n"), part.line)


class _Records:
    """Lines as rows."""

    def __init__(self, lines: _Lines, path: Path, mark: str) -> None:
        self.lines, self.path, self.mark = lines, path, mark
        self.names: list[str] = []
        self.json_columns: list[str] = []

    def header(self) -> list[str] | BadRow:
        """The names of the columns, from the first record."""
        record = next(self._records())
        if isinstance(record, BadRow):
            return _headless(record)
        line, cells, raw = record
        names = [cell.strip() for cell in cells]
        given = [name for name in names if name]
        twice = sorted({name for name in given if given.count(name) > 1})
        fault = None
        if twice:
            fault = f"the header names {', '.join(map(repr, twice))} twice; rename one"
        elif not given:
            fault = "the header names no columns; write their names into the first line"
        elif self.lines.dirty and (UNDECODED.search(raw) or character_fault(names)):
            fault = "the header is no clean text; save the file as UTF-8"
        if fault:
            return _headless(BadRow(self.path, line, "columns", fault, raw))
        self.names = names
        self.json_columns = [name for name in given if name in LISTS | TURNS]
        return names

    def __iter__(self) -> Iterator[Record | BadRow]:
        for record in self._records():
            if isinstance(record, BadRow):
                yield record
                continue
            line, cells, raw = record
            try:
                yield Record(self._fields(cells, raw), self.path, line)
            except RowError as error:
                [fault] = error.found
                yield BadRow(self.path, line, fault.code, fault.sentence, self._as_json(cells))

    def _records(self) -> Iterator[tuple[int, list[str], str] | BadRow]:
        for first in self.lines:
            if isinstance(first, BadRow):
                yield first
                continue
            line, text = first
            try:
                cells = self._cells(text)
                if cells is None:
                    cells, text = self._over_lines(first)
            except RowError as error:
                [fault] = error.found
                raw = json.dumps({"line": text}, ensure_ascii=False)
                yield BadRow(self.path, line, fault.code, fault.sentence, raw)
            else:
                yield line, cells, text

    def _over_lines(self, first: Line) -> tuple[list[str], str]:
        """The record that begins in a line and ends in a later one.

        Raises RowError, with all later lines given back, where no end makes a proper record: then
        the quote in the first line is wrong, and it alone is the faulty row.
        """
        taken: list[Line | BadRow] = []
        texts, size = [first[1]], len(first[1])
        while size <= LONGEST and (line := self.lines.any()) is not None:
            taken.append(line)
            if isinstance(line, BadRow):
                break
            texts.append(line[1])
            size += len(line[1]) + 1
            if line[1].count('"') % 2:
                text = "\n".join(texts)
                try:
                    cells = self._cells(text)
                except RowError:
                    break
                if cells is None:
                    continue
                if len(cells) == (len(self.names) or len(cells)) or not self._own(taken):
                    return cells, text
                break
        self.lines.back(taken)
        sentence = (
            "a quote begins in this line that no later line ends properly; close it, and write a "
            'quote inside of quotes twice ("")'
        )
        raise RowError(Fault("columns", sentence))

    def _own(self, lines: list[Line | BadRow]) -> bool:
        """Whether any of these lines is a proper record by itself, so not part of another one."""
        for line in lines:
            if isinstance(line, BadRow) or line[1].count('"') % 2:  # it ends a cell, or begins one
                continue
            try:
                cells = self._cells(line[1])
            except RowError:
                continue
            if cells is not None and len(cells) == len(self.names):
                return True
        return False

    def _cells(self, text: str) -> list[str] | None:
        """The cells of a record; None when a quote is still open."""
        try:
            rows = list(csv.reader([text], delimiter=self.mark, strict=True))
        except csv.Error as error:
            if "unexpected end of data" in str(error):
                return None
            sentence = f'not CSV: {error}; write a quote inside of quotes twice ("")'
            raise RowError(Fault("columns", sentence)) from None
        return rows[0] if rows else []

    def _fields(self, cells: list[str], raw: str) -> dict[str, Any]:
        names = self.names
        if len(cells) != len(names):
            known = ", ".join(names)
            sentence = (
                f"found {len(cells)} cells, expected {len(names)} ({known[:200]}); put a cell that "
                f"holds {self.mark!r} or a line break in quotes"
            )
            raise RowError(Fault("columns", sentence))
        if self.lines.dirty:
            self._look(cells, raw)
        fields: dict[str, Any] = dict(zip(names, cells, strict=True))
        fields.pop("", None)
        for name in self.json_columns:
            fields[name] = _json_cell(name, fields[name])
            if fields[name] is None:
                del fields[name]
        return fields

    def _look(self, cells: list[str], raw: str) -> None:
        if found := UNDECODED.search(raw):
            before = raw[: found.start()].rpartition("\n")[2].encode()
            byte = bytes([ord(found[0]) & 0xFF])
            raise RowError(encoding_fault(before + byte, len(before), self.lines.encoding))
        if fault := character_fault(dict(zip(self.names, cells, strict=True))):
            raise RowError(fault)

    def _as_json(self, cells: list[str]) -> str:
        named = dict(zip(self.names, cells, strict=False))
        more = cells[len(self.names) :]
        text = json.dumps(named | ({"more cells": more} if more else {}), ensure_ascii=False)
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def _json_cell(name: str, cell: str) -> Any:
    """The list in a cell, or its text; None for an empty cell of a list column."""
    text = cell.strip()
    if not text and name in LISTS:
        return None
    if text[:1] not in ("[", "{"):
        return cell
    try:
        value = DECODER.decode(text)
    except (ValueError, RecursionError, RowError) as error:
        if name in TURNS:
            return cell  # a text that begins with a bracket
        raise RowError(_cell_fault(name, text, error)) from None
    turns = isinstance(value, list) and value and all(isinstance(turn, dict) for turn in value)
    if name in TURNS and not turns:
        return cell
    if fault := character_fault({name: value}):
        raise RowError(fault)
    return value


def _cell_fault(name: str, text: str, error: Exception) -> Fault:
    if isinstance(error, RowError):
        [fault] = error.found
        return Fault(fault.code, f"column {name!r}: {fault.sentence}")
    if not isinstance(error, json.JSONDecodeError):
        return limit_fault(error)
    hint = "mend it"
    if text[error.pos : error.pos + 1] == "'":
        hint = "this is Python's notation: write the cell with json.dumps, or the file as JSON"
    return Fault(
        "json_syntax",
        f"column {name!r} is not JSON: {error.msg} at its character {error.pos + 1}; {hint}",
    )
