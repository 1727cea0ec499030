"""Tracking: what MLflow holds afterwards, read with sqlite3, and what its failures do to a run."""

from __future__ import annotations

import logging
import math
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.errors import UserError
from mlx_ft.tracking import (
    NOTE,
    MlflowTracker,
    NullTracker,
    build_tracker,
    start_parent,
    tracking_uri,
    ui_command,
    ui_environment,
    ui_page,
)
from mlx_ft.tracking.context import git_tags
from mlx_ft.tracking.mlflow_tracker import Patience
from mlx_ft.tracking.params import accepted_key, columns_and_cells, flatten, split_oversized
from mlx_ft.tracking.store import MlflowStore, Point
from mlx_ft.tracking.uri import artifact_root, without_password

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

Rows = list[tuple[Any, ...]]


class FakeStore:
    """Remembers what was written; `broken` makes every call fail, `fails` those named."""

    def __init__(self) -> None:
        self.written: list[tuple[str, Any]] = []
        self.broken = False
        self.fails: set[str] = set()
        self.remote = False
        self.runs: list[str] = []

    def _call(self, name: str, *values: Any) -> None:
        if self.broken or name in self.fails:
            raise ConnectionError("refused by http://me:secret@server/api\nand more lines")
        self.written.append((name, values))

    def create_run(self, *values: Any) -> str:
        self._call("create_run", *values)
        self.runs.append(f"run-{len(self.runs) + 1}")
        return self.runs[-1]

    def runs_of(self, journal: str) -> list[str]:
        self._call("runs_of", journal)
        return list(self.runs)

    def reopen(self, run_id: str) -> bool:
        self._call("reopen", run_id)
        return run_id in self.runs

    def discard(self, run_id: str) -> None:
        self._call("discard", run_id)
        self.runs.remove(run_id)

    def params(self, *values: Any) -> None:
        self._call("params", *values)

    def metrics(self, run_id: str, points: list[Point]) -> None:
        self._call("metrics", *((point.key, point.value, point.step) for point in points))

    def tag(self, run_id: str, key: str, value: str) -> None:
        self._call("tag", key, value)

    def text(self, *values: Any) -> None:
        self._call("text", *values)

    def table(self, *values: Any) -> None:
        self._call("table", *values)

    def file(self, *values: Any) -> None:
        self._call("file", *values)

    def dataset(self, *values: Any) -> None:
        self._call("dataset", *values)

    def close(self, run_id: str, status: str, time: int) -> None:
        self._call("close", status)

    def points(self) -> list[Any]:
        return [point for name, values in self.written if name == "metrics" for point in values]

    def of(self, name: str) -> list[Any]:
        return [values for called, values in self.written if called == name]


QUICK = Patience(run_id=5, flush=0.3, end=0.5)


def fake_tracker(store: FakeStore, patience: Patience = QUICK) -> MlflowTracker:
    config = Config()
    connect: Any = lambda: store  # noqa: E731
    return MlflowTracker(config.tracking, config.paths, connect=connect, patience=patience)


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]


# --- failures ---


def test_refused_store_is_one_warning_and_everything_comes_later_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = FakeStore()
    store.broken = True
    tracker = fake_tracker(store)
    tracker.start("run", {"lora": {"rank": 8}}, {})
    assert tracker.run_id is None
    for step in range(5):
        tracker.log_metrics({"train/loss": float(step)}, step)
        tracker.flush()
    (warning,) = warnings_of(caplog)
    assert "refused by http://me:***@server/api" in warning
    assert "more lines" not in warning
    assert store.written == []
    store.broken = False
    tracker.flush()
    tracker.end("FINISHED")
    assert tracker.run_id == "run-1"
    assert store.points() == [("train/loss", float(step), step) for step in range(5)]
    assert store.of("params") == [("run-1", {"lora.rank": "8"})]
    assert store.of("close") == [("FINISHED",)]
    assert len(warnings_of(caplog)) == 1


