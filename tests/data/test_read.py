"""Good files of every kind, packing and encoding; streaming; anything at all without errors."""

import codecs
import datetime
import decimal
import gzip
import io
import json
import random
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from mlx_ft.data.read import Chunk, Quarantine, ReadStats, parse_chunk, parts, read
from mlx_ft.data.rows import BadRow, Record
from mlx_ft.data.write import write_rows
from proofs.fuzz_data import SEEDS, check, mutate

TURNS = [{"role": "user", "content": "Hé, “x”\n"}, {"role": "assistant", "content": "😀\u2028"}]
ROWS = [{"messages": TURNS, "n": 1}, {"messages": TURNS[:1], "n": 2}]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS).encode()


def rows_of(path: Path, **options: int) -> tuple[list[tuple[int, dict]], ReadStats]:
    stats = ReadStats()
    rows = list(read(path, stats, **options))
    assert not [row for row in rows if isinstance(row, BadRow)]
    return [(row.line, row.fields) for row in rows], stats


def parquet_of(rows: list[dict]) -> bytes:
    file = io.BytesIO()
    parquet.write_table(pa.Table.from_pylist(rows), file)
    return file.getvalue()


KINDS = {
    "JSON Lines": (LINES, [1, 2]),
    "without a last line end": (LINES[:-1], [1, 2]),
    "Windows lines": (LINES.replace(b"\n", b"\r\n"), [1, 2]),
    "blank lines": (b"\n" + LINES.replace(b"\n", b"\n\n \n"), [2, 5]),
    "escapes": ("".join(json.dumps(row) + "\n" for row in ROWS).encode(), [1, 2]),
    "a list": (json.dumps(ROWS).encode(), [1, 1]),
    "a printed list": (json.dumps(ROWS, indent=2).encode(), [2, 15]),
    "a row on each line of a list": (
        b"[\n" + b",\n".join(json.dumps(r).encode() for r in ROWS) + b"\n]",
        [2, 3],
    ),
    "a list in an object": (json.dumps({"version": 1, "data": ROWS, "n": [1]}).encode(), [1, 1]),
    "a printed list in an object": (json.dumps({"anything": ROWS}, indent=1).encode(), [3, 16]),
    "printed objects": ("\n".join(json.dumps(row, indent=1) for row in ROWS).encode(), [1, 14]),
    "objects without a border": ("".join(json.dumps(row) for row in ROWS).encode(), [1, 1]),
    "Parquet": (parquet_of(ROWS), [1, 2]),
    "UTF-8 with a mark": (codecs.BOM_UTF8 + LINES, [1, 2]),
    **{
        f"{codec}{' with a mark' if mark else ''}": (mark + LINES.decode().encode(codec), [1, 2])
        for codec, marks in {
            "utf-16-le": codecs.BOM_UTF16_LE,
            "utf-16-be": codecs.BOM_UTF16_BE,
            "utf-32-le": codecs.BOM_UTF32_LE,
            "utf-32-be": codecs.BOM_UTF32_BE,
        }.items()
        for mark in (b"", marks)
    },
}


NAMES = ["a.jsonl", "a.json", "a", "a.parquet.gz"]
# Two rows on one line are a fault in a file that is named as JSON Lines.
PAIRS = [(k, n) for k in KINDS for n in NAMES if (k, n) != ("objects without a border", "a.jsonl")]


@pytest.mark.parametrize("pack", [bytes, gzip.compress, zstandard.compress])
@pytest.mark.parametrize(("kind", "name"), PAIRS)
def test_content_decides_whatever_the_name(tmp_path, kind, pack, name):
    content, places = KINDS[kind]
    path = tmp_path / name
    path.write_bytes(pack(content))
    rows, stats = rows_of(path)
    assert rows == list(zip(places, ROWS, strict=True))
    assert stats.rows == 2
    assert stats.kind


