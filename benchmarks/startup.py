"""Seconds from the command to the first training step, and what is imported on the way.

    python benchmarks/startup.py [--repeats 5] [--json FILE] [--plot FILE]

Runs `python train.py experiment=quick eval.before=false`, without a tracker and with the default
one, in a warm cache, compiled modules included: a first run of each is not counted. `ready`:
`train.log` says what will be trained; `first step`: its row is in `metrics.jsonl`, with the
processor's seconds until then, of all cores. The run then goes on to its end, shortened to 2
steps. Imports: `-X importtime` up to the first step, the time of each module itself added up by
package, in a process of its own that is slower for being watched.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT, median

QUICK = ["experiment=quick", "eval.before=false", "train.max_steps=2", "eval.task_rows=1"]
TRACKERS = {"tracking=none": ["tracking=none"], "default tracking": []}
SIGNS = {"ready": ("train.log", b"trainable parameters"), "first step": ("metrics.jsonl", b"\n")}
SHOWN = (*SIGNS, "processor", "end")
TIMEOUT = 600.0
POLL = 0.02  # seconds; a busier watcher takes a share of the cores from what it watches
TICKS = os.sysconf("SC_CLK_TCK")


def environment(folder: Path) -> dict[str, str]:
    """Ours, with a place for compiled modules even where they are not to be written."""
    kept = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    compiled = str(folder.parent / "pycache")
    return {**kept, "PYTHONPYCACHEPREFIX": compiled, "PYTHONUNBUFFERED": "1"}


def command(folder: Path, *options: str) -> list[str]:
    return [
        sys.executable, *options, str(ROOT / "train.py"), *QUICK, f"hydra.run.dir={folder}",
        f"paths.tracking_dir={folder.parent / 'mlruns'}",
    ]  # fmt: skip


def processor_seconds(pid: int) -> float:
    """User and system time of a process so far (Linux)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / TICKS


def watch(folder: Path, more: list[str]) -> dict[str, float]:
    """Seconds from the command to each sign."""
    found: dict[str, float] = {}
    with tempfile.TemporaryFile("w+") as said:
        started = time.perf_counter()
        process = subprocess.Popen(
            command(folder) + more, stdout=said, stderr=said, cwd=ROOT, env=environment(folder)
        )
        while process.poll() is None and time.perf_counter() - started < TIMEOUT:
            for sign, (name, text) in SIGNS.items():
                path = folder / name
                if sign not in found and path.exists() and text in path.read_bytes():
                    found[sign] = time.perf_counter() - started
                    found["processor"] = processor_seconds(process.pid)  # the last sign's stays
            time.sleep(POLL)
        if process.wait() or not found.keys() >= SIGNS.keys():
            said.seek(0)
            sys.exit(f"train.py ended with {process.returncode}:\n{said.read()[-2000:]}")
    found["end"] = time.perf_counter() - started
    return found


def imports(folder: Path) -> Counter[str]:
    """Seconds of each package's own modules, until the first step is logged."""
    done = subprocess.run(
        [*command(folder, "-X", "importtime"), "tracking=none"],
        capture_output=True, text=True, env=environment(folder), cwd=ROOT, check=False,
    )  # fmt: skip
    if done.returncode:
        sys.exit(done.stderr[-2000:])
    seconds: Counter[str] = Counter()
    for line in done.stderr.splitlines():
        if line.startswith("step 1/"):
            break
        if match := re.match(r"import time:\s+(\d+) \|\s+\d+ \|\s*(\w+)", line):
            seconds[match[2]] += int(match[1]) / 1e6  # type: ignore[assignment]
    return seconds


def draw(imported: Counter[str], axes: Any) -> None:
    largest = imported.most_common(10)[::-1]
    bars = axes.barh([n for n, _ in largest], [s for _, s in largest], color=measuring.COLOURS[0])
    axes.bar_label(bars, [f"{seconds:.2f}" for _, seconds in largest], padding=3)
    axes.set_xlabel("s of imports")
    axes.margins(x=0.15)


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    about = measuring.machine()
    runs: dict[str, list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        for repeat in range(arguments.repeats + 1):
            for tracker, more in TRACKERS.items():
                found = watch(place / f"{tracker}-{repeat}".replace("=", "-"), more)
                if repeat:
                    runs.setdefault(tracker, []).append(found)
        imported = imports(place / "imports")
    lines = [
        [tracker, *(f"{median(run[sign] for run in own):.2f}" for sign in SHOWN)]
        for tracker, own in runs.items()
    ]
    print(measuring.table(["seconds to", *SIGNS, "(processor)", "the end"], lines))
    total = imported.total()
    print(f"\nimports: {total:.2f} s")
    parts = [[name, f"{s:.2f}", f"{s / total:.0%}"] for name, s in imported.most_common(15)]
    print(measuring.table(["package", "s", "share"], parts))
    measuring.keep(arguments.json, {"runs": runs, "imports": dict(imported)}, about)
    measuring.plot(arguments.plot, lambda axes: draw(imported, axes))


if __name__ == "__main__":
    main()
