"""The journal of a tracked run: `tracking.jsonl` in its folder.

One line for everything the tracker is told, with a number, written before the store hears of it,
and one line for what the store has taken. What is told and not taken can be written later, once,
by any process: `mlx-ft sync`, or the run itself when it is resumed.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable
from pathlib import Path

from mlx_ft import durable
from mlx_ft.tracking.lines import from_ranges, mend, parse, sealed, to_ranges, whole_lines
from mlx_ft.tracking.records import Metrics, Record, dump, from_values, to_line
from mlx_ft.tracking.state import State

logger = logging.getLogger("mlx_ft.tracking")

NAME = "tracking.jsonl"


class Journal:
    """The journal in a file, or in memory alone (path None); safe to use from two threads.

    A line that cannot be written (full disk) is kept in memory, with one warning: the store gets
    it all the same, unless the process is killed before.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self.state = State()
        self._lock = threading.Lock()
        self._descriptor: int | None = None
        self._failed = False
        if path is not None:
            self._open(path)

    @property
    def folder(self) -> Path:
        """Where relative paths of files count from."""
        return Path.cwd() if self.path is None else self.path.parent

    @property
    def is_new(self) -> bool:
        """Whether nothing was told yet."""
        return self.state.next_number == 1 and self.state.run_id is None

    def note(self, record: Record) -> None:
        """Append one record and hand it to the operating system."""
        with self._lock:
            number = self.state.next_number
            self._append(to_line(number, record))
            self.state.note(number, record)

    def acknowledge(self, run_id: str, numbers: Iterable[int] = ()) -> None:
        """The store's run `run_id` has these records."""
        taken = sorted(numbers)
        with self._lock:
            self._append(dump({"run_id": run_id, "written": to_ranges(taken)}))
            self.state.run_id = run_id
            self.state.forget(taken)

    def give_up(self, numbers: Iterable[int], reason: str) -> None:
        """These records can never be written."""
        given_up = sorted(numbers)
        with self._lock:
            self._append(dump({"given_up": to_ranges(given_up), "reason": reason}))
            self.state.forget(given_up)

    def pending(self) -> list[tuple[int, Record]]:
        """What is told and not taken, in order."""
        with self._lock:
            return list(self.state.pending.items())

    def pending_points(self) -> int:
        """Metric values told and not taken."""
        return sum(len(r.values) for _, r in self.pending() if isinstance(r, Metrics))

    def tags(self) -> dict[str, str]:
        """All tags as they are now."""
        with self._lock:
            return dict(self.state.tags)

    def value(self, key: str, step: int) -> float | None:
        """The value last told of a metric at a step; None: none."""
        with self._lock:
            return self.state.values.get(key, {}).get(step)

    def start_over(self) -> None:
        """The store's run is gone: everything is to be written again, to another one."""
        with self._lock:
            self._append(dump({"run_id": None, "written": []}))
            told = State() if self.path is None else read(self.path)
            self.state.pending = dict(sorted((told.pending | self.state.pending).items()))
            self.state.run_id = None

    def sync(self) -> None:
        """Wait until all lines are on the disk."""
        if self._descriptor is None:
            return
        try:
            durable.sync(self._descriptor)
        except OSError as error:
            self._say(error)

    def close(self) -> None:
        """Let go of the file; what is told afterwards stays in memory."""
        with self._lock:
            if self._descriptor is not None:
                os.close(self._descriptor)
                self._descriptor = None

    def _open(self, path: Path) -> None:
        try:
            self.state = read(path)
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, 0o644)
            durable.sync_folder(path.parent)
            mend(self._descriptor)
        except OSError as error:
            self._say(error)

    def _append(self, body: str) -> None:
        if self._descriptor is None:
            return
        data = sealed(body)
        size = os.fstat(self._descriptor).st_size
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
        except OSError as error:
            os.ftruncate(self._descriptor, size)  # no half line before the next one
            self._say(error)

    def _say(self, error: OSError) -> None:
        if not self._failed:
            self._failed = True
            logger.warning(
                "%s cannot be written (%s): if the process is killed, what MLflow has not taken "
                "by then is lost.",
                self.path,
                error.strerror or error,
            )


def read(path: Path) -> State:
    """What a journal says; an empty state where there is none. Raises OSError.

    A last line without its end is what a killed process leaves, and counts as never written.
    Other lines that cannot be read are counted and said.
    """
    state = State()
    taken, given_up = set[int](), set[int]()
    for line in whole_lines(path):
        try:
            values = parse(line)
            if "given_up" in values:
                given_up |= from_ranges(values["given_up"])
            elif "written" in values:
                # What an earlier run had, which is gone from the store, does not count.
                taken = from_ranges(values["written"]) | (
                    taken if values["run_id"] == state.run_id else set()
                )
                state.run_id = values["run_id"]
            else:
                state.note(*from_values(values))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            state.damaged_lines += 1
    state.forget(taken | given_up)
    # The line of a number that was taken may be damaged: it is not given a second time.
    state.next_number = max(state.next_number, *(number + 1 for number in taken | given_up), 1)
    if state.damaged_lines:
        logger.warning("%s: %d damaged lines are left out.", path, state.damaged_lines)
    return state


def run_id_of(path: Path) -> str | None:
    """The store's run that a journal belongs to; None: not known, or nothing that can be read."""
    try:
        return read(path).run_id
    except OSError:
        return None


def first_record(path: Path) -> Record | None:
    """What a journal begins with; None: nothing that can be read."""
    try:
        return from_values(parse(next(iter(whole_lines(path)))))[1]
    except (OSError, StopIteration, ValueError, TypeError, KeyError):
        return None
