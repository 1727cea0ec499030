"""`mlx-ft evaluate`: metrics with intervals, two models side by side, other rows, MLflow."""

import csv
import io
import json
import shutil
from pathlib import Path

import pytest
from scipy import stats

import mlx_ft
from mlx_ft import assessment, cli, intervals
from mlx_ft.errors import ConfigError, DataError, UserError
from mlx_ft.verdicts import Unjudged
from tests.jobs import summary
from tests.models import tiny

ONE, TWO = "outputs/runs/one", "outputs/runs/two"
ROWS = [
    {"prompt": "say 1", "completion": "abcabc", "n": 1},
    {"prompt": "say 2", "completion": "The abc!", "n": 2},
    {"prompt": "say 3", "completion": "zz", "n": 3},
]
METRICS = """
def length(prediction, reference, fields):
    return len(prediction) * fields["n"]

def begins(prediction, reference, fields):
    return prediction[:1] == reference[:1]

def fails(prediction, reference, fields):
    return fields["nope"]

def fussy(prediction, reference, fields):
    return 1 if prediction == reference else 10**400

def loss(prediction, reference, fields):
    return True
"""


@pytest.fixture
def here(using):
    """With other rows, and a file of metrics."""
    (using / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    (using / "mine.py").write_text(METRICS)
    return using


def evaluate(capsys, *arguments):
    """What it prints as JSON, and on stderr."""
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def test_a_runs_own_figures_with_an_interval(here, capsys):
    found, _ = evaluate(capsys, "--run", ONE)
    told = summary(here / ONE)
    assert found["loss"] == pytest.approx(told["val_loss_after"], rel=1e-6)
    assert found["accuracy"] == told["accuracy_after"]
    assert found["rows"].endswith("rows.jsonl")
    score = found["scores"]["exact_match"]
    right = sum(answer["correct"] for answer in found["answers"])
    assert sum(score["values"]) == right
    expected = stats.binomtest(right, len(found["answers"])).proportion_ci(method="wilson")
    assert score["interval"] == pytest.approx([expected.low, expected.high])
    assert cli.main(["evaluate", "--run", ONE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["validation", "loss", f"{told['val_loss_after']:.4f}"]
    assert f"{right} of {len(found['answers'])}" in lines[-1]


def test_base_against_tuned(here, capsys):
    both, _ = evaluate(capsys, "--run", ONE, "--against", "base", "--data", "rows.jsonl")
    base, _ = evaluate(capsys, "--run", ONE, "--base", "--data", "rows.jsonl")
    tuned, _ = evaluate(capsys, "--run", ONE, "--data", "rows.jsonl")
    assert both["names"] == ["base", "one"]
    for key, alone in (("first", base), ("second", tuned)):
        assert both[key]["loss"] == pytest.approx(alone["loss"], rel=1e-6)
        assert both[key]["answers"] == alone["answers"]
    assert tuned["accuracy"] > base["accuracy"]  # or this tests nothing
    one, other = (each["scores"]["exact_match"]["values"] for each in (base, tuned))
    gains = sum(a < b for a, b in zip(one, other, strict=True))
    losses = sum(a > b for a, b in zip(one, other, strict=True))
    gap = both["gaps"]["exact_match"]
    assert (gap["only_first"], gap["only_second"]) == (losses, gains)
    assert gap["p"] == pytest.approx(stats.binomtest(losses, gains + losses).pvalue)
    assert gap["mean"] == pytest.approx(tuned["accuracy"] - base["accuracy"])
    assert gap["interval"][0] <= gap["mean"] <= gap["interval"][1]


def test_the_table_shows_where_they_differ(here, capsys):
    capsys.readouterr()
    arguments = ["evaluate", "--run", ONE, "--against", "base", "--data", "rows.jsonl"]
    assert cli.main([*arguments, "--show", "2"]) == 0
    out = capsys.readouterr().out
    head = out.splitlines()[0].split()
    assert head == ["base", "one", "difference"]
    assert "McNemar, exact" in out
    differing = int(out.split("exact_match differs for ")[1].split()[0])
    assert differing > 2
    assert out.count("say ") == 2
    assert cli.main([*arguments, "--show", "0"]) == 0
    assert "say " not in capsys.readouterr().out


def test_another_run_on_the_same_rows(here, capsys):
    both, _ = evaluate(capsys, "--run", ONE, "--against", TWO)
    assert both["names"] == ["two", "one"]
    assert both["first"]["loss"] == pytest.approx(summary(here / TWO)["val_loss_after"], rel=1e-6)
    assert both["second"]["loss"] == pytest.approx(summary(here / ONE)["val_loss_after"], rel=1e-6)
    itself, _ = evaluate(capsys, "--run", ONE, "--against", ONE)
    assert itself["names"] == ["one (1)", "one (2)"]
    assert itself["gaps"]["exact_match"]["mean"] == 0
    assert itself["gaps"]["exact_match"]["p"] == 1


def test_a_comparison_leaves_a_loaded_model_as_it_was(here):
    tuned = mlx_ft.load(ONE)
    before = mlx_ft.evaluate(tuned, metrics=[])
    both = mlx_ft.compare(tuned, metrics=[])
    assert both.second.loss == before.loss
    assert both.first.loss != before.loss
    assert mlx_ft.evaluate(tuned, metrics=[]).loss == before.loss


def test_other_rows_by_several_metrics(here, capsys):
    names = ["exact_match", "normalised_match", "contains", "json_valid"]
    chosen = [word for name in names for word in ("--metric", name)]
    found, _ = evaluate(capsys, "--run", ONE, "--data", "other.jsonl", *chosen)
    assert list(found["scores"]) == names
    assert [answer["reference"] for answer in found["answers"]] == ["abcabc", "The abc!", "zz"]
    assert found["accuracy"] == found["scores"]["exact_match"]["mean"]
    # The longest expected answer has 8 tokens: room for 8 + 8 // 4 + 1.
    assert max(len(answer["prediction"]) for answer in found["answers"]) <= 11
    short, _ = evaluate(capsys, "--run", ONE, "--data", "other.jsonl", "--max-tokens", "2", *chosen)
    assert max(len(answer["prediction"]) for answer in short["answers"]) <= 2
    one, _ = evaluate(capsys, "--run", ONE, "--data", "other.jsonl", "--rows", "1", *chosen)
    assert len(one["answers"]) == 1


def test_a_metric_of_ones_own(here, capsys):
    own = ["--metric-from", "mine.py:length", "--metric-from", "mine.py:begins"]
    found, err = evaluate(capsys, "--run", ONE, "--data", "other.jsonl", *own)
    assert f"runs the code in {here}/mine.py" in err
    lengths = [len(a["prediction"]) * n for a, n in zip(found["answers"], (1, 2, 3), strict=True)]
    score = found["scores"]["length"]
    assert score["values"] == lengths
    assert score["mean"] == pytest.approx(sum(lengths) / 3)
    assert score["interval"] == pytest.approx(intervals.bootstrap(lengths))
    both, _ = evaluate(capsys, "--run", ONE, "--against", "base", "--data", "other.jsonl", *own)
    assert both["gaps"]["length"]["p"] is None
    assert both["gaps"]["begins"]["p"] is not None
    assert cli.main(["evaluate", "--run", ONE, "--data", "other.jsonl", *own]) == 0
    assert f"{score['mean']:.4f}" in capsys.readouterr().out


def test_a_function_is_a_metric_in_python(here):
    def begins(prediction, reference, fields):
        return prediction[:1] == reference[:1]

    found = mlx_ft.evaluate(ONE, data="other.jsonl", metrics=[begins, "contains"])
    assert list(found.scores) == ["begins", "contains"]
    assert found.answers[0].correct == (found.scores["begins"].values[0] == 1)


def test_answers_as_csv(here, capsys, tmp_path):
    file = tmp_path / "answers.csv"
    found, _ = evaluate(
        capsys, "--run", ONE, "--against", "base", "--data", "other.jsonl",
        "--metric", "contains", "--csv", str(file),
    )  # fmt: skip
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["answer: one"] for row in rows] == [
        answer["prediction"] for answer in found["second"]["answers"]
    ]
    assert [float(row["contains: base"]) for row in rows] == (
        found["first"]["scores"]["contains"]["values"]
    )
    assert rows[1]["question"] == "say 2"


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["--base", "--against", "base"], ["--base judges the base alone"]),
        (["--metric", "nope"], ["--metric: found 'nope'", "json_valid"]),
        (["--metric", "none"], ["--metric: found 'none'"]),
        (["--csv", "x.txt", "--rows", "0"], ["--csv: found", "--rows: found 0"]),
        (["--shots", "1"], ["--tasks only"]),
        (["--tasks", "x", "--log", "--data", "y"], ["--log is of no use", "--data is of no use"]),
        (["--metric", "sql_execution"], ["needs a database"]),
        (["--metric", "contains", "--metric", "contains"], ["named twice"]),
        (["--data", "nowhere.jsonl"], ["--data: no file or folder", "nowhere.jsonl"]),
        (["--data", "faulty.jsonl"], ["1 of 2 rows are faulty", "faulty.jsonl:2"]),
        (["--metric", "contains_answer"], ["contains_answer cannot judge", "has no `answer`"]),
        (["--metric-from", "mine.py:fails"], ["fails raised KeyError", "mine.py:9"]),
        (["--metric-from", "mine.py:nope"], ["has no function nope"]),
        (["--metric-from", "mine.py:loss"], ["cannot be called loss"]),
        (["--against", "nowhere"], ["'nowhere'"]),
    ],
)
def test_mistakes(argv, expected, here, capsys):
    (here / "faulty.jsonl").write_text('{"prompt": "a", "completion": "b"}\n{"prompt": 3}\n')
    arguments = [*argv] if "--run" in argv else ["--run", ONE, *argv]
    assert cli.main(["evaluate", *arguments]) == 2
    err = capsys.readouterr().err
    assert [words for words in expected if words not in err] == []
    assert "Traceback" not in err


