"""Datasets in a hostile world: damaged caches, full disks, files that end early or change."""

import copy
import gzip
import json
import shutil
import tempfile
from pathlib import Path

import pytest

from mlx_ft import data_report
from mlx_ft.config.schema import DataConfig
from mlx_ft.data import build, sources
from mlx_ft.data import prepare as preparing
from mlx_ft.data.prepare import QUARANTINE, prepare
from mlx_ft.data.tally import KEPT_KEYS, refused
from mlx_ft.errors import DataError
from mlx_ft.plots_data import data_figure


def pair(question, answer="Yes.", **more):
    return {"prompt": f"{question}?", "completion": answer, **more}


def rows(count, **more):
    return [pair(f"Question {i}", **more) for i in range(count)]


@pytest.fixture
def prepared(tokenizers, tmp_path):
    def call(path, accept_faults=False, **keys):
        given = path if isinstance(path, list) else str(path)
        own = copy.deepcopy(tokenizers["chatml"])  # the template is installed in it
        return prepare(
            DataConfig(path=given, **keys), own, 99, 1, tmp_path / "cache",
            accept_faults=accept_faults,
        )  # fmt: skip

    return call


def tokens(dataset):
    return [one.tokens.tolist() for one in dataset.train]


@pytest.mark.parametrize(
    "name", ["report.json", "examples.npy", "rows.npy", "rows.jsonl", "tokens.i32", "targets.u8"]
)
def test_a_cache_file_with_other_bytes_of_the_same_number_is_not_used(
    write, prepared, caplog, name
):
    path = write("a.jsonl", *rows(20))
    first = prepared(path)
    expected, file = tokens(first), first.encoded.folder / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 0x55
    file.write_bytes(content)
    again = prepared(path)
    assert f"is damaged ({name} has other content" in caplog.text
    assert tokens(again) == expected
    assert [row.messages[0].content for row in again.test]


def test_another_users_cache_entry_is_used(write, prepared, monkeypatch):
    path = write("a.jsonl", *rows(20))
    first = prepared(path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", refuse)
    monkeypatch.setattr(build.Job, "write", refuse)
    assert prepared(path).encoded.folder == first.encoded.folder


def test_rows_encoded_by_other_code_are_made_again(write, prepared, monkeypatch):
    path = write("a.jsonl", *rows(20))
    first = prepared(path).encoded.folder
    monkeypatch.setattr(preparing, "code", lambda: "another version")
    assert prepared(path).encoded.folder != first


def test_a_full_disk_everywhere_is_one_sentence(write, prepared, monkeypatch, tmp_path):
    path = write("a.jsonl", *rows(20))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(build.Job, "write", full)
    with pytest.raises(DataError, match=r"No space left on device.*Free some space"):
        prepared(path)
    assert not list(tmp_path.glob("mlx-ft-data-*"))


def test_a_file_that_changes_while_it_is_read_is_not_kept(write, prepared, monkeypatch):
    path = write("a.jsonl", *rows(20))
    real, calls = sources.digest, []

    def digest(paths):
        found = real(paths)
        if not calls:
            write("a.jsonl", *rows(25))
        calls.append(1)
        return found

    with monkeypatch.context() as patch:
        patch.setattr(sources, "digest", digest)
        with pytest.raises(DataError, match="changed while it was read"):
            prepared(path)
    write("a.jsonl", *rows(20))
    assert prepared(path).report["rows"]["rows"] == 20


def test_no_share_of_faulty_rows_allows_for_files_that_end_early(write, prepared):
    whole = gzip.compress("\n".join(map(json.dumps, rows(200))).encode())
    path = write("a.jsonl.gz")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="about rows, not files") as error:
        prepared(path, max_errors="50%")
    assert "cut off" in error.value.faults[0]
    good, empty = write("good.jsonl", *rows(20)), write("empty.jsonl")
    with pytest.raises(DataError, match="about rows, not files") as error:
        prepared(good, valid_path=str(empty), max_errors=5)
    assert "empty.jsonl:1: the file is empty" in error.value.faults[0]
    assert refused(prepared(path, accept_faults=True).report, "50%") is not None


def test_a_file_that_could_not_be_read_is_tried_again(write, prepared, monkeypatch):
    path, real = write("a.jsonl", *rows(20)), build.rows_of

    def broken(source, stats):
        found = real(source, stats)
        yield from (next(found) for _ in range(5))
        yield build.BadRow(source.path, 6, "file_unreadable", "the network is gone", "")

    with monkeypatch.context() as patch:
        patch.setattr(build, "rows_of", broken)
        with pytest.raises(DataError, match="not files"):
            prepared(path, max_errors=5)
    assert prepared(path).report["rows"]["rows"] == 20


