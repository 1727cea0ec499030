"""A 3 x 3 sweep against the nine runs that it consists of, each with a command of its own.

    python benchmarks/sweep.py [--together K] [--json FILE] [KEY=VALUE ...]

`python train.py -m lora.rank=8,16,32 optimizer.learning_rate=3e-4,1e-3,3e-3` on the embedded model
with the default data, and everything else as it is by default (MLflow, evaluation before and after,
figures), but for the arguments given. Caches (model, tokens, what frozen layers give) are warm for
both: a run that is not counted comes first. Also: the seconds from each trial's end to the next
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


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    options = parser.parse_args()
    about = measuring.machine()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        train(place / "warm", "train.max_steps=2", "eval.task_rows=1")
        swept = train(
            place, "-m", f"lora.rank={','.join(RANKS)}",
            f"optimizer.learning_rate={','.join(RATES)}", "sweep.name=nine",
            f"sweep.together={options.together}", *options.overrides,
        )  # fmt: skip
        print(f"sweep: {swept:.0f} s", file=sys.stderr)
        singles, same = [], True
        for rank, rate in itertools.product(RANKS, RATES):
            given = [f"lora.rank={rank}", f"optimizer.learning_rate={rate}"]
            run = place / f"single-{rank}-{rate}"
            singles.append(train(place, *given, f"hydra.run.dir={run}", *options.overrides))
            print(f"rank {rank}, rate {rate}: {singles[-1]:.0f} s", file=sys.stderr)
            trial = place / "sweeps/nine" / f"rank={rank},learning_rate={rate}"
            same &= losses(run) == losses(trial)
        trials = [path.parent for path in (place / "sweeps/nine").glob("*/metrics.jsonl")]
        gaps = between(trials) if options.together == 1 else []
    print(measuring.table(["", "seconds"], [
        ["nine runs", f"{sum(singles):.0f}"],
        ["one sweep", f"{swept:.0f}"],
        ["share", f"{swept / sum(singles):.2f}"],
        ["median from a trial's end to the next one's first step", f"{median(gaps):.2f}"],
    ]))  # fmt: skip
    print(f"losses equal to the bit: {'yes' if same else 'no'}")
    figures = {"sweep": swept, "singles": singles, "gaps": gaps, "same": same}
    measuring.keep(options.json, figures, about)


if __name__ == "__main__":
    main()
