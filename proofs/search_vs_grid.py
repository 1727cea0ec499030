"""Does a search with pruning reach a grid's best value with half of the trial-steps?

python proofs/search_vs_grid.py [seeds=3] [folder] [rates=3e-4,1e-3,3e-3] [points=10]

For each seed: a grid of 3 x 3, rank and learning rate, of the embedded model on the default data,
and a search with pruning in the ranges that the grid spans. Compared: the best validation loss of a
finished trial, and the steps that all trials took, pruned ones included. The search has reached the
grid if it is no further above its best than the spread between seeds of that very point: the
difference between the highest and the lowest loss that the grid's best point has with these seeds.
`at or below it` says whether it is not above it at all. With a folder, what is in it is gone on
with, and stays.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

STEPS = 24
RUN = [
    f"train.max_steps={STEPS}", "memory_profile.micro_batch_size=4", "lora.num_layers=4",
    "data.metric=none", "eval.max_rows=24", "eval.before=false", "eval.every=3", "tracking=none",
    "checkpoint.every=0", "train.log_every=1000", "log_level=warning", "train.frozen_cache=true",
    "threads=1",
]  # fmt: skip
RATES, POINTS = "3e-4,1e-3,3e-3", 10
RANKS = "lora.rank=4,8,16"


def searched(rates: str, points: int) -> list[str]:
    """What a search is asked for that spans the grid of these rates."""
    given = rates.split(",")
    return [
        "sweep=search", f"sweep.trials={points}", RANKS,
        f"optimizer.learning_rate=tag(log,interval({given[0]},{given[-1]}))",
    ]  # fmt: skip


@dataclass(frozen=True)
class Result:
    """What came of a sweep. best: the lowest loss of a finished trial; point: its folder's name.

    losses: of every finished trial. reached: steps taken until the best trial was done.
    """

    best: float
    point: str
    steps: int
    losses: dict[str, float]
    states: Counter[str]
    curve: list[tuple[int, float]]

    def steps_to(self, loss: float) -> int | None:
        """The steps that all trials had taken when one as good as this was done."""
        return next((steps for steps, best in self.curve if best <= loss), None)


def sweep(folder: Path, name: str, arguments: list[str]) -> Result:
    """Run a sweep to its end, or what is left of it."""
    argv = [sys.executable, str(ROOT / "train.py"), "-m", *RUN, *arguments,
            f"hydra.sweep.dir={folder / name}"]  # fmt: skip
    began = time.monotonic()
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(done.stdout[-2000:] + done.stderr[-2000:])
    print(f"{name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    return read(folder / name)


def read(folder: Path) -> Result:
    """What a sweep's folder says, its trials in the order of their ends."""
    found = []
    for path in folder.glob("*/summary.json"):
        kept = json.loads((path.parent / "trial.json").read_text())
        summary = json.loads(path.read_text())
        found.append((path.stat().st_mtime_ns, path.parent.name, kept["status"], summary))
    steps, best, point, losses, curve = 0, float("inf"), "", dict[str, float](), []
    for _, name, status, summary in sorted(found, key=lambda one: one[0]):
        steps += summary["steps"]
        if status == "FINISHED":
            losses[name] = summary["val_loss_after"]
            if losses[name] < best:
                best, point = losses[name], name
        curve.append((steps, best))
    states = Counter(status for *_, status, _ in found)
    return Result(best, point, steps, losses, states, curve)


def main() -> None:
    """Both sweeps for each seed, and the table."""
    given = [*sys.argv[1:], *[""] * 4]
    count, points = int(given[0] or 3), int(given[3] or POINTS)
    rates = given[2] or RATES
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(given[1] or scratch).resolve()
        folder.mkdir(parents=True, exist_ok=True)
        pairs = []
        for seed in range(count):
            own = f"seed={seed}"
            grid = sweep(folder, f"grid-{seed}", [RANKS, f"optimizer.learning_rate={rates}", own])
            found = sweep(folder, f"search-{seed}", [*searched(rates, points), own])
            pairs.append((grid, found))
    print(
        f"{STEPS} steps a trial; grid: 9 trials; search: {points} points, asha\n\n"
        "| seed | grid's best | at | its spread over seeds | grid steps | search's best | at "
        "| search steps | share | at or below it | within the spread after | pruned |\n"
        + "|---" * 12
        + "|"
    )
    good = True
    for seed, (grid, found) in enumerate(pairs):
        alike = [other.losses[grid.point] for other, _ in pairs]
        spread = max(alike) - min(alike)
        reached = found.steps_to(grid.best + spread)
        share = found.steps / grid.steps
        good &= reached is not None and share <= 0.5
        pruned = f"{found.states['PRUNED']} of {found.states.total()}"
        print(
            f"| {seed} | {grid.best:.4f} | {grid.point} | {spread:.4f} | {grid.steps} "
            f"| {found.best:.4f} | {found.point} | {found.steps} | {share:.0%} "
            f"| {'yes' if found.best <= grid.best else 'no'} | {reached or 'never'} | {pruned} |"
        )
    print("\nshown" if good else "\nNOT shown")
    sys.exit(not good)


if __name__ == "__main__":
    main()
