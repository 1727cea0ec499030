"""MLflow refusing, failing, hanging, slow: the training goes on, and `sync` completes the run."""

import logging
import time

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.tracking.journal import NAME
from mlx_ft.tracking.mlflow_tracker import MlflowTracker, Patience
from mlx_ft.tracking.parent import start_parent
from mlx_ft.tracking.sync import sync_run
from tests.tracking.fakes import FileStore

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")

STEPS = 12
PATIENCE = Patience(run_id=0.3, flush=0.3, end=0.5)
SOON = 20  # seconds: a busy machine may take so long, a server that hangs never answers


def train(folder, server, faults, config):
    """A run with a server whose fault begins at the given steps; returns the longest wait."""
    tracker = MlflowTracker(config.tracking, config.paths, None, folder / NAME, patience=PATIENCE)
    waits = []

    def timed(call, *arguments):
        began = time.monotonic()
        call(*arguments)
        waits.append(time.monotonic() - began)

    for step in range(STEPS + 1):
        if step in faults:
            server.set(faults[step])
        if step == 0:
            timed(tracker.start, folder.name, {"lora": {"rank": 8}}, {"owner": "me"})
            if not faults.get(0):
                tracker._writer.wake()
                tracker._writer._tried_to_open.wait(10)
            continue
        timed(tracker.log_metrics, {"train/loss": 1 / step, "memory/rss_gb": 2.0}, step)
        if step % 3 == 0:
            timed(tracker.flush)
    tracker.log_table("samples", [{"question": "?"}])
    if "end" in faults:
        server.set(faults["end"])
    began = time.monotonic()
    tracker.end("FINISHED", "all steps")
    assert time.monotonic() - began < SOON
    return tracker, max(waits)


@pytest.mark.parametrize(
    "faults",
    [
        {0: "refused"}, {0: "500"}, {0: "hang"}, {0: "lost"}, {0: "slow"}, {0: "lost-run"},
        {0: "lost-run", 4: None},
        {6: "refused"}, {6: "500"}, {6: "hang"}, {6: "lost"},
        {"end": "refused"}, {"end": "500"}, {"end": "hang"}, {"end": "lost"}, {"end": "slow"},
        {3: "500", 9: None}, {0: "hang", 6: "refused"},
    ],
    ids=lambda faults: "-".join(f"{at}_{fault}" for at, fault in faults.items()),
)  # fmt: skip
def test_what_is_missed_is_written_once(tmp_path, database, server, faults, caplog, request):
    folder = tmp_path / f"run-{request.node.callspec.id}"
    folder.mkdir()
    config = Config()
    config.tracking.uri = server.url
    try:
        tracker, longest = train(folder, server, faults, config)
        assert longest < SOON
        last = list(faults.values())[-1]
        if last not in (None, "slow"):
            warnings = [r for r in caplog.records if r.levelno == logging.WARNING]
            assert 1 <= len(warnings) <= 2  # when it began, and what is left at the end
            left = tracker._journal.pending()
            assert left or last == "lost-run"  # whose run is found by its tag, sooner or later
            assert not left or f"mlx-ft sync {folder}" in warnings[-1].getMessage()
    finally:
        server.recover()
    tracker._writer._thread.join(10)
    result = sync_run(folder, config)
    assert result.ok, result
    assert sync_run(folder, config).outcome == "complete"
    (run_id,) = database.active_runs(folder.name)
    assert database.points(run_id) == [
        *(("memory/rss_gb", step, 2.0, 0) for step in range(1, STEPS + 1)),
        *(("train/loss", step, 1 / step, 0) for step in range(1, STEPS + 1)),
    ]
    assert database.pairs("params", run_id) == {"lora.rank": "8"}
    tags = database.pairs("tags", run_id)
    assert (tags["owner"], tags["mlx_ft.end_reason"]) == ("me", "all steps")
    assert "mlx_ft.unwritten_points" not in tags
    assert database.run(run_id)[1] == "FINISHED"
    assert len(list(database.folder.glob(f"artifacts/{run_id}/artifacts/samples.json"))) == 1


def test_a_sweep_waits_for_its_run_longer_than_a_run_does(tmp_path, monkeypatch, caplog):
    """On a busy machine MLflow takes minutes to begin; trials without a parent would be loose."""
    store = FileStore(tmp_path / "store")

    def opened_late():
        time.sleep(0.5)
        return store

    monkeypatch.setattr(MlflowTracker, "_store", lambda self: ("late", opened_late))
    monkeypatch.setattr("mlx_ft.tracking.mlflow_tracker.Patience", lambda: Patience(run_id=0.1))
    found = {}
    for name in ("as it is", "as a run"):
        (tmp_path / name).mkdir()
        parent = start_parent(Config(), name, 2, tmp_path / name / NAME)
        parent.finish("FINISHED", [], None)
        found[name] = parent.run_id
        monkeypatch.setattr("mlx_ft.tracking.parent.PATIENCE", Patience(run_id=0.1))
    assert found == {"as it is": next(iter(store.runs())), "as a run": None}
    assert "the sweep as a run: trials that begin now are runs without a parent" in caplog.text
