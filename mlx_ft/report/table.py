"""The comparison as tables: on the terminal, as CSV and as Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft.config.screen import shown as printable
from mlx_ft.plural import counted
from mlx_ft.report.analyse import FINISHED, Analysis
from mlx_ft.report.labels import figure_label, figure_text, short_keys, value_text
from mlx_ft.report.read import Row

MOST_NAMES = 8  # of runs that ended in the same way
SHOWN = ("val_loss_after", "accuracy_after", "wall_seconds", "peak_memory_gb")
# As a sweep's own `trials.csv` has them.
CSV_FIGURES = {"val_loss_after": "val_loss_after", "accuracy_after": "accuracy_after",
               "seconds": "wall_seconds", "peak_memory_gb": "peak_memory_gb",
               "steps": "steps"}  # fmt: skip


@dataclass(frozen=True)
class Table:
    """head: column -> whether it holds numbers. marked: the number of the best line."""

    head: Sequence[tuple[str, bool]]
    lines: Sequence[Sequence[str]]
    marked: int | None = None


def runs_table(analysis: Analysis) -> Table:
    """A line for each run: what varies, how it ended, its figures, where it is."""
    rows, keys = analysis.collection.rows, analysis.collection.keys
    seeds = analysis.seeded or not keys
    figures = _figures(analysis)
    short = short_keys(keys)
    head = [*((short[key], True) for key in keys), *([("seed", True)] if seeds else []),
            ("status", False), *((figure_label(key), True) for key in figures),
            ("folder", False)]  # fmt: skip
    lines = [
        [
            *(value_text(row.settings[key]) if key in row.settings else "-" for key in keys),
            *([row.seed or "-"] if seeds else []),
            printable(row.status),
            *(figure_text(key, row.figures.get(key)) for key in figures),
            printable(_place(row, analysis), 300),
        ]
        for row in rows
    ]
    best = analysis.best
    marked = next((number for number, row in enumerate(rows) if row is best), None)
    return Table(head, lines, marked)


def points_table(analysis: Analysis) -> Table:
    """A line for each setting that was repeated with several seeds, the best first."""
    keys, metric = analysis.collection.keys, analysis.goal.metric
    short = short_keys(keys)
    head = [*((short[key], True) for key in keys), ("seeds", True), ("mean", True),
            ("std. deviation", True), ("95% interval of the mean", True)]  # fmt: skip
    lines = []
    for point in analysis.points:
        told = point.estimate
        ends = told.interval and " to ".join(figure_text(metric, end) for end in told.interval)
        without = len(point.rows) - len(point.values)
        lines.append([
            *(value_text(point.best.settings.get(key)) for key in keys),
            f"{told.n} of {len(point.rows)}" if without else str(told.n),
            figure_text(metric, told.mean), figure_text(metric, told.spread), ends or "-",
        ])  # fmt: skip
    return Table(head, lines, 0 if lines else None)


def failures(analysis: Analysis) -> list[tuple[str, str, str]]:
    """(names, status, why) of the runs that did not finish; those of one fate together."""
    fates: dict[tuple[str, str], list[str]] = {}
    for row in analysis.collection.rows:
        if row.status != FINISHED:
            seed = f" seed={row.seed}" if analysis.seeded else ""
            why = row.error or WHY.get(row.status, "the reason was not noted")
            fates.setdefault((row.status, why), []).append(f"{analysis.name(row)}{seed}")
    return [(_in_short(names), status, why) for (status, why), names in fates.items()]


def pruning(analysis: Analysis) -> str | None:
    """What stopping hopeless runs has saved; None when none was."""
    rows = analysis.collection.rows
    pruned = [row for row in rows if row.status == "PRUNED"]
    known = [row.figures for row in rows if {"steps", "planned_steps"} <= row.figures.keys()]
    planned = sum(figures["planned_steps"] for figures in known)
    saved = planned - sum(figures["steps"] for figures in known)
    if not pruned or saved <= 0:
        return None
    return (f"{len(pruned)} of {counted(len(rows), 'run')} were pruned: {saved:,.0f} of "
            f"{planned:,.0f} steps were not taken.")  # fmt: skip


def _in_short(names: Sequence[str]) -> str:
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"{'; '.join(names[:MOST_NAMES])}{more}"


WHY = {
    "NOT RUN": "the sweep ended before",
    "UNFINISHED": "still at work, or killed: the sweep's command line, or mlx-ft resume, goes on",
    "KILLED": "stopped: the sweep's command line, or mlx-ft resume, goes on with it",
}


def terminal(analysis: Analysis) -> str:
    """Tables, verdict, failures and notes as text."""
    goal = analysis.goal
    parts = [_aligned(runs_table(analysis))]
    if analysis.best is not None:
        way = "lowest" if goal.low else "highest"
        parts[0] += f"\n* best ({way} {figure_label(goal.metric)})"
    if analysis.repeated:
        parts.append(_aligned(points_table(analysis)))
    parts.append(analysis.verdict)
    lost = [f"{name}: {status}: {first_line(why)}" for name, status, why in failures(analysis)]
    if lost:
        count = sum(row.status != FINISHED for row in analysis.collection.rows)
        parts.append("\n".join([f"{counted(count, 'run')} without a result:", *lost]))
    if saved := pruning(analysis):
        parts.append(saved)
    if notes := analysis.collection.notes:
        parts.append("\n".join(f"Note: {first_line(note)}" for note in notes))
    return "\n\n".join(parts)


def csv_text(analysis: Analysis) -> str:
    """Every run with all digits; the columns are those of a sweep's `trials.csv`."""
    collection = analysis.collection
    seeds = ["seed"] if analysis.seeded else []
    keys = [*collection.keys, *seeds]
    head = [*keys, "status", "objective", *CSV_FIGURES, "run_id", "run_dir", "error"]
    lines = [
        [
            *(_exact(row.settings.get(key, "")) for key in keys),
            row.status,
            *(_digits(row.figures.get(key)) for key in (analysis.goal.metric,
                                                        *CSV_FIGURES.values())),
            row.run_id or "",
            str(row.folder or ""),
            row.error or "",
        ]
        for row in collection.rows
    ]  # fmt: skip
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows([head, *lines])
    return text.getvalue()


