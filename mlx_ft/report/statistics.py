"""Repeated runs: mean, interval, whether a difference is more than luck; and the Pareto front.

Student's t without SciPy, which is no dependency: its tail is a regularised incomplete beta
function, here by its continued fraction.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

LEVEL = 0.05  # below it a difference counts as real; intervals hold 1 - LEVEL
CONVERGED, MOST_TERMS, TINY = 1e-15, 500, 1e-300


def incomplete_beta(a: float, b: float, x: float) -> float:
    """I_x(a, b), the regularised incomplete beta function, for a, b > 0 and 0 <= x <= 1.

    By the continued fraction of DLMF 8.17.22 (https://dlmf.nist.gov/8.17), which converges fast
    below the mean; above it by I_x(a, b) = 1 - I_{1-x}(b, a).
    """
    if not 0 < x < 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - incomplete_beta(b, a, 1 - x)
    log_beta = math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)
    front = math.exp(a * math.log(x) + b * math.log1p(-x) - log_beta) / a
    return front / _fraction(a, b, x)


def _fraction(a: float, b: float, x: float) -> float:
    """1 + d1/(1 + d2/(1 + ...)), by Lentz's method as Thompson and Barnett modified it (1986)."""
    value, ratio, inverse = 1.0, 1.0, 0.0
    for n in range(1, MOST_TERMS):
        m = n // 2
        if n % 2:
            d = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        else:
            d = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m))
        inverse = 1 / ((1 + d * inverse) or TINY)
        ratio = (1 + d / ratio) or TINY
        value *= ratio * inverse
        if abs(ratio * inverse - 1) < CONVERGED:
            break
    return value


def two_sided_p(t: float, freedom: float) -> float:
    """P(|T| >= |t|) for Student's t with so many degrees of freedom, which need not be whole."""
    if math.isinf(t):
        return 0.0
    return incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t))


def critical_t(freedom: float, level: float = LEVEL) -> float:
    """The t that |T| exceeds with the probability `level`; found by halving."""
    low, high = 0.0, 1.0
    while two_sided_p(high, freedom) > level:
        low, high = high, 2 * high
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if two_sided_p(middle, freedom) > level else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Estimate:
    """A mean of n values. spread: their standard deviation; both None for one value, as is the
    95% interval of the mean.
    """

    mean: float
    n: int
    spread: float | None = None
    interval: tuple[float, float] | None = None


def estimate(values: Sequence[float]) -> Estimate:
    """Mean, standard deviation (n - 1) and Student's 95% interval of at least one value."""
    n, mean = len(values), math.fsum(values) / len(values)
    if n == 1:
        return Estimate(mean, 1)
    spread = math.sqrt(_variance(values))
    reach = critical_t(n - 1) * spread / math.sqrt(n)
    return Estimate(mean, n, spread, (mean - reach, mean + reach))


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)


@dataclass(frozen=True)
class Difference:
    """The mean difference of two settings with its 95% interval and the p of none at all.

    n: values of each; paired: by seed.
    """

    mean: float
    interval: tuple[float, float]
    p: float
    n: tuple[int, int]
    paired: bool

    @property
    def is_real(self) -> bool:
        """Whether chance alone would rarely make it."""
        return self.p < LEVEL


def difference(first: Mapping[str, float], second: Mapping[str, float]) -> Difference | None:
    """first - second, each seed -> value; None when there is one seed of either.

    Paired where both have the same seeds, since a seed fixes the order of the data too, and with
    it much of what is luck; otherwise Welch's test (Biometrika 34, 1947), which does not take
    the spreads for equal.
    """
    n = (len(first), len(second))
    if min(n) < 2:
        return None
    if first.keys() == second.keys():
        gaps = [first[seed] - second[seed] for seed in first]
        mean, error, freedom = math.fsum(gaps) / n[0], _variance(gaps) / n[0], n[0] - 1.0
        return _tested(mean, math.sqrt(error), freedom, n, paired=True)
    one, other = [*first.values()], [*second.values()]
    errors = _variance(one) / n[0], _variance(other) / n[1]
    mean, error = math.fsum(one) / n[0] - math.fsum(other) / n[1], sum(errors)
    parts = errors[0] ** 2 / (n[0] - 1) + errors[1] ** 2 / (n[1] - 1)
    freedom = error**2 / parts if parts else float(sum(n) - 2)
    return _tested(mean, math.sqrt(error), freedom, n, paired=False)


def _tested(
    mean: float, error: float, freedom: float, n: tuple[int, int], *, paired: bool
) -> Difference:
    reach = critical_t(freedom) * error
    without_spread = 0.0 if mean else 1.0
    p = two_sided_p(mean / error, freedom) if error else without_spread
    return Difference(mean, (mean - reach, mean + reach), p, n, paired)


def pareto(points: Sequence[Sequence[float]]) -> list[bool]:
    """Which points no other one beats: is as low in everything and lower in something.

    Give a figure that should be high with its sign changed.
    """
    return [not any(_beats(other, point) for other in points) for point in points]


def _beats(one: Sequence[float], other: Sequence[float]) -> bool:
    pairs = [*zip(one, other, strict=True)]
    return all(a <= b for a, b in pairs) and any(a < b for a, b in pairs)
