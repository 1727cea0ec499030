"""`mlx-ft evaluate --log`: figures go to the run itself, and nothing else of it changes."""

import fcntl
import json
import shutil
import sqlite3
from contextlib import closing

import pytest

from mlx_ft import cli
from mlx_ft.errors import MlxFtError
from mlx_ft.saved import find_run
from mlx_ft.tracking import later
from tests import trained
from tests.jobs import summary

pytestmark = pytest.mark.slow  # MLflow's database is made
ONE, TRACKED = "outputs/runs/one", "outputs/runs/tracked"
ROWS = [{"prompt": "say 1", "completion": "abc"}, {"prompt": "say 2", "completion": "The abc!"}]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("logged")
    trained.runs(folder, {"one": [], "tracked": ["tracking=mlflow", "train.max_steps=1"]})
    (folder / "other.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return folder


@pytest.fixture
def here(place, monkeypatch):
    trained.enter(place, monkeypatch)
    return place


def evaluate(capsys, *arguments):
    capsys.readouterr()
    assert cli.main(["evaluate", *arguments, "--json"]) == 0
    out, err = capsys.readouterr()
    return json.loads(out), err


def points(here, run_id):
    query = "select key, value, step from metrics where run_uuid = ?"
    with closing(sqlite3.connect(here / "mlruns/mlflow.db")) as connection:
        return {key: (value, step) for key, value, step in connection.execute(query, [run_id])}


def runs(here):
    query = "select run_uuid, name, status, end_time from runs order by start_time"
    with closing(sqlite3.connect(here / "mlruns/mlflow.db")) as connection:
        return connection.execute(query).fetchall()


def test_figures_go_to_the_run_itself(here, capsys):
    run_id = summary(here / TRACKED)["run_id"]
    before = runs(here)
    arguments = ["--run", TRACKED, "--log"]
    found, err = evaluate(capsys, *arguments, "--against", "base")
    assert f"logged to the run {run_id}" in err
    told = points(here, run_id)
    assert told["evaluation/loss"] == (pytest.approx(found["second"]["loss"]), 1)
    assert told["evaluation_base/loss"][0] == pytest.approx(found["first"]["loss"])
    assert told["evaluation/exact_match"][0] == found["second"]["accuracy"]
    assert told["evaluation/exact_match_p"][0] == found["gaps"]["exact_match"]["p"]
    assert {"evaluation/exact_match_low", "evaluation_base/exact_match_high"} <= told.keys()
    assert runs(here) == before  # no other run, the same status, the same end
    other, _ = evaluate(capsys, *arguments, "--data", "other.jsonl", "--metric", "contains")
    told = points(here, run_id)
    assert told["evaluation/other.jsonl/loss"][0] == pytest.approx(other["loss"])
    assert told["evaluation/loss"][0] == pytest.approx(found["second"]["loss"])
    tables = [path.name for path in (here / "mlruns").rglob("evaluation_*.json")]
    assert tables
    assert runs(here) == before


def test_a_run_that_was_not_tracked_gets_one(here, capsys):
    before = runs(here)
    found, err = evaluate(capsys, "--run", ONE, "--log")
    new = [run for run in runs(here) if run not in before]
    assert [(name, status) for _, name, status, _ in new] == [("evaluate one", "FINISHED")]
    assert f"a new run, {new[0][0]}, as one was not tracked" in err
    assert points(here, new[0][0])["evaluation/loss"][0] == pytest.approx(found["loss"])


def test_an_adapter_away_from_its_run_is_logged_there(here, capsys, tmp_path):
    run_id = summary(here / TRACKED)["run_id"]
    copy = shutil.copytree(here / TRACKED / "adapter", tmp_path / "copy")
    before = runs(here)
    _, err = evaluate(capsys, "--run", str(copy), "--data", "rows.jsonl", "--log")
    assert f"logged to the run {run_id}" in err
    assert "evaluation/rows.jsonl/loss" in points(here, run_id)
    assert runs(here) == before


def test_a_run_that_mlflow_has_not_is_told(here, tmp_path, capsys):
    copy = shutil.copytree(here / TRACKED / "adapter", tmp_path / "copy")
    file = copy / "adapter_config.json"
    content = json.loads(file.read_text())
    content["mlx_ft"]["run_id"] = "0" * 32
    file.write_text(json.dumps(content))
    before = runs(here)
    assert cli.main(["evaluate", "--run", str(copy), "--data", "other.jsonl", "--log"]) == 1
    out, err = capsys.readouterr()
    assert "has no run 000" in err
    assert "validation loss" in out
    assert runs(here) == before


def test_a_run_that_goes_on_is_left_alone(here, capsys):
    with (here / TRACKED / ".lock").open("r+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert cli.main(["evaluate", "--run", TRACKED, "--log"]) == 2
    assert "still goes on" in capsys.readouterr().err


def test_what_mlflow_does_not_take_now_is_kept(here, capsys, monkeypatch, tmp_path):
    folder = shutil.copytree(here / TRACKED, tmp_path / "run")
    found = later.Findings({"evaluation/kept": 0.5}, 1, "table", [{"a": 1}], ("x", "y"))
    config = find_run(folder).config

    def down(*_, **__):
        raise OSError("down")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_ft.tracking.sync.MlflowStore", down)
        with pytest.raises(MlxFtError, match="mlx-ft sync"):
            later.note(folder, None, config, found)
    assert cli.main(["sync", str(folder)]) == 0
    run_id = summary(folder)["run_id"]
    assert points(here, run_id)["evaluation/kept"][0] == 0.5
