"""Ctrl-C and SIGTERM: the step in hand is finished, what was learned is saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType, TracebackType
from typing import Any

from mlx_ft.errors import Interrupted

TWICE = 1.0  # seconds within which `timeout` and wrappers send one signal both to us and our group


class StopSignal(AbstractContextManager["StopSignal"]):
    """While entered, the first signal is noted, another one a second later ends the process.

    Between two steps `check` raises Interrupted; within `at_once` the signal itself does.
    Outside the main thread, where Python allows no handlers, all this does nothing.
    noted: whether any of this process has noted a signal, ever.
    """

    noted = False
    SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

    def __init__(self) -> None:
        self.number: int | None = None
        self._at_once = False
        self._since = 0.0
        self._previous: dict[int, Any] = {}
        self._hook: Callable[[sys.UnraisableHookArgs], object] | None = None

    def __enter__(self) -> StopSignal:
        if threading.current_thread() is threading.main_thread():
            # An ignored signal stays ignored: that is how nohup works.
            wanted = [s for s in self.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._previous = {s: signal.signal(s, self._note) for s in wanted}
            self._hook, sys.unraisablehook = sys.unraisablehook, self._lost
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        if self._hook is not None and sys.unraisablehook == self._lost:
            sys.unraisablehook = self._hook

    def _lost(self, lost: sys.UnraisableHookArgs) -> None:
        """A signal inside a destructor or a weakref's callback: `at_once` raises it at its end."""
        if not isinstance(lost.exc_value, Interrupted):
            (self._hook or sys.__unraisablehook__)(lost)

    def _note(self, number: int, _: FrameType | None) -> None:
        if self.number is not None:
            if time.monotonic() - self._since > TWICE:
                os._exit(128 + number)
            return
        self.number, self._since, StopSignal.noted = number, time.monotonic(), True
        if self._at_once:
            self.check()
        # Not through logging: the signal may have come in the middle of a write.
        with suppress(OSError):
            os.write(2, b"\nstopping: the step in hand is finished first; again: at once\n")

    def tell(self, number: int) -> None:
        """Note a signal that another one has handled, as if it had come here. Raises Interrupted.

        Only `at_once`, and only when called in the run that is at it.
        """
        self.number = number
        if self._at_once:
            self.check()

    def check(self) -> None:
        """Raise Interrupted if a signal came."""
        if self.number is not None:
            name = signal.Signals(self.number).name
            raise Interrupted(f"stopped by {name}", self.number)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Work that changes nothing, such as an evaluation: a signal ends it where it is."""
        self.check()
        self._at_once = True
        try:
            yield
        except Exception:
            self.check()  # whatever other code has made of it
            raise
        finally:
            self._at_once = False
        self.check()  # what was raised inside a C callback is lost


def die_quietly() -> None:
    """Ctrl-C ends the process at once and without a traceback, outside of what handles it.

    For a program's first line: nothing is written yet while it imports, nor while it exits.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored, as by nohup
        signal.signal(signal.SIGINT, signal.SIG_DFL)
