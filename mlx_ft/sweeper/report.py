"""What a sweep leaves in its folder: tables and a page of its trials, the best configuration."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_ft import durable
from mlx_ft.config.schema_sweep import SweepConfig
from mlx_ft.report.read import best_config
from mlx_ft.sweeper.grid import Trial
from mlx_ft.sweeper.table import best_of, minimizes

CSV, MARKDOWN, BEST, PAGE = "trials.csv", "trials.md", "best.yaml", "report.html"
FIGURES = ("status", "objective", "val_loss_after", "accuracy_after", "seconds", "peak_memory_gb",
           "steps", "run_id", "run_dir", "error")  # fmt: skip


def varying(trials: Sequence[Trial]) -> list[dict[str, str]]:
    """What tells each trial from the others: its own values of the keys that are swept."""
    given = [dict(_pair(text) for text in trial.overrides) for trial in trials]
    keys = [key for key in (given[0] if given else ()) if len({one.get(key) for one in given}) > 1]
    return [{key: one.get(key, "") for key in keys} for one in given]


def _pair(text: str) -> tuple[str, str]:
    key, _, value = text.partition("=")
    return key.lstrip("+"), value


def write(
    folder: Path, trials: Sequence[Trial], rows: Sequence[Mapping[str, Any]], config: SweepConfig
) -> None:
    """Write the tables, the page and, if a trial has finished, `best.yaml`. Raises OSError."""
    if not trials:  # a search that was stopped before its first point
        return
    from mlx_ft.report import write as page  # NumPy and more, which a start need not wait for

    points = varying(trials)
    head = [*points[0], *FIGURES]
    lines = [
        [*point.values(), *(_text(row.get(name)) for name in FIGURES)]
        for point, row in zip(points, rows, strict=True)
    ]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    durable.write(folder / CSV, text.getvalue().encode())
    best = best_of(rows, config)
    durable.write(folder / MARKDOWN, _markdown(head, lines, rows, best, config).encode())
    with suppress(FileNotFoundError):
        (folder / BEST).unlink()
    if best is not None:
        with suppress(FileNotFoundError):
            told = (Path(best["run_dir"]) / "config.yaml").read_text("utf-8", errors="replace")
            durable.write(folder / BEST, best_config(told).encode())
    page.write_page(folder, config.metric, low=minimizes(config))


def _markdown(
    head: Sequence[str],
    lines: Sequence[Sequence[str]],
    rows: Sequence[Mapping[str, Any]],
    best: Mapping[str, Any] | None,
    config: SweepConfig,
) -> str:
    shown = [index for index, name in enumerate(head) if name not in ("run_id", "run_dir")]
    table = [[head[i] for i in shown], ["---"] * len(shown)]
    for row, line in zip(rows, lines, strict=True):
        cells = [line[i].replace("|", "\\|").replace("\n", " ") for i in shown]
        table.append([f"**{cell}**" if cell else "" for cell in cells] if row is best else cells)
    said = "No trial has finished."
    if best is not None:
        which = "lowest" if minimizes(config) else "highest"
        said = f"Best ({which} {config.metric}): {best['trial']}, in `{best['run_dir']}`."
    body = "\n".join(f"| {' | '.join(line)} |" for line in table)
    return f"{said}\n\n{body}\n"


def _text(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)
