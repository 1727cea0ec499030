"""`sync_run` and `reap` on MLflow: what was missed is written once, and no run stays RUNNING."""

import fcntl
import json
import logging
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_ft.tracking import MlflowTracker, reap, sync_run
from mlx_ft.tracking.journal import NAME
from mlx_ft.tracking.mlflow_tracker import Patience
from mlx_ft.tracking.store import MlflowStore
from mlx_ft.tracking.sync import LOCK
from mlx_ft.tracking.uri import artifact_root, store_uri

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")


def no_store():
    raise ConnectionError("down")


def begun(folder, config, *, steps=3, down=False, ended=None, tags=None):
    """A run that was begun in this folder, and told of some steps and perhaps of its end."""
    folder.mkdir(parents=True, exist_ok=True)
    tracker = MlflowTracker(
        config.tracking, config.paths, None, folder / NAME,
        connect=no_store if down else None, patience=Patience(flush=10, end=10),
    )  # fmt: skip
    tracker.start(
        folder.name, {"lora": {"rank": 8}}, {"mlx_ft.run_dir": str(folder), **(tags or {})}
    )
    tracker._writer.wake()
    tracker._writer._tried_to_open.wait(30)
    for step in range(1, steps + 1):
        tracker.log_metrics({"loss": 1 / step}, step)
    tracker.flush()
    if ended:
        tracker.end(*ended)
    tracker._ended = True  # as a killed process
    return tracker


@pytest.fixture
def store(database):
    config = database.config()
    uri = store_uri(config.tracking, config.paths)
    return MlflowStore(uri, artifact_root(uri, config.paths), config.tracking.experiment_name)


def test_a_killed_run_is_closed_and_completed(tmp_path, database):
    config = database.config()
    tracker = begun(tmp_path / "killed", config)
    tracker.log_metrics({"loss": 0.1}, 4)  # told, not flushed
    assert database.run(tracker.run_id)[1] == "RUNNING"
    time.sleep(0.05)
    result = sync_run(tmp_path / "killed", config)
    assert (result.outcome, result.status, result.points) == ("written", "KILLED", 1)
    assert database.points(tracker.run_id) == [
        ("loss", 1, 1.0, 0), ("loss", 2, 0.5, 0), ("loss", 3, 1 / 3, 0), ("loss", 4, 0.1, 0),
    ]  # fmt: skip
    name, status, ended = database.run(tracker.run_id)
    assert (name, status) == ("killed", "KILLED")
    assert ended == tracker._journal.state.last_time  # when it was last heard of
    reason = database.pairs("tags", tracker.run_id)["mlx_ft.end_reason"]
    assert reason == "the process ended without a word at or after step 4"
    assert sync_run(tmp_path / "killed", config).outcome == "complete"
    begun(tmp_path / "killed", config, steps=5, ended=("FINISHED",))  # resumed
    assert database.run(tracker.run_id)[1] == "FINISHED"
    assert "mlx_ft.end_reason" not in database.pairs("tags", tracker.run_id)
    assert [point[1] for point in database.points(tracker.run_id)] == [1, 2, 3, 4, 4, 5]


def test_a_run_that_the_store_never_saw(tmp_path, database, monkeypatch):
    """Created as it was, from another folder; relative places count from where it was begun."""
    monkeypatch.chdir(database.folder.parent)
    config = database.config()
    config.paths.tracking_dir = database.folder.name
    tracker = begun(tmp_path / "unseen", config, down=True, ended=("FAILED", "out of memory"))
    assert tracker.run_id is None
    monkeypatch.chdir(tmp_path)
    result = sync_run(Path("unseen"), config)
    assert (result.outcome, result.status, result.points) == ("written", "FAILED", 3)
    (run_id,) = database.active_runs("unseen")
    assert result.run_id == run_id
    tags = database.pairs("tags", run_id)
    assert tags["mlx_ft.end_reason"] == "out of memory"
    assert tags["mlx_ft.run_dir"] == str(tmp_path / "unseen")
    assert database.pairs("params", run_id) == {"lora.rank": "8"}
    assert not (tmp_path / "mlruns").exists()
    assert not (tmp_path / database.folder.name).exists()


def test_a_run_killed_between_its_creation_and_the_note(tmp_path, database):
    tracker = begun(tmp_path / "between", database.config(), ended=("FINISHED",))
    journal = tmp_path / "between" / NAME
    lines = [line for line in journal.read_bytes().splitlines(True) if b'"written"' not in line]
    journal.write_bytes(b"".join(lines))
    assert sync_run(tmp_path / "between", database.config()).run_id == tracker.run_id
    assert database.active_runs("between") == [tracker.run_id]
    assert len(database.points(tracker.run_id)) == 3


