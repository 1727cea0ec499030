"""What a run says when it has ended: figures, sample answers, and what to do next."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.table import Column, Table
from rich.text import Text

from mlx_ft.config.schema import Config, DataConfig, ModelConfig, PathsConfig
from mlx_ft.evaluation import Answer
from mlx_ft.plural import counted
from mlx_ft.runfolder import RunFolder, checkpoint_folders, step_of

QUESTION = "your question"
SHORT_LINES = 3  # of a column of sample answers; with more it is hard to read
SHOWN_LETTERS = 1000  # of a text; samples.jsonl has all


def show_result(
    summary: Mapping[str, Any],
    samples: Sequence[tuple[Answer | None, Answer]],
    run_dir: str,
    config: Config,
) -> None:
    """The table at the end, sample answers side by side, and what to do next; on stdout."""
    console = Console(soft_wrap=False)
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for name, justify in (("", "left"), ("before", "right"), ("after", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row("validation loss", *_pair(summary, "val_loss", "{:.4f}"))
    table.add_row("perplexity", *_pair(summary, "perplexity", "{:.3f}"))
    table.add_row("task accuracy", *_pair(summary, "accuracy", "{:.1%}"))
    lines = [
        f"{counted(summary['steps'], 'step')}, {summary['tokens']:,} tokens "
        f"({summary['tokens_per_second']:,.0f} per second), "
        f"{summary['wall_seconds']:.0f} s, peak {summary['peak_memory_gb']:.2f} GB, "
        f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,} parameters",
        _next_command("use it", _generate(run_dir, samples[0][1].question if samples else "")),
    ]
    if config.tracking.backend != "none":
        lines.append(_next_command("look at it", _look(config)))
    lines.append(_next_command("change it", _change(run_dir, config)))
    console.print()
    console.print(table)
    for reason in _not_measured(summary, config):
        console.print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    if samples:
        console.print(side_by_side(samples, console.width))
    console.print()
    for line in lines:  # never wrapped: a command is copied whole
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def left_behind(
    summary: Mapping[str, Any], folder: RunFolder, total_steps: int, *, best: bool
) -> str:
    """What a run that did not finish has saved, and the commands that use it and go on.

    best: `checkpoint.best`, with which the adapter is that of the best validation.
    """
    place, steps = shown(folder.path), summary["steps"]
    if not steps:
        return f"Nothing was trained: no step was done. Run folder: {place}"
    lines = [f"{steps} of {total_steps} steps were done"]
    if summary["adapter_path"] is None or not folder.adapter.is_dir():
        lines[0] += f"; no adapter could be saved. Run folder: {place}"
    else:
        step = (best and summary["best_step"]) or steps
        which = f"step {step}" if step == steps else f"step {step}, the best validated one,"
        lines[0] += f". The adapter of {which} is saved in {place}/adapter"
        lines.append(_next_command("use it", _generate(place)))
    saved = checkpoint_folders(folder.checkpoints)
    if saved:
        lines.append(_next_command("go on", f"mlx-ft resume {shlex.quote(place)}"))
        step = step_of(saved[-1])
        lines[-1] += "" if step == steps else f"  (from the checkpoint of step {step})"
    return "\n".join(lines)


def finished_already(summary: Mapping[str, Any], run_dir: Path, *, stopped_early: bool) -> str:
    """What to say of a run that is asked to go on and has nothing left to do."""
    place, steps = shown(run_dir), _steps(summary, run_dir)
    how, more = "finished", f" train.max_steps={2 * steps}"
    if summary.get("pruned"):
        how, more = "pruned", ""
    elif stopped_early:
        more = " train.early_stopping_patience=null"
    longer = f"mlx-ft resume {shlex.quote(place)}{more}"
    return "\n".join([
        f"{place} is {how}: {counted(steps, 'step')}. Nothing was done.",
        _next_command("use it", _generate(place)),
        _next_command("go on", longer),
    ])  # fmt: skip


def _steps(summary: Mapping[str, Any], run_dir: Path) -> int:
    """How far a finished run came: as it says, or else as its newest checkpoint does."""
    if isinstance(steps := summary.get("steps"), int):
        return steps
    return max(map(step_of, checkpoint_folders(run_dir / "checkpoints")), default=0)


def shown(path: Path) -> str:
    """A path as short as it can be given here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _generate(run_dir: str, question: str = "") -> str:
    first_line = next(iter(question.splitlines()), QUESTION)
    return f"mlx-ft generate --run {shlex.quote(run_dir)} {shlex.quote(first_line)}"


