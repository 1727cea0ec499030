"""What checkpoints cost: the default job with one every 50 steps and with none but the last.

python benchmarks/checkpoints.py [steps=100]

Two numbers: the seconds spent saving, as the run itself measures them, by the run's wall time; and
the wall times of the two runs, which differ by noise as well.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(folder: Path, *overrides: str) -> tuple[dict[str, float], list[float]]:
    """Train; the summary, and the seconds of each save."""
    command = [
        sys.executable, str(ROOT / "train.py"), f"hydra.run.dir={folder}", "eval.task_rows=20",
        f"paths.tracking_dir={folder.parent / 'mlruns'}", *overrides,
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, cwd=folder.parent)
    log = (folder / "train.log").read_text()
    saves = re.findall(r"checkpoint of step \d+ saved \(([\d.]+) s\)", log)
    return json.loads((folder / "summary.json").read_text()), [float(text) for text in saves]


def main(steps: int = 100) -> None:
    """Print the table."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        every, saves = run(place / "every", f"train.max_steps={steps}", "checkpoint.every=50")
        none, _ = run(place / "none", f"train.max_steps={steps}", "checkpoint.every=0")
        sizes = [p.stat().st_size for p in (place / "every" / "checkpoints").rglob("*")]
        folders = len(list((place / "every" / "checkpoints").glob("step-*")))
    share = sum(saves) / every["wall_seconds"]
    print(f"{steps} steps, {len(saves)} saves of {sum(sizes) / folders / 1e6:.0f} MB")
    print(f"saving                     {sum(saves):8.2f} s  {share:.2%} of the wall time")
    print(f"wall, a save every 50      {every['wall_seconds']:8.1f} s")
    print(f"wall, one save at the end  {none['wall_seconds']:8.1f} s")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
