from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mlx_ft.data.batch import Batches, sequential
from mlx_ft.data.chat import Example
from mlx_ft.data.rows import Record
from tests.fakes import answer_row

PAD = 0


def example(length: int, first: int = 1) -> Example:
    """Tokens first, first + 1, ...; the second half are targets."""
    tokens = np.arange(first, first + length, dtype=np.int32)
    targets = np.arange(length) >= max(1, length // 2)
    return Example(tokens, targets, 0, 0, None, Record({}, Path("a"), 1))


def examples(lengths) -> list[Example]:
    return [example(length, 1 + 1000 * i) for i, length in enumerate(lengths)]


def same(a, b) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in vars(a))


def test_a_batch_written_out():
    batch = Batches(examples([3, 5]), 2, 0, shuffle=False, pad_id=9, pad_multiple=3).at(0, 0)
    assert batch.inputs.tolist() == [[1, 2, 9, 9, 9, 9], [1001, 1002, 1003, 1004, 9, 9]]
    assert batch.targets.tolist() == [[2, 3, 9, 9, 9, 9], [1002, 1003, 1004, 1005, 9, 9]]
    assert batch.mask.astype(int).tolist() == [[1, 1, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0]]
    assert batch.rows.tolist() == [0, 1]
    kinds = [array.dtype for array in (batch.inputs, batch.targets, batch.mask, batch.rows)]
    assert kinds == [np.int32, np.int32, np.bool_, np.int64]


lengths = st.lists(st.integers(2, 60), min_size=1, max_size=60)


