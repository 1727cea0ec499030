"""What a search ranges over: points of it, and the trials that try them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

from mlx_ft.config.compose import refusal
from mlx_ft.sweeper.grid import Axis, Trial, axes_of, is_crowded, trials_of

Point = tuple[str, ...]
"""The texts of a point, one for each dimension of its space."""

MOST_PROBED = 64  # words of one dimension that are tried out beforehand


class Dimension:
    """One argument that varies. texts: its values, numbers in order; an interval's ends."""

    def __init__(self, axis: Axis) -> None:
        self.axis, self.interval = axis, axis.interval
        texts = tuple(dict.fromkeys(axis.texts))
        self.ordered = all(_is_number(text) for text in texts)
        self.texts = tuple(sorted(texts, key=float)) if self.ordered else texts

    @property
    def size(self) -> float:
        """How many values there are; infinity where nobody counts them."""
        if self.interval is None:
            return len(self.texts)
        whole = self.interval.integer
        return self.interval.high - self.interval.low + 1 if whole else math.inf

    def at(self, share: float) -> str:
        """The value at a share of the way, from 0 up to but without 1."""
        if self.interval is not None:
            return self.interval.at(share)
        return self.texts[int(share * len(self.texts))]

    def holds(self, text: object) -> bool:
        """Whether this is one of its values."""
        if self.interval is None or not isinstance(text, str):
            return text in self.texts
        return _is_number(text) and self.interval.text(float(text)) == text

    def __str__(self) -> str:
        values = ", ".join(self.texts) if self.interval is None else str(self.interval)
        return f"{self.axis.key}: {values}"


class Space:
    """What the arguments of a sweep range over; `seeds` repeats each point, if it is given.

    Raises ConfigError when nothing varies.
    """

    def __init__(self, arguments: Sequence[str], seeds: Sequence[str], loader: object) -> None:
        self.axes = axes_of(arguments, loader)
        self.seeds = axes_of(seeds, loader)
        self.dimensions = [Dimension(axis) for axis in self.axes if axis.varies]
        self._digest = is_crowded(self.axes)
        if not self.dimensions:
            example = "optimizer.learning_rate='tag(log,interval(1e-5,1e-3))'"
            raise refusal("the sweep", [f"nothing varies. Give a range to search, e.g. {example}"])

    @property
    def size(self) -> float:
        """How many points there are; infinity where nobody counts them."""
        return math.prod(dimension.size for dimension in self.dimensions)

    def all_points(self) -> itertools.product[Point]:
        """Every point of a space that has an end."""
        values = [
            [
                dimension.interval.text(dimension.interval.low + i)
                for i in range(int(dimension.size))
            ]
            if dimension.interval is not None
            else dimension.texts
            for dimension in self.dimensions
        ]
        return itertools.product(*values)

    def trials(self, point: Point) -> list[Trial]:
        """The trials that try a point: one, or one for each seed."""
        given = iter(point)
        texts = [next(given) if axis.varies else axis.texts[0] for axis in self.axes]
        seeds = [axis.texts for axis in self.seeds]
        combined = [(*texts, *own) for own in itertools.product(*seeds)]
        return trials_of([*self.axes, *self.seeds], combined, digest=self._digest)

    def probes(self) -> list[Trial]:
        """Trials in which every word of a list, and the ends of what is in order, occur.

        They are not run: by them it is known what a sweep's trials have alike, whatever its points.
        """
        first = [dimension.texts[0] for dimension in self.dimensions]
        points = {tuple(first): None}
        for place, dimension in enumerate(self.dimensions):
            texts = dimension.texts
            whole = len(texts) <= MOST_PROBED and not dimension.ordered
            for text in texts if whole else (texts[0], texts[-1]):
                points[(*first[:place], text, *first[place + 1 :])] = None
        return [trial for point in points for trial in self.trials(point)]


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
