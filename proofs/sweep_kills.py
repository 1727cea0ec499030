"""kill -9 at random moments of sweeps: what is finished is not run again, nothing is missing.

python proofs/sweep_kills.py [kills=20] [seed=0] [grid|search]

A sweep of six trials of a tiny model (a search: with pruning) is killed at a random moment (a
trial, between two trials, the report) and started again with the same command, until it ends; then
another one, until there were so many kills. After each sweep: every trial FINISHED and each adapter
equal, to the bit, to that of a sweep without a kill, which for a search means that it asked for the
same points; the summary of a trial that had finished before a kill is the same file; MLflow has one
parent and one run for each trial, all of them finished children of it, none RUNNING.
"""

from __future__ import annotations

import json
import random
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

RANKS, RATES = ("2", "3", "4"), ("1e-3", "1e-2")
GRID = [f"lora.rank={','.join(RANKS)}", f"optimizer.learning_rate={','.join(RATES)}"]
SEARCH = ["sweep=search", "sweep.trials=6", "optimizer.learning_rate=tag(log,interval(1e-5,1e-1))"]
SWEEP = [
    sys.executable, str(ROOT / "train.py"), "-m", *(SEARCH if "search" in sys.argv else GRID),
    "sweep.name=s", "model.path=./model",
    "data=custom", "data.path=rows.jsonl", "data.metric=exact_match", "eval.max_tokens=2",
    "eval.task_rows=2", "memory_profile=cpu", "memory_profile.micro_batch_size=4", "device=cpu",
    "threads=1", "train.max_steps=24", "checkpoint.every=3", "eval.every=6",
]  # fmt: skip
COUNT = len(RANKS) * len(RATES)


def start(folder: Path) -> subprocess.Popen[str]:
    """The sweep, in a process of its own."""
    log = (folder / "log").open("a")
    return subprocess.Popen(SWEEP, cwd=folder, stdout=log, stderr=log, text=True)


def finished(folder: Path) -> dict[str, tuple[int, int]]:
    """The finished trials, each with the identity of its summary."""
    found = {}
    for path in (folder / "outputs/sweeps/s").glob("*/summary.json"):
        try:
            content = json.loads(path.read_text())
        except ValueError:
            continue
        if content.get("status") == "FINISHED":
            stat = path.stat()
            found[path.parent.name] = stat.st_ino, stat.st_mtime_ns
    return found


def adapters(folder: Path) -> dict[str, bytes]:
    """The trials' adapters."""
    found = (folder / "outputs/sweeps/s").glob("*/adapter/adapters.safetensors")
    return {path.parent.parent.name: path.read_bytes() for path in found}


def runs(folder: Path) -> list[tuple[str, str | None]]:
    """(status, parent) of every run that MLflow has."""
    with closing(sqlite3.connect(folder / "mlruns/mlflow.db")) as connection:
        return connection.execute(
            "select status, (select value from tags where key = 'mlflow.parentRunId' and"
            " tags.run_uuid = runs.run_uuid) from runs"
        ).fetchall()


def faults_of(folder: Path, wanted: dict[str, bytes]) -> list[str]:
    """What is wrong with a sweep that has come to its end."""
    found = []
    if len(finished(folder)) != COUNT:
        found.append(f"{len(finished(folder))} of {COUNT} trials are finished")
    if adapters(folder) != wanted:
        found.append("adapters differ from those of a sweep without a kill")
    tracked = runs(folder)
    if sorted(status for status, _ in tracked) != ["FINISHED"] * (COUNT + 1):
        found.append(f"MLflow: {sorted(status for status, _ in tracked)}")
    if len({parent for _, parent in tracked}) != 2 or len(tracked) != COUNT + 1:
        found.append(
            f"MLflow: {len(tracked)} runs under {len({p for _, p in tracked}) - 1} parents"
        )
    if not (folder / "outputs/sweeps/s/trials.csv").is_file():
        found.append("there is no report")
    return found


def killed_until_done(folder: Path, chance: random.Random, longest: float) -> tuple[int, list[str]]:
    """(number of kills, faults)."""
    kills, faults = 0, []
    while True:
        before = finished(folder)
        process = start(folder)
        try:
            code = process.wait(chance.uniform(0.3, longest))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            kills += 1
        after = finished(folder)
        faults += [f"{name} was run again" for name in before if after.get(name) != before[name]]
        if process.returncode != -signal.SIGKILL:
            if code != 0:
                faults.append(f"ended with {code}: {(folder / 'log').read_text()[-600:]}")
            return kills, faults


def fresh(parent: Path, name: str) -> Path:
    """A new folder with a model and rows."""
    from tests.jobs import write_rows
    from tests.models import tiny

    folder = parent / name
    folder.mkdir()
    tiny.save(folder / "model")
    write_rows(folder / "rows.jsonl")
    return folder


def main() -> None:
    """Sweeps until there were as many kills as asked for."""
    given = [int(text) for text in sys.argv[1:] if text.isdigit()]
    wanted, seed = [*given, *(20, 0)[len(given) :]]
    chance, began = random.Random(seed), time.monotonic()  # noqa: S311
    kills, sweeps, faults = 0, 0, list[str]()
    with tempfile.TemporaryDirectory() as scratch:
        whole = fresh(Path(scratch), "whole")
        started = time.monotonic()
        if start(whole).wait() != 0:
            sys.exit((whole / "log").read_text()[-2000:])
        longest = time.monotonic() - started
        expected = adapters(whole)
        while kills < wanted:
            folder = fresh(Path(scratch), f"sweep{sweeps}")
            count, found = killed_until_done(folder, chance, longest)
            found += faults_of(folder, expected)
            kills, sweeps = kills + count, sweeps + 1
            faults += found
            print(f"sweep {sweeps}: {count} kills", *found, sep="\n  ", flush=True)
    seconds = time.monotonic() - began
    print(f"{sweeps} sweeps, {kills} kills, {len(faults)} faults, {seconds:.0f} s")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
