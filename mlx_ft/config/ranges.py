"""Ranges of a search in Hydra's own grammar: `interval(a,b)`, `int(...)`, `tag(log, ...)`."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from hydra.core.override_parser.types import IntervalSweep, Override, Sweep

from mlx_ft.config.keys import keys

DIGITS = 4  # of a number that is searched: enough to tell points apart, few enough to be read


@dataclass(frozen=True)
class Interval:
    """All numbers from low to high, both included; log: even on a logarithmic scale."""

    low: float
    high: float
    log: bool
    integer: bool

    def text(self, value: float) -> str:
        """A number of the interval as an argument; what it says is the point, exactly."""
        if self.integer:
            return str(min(max(round(value), int(self.low)), int(self.high)))
        width = (self.high - self.low) / max(abs(self.low), abs(self.high))
        rounded = float(f"{value:.{DIGITS + max(0, -math.ceil(math.log10(width)))}g}")
        return shortest(min(max(rounded, self.low), self.high))

    def at(self, share: float) -> str:
        """The number at a share of the way, from 0 up to but without 1."""
        if self.integer:  # as wide as each other: the ends reach half a number further
            low, high = self.low - 0.5, self.high + 0.5
        else:
            low, high = self.low, self.high
        if self.log:
            return self.text(math.exp(math.log(low) + share * (math.log(high) - math.log(low))))
        return self.text(low + share * (high - low))

    def __str__(self) -> str:
        kind = " ".join(["log"] * self.log + ["whole numbers"] * self.integer)
        ends = [self.text(end) if self.integer else shortest(end) for end in (self.low, self.high)]
        return f"{ends[0]} to {ends[1]}{f' ({kind})' if kind else ''}"


def shortest(value: float) -> str:
    """A number as short as it can be read back: 2e-5, not 2e-05."""
    return re.sub(r"e(-?)\+?0*(?=\d)", r"e\1", repr(float(value)).removesuffix(".0"))


def interval_of(override: Override) -> Interval | None:
    """The interval that an argument asks for; None when it asks for none.

    Raises ValueError for an interval that has no inside, or a tag that means nothing.
    """
    value = override.value()
    tags = sorted(map(str, value.tags)) if isinstance(value, Sweep) else []
    if not isinstance(value, IntervalSweep):
        if tags:
            raise ValueError(
                f"tag({', '.join(tags)}) has no effect on a list. A logarithmic scale goes with "
                "an interval: tag(log, interval(1e-5,1e-3))"
            )
        return None
    if other := [tag for tag in tags if tag != "log"]:
        raise ValueError(f"tag {', '.join(other)} is not known here. There is one: log")
    start, end = value.start, value.end
    assert start is not None
    assert end is not None
    if not (math.isfinite(start) and math.isfinite(end) and start < end):
        raise ValueError("expected interval(a,b) with a below b")
    if "log" in tags and start <= 0:
        raise ValueError("a logarithmic scale begins above 0. Give a lowest value that does")
    integer = isinstance(start, int) and isinstance(end, int)
    key = keys().get(override.key_or_group)
    if key is not None and not integer and "int" in key.kinds and "float" not in key.kinds:
        raise ValueError(
            f"takes whole numbers. Write int(interval({shortest(start)},{shortest(end)}))"
        )
    return Interval(float(start), float(end), "log" in tags, integer)
