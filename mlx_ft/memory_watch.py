"""Keeps a run within its memory: splits batches before they are too large, and says when to stop.

On Metal and CUDA an allocation that fails raises, and the trainer tries again in more parts. On
the CPU it ends the process, so it has to be foreseen: what a step needs is taken from the model's
dimensions (`memory_estimate`), corrected by the largest need that was measured. Which limit counts
is settled once, at the start: a batch is then split in the same way when a run is resumed. Only
where a step would not fit into what is free at this very moment does that count too.
"""

from __future__ import annotations

import errno
import math
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mlx_ft.memory_estimate import Estimate
from mlx_ft.memory_reading import MACHINE, Reading
from mlx_ft.runtime import GIB

USABLE = 0.95  # of a hard limit; the rest is for what nobody can foresee
LOW = 0.03  # of all memory: less than that available is an emergency
LEVELS = (0.9, 1.0)  # of the budget: what is warned of, once each
PRESSURE = 0.8  # of the budget: a crash in such a step is put down to memory
UNSEEN = 1.25  # how far a need may exceed its estimate where nothing like it was measured
SEEN = 1.05
LIKE = 2.0  # up to so many times the largest measured step, measurements are trusted

# What MLX 0.32 raises, as its allocators and device code word it (mlx/backend/{metal,cuda}), and
# the CUDA libraries' own words, which it passes on.
OUT_OF_MEMORY = re.compile(
    r"\[metal::malloc\]"
    r"|\[malloc\] unable to allocate"
    r"|insufficient memory|out of ?memory"
    r"|cudaerrormemoryallocation"
    r"|cublas.* failed with code: 3\b|alloc\w*_failed"
    r"|bad_alloc",
    re.IGNORECASE,
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, so that smaller parts may help."""
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    if isinstance(error, MemoryError):  # std::bad_alloc too
        return True
    return isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None


class Budget(NamedTuple):
    """What a run may use, in bytes; bound: the limit that it comes from."""

    size: int
    bound: str


@dataclass(frozen=True)
class Split:
    """How a batch is taken.

    need: bytes that its largest part takes beside what is held. room: what there is for it.
    pressure: it hardly fits, so that a crash in this step would be memory's fault.
    refused: it does not fit, nothing is left to split, and trying would end the process.
    why: for the log, the first time that memory asks for so many parts.
    """

    parts: int
    need: int
    room: float
    pressure: bool
    refused: bool
    why: str


@dataclass(frozen=True)
class Notice:
    """Something to say about memory. stop: end the run, with a checkpoint, while it can be done."""

    message: str
    stop: bool


class MemoryWatch:
    """The memory of one run.

    estimate: what its steps need. device: "metal", "cuda" or "cpu". limit_gb: GiB that the user
    wants it to stay under. read: the figures now (`Reader`). reset_peak: forgets MLX's peak. short:
    it was said before that a single row does not fit.
    """

    def __init__(
        self,
        estimate: Estimate,
        *,
        device: str,
        limit_gb: float | None,
        read: Callable[[], Reading],
        reset_peak: Callable[[], None],
        short: bool = False,
    ) -> None:
        self.estimate = estimate
        self.device = device
        self.peak = 0  # MLX's, of the whole run
        self._reader = read
        self._reset_peak = reset_peak
        first = self._read()
        self.budget = budget(first, limit_gb)
        # The process beside MLX; an accelerator with memory of its own does not hold that.
        beside = first.rss - first.mlx_active - first.mlx_cache
        self._beside = 0 if device == "cuda" else max(0, beside)
        self._factor = 0.0  # largest measured need, as a share of its estimate
        self._largest = 0.0  # largest estimate that was measured
        self._most_parts = 1
        self._tight = short  # a row alone did not fit, and this was said
        self._warned = 0
        self._low_before = False
        self._host_before = first.available, first.swap_used

    def split(self, mask: np.ndarray, at_least: int = 1) -> Split:
        """In how many parts to take a batch: the fewest that fit, doubling from `at_least`.

        mask: (B, T) bool, its targets. The parts are those of `np.array_split` over the rows.
        With one row to a part there is nothing left to split, whatever it needs.
        """
        rows = len(mask)
        reading = self._read()
        held = self._beside + reading.mlx_active
        free = self._free(reading)
        room = max(0, min(self.budget.size - held, free))
        parts = min(at_least, rows)
        while (need := self._largest_part(mask, parts)) > room and parts < rows:
            parts = min(rows, 2 * parts)
        why, tight = "", need > room
        refused = need > UNSEEN * free
        if refused or (tight and not self._tight) or parts > max(at_least, self._most_parts):
            bound = self.budget.bound if room < free else "what is free now"
            taken = f"is taken in {parts} parts: one" if parts > 1 else "cannot be split: it"
            why = (
                f"a batch of {rows} x {mask.shape[1]} tokens {taken} needs "
                f"about {_gb(need)}, and {bound} leaves {_gb(room)}"
            )
            if tight and not refused:
                why += ". Training goes on above the limit"
        self._most_parts = max(self._most_parts, parts)
        self._tight = self._tight or tight
        return Split(
            parts,
            need,
            room,
            pressure=held + need > PRESSURE * self.budget.size or need > PRESSURE * free,
            refused=refused,
            why=why,
        )

    def _largest_part(self, mask: np.ndarray, parts: int) -> int:
        return max(self._need(*_shape(part)) for part in np.array_split(mask, parts))

    def _need(self, rows: int, columns: int, targets: int) -> int:
        """Bytes that a step takes beside what is held, as far as can be told."""
        estimated = self.estimate.step(rows, columns, targets)
        if not self._factor:
            return round(UNSEEN * estimated)
        if estimated > LIKE * self._largest:
            return round(UNSEEN * max(1.0, self._factor) * estimated)
        return round(SEEN * self._factor * estimated)

    def _free(self, reading: Reading) -> float:
        """What a step could take at this moment. Off the CPU a failed allocation just raises."""
        if self.device != "cpu":
            return math.inf
        # Memory that the process has, but that nothing in it holds, can be used again.
        idle = max(0, reading.rss - self._beside - reading.mlx_active)
        return max(0, reading.available + idle - round(LOW * reading.total))

    @contextmanager
    def observing(self, mask: np.ndarray) -> Iterator[None]:
        """Measure what the step on this part of a batch takes, and learn from it.

        Resets MLX's peak; `peak` keeps the run's. A step that raises teaches nothing.
        """
        before = self._read()
        self._reset_peak()
        yield
        after = self._read()
        self.observe(mask, after.mlx_peak - before.mlx_active)

    def observe(self, mask: np.ndarray, need: int) -> None:
        """Learn that a part with these targets took `need` bytes beside what was held."""
        estimated = self.estimate.step(*_shape(mask))
        # Rounded up to an eighth of an octave: two runs of the same job learn the same number.
        factor = 2 ** (math.ceil(8 * math.log2(max(need, 1) / estimated)) / 8)
        self._factor = max(self._factor, factor)
        self._largest = max(self._largest, float(estimated))

    def learned(self) -> dict[str, float]:
        """What was learned, for a checkpoint."""
        return {"factor": self._factor, "largest": self._largest}

    def resume(self, learned: Mapping[str, float]) -> None:
        """Go on from what was learned before."""
        self._factor = float(learned.get("factor", 0.0))
        self._largest = float(learned.get("largest", 0.0))

    def check(self) -> Notice | None:
        """Between two steps: whether there is something to say, or reason to stop."""
        reading = self._read()
        if (notice := self._emergency(reading)) is not None:
            return notice
        used = self._beside + reading.mlx_peak
        passed = [level for level in LEVELS if used >= level * self.budget.size]
        if len(passed) <= self._warned:
            return None
        self._warned = len(passed)
        return Notice(
            f"the last step used {_gb(used)}, {used / self.budget.size:.0%} of the "
            f"{_gb(self.budget.size)} that {self.budget.bound} allows",
            stop=False,
        )

    def _emergency(self, reading: Reading) -> Notice | None:
        host = reading.available, reading.swap_used
        if host == self._host_before:  # the same figures again
            return None
        swaps = reading.swap_total > 0 and reading.bound == MACHINE
        growing = not swaps or reading.swap_used > self._host_before[1]
        low = growing and reading.available < LOW * reading.total
        stop = low and self._low_before
        self._low_before, self._host_before = low, host
        if not stop:
            return None
        return Notice(
            f"only {_gb(reading.available)} of {_gb(reading.total)} is available "
            f"({reading.bound}), and {_gb(reading.swap_used)} lie in swap: the run stops before "
            "the machine does",
            stop=True,
        )

    def _read(self) -> Reading:
        reading = self._reader()
        self.peak = max(self.peak, reading.mlx_peak)
        return reading


def budget(reading: Reading, limit_gb: float | None) -> Budget:
    """The tightest of what the user, the accelerator and the host allow."""
    found = []
    if limit_gb is not None:
        words = f"memory_profile.memory_limit_gb={limit_gb:g}"
        found.append(Budget(round(limit_gb * GIB), words))
    if reading.device_total is not None:
        found.append(Budget(round(USABLE * reading.device_total), "the GPU's memory"))
    else:
        found.append(Budget(round(USABLE * reading.total), reading.bound))
    return min(found)


def _shape(mask: np.ndarray) -> tuple[int, int, int]:
    """(rows, columns, targets)."""
    return len(mask), mask.shape[1], int(mask.sum())


def _gb(size: float) -> str:
    return f"{size / GIB:.2f} GB"
