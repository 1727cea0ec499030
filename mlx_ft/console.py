"""What a run shows while it runs: a live bar on a terminal, plain lines in a log."""

from __future__ import annotations

import logging
import sys
import threading
import time
from contextlib import AbstractContextManager
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from mlx_ft.memory import Usage
from mlx_ft.trainer import StepResult

logger = logging.getLogger("mlx_ft.progress")

TICK_SECONDS = 15.0
CHOSEN = "mlx_ft.memory"  # says which profile the machine gets


class ConsoleHandler(logging.Handler):
    """Messages on stderr, above the live bar if there is one.

    The progress lines are for logs; on a terminal the bar says the same. What was chosen for
    the machine waits for the next message: it is nothing to read before a mistake is told.
    """

    def __init__(self, console: Console) -> None:
        super().__init__()
        self.console = console
        self._waiting: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Print one message, after those that waited for it."""
        if record.name == logger.name and self.console.is_terminal:
            return
        self._waiting.append(record)
        if record.name == CHOSEN and record.levelno <= logging.INFO:
            return
        waiting, self._waiting = self._waiting, []
        for earlier in waiting:
            self._print(earlier)

    def _print(self, record: logging.LogRecord) -> None:
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
    """Progress of a run: every step to the bar, every `log_every` steps to the log.

    Between two steps, while rows are validated or answered, the log gets a line every
    `tick_seconds`: answers come in batches, so only a clock says that it goes on. What is over
    before, and what has one item only, gets none.
    """

    def __init__(
        self,
        console: Console,
        total_steps: int,
        log_every: int,
        tick_seconds: float = TICK_SECONDS,
    ) -> None:
        self.total_steps = total_steps
        self.log_every = log_every
        self.tick_seconds = tick_seconds
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
        self._seconds, self._steps = 0.0, 0  # of this process: a run may have had others
        self._between: tuple[str, int, float] | None = None  # what, of how many, since when
        self._count = 0
        self._left = threading.Event()
        self._ticker = threading.Thread(target=self._tick, daemon=True)

    def __enter__(self) -> Display:
        self._progress.start()
        self._ticker.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._left.set()
        self._ticker.join()
        self._progress.stop()

    def _tick(self) -> None:
        while not self._left.wait(self.tick_seconds):
            if self._between is None:
                continue
            what, total, since = self._between
            spent = time.monotonic() - since
            if total > 1 and spent >= self.tick_seconds:  # the clock ticks through the phases
                logger.info("%s: %d of %d done in %s", what, self._count, total, duration(spent))

    def phase(self, description: str, total: int) -> None:
        """Begin something with `total` items."""
        self._count = 0
        self._between = (description, total, time.monotonic())
        if self._task is not None:
            self._progress.remove_task(self._task)
        self._task = self._progress.add_task(description, total=total, figures="")

    def advance(self, figures: str = "") -> None:
        """One item is done."""
        self._count += 1
        if self._task is not None:
            self._progress.update(self._task, advance=1, figures=figures)

    def training(self, step: int) -> None:
        """Back to the training bar, at `step`."""
        self.phase("training", self.total_steps)
        self._between = None  # its steps have lines of their own
        if self._task is not None:
            self._progress.update(self._task, completed=step)

    def step(self, result: StepResult, usage: Usage) -> None:
        """One optimizer step is done."""
        self._seconds, self._steps = self._seconds + result.seconds, self._steps + 1
        figures = (
            f"loss {result.loss:.4f}  lr {result.learning_rate:.2e}  "
            f"{result.tokens / result.seconds:,.0f} tok/s  peak {usage.peak:.2f} GB"
        )
        self.advance(figures)
        if result.step % self.log_every == 0 or result.step in (1, self.total_steps):
            left = (self.total_steps - result.step) * self._seconds / self._steps
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
