"""A tracker's loop that is killed at random moments and resumed, in processes of its own.

Run as a script: RUN_FOLDER TRACKING_DIR STEPS LINES... : one kill -9 when the journal has grown by
so many lines, for each; then a process that ends by itself. An odd number: once MLflow is there,
an even one: perhaps before. Importing mlflow costs seconds, so all are forks of one process.
"""

import os
import random
import signal
import sys
import time
from pathlib import Path

from mlx_ft.config.schema import Config
from mlx_ft.tracking import build_tracker, tracking_uri
from mlx_ft.tracking.store import MlflowStore, import_client
from mlx_ft.tracking.uri import artifact_root

CHECKPOINT = 10


def loop(folder: Path, tracking_dir: str, steps: int, *, wait: bool) -> None:
    """What a run does with its tracker: it goes on from the last multiple of CHECKPOINT."""
    config = Config()
    config.paths.tracking_dir = tracking_dir
    tracker = build_tracker(config, None, folder / "tracking.jsonl")
    tracker.start("killed", {"lora": {"rank": 8}}, {"mlx_ft.run_dir": str(folder)})
    if wait:
        tracker._writer.wake()
        tracker._writer._tried_to_open.wait(60)
    saved = folder / "checkpoint"
    first = int(saved.read_text()) if saved.exists() else 0
    for step in range(first + 1, steps + 1):
        values = {"train/loss": 1 / step, "train/tokens_per_second": random.random()}
        tracker.log_metrics({**values, "memory/rss_gb": random.random()}, step)
        if step % 5 == 0:
            tracker.flush()
        if step % CHECKPOINT == 0:
            partial = folder / "checkpoint.partial"
            partial.write_text(str(step))
            partial.replace(saved)
        time.sleep(0.002)
    (folder / "samples.txt").write_text("samples")
    tracker.log_file(folder / "samples.txt")
    tracker.end("FINISHED")


def make_database(tracking_dir: str) -> None:
    """In a fork: a connection to SQLite must not be carried into others."""
    if os.fork() == 0:
        config = Config()
        config.paths.tracking_dir = tracking_dir
        uri = tracking_uri(config)
        MlflowStore(uri, artifact_root(uri, config.paths), config.tracking.experiment_name)
        os._exit(0)
    os.wait()


def lines(folder: Path) -> int:
    """How long the journal is."""
    path = folder / "tracking.jsonl"
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main(folder: Path, tracking_dir: str, steps: int, growths: list[int]) -> int:
    """Exit code of the last fork; prints one line for each: growth of the journal, exit code."""
    folder.mkdir(parents=True, exist_ok=True)
    import_client(with_database=True)
    make_database(tracking_dir)
    for growth in [*growths, None]:
        before = lines(folder)
        child = os.fork()
        if child == 0:
            loop(folder, tracking_dir, steps, wait=growth is not None and growth % 2 == 1)
            os._exit(0)
        if growth is not None:
            while lines(folder) < before + growth:
                time.sleep(0.02)
            os.kill(child, signal.SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        print(growth, code, flush=True)
        if code >= 0:
            break
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), [int(n) for n in sys.argv[4:]]))
