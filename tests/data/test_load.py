import hashlib
from pathlib import Path

import pytest

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import load
from mlx_ft.data.load import Findings, digest, read_jsonl, sources
from mlx_ft.errors import DataError

ROW = {"text": "a"}


def read(path: Path) -> tuple[list[tuple[int, dict]], Findings]:
    findings = Findings()
    return [(record.line, record.fields) for record in read_jsonl(path, findings)], findings


def test_rows_carry_their_file_and_line(write):
    path = write("a.jsonl", {"text": "é\u2028x"}, {"n": [1, None]})
    records = list(read_jsonl(path, Findings()))
    assert [record.fields for record in records] == [{"text": "é\u2028x"}, {"n": [1, None]}]
    assert [record.where for record in records] == [f"{path}:1", f"{path}:2"]


def test_windows_files_with_a_byte_order_mark_and_blank_lines(write):
    path = write("a.jsonl", b'\xef\xbb\xbf{"text": "a"}\r', b"", b" \r", b'{"text": "b"}\r')
    rows, findings = read(path)
    assert rows == [(1, {"text": "a"}), (4, {"text": "b"})]
    assert findings.notes == [f"{path}: 2 blank line(s) skipped."]
    assert findings.faults == []


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        (b'{"a": 1,}', r"not JSON: .* at column \d"),
        (b'{"a": "b', "not JSON: Unterminated string .* at column 7"),
        (b"[1, 2]", "expected a JSON object, found an array"),
        (b"3", "expected a JSON object, found a number"),
        (b'"x"', "expected a JSON object, found a string"),
        (b"false", "expected a JSON object, found true or false"),
        (b"null", "expected a JSON object, found null"),
        (b'{"a": NaN}', "NaN is not JSON; use a number or null"),
        (b'{"a": -Infinity}', "-Infinity is not JSON"),
        (b'{"a": 1, "b": {"c": 1, "c": 2}}', "the key 'c' appears twice"),
        (b'{"a": "\xff"}', r"byte 8 \(0xff\) is not UTF-8"),
        (b"[" * 100_000, "not usable JSON"),
        (b'{"a": ' + b"9" * 5000 + b"}", "not usable JSON: .*digit"),
    ],
)
def test_a_bad_line_is_a_fault_with_its_place_and_the_others_are_read(write, line, sentence):
    path = write("a.jsonl", ROW, line, ROW)
    rows, findings = read(path)
    assert [number for number, _ in rows] == [1, 3]
    [fault] = findings.faults
    assert fault.startswith(f"{path}:2: ")
    with pytest.raises(DataError, match=sentence):
        raise DataError(fault)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", "the file is empty"),
        (b"\n \n", "the file is empty"),
        (b'[\n {"text": "a"},\n {"text": "b"}\n]\n', "this is a JSON array"),
        ('{"text": "a"}\n'.encode("utf-16"), "this is UTF-16 text"),
        (b"\x1f\x8b\x08\x00", "this is a gzip archive"),
        (b"PAR1\x15\x04", "this is a Parquet file"),
    ],
)
def test_a_file_of_another_kind_is_one_fault(tmp_path, content, sentence):
    path = tmp_path / "a.jsonl"
    path.write_bytes(content)
    rows, findings = read(path)
    assert rows == []
    [fault] = findings.faults
    assert fault.startswith(f"{path}: {sentence}")


def test_a_file_that_cannot_be_read_is_a_fault(write):
    path = write("a.jsonl", ROW) / "below"
    rows, findings = read(path)
    assert rows == []
    assert findings.faults == [f"{path}: cannot be read: Not a directory"]


def test_digest_is_that_of_the_bytes(write):
    path = write("a.jsonl", ROW)
    assert digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_folder_gives_its_three_files_and_names_the_others(write, tmp_path):
    for name in ("train", "valid", "test", "val"):
        write(f"set/{name}.jsonl", ROW)
    folder = tmp_path / "set"
    found = sources(DataConfig(path=str(folder)))
    assert (found.train, found.valid, found.test) == tuple(
        folder / f"{name}.jsonl" for name in ("train", "valid", "test")
    )
    assert found.unused == (folder / "val.jsonl",)
    own = sources(DataConfig(path=str(folder), valid_path=str(folder / "val.jsonl")))
    assert own.valid == folder / "val.jsonl"
    assert own.test == folder / "test.jsonl"
    assert own.unused == ()


def test_a_file_stands_alone(write):
    write("set/valid.jsonl", ROW)
    path = write("set/rows.jsonl", ROW)
    found = sources(DataConfig(path=str(path)))
    assert (found.train, found.valid, found.test, found.unused) == (path, None, None, ())


def test_builtin_datasets_by_name(write, tmp_path, monkeypatch):
    train = write("animals/train.jsonl", ROW)
    monkeypatch.setattr(load, "BUILTIN_FOLDER", tmp_path)
    assert sources(DataConfig(path="builtin:animals")).train == train
    with pytest.raises(DataError, match="no built-in dataset 'builtin:x'; there are: builtin:anim"):
        sources(DataConfig(path="builtin:x"))


def test_missing_files_are_named_all_at_once_with_what_is_there(write, tmp_path):
    write("train.jsonl", ROW)
    config = DataConfig(
        path=str(tmp_path / "tran.jsonl"),
        valid_path=str(tmp_path / "zzz"),
        test_path=str(tmp_path / "nowhere" / "x.jsonl"),
    )
    with pytest.raises(DataError) as error:
        sources(config)
    first, second, third = error.value.faults
    assert first.startswith(f"data.path: no file '{tmp_path}/tran.jsonl' ({tmp_path}/tran.jsonl)")
    assert "Did you mean train.jsonl? Change data.path." in first
    assert "JSON Lines files in that folder: train.jsonl; change data.valid_path" in second
    assert f"The folder {tmp_path / 'nowhere'} does not exist; change data.test_path" in third


def test_a_relative_path_is_shown_as_given_and_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=rf"no file 'a\.jsonl' \({tmp_path}/a\.jsonl\)"):
        sources(DataConfig(path="a.jsonl"))


def test_folders_where_files_are_expected(write, tmp_path):
    write("set/rows.jsonl", ROW)
    folder = str(tmp_path / "set")
    with pytest.raises(DataError) as error:
        sources(DataConfig(path=folder, valid_path=folder))
    assert "has no train.jsonl; it holds: rows.jsonl" in error.value.faults[0]
    assert f"data.valid_path: '{folder}' is a folder" in error.value.faults[1]
