"""Is it more than luck? Intervals of shares and means, and two models on the same rows.

Without SciPy, which is no dependency.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

LEVEL = 0.05  # below it a difference counts as real; intervals hold 1 - LEVEL
RESAMPLES = 10_000
AT_ONCE = 2_000_000  # numbers drawn, so that memory does not grow with the rows

Interval = tuple[float, float]


def wilson(right: int, total: int, level: float = LEVEL) -> Interval:
    """Interval of a share by Wilson's score (J. Am. Stat. Assoc. 22, 1927); total: at least 1.

    (p + z²/2n ± z sqrt(p (1 - p)/n + z²/4n²)) / (1 + z²/n), p = right/n and z the normal
    distribution's point. Unlike p ± z sqrt(p (1 - p)/n) it is of use at 0 and 1, and for few rows.
    """
    z, p = NormalDist().inv_cdf(1 - level / 2), right / total
    middle = p + z * z / (2 * total)
    reach = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total))
    scale = 1 + z * z / total
    low = 0.0 if right == 0 else (middle - reach) / scale
    high = 1.0 if right == total else (middle + reach) / scale
    return low, high


def mcnemar(only_first: int, only_second: int) -> float:
    """p of two models that are equally often right, by the rows that only one has right.

    McNemar's test (Psychometrika 12, 1947), exact: each of these n rows is as likely the one's as
    the other's, so P = min(1, 2 Σ_{k=0}^{m} C(n, k) / 2^n), m the smaller of the two numbers.
    """
    n, fewer = only_first + only_second, min(only_first, only_second)
    tail = term = 1  # C(n, 0)
    for k in range(fewer):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def bootstrap(values: Sequence[float], level: float = LEVEL, seed: int = 0) -> Interval:
    """Interval of a mean: quantiles of the means of samples drawn from the values with replacement,
    each as many (percentile bootstrap, Efron, Ann. Statist. 7, 1979). values: at least one.

    Of differences row by row it is the paired bootstrap.
    """
    import numpy as np  # costs a tenth of a second

    random, given = np.random.default_rng(seed), np.asarray(values, np.float64)
    n = len(given)
    block = max(1, AT_ONCE // n)
    means = np.concatenate([
        given[random.integers(0, n, (min(block, RESAMPLES - done), n))].mean(axis=1)
        for done in range(0, RESAMPLES, block)
    ])  # fmt: skip
    low, high = np.quantile(means, (level / 2, 1 - level / 2))
    return float(low), float(high)


@dataclass(frozen=True)
class Gap:
    """What a second model has more than a first, on average, with its 95% interval.

    p: of no difference; None where the values are no shares. only_first, only_second: rows of
    which one has the higher value.
    """

    mean: float
    interval: Interval
    p: float | None
    only_first: int
    only_second: int

    @property
    def is_real(self) -> bool:
        """Whether chance alone would rarely make it."""
        low, high = self.interval
        return self.p < LEVEL if self.p is not None else not low <= 0 <= high


def gap(first: Sequence[float], second: Sequence[float]) -> Gap:
    """second - first, values of the same rows: paired bootstrap, and McNemar's test for shares."""
    differences = [b - a for a, b in zip(first, second, strict=True)]
    lower, higher = (sum(sign * d > 0 for d in differences) for sign in (-1, 1))
    p = mcnemar(lower, higher) if is_share([*first, *second]) else None
    mean = math.fsum(differences) / len(differences)
    return Gap(mean, bootstrap(differences), p, lower, higher)


def is_share(values: Sequence[float]) -> bool:
    """Whether every value says yes or no."""
    return all(value in (0, 1) for value in values)
