import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.read import read
from mlx_ft.data.rows import Record
from mlx_ft.data.write import write_rows
from mlx_ft.errors import DataError

NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet"]
PACKED = ["", ".gz", ".zst"]
TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\r\t"))
TURNS = [
    {"role": "user", "content": 'say "hi",\tnow;\r\n'},
    {"role": "assistant", "content": "é😀"},
]


def written(path, rows):
    assert write_rows(path, iter(rows)) == len(rows)
    found = list(read(path))
    assert all(isinstance(row, Record) for row in found), found
    return [row.fields for row in found]


@pytest.mark.parametrize("packing", PACKED)
@pytest.mark.parametrize("name", NAMES)
def test_what_is_written_is_read_again(tmp_path, name, packing):
    rows = [{"messages": TURNS, "id": str(i)} for i in range(2500)]
    assert written(tmp_path / (name + packing), rows) == rows
    assert [path.name for path in tmp_path.iterdir()] == [name + packing]


@pytest.mark.parametrize("name", NAMES)
@given(rows=st.lists(st.fixed_dictionaries({"prompt": TEXT, "answer": TEXT}), min_size=1))
@settings(max_examples=40)
def test_texts_survive_every_form(tmp_path_factory, name, rows):
    assert written(tmp_path_factory.getbasetemp() / name, rows) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_columns_of_later_rows_and_missing_values(tmp_path, name):
    rows = [{"a": 1}] * 1500 + [{"b": [1.5]}, {"a": 2, "b": None, "c": {"d": True}}]
    found = written(tmp_path / name, rows)
    kept = [{key: value for key, value in row.items() if value is not None} for row in rows]
    assert [{k: v for k, v in row.items() if v is not None} for row in found] == kept


def test_cells_of_csv(tmp_path):
    path = tmp_path / "a.csv"
    write_rows(path, [{"a": None, "b": True, "c": 1.5, "d": {"e": [1]}}, {"a": "x\r"}])
    assert path.read_bytes() == (
        b'a,b,c,d\r\n,true,1.5,"{""e"": [1]}"\r\n"x\r",,,\r\n'
    )  # fmt: skip


def test_no_rows(tmp_path):
    assert write_rows(tmp_path / "a.json", []) == 0
    assert json.loads((tmp_path / "a.json").read_text()) == []
    write_rows(tmp_path / "a.parquet", [])
    [row] = read(tmp_path / "a.parquet")
    assert row.code == "file_unreadable"


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet", "a.csv.gz"])
def test_a_failure_leaves_what_was_there(tmp_path, name):
    path = tmp_path / name
    path.write_bytes(b"before")

    def rows():
        yield {"a": 1}
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        write_rows(path, rows())
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_rows(path, [{"a": float("nan")}])
    with pytest.raises(DataError, match="cannot be written as JSON"):
        write_rows(path, [{"a": object()}])
    assert path.read_bytes() == b"before"
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_names_and_rows_that_a_form_does_not_take(tmp_path):
    with pytest.raises(DataError, match=r"expected a name with one of \.jsonl"):
        write_rows(tmp_path / "a.xlsx", [])
    with pytest.raises(DataError, match=r"columns of a table: .*; write JSON Lines"):
        write_rows(tmp_path / "a.parquet", [{"a": "x"}, {"a": [1]}])


@pytest.mark.parametrize("packing", PACKED)
def test_the_same_rows_give_the_same_bytes(tmp_path, packing):
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        write_rows(tmp_path / folder / f"a.csv{packing}", [{"a": 1}])
    one, two = (tmp_path / folder / f"a.csv{packing}" for folder in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()


def test_half_a_surrogate_pair_is_written_as_its_escape(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"a": "\ud800"}])
    assert (tmp_path / "a.jsonl").read_bytes() == b'{"a": "\\ud800"}\n'
