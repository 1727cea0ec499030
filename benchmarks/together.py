"""`sweep.together=K` against the same K trials one after another: wall time and peak memory.

    python benchmarks/together.py [--repeats 3] [--trials 2 4 8] [--rows 1 4] [--json FILE]

`python train.py -m` on the embedded model with text-to-SQL rows of the default data, K ranks and
learning rates, all at once and one after another, alternating. Nothing is evaluated, but for one
validation row at the end: what differs is the training. `1 row`, `4 rows`: of a micro-batch. Frozen
layers are cached, warm for both. Time of the whole command. `difference`: largest, of all steps'
losses of all trials, relative.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT, median


def sweep(place: Path, count: int, rows: int, steps: int, together: int) -> dict[str, Any]:
    """One sweep in a new process. Grids of 2, 4 and 8 trials have ranks x rates."""
    ranks = {2: "8,16", 4: "8,16", 8: "4,8,16,32"}[count]
    rates = "3e-4" if count == 2 else "1e-4,3e-4"
    name = f"{count}-{rows}-{together}-{time.monotonic_ns()}"
    started = time.time()
    done = measuring.run([
        sys.executable, str(ROOT / "train.py"), "-m", f"lora.rank={ranks}",
        f"optimizer.learning_rate={rates}", f"train.max_steps={steps}", "tracking=none",
        f"memory_profile.micro_batch_size={rows}", "memory_profile.grad_accumulation_steps=1",
        "eval.before=false", "data.metric=none", "eval.every=0",
        "eval.max_rows=1", f"sweep.together={together}", f"sweep.name={name}",
        f"paths.output_dir={place}",
    ])  # fmt: skip
    wall = time.time() - started
    folders = sorted((place / "sweeps" / name).glob("*/metrics.jsonl"))
    runs = [[json.loads(line) for line in path.read_text().splitlines()] for path in folders]
    assert len(runs) == count, folders
    losses = [[row["train/loss"] for row in run if "train/loss" in row] for run in runs]
    assert all(len(found) == steps for found in losses)
    return {"wall": wall, "peak": done.peak_mb, "losses": losses}


def measured(count: int, rows: int, steps: int, repeats: int) -> dict[str, Any]:
    """One after another and together, alternating, after one of each that is not counted."""
    found: dict[str, list[dict[str, Any]]] = {"apart": [], "together": []}
    with tempfile.TemporaryDirectory() as folder:
        for repeat in range(repeats + 1):
            for way, together in (("apart", 1), ("together", count)):
                one = sweep(Path(folder), count, rows, steps, together)
                if repeat:
                    found[way].append(one)
    pairs = zip(found["apart"][0]["losses"], found["together"][0]["losses"], strict=True)
    difference = max(
        abs(a - b) / a for one, other in pairs for a, b in zip(one, other, strict=True)
    )
    walls, peaks = (
        {way: median(one[key] for one in runs) for way, runs in found.items()}
        for key in ("wall", "peak")
    )
    return {
        "trials": count, "rows": rows, "walls": walls, "peaks": peaks,
        "all": {way: [one["wall"] for one in runs] for way, runs in found.items()},
        "difference": difference,
    }  # fmt: skip


def line(one: dict[str, Any]) -> list[str]:
    walls, peaks = one["walls"], one["peaks"]
    rows = one["rows"]
    return [
        f"{one['trials']} trials, {rows} row{'s' * (rows > 1)}",
        f"{walls['apart']:.1f}", f"{walls['together']:.1f}",
        f"{walls['together'] / walls['apart']:.2f}",
        f"{peaks['apart']:,.0f}", f"{peaks['together']:,.0f}", f"{one['difference']:.0e}",
    ]  # fmt: skip


def main() -> None:
    parser = measuring.parser(__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--trials", type=int, nargs="+", default=[2, 4, 8], choices=[2, 4, 8])
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--steps", type=int, default=24)
    options = parser.parse_args()
    about = measuring.machine()
    results = [
        measured(count, rows, options.steps, options.repeats)
        for rows in options.rows
        for count in options.trials
    ]
    head = ["", "apart s", "together s", "ratio", "apart MB", "together MB", "difference"]
    print(measuring.table(head, map(line, results)))
    measuring.keep(options.json, {"results": results}, about)

    def draw(axes: Any) -> None:
        for at, rows in enumerate(options.rows):
            mine = [one for one in results if one["rows"] == rows]
            axes.plot(
                [one["trials"] for one in mine],
                [one["walls"]["together"] / one["walls"]["apart"] for one in mine],
                marker=measuring.MARKERS[at], color=measuring.COLOURS[at],
                label=f"{rows} row{'s' * (rows > 1)} each",
            )  # fmt: skip
        axes.axhline(1, color="0.6", linewidth=1)
        axes.set(xlabel="trials together", ylabel="time, of one after another", ylim=(0, None))
        axes.legend(frameon=False)

    measuring.plot(options.plot, draw)


if __name__ == "__main__":
    main()
