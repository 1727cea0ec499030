"""A tracker that is killed at each of its moments in turn, and resumed. Run as a script.

FOLDER: in a folder of its own for each, one fork ends itself with SIGKILL at the n-th moment
(before or after a line of the journal, before or after a call of the store), another one goes on
and ends well. Prints one JSON object for each n, until a fork came to its end unharmed.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from itertools import count
from pathlib import Path

from mlx_ft.config.schema import Config
from mlx_ft.tracking.journal import NAME, Journal
from mlx_ft.tracking.mlflow_tracker import MlflowTracker
from tests.tracking.fakes import FileStore

STEPS = 6
CHECKPOINT = 2


def run(folder: Path, kill_at: int | None) -> None:
    """One process of the run."""
    moments, lock = count(1), threading.Lock()

    def moment(_: str) -> None:
        with lock:
            if next(moments) == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)

    append = Journal._append

    def watched(self: Journal, body: str) -> None:
        moment("before a line")
        append(self, body)
        moment("after a line")

    Journal._append = watched  # type: ignore[method-assign]
    store = FileStore(folder / "store", moment)
    config = Config()
    config.tracking.tags = {"owner": "me"}
    tracker = MlflowTracker(config.tracking, config.paths, None, folder / NAME,
                            connect=lambda: store)  # type: ignore[arg-type,return-value]  # fmt: skip
    tracker.start("run", {"lora": {"rank": 8}}, {})
    saved = folder / "saved"
    first = int(saved.read_text()) if saved.exists() else 0
    for step in range(first + 1, STEPS + 1):
        tracker.log_metrics({"train/loss": 1 / step, "memory/rss_gb": os.getpid()}, step)
        if step % CHECKPOINT == 0:
            tracker.flush()
            (folder / "partial").write_text(str(step))
            (folder / "partial").replace(saved)
    tracker.log_table("samples", [{"a": 1}])
    tracker.log_tags({"owner": "you"})
    tracker.end("FINISHED")


def child(folder: Path, kill_at: int | None) -> int:
    """Exit code of a fork that runs."""
    pid = os.fork()
    if pid == 0:
        run(folder, kill_at)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def main(folder: Path) -> None:
    for kill_at in count(1):
        place = folder / str(kill_at)
        place.mkdir()
        killed = child(place, kill_at)
        ended = 0 if killed == 0 else child(place, None)
        store = FileStore(place / "store")
        runs = {
            run_id: {"points": store.points(run_id), "tags": store.tags(run_id)}
            for run_id in store.runs()
        }
        params = {json.dumps(params) for _, params in store.of("params")}
        found = {
            "codes": [killed, ended],
            "runs": runs,
            "params": sorted(params),
            "tables": len({json.dumps(table) for table in store.of("table")}),
            "status": store.of("close")[-1][1],
            "left": len(Journal(place / NAME).pending()),
        }
        print(json.dumps(found), flush=True)
        if killed == 0:
            return


if __name__ == "__main__":
    main(Path(sys.argv[1]))
