import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.split import split
from mlx_ft.errors import DataError


def prints(values):
    """Fingerprints as they come: spread over 64 bits."""
    return np.array([(value + 1) * 0x9E3779B97F4A7C15 % 2**64 for value in values], np.uint64)


def none(count):
    return np.zeros(count, np.int32)


@settings(max_examples=60)
@given(
    st.lists(st.tuples(st.integers(0, 15), st.integers(0, 2)), min_size=2, max_size=60),
    st.floats(0.01, 0.99),
    st.integers(0, 2**32 - 1),
)
def test_a_split_loses_nothing_and_shares_nothing(drawn, fraction, seed):
    said = prints([value for value, _ in drawn])
    labels = np.array([label for _, label in drawn], np.int32)
    if len({value for value, _ in drawn}) < 2:
        with pytest.raises(DataError, match=r"cannot be split.*data\.valid_fraction=0"):
            split(said, labels, fraction, seed)
        return
    aside = split(said, labels, fraction, seed)
    assert aside.shape == (len(drawn),)
    assert 0 < aside.sum() < len(drawn)
    assert not set(said[aside].tolist()) & set(said[~aside].tolist())


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_neither_side_of_a_split_is_empty(fraction):
    assert split(prints([1, 2]), none(2), fraction, 1).sum() == 1


def test_no_fraction_no_split():
    assert not split(prints([1, 2, 3]), none(3), 0, 1).any()


@pytest.mark.parametrize("fraction", [0.1, 0.3, 0.5, 0.9])
def test_a_split_takes_its_share_of_each_label(fraction):
    labels = np.array([i % 10 == 0 for i in range(400)], np.int32)
    aside = split(prints(range(400)), labels, fraction, 3)
    assert aside.sum() == pytest.approx(400 * fraction, abs=1)
    assert labels[aside].sum() == pytest.approx(40 * fraction, abs=1)


def test_a_split_depends_on_the_seed_and_not_on_the_order_of_rows():
    said = prints(range(200))
    first = set(said[split(said, none(200), 0.1, 1)].tolist())
    backwards = said[::-1]
    assert set(backwards[split(backwards, none(200), 0.1, 1)].tolist()) == first
    other = set(said[split(said, none(200), 0.1, 2)].tolist())
    assert len(first & other) < 10
