"""What a file is: by its first bytes, and by its name only where these leave it open."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

from mlx_ft.data.read.json_file import is_container

SUFFIXES = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet")
PACKED = (".gz", ".gzip", ".zst", ".zstd")
DELIMITERS = ",\t;"
PARQUET = b"PAR1"

OTHERS = {  # first bytes of what people take for rows
    b"PK\x03\x04": "a zip archive (or an Office document): unpack it",
    b"BZh": "a bzip2 archive: unpack it, or use gzip",
    b"\xfd7zXZ": "an xz archive: unpack it, or use gzip",
    b"7z\xbc\xaf": "a 7z archive: unpack it",
    b"SQLite format 3": "an SQLite database: export its table as CSV",
    b"ARROW1": "an Arrow file: write it as Parquet",
    b"Obj\x01": "an Avro file: write it as Parquet",
    b"%PDF": "a PDF document: see `mlx-ft data from-documents`",
    b"\x89HDF": "an HDF5 file: write it as Parquet",
    b"\x93NUMPY": "a NumPy array: write its rows as JSON Lines",
    b"GGUF": "a GGUF model: give it as model.path",
    b"version https://git-lfs": "a Git LFS pointer: run `git lfs pull`",
    b"<!DOCTYPE": "a web page: download the data file itself",
    b"<!doctype": "a web page: download the data file itself",
    b"<html": "a web page: download the data file itself",
    b"<?xml": "an XML document: write its rows as JSON Lines",
}
EXPECTED = "expected JSON Lines, JSON, CSV, TSV or Parquet, also with gzip or Zstandard"
JSON_START = re.compile(r'\{\s*("|\}|$)|\[\s*(\{|\[|"|\]|$)')


def suffix(path: Path) -> str:
    """The ending that names the kind of rows, in lower case: ".jsonl" of `a.jsonl.gz`."""
    endings = [ending.lower() for ending in path.suffixes]
    while endings and endings[-1] in PACKED:
        endings.pop()
    return endings[-1] if endings else ""


def other_kind(head: bytes) -> str | None:
    """What a file is that holds no rows, and what to do with it."""
    return next((kind for start, kind in OTHERS.items() if head.startswith(start)), None)


def text_kind(head: str, whole: bool, ending: str) -> str | None:
    """`lines` (JSON Lines), `json` (anything else of JSON), `table`, or None for other text.

    head: the first characters. whole: that is all of the file. ending: see `suffix`.
    """
    text = head.lstrip()
    tabular = ending in (".csv", ".tsv")
    if text[:1] in ("{", "[") and (not tabular or JSON_START.match(text)):
        return _json_kind(text, whole, ending in (".jsonl", ".ndjson"))
    if tabular:
        return "table"
    if ending in (".jsonl", ".ndjson", ".json"):
        return "lines"
    return "table" if _columns(text) > 1 else None


def _json_kind(text: str, whole: bool, named_lines: bool) -> str:
    line, _, rest = text.partition("\n")
    rest = rest.lstrip()
    try:
        value, end = json.JSONDecoder().raw_decode(line)
    except json.JSONDecodeError as error:
        ends_early = error.pos >= len(line.rstrip())  # as the first line of printed JSON does
        if text[0] == "[":
            return "json" if ends_early or not named_lines else "lines"
        if named_lines:
            return "json" if ends_early and rest and rest[0] != "{" else "lines"
        return "json" if ends_early or rest[:1] != "{" else "lines"
    except (RecursionError, ValueError):
        return "lines" if named_lines or rest[:1] == "{" else "json"
    if line[end:].strip():  # one value after the other
        return "lines" if named_lines else "json"
    if isinstance(value, list):
        return "lines" if named_lines and rest else "json"
    if whole and not rest:
        alone = len(value) == 1
        listed = any(is_container(key, member, alone) for key, member in value.items())
        return "json" if listed else "lines"
    return "lines"


def _columns(text: str) -> int:
    """How many columns the first two lines share, for the delimiter that gives most."""
    first, _, rest = text.partition("\n")
    found = [_cells(first, delimiter) for delimiter in DELIMITERS]
    second = [_cells(rest.partition("\n")[0], delimiter) for delimiter in DELIMITERS]
    return max(a if a == b else 1 for a, b in zip(found, second, strict=True))


def delimiter(header: str, ending: str) -> str:
    """The delimiter of a table: the one that gives the most columns; a tab first in `.tsv`."""
    order = "\t,;" if ending == ".tsv" else DELIMITERS
    return max(order, key=lambda character: _cells(header, character))


def _cells(line: str, character: str) -> int:
    try:
        return sum(len(row) for row in csv.reader([line.rstrip("\r\n")], delimiter=character))
    except csv.Error:
        return 1
