"""The thread that writes what the journal holds.

The training notes things in the journal and goes on. The thread opens the run, once there is
something to show or a few seconds have passed (importing mlflow takes seconds of a core, which the
first step needs), and writes whatever is noted, at each request; what could not be written stays
in the journal and is tried again at the next one. A failure is one warning, never an exception in
the training.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

from mlx_ft.tracking.journal import Journal
from mlx_ft.tracking.records import Metrics, Record, describe
from mlx_ft.tracking.replay import write, write_points
from mlx_ft.tracking.store import MlflowStore, is_refusal
from mlx_ft.tracking.uri import without_password

logger = logging.getLogger("mlx_ft.tracking")

REASON_LENGTH = 300
OUTAGE = 2  # failures in a row; one may be the fault of what is written
UNASKED = 5.0  # seconds after which the run is opened though there is nothing to show yet


class Writer:
    """Writes what is pending in the journal to one run, in order.

    open_run: connects and opens the run, and returns both; called in the thread, again at the
    next request when it failed. where: the store's name in messages.
    """

    def __init__(
        self, journal: Journal, open_run: Callable[[], tuple[MlflowStore, str]], where: str
    ) -> None:
        self._journal = journal
        self._open_run = open_run
        self._where = where
        self._run: tuple[MlflowStore, str] | None = None
        self._requests: SimpleQueue[threading.Event | None] = SimpleQueue()
        self._last_request = threading.Event()
        self._last_request.set()
        self._awake = threading.Event()
        self._tried_to_open = threading.Event()
        self.failure: str | None = None  # why the last attempt failed; None: all is well
        # A daemon: a store that hangs must not keep the process alive.
        self._thread = threading.Thread(target=self._serve, name="mlx-ft-tracking", daemon=True)
        self._requests.put(threading.Event())  # open the run
        self._thread.start()

    def wake(self) -> None:
        """There is something to show: open the run now."""
        self._awake.set()

    def write(self, seconds: float) -> bool:
        """Write what was noted; wait at most so long. False: not done yet, or not all of it.

        While the run is being opened, or an earlier call is still at work, this one does not
        wait: what was noted is written then, or with a later call.
        """
        self.wake()
        if not (self._tried_to_open.is_set() and self._last_request.is_set()):
            return False
        request = self._last_request = threading.Event()
        self._requests.put(request)
        return request.wait(seconds) and self.failure is None

    def finish(self, seconds: float) -> bool:
        """Write all that is left and end the thread; wait at most so long. False: not all."""
        self.wake()
        request = threading.Event()
        self._requests.put(request)
        self._requests.put(None)
        return request.wait(seconds) and self.failure is None

    def run_id(self, seconds: float) -> str | None:
        """The run's id; waits at most so long for the first attempt to open it."""
        if self._journal.state.run_id is None:
            self.wake()
            self._tried_to_open.wait(seconds)
        return self._journal.state.run_id

    def _serve(self) -> None:
        self._awake.wait(UNASKED)
        while (request := self._requests.get()) is not None:
            self._write_all()
            request.set()
        self._journal.close()

    def _write_all(self) -> None:
        failure = self._open()
        if self._run is not None:
            failure = self._write_pending(*self._run)
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

    def _write_pending(self, store: MlflowStore, run_id: str) -> str | None:
        """Write and acknowledge; returns the last failure. An outage ends the attempt."""
        self._journal.sync()  # nothing is in the store that the journal could lose
        failure, in_a_row = None, 0
        for batch in batches(self._journal.pending()):
            try:
                write_batch(store, run_id, batch, self._journal)
                in_a_row = 0
            except Exception as error:
                failure = self._failed(describe(batch[0][1]), error)
                in_a_row += not is_refusal(error)
                if in_a_row == OUTAGE:
                    break
        return failure

    def _failed(self, what: str, error: Exception) -> str:
        reason = in_words(error)
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


Batch = list[tuple[int, Record]]  # numbered records: metrics, or one of another kind


def batches(pending: Batch) -> list[Batch]:
    """All metrics together, as one call of many is cheap; then the others one by one, in order."""
    metrics = [entry for entry in pending if isinstance(entry[1], Metrics)]
    others = [[entry] for entry in pending if not isinstance(entry[1], Metrics)]
    return [metrics, *others] if metrics else others


def write_batch(store: MlflowStore, run_id: str, batch: Batch, journal: Journal) -> None:
    """Write a batch and acknowledge it; raises whatever the store raises.

    A refusal may be the fault of one of many: then they are written one by one.
    """
    points = [record for _, record in batch if isinstance(record, Metrics)]
    try:
        if points:
            write_points(store, run_id, points)
        else:
            write(store, run_id, batch[0][1], journal)
    except Exception as error:
        if len(batch) == 1 or not is_refusal(error):
            raise
        _write_apart(store, run_id, batch, journal)
    else:
        journal.acknowledge(run_id, [number for number, _ in batch])


def _write_apart(store: MlflowStore, run_id: str, batch: Batch, journal: Journal) -> None:
    refusal = None
    for entry in batch:
        try:
            write_batch(store, run_id, [entry], journal)
        except Exception as error:
            if not is_refusal(error):
                raise
            refusal = error
    if refusal is not None:
        raise refusal


def in_words(error: Exception) -> str:
    """One line on an error of the store, without passwords."""
    line = (str(error).strip().splitlines() or [""])[0]
    # Of a failed connection urllib3 says where at length, and at last why.
    _, caused, why = line.rpartition("(Caused by ")
    if caused:
        line = why.rstrip(")")
    return without_password(f"{type(error).__name__}: {line[:REASON_LENGTH]}")