def test_rows_without_answers_are_counted(here, capsys):
    rows = [*ROWS, {"text": "abc abc"}]
    (here / "mixed.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, err = evaluate(capsys, "--run", ONE, "--data", "mixed.jsonl")
    assert len(found["answers"]) == 3
    assert "which no metric judges: 1" in err


def test_a_folder_is_judged_by_its_test_rows(here, capsys):
    folder = here / "split"
    folder.mkdir(exist_ok=True)
    for name, rows in (("train", ROWS), ("valid", ROWS[:2]), ("test", ROWS[:1])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found, err = evaluate(capsys, "--run", ONE, "--data", "split")
    assert len(found["answers"]) == 1
    assert "judged on its test rows" in err


def test_python_faults_are_errors(here):
    with pytest.raises(ConfigError, match="Nothing can be judged") as caught:
        mlx_ft.evaluate(ONE, metrics=["nope"], limit=0, max_tokens=0)
    assert len(caught.value.faults) == 3

    def answer(*_):
        return True

    with pytest.raises(ConfigError, match="cannot be called answer"):
        mlx_ft.evaluate(ONE, metrics=[answer])
    with pytest.raises(UserError, match="gave None"):
        mlx_ft.evaluate(ONE, metrics=[lambda *_: None])
    first = mlx_ft.evaluate(ONE, data="other.jsonl")
    second = mlx_ft.evaluate(ONE, data="rows.jsonl")
    with pytest.raises(DataError, match="same rows"):
        mlx_ft.Comparison.of(("a", "b"), first, second)


@pytest.fixture
def another(using, tmp_path):
    """An adapter away from its run, which does not say which base it is for."""
    folder = shutil.copytree(using / TWO / "adapter", tmp_path / "another")
    settings = json.loads((folder / "adapter_config.json").read_text())
    del settings["mlx_ft"]
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def test_the_base_that_was_named_is_that_of_both(here, another, capsys):
    asked = ["--run", ONE, "--against", str(another), "--data", "other.jsonl", "--rows", "1"]
    assert cli.main(["evaluate", *asked]) == 2
    assert "does not say which base model" in capsys.readouterr().err
    both, err = evaluate(capsys, *asked, "--model", "./model")
    assert both["names"] == ["another", "one"]
    assert "two base models" not in err
    found = mlx_ft.compare(ONE, another, model="./model", data="other.jsonl", limit=1)
    assert found.first.loss == both["first"]["loss"]


def test_two_bases_are_said(here, another, capsys, tmp_path):
    tiny.save(tmp_path / "model", seed=5)
    settings = json.loads((another / "adapter_config.json").read_text())
    settings["mlx_ft"] = {"base_model": str(tmp_path / "model")}
    (another / "adapter_config.json").write_text(json.dumps(settings))
    _, err = evaluate(
        capsys, "--run", ONE, "--against", str(another), "--data", "other.jsonl", "--rows", "1"
    )
    said = " ".join(err.split())
    assert f"two base models: another is on {tmp_path}/model, one on " in said


def test_losses_of_different_tokens_are_not_compared(here, another, capsys):
    asked = ["--run", ONE, "--against", str(another), "--model", "./model", "--data", "other.jsonl"]

    def lines():
        assert cli.main(["evaluate", *asked]) == 0
        out = capsys.readouterr().out.splitlines()
        return [line.split() for line in out if line.startswith(("validation", "perplexity"))], out

    (loss, perplexity), _ = lines()
    assert float(loss[-1]) == pytest.approx(float(loss[-2]) - float(loss[-3]), abs=2e-4)
    assert perplexity[-1] != "-"
    own = "{% for m in messages %}{{ m.content }}!{{ eos_token }}{% endfor %}"
    (another / "chat_template.jinja").write_text(own)
    (loss, perplexity), out = lines()
    assert loss[-1] == perplexity[-1] == "-"
    assert any("different tokens" in line for line in out)
    both, _ = evaluate(capsys, *asked)
    assert not both["same_targets"]
    assert both["first"]["target_tokens"] != both["second"]["target_tokens"]
    assert both["first"]["targets"] != both["second"]["targets"]


def kept(capsys, *arguments):
    """The rows of the file that the error names, after answers that `fussy` does not take."""
    own = ["--data", "other.jsonl", "--metric-from", "mine.py:fussy", "--max-tokens", "2"]
    assert cli.main(["evaluate", "--run", ONE, *own, *arguments]) == 1
    err = capsys.readouterr().err
    assert "fussy gave 1000" in err
    assert "Traceback" not in err
    file = Path(err.rpartition(" has the 3 rows with their answers")[0].splitlines()[-1])
    return file, list(csv.DictReader(io.StringIO(file.read_text())))


def test_answers_that_a_metric_fails_on_are_kept(here, capsys, tmp_path, monkeypatch):
    found, _ = evaluate(capsys, "--run", ONE, "--data", "other.jsonl", "--max-tokens", "2")
    answers = [answer["prediction"] for answer in found["answers"]]
    file, rows = kept(capsys, "--csv", str(tmp_path / "mine.csv"))
    assert file == tmp_path / "mine.csv"
    assert [row["answer"] for row in rows] == answers
    assert [row["expected"] for row in rows] == [row["completion"] for row in ROWS]
    file, rows = kept(capsys)
    assert file.parent == here
    assert [row["answer"] for row in rows] == answers
    file.unlink()


def test_both_models_answers_are_kept(here, capsys, tmp_path, monkeypatch):
    def fussy(prediction, reference, fields):
        if prediction != reference and base:
            raise KeyError("nope")
        return prediction == reference

    base = []
    attempt = assessment.Task.judge

    def judge(*arguments):
        found = attempt(*arguments)
        base.append(True)
        return found

    monkeypatch.setattr(assessment.Task, "judge", judge)
    with pytest.raises(Unjudged, match="fussy raised KeyError") as caught:
        mlx_ft.compare(ONE, data="other.jsonl", metrics=[fussy, "contains"], max_tokens=2)
    rows = caught.value.rows
    found = mlx_ft.evaluate(ONE, data="other.jsonl", metrics=["contains"], max_tokens=2)
    assert [row["answer: one"] for row in rows] == [each.prediction for each in found.answers]
    assert all(isinstance(row["answer: base"], str) for row in rows)
    assert [row["contains: one"] for row in rows] == found.scores["contains"].values
    assert "fussy: base" not in rows[0]
