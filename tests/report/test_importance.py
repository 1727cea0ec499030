"""Shares of the variance on grids where they are known, and how sure they are said to be."""

import itertools

import numpy as np
import pytest

from mlx_ft.report.importance import between, importance


def grid(*axes):
    return [list(values) for values in zip(*itertools.product(*axes), strict=True)]


def shares(found):
    return {one.name: one.share for one in found.shares}


def test_an_additive_grid_in_closed_form():
    rank, rate = grid([4, 8, 16], [1, 2, 3, 4])
    y = [{4: 0.0, 8: 1.0, 16: 2.0}[a] + 3.0 * b for a, b in zip(rank, rate, strict=True)]
    found = importance({"rank": rank, "rate": rate}, y)
    # Population variances of the effects: 2/3 of {0, 1, 2}, and 9 * 5/4 of {3, 6, 9, 12}.
    total = 2 / 3 + 11.25
    assert shares(found) == pytest.approx({"rate": 11.25 / total, "rank": 2 / 3 / total})
    assert [one.name for one in found.shares] == ["rate", "rank"]
    assert found.together == pytest.approx(0, abs=1e-12)
    assert (found.seeds, found.trials) == (None, 12)
    for one in found.shares:  # nothing is left that the interval could come from
        assert one.interval == pytest.approx((one.share, one.share), abs=1e-9)


def test_what_only_the_combination_explains():
    a, b = grid([0, 1], [0, 1])
    found = importance({"a": a, "b": b}, [0.0, 1.0, 1.0, 0.0])
    assert shares(found) == pytest.approx({"a": 0, "b": 0})
    assert found.together == pytest.approx(1)


def test_what_lies_between_seeds():
    a, seed = grid([0, 1], [-1, 1])
    y = [2.0 * x + s for x, s in zip(a, seed, strict=True)]  # effects of variance 1 and 1
    found = importance({"a": a}, y)
    assert found.seeds == pytest.approx(0.5)
    assert shares(found) == pytest.approx({"a": 0.5})
    assert found.together == pytest.approx(0, abs=1e-12)


def test_a_grid_with_a_hole_has_no_rest():
    rank, rate = grid([4, 8, 16], [1, 2, 3])
    found = importance({"rank": rank[:-1], "rate": rate[:-1]}, [*range(8)])
    assert found.together is None
    assert all(0 <= one.share <= 1 for one in found.shares)


def test_nothing_to_explain():
    assert importance({"a": [1, 2, 3]}, [0.5, 0.5, 0.5]) is None
    assert importance({"a": [1, 2]}, [0.1, 0.5]) is None


def test_parameters_of_one_value_or_of_one_run_each_are_left_out():
    settings = {"a": [1, 1, 2, 2], "one": [3] * 4, "text": ["p", "q", "r", "s"]}
    assert shares(importance(settings, [0.0, 0.1, 1.0, 1.1])).keys() == {"a"}


def test_numbers_of_a_search_are_cut_into_ranges():
    rng = np.random.default_rng(0)
    rate, other = 10 ** rng.uniform(-5, -3, 40), rng.uniform(0, 1, 40)
    found = importance({"other": other.tolist(), "rate": rate.tolist()}, np.log(rate).tolist())
    first, second = found.shares
    assert (first.name, first.bins, second.bins) == ("rate", 4, 4)
    assert first.share > 0.85  # 1 - 1/16 for even bins of an even spread
    assert second.share < 0.3
    assert found.together is None


def test_the_interval_is_repeatable_and_holds_the_share():
    rank, rate, _ = grid([4, 8, 16], [1, 2, 3], [1, 2])
    rng = np.random.default_rng(1)
    y = [0.2 * b + 0.1 * e for b, e in zip(rate, rng.normal(size=18), strict=True)]
    first, again = (importance({"rank": rank, "rate": rate}, y) for _ in range(2))
    assert [one.interval for one in first.shares] == [one.interval for one in again.shares]
    for one in first.shares:
        assert one.interval[0] <= one.share <= one.interval[1]
        assert 0 <= one.interval[0] < one.interval[1] <= 1
    assert importance({"rank": rank, "rate": rate}, y, seed=1).shares[0].interval != (
        first.shares[0].interval
    )


def test_the_interval_covers_the_true_share_most_of_the_time():
    rank, rate = grid([0, 1, 2], [0, 1, 2, 3], [0, 1])[:2]
    effect = np.array(rate) * 0.5
    variance = effect.var()
    noise = 0.5
    true = variance / (variance + noise**2)  # of a very large experiment
    hits = 0
    for trial in range(100):
        y = effect + noise * np.random.default_rng(trial).normal(size=len(effect))
        found = {one.name: one for one in importance({"rank": rank, "rate": rate}, y).shares}
        low, high = found["rate"].interval
        hits += low <= true <= high
        assert found["rank"].interval[0] < 0.2  # no effect: hardly ever said to have one
    assert hits >= 85


def test_chance_alone_gives_its_share_on_average():
    rank, rate = grid([0, 1, 2], [0, 1, 2, 3])
    rng = np.random.default_rng(0)
    drawn = between(rate, rng.normal(size=(4000, 12)))
    assert drawn.mean() == pytest.approx(3 / 11, abs=0.01)
    found = importance({"rank": rank, "rate": rate}, rng.normal(size=12).tolist())
    assert {one.name: one.by_chance for one in found.shares} == {"rate": 3 / 11, "rank": 2 / 11}