def test_end_says_what_could_not_be_written(caplog: pytest.LogCaptureFixture) -> None:
    store = FakeStore()
    store.fails = {"metrics", "table"}
    tracker = fake_tracker(store)
    tracker.start("run", {}, {})
    tracker.log_metrics({"a": 1.0, "b": 2.0}, 1)
    tracker.log_table("samples", [{"question": "?"}])
    tracker.end("FINISHED")
    assert "2 metric values" in warnings_of(caplog)[-1]
    assert "samples.json" in warnings_of(caplog)[-1]
    assert store.of("close") == [("FINISHED",)]
    assert ("mlx_ft.unwritten_points", "2") in store.of("tag")


def test_hanging_store_does_not_hold_the_training(caplog: pytest.LogCaptureFixture) -> None:
    release, hanging = threading.Event(), threading.Event()
    store = FakeStore()

    def hang(run_id: str, points: list[Point]) -> None:
        hanging.set()
        release.wait(20)

    store.metrics = hang  # type: ignore[method-assign]
    tracker = fake_tracker(store)
    tracker.start("run", {}, {})
    assert tracker.run_id == "run-1"
    began = time.monotonic()
    for step in range(100):
        tracker.log_metrics({"train/loss": 1.0}, step)
        tracker.flush()
    assert hanging.is_set()
    # The first flush waits for its 0.3 s, the others know that the store is busy.
    assert time.monotonic() - began < 0.3 + 0.5
    tracker.end("FINISHED")
    assert time.monotonic() - began < 0.3 + 0.5 + 0.5 + 0.5
    assert "100 metric values" in warnings_of(caplog)[-1]
    assert "no answer within" in warnings_of(caplog)[-1]
    release.set()


def test_connecting_is_not_waited_for() -> None:
    release = threading.Event()
    store = FakeStore()

    def connect() -> Any:
        release.wait(20)
        return store

    config = Config()
    tracker = MlflowTracker(config.tracking, config.paths, connect=connect)
    began = time.monotonic()
    tracker.start("run", {}, {})
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.flush()
    assert time.monotonic() - began < 0.5
    release.set()
    assert tracker.run_id == "run-1"
    tracker.end("KILLED", "Ctrl-C")
    assert store.points() == [("train/loss", 1.0, 1)]
    assert store.of("close") == [("KILLED",)]
    assert ("mlx_ft.end_reason", "Ctrl-C") in store.of("tag")


def test_nothing_happens_before_start_and_after_end() -> None:
    store = FakeStore()
    tracker = fake_tracker(store)
    tracker.log_metrics({"a": 1.0}, 1)
    tracker.flush()
    tracker.end("FINISHED")
    assert tracker.run_id is None
    assert store.written == []
    tracker.start("run", {}, {})
    tracker.end("FAILED")
    tracker.end("FINISHED")
    assert store.of("close") == [("FAILED",)]
    assert tracker.run_id == "run-1"


def test_impossible_database_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    config = Config()
    config.paths.tracking_dir = str(tmp_path / "file" / "mlruns")
    tracker = build_tracker(config, None)
    tracker.start("run", {}, {})
    assert tracker.run_id is None
    tracker.end("FINISHED")
    assert "did not take the run (NotADirectoryError" in warnings_of(caplog)[0]


# --- parameters and tables ---


def test_flatten() -> None:
    nested = {"lora": {"rank": 8, "target_modules": ["q_proj"]}, "a": None, "b": {}, "c": True}
    expected = {"lora.rank": "8", "lora.target_modules": '["q_proj"]'}
    assert flatten(nested) == {**expected, "a": "null", "b": "{}", "c": "true"}
    assert flatten({"learning_rate": 2e-4, "name": "x"}) == {"learning_rate": "0.0002", "name": "x"}


def test_long_and_clashing_parameters_are_kept_apart() -> None:
    params = {"ok": "v", "long": "x" * 6001, "a[0]": "1", "a_0_": "2", "k" * 251: "3"}
    accepted, apart = split_oversized(params, "long.json")
    assert accepted["ok"] == "v"
    assert accepted["long"] == "6,001 characters: see the artifact long.json"
    assert accepted["a_0_"] == "1"
    assert apart == {"long": "x" * 6001, "a_0_": "2", "k" * 251: "3"}
    assert accepted_key("a[b]/c.d-e f:g") == "a_b_/c.d-e f:g"


