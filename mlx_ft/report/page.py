"""The comparison as one HTML page that needs nothing else: no scripts or files from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_ft.plural import counted
from mlx_ft.report.analyse import Analysis
from mlx_ft.report.axes import is_number
from mlx_ft.report.figures import panels
from mlx_ft.report.labels import (
    figure_label,
    figure_text,
    statuses,
    value_text,
)
from mlx_ft.report.read import Row, told_apart
from mlx_ft.report.table import failures, points_table, pruning, runs_table

MOST_ANSWERS = 8
LONGEST_ANSWER = 700  # characters
MOST_VALUES = 8  # of a setting, in the line that says what varies
SETTINGS = ("model.path", "data.path", "optimizer.name", "train.max_steps", "train.epochs",
            "lora.rank", "optimizer.learning_rate", "device")  # fmt: skip


@dataclass(frozen=True)
class Answer:
    """What one run answered. color: of the run in the figures."""

    name: str
    color: str
    text: str
    correct: bool | None


@dataclass(frozen=True)
class Sample:
    """A test question, what was expected, and the answers of the base model and the best runs."""

    question: str
    expected: str
    answers: Sequence[Answer]


def page(analysis: Analysis, best_file: str | None = None) -> str:
    """The whole page. best_file: the file of the best configuration, if it is written."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    here = Path(__file__).parent
    script = (here / "sort.js").read_text("utf-8")
    environment = Environment(
        loader=FileSystemLoader(here),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    collection = analysis.collection
    samples, asked = sample_answers(analysis)
    figures = panels(analysis)
    return environment.get_template("page.html.jinja").render(
        title=collection.title,
        script=script,
        # The one script that a browser may run here: nothing in an answer is another one.
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        runs=f"{counted(len(collection.rows), 'run')}: {statuses(collection.rows)}",
        varied=varied(analysis),
        fixed=_fixed(collection.rows),
        tiles=_tiles(analysis),
        verdict=analysis.verdict,
        real=None if analysis.gap is None else analysis.gap.is_real,
        commands=_commands(analysis, best_file),
        points=points_table(analysis) if analysis.repeated else None,
        table=runs_table(analysis),
        metric=figure_label(analysis.goal.metric),
        panels=[panel for panel in figures if panel.svg],
        missing=[panel for panel in figures if not panel.svg],
        failures=failures(analysis),
        pruning=pruning(analysis),
        notes=collection.notes,
        samples=samples,
        asked=asked,
        best_config=analysis.best.config if analysis.best else None,
        versions=_versions(collection.rows),
        version=metadata.version("mlx-ft"),
        made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def varied(analysis: Analysis) -> list[tuple[str, str]]:
    """Each setting that varies, with its values."""
    found = []
    keys = [*analysis.collection.keys, *(["seed"] if analysis.seeded else [])]
    for key in keys:
        values = {told_apart(value): value for row in analysis.collection.rows
                  if (value := row.settings.get(key)) is not None}  # fmt: skip
        found.append((key, _in_short([*values.values()])))
    return found


def _in_short(values: Sequence[Any]) -> str:
    """All values, or the ends of many."""
    if len(values) <= MOST_VALUES:
        return ", ".join(map(value_text, values))
    if all(map(is_number, values)):
        return f"{value_text(min(values))} to {value_text(max(values))}, {len(values)} values"
    some = ", ".join(map(value_text, values[:MOST_VALUES]))
    return f"{some} and {len(values) - MOST_VALUES} more"


def _fixed(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Settings that all runs have alike and that say what was done."""
    found: dict[str, str] = {}
    for key in SETTINGS:
        values = {value_text(row.settings[key]) for row in rows if key in row.settings}
        if len(values) == 1 and (value := values.pop()) != "null":
            found[key] = value
    if "train.max_steps" in found:  # which wins over the other
        found.pop("train.epochs", None)
    return [*found.items()]


def _tiles(analysis: Analysis) -> list[tuple[str, str, str]]:
    """(what, number, remark) of the best run, and of all."""
    best, goal = analysis.best, analysis.goal
    if best is None:
        return []
    before = best.figures.get(goal.metric.replace("_after", "_before"))
    first = analysis.points[0].estimate
    spread = f" ± {figure_text(goal.metric, first.spread)}" if first.spread is not None else ""
    remark = f"mean of {counted(first.n, 'seed')}{spread}" if analysis.repeated else ""
    if before is not None and goal.metric.endswith("_after"):
        remark = f"{remark}{'; ' if remark else ''}base model {figure_text(goal.metric, before)}"
    tiles = [(f"best {figure_label(goal.metric)}", figure_text(goal.metric, first.mean), remark)]
    for key in ("val_loss_after", "accuracy_after", "wall_seconds", "peak_memory_gb"):
        if key != goal.metric and key in best.figures:
            tiles.append(
                (figure_label(key), figure_text(key, best.figures[key]), "of the best run")
            )
    seconds = sum(row.figures.get("wall_seconds", 0) for row in analysis.collection.rows)
    tiles.append(("all runs", _duration(seconds), counted(len(analysis.collection.rows), "run")))
    return tiles


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _commands(analysis: Analysis, best_file: str | None) -> list[tuple[str, str]]:
    """What can be done next: (words, command)."""
    best, found = analysis.best, list[tuple[str, str]]()
    if best is not None and best.folder is not None:
        folder = shlex.quote(str(best.folder))
        found.append(("ask the best run", f'mlx-ft generate --run {folder} "..."'))
        if best_file is not None:
            place = Path(best_file)
            found.insert(0, ("run the best configuration again",
                             f"python train.py --config-dir {shlex.quote(str(place.parent))} "
                             f"--config-name {place.stem}"))  # fmt: skip
    return [*found, ("all runs in MLflow", "mlx-ft ui")]


def sample_answers(analysis: Analysis) -> tuple[list[Sample], int]:
    """Questions with the best runs' answers, and how many questions they have in all.

    Those first of which the best runs got some right and some wrong, then those that all got
    wrong, then the rest: each in the order of the test rows.
    """
    sheets = [{str(row.get("question")): row for row in run.samples} for run in analysis.top]
    questions = [*dict.fromkeys(question for sheet in sheets for question in sheet)]
    ranked = sorted(questions, key=lambda q: _interest([s[q] for s in sheets if q in s]))
    found = []
    for question in ranked[:MOST_ANSWERS]:
        first = next(sheet[question] for sheet in sheets if question in sheet)
        judged = first.get("before") is not None
        answers = [_answer("base model", "var(--muted)", first, "before")] if judged else []
        answers += [
            _answer(analysis.name(run), f"var(--{('first', 'second', 'third')[place]})",
                    sheet[question], "after")
            for place, (run, sheet) in enumerate(zip(analysis.top, sheets, strict=True))
            if question in sheet
        ]  # fmt: skip
        found.append(Sample(_cut(question), _cut(first.get("expected")), answers))
    return found, len(questions)


def _interest(answers: Sequence[Mapping[str, Any]]) -> int:
    right = [answer.get("correct_after") for answer in answers]
    if True in right and False in right:
        return 0
    return 1 if False in right else 2


def _answer(name: str, color: str, row: Mapping[str, Any], when: str) -> Answer:
    correct = row.get(f"correct_{when}")
    return Answer(name, color, _cut(row.get(when)), correct if isinstance(correct, bool) else None)


def _cut(value: Any) -> str:
    text = "" if value is None else str(value)
    if len(text) <= LONGEST_ANSWER:
        return text
    return f"{text[:LONGEST_ANSWER]}… ({len(text):,} characters in all)"


def _versions(rows: Sequence[Row]) -> list[tuple[str, str]]:
    """Each version with its number, or its numbers where runs differ."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        versions = row.origin.get("versions")
        for name, number in versions.items() if isinstance(versions, Mapping) else ():
            found.setdefault(str(name), {})[str(number)] = None
    return [(name, ", ".join(numbers)) for name, numbers in found.items()]
