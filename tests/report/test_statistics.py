"""Student's t against tables and published examples; the Pareto front."""

import math

import pytest

from mlx_ft.report.statistics import (
    critical_t,
    difference,
    estimate,
    incomplete_beta,
    pareto,
    two_sided_p,
)

# Two-sided critical values as every statistics book has them.
TABLE = [
    (1, 0.05, 12.706), (2, 0.05, 4.303), (3, 0.05, 3.182), (4, 0.05, 2.776), (9, 0.05, 2.262),
    (30, 0.05, 2.042), (120, 0.05, 1.980), (1, 0.01, 63.657), (5, 0.01, 4.032),
    (10, 0.001, 4.587),
]  # fmt: skip
# Student's own data (Biometrika 6, 1908): extra hours of sleep with each of two drugs.
SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)


@pytest.mark.parametrize(("freedom", "level", "t"), TABLE)
def test_critical_values_are_those_of_the_tables(freedom, level, t):
    assert critical_t(freedom, level) == pytest.approx(t, abs=6e-4)
    assert two_sided_p(t, freedom) == pytest.approx(level, rel=1e-3)


@pytest.mark.parametrize("t", [0.0, 1e-6, 0.3, 1.0, 2.5, 40.0, 1e6])
def test_the_tail_in_closed_form_for_one_and_two_degrees(t):
    assert two_sided_p(t, 1) == pytest.approx(2 / math.pi * math.atan2(1, t), rel=1e-9)
    assert two_sided_p(-t, 2) == pytest.approx(1 - t / math.sqrt(2 + t * t), rel=1e-6, abs=1e-12)


def test_the_incomplete_beta_is_a_binomial_sum():
    for a, b, x in ((1, 1, 0.3), (2, 1, 0.7), (3, 7, 0.2), (20, 5, 0.9), (50, 60, 0.45)):
        n = a + b - 1
        whole = sum(math.comb(n, j) * x**j * (1 - x) ** (n - j) for j in range(a, n + 1))
        assert incomplete_beta(a, b, x) == pytest.approx(whole, rel=1e-11)
    assert (incomplete_beta(2, 3, 0), incomplete_beta(2, 3, 1)) == (0, 1)


def test_mean_spread_and_interval():
    told = estimate([1.0, 2.0, 3.0])
    assert (told.mean, told.n, told.spread) == (2, 3, 1)
    assert told.interval == pytest.approx((2 - 2.4841, 2 + 2.4841), abs=1e-4)  # 4.3027 / sqrt(3)
    assert (estimate([5.0]).spread, estimate([5.0]).interval) == (None, None)


def test_the_sleep_data_paired_and_apart():
    """As R's `t.test(extra ~ group, data = sleep)` prints it, paired and not."""
    first, second = (dict(zip("abcdefghij", values, strict=True)) for values in SLEEP)
    paired = difference(first, second)
    assert paired.paired
    assert paired.p == pytest.approx(0.002833, abs=1e-6)
    assert paired.interval == pytest.approx((-2.4598858, -0.7001142), abs=1e-6)
    apart = difference(first, {key.upper(): value for key, value in second.items()})
    assert not apart.paired
    assert apart.p == pytest.approx(0.07939, abs=1e-5)
    assert apart.interval == pytest.approx((-3.3654832, 0.2054832), abs=1e-6)
    assert (paired.mean, paired.is_real, apart.is_real) == (pytest.approx(-1.58), True, False)


def test_a_single_seed_tells_nothing():
    assert difference({"1": 0.3}, {"1": 0.4, "2": 0.5}) is None


def test_values_without_spread():
    assert difference({"1": 0.5, "2": 0.5}, {"1": 0.25, "2": 0.25}).p == 0
    assert difference({"1": 0.5, "2": 0.5}, {"1": 0.5, "2": 0.5}).p == 1
    assert difference({"1": 0.5, "2": 0.5}, {"3": 0.5, "4": 0.5}).p == 1


def test_the_pareto_front():
    points = [(1, 9), (2, 5), (3, 5), (4, 1), (5, 1), (1, 9), (9, 9)]
    assert pareto(points) == [True, True, False, True, False, True, False]
    assert pareto([]) == []