def markdown(analysis: Analysis) -> str:
    """The verdict and the tables, the best line in bold."""
    parts = [f"# {_cell(analysis.collection.title)}", _cell(analysis.verdict)]
    parts += [_markdown(points_table(analysis))] if analysis.repeated else []
    parts.append(_markdown(runs_table(analysis)))
    lost = [f"- {_cell(name)}: {status}: {_cell(first_line(why))}"
            for name, status, why in failures(analysis)]  # fmt: skip
    notes = [f"- {_cell(first_line(note))}" for note in analysis.collection.notes]
    parts += ["\n".join(lines) for lines in (lost, notes) if lines]
    return "\n\n".join(parts) + "\n"


def first_line(text: str) -> str:
    """One line of at most 200 characters, all of which can be shown."""
    return printable(" ".join(text.strip().partition("\n")[0].split()), 200)


def _figures(analysis: Analysis) -> list[str]:
    """Columns of figures: what is compared by first, then those that any run has."""
    some = [key for key in SHOWN if any(key in row.figures for row in analysis.collection.rows)]
    return [*dict.fromkeys([analysis.goal.metric, *some])]


def _place(row: Row, analysis: Analysis) -> str:
    """A run's folder, within that of its sweep or the current one; else MLflow's id."""
    if row.folder is None:
        return row.run_id or "-"
    there, sweep = row.folder.absolute(), analysis.collection.folder
    for here in (Path.cwd() if sweep is None else sweep.absolute(), Path.cwd()):
        if there.is_relative_to(here):
            return str(there.relative_to(here))
    return str(there)


def _digits(value: float | None) -> str:
    return "" if value is None else f"{value:.6g}"


def _exact(value: Any) -> str:
    return json.dumps(value) if isinstance(value, (bool, list, dict, type(None))) else str(value)


def _aligned(table: Table) -> str:
    lines = [["", *(title for title, _ in table.head)]]
    lines += [["*" if number == table.marked else " ", *line]
              for number, line in enumerate(table.lines)]  # fmt: skip
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def _markdown(table: Table) -> str:
    lines = [[title for title, _ in table.head],
             ["---:" if number else "---" for _, number in table.head]]  # fmt: skip
    for number, line in enumerate(table.lines):
        cells = [_cell(text) for text in line]
        lines.append([f"**{cell}**" for cell in cells] if number == table.marked else cells)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that Markdown does not take for anything else."""
    for letter in "\\|<>*_`[]":
        text = text.replace(letter, f"\\{letter}")
    return text.replace("\n", " ")