def test_faulty_rows_are_told_before_a_split_that_they_make_impossible(write, prepared):
    path = write("a.jsonl", pair("a"), b"{")
    with pytest.raises(DataError, match="1 of 2 rows are faulty") as error:
        prepared(path)
    assert error.value.faults[0].startswith(f"{path}:2")
    report = prepared(path, accept_faults=True).report
    assert report["rows"]["rejected"] == 1
    assert "cannot be split" in refused(report, 1).message


def test_undesirable_training_rows_are_no_leak(write, prepared):
    path = write("a.jsonl", *rows(10), *[pair(f"Other {i}", label=False) for i in range(5)])
    valid = write("b.jsonl", *[pair(f"Other {i}") for i in range(5)])
    assert prepared(path, valid_path=str(valid)).report["overlap"]["valid"]["exact"] == 0


def test_validation_rows_that_the_metric_leaves_out_are_said(write, prepared, caplog):
    raw = [{"text": f"The number {i} in a sentence."} for i in range(40)]
    dataset = prepared(write("a.jsonl", *raw, *rows(40)), metric="exact_match")
    left_out = len(dataset.valid) - len(dataset.test)
    assert left_out
    assert f"{left_out} of {len(dataset.valid)} validation rows do not end" in caplog.text


def test_no_validation_rows_are_said(write, prepared):
    report = prepared(write("a.jsonl", *rows(20)), valid_fraction=0).report
    assert any("no validation rows" in line for line in report["recommendations"])


def test_a_thousand_classes_are_told_apart_and_the_sentence_is_short(write, prepared):
    own = [pair(f"Q {i}", label=f"class {i}") for i in range(1100)]
    report = prepared(write("a.jsonl", *own), valid_fraction=0).report
    labels = report["splits"]["train"]["labels"]
    assert sum(labels.values()) == 1100
    assert len(labels) <= 1001
    balance = [line for line in report["recommendations"] if "out of balance" in line]
    assert len(balance[0]) < 500


def test_keys_of_their_own_in_every_row_are_not_all_kept(write, prepared):
    own = [pair(f"Q {i}", **{f"key {i}": 1}) for i in range(3 * KEPT_KEYS)]
    report = prepared(write("a.jsonl", *own)).report
    assert len(report["files"][0]["unused_keys"]) <= 20


def test_a_forgotten_comma_is_said_once(write, prepared):
    path = write("a.json")
    path.write_text("[" + "\n".join(map(json.dumps, rows(30))) + "]")
    notes = [note for note in prepared(path).report["notes"] if "comma" in note]
    assert notes == [
        f"{path}:2: no comma before this row, and 28 more; read all the same.",
    ]


def test_keys_that_training_does_not_use_are_shown(write, prepared):
    report = prepared(write("a.jsonl", *rows(20, weigth=2))).report
    assert "    keys that training does not use: weigth (20)" in list(
        data_report.lines(report, None)
    )


def test_the_page_of_figures_takes_any_name(write, prepared, tmp_path):
    paths = [write(f"{name}/$\\x$.jsonl", *[pair(f"{name} {i}") for i in range(count)])
             for name, count in (("a", 10), ("数", 20))]  # fmt: skip
    last = write("数据.jsonl", *[pair(f"c {i}") for i in range(10)])
    given = [{"path": str(path), "weight": 1.0} for path in (*paths, last)]
    dataset = prepared(given)
    bars = data_figure(dataset.report).axes[2].patches
    assert len({bar.get_y() for bar in bars}) == 3
    assert sorted(bar.get_width() for bar in bars) == [10, 10, 20]
    data_report.write(tmp_path / "out", dataset, None)


def test_a_name_that_is_no_text_is_refused(write, tmp_path):
    path = write("a.jsonl", *rows(3))
    named = tmp_path / "r\udcff.jsonl"
    try:
        shutil.copyfile(path, named)
    except (OSError, UnicodeError):
        pytest.skip("the file system takes no such name")
    with pytest.raises(DataError, match=r"cannot be found") as error:
        sources.find(DataConfig(path=str(named)))
    assert "not UTF-8; rename it" in str(error.value).encode().decode()


def test_what_is_rejected_can_be_mended_and_fed_back(write, prepared, tmp_path):
    path = write("a.jsonl", *rows(20), b'{"prompt": "Bad?", "completion": ')
    bad = prepared(path, max_errors=1)
    mended = tmp_path / "mended.jsonl"
    mended.write_bytes(bad.quarantine.read_bytes().rstrip() + b'"Good."}\n')
    assert bad.quarantine.name == QUARANTINE
    both = [{"path": str(one), "weight": 1.0} for one in (path, mended)]
    assert prepared(both, max_errors=1).report["rows"]["kept"] == 21
