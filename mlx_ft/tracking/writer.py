"""The thread that writes what the training noted.

The training appends to a list and goes on. The thread opens the run (importing mlflow takes
seconds) and writes whatever was noted, at each request; what could not be written is kept and
tried again at the next one. A failure is one warning, never an exception in the training.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue

from mlx_ft.tracking.store import MlflowStore, Point
from mlx_ft.tracking.uri import without_password

logger = logging.getLogger("mlx_ft.tracking")

REASON_LENGTH = 300


@dataclass(frozen=True, eq=False)
class Entry:
    """Something to be written: what it is, in words, and how. points: metric values in it."""

    what: str
    write: Callable[[MlflowStore, str], None]
    points: int = 0


class Writer:
    """Writes entries and points to one run, in order.

    open_run: connects and opens the run, and returns both; called in the thread, again at the
    next request when it failed. where: the store's name in messages.
    """

    def __init__(self, open_run: Callable[[], tuple[MlflowStore, str]], where: str) -> None:
        self._open_run = open_run
        self._where = where
        self._run: tuple[MlflowStore, str] | None = None
        self._lock = threading.Lock()  # guards the two lists of what is not written yet
        self._entries: list[Entry] = []
        self._points: list[Point] = []
        self._requests: SimpleQueue[threading.Event | None] = SimpleQueue()
        self._last_request = threading.Event()
        self._last_request.set()
        self._tried_to_open = threading.Event()
        self.failure: str | None = None  # why the last attempt failed; None: all is well
        # A daemon: a store that hangs must not keep the process alive.
        threading.Thread(target=self._serve, name="mlx-ft-tracking", daemon=True).start()
        self._requests.put(threading.Event())  # open the run now

    def add(self, entry: Entry) -> None:
        """Note an entry."""
        with self._lock:
            self._entries.append(entry)

    def add_points(self, points: list[Point]) -> None:
        """Note metric values."""
        with self._lock:
            self._points += points

    def write(self, seconds: float) -> bool:
        """Write what was noted; wait at most so long. False: not done yet, or not all of it.

        While the run is being opened, or an earlier call is still at work, this one does not
        wait: what was noted is written then, or with a later call.
        """
        if not (self._tried_to_open.is_set() and self._last_request.is_set()):
            return False
        request = self._last_request = threading.Event()
        self._requests.put(request)
        return request.wait(seconds) and self.failure is None

    def finish(self, seconds: float) -> bool:
        """Write all that is left and end the thread; wait at most so long. False: not all."""
        request = threading.Event()
        self._requests.put(request)
        self._requests.put(None)
        return request.wait(seconds) and self.failure is None

    def run_id(self, seconds: float) -> str | None:
        """The run's id; waits at most so long for the first attempt to open it."""
        self._tried_to_open.wait(seconds)
        return self._run[1] if self._run else None

    @property
    def unwritten_points(self) -> int:
        """Metric values noted and not written."""
        with self._lock:
            return len(self._points) + sum(entry.points for entry in self._entries)

    @property
    def unwritten(self) -> list[str]:
        """Entries noted and not written, in words; without metric values."""
        with self._lock:
            return [entry.what for entry in self._entries if not entry.points]

    def _serve(self) -> None:
        while (request := self._requests.get()) is not None:
            self._write_all()
            request.set()

    def _write_all(self) -> None:
        failure = self._open()
        if self._run is not None:
            for entry in self._noted():
                failure = self._write(entry, *self._run) or failure
        if failure is None and self.failure is not None:
            logger.info("%s works again: everything noted since then is written.", self._where)
        self.failure = failure

    def _open(self) -> str | None:
        if self._run is not None:
            return None
        try:
            self._run = self._open_run()
        except Exception as error:
            return self._failed("the run", error)
        finally:
            self._tried_to_open.set()
        return None

    def _noted(self) -> list[Entry]:
        with self._lock:
            points, self._points = self._points, []
            if points:
                write = partial(_write_points, points)
                self._entries.insert(0, Entry("metrics", write, len(points)))
            return list(self._entries)

    def _write(self, entry: Entry, store: MlflowStore, run_id: str) -> str | None:
        try:
            entry.write(store, run_id)
        except Exception as error:
            return self._failed(entry.what, error)
        with self._lock:
            self._entries.remove(entry)
        return None

    def _failed(self, what: str, error: Exception) -> str:
        lines = str(error).strip().splitlines() or [""]
        reason = without_password(f"{type(error).__name__}: {lines[0][:REASON_LENGTH]}")
        if self.failure is None:
            logger.warning(
                "%s did not take %s (%s). Training goes on; what is not written is kept and "
                "tried again.",
                self._where,
                what,
                reason,
            )
            self.failure = reason  # one warning for one outage
        return reason


def _write_points(points: list[Point], store: MlflowStore, run_id: str) -> None:
    store.metrics(run_id, points)