def _look(config: Config) -> str:
    """`mlx-ft ui`, where this run's own MLflow is."""
    given = [("tracking.uri", config.tracking.uri)]
    if config.tracking.uri is None and "MLX_FT_MLRUNS" not in os.environ:
        given = [("paths.tracking_dir", config.paths.tracking_dir)]
    usual = (None, PathsConfig().tracking_dir)
    words = [f"{key}={value}" for key, value in given if value not in usual]
    return shlex.join(["mlx-ft", "ui", *words])


def _change(run_dir: str, config: Config) -> str:
    """The same run with one change; the main job needs no folder to be named."""
    own = (config.data.path, config.model.path) == (DataConfig().path, ModelConfig().path)
    if own and config.train.max_steps is None:
        return "python train.py lora.rank=32"
    folder = shlex.quote(run_dir)
    return f"python train.py --config-dir {folder} --config-name config lora.rank=32"


def _next_command(what: str, command: str) -> str:
    return f"{what:<11} {command}"


def _not_measured(summary: Mapping[str, Any], config: Config) -> list[str]:
    """Why figures of the table are missing."""
    reasons = []
    if summary["val_loss_after"] is None:
        reasons.append("no validation loss: there are no validation rows")
    if config.data.metric == "none":
        reasons.append("no task accuracy: data.metric=none")
    elif summary["accuracy_after"] is None:
        reasons.append("no task accuracy: there are no test rows")
    if not config.eval.before:
        reasons.append("nothing measured before the training: eval.before=false")
    return reasons


def _pair(summary: Mapping[str, Any], name: str, form: str) -> list[str]:
    values = [summary.get(f"{name}_before"), summary.get(f"{name}_after")]
    return ["-" if value is None else form.format(value) for value in values]


def side_by_side(
    samples: Sequence[tuple[Answer | None, Answer]],
    width: int,
    models: tuple[str, str] = ("before", "after"),
) -> Group:
    """Short texts beside one another; others, which columns would shred, below one another.

    models: what the two answers are headed by.
    """
    names = ("question", "expected", *models)
    rows = [
        [("", _plain(after.question)), ("", _plain(after.reference)), _judged(before),
         _judged(after)]
        for before, after in samples
    ]  # fmt: skip
    most = SHORT_LINES * (width // len(names) - 3)  # a column has a border and two spaces
    if all("\n" not in text and len(text) <= most for row in rows for _, text in row):
        table = Table(show_lines=True, header_style="bold")
        for name in names:
            table.add_column(Text(name), overflow="fold", ratio=1)
        for row in rows:
            table.add_row(*(Text(f"{mark} {text}".strip()) for mark, text in row))
        return Group(table)
    blocks: list[RenderableType] = []
    for number, row in enumerate(rows, 1):
        block = Table(
            Column("sample", no_wrap=True), Column(f"{number} of {len(rows)}", overflow="fold"),
            box=None, pad_edge=False, header_style="bold",
        )  # fmt: skip
        for name, (mark, text) in zip(names, row, strict=True):
            block.add_row(Text(f"{name} {mark}"), Text(text))
        blocks += [Text(), block]
    return Group(*blocks)


def _judged(answer: Answer | None) -> tuple[str, str]:
    """The mark, and the answer."""
    if answer is None:
        return "", "-"
    return "✓" if answer.correct else "✗", _plain(answer.prediction)


def _plain(text: str) -> str:
    """A text for a terminal: none of it moves the cursor, and what is left out is counted."""
    shown = re.sub(r"[^\S\n\t ]|[\x00-\x08\x0e-\x1f\x7f-\x9f]", " ", text.rstrip().lstrip("\n"))
    if (more := len(shown) - SHOWN_LETTERS) > 0:
        shown = f"{shown[:SHOWN_LETTERS]} [... {more:,} more characters]"
    return shown
