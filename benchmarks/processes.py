"""Tokens per second of one run by 1, 2 and 4 processes of this machine (`mlx.launch`, ring).

    python benchmarks/processes.py [--processes 1 2 4] [--steps 12] [--repeats 3] [--json FILE]

`python train.py` on the embedded model and the default data, 8 rows a step, nothing evaluated; each
process has one thread for its products, but `1, all cores` has as many as there are cores. Medians
over steps without the first 3, then over repeats, which alternate. `loss`: largest difference of
the losses of all steps to those of one process, relative.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import measuring
from measuring import ROOT, median

WARM_UP = 3
ALL_CORES = 0  # one process with all of them


def trained(place: Path, processes: int, steps: int) -> dict[str, Any]:
    """One run."""
    run = place / "run"
    command = [
        sys.executable, str(ROOT / "train.py"), f"train.max_steps={steps}", "tracking=none",
        "eval.before=false", "data.metric=none", "eval.every=0", "eval.max_rows=1",
        "memory_profile.micro_batch_size=8", "memory_profile.grad_accumulation_steps=1",
        "train.frozen_cache=false", f"hydra.run.dir={run}", f"paths.output_dir={place}",
        *([] if processes == ALL_CORES else ["threads=1"]),
    ]  # fmt: skip
    if processes > 1:
        launch = str(Path(sys.executable).with_name("mlx.launch"))
        command = [launch, "-n", str(processes), "--backend", "ring", "--", *command]
    measuring.run(command)
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rows = [row for row in rows if "train/loss" in row]
    assert len(rows) == steps
    speeds = [row["train/tokens_per_second"] for row in rows[WARM_UP:]]
    return {"speed": median(speeds), "losses": [row["train/loss"] for row in rows]}


def main() -> None:
    parser = measuring.parser(__doc__, plot=False)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    about = measuring.machine()
    counts = [ALL_CORES, *options.processes]
    found: dict[int, list[dict[str, Any]]] = {count: [] for count in counts}
    for repeat in range(options.repeats):
        for count in counts if repeat % 2 == 0 else counts[::-1]:
            with tempfile.TemporaryDirectory() as folder:
                found[count].append(trained(Path(folder), count, options.steps))
            print(f"{count or 'all cores'}: {found[count][-1]['speed']:.1f}", file=sys.stderr)
    speeds = {count: median(one["speed"] for one in runs) for count, runs in found.items()}
    alone = found[ALL_CORES][0]["losses"]
    lines = []
    for count in counts:
        apart = max(
            abs(ours - theirs) / theirs
            for one in found[count]
            for ours, theirs in zip(one["losses"], alone, strict=True)
        )
        name = "1, all cores" if count == ALL_CORES else f"{count}, 1 thread each"
        ratio = speeds[count] / speeds[1] if 1 in speeds else float("nan")
        lines.append([name, f"{speeds[count]:.1f}", f"{ratio:.2f}", f"{apart:.0e}"])
    print(measuring.table(["processes", "tokens/s", "of 1", "loss"], lines))
    measuring.keep(options.json, {"speeds": {str(c): s for c, s in speeds.items()}}, about)


if __name__ == "__main__":
    main()
