"""The report on a dataset as text, and what training on it will be."""

import json
import os

import numpy as np
import pytest

from mlx_ft.config.schema import Config, DataConfig
from mlx_ft.data.batch import Batches
from mlx_ft.data.prepare import prepare
from mlx_ft.data_report import Outlook, lines, measured_speed, outlook, write
from tests.data.conftest import chatml

pytestmark = pytest.mark.figures


def pair(question, answer="Yes."):
    return {"prompt": f"{question}?", "completion": answer}


@pytest.fixture(scope="module")
def tokenizer():
    return chatml()


@pytest.fixture
def prepared(tmp_path, tokenizer):
    def call(*rows, accept_faults=True, **keys):
        path = tmp_path / "rows.jsonl"
        path.write_text("".join(f"{row if isinstance(row, str) else json.dumps(row)}\n"
                                for row in rows))  # fmt: skip
        config = DataConfig(**{"path": str(path), "cache": False, "valid_fraction": 0, **keys})
        return prepare(config, tokenizer, 200, 0, tmp_path, accept_faults=accept_faults)

    return call


def cells(report, title):
    """A line of the table."""
    [line] = [line for line in lines(report, None) if line.startswith(title)]
    return line.removeprefix(title).split()


def test_the_first_line_accounts_for_every_row(prepared):
    report = prepared(*map(pair, "abc"), pair("long", "x" * 900), "{", pair("e", "")).report
    first, file, *_ = lines(report, None)
    assert first == "6 rows = 3 kept + 1 truncated + 2 rejected"
    assert file.endswith("rows.jsonl (training): prompt_completion 4")


def test_the_table_has_a_column_for_each_split_with_rows(prepared, tmp_path):
    (tmp_path / "held.jsonl").write_text(json.dumps(pair("held")) + "\n")
    report = prepared(*map(pair, "abc"), valid_path=str(tmp_path / "held.jsonl")).report
    assert cells(report, " " * 26) == ["training", "validation"]
    assert cells(report, "rows ") == ["3", "1"]
    assert cells(report, "turns ") == ["6", "2"]
    tokens = [f"{report['splits'][name]['tokens']:,}" for name in ("train", "valid")]
    assert cells(report, "tokens   ") == tokens


def test_faults_come_by_code_with_places_and_what_to_do(prepared, tmp_path):
    report = prepared(pair("a"), *["{"] * 5, pair("b") | {"label": [1]}).report
    text = list(lines(report, None))
    start = text.index("Faults")
    path = tmp_path / "rows.jsonl"
    assert text[start + 1] == "  json_syntax (5): mend the JSON"
    assert [line.partition(": ")[0].strip() for line in text[start + 2 : start + 5]] == [
        f"{path}:{line}" for line in (2, 3, 4)
    ]
    assert text[start + 5].strip() == "... and 2 more"
    assert text[start + 6].startswith("  label (1): ")
    assert f"{path}:7: label is an array" in text[start + 7]


def test_a_report_without_a_usable_row_is_text_too(prepared):
    text = "\n".join(lines(prepared("{}", "[]").report, None))
    assert text.startswith("2 rows = 0 kept + 0 truncated + 2 rejected")
    assert "no usable row" in text


def test_repeats_are_named_with_the_row_that_they_repeat(prepared, tmp_path):
    report = prepared(pair("a"), pair("b"), pair("a"), pair("c"), pair("A")).report
    path = tmp_path / "rows.jsonl"
    expected = [[f"{path}:{line}", f"{path}:1"] for line in (3, 5)]
    assert report["splits"]["train"]["first_repeats"] == expected
    assert cells(report, "exact repeats") == ["2"]


def test_notes_recommendations_and_the_outlook_are_written(prepared):
    report = prepared(pair("a"), "", pair("b")).report
    text = "\n".join(lines(report, Outlook(10, 2.5, 0.125, 4321)))
    assert "\nNotes\n  - " in text
    assert "1 blank line(s) skipped." in text
    assert "\nRecommendations\n  - 2 training rows are few" in text
    assert (
        "Training: 10 steps, 2.50 epochs, 4,321 tokens; 12.5% of a padded batch is padding, 0.0%"
        in text
    )
    assert "after a first run with this model" in text
    timed = "\n".join(lines(report, Outlook(10, 2.5, 0.125, 4321, 3725.4, "outputs/runs/x")))
    assert "about 1:02:05 at the speed of outputs/runs/x." in timed


def test_the_outlook_counts_tokens_by_weight_and_time_by_speed(prepared):
    dataset = prepared(*(pair("q" * i) for i in range(1, 9)))
    batches = Batches(dataset.train, 4, 0, pad_id=0, weights=dataset.weights)
    ahead = outlook(dataset, batches, 6, 3.0, (50.0, "run"), Config())
    total = sum(len(one.tokens) for one in dataset.train)
    assert ahead.tokens == 3 * total
    assert ahead.seconds == pytest.approx(3 * total / 50)
    assert (ahead.steps, ahead.epochs, ahead.measured_in) == (6, 3.0, "run")
    assert "6 steps are few" in "\n".join(lines(dataset.report, ahead))
    assert 0 <= ahead.padding < 1
    assert outlook(dataset, batches, 6, 3.0, None, Config()).seconds is None
    dataset.weights[:] = 2
    assert outlook(dataset, batches, 6, 3.0, None, Config()).tokens == 6 * total


