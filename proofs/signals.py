"""SIGTERM and Ctrl-C at random moments: exit code, status and checkpoint are right each time.

python proofs/signals.py [count=50] [again=6] [starts=12] [seed=0]

`count` trainings get a signal at a random moment from acceptance to the end; `again` more get a
second one 1.2 seconds after the first, in a step that takes longer; `starts` real processes get one
while they import and compose, or exit. Each time:

- the exit code is 143 or 130 (a process that died of the signal itself is shown so by a shell),
  or 0 of a run that had finished; never a traceback;
- a run that had begun says KILLED in summary.json and in MLflow, and its newest checkpoint is whole
  and of the step where it stopped, which is the one in hand when the signal came; one that had not
  begun has written nothing; one that had finished says FINISHED;
- a second signal ends it within a second, with the last checkpoint intact;
- `train.resume=auto` then ends equal, bit for bit, to the run that was never stopped, with one
  MLflow run and no point twice.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.kills import SCENARIOS, Place, arguments, faults, tracked  # noqa: E402

NAME = "accumulation and dropout"
PLAIN = "adamw, cosine"
assert {NAME, PLAIN} <= SCENARIOS.keys()
SLOW = ("memory_profile.grad_accumulation_steps=600", "train.max_steps=2", "checkpoint.every=1")
CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
AGAIN = 1.2  # seconds; a wrapper's second signal comes sooner, and counts as one
INTERPRETER = (
    0.15  # seconds until our first line; before it, Python's own behaviour is all there is
)


def outcome(place: Place, run: str, ended: dict[str, Any], number: int) -> tuple[str, list[str]]:
    """How a run that got a signal ended, in a word, and what is wrong with that."""
    folder, output = place.folder / run, place.output()
    wrong = ["shows a traceback"] if "Traceback" in output else []
    code = 128 + ended["signal"] if ended["signal"] else ended["code"]
    begun = (folder / "config.yaml").exists()
    summary = _summary(folder)
    status = summary.get("status")
    if code not in (0, CODES[signal.Signals(number)]):
        wrong.append(f"ends with {code}")
    if code == 0 or status == "FINISHED":
        word, expected = "finished", "FINISHED"
    elif begun:
        word, expected = "killed", "KILLED"
        wrong += killed_wrongly(folder, summary, ended["rows"])
    else:
        left = [path.name for path in folder.rglob("*") if path.name != ".lock"]
        return "not begun", wrong + ([f"left {left}"] if left else [])
    if status != expected:
        wrong.append(f"summary.json says {status}")
    if (statuses := tracked(place.folder, run)[0]) != [expected]:
        wrong.append(f"MLflow says {statuses}")
    return word, [f"{fault}: {output[-600:]}" for fault in wrong]


def _summary(folder: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((folder / "summary.json").read_text()))
    except OSError:
        return {}


def killed_wrongly(folder: Path, summary: dict[str, Any], rows: list[int]) -> list[str]:
    """What is wrong with the checkpoint of a stopped run; rows: steps around the signal."""
    from mlx_ft import checkpoint

    steps = summary.get("steps", -1)
    found, damaged = checkpoint.newest(folder / "checkpoints")
    newest = found.step if found else 0
    wrong = [f"{path.name} is damaged: {lines}" for path, lines in damaged.items()]
    if newest != steps:
        wrong.append(f"stopped at step {steps}, the newest checkpoint is of step {newest}")
    if not rows or not rows[0] <= steps <= rows[1] + 1:
        wrong.append(f"stopped at step {steps}, the signal came after step {rows}")
    return wrong


def resumed(place: Place, reference: str, given: list[str], run: str) -> list[str]:
    """Let the run go on to its end; what differs from the one that was never stopped."""
    ended = place.start(given)
    if ended["code"] != 0:
        return [f"does not go on: {ended}: {place.output()[-600:]}"]
    place.output()
    return [f"after going on: {fault}" for fault in faults(place, reference, run)]


def once(
    place: Place, count: int, seconds: float, chance: random.Random
) -> Iterator[tuple[str, list[str]]]:
    """Trainings that get one signal at a random moment of their `seconds`."""
    for turn in range(count):
        run, number = f"once-{turn}", signal.SIGINT if turn % 4 == 3 else signal.SIGTERM
        after = chance.uniform(0.02, 1.02 * seconds)
        ended = place.start(
            arguments(NAME, run), after=after, signal=number, watch=f"{run}/metrics.jsonl"
        )
        word, wrong = outcome(place, run, ended, number)
        wrong += resumed(place, "reference", arguments(NAME, run), run)
        yield word, [f"{number.name} after {after:.2f} s: {fault}" for fault in wrong]


def twice(
    place: Place, count: int, chance: random.Random, *, compare: bool = True
) -> Iterator[tuple[str, list[str]]]:
    """Trainings in a long step that get a second signal 1.2 seconds after the first.

    compare: they go on then, and must come out as the run `slow`.
    """
    from mlx_ft import checkpoint

    for turn in range(count):
        run, number = f"twice-{turn}", signal.SIGTERM if turn % 2 else signal.SIGINT
        order = {"signal": number, "again": AGAIN, "watch": f"{run}/metrics.jsonl"}
        after = chance.uniform(1.0, 4.0)
        ended = place.start(arguments(PLAIN, run, *SLOW), after=after, **order)
        output, folder = place.output(), place.folder / run
        wrong = [f"shows a traceback: {output[-900:]}"] if "Traceback" in output else []
        if (128 + ended["signal"] if ended["signal"] else ended["code"]) != CODES[number]:
            wrong.append(f"ends with {ended}: {output[-600:]}")
        if ended["since"] > 1:
            wrong.append(f"ended {ended['since']:.1f} s after the second signal")
        summary, (_, damaged) = _summary(folder), checkpoint.newest(folder / "checkpoints")
        wrong += [f"{path.name} is damaged" for path in damaged]
        if compare:
            wrong += resumed(place, "slow", arguments(PLAIN, run, *SLOW), run)
        yield "stopped" if summary else "at once", wrong


def starts(place: Place, count: int, chance: random.Random) -> Iterator[tuple[str, list[str]]]:
    """Real processes that get a signal while they import and compose, or while they exit."""
    environment = {**os.environ, "MLX_FT_CACHE": str(place.folder / "cache")}
    for turn in range(count):
        run, number = f"start-{turn}", signal.SIGINT if turn % 2 else signal.SIGTERM
        command = [sys.executable, str(ROOT / "train.py"), *arguments(NAME, run)]
        with (place.folder / "output.txt").open("w") as file:
            process = subprocess.Popen(
                command, cwd=place.folder, env=environment, stdout=file, stderr=file
            )
            if turn % 3 == 2:  # at its end
                while _summary(place.folder / run).get("status") != "FINISHED":
                    time.sleep(0.001)
                time.sleep(chance.uniform(0, 0.1))
            else:
                time.sleep(chance.uniform(INTERPRETER, 1.0))
            process.send_signal(number)
            code = process.wait(60)
        ended = {"code": code if code >= 0 else None, "signal": max(0, -code), "rows": [0, 0]}
        word, wrong = outcome(place, run, ended, number)
        yield f"start: {word}", wrong + resumed(place, "reference", arguments(NAME, run), run)


def main(count: int = 50, again: int = 6, real: int = 12, seed: int = 0) -> int:
    """Send signals and print what went wrong; 0 when nothing did."""
    # A shell lets what it starts in the background ignore Ctrl-C, and so would every training.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    started, chance, bad = time.monotonic(), random.Random(seed), 0  # noqa: S311
    with tempfile.TemporaryDirectory() as folder:
        place = Place(Path(folder))
        plain = place.start(arguments(NAME, "reference"))
        warm = place.start(arguments(NAME, "warm"))  # without what only the first one does
        slow = place.start(arguments(PLAIN, "slow", *SLOW))
        assert plain["code"] == warm["code"] == slow["code"] == 0, place.output()
        place.output()
        parts = {
            "one signal": once(place, count, warm["seconds"], chance),
            "a second one": twice(place, again, chance),
            "real processes": starts(place, real, chance),
        }
        for name, cases in parts.items():
            words: Counter[str] = Counter()
            found = 0
            for word, wrong in cases:
                words[word] += 1
                found += bool(wrong)
                for fault in wrong:
                    print(f"  {word}: {fault}", flush=True)
            told = ", ".join(f"{number} {word}" for word, number in sorted(words.items()))
            print(f"{name}: {told}; {found} with faults", flush=True)
            bad += found
        place.close()
    print(f"{bad} faults, {time.monotonic() - started:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
