"""Several trials in one pass: each is a coroutine of this process, all share one base model.

A trial runs as it always does until it wants a gradient. Then the next one runs, and when all of
them want one, these are computed together (mlx_ft/joint.py).
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenlet import getcurrent, greenlet
from hydra.core.hydra_config import HydraConfig

from mlx_ft.activations import Store
from mlx_ft.sweeper.engines import Answer
from mlx_ft.sweeper.worker import STOP, Job, attempt
from mlx_ft.together import Seat

LOGGER = logging.getLogger("mlx_ft")


class Together:
    """Runs `count` jobs at a time; one that has ended makes room for the next."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._trials: list[_Trial] = []
        self._refused: set[Any] = set()

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """See Engine."""
        waiting = deque(jobs)
        stores: dict[Path, Store] = {}
        try:
            while waiting or self._trials:
                while waiting and len(self._trials) < self._count:
                    self._trials.append(_Trial(waiting.popleft(), self._count, stores))
                for trial in [*self._trials]:
                    if trial.wish is None and trial.goes_on():
                        self._trials.remove(trial)
                        yield trial.job.number, trial.row
                if self._trials and all(trial.wish is not None for trial in self._trials):
                    self._compute()
        finally:
            for trial in self._trials:
                trial.break_off()
            for store in stores.values():
                store.close()

    def _compute(self) -> None:
        from mlx_ft.joint import compute  # MLX is there by now

        started = time.perf_counter()
        wishes = [trial.wish for trial in self._trials]
        for trial, answer in zip(self._trials, compute(wishes, self._refused), strict=True):
            trial.wish, trial.answer = None, answer
        for trial in self._trials:
            trial.took = time.perf_counter() - started

    def stop(self) -> None:
        """See Engine. Raises Interrupted in a trial that is evaluating."""
        current = getcurrent()
        for trial in self._trials:
            if trial.coroutine is not current:
                trial.seat.stop.number = signal.SIGINT
        for trial in self._trials:
            if trial.coroutine is current:
                trial.seat.stop.tell(signal.SIGINT)


class _Trial:
    """A job, the coroutine that it runs in, and what it has put in its process's place.

    wish: what it wants computed; answer: what came of its last wish, and took: in how many seconds.
    row: how it ended.
    """

    def __init__(self, job: Job, count: int, stores: dict[Path, Store]) -> None:
        self.job = job
        self.seat = Seat(count, self._ask, stores)
        self.coroutine = greenlet(self._run)
        self.wish: Any = None
        self.took = 0.0
        self.answer: Any = None
        self.row: dict[str, Any] = {}
        job.log.parent.mkdir(parents=True, exist_ok=True)
        self._log = job.log.open("a", buffering=1)
        self._own: _Process = _Process.now()
        self._own.streams = self._log, self._log

    def goes_on(self) -> bool:
        """Let it go on until it wants something; True when it has ended instead."""
        with self._in_its_place():
            self.coroutine.switch()
        return self._has_ended()

    def break_off(self) -> None:
        """End it where it is, as a second Ctrl-C would, but with its records closed."""
        with self._in_its_place(), suppress(KeyboardInterrupt):  # raised here by one not begun
            self.coroutine.throw(KeyboardInterrupt)
        self._has_ended()

    def _has_ended(self) -> bool:
        if self.coroutine.dead:
            self._log.close()
        return bool(self.coroutine.dead)

    @contextmanager
    def _in_its_place(self) -> Iterator[None]:
        ours = _Process.now()
        self._own.restore()
        try:
            yield
        finally:
            self._own = _Process.now()
            ours.restore()

    def _run(self) -> None:
        self.seat.take()
        if (self.job.folder / STOP).exists():
            self.row = {"status": "NOT RUN"}
            return
        self.row = attempt(self.job)

    def _ask(self, wish: Any) -> Any:
        self.wish, asked = wish, time.perf_counter()
        parent = self.coroutine.parent
        assert parent is not None  # the engine
        parent.switch()
        # What the others do before and after the pass is not this one's time.
        self.seat.waited += time.perf_counter() - asked - self.took
        answer, self.answer = self.answer, None
        if isinstance(answer, Exception):
            raise answer
        return answer


@dataclass
class _Process:
    """What a trial changes of its process: where it prints and logs, its environment, Hydra."""

    streams: tuple[Any, Any]
    handlers: list[logging.Handler]
    level: int
    propagate: bool
    environment: dict[str, str]
    hydra: Any

    @classmethod
    def now(cls) -> _Process:
        return cls(
            (sys.stdout, sys.stderr),
            [*LOGGER.handlers],
            LOGGER.level,
            LOGGER.propagate,
            dict(os.environ),
            HydraConfig.instance().cfg,
        )

    def restore(self) -> None:
        sys.stdout, sys.stderr = self.streams
        LOGGER.handlers, LOGGER.propagate = [*self.handlers], self.propagate
        LOGGER.setLevel(self.level)
        for key in os.environ.keys() - self.environment.keys():
            del os.environ[key]
        for key, value in self.environment.items():
            if os.environ.get(key) != value:
                os.environ[key] = value
        HydraConfig.instance().cfg = self.hydra
