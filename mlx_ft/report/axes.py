"""Axes of figures: linear, logarithmic or of words, and honest about where they start."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlx_ft.report.labels import number_text, value_text
from mlx_ft.report.read import told_apart

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_VALUES = 9  # that all have a tick of their own


def is_number(value: Any) -> bool:
    """Whether a setting's value can be placed on an axis."""
    real = isinstance(value, (int, float)) and not isinstance(value, bool)
    return real and math.isfinite(value)


def is_geometric(values: Sequence[Any]) -> bool:
    """Whether numbers are spaced by factors, such as learning rates: then the axis is, too."""
    points = sorted({float(value) for value in values})
    if len(points) < 2 or points[0] <= 0:
        return False
    if len(points) == 2:
        return points[1] >= 5 * points[0]
    steps = [b - a for a, b in pairwise(points)]
    factors = [math.log(b / a) for a, b in pairwise(points)]
    return _unevenness(factors) < _unevenness(steps)


def _unevenness(gaps: Sequence[float]) -> float:
    mean = math.fsum(gaps) / len(gaps)
    return math.fsum((gap / mean - 1) ** 2 for gap in gaps)


def scaled(
    axes: Axes,
    which: str,
    values: Sequence[float],
    *,
    log: bool = False,
    percent: bool = False,
) -> str:
    """Scale an axis for figures, and return what must be said of it: it may not begin at 0.

    which: `x` or `y`. It begins at 0 where that costs less than half of it. percent: the figures
    are shares.
    """
    from matplotlib.ticker import (
        FuncFormatter,
        LogLocator,
        MaxNLocator,
        NullFormatter,
        PercentFormatter,
    )

    axis = axes.xaxis if which == "x" else axes.yaxis
    limits = axes.set_xlim if which == "x" else axes.set_ylim
    low, high = min(values), max(values)
    if log and low > 0:
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1,)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_formatter(NullFormatter())
        return " (log axis)"
    axis.set_major_locator(MaxNLocator(nbins=5, steps=[1, 2, 2.5, 5, 10]))
    if percent:
        axis.set_major_formatter(PercentFormatter(1))
    if 0 <= low <= high / 2:
        limits(0, 1.06 * high or 1)
        return ""
    room = 0.08 * (high - low) or 0.05 * abs(high) or 1
    limits(low - room, high + room)
    return " (axis does not start at 0)"


def tick(value: float) -> str:
    """A number beside an axis."""
    return number_text(float(f"{value:.3g}"))


def is_wide(values: Sequence[float], factor: float = 10) -> bool:
    """Whether figures are so far apart that a linear axis would show only the largest."""
    return min(values) > 0 and max(values) > factor * min(values)


def place_ticks(axes: Axes, which: str, values: Sequence[Any], texts: Sequence[str]) -> None:
    """Ticks at the very values, slanted where they would run into one another."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    slanted = which == "x" and sum(len(text) + 2 for text in texts) > 52
    axis.set_ticks(values, texts)
    axis.set_ticks([], minor=True)
    if slanted:
        for label in axis.get_ticklabels():
            label.set(rotation=35, ha="right", rotation_mode="anchor")


def position(value: Any, values: Sequence[Any]) -> float:
    """Where a value lies on an axis: words in the order in which they came."""
    if all(map(is_number, values)):
        return float(value)
    texts = [told_apart(one) for one in values]
    return float(texts.index(told_apart(value)))


def axis_of(axes: Axes, which: str, values: Sequence[Any]) -> None:
    """An axis for a parameter: logarithmic where its values are, words at equal distances."""
    from matplotlib.ticker import FuncFormatter, LogLocator

    numeric = all(map(is_number, values))
    if numeric and is_geometric(values):
        (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    if len(values) <= MOST_VALUES:
        places = [position(value, values) for value in values]
        place_ticks(axes, which, places, [value_text(value) for value in values])
    elif numeric and is_geometric(values):
        axis = axes.xaxis if which == "x" else axes.yaxis
        axis.set_major_locator(LogLocator(subs=(1, 3)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: tick(value)))
        axis.set_minor_formatter("")
