"""The trials as a table on the terminal, and the best of them."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_ft.config.schema_sweep import SweepConfig

LOWEST = {"val_loss_after": True, "perplexity_after": True, "accuracy_after": False}
COLUMNS = (
    ("trial", "trial", "{}"),
    ("status", "status", "{}"),
    ("val_loss_after", "val loss", "{:.4f}"),
    ("accuracy_after", "accuracy", "{:.1%}"),
    ("seconds", "seconds", "{:.0f}"),
    ("run_dir", "folder", "{}"),
)


def minimizes(config: SweepConfig) -> bool:
    """Whether the lowest figure is the best."""
    auto = config.direction == "auto"
    return LOWEST[config.metric] if auto else config.direction == "minimize"


def best_of(
    rows: Sequence[Mapping[str, Any]], config: SweepConfig | None = None
) -> Mapping[str, Any] | None:
    """The finished trial with the best finite objective; the first of equals.

    Of trials that differ in the seed alone the mean counts, then the best of these.
    """
    done = [row for row in rows if row["status"] == "FINISHED"]
    judged = [row for row in done if isinstance(row.get("objective"), (int, float))]
    finite = [row for row in judged if math.isfinite(row["objective"])]
    sign = 1 if minimizes(config or SweepConfig()) else -1
    points: dict[str, list[float]] = {}
    for row in finite:
        points.setdefault(_point(row), []).append(sign * float(row["objective"]))
    means = {point: math.fsum(values) / len(values) for point, values in points.items()}
    return min(finite, key=lambda row: (means[_point(row)], sign * row["objective"]), default=None)


def _point(row: Mapping[str, Any]) -> str:
    """What a trial tries, whatever its seed: a point is as good as its mean, not its luck."""
    return re.sub(r"(^| )seed=\S+", "", row["trial"])


def table(rows: Sequence[Mapping[str, Any]], config: SweepConfig | None = None) -> str:
    """The trials as aligned text; `*` marks the best one. What is wrong stands below."""
    config = config or SweepConfig()
    best = best_of(rows, config)
    lines = [["", *(title for _, title, _ in COLUMNS)]]
    for row in rows:
        cells = [_cell(row.get(name), form) for name, _, form in COLUMNS]
        lines.append(["*" if row is best else " ", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    if best is not None:
        text.append(f"* best ({'lowest' if minimizes(config) else 'highest'} {config.metric})")
    reasons = [(row["trial"], row["error"]) for row in rows if row.get("error")]
    return "\n".join([*text, *(f"{trial}: {_first_line(error)}" for trial, error in reasons)])


def _first_line(error: str) -> str:
    line = " ".join(error.split("\n", 1)[0].split())
    return line if len(line) <= 200 else f"{line[:199]}…"


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        path = Path(value)
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else value
    return form.format(value)
