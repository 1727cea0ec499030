"""A run that is killed and resumed is one run in the store, with every point once."""

import json
import logging
import math
import random
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.tracking.journal import NAME, Journal
from mlx_ft.tracking.mlflow_tracker import MlflowTracker, Patience
from tests.tracking.fakes import FileStore


@pytest.fixture
def store(tmp_path):
    return FileStore(tmp_path / "store")


@pytest.fixture
def tracker(tmp_path, store):
    """Makes a tracker of a new process, so to say: started, on the same journal and store."""

    def start(params=None, connect=lambda: store, **patience):
        config = Config()
        tracker = MlflowTracker(
            config.tracking, config.paths, None, tmp_path / NAME,
            connect=connect, patience=Patience(**{"run_id": 5, "flush": 5, "end": 5} | patience),
        )  # fmt: skip
        tracker.start("run", params or {}, {"try": str(len(store.of("reopen")))})
        return tracker

    return start


def opened(tracker):
    """Once all that was told at its start is written."""
    tracker._writer.wake()
    tracker._writer._tried_to_open.wait(5)
    tracker.flush()
    return tracker


def abandon(tracker):
    """As a kill leaves it: nothing is told any more."""
    tracker._ended = True


@pytest.mark.slow
def test_killed_at_each_moment(tmp_path):
    """45 moments or so: one run, each step once, the parameters once, the newest tag."""
    command = [sys.executable, "-m", "tests.tracking.killpoints", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    results = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(results) > 30
    assert [result["codes"] for result in results] == [[-9, 0]] * (len(results) - 1) + [[0, 0]]
    expected = {(key, step): 1 for key in ("train/loss", "memory/rss_gb") for step in range(1, 7)}
    for result in results:
        (run,) = result["runs"].values()
        assert Counter((key, step) for key, step, _ in run["points"]) == expected
        losses = {step: value for key, step, value in run["points"] if key == "train/loss"}
        assert losses == {step: 1 / step for step in range(1, 7)}
        assert run["tags"]["owner"] == "you"
        assert result["params"] == ['{"lora.rank": "8"}']
        assert (result["tables"], result["status"], result["left"]) == (1, "FINISHED", 0)


@pytest.mark.slow
def test_killed_at_random_moments_with_mlflow(tmp_path):
    growths = [str(random.Random(number).randrange(1, 80)) for number in range(6)]
    arguments = [str(tmp_path / "run"), str(tmp_path / "mlruns"), "400", *growths]
    command = [sys.executable, "-m", "tests.tracking.killed", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.count(" -9\n") == 6
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as database:
        counted = "select key, count(*), count(distinct step), max(step) from metrics group by key"
        assert database.execute(counted).fetchall() == [
            (key, 400, 400, 400)
            for key in ("memory/rss_gb", "train/loss", "train/tokens_per_second")
        ]
        values = "select step, value from metrics where key = 'train/loss'"
        assert dict(database.execute(values)) == {step: 1 / step for step in range(1, 401)}
        assert database.execute("select name, status from runs").fetchall() == [
            ("killed", "FINISHED")
        ]
        assert database.execute("select key, value from params").fetchall() == [("lora.rank", "8")]
    assert len(list(tmp_path.glob("mlruns/artifacts/*/artifacts/samples.txt"))) == 1


def test_points_told_again(tracker, store, caplog):
    caplog.set_level(logging.INFO)
    first = tracker()
    first.log_metrics({"loss": 1.0, "nan": math.nan, "memory/rss_gb": 1.0, "lr": 0.1}, 1)
    assert first.run_id  # it is open: only then does `flush` wait
    first.log_metrics({"loss": 0.5}, 2)
    first.flush()
    abandon(first)
    again = tracker()
    again.log_metrics({"loss": 1.0, "nan": math.nan, "memory/rss_gb": 2.0, "lr": 0.1}, 1)
    again.log_metrics({"loss": 0.25, "memory/rss_gb": 2.0}, 2)
    again.end("FINISHED")
    (run_id,) = store.runs()
    assert [point for point in store.points(run_id) if point[0] != "nan"] == [
        ("loss", 1, 1.0),
        ("memory/rss_gb", 1, 1.0),
        ("lr", 1, 0.1),
        ("loss", 2, 0.5),
        ("loss", 2, 0.25),  # another value: both are there, the newer one later
        ("memory/rss_gb", 2, 2.0),
    ]
    assert len([point for point in store.points(run_id) if point[0] == "nan"]) == 1
    assert store.tags(run_id)["mlx_ft.changed_points"] == "1"
    assert "1 metric values differ from those of the same step" in caplog.text


def test_another_value_is_later_whatever_the_clock_says(tracker, store, monkeypatch):
    first = tracker()
    first.log_metrics({"loss": 1.0}, 1)
    monkeypatch.setattr(time, "time_ns", lambda: 5_000_000)  # the clock was set back to 1970
    first.log_metrics({"loss": 2.0}, 1)  # a rewind: in the same process
    first.end("FINISHED")
    times = [time for _, points in store.of("metrics") for _, _, time, _ in points]
    assert times[0] < times[1]


def test_a_resumed_run_is_known_at_once(tracker, store):
    first = tracker({"lora": {"rank": 8}})
    run_id = first.run_id
    first.end("KILLED", "Ctrl-C")
    release = threading.Event()

    def connect():
        release.wait(20)
        return store

    again = tracker({"lora": {"rank": 16}}, connect)
    began = time.monotonic()
    assert again.run_id == run_id
    assert time.monotonic() - began < 15
    release.set()
    again.end("FINISHED")
    assert len(store.of("params")) == 1  # they stay as they were
    assert store.tags(run_id)["try"] == "0"
    assert [status for _, status, _ in store.of("close")] == ["KILLED", "FINISHED"]
    assert store.of("reopen") == [[run_id]]


def test_a_run_that_is_gone_from_the_store_is_written_anew(tracker, store, caplog):
    first = tracker({"lora": {"rank": 8}})
    first.log_metrics({"loss": 1.0}, 1)
    gone = first.run_id
    first.end("KILLED")
    store._call("vanish", gone)
    again = tracker()
    again.log_metrics({"loss": 0.5}, 2)
    again.end("FINISHED")
    (run_id,) = store.runs()
    assert run_id != gone
    assert again.run_id == run_id
    assert store.points(run_id) == [("loss", 1, 1.0), ("loss", 2, 0.5)]
    assert [run_id, {"lora.rank": "8"}] in store.of("params")
    assert f"has no run {gone} any more" in caplog.text


def test_an_older_tag_that_comes_late_does_not_win(tracker, store):
    first = opened(tracker())
    store.fails["tag"] = ConnectionError("no")
    first.log_tags({"best": "1"})
    first.log_table("t", [])
    first.flush()
    first.log_tags({"best": "2"})
    store.fails.clear()
    first.end("FINISHED")
    assert [value for _, key, value in store.of("tag") if key == "best"] == ["2", "2"]


def test_what_is_refused_does_not_stop_the_rest(tmp_path, tracker, store, caplog):
    """Three files that are gone are no outage."""
    first = tracker()
    store.fails["file"] = FileNotFoundError("no such file")
    for name in "abc":
        first.log_file(tmp_path / name)
    first.log_table("samples", [{"a": 1}])
    first.end("FINISHED")
    assert store.of("table")
    assert [status for _, status, _ in store.of("close")] == ["FINISHED"]
    warning = caplog.records[-1].getMessage()
    assert "a, b, c" in warning
    assert warning.endswith(f"mlx-ft sync {tmp_path}")


def test_an_outage_ends_the_attempt(tracker, store):
    """A store that hangs for a minute at each call must not be called for each thing noted."""
    calls = []

    def refuse(*_):
        calls.append(1)
        raise ConnectionError("refused")

    first = opened(tracker())
    store.table = store.metrics = store.tag = refuse
    for number in range(20):
        first.log_table(f"t{number}", [])
    first.log_metrics({"loss": 1.0}, 1)
    calls.clear()
    first.flush()
    assert len(calls) == 2
    abandon(first)
    assert len(Journal(first._journal.path).pending()) >= 21


def test_a_second_run_made_by_a_lost_answer_is_deleted(tmp_path, tracker, store):
    store.remote = True
    create = store.create_run

    def create_twice(*values):  # the client asked again, as no answer came
        create(*values)
        return create(*values)

    store.create_run = create_twice
    first = tracker()
    first.log_metrics({"loss": 1.0}, 1)
    first.end("FINISHED")
    assert list(store.runs()) == [first.run_id]
    assert store.points(first.run_id) == [("loss", 1, 1.0)]
