"""Intervals and tests agree with SciPy, or with all that there is to count."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mlx_ft import intervals


@given(st.integers(1, 400).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
def test_wilson_is_scipys(shares):
    right, total = shares
    for level in (0.05, 0.2):
        expected = stats.binomtest(right, total).proportion_ci(1 - level, method="wilson")
        found = intervals.wilson(right, total, level)
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_exact_binomial_test(first, second):
    expected = stats.binomtest(first, first + second).pvalue if first + second else 1.0
    assert intervals.mcnemar(first, second) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_by_counting_every_outcome():
    n, seen = 9, (2, 7)
    as_far = [sum(flips) for flips in itertools.product((0, 1), repeat=n)
              if abs(sum(flips) - n / 2) >= abs(seen[0] - n / 2)]  # fmt: skip
    assert intervals.mcnemar(*seen) == pytest.approx(len(as_far) / 2**n)
    assert intervals.mcnemar(5000, 6000) < 1e-20  # of many rows, too


@pytest.mark.parametrize("values", [[0.0, 1.0, 5.0], [1.0, 1.0, 0.0, 0.0], [-2.0, 0.5, 3.0, 4.0]])
def test_the_bootstrap_is_that_of_all_samples(values):
    """All n^n samples are equally likely; the quantiles of their means are the interval."""
    n = len(values)
    means = sorted(sum(sample) / n for sample in itertools.product(values, repeat=n))
    low, high = intervals.bootstrap(values)
    for end, point in ((low, 0.025), (high, 0.975)):
        at_most = sum(mean <= end + 1e-9 for mean in means) / len(means)
        below = sum(mean < end - 1e-9 for mean in means) / len(means)
        assert below - 0.01 <= point <= at_most + 0.01


def test_the_bootstrap_is_scipys_for_many_values():
    values = np.random.default_rng(3).exponential(size=300)
    expected = stats.bootstrap((values,), np.mean, n_resamples=9999, method="percentile",
                               rng=np.random.default_rng(1)).confidence_interval  # fmt: skip
    assert intervals.bootstrap(values.tolist()) == pytest.approx(expected, abs=0.01)
    assert intervals.bootstrap(values.tolist()) == intervals.bootstrap(values.tolist())  # a seed


def test_many_values_are_taken_a_part_at_a_time(monkeypatch):
    values = [0.0, 1.0, 2.0, 9.0]
    whole = intervals.bootstrap(values)
    monkeypatch.setattr(intervals, "AT_ONCE", 40)
    assert intervals.bootstrap(values) == pytest.approx(whole, abs=0.4)
    assert intervals.bootstrap([3.0] * 50) == (3.0, 3.0)


def test_a_gap_of_shares_has_a_p_and_one_of_numbers_has_not():
    found = intervals.gap([1, 0, 0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 1, 1, 1, 0])
    assert (found.mean, found.only_first, found.only_second) == (5 / 8, 1, 6)
    assert found.p == pytest.approx(intervals.mcnemar(1, 6))
    assert not found.is_real
    numbers = intervals.gap([0.5, 0.1, 0.2], [0.9, 0.3, 0.5])
    assert numbers.p is None
    assert numbers.is_real
    assert numbers.mean == pytest.approx(0.3)
    assert numbers.interval[0] > 0
    same = intervals.gap([1, 0], [1, 0])
    assert (same.mean, same.interval, same.p, same.is_real) == (0, (0, 0), 1.0, False)
    assert math.isclose(same.p, 1.0)
