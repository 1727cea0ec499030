"""What the benchmarks share: processes with their peak memory, tables, raw figures, plots."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("mlx", "mlx-lm", "transformers", "numpy", "scipy-openblas32")
# Okabe and Ito: told apart by the colour-blind, and in grey by their lightness.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Finished:
    """A process that ended well. peak_mb: its largest resident set."""

    output: str
    peak_mb: float


def run(command: Sequence[str], **environment: str) -> Finished:
    """Wait for a process; exit with the end of what it said when it fails.

    This process has to be a small one: on Linux a child's peak begins with its parent's memory.
    """
    with tempfile.TemporaryFile("w+") as said, tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, stdout=said, stderr=errors, env={**os.environ, **environment}
        )
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:  # Ctrl-C: nothing is left behind that trains on
            process.kill()
            raise
        process.returncode = os.waitstatus_to_exitcode(status)
        for file in (said, errors):
            file.seek(0)
        output = said.read()
        if process.returncode:
            words = " ".join(command)
            sys.exit(f"{words}\nended with {process.returncode}:\n{output}{errors.read()}"[-4000:])
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return Finished(output, usage.ru_maxrss / unit)


def peers_python() -> str:
    """Python of the environment with torch, transformers and PEFT; made as `.ci/peers.sh` does."""
    home = os.environ.get("MLX_FT_PEERS_ENV", "~/.cache/mlx-ft-peers")
    place = Path(home).expanduser() / "peft"
    wanted, python = ROOT / "tests/peers/requirements.txt", place / "bin/python"
    made = place / "requirements.txt"
    if not made.exists() or made.read_text() != wanted.read_text():
        print(f"making {place} (once)", file=sys.stderr)
        run([sys.executable, "-m", "venv", "--clear", str(place)])
        run([str(python), "-m", "pip", "install", "--quiet", "-r", str(wanted)])
        made.write_text(wanted.read_text())
    return str(python)


def machine() -> dict[str, Any]:
    """What the figures depend on."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            versions[name] = "none"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    load = os.getloadavg()[0]
    return {
        "platform": platform.platform(),
        "cores": cores,
        "python": platform.python_version(),
        "load_before": round(load, 2),
        **versions,
    }


def parser(description: str | None, *, plot: bool = True) -> argparse.ArgumentParser:
    """A command line with what all of them take."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="keep the raw figures")
    if plot:
        made.add_argument(
            "--plot", type=Path, metavar="FILE", help="a figure of them, .png or .svg"
        )
    return made


def keep(path: Path | None, figures: Mapping[str, Any], about: Mapping[str, Any]) -> None:
    """Write the raw figures with the machine's, if a file was asked for."""
    if path is not None:
        content = {"command": sys.argv, "machine": dict(about), **figures}
        path.write_text(json.dumps(content, indent=1) + "\n")


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Lines with the first column to the left and the others to the right."""
    lines = [list(head), *map(list, rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    return "\n".join(
        "  ".join(
            text.ljust(width) if i == 0 else text.rjust(width)
            for i, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def median(values: Iterable[float]) -> float:
    """NaN when there are none."""
    found = list(values)
    return statistics.median(found) if found else float("nan")


def plot(path: Path | None, draw: Callable[[Any], None], rows: int = 1, columns: int = 1) -> None:
    """Let `draw` fill the axes of a figure that is still readable at half a page's width.

    draw: is given one axes, or an array of them when there are several.
    """
    if path is None:
        return
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    size = 6.4 * columns**0.7, 4.2 * rows**0.8
    with pyplot.rc_context({"font.size": 13, "axes.spines.top": False, "axes.spines.right": False}):
        figure, axes = pyplot.subplots(rows, columns, figsize=size)
        draw(axes)
        figure.tight_layout()
        figure.savefig(path, dpi=160)
        pyplot.close(figure)