def test_a_run_that_is_alive_is_left_alone(tmp_path, database):
    tracker = begun(tmp_path / "alive", database.config())
    before = (tmp_path / "alive" / NAME).read_bytes()
    with (tmp_path / "alive" / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert sync_run(tmp_path / "alive", database.config()).outcome == "alive"
        assert tracker.run_id not in reap(database.config())
    assert (tmp_path / "alive" / NAME).read_bytes() == before
    assert database.run(tracker.run_id)[1] == "RUNNING"


def test_an_end_that_only_the_summary_tells(tmp_path, database):
    folder = tmp_path / "told"
    tracker = begun(folder, database.config())
    summary = folder / "summary.json"
    summary.write_text(json.dumps({"status": "FINISHED", "reason": None}))
    os.utime(summary, (1, 1))  # of an earlier process of this run
    assert sync_run(folder, database.config()).status == "KILLED"
    begun(folder, database.config())
    summary.write_text(json.dumps({"status": "FINISHED", "reason": None}))
    assert sync_run(folder, database.config()).status == "FINISHED"
    assert database.run(tracker.run_id)[1] == "FINISHED"


def test_a_summary_without_a_run_is_told_its_run(tmp_path, database):
    config = database.config()
    begun(tmp_path / "run", config, down=True, ended=("FINISHED",))
    file = tmp_path / "run" / "summary.json"
    file.write_text('{"run_id": null, "steps": 3}')
    result = sync_run(tmp_path / "run", config)
    assert json.loads(file.read_text()) == {"run_id": result.run_id, "steps": 3}
    assert result.run_id is not None


def test_what_can_never_be_written_is_said_once(tmp_path, database):
    folder = tmp_path / "refused"
    tracker = begun(folder, database.config())
    tracker.log_file(folder / "gone.txt")
    tracker.log_metrics({"k" * 300: 1.0}, 4)  # MLflow takes 250 characters
    tracker.log_metrics({"loss": 0.25}, 5)
    result = sync_run(folder, database.config())
    assert (result.outcome, result.ok, result.points) == ("written", False, 1)
    assert ["gone.txt" in text for text in result.given_up] == [False, True]
    assert [point[1] for point in database.points(tracker.run_id)] == [1, 2, 3, 5]
    again = sync_run(folder, database.config())
    assert (again.outcome, again.ok) == ("complete", True)


def test_runs_that_are_deleted_or_gone_are_not_made_again(tmp_path, database, store):
    tracker = begun(tmp_path / "gone", database.config())
    tracker.log_metrics({"loss": 0.25}, 4)
    store.discard(tracker.run_id)
    result = sync_run(tmp_path / "gone", database.config())
    assert (result.outcome, result.ok, result.left) == ("deleted", True, 2)
    elsewhere = database.config()
    elsewhere.tracking.uri = f"sqlite:///{database.folder}/empty.db"
    result = sync_run(tmp_path / "gone", elsewhere)
    assert (result.outcome, result.ok) == ("gone", False)
    assert database.active_runs("gone") == []


def test_unreachable_and_untracked(tmp_path, database):
    tracker = begun(tmp_path / "run", database.config())
    tracker.log_metrics({"loss": 0.25}, 4)
    config = database.config()
    (tmp_path / "file").write_text("")
    config.paths.tracking_dir = str(tmp_path / "file" / "mlruns")
    result = sync_run(tmp_path / "run", config)
    assert (result.outcome, result.ok, result.left) == ("unreachable", False, 2)
    assert "NotADirectoryError" in result.problem
    assert sync_run(tmp_path / "run", config, down={result.store}).problem == "as before"
    assert sync_run(tmp_path, config).outcome == "untracked"
    assert sync_run(tmp_path / "run", database.config()).points == 1


def test_damage_is_counted_and_the_rest_is_written(tmp_path, database):
    tracker = begun(tmp_path / "damaged", database.config(), down=True, ended=("FINISHED",))
    journal = tmp_path / "damaged" / NAME
    journal.write_bytes(journal.read_bytes().replace(b'"step": 2', b'"step": 7'))
    result = sync_run(tmp_path / "damaged", database.config())
    assert (result.outcome, result.damaged_lines) == ("written", 1)
    assert [point[1] for point in database.points(result.run_id)] == [1, 3]
    assert tracker.run_id is None


def test_reap_closes_what_is_dead_and_nothing_else(tmp_path, database, store, monkeypatch, caplog):
    config = database.config()
    config.tracking.experiment_name = "reaped"
    dead = begun(tmp_path / "dead", config).run_id
    bare = begun(tmp_path / "bare", config).run_id
    (tmp_path / "bare" / NAME).unlink()
    reused = begun(tmp_path / "reused", config).run_id
    (tmp_path / "reused" / NAME).unlink()
    newer = begun(tmp_path / "reused", config, ended=("FINISHED",)).run_id
    removed = begun(tmp_path / "removed", config).run_id
    (tmp_path / "removed").rename(tmp_path / "moved")
    other = begun(tmp_path / "other", config, tags={"mlx_ft.host": "another"}).run_id
    parent = MlflowTracker(config.tracking, config.paths)
    parent.start("sweep", {}, {})
    sweep, parent._ended = parent.run_id, True
    store.close(newer, "RUNNING", 5)  # told to the journal, lost by MLflow

    closed = reap(config)
    assert set(closed) == {dead, bare, reused, newer}
    assert closed[dead] == str(tmp_path / "dead")
    status = {run: database.run(run)[1] for run in (dead, bare, reused, newer)}
    assert status == {dead: "KILLED", bare: "KILLED", reused: "KILLED", newer: "FINISHED"}
    assert {database.run(run)[1] for run in (removed, other, sweep)} == {"RUNNING"}
    assert reap(config) == {}
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


@pytest.mark.parametrize("fault", ["folder", "store", "store, no journal"])
def test_one_run_that_cannot_be_closed_does_not_stop_the_rest(
    tmp_path, database, caplog, monkeypatch, fault
):
    config = database.config()
    config.tracking.experiment_name = f"broken, {fault}"
    runs = [begun(tmp_path / name, config).run_id for name in ("a", "b", "c")]
    if fault == "folder":
        (tmp_path / "b" / LOCK).mkdir()
    if "no journal" in fault:
        (tmp_path / "b" / NAME).unlink()
    genuine = MlflowStore.close

    def close(store, run_id, *values):
        if run_id == runs[1]:
            raise ArithmeticError("no such status")
        genuine(store, run_id, *values)

    monkeypatch.setattr(MlflowStore, "close", close)
    assert set(reap(config)) == {runs[0], runs[2]}
    statuses = [database.run(run_id)[1] for run_id in runs]
    assert statuses == ["KILLED", "RUNNING", "KILLED"]
    reason = "IsADirectoryError" if fault == "folder" else "ArithmeticError: no such status"
    assert f"{tmp_path}/b: its run could not be closed: {reason}" in caplog.text


def test_an_outage_while_runs_are_closed_is_not_waited_for_again_and_again(
    tmp_path, database, monkeypatch
):
    config = database.config()
    config.tracking.experiment_name = "outage"
    for name in "abcd":
        begun(tmp_path / name, config)
        (tmp_path / name / NAME).unlink()
    asked = []

    def down(_, run_id, *__):
        asked.append(run_id)
        raise RuntimeError("no answer")

    monkeypatch.setattr(MlflowStore, "tag", down)
    assert reap(config) == {}
    assert len(asked) == 2


@pytest.mark.parametrize("down", [False, True])
def test_a_run_that_was_stopped_stays_killed(tmp_path, database, down):
    """Told by the run itself, whether MLflow heard of it then or only now; sync adds no word."""
    folder, config = tmp_path / f"stopped-{down}", database.config()
    config.tracking.experiment_name = "stopped"
    begun(folder, config, down=down, ended=("KILLED", "stopped by SIGTERM"))
    (folder / "summary.json").write_text(json.dumps({"status": "FINISHED", "reason": None}))
    outcomes = [sync_run(folder, config).outcome for _ in range(2)]
    assert outcomes == ["written" if down else "complete", "complete"]
    assert reap(config) == {}
    (run_id,) = database.active_runs(folder.name)
    assert database.run(run_id)[1] == "KILLED"
    assert database.pairs("tags", run_id)["mlx_ft.end_reason"] == "stopped by SIGTERM"


def test_reap_never_raises(tmp_path, database, caplog, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = database.config()
    config.tracking = replace(config.tracking, uri="http://127.0.0.1:9/")
    assert reap(config) == {}
    assert "could not be closed" in caplog.text
    config.tracking = replace(config.tracking, uri=f"sqlite:///{tmp_path}/none.db")
    assert reap(config) == {}
    assert list(tmp_path.iterdir()) == []


def test_a_database_whose_maker_was_killed(tmp_path):
    """SQLite's tables are made one by one; what is there of them is made anew."""
    (tmp_path / ".mlflow.db.partial").write_bytes(b"half a database")
    (tmp_path / ".mlflow.db.partial-journal").write_bytes(b"and its journal")
    MlflowStore(f"sqlite:///{tmp_path}/mlflow.db", (tmp_path / "artifacts").as_uri(), "mlx-ft")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".mlflow.db.lock", "mlflow.db"]
