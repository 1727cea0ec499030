"""Ctrl-C and SIGTERM: the step in hand is finished, what was learned is saved."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from types import FrameType, TracebackType
from typing import Any, TypeVar

from mlx_ft.errors import Interrupted

T = TypeVar("T")
logger = logging.getLogger(__name__)


class StopSignal(AbstractContextManager["StopSignal"]):
    """While entered, the first signal is noted, the second ends the process at once.

    Work that can be given up calls `check`, which raises Interrupted. Outside the main thread,
    where Python allows no handlers, it does nothing.
    """

    SIGNALS = (signal.SIGINT, signal.SIGTERM)

    def __init__(self) -> None:
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            self._previous = {s: signal.signal(s, self._note) for s in self.SIGNALS}
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            os._exit(128 + number)
        self.number = number
        logger.warning("stopping: the step in hand is finished first; again to leave at once")

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.number is not None:
            name = signal.Signals(self.number).name
            raise Interrupted(f"stopped by {name}", self.number)

    def watch(self, items: Iterable[T]) -> Iterator[T]:
        """The same items, with a check before each."""
        for item in items:
            self.check()
            yield item
