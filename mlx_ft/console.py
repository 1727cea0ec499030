"""What a run shows: a live bar on a terminal, plain lines in a log, a table at the end."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from mlx_ft.evaluation import Answer
from mlx_ft.memory import Usage
from mlx_ft.trainer import StepResult

logger = logging.getLogger("mlx_ft.progress")


class ConsoleHandler(logging.Handler):
    """Messages on stderr, above the live bar if there is one.

    The progress lines are for logs; on a terminal the bar says the same.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message."""
        if record.name == logger.name and self.console.is_terminal:
            return
        prefix = "" if record.levelno <= logging.INFO else f"{record.levelname.lower()}: "
        style = {logging.WARNING: "yellow", logging.ERROR: "red"}.get(record.levelno)
        try:
            self.console.print(
                f"{prefix}{record.getMessage()}",
                style=style,
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            if record.exc_info and record.exc_info[1]:
                self.console.print(f"  {record.exc_info[1]!r}", markup=False)
        except (OSError, RuntimeError, ValueError):  # a closed terminal must not end the training
            pass


class Display(AbstractContextManager["Display"]):
    """Progress of a run: every step to the bar, every `log_every` steps to the log."""

    def __init__(self, console: Console, total_steps: int, log_every: int) -> None:
        self.total_steps = total_steps
        self.log_every = log_every
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[figures]}"),
            TimeRemainingColumn(compact=True),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self._task: TaskID | None = None
        self._seconds = 0.0

    def __enter__(self) -> Display:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def phase(self, description: str, total: int) -> None:
        """Begin something with `total` items."""
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, figures="")

    def advance(self, figures: str = "") -> None:
        """One item is done."""
        if self._task is not None:
            self._progress.update(self._task, advance=1, figures=figures)

    def training(self, step: int) -> None:
        """Back to the training bar, at `step`."""
        self.phase("training", self.total_steps)
        if self._task is not None:
            self._progress.update(self._task, completed=step)

    def step(self, result: StepResult, usage: Usage) -> None:
        """One optimizer step is done."""
        self._seconds += result.seconds
        figures = (
            f"loss {result.loss:.4f}  lr {result.learning_rate:.2e}  "
            f"{result.tokens / result.seconds:,.0f} tok/s  peak {usage.peak:.2f} GB"
        )
        self.advance(figures)
        if result.step % self.log_every == 0 or result.step in (1, self.total_steps):
            left = (self.total_steps - result.step) * self._seconds / result.step
            logger.info(
                "step %d/%d  epoch %.2f  %s  grad %.3f  left %s",
                result.step,
                self.total_steps,
                result.epoch,
                figures,
                result.grad_norm,
                duration(left),
            )


def duration(seconds: float) -> str:
    """`1:02:03`; hours go on counting past a day."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}"


def configure_logging(level: str, console: Console | None = None) -> Console:
    """Send the project's messages to stderr from `level` on; returns the console used."""
    console = console or Console(file=sys.stderr, soft_wrap=True)
    root = logging.getLogger("mlx_ft")
    for handler in list(root.handlers):
        if isinstance(handler, ConsoleHandler):
            root.removeHandler(handler)
    root.addHandler(ConsoleHandler(console))
    root.setLevel(level.upper())
    root.propagate = False
    return console


def show_result(
    summary: Mapping[str, Any], samples: Sequence[tuple[Answer | None, Answer]], run_dir: str
) -> None:
    """The table at the end, sample answers side by side, and what to do next; on stdout."""
    console = Console(soft_wrap=False)
    table = Table(title=None, box=None, pad_edge=False, header_style="bold")
    for name, justify in (("", "left"), ("before", "right"), ("after", "right")):
        table.add_column(name, justify=justify)  # type: ignore[arg-type]
    table.add_row("validation loss", *_pair(summary, "val_loss", "{:.4f}"))
    table.add_row("perplexity", *_pair(summary, "perplexity", "{:.3f}"))
    table.add_row("task accuracy", *_pair(summary, "accuracy", "{:.1%}"))
    console.print()
    console.print(table)
    if samples:
        console.print(_side_by_side(samples))
    console.print(
        f"\n{summary['steps']} steps, {summary['tokens']:,} tokens "
        f"({summary['tokens_per_second']:,.0f} per second), "
        f"{summary['wall_seconds']:.0f} s, peak {summary['peak_memory_gb']:.2f} GB, "
        f"{summary['trainable_parameters']:,} of {summary['total_parameters']:,} parameters",
        highlight=False,
    )
    question = samples[0][1].question if samples else "..."
    _next_commands(console, run_dir, question)


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


def _next_commands(console: Console, run_dir: str, question: str) -> None:
    first_line = next(iter(question.splitlines()), "...")
    for what, command in (
        ("use it", f"mlx-ft generate --run {shlex.quote(run_dir)} {shlex.quote(first_line)}"),
        ("look at it", "mlx-ft ui"),
        ("change it", "python train.py lora.rank=32"),
    ):
        console.print(f"{what:<11} {command}", highlight=False, markup=False, soft_wrap=True)