def test_table_of_uneven_rows() -> None:
    columns, cells = columns_and_cells([{"a": 1, "b": math.nan}, {"c": ["x"], "a": "é"}])
    assert columns == ["a", "b", "c"]
    assert cells == [[1, "nan", None], ["é", None, '["x"]']]


# --- where ---


def test_uri_is_absolute_and_a_given_one_is_honoured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = Config()
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/mlruns/mlflow.db"
    assert (
        artifact_root(tracking_uri(config), config.paths) == f"file://{tmp_path}/mlruns/artifacts"
    )
    config.tracking.uri = "sqlite:///other/x.db"
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/other/x.db"
    assert artifact_root(tracking_uri(config), config.paths) == f"file://{tmp_path}/other/artifacts"
    config.tracking.uri = "https://me:secret@mlflow.example"
    assert tracking_uri(config) == config.tracking.uri
    assert artifact_root(config.tracking.uri, config.paths) is None
    assert without_password(f"at {config.tracking.uri}") == "at https://me:***@mlflow.example"
    with pytest.raises(UserError, match=r"me:\*\*\*@mlflow.example"):
        ui_command(config, "127.0.0.1", 5000)


def test_ui_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config()
    config.paths.tracking_dir = str(tmp_path)
    with pytest.raises(UserError, match="no runs yet"):
        ui_command(config, "127.0.0.1", 5000)
    (tmp_path / "mlflow.db").touch()
    assert ui_page(config, "127.0.0.1", 5000).startswith("http://127.0.0.1:5000/#/experiments?")
    command = " ".join(ui_command(config, "127.0.0.1", 5000))
    assert command.startswith(f"{sys.executable} -m mlflow server")
    assert f"--backend-store-uri sqlite:///{tmp_path}/mlflow.db" in command
    assert command.endswith("--host 127.0.0.1 --port 5000")
    monkeypatch.delenv("MLFLOW_DISABLE_TELEMETRY", raising=False)
    assert ui_environment()["MLFLOW_DISABLE_TELEMETRY"] == "true"
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "false")
    assert ui_environment()["MLFLOW_DISABLE_TELEMETRY"] == "false"