@settings(max_examples=80)
@given(lengths, st.integers(1, 9), st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(1, 9))
def test_every_row_once_an_epoch_and_its_tokens_and_targets_unchanged(
    lengths, size, seed, epoch, multiple
):
    rows = examples(lengths)
    batches = Batches(rows, size, seed, pad_id=PAD, pad_multiple=multiple)
    seen = []
    counted = 0
    for index in range(len(batches)):
        batch = batches.at(epoch, index)
        assert batch.inputs.shape[1] % multiple == 0
        counted += int(batch.mask.sum())
        for b, row in enumerate(batch.rows):
            tokens, targets = rows[row].tokens, rows[row].targets
            n = len(tokens) - 1
            assert np.array_equal(batch.inputs[b, :n], tokens[:-1])
            assert np.array_equal(batch.targets[b, batch.mask[b]], tokens[targets])
            assert not batch.mask[b, n:].any()
            assert (batch.inputs[b, n:] == PAD).all()
            seen.append(row)
    assert sorted(seen) == list(range(len(rows)))
    assert len(batches) == -(-len(rows) // size)
    assert counted == sum(int(row.targets[1:].sum()) for row in rows)


@settings(max_examples=30)
@given(
    lengths, st.integers(1, 9), st.lists(st.integers(0, 3), min_size=1, max_size=6), st.randoms()
)
def test_a_batch_depends_on_nothing_that_was_asked_before(lengths, size, epochs, random):
    rows = examples(lengths)
    used = Batches(rows, size, 7, pad_id=PAD)
    for epoch in epochs:
        index = random.randrange(len(used))
        assert same(used.at(epoch, index), Batches(rows, size, 7, pad_id=PAD).at(epoch, index))


def test_the_order_of_a_seed_is_fixed_for_ever():
    batches = Batches(examples([5] * 6), 2, 42, pad_id=PAD)
    order = [[batches.at(epoch, i).rows.tolist() for i in range(3)] for epoch in (0, 1)]
    assert order == [[[0, 1], [5, 3], [4, 2]], [[2, 5], [3, 4], [0, 1]]]


def epoch_of(batches, epoch):
    return [tuple(sorted(batches.at(epoch, i).rows.tolist())) for i in range(len(batches))]


@pytest.mark.parametrize("count", [100, 1200])
def test_composition_is_fresh_in_each_epoch_and_for_each_seed(count):
    rows = examples(np.random.default_rng(0).integers(20, 100, count))
    first = epoch_of(Batches(rows, 8, 1, pad_id=PAD), 0)
    for other in (
        epoch_of(Batches(rows, 8, 1, pad_id=PAD), 1),
        epoch_of(Batches(rows, 8, 2, pad_id=PAD), 0),
    ):
        assert len(set(first) & set(other)) < 0.1 * len(first)


def test_batches_come_in_random_order_of_length():
    rows = examples(np.random.default_rng(0).integers(20, 100, 800))
    batches = Batches(rows, 8, 1, pad_id=PAD)
    widths = [batches.at(0, i).inputs.shape[1] for i in range(len(batches))]
    assert abs(np.corrcoef(widths, np.arange(len(widths)))[0, 1]) < 0.3


def test_padding_is_small_and_the_shapes_are_few():
    lengths = np.clip(np.random.default_rng(0).lognormal(4.3, 0.5, 1200).astype(int), 4, 512)
    rows = examples(lengths)

    def share(batches) -> float:
        cells = sum(batch.inputs.size for batch in batches)
        return 1 - sum(length - 1 for length in lengths) / cells

    bucketed = Batches(rows, 8, 1, pad_id=PAD)
    unsorted = Batches(rows, 8, 1, pad_id=PAD, shuffle=False)
    made = [bucketed.at(0, i) for i in range(len(bucketed))]
    assert share(made) < 0.08
    assert share(unsorted.at(0, i) for i in range(len(unsorted))) > 0.3
    assert len({batch.inputs.shape for batch in made}) < 40


def test_beyond_the_epoch():
    batches = Batches(examples([5] * 3), 2, 0, pad_id=PAD)
    for index in (-1, 2):
        with pytest.raises(IndexError, match=f"batch {index} of an epoch of 2"):
            batches.at(0, index)


def test_sequential_takes_every_row_once_the_shortest_first():
    rows = examples([9, 3, 20, 3, 12])
    made = list(sequential(rows, 2, PAD))
    assert [batch.rows.tolist() for batch in made] == [[1, 3], [0, 4], [2]]
    assert [batch.inputs.shape for batch in made] == [(2, 8), (2, 16), (1, 24)]
    assert sum(int(batch.mask.sum()) for batch in made) == sum(int(r.targets.sum()) for r in rows)
    assert list(sequential([], 2, PAD)) == []


def shown(batches, epoch):
    return np.concatenate([batches.at(epoch, i).rows for i in range(len(batches))])


def test_a_weight_is_how_often_an_epoch_shows_a_row():
    rows = examples([5] * 60)
    weights = np.array([1.0] * 20 + [2.0] * 10 + [0.5] * 30)
    batches = Batches(rows, 8, 3, pad_id=PAD, weights=weights)
    assert batches.rows == 20 + 20 + 15
    halves = []
    for epoch in range(4):
        counts = np.bincount(shown(batches, epoch), minlength=60)
        assert (counts[:20] == 1).all()
        assert (counts[20:30] == 2).all()
        assert set(counts[30:].tolist()) == {0, 1}
        assert counts[30:].sum() == 15
        halves.append(counts[30:])
    assert (halves[0] + halves[1] == 1).all()  # two epochs in a row show all of them
    assert (halves[2] + halves[3] == 1).all()
    assert (halves[0] != halves[2]).any()


@pytest.mark.parametrize("weight", [0.3, 0.7, 1.5, 2.9])
def test_over_many_epochs_every_row_has_its_share(weight):
    batches = Batches(examples([5] * 10), 4, 0, pad_id=PAD, weights=np.full(10, weight))
    counts = sum(np.bincount(shown(batches, epoch), minlength=10) for epoch in range(40))
    assert counts.max() - counts.min() <= 1
    assert abs(counts.sum() - 40 * weight * 10) <= 40


def test_weights_of_one_change_nothing():
    rows = examples(range(5, 35))
    plain = Batches(rows, 4, 7, pad_id=PAD)
    weighted = Batches(rows, 4, 7, pad_id=PAD, weights=np.ones(30))
    for epoch in (0, 3):
        assert shown(plain, epoch).tolist() == shown(weighted, epoch).tolist()


def test_the_share_of_tokens_that_rows_begin_with_alike():
    prompt = list(range(20))
    rows = [answer_row([*prompt, 50 + row, *range(5)], 20) for row in range(8)]
    batches = Batches(rows, 4, 0, pad_id=PAD)
    assert batches.shared() == pytest.approx(1 - (20 + 4 * 5) / (4 * 25))
    assert Batches(rows[:1], 4, 0, pad_id=PAD).shared() == 0
