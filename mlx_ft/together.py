"""What a run knows of the others that train beside it in this process (`sweep.together`).

Each of them is a coroutine. It goes on by itself until it wants a gradient; that is asked for
here, and computed for all of them at once.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ft.activations import Store
from mlx_ft.interrupt import StopSignal

_SEAT: ContextVar[Seat | None] = ContextVar("seat", default=None)


class TheirStop(StopSignal):
    """Told of a signal by whoever handles it for all runs of the process."""

    def __enter__(self) -> TheirStop:
        return self  # without handlers of its own, so that there are none to put back


@dataclass
class Seat:
    """One run's place among `count`. ask: what it wants computed -> the answer, when it is there.

    stores: activations that were opened by one of them, for all. waited: seconds until the others
    wanted something too.
    """

    count: int
    ask: Callable[[Any], Any]
    stores: dict[Path, Store]
    stop: TheirStop = field(default_factory=TheirStop)
    waited: float = 0.0

    def take(self) -> None:
        """From here on, in this coroutine, `seat` is this one."""
        _SEAT.set(self)

    def store(self, folder: Path, limit: int) -> Store:
        """The store in `folder`, which stays open until all are done."""
        if folder not in self.stores:
            self.stores[folder] = Store(folder, limit)
        return self.stores[folder].for_another()


def waited() -> float:
    """Seconds that this run has stood still for others so far."""
    own = _SEAT.get()
    return 0.0 if own is None else own.waited


def seat() -> Seat | None:
    """Of the run that asks; None when it trains alone."""
    return _SEAT.get()