def test_git_tags(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert git_tags(tmp_path) == {}
    git("init", "-q", "-b", "trunk")
    (tmp_path / "a").write_text("1")
    git("add", "a")
    git("commit", "-qm", "one")
    clean = git_tags(tmp_path)
    assert clean["mlflow.source.git.commit"] == git("rev-parse", "HEAD")
    assert clean["mlflow.source.git.branch"] == "trunk"
    assert clean["mlflow.source.git.dirty"] == "false"
    (tmp_path / "a").write_text("2")
    assert git_tags(tmp_path)["mlflow.source.git.dirty"] == "true"


def test_no_tracking() -> None:
    config = Config()
    config.tracking.backend = "none"
    tracker = build_tracker(config, "parent")
    assert isinstance(tracker, NullTracker)
    assert start_parent(config, "sweep", 4, Path("journal")).run_id is None


# --- MLflow itself ---


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    """One database for the tests below: making it takes a second. Its name needs quoting."""
    config = Config()
    config.paths.tracking_dir = str(tmp_path_factory.mktemp("runs #1 100%"))
    config.tracking.tags = {"owner[x]": "me"}
    return config


@pytest.fixture
def database(config: Config) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(Path(config.paths.tracking_dir) / "mlflow.db")
    yield connection
    connection.close()


def metrics_of(database: sqlite3.Connection, run_id: str | None) -> Rows:
    query = "select key, step, value, is_nan from metrics where run_uuid = ? order by key, step"
    return database.execute(query, (run_id,)).fetchall()


def status_of(database: sqlite3.Connection, run_id: str | None) -> tuple[str, str]:
    query = "select name, status from runs where run_uuid = ?"
    name, status = database.execute(query, (run_id,)).fetchone()
    return name, status


def pairs(database: sqlite3.Connection, table: str, run_id: str | None) -> dict[str, str]:
    return dict(
        database.execute(f"select key, value from {table} where run_uuid = ?", (run_id,)).fetchall()
    )


def artifacts_of(config: Config, run_id: str | None) -> Path:
    return Path(config.paths.tracking_dir) / "artifacts" / str(run_id) / "artifacts"


@pytest.fixture
def tracker(config: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[MlflowTracker]:
    monkeypatch.setenv("MLFLOW_RUN_ID", "f" * 32)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "elsewhere")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////elsewhere.db")
    tracker = MlflowTracker(config.tracking, config.paths)
    tracker.start("rank=8", {"lora": {"rank": 8}, **{f"p{i}": i for i in range(250)}}, {NOTE: "n"})
    assert tracker.run_id is not None
    yield tracker
    tracker.end("FAILED")


def test_what_mlflow_holds(
    tracker: MlflowTracker, config: Config, tmp_path: Path, database: sqlite3.Connection
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text("{}")
    (tmp_path / "loss.png").write_bytes(b"png")
    for step in range(3):
        tracker.log_metrics({"train/loss": 2.0 - step, "memory/rss_gb": 1.5}, step)
    tracker.log_metrics({"val/loss": math.nan, "val/perplexity": math.inf}, 2)
    tracker.log_file(tmp_path / "adapter")
    tracker.log_file(tmp_path / "loss.png", "figures")
    tracker.log_table("samples", [{"question": "é?", "answer": "1"}])
    digest = "sha256:" + "ab" * 32
    tracker.log_dataset("geography_sql", digest, "builtin:x", {"rows": 1200}, "training")
    tracker.flush()
    assert status_of(database, tracker.run_id) == ("rank=8", "RUNNING")
    tracker.end("FINISHED")

    run_id = tracker.run_id
    assert status_of(database, run_id) == ("rank=8", "FINISHED")
    query = "select experiment_id from experiments where name = 'mlx-ft'"
    (experiment,) = database.execute(query).fetchone()
    assert f"/#/experiments/{experiment}/runs?" in ui_page(config, "127.0.0.1", 5000)
    assert metrics_of(database, run_id) == [
        *(("memory/rss_gb", step, 1.5, 0) for step in range(3)),
        *(("train/loss", step, 2.0 - step, 0) for step in range(3)),
        ("val/loss", 2, 0.0, 1),
        ("val/perplexity", 2, 0.0, 1),
    ]
    params = pairs(database, "params", run_id)
    assert params == {"lora.rank": "8", **{f"p{i}": str(i) for i in range(250)}}
    tags = pairs(database, "tags", run_id)
    assert tags["owner_x_"] == "me"
    assert tags[NOTE] == "n"
    assert tags["mlflow.loggedArtifacts"] == '[{"path": "samples.json", "type": "table"}]'
    assert len(tags["mlflow.source.git.commit"]) == 40
    folder = artifacts_of(config, run_id)
    assert (folder / "adapter" / "adapter_config.json").read_text() == "{}"
    assert (folder / "figures" / "loss.png").read_bytes() == b"png"
    assert (folder / "samples.json").read_text() == (
        '{"columns": ["question", "answer"], "data": [["é?", "1"]]}'
    )
    (dataset,) = database.execute(
        "select name, digest, dataset_profile from datasets join inputs on source_id = dataset_uuid"
        " where destination_id = ?",
        (run_id,),
    ).fetchall()
    assert dataset[:2] == ("geography_sql", "ab" * 6)
    assert digest in dataset[2]


def test_point_whose_answer_was_lost_is_there_once(
    tracker: MlflowTracker, database: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, lost = MlflowStore.metrics, []

    def write_and_lose(self: MlflowStore, run_id: str, points: list[Point]) -> None:
        write(self, run_id, points)
        if not lost:
            lost.append(points)
            raise TimeoutError("no answer")

    monkeypatch.setattr(MlflowStore, "metrics", write_and_lose)
    tracker.log_metrics({"train/loss": 1.0, "val/loss": math.nan}, 1)
    tracker.flush()
    tracker.log_metrics({"train/loss": 0.5}, 2)
    tracker.end("FINISHED")
    assert lost
    assert metrics_of(database, tracker.run_id) == [
        ("train/loss", 1, 1.0, 0),
        ("train/loss", 2, 0.5, 0),
        ("val/loss", 1, 0.0, 1),
    ]


def test_locked_database_is_waited_for(
    config: Config, tracker: MlflowTracker, database: sqlite3.Connection
) -> None:
    database.execute("begin exclusive")
    tracker._patience = Patience(flush=0.2)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    began = time.monotonic()
    tracker.flush()
    assert 0.1 < time.monotonic() - began < 1.0
    database.rollback()
    tracker.end("FINISHED")
    assert metrics_of(database, tracker.run_id) == [("train/loss", 1, 1.0, 0)]
    assert status_of(database, tracker.run_id)[1] == "FINISHED"


def test_sweep_parent_and_children(
    config: Config, tracker: MlflowTracker, database: sqlite3.Connection, tmp_path: Path
) -> None:
    journal = tmp_path / "sweep" / "tracking.jsonl"
    journal.parent.mkdir()
    parent = start_parent(config, "ranks", 2, journal)
    rows: list[dict[str, Any]] = []
    for rank, loss in ((8, 0.5), (16, 0.25), (32, math.nan)):
        child = build_tracker(config, parent.run_id)
        child.start(f"rank={rank}", {"lora": {"rank": rank}}, {})
        rows.append({"trial": f"rank={rank}", "lora.rank": rank, "objective": loss})
        child.end("FINISHED")
        tags = pairs(database, "tags", child.run_id)
        assert tags["mlflow.parentRunId"] == parent.run_id
    (journal.parent / "report.html").write_text("<p>")
    (journal.parent / "best.yaml").write_text("seed: 1")
    parent.finish("FINISHED", rows, best=rows[1])
    assert status_of(database, parent.run_id) == ("ranks", "FINISHED")
    assert metrics_of(database, parent.run_id) == [
        ("best/objective", 0, 0.25, 0),
    ]
    tags = pairs(database, "tags", parent.run_id)
    assert (tags["best.trial"], tags["best.lora.rank"]) == ("rank=16", "16")
    table = (artifacts_of(config, parent.run_id) / "trials.json").read_text()
    assert '["rank=8", 8, 0.5], ["rank=16", 16, 0.25], ["rank=32", 32, "nan"]' in table

    assert (artifacts_of(config, parent.run_id) / "report.html").read_text() == "<p>"
    assert (artifacts_of(config, parent.run_id) / "best.yaml").read_text() == "seed: 1"
    later = start_parent(config, "ranks", 3, journal)  # the sweep goes on
    assert later.run_id == parent.run_id
    later.finish("FAILED", rows[:1], best=rows[0])
    assert status_of(database, parent.run_id) == ("ranks", "FAILED")
    assert pairs(database, "tags", parent.run_id)["best.lora.rank"] == "8"


PROCESSES = """
import os, sys
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
import mlflow.store.tracking.sqlalchemy_store  # once, then four processes start at once
from mlx_ft.config.schema import Config
from mlx_ft.tracking import build_tracker

children = []
for number in range(4):
    if (child := os.fork()) == 0:
        break
    children.append(child)
else:
    sys.exit(any([os.waitpid(child, 0)[1] for child in children]))

config = Config()
config.paths.tracking_dir = sys.argv[1]
tracker = build_tracker(config, None)
tracker.start(f"process {number}", {"number": number}, {})
assert tracker.run_id
for step in range(20):
    tracker.log_metrics({"train/loss": float(number), "val/loss": 0.0}, step)
    tracker.flush()
if number:
    tracker.end("FINISHED")
"""


@pytest.mark.slow
def test_four_processes_on_a_fresh_database(tmp_path: Path) -> None:
    """All four work; the one that leaves without `end` is marked FAILED."""
    command = [sys.executable, "-c", PROCESSES, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout + done.stderr == ""  # none of the migration's chatter either
    connection = sqlite3.connect(tmp_path / "mlflow.db")
    query = "select name, status, count(*), sum(value) from runs join metrics using (run_uuid) "
    found = connection.execute(query + "group by run_uuid order by name").fetchall()
    connection.close()
    statuses = ["FAILED", "FINISHED", "FINISHED", "FINISHED"]
    assert found == [(f"process {n}", statuses[n], 40, 20.0 * n) for n in range(4)]
