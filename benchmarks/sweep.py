"""A 3 x 3 sweep against the nine runs that it consists of, each with a command of its own.

    python benchmarks/sweep.py [--together K] [--alone 3] [--pruner NAME] [--workers N]
        [--json FILE] [KEY=VALUE ...]

`python train.py -m lora.rank=8,16,32 optimizer.learning_rate=3e-4,1e-3,3e-3` on the embedded model
with the default data, and everything else as it is by default (MLflow, evaluation before and after,
figures), but for the arguments given. Caches (model, tokens, what frozen layers give) are warm for
both: a run that is not counted comes first. --alone: with how many of the rates each rank is run by
itself; nine runs then take as many times as long as these. --pruner: the same sweep once more, with
hopeless trials stopped. --workers: once more by so many processes (joblib) with one thread each for
their products. Also: the seconds from each trial's end to the next
one's first step, and whether each trial's losses are those of its own command, to the bit.
"""

from __future__ import annotations

import itertools
import json
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT, median

RANKS, RATES = ("8", "16", "32"), ("3e-4", "1e-3", "3e-3")


def train(place: Path, *arguments: str) -> float:
    """Wall seconds of a command."""
    started = time.perf_counter()
    measuring.run([
        sys.executable, str(ROOT / "train.py"), *arguments, f"paths.output_dir={place}",
        f"paths.tracking_dir={place / 'mlruns'}",
    ])  # fmt: skip
    return time.perf_counter() - started


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def losses(folder: Path) -> list[float]:
    return [row["train/loss"] for row in rows(folder) if "train/loss" in row]


def between(folders: list[Path]) -> list[float]:
    """Seconds from each trial's end to the end of the next one's first step."""
    ends = sorted((path / "summary.json").stat().st_mtime for path in folders)
    begins = sorted(first_step(path) for path in folders)
    return [begin - end for end, begin in zip(ends[:-1], begins[1:], strict=True)]


def first_step(folder: Path) -> float:
    lines = (folder / "train.log").read_text().splitlines()
    line = next(line for line in lines if "INFO    step 1/" in line)
    return datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f").timestamp()


def sweep(place: Path, name: str, *more: str) -> float:
    """Wall seconds of the grid."""
    seconds = train(
        place, "-m", f"lora.rank={','.join(RANKS)}",
        f"optimizer.learning_rate={','.join(RATES)}", f"sweep.name={name}", *more,
    )  # fmt: skip
    print(f"{name}: {seconds:.0f} s", file=sys.stderr)
    return seconds


def alone(place: Path, rates: int, overrides: list[str]) -> tuple[list[float], bool]:
    """(seconds of each run, whether their losses are those of the sweep `plain`)."""
    singles, same = [], True
    for rate, rank in itertools.product(RATES[:rates], RANKS):
        given = [f"lora.rank={rank}", f"optimizer.learning_rate={rate}"]
        run = place / f"single-{rank}-{rate}"
        singles.append(train(place, *given, f"hydra.run.dir={run}", *overrides))
        print(f"rank {rank}, rate {rate}: {singles[-1]:.0f} s", file=sys.stderr)
        trial = place / "sweeps/plain" / f"rank={rank},learning_rate={rate}"
        same &= losses(run) == losses(trial)
    return singles, same


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--alone", type=int, default=len(RATES), choices=(1, 2, 3))
    parser.add_argument("--pruner")
    parser.add_argument("--workers", type=int)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    about = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        train(place / "warm", "train.max_steps=2", "eval.task_rows=1")
        swept = {"one sweep": sweep(
            place, "plain", f"sweep.together={options.together}", *options.overrides
        )}  # fmt: skip
        trials = [path.parent for path in (place / "sweeps/plain").glob("*/metrics.jsonl")]
        gaps = between(trials) if options.together == 1 else []
        if options.pruner:
            more = [f"sweep.pruner={options.pruner}", *options.overrides]
            swept[f"one sweep, {options.pruner}"] = sweep(place, "pruned", *more)
        if options.workers:
            more = [
                "hydra/launcher=joblib",
                f"hydra.launcher.n_jobs={options.workers}",
                "threads=1",
            ]
            name = f"one sweep, {options.workers} workers"
            swept[name] = sweep(place, "workers", *more, *options.overrides)
        singles, same = alone(place, options.alone, options.overrides)
    nine = sum(singles) * len(RATES) / options.alone
    lines = [["nine runs", f"{nine:.0f}", "1.00"]]
    lines += [[name, f"{took:.0f}", f"{took / nine:.2f}"] for name, took in swept.items()]
    print(measuring.table(["", "seconds", "share"], lines))
    print(f"from a trial's end to the next one's first step: {median(gaps):.2f} s (median)")
    print(f"losses equal to the bit: {'yes' if same else 'no'}")
    figures = {"swept": swept, "singles": singles, "nine": nine, "gaps": gaps, "same": same}
    measuring.keep(options.json, figures, about)


if __name__ == "__main__":
    main()
