"""A signal to a sweep outside a trial's own loop, where mlx_ft.interrupt does not listen."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from mlx_ft.errors import Interrupted
from mlx_ft.interrupt import StopSignal

INTERRUPTED = 130
LOST_AFTER = 0.5  # seconds after which an interruption that nobody caught is sent again


class Stop(AbstractContextManager["Stop"]):
    """While entered, SIGTERM and SIGHUP end the sweep as Ctrl-C does: by KeyboardInterrupt.

    A signal that was ignored stays ignored, and outside the main thread this does nothing.
    """

    def __init__(self) -> None:
        self._number: int | None = None
        self._raised: int | None = None
        self._later = False
        self._again: threading.Timer | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> Stop:
        if threading.current_thread() is threading.main_thread():
            wanted = [s for s in StopSignal.SIGNALS if signal.getsignal(s) is not signal.SIG_IGN]
            self._previous = {s: signal.signal(s, self._note) for s in wanted}
        return self

    def __exit__(self, *_: object) -> None:
        self._arrived()
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        if not self._later:
            self._raise(number)
        if self._number is not None:
            os._exit(128 + number)
        self._number = number
        # Not through logging: the signal may have come in the middle of a write.
        with suppress(OSError):
            os.write(2, b"\nstopping once the sweep's own run is written; again: at once\n")

    def _raise(self, number: int) -> NoReturn:
        """Raise, and again soon: what is raised inside a finalizer is lost."""
        self._arrived()
        main = threading.main_thread().ident
        assert main is not None
        self._again = threading.Timer(LOST_AFTER, signal.pthread_kill, (main, number))
        self._again.daemon = True
        self._again.start()
        self._raised = number
        _interrupt(number)

    def _arrived(self) -> None:
        if self._again is not None:
            self._again.cancel()
            self._again = None

    def exit_code(self, error: BaseException) -> int | None:
        """Of the sweep that `error` ends; None: it was no signal that ended it.

        Code that is interrupted may raise an error of its own while it clears up.
        """
        if self._raised is not None:
            return 128 + self._raised
        if not isinstance(error, KeyboardInterrupt):
            return None
        return int(getattr(error.__cause__, "exit_code", INTERRUPTED))

    def check(self) -> None:
        """Raise KeyboardInterrupt if a signal came within `later`."""
        if self._number is not None:
            _interrupt(self._number)

    @contextmanager
    def later(self) -> Iterator[None]:
        """What must be done whole: a signal is only noted; a second ends the process at once."""
        self._arrived()
        self._later, self._number = True, None
        try:
            yield
        finally:
            self._later = False


def _interrupt(number: int) -> NoReturn:
    """The cause has the exit code, 128 + number. No Exception: a trial would survive it."""
    name = signal.Signals(number).name
    raise KeyboardInterrupt(f"stopped by {name}") from Interrupted(f"stopped by {name}", number)