def summary(folder, name, age=0, **changes):
    path = folder / "runs" / name / "summary.json"
    path.parent.mkdir(parents=True)
    content = {"model": "m", "device": "cpu", "status": "FINISHED", "tokens_per_second": 100.0}
    path.write_text(json.dumps(content | changes))
    os.utime(path, (1e9 - age, 1e9 - age))


def test_the_speed_is_that_of_the_newest_run_alike(tmp_path):
    assert measured_speed(tmp_path, "m", "cpu") is None
    summary(tmp_path, "old", age=9, tokens_per_second=7.0)
    summary(tmp_path, "new", age=5, tokens_per_second=8.0)
    others = ({"model": "n"}, {"device": "gpu"}, {"status": "FAILED"}, {"tokens_per_second": 0.0})
    for i, other in enumerate(others):
        summary(tmp_path, f"other{i}", age=i, **other)
    assert measured_speed(tmp_path, "m", "cpu") == (8.0, str(tmp_path / "runs" / "new"))
    assert measured_speed(tmp_path, "m", "tpu") is None


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"{}", b'{"model": "m"}', b"null"])
def test_a_damaged_summary_is_passed_over(tmp_path, content):
    summary(tmp_path, "good", age=5)
    summary(tmp_path, "bad")
    (tmp_path / "runs" / "bad" / "summary.json").write_bytes(content)
    assert measured_speed(tmp_path, "m", "cpu") == (100.0, str(tmp_path / "runs" / "good"))


def test_files_of_an_earlier_report_do_not_stay(prepared, tmp_path):
    folder = tmp_path / "report"
    names = {path.name for path in write(folder, prepared(pair("a"), "{"), None)}
    expected = {"report.json", "report.png", "quarantine.jsonl", "quarantine.reasons.jsonl"}
    assert names == expected == {path.name for path in folder.iterdir()}
    assert (folder / "quarantine.jsonl").read_text() == "{\n"
    write(folder, prepared(pair("a"), pair("b")), None)
    assert {path.name for path in folder.iterdir()} == {"report.json", "report.png"}


def test_the_kept_report_is_json_with_the_outlook(prepared, tmp_path):
    dataset = prepared(pair("a"), pair("é"))
    path = write(tmp_path / "new" / "folder", dataset, Outlook(1, 1.0, 0.0, 5))[0]
    content = json.loads(path.read_text("utf-8"))
    assert content["outlook"]["tokens"] == 5
    assert content["rows"]["rows"] == 2
    assert content["digest"] == dataset.digest
    lengths = np.array(content["splits"]["train"]["length"]["histogram"]["counts"])
    assert lengths.sum() == 2


def test_a_mixture_says_how_many_rows_of_each_source_an_epoch_shows(tmp_path, tokenizer):
    def mixed(*weights):
        entries = []
        for name, weight, count in zip("abc", weights, (30, 9, 7), strict=False):
            path = tmp_path / f"{name}.jsonl"
            path.write_text("".join(json.dumps(pair(f"{name}{i}")) + "\n" for i in range(count)))
            entries.append({"path": str(path), "weight": weight})
        config = DataConfig(path=entries, cache=False, valid_fraction=0)
        dataset = prepare(config, tokenizer, 200, 0, tmp_path)
        shown = [one["shown"] for one in dataset.report["epoch"]]
        batches = Batches(dataset.train, 4, 0, pad_id=0, weights=dataset.weights)
        counts = np.zeros(len(weights), int)
        for index in range(len(batches)):
            rows = batches.at(0, index).rows
            counts += np.bincount(dataset.train.sources[rows], minlength=len(weights))
        line = [line for line in lines(dataset.report, None) if line.startswith("  an epoch: ")]
        return shown, counts.tolist(), line

    shown, counts, [line] = mixed(1, 0.5, 2)
    assert shown == counts == [30, 4, 14]
    sources = "30 of a.jsonl (weight 1), 4 of b.jsonl (weight 0.5), 14 of c.jsonl (weight 2)"
    assert line == f"  an epoch: {sources}"
    shown, counts, [line] = mixed(0.5, 0.5)
    assert sum(shown) == pytest.approx(sum(counts), abs=1)
    assert line.startswith("  an epoch: about 15 of a.jsonl (weight 0.5), about 4 of b.jsonl")
    assert mixed(1)[2] == []


def test_rows_that_training_has_too_are_a_line_of_the_table(prepared, tmp_path):
    (tmp_path / "held.jsonl").write_text(
        json.dumps(pair("a")) + "\n" + json.dumps(pair("x")) + "\n"
    )
    report = prepared(*map(pair, "abc"), valid_path=str(tmp_path / "held.jsonl")).report
    assert cells(report, "also in training") == ["-", "1"]
    assert cells(report, "  nearly") == ["-", "0"]
    text = "\n".join(lines(prepared(*map(pair, "abc")).report, None))
    assert "also in training" not in text
