"""What a run says when it has ended: figures, sample answers, and what to do next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from mlx_ft.config.schema import Config, DataConfig, ModelConfig
from mlx_ft.evaluation import Answer

QUESTION = "your question"


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
        f"{summary['steps']} steps, {summary['tokens']:,} tokens "
        f"({summary['tokens_per_second']:,.0f} per second), "
        f"{summary['wall_seconds']:.0f} s, peak {summary['peak_memory_gb']:.2f} GB, "
        f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,} parameters",
        _next_command("use it", _generate(run_dir, samples[0][1].question if samples else "")),
    ]
    if config.tracking.backend != "none":
        lines.append(_next_command("look at it", "mlx-ft ui"))
    lines.append(_next_command("change it", _change(run_dir, config)))
    console.print()
    console.print(table)
    for reason in _not_measured(summary, config):
        console.print(f"- {reason}", highlight=False, markup=False, soft_wrap=True)
    if samples:
        console.print(_side_by_side(samples))
    console.print()
    for line in lines:  # never wrapped: a command is copied whole
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def left_behind(summary: Mapping[str, Any], run_dir: Path, total_steps: int, *, best: bool) -> str:
    """What a run that did not finish has saved, and the command that uses it.

    best: `checkpoint.best`, with which the adapter is that of the best validation.
    """
    folder, steps = shown(run_dir), summary["steps"]
    if not steps:
        return f"Nothing was trained: no step was done. Run folder: {folder}"
    done = f"{steps} of {total_steps} steps were done"
    if summary["adapter_path"] is None:
        return f"{done}; no adapter could be saved. Run folder: {folder}"
    step = (best and summary["best_step"]) or steps
    which = f"step {step}" if step == steps else f"step {step}, the best validated one,"
    use = _next_command("use it", _generate(folder))
    return f"{done}. The adapter of {which} is saved in {folder}/adapter\n{use}"


def shown(path: Path) -> str:
    """A path as short as it can be given here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _generate(run_dir: str, question: str = "") -> str:
    first_line = next(iter(question.splitlines()), QUESTION)
    return f"mlx-ft generate --run {shlex.quote(run_dir)} {shlex.quote(first_line)}"


def _change(run_dir: str, config: Config) -> str:
    """The same run with one change; the main job needs no folder to be named."""
    if (config.data.path, config.model.path) == (DataConfig().path, ModelConfig().path):
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


def _side_by_side(samples: Sequence[tuple[Answer | None, Answer]]) -> Table:
    table = Table(show_lines=True, header_style="bold")
    for name in ("question", "expected", "before", "after"):
        table.add_column(name, overflow="fold", ratio=1)
    for before, after in samples:
        cells = [after.question, after.reference, _judged(before), _judged(after)]
        table.add_row(*(_plain(cell) for cell in cells))
    return table


def _judged(answer: Answer | None) -> str:
    if answer is None:
        return "-"
    return f"{'✓' if answer.correct else '✗'} {answer.prediction[:200]}"


def _plain(text: str) -> str:
    from rich.markup import escape

    return escape(text)
