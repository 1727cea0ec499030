"""Runs that MLflow finds by a query."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from mlx_ft.config.schema import PathsConfig
from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.report.collect import of_query
from mlx_ft.tracking import build_tracker, start_parent
from mlx_ft.tracking.query import find_runs, in_mlflows_words
from tests.report import fakes


@pytest.fixture
def config(database, request):
    """An experiment of the test's own."""
    found = database.config()
    found.tracking.experiment_name = request.node.name
    return found


def track(config, name, folder, params, points, status="FINISHED", parent=None):
    tracker = build_tracker(config, parent)
    tracker.start(name, params, {"mlx_ft.run_dir": str(folder)})
    for step, values in points:
        tracker.log_metrics(values, step)
    tracker.end(status, "boom" if status == "FAILED" else None)
    return tracker.run_id


def test_runs_are_found_with_what_mlflow_knows_of_them(config, tmp_path):
    here = fakes.run(tmp_path / "here", 0.25, rank=16)
    points = [(0, {"val/loss": 2.0}), (5, {"val/loss": 0.3, "train/loss": 0.4}),
              (5, {"final/val_loss": 0.3, "final/accuracy": 0.75})]  # fmt: skip
    parent = start_parent(config, "sweep", 2, tmp_path / "journal.jsonl")
    ids = [
        track(config, "a", tmp_path / "gone", {"lora": {"rank": 8}, "seed": 1}, points,
              parent=parent.run_id),
        track(config, "b", here, {"lora": {"rank": 16}, "seed": 1}, points),
        track(config, "c", tmp_path / "gone", {"lora": {"rank": 32}}, [(1, {"train/loss": 9.0})],
              status="FAILED"),
    ]  # fmt: skip
    parent.finish("FINISHED", [], None)
    found, parents = find_runs(config, "")
    assert ({run.run_id for run in found}, parents) == ({*ids}, 1)
    gone = next(run for run in found if run.run_id == ids[0])
    assert dict(gone.curves) == {"val/loss": [(0, 2.0), (5, 0.3)], "train/loss": [(5, 0.4)]}
    assert (gone.figures["val_loss_after"], gone.figures["accuracy_after"]) == (0.3, 0.75)

    query = "metrics.val_loss_after < 0.4 and params.`lora.rank` = '8'"
    assert [run.run_id for run in find_runs(config, query)[0]] == [ids[0]]

    told = of_query(config, "")
    rows = {row.run_id: row for row in told.rows}
    assert told.keys == ["lora.rank"]
    assert rows[ids[0]].settings == {"lora.rank": 8, "seed": 1}
    assert rows[ids[1]].folder == here  # what the folder says is more, and counts
    assert rows[ids[1]].figures["val_loss_after"] == 0.25
    assert (rows[ids[2]].status, rows[ids[2]].error) == ("FAILED", "boom")
    assert told.notes == [
        "1 of the runs that were found hold a sweep together: left out",
        "2 runs have no folder here: what MLflow knows of them is shown",
    ]


def test_a_query_that_is_none(config, tmp_path):
    track(config, "a", tmp_path, {}, [])
    with pytest.raises(UserError, match="--query 'rank is 8'"):
        find_runs(config, "rank is 8")
    with pytest.raises(UserError, match="MLflow has no such run"):
        of_query(config, "params.nothing = 'x'")


def test_what_is_not_there_is_not_made(config, database, tmp_path):
    before = database.rows("select name from experiments")
    with pytest.raises(UserError, match=r"tracking\.experiment_name=NAME"):
        find_runs(config, "")
    assert database.rows("select name from experiments") == before
    nowhere = replace(config, paths=PathsConfig(tracking_dir=str(tmp_path / "none")))
    with pytest.raises(UserError, match="There are no runs yet"):
        find_runs(nowhere, "")
    assert not (tmp_path / "none").exists()


def test_a_database_that_cannot_be_asked(config, tmp_path):
    (tmp_path / "mlflow.db").write_text(json.dumps({"no": "database"}) * 100)
    broken = replace(config, paths=PathsConfig(tracking_dir=str(tmp_path)))
    with pytest.raises(MlxFtError, match="cannot be asked") as error:
        find_runs(broken, "")
    assert error.value.exit_code == 1


@pytest.mark.parametrize(
    ("query", "mlflows"),
    [
        ("metrics.val_loss_after < 0.4", "metrics.`final/val_loss` < 0.4"),
        ("metrics.`accuracy_after` > 0.5", "metrics.`final/accuracy` > 0.5"),
        ('metric."best_step" = 3', "metric.`final/best_step` = 3"),
        ("metrics.val_loss_after2 < 1", "metrics.val_loss_after2 < 1"),
        ("params.val_loss_after = '1'", "params.val_loss_after = '1'"),
    ],
)
def test_the_names_of_the_summary_are_understood(query, mlflows):
    assert in_mlflows_words(query) == mlflows
