"""What the lines of a journal say together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

from mlx_ft.tracking.records import End, Metrics, Record, Resume, Start, Tags


@dataclass
class State:
    """What the lines of a journal say together."""

    run_id: str | None = None
    start: Start | None = None
    began: int = 0  # time of the last start or resume
    end: End | None = None  # None while the run goes on, or was killed
    tags: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[int, float]] = field(default_factory=dict)  # key -> step -> last value
    pending: dict[int, Record] = field(default_factory=dict)  # told and not taken, by number
    next_number: int = 1
    last_time: int = 0
    last_step: int | None = None
    changed_points: int = 0  # told again with another value
    damaged_lines: int = 0

    def note(self, number: int, record: Record) -> None:
        """Take in one record."""
        self.pending[number] = record
        self.next_number = max(self.next_number, number + 1)
        self.last_time = max(self.last_time, record.time)
        match record:
            case Start() | Resume():
                self.start = record if isinstance(record, Start) else self.start
                self.began, self.end = record.time, None
                self.forget([n for n, old in self.pending.items() if isinstance(old, End)])
            case End():
                self.end = record
            case Tags():
                self.tags |= record.tags
            case Metrics():
                self._note_points(record)

    def _note_points(self, record: Metrics) -> None:
        self.last_step = max(record.step, self.last_step or 0)
        for key, value in record.values.items():
            steps = self.values.setdefault(key, {})
            if record.step in steps and not same(steps[record.step], value):
                self.changed_points += 1
            steps[record.step] = value

    def forget(self, numbers: Iterable[int]) -> None:
        """These records need no more writing."""
        for number in numbers:
            self.pending.pop(number, None)


def same(first: float, second: float) -> bool:
    """Whether two values are one, NaN too."""
    return first == second or (math.isnan(first) and math.isnan(second))
