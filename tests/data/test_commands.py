"""`mlx-ft validate` and `mlx-ft data convert` where what they write would do harm."""

import json

import pytest

from mlx_ft import cli


@pytest.fixture(autouse=True)
def _there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [json.dumps({"prompt": f"Q {i}?", "completion": "A"}) for i in range(3)]
    (tmp_path / "rows.jsonl").write_text("\n".join([*rows, "{"]))


def test_a_file_is_not_converted_into_itself(tmp_path, capsys):
    before = (tmp_path / "rows.jsonl").read_text()
    argv = ["data", "convert", "rows.jsonl", "./rows.jsonl", "--to", "alpaca", "--overwrite"]
    assert cli.main(argv) == 2
    assert "give another name" in capsys.readouterr().err
    assert (tmp_path / "rows.jsonl").read_text() == before


def test_a_target_that_cannot_be_written_is_a_sentence(capsys):
    argv = ["data", "convert", "rows.jsonl", "rows.jsonl/new.jsonl", "--to", "alpaca"]
    assert cli.main(argv) == 2
    said = capsys.readouterr().err
    assert "rows.jsonl is not a folder" in said
    assert "Traceback" not in said


def test_a_report_does_not_take_the_place_of_mended_rows(tmp_path, capsys):
    (tmp_path / "out").mkdir()
    mended = tmp_path / "out" / "quarantine.jsonl"
    mended.write_text('{"prompt": "Mended?", "completion": "Yes."}\n')
    argv = ["validate", "data=custom", "data.path=[rows.jsonl,out/quarantine.jsonl]"]
    assert cli.main([*argv, "--out", "out"]) == 2
    assert "Choose another folder" in capsys.readouterr().err
    assert "Mended?" in mended.read_text()


def test_a_folder_for_the_report_that_is_a_file_is_told_at_once(capsys):
    assert cli.main(["validate", "data=custom", "data.path=rows.jsonl", "--out", "rows.jsonl"]) == 2
    said = capsys.readouterr().err
    assert "--out: cannot write to rows.jsonl" in said
    assert "Traceback" not in said


def test_rows_that_cannot_be_converted_leave_the_target_as_it_is(tmp_path, capsys):
    (tmp_path / "raw.jsonl").write_text('{"text": "Raw."}\n')
    (tmp_path / "good.jsonl").write_text("what is there")
    argv = ["data", "convert", "raw.jsonl", "good.jsonl", "--to", "alpaca", "--overwrite"]
    assert cli.main(argv) == 1
    assert "No row of raw.jsonl can be converted" in capsys.readouterr().err
    assert (tmp_path / "good.jsonl").read_text() == "what is there"