def test_blank_lines_are_counted(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\n" + LINES.replace(b"\n", b"\n\n \n"))
    assert rows_of(path)[1].blank_lines == 5
    path = tmp_path / "a.csv"
    path.write_bytes(b"\ntext\n\na\n\n\nb\n")
    rows, stats = rows_of(path)
    assert [line for line, _ in rows] == [4, 7]
    assert stats.blank_lines == 4


@pytest.mark.parametrize(
    ("name", "content", "rows"),
    [
        ("a.csv", "a,b\n1,x\n", [(2, {"a": "1", "b": "x"})]),
        ("a.csv", "a;b\n1;x,y\n", [(2, {"a": "1", "b": "x,y"})]),
        ("a.tsv", "a\tb\n1\tx\n", [(2, {"a": "1", "b": "x"})]),
        ("a.txt", "a\tb\n1\tx\n", [(2, {"a": "1", "b": "x"})]),
        ("a.csv", "sep=;\na;b\n1;x\n", [(3, {"a": "1", "b": "x"})]),
        ("a.csv", "text\nplain\n", [(2, {"text": "plain"})]),
        ("a.csv", "\ufefftext\r\nplain\r\n", [(2, {"text": "plain"})]),
        ("a.csv", 'a,b\n"x\n\n""y""",2\nz,3\n', [(2, {"a": 'x\n\n"y"', "b": "2"}),
                                                 (5, {"a": "z", "b": "3"})]),
        ("a.csv", 'a,b\n5" pipe,2\n', [(2, {"a": '5" pipe', "b": "2"})]),
        ("a.csv", ",a\n0,x\n", [(2, {"a": "x"})]),
        ("a.csv", "a,b\n,\n", [(2, {"a": "", "b": ""})]),
        ("a.csv", 'messages,output\n"[{""role"": ""user""}]",[1]\n,{}\n',
         [(2, {"messages": [{"role": "user"}], "output": "[1]"}), (3, {"output": "{}"})]),
        ("a.csv", 'prompt,chosen\n[1],"[{""role"": ""user""}]"\n[x,\n',
         [(2, {"prompt": "[1]", "chosen": [{"role": "user"}]}),
          (3, {"prompt": "[x", "chosen": ""})]),
        ("a.csv", "[id],text\n1,x\n", [(2, {"[id]": "1", "text": "x"})]),
    ],
)  # fmt: skip
def test_tables(tmp_path, name, content, rows):
    path = tmp_path / name
    path.write_text(content, "utf-8", newline="")
    assert rows_of(path)[0] == rows


def test_a_long_cell_and_a_long_text_are_rows(tmp_path):
    text = "x, " * 400_000
    for name in ("a.csv", "a.json", "a.jsonl", "a.parquet"):
        write_rows(tmp_path / name, [{"text": text}, {"text": "b"}])
        assert [fields["text"] for _, fields in rows_of(tmp_path / name)[0]] == [text, "b"]


def test_values_of_parquet_become_those_of_json(tmp_path):
    row = {
        "day": datetime.date(2024, 2, 1),
        "at": datetime.datetime(2024, 2, 1, 12, 30),
        "price": decimal.Decimal("1.10"),
        "bytes": b"caf\xc3\xa9",
        "nan": float("nan"),
        "none": None,
        "nested": {"list": [{"a": 1, "b": None}], "none": None},
    }
    table = pa.Table.from_pylist([row]).append_column(
        "map", pa.array([[("k", "v")]], pa.map_(pa.string(), pa.string()))
    )
    parquet.write_table(table, tmp_path / "a.parquet")
    [(line, fields)] = rows_of(tmp_path / "a.parquet")[0]
    assert line == 1
    assert fields == {
        "day": "2024-02-01",
        "at": "2024-02-01T12:30:00",
        "price": "1.10",
        "bytes": "café",
        "nested": {"list": [{"a": 1}]},
        "map": {"k": "v"},
    }


def test_notes_say_what_was_not_used(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(KINDS["a list in an object"][0])
    assert rows_of(path)[1].notes == [
        f"{path}: not used beside the rows: version.",
        f"{path}: the rows are those of 'data'.",
        f"{path}: not used beside the rows: n.",
    ]


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.json.zst"])
def test_rows_over_many_blocks_keep_their_lines(tmp_path, monkeypatch, name):
    monkeypatch.setattr("mlx_ft.data.read.blocks.BLOCK", 777)
    monkeypatch.setattr("mlx_ft.data.read.HEAD", 2000)
    path = tmp_path / name
    write_rows(path, ({"text": f"{i} " + "é\n" * (i % 50)} for i in range(2000)))
    rows, stats = rows_of(path)
    assert [int(fields["text"].split()[0]) for _, fields in rows] == list(range(2000))
    assert stats.rows == 2000
    if "csv" not in name:
        first = 1 if "jsonl" in name else 2
        assert [line for line, _ in rows] == list(range(first, 2000 + first))


def test_members_of_an_archive_are_read_once(tmp_path):
    long = {"text": "x " * (3 << 20)}  # unpacks to more than a block, in the middle of the file
    rows = [{"text": "a"}, long, {"text": "b"}, long, {"text": "c"}]
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(b"".join(gzip.compress(json.dumps(row).encode() + b"\n") for row in rows))
    found, stats = rows_of(path)
    assert found == list(enumerate(rows, 1))
    assert (stats.rows, stats.bad) == (5, 0)


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.jsonl.gz", "a.jsonl.zst"])
def test_memory_does_not_grow_with_the_file(tmp_path, name):
    path = tmp_path / name
    write_rows(path, ({"text": "x" * 10_000} for _ in range(4000)))
    tracemalloc.start()
    for _ in read(path):
        pass
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 25e6  # the rows are 40 MB


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.jsonl.gz"])
def test_a_huge_row_is_skipped_unheld(tmp_path, name):
    path = tmp_path / name
    limit = 3 << 20
    write_rows(path, [{"text": "a"}, {"text": "x" * 5 * limit}, {"text": "b"}])
    tracemalloc.start()
    stats = ReadStats()
    one, huge, three = read(path, stats, limit=limit)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (one.line, huge.line, three.line) in ((1, 2, 3), (2, 3, 4))
    assert (huge.code, huge.raw) == ("huge_line", "")
    assert "15,728," in huge.sentence
    assert peak < 6 * limit
    assert (stats.rows, stats.bad) == (2, 1)


def test_chunks_parse_anywhere_and_count_the_same(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes((b'{"n": "%s"}\n\nx\n' % (b"y" * 999)) * 5000)
    stats, found = ReadStats(), []
    pieces = list(parts(path, stats))
    assert len(pieces) > 1
    assert all(isinstance(piece, Chunk) for piece in pieces)
    for piece in pieces:
        other = ReadStats()
        found += [row.line for row in parse_chunk(piece, other)]
        stats.add(other)
    assert found == [line for i in range(5000) for line in (3 * i + 1, 3 * i + 3)]
    assert (stats.rows, stats.bad, stats.blank_lines) == (5000,) * 3


def test_what_cannot_be_read_is_a_row(tmp_path):
    for path in (tmp_path / "none.jsonl", tmp_path):
        stats = ReadStats()
        [row] = read(path, stats)
        assert (row.line, row.code, stats.bad) == (1, "file_unreadable", 1)


def test_the_quarantine_can_be_mended_and_read_again(tmp_path):
    path = tmp_path / "a.jsonl"
    bad = [b'{"a": 1', b'{"a": "\xff\xe9"}', b'{"a": "\\ud800"}', '{"a": "é", "a": 1}'.encode()]
    path.write_bytes(b"\n".join([b'{"a": 0}', *bad]))
    printed = tmp_path / "b.json"
    printed.write_bytes(b'[{"a": 1},\n{\n  "a": 1,\n  "a": 2\n}]')
    with Quarantine(tmp_path / "q.jsonl") as quarantine:
        assert not quarantine.path.exists()
        for row in [*read(path), *read(printed), *read(tmp_path / "none")]:
            if isinstance(row, BadRow):
                quarantine.add(row)
    kept = quarantine.path.read_bytes().split(b"\n")
    assert kept[:4] == bad
    assert kept[4:] == [b'{   "a": 1,   "a": 2 }', b"", b""]
    reasons = [json.loads(line) for line in quarantine.reasons.read_text().splitlines()]
    assert quarantine.reasons.name == "q.reasons.jsonl"
    assert quarantine.rows == len(reasons) == 6
    assert reasons[0]["where"] == f"{path}:2"
    assert [reason["code"] for reason in reasons] == [
        "json_syntax", "encoding", "lone_surrogate", "duplicate_key", "duplicate_key",
        "file_unreadable",
    ]  # fmt: skip
    mended = quarantine.path.read_bytes().replace(b'{"a": 1\n', b'{"a": 1}\n')
    quarantine.path.write_bytes(mended)
    assert [row.line for row in read(quarantine.path) if isinstance(row, Record)] == [1]


@pytest.mark.parametrize(
    ("bad", "cells"),
    [('"x\ny",1', 2), ('"x\ny",1,2,3', 4), ('"x, y","1\n2",3,4', 4), ('1,"2\n3"', 2)],
)
def test_a_record_over_lines_with_other_cells_is_one_bad_row(tmp_path, bad, cells):
    path = tmp_path / "a.csv"
    path.write_text(f"a,b,c\n1,2,3\n{bad}\n4,5,6\n")
    one, two, three = read(path)
    assert (one.line, two.line, three.line) == (2, 3, 5)
    assert two.code == "columns"
    assert f"found {cells} cells, expected 3" in two.sentence
    assert three.fields == {"a": "4", "b": "5", "c": "6"}


def test_a_quote_without_an_end_costs_its_own_line(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,b,c\n"1,2,3\n4,5,6\n7,8",9\n"x\ny",8,9\n')
    rows = list(read(path))
    assert [row.line for row in rows] == [2, 3, 4, 5]
    assert rows[1].fields == {"a": "4", "b": "5", "c": "6"}
    assert rows[3].fields == {"a": "x\ny", "b": "8", "c": "9"}


def test_a_faulty_header_says_that_nothing_below_it_was_read(tmp_path):
    path = tmp_path / "a.csv"
    path.write_text('a,"b" c,d\n1,2,3\n')
    [row] = read(path)
    assert row.code == "file_unreadable"
    assert "the rows below it were not read" in row.sentence


def test_rows_of_a_table_are_quarantined_as_json(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b'a,b\n1,2,3\n1\nx\x07,y\n"1"2,3\n')
    assert [json.loads(row.raw) for row in read(path)] == [
        {"a": "1", "b": "2", "more cells": ["3"]}, {"a": "1"}, {"a": "x\x07", "b": "y"},
        {"line": '"1"2,3'},
    ]  # fmt: skip


@pytest.mark.parametrize("kind", sorted(SEEDS))
@given(seed=st.integers(0, 2**32))
@settings(max_examples=40)
def test_mutated_files_never_raise_and_add_up(tmp_path_factory, kind, seed):
    name, content = SEEDS[kind]
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(mutate(content, random.Random(seed)))
    check(path)


@given(content=st.binary(max_size=200), name=st.sampled_from(["a.jsonl", "a.json", "a.csv", "a"]))
@settings(max_examples=150)
def test_any_bytes_never_raise(tmp_path_factory, content, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_bytes(content)
    check(path)


@given(
    text=st.text('{}[]",:\\\n aé0', max_size=60),
    name=st.sampled_from(["a.jsonl", "a.json", "a.csv"]),
)
@settings(max_examples=300)
def test_any_marks_never_raise(tmp_path_factory, text, name):
    path = tmp_path_factory.getbasetemp() / name
    path.write_text(text, "utf-8")
    check(path)
