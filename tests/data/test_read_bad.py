"""Bad inputs by name: what each file is, and what must be said about which line."""
# ruff: noqa: E501 (a table: one case on each line)

import codecs
import gzip
import io
import json
import re
import zlib
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pytest
import zstandard
from pyarrow import parquet

from mlx_ft.data.read import ReadStats, read
from mlx_ft.data.rows import FAULTS, BadRow, Record

A, B = b'{"text": "a"}', b'{"text": "b"}'


class Case(NamedTuple):
    """good: the lines of the good rows. bad: (line, code, a part of the sentence)."""

    name: str
    file: str
    content: bytes
    good: list[int]
    bad: list[tuple[int, str, str]]


def lines(*rows: bytes) -> bytes:
    return b"\n".join(rows) + b"\n"


def between(name: str, row: bytes, code: str, sentence: str) -> Case:
    """A bad second line between two good ones."""
    return Case(name, "a.jsonl", lines(A, row, B), [1, 3], [(2, code, sentence)])


def listed(name: str, row: bytes, code: str, sentence: str, more: int = 0) -> Case:
    """The same fault in a list, one element per line; more: its lines beyond the first."""
    content = lines(b"[", A + b",", row + b",", B, b"]")
    return Case(f"{name} in a list", "a.json", content, [2, 4 + more], [(3, code, sentence)])


def packed_rows() -> bytes:
    """More than one block, so that rows come out before the end is missed."""
    return lines(*(json.dumps({"text": f"{i} {zlib.crc32(b'%d' % i)}"}).encode() for i in range(9)))


def parquet_bytes(**columns: object) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.table(columns), file)
    return file.getvalue()


DEEP = b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
ROWS = [
    ("trailing comma", b'{"text": "a",}', "json_syntax", "remove the comma|double quotes"),
    ("missing colon", b'{"text" "a"}', "json_syntax", "':' delimiter at"),
    ("single quotes", b"{'text': 'a'}", "json_syntax", "JSON has double quotes"),
    ("Python's None", b'{"text": None}', "json_syntax", "write null, true or false"),
    ("comment", b'{"text": "a" /* x */}', "json_syntax", "JSON has no comments"),
    ("bad escape", b'{"text": "\\x"}', "json_syntax", "invalid \\\\escape"),
    ("bad unicode escape", b'{"text": "\\u12g4"}', "json_syntax", "escape"),
    ("bare word", b"text", "json_syntax", "expecting value at (line 3, )?column 1"),
    ("number of 5000 digits", b'{"n": ' + b"9" * 5000 + b"}", "json_syntax", "4,300 digits"),
    ("NaN", b'{"n": NaN}', "nan_literal", "NaN is not JSON"),
    ("minus infinity", b'{"n": [-Infinity]}', "nan_literal", "-Infinity is not JSON"),
    ("overflowing number", b'{"n": 1e999}', "nan_literal", "1e999 is too large"),
    ("duplicate key", b'{"a": 1, "a": 2}', "duplicate_key", "key 'a' appears twice"),
    ("nested duplicate", b'{"a": [{"b": 1, "b": 1}]}', "duplicate_key", "key 'b' appears twice"),
    ("array", b"[1, 2]", "not_an_object", "found an array"),
    ("text", b'"x"', "not_an_object", r'found a text, .* as \{"text": \.\.\.\}'),
    ("number", b"3", "not_an_object", "found a number"),
    ("null", b"null", "not_an_object", "found null"),
    ("boolean", b"true", "not_an_object", "found true or false"),
    ("deep nesting", DEEP, "nesting", "nested too deeply"),
    ("lone high surrogate", rb'{"a": "\ud83d"}', "lone_surrogate", r"a has \\ud83d at character 1"),
    ("surrogate key", rb'{"b": {"\udc00": 1}}', "lone_surrogate", "the key"),
    ("escaped NUL", rb'{"m": [{"c": "x\u0000"}]}', "control_character", r"m\[0\].c has .*U\+0000"),
    ("backspace", rb'{"a": "x\by"}', "control_character", r"U\+0008 at character 2"),
    ("form feed", rb'{"a": "\f"}', "control_character", r"U\+000C"),
    ("delete", b'{"a": "\x7f"}', "control_character", r"U\+007F"),
    ("raw tab", b'{"a": "x\ty"}', "control_character", r"U\+0009 stands in a text at .*column 9"),
    ("raw escape", b'{"a": "\x1b[0m"}', "control_character", r"U\+001B"),
    ("invalid byte", b'{"a": "\xff"}', "encoding", r"byte 8 of the line \(0xff\) is not UTF-8"),
    ("Windows-1252", b'{"a": "it\x92s"}', "encoding", r"\(0x92\)"),
    ("encoded surrogate", b'{"a": "\xed\xa0\x80"}', "encoding", r"\(0xed\)"),
    ("overlong UTF-8", b'{"a": "\xc0\x80"}', "encoding", r"\(0xc0\)"),
]
ONLY_LINES = [
    ("cut in a text", b'{"text": "a', "json_syntax", "unterminated string .* column 10"),
    ("cut after a key", b'{"text"', "json_syntax", "the row ends there"),
    ("two rows on a line", A + B, "json_syntax", "write one row on each line"),
    ("unescaped quote", b'{"a": "say "hi""}', "json_syntax", "column 13; found 'hi"),
    ("NUL line", b"\0" * 40, "control_character", "was not completely written"),
    ("raw NUL", b'{"a": "x\0y"}', "control_character", r"U\+0000"),
]
FILES = [
    Case("empty", "a.jsonl", b"", [], [(1, "file_unreadable", "the file is empty")]),
    Case("blank", "a.jsonl", b"\n \n\t", [], [(1, "file_unreadable", "the file is empty")]),
    Case("only a mark", "a.csv", codecs.BOM_UTF8, [], [(1, "file_unreadable", "is empty")]),
    Case("empty list", "a.json", b"[]", [], [(1, "file_unreadable", "has no rows")]),
    Case("header only", "a.csv", b"a,b\n", [], [(1, "file_unreadable", "has no rows")]),
    Case("zip", "a.jsonl", b"PK\x03\x04" + b"x" * 40, [], [(1, "file_unreadable", "a zip archive")]),
    Case("SQLite", "a.jsonl", b"SQLite format 3\0", [], [(1, "file_unreadable", "an SQLite")]),
    Case(
        "LFS pointer", "a.parquet", b"version https://git-lfs.github.com/spec/v1\n", [],
        [(1, "file_unreadable", "git lfs pull")],
    ),
    Case("web page", "a.json", b"<!DOCTYPE html>\n", [], [(1, "file_unreadable", "a web page")]),
    Case("prose", "a.txt", b"Once upon\na time.\n", [], [(1, "file_unreadable", "without rows")]),
    Case("bad line first", "a.jsonl", lines(b'{"text": "a"', A), [2], [(1, "json_syntax", "ends")]),
    Case("last line cut", "a.jsonl", A + b"\n" + A[:-4], [1], [(2, "json_syntax", "column 10")]),
    Case("blank lines count", "a.jsonl", lines(A, b"", b"x", b"\r", B), [1, 5], [(3, "json_syntax", "")]),
    Case("old Mac's lines", "a.jsonl", A + b"\r" + b"x\r" + B, [1, 3], [(2, "json_syntax", "")]),
    Case(
        "mark in the middle", "a.jsonl", lines(A, codecs.BOM_UTF8 + B, codecs.BOM_UTF8 + b"x"),
        [1, 2], [(3, "json_syntax", "column 1")],
    ),
    Case("list without end", "a.json", b"[" + A + b",\n" + B, [1, 2], [(2, "json_syntax", "no end")]),
    Case("list cut in a row", "a.json", b"[" + A + b",\n" + B[:-3], [1], [
        (2, "json_syntax", "unterminated"), (2, "json_syntax", "no end"),
    ]),
    Case("empty places", "a.json", b"[" + A + b",,\n" + B + b",]", [1, 2], []),
    Case("no comma", "a.json", b"[" + A + b"\n" + B + b"]", [1, 2], []),
    Case("stray bracket", "a.json", b"[" + A + b"]\n]" + B, [1, 2], [(2, "json_syntax", "']'")]),
    Case(
        "two lists", "a.json", b'{"train": [' + A + b'],\n"test": [' + B + b"]}", [1],
        [(2, "not_an_object", "a second list of objects, 'test'")],
    ),
    Case(
        "list in an object cut off", "a.json", b'{"data": [' + A + b"]\n", [1],
        [(2, "json_syntax", "the object around 'data' has no end")],
    ),
    Case(
        "missing brace, printed", "a.json",
        b'[\n  {\n    "text": "a"\n  ,\n  {\n    "text": "b"\n  }\n]', [5], [(2, "json_syntax", "")],
    ),
    Case(
        "unescaped quote in a list", "a.json", b'[{"a": "say "hi" to"},' + A + b"]", [1],
        [(1, "json_syntax", "column 14")],
    ),
    Case(
        "elements of other kinds", "a.json", b"[1,\n[2, 3],\nnull,\n" + A + b"]", [4],
        [(i, "not_an_object", "") for i in (1, 2, 3)],
    ),
    Case(
        "UTF-16 with a bad row", "a.jsonl", "\ufeff{\"text\": \"é\"}\nx\n".encode("utf-16-le"),
        [1], [(2, "json_syntax", "")],
    ),
    Case(
        "UTF-16 with a lone half", "a.jsonl",
        '{"a": "b"}\n{"a": "\ud800"}\n{"a": "c"}'.encode("utf-16-be", "surrogatepass"),
        [1, 3], [(2, "encoding", "the UTF-16 text is damaged")],
    ),
    Case(
        "UTF-16 of an odd length", "a.jsonl", A.decode().encode("utf-16") + b"\n", [],
        [(1, "encoding", "UTF-16")],
    ),
    Case("UTF-32", "a.jsonl", "{\"a\": 1}\nx".encode("utf-32"), [1], [(2, "json_syntax", "")]),
    Case("row too short", "a.csv", b"a,b\n1,2\n3\n4,5\n", [2, 4], [(3, "columns", "found 1 cells, expected 2")]),
    Case("row too long", "a.csv", b"a,b\n1,2,3\n4,5\n", [3], [(2, "columns", "found 3 cells")]),
    Case("twice in the header", "a.csv", b"a,a\n1,2\n", [], [(1, "file_unreadable", "'a' twice")]),
    Case("header without names", "a.csv", b",,\n1,2,3\n", [], [(1, "file_unreadable", "no columns")]),
    Case("quote without end", "a.csv", b'a,b\n"1,2\n3,4\n5,6\n', [3, 4], [(2, "columns", "a quote")]),
    Case("text after a quote", "a.csv", b'a,b\n"1"x,2\n3,4\n', [3], [(2, "columns", "not CSV")]),
    Case("stray quote, healed", "a.csv", b'a,b\n"1,2\n"3\n4",5\n6,7\n', [3, 5], [(2, "columns", "a quote")]),
    Case("invalid byte in a table", "a.csv", b"a,b\n1,2\n\xe9,3\n4,5\n", [2, 4], [(3, "encoding", r"byte 1 .*\(0xe9\)")]),
    Case("control in a table", "a.csv", b"a,b\nx\x07,3\n4,5\n", [3], [(2, "control_character", r"a has .*U\+0007")]),
    Case("bad JSON in a cell", "a.csv", b"messages\n[{'role': 'user'}]\n", [], [(2, "json_syntax", "json.dumps")]),
    Case("NaN in a cell", "a.csv", b"messages\n[NaN]\n", [], [(2, "nan_literal", "column 'messages'")]),
    Case("gzip cut off", "a.jsonl.gz", gzip.compress(packed_rows())[:-12], list(range(1, 9)), [(9, "archive_damaged", "cut off|damaged")]),
    Case("gzip checksum", "a.jsonl", gzip.compress(lines(A, B))[:-8] + b"\0" * 8, [1], [(2, "archive_damaged", "incorrect")]),
    Case("gzip and garbage", "a.jsonl", gzip.compress(lines(A)) + b"garbage", [1], [(2, "archive_damaged", "")]),
    Case("gzip header only", "a.jsonl", b"\x1f\x8b\x08\0", [], [(1, "archive_damaged", "cut off")]),
    Case("Zstandard cut off", "a.json.zst", zstandard.compress(b"[" + A + b"," + B)[:-2], [], [(1, "archive_damaged", "")]),
    Case("Parquet without its end", "a.parquet", parquet_bytes(text=["a", "b"])[:-30], [], [(1, "archive_damaged", "")]),
    Case("Parquet, infinite", "a.parquet", parquet_bytes(n=[1.0, float("inf"), 2.0]), [1, 3], [(2, "nan_literal", "")]),
    Case("Parquet, binary", "a.parquet", parquet_bytes(n=[b"a", b"\xff"]), [1], [(2, "encoding", "byte 1")]),
    Case("Parquet, control", "a.parquet", parquet_bytes(n=["\0", "b"]), [2], [(1, "control_character", "n has")]),
    Case("Parquet without rows", "a.parquet", parquet_bytes(n=[]), [], [(1, "file_unreadable", "no rows")]),
]  # fmt: skip
CASES = [
    *(between(*row) for row in ROWS + ONLY_LINES),
    *(listed(*row) for row in ROWS),
    *FILES,
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_bad_input_is_said_with_its_line(case: Case, tmp_path: Path):
    path = tmp_path / case.file
    path.write_bytes(case.content)
    stats = ReadStats()
    rows = list(read(path, stats))
    assert [row.line for row in rows if isinstance(row, Record)] == case.good
    bad = [row for row in rows if isinstance(row, BadRow)]
    assert [(row.line, row.code) for row in bad] == [fault[:2] for fault in case.bad]
    for row, (_, _, sentence) in zip(bad, case.bad, strict=True):
        assert row.code in FAULTS
        assert re.search(sentence, row.sentence), row.sentence
    assert (stats.rows, stats.bad) == (len(case.good), len(case.bad))


def test_there_are_sixty_of_them():
    assert len({case.name for case in CASES}) == len(CASES) >= 60
