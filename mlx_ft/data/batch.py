"""Examples to batches: data is seekable, a batch is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from mlx_ft.layout import Row, lay_out

SOME_BATCHES = 50  # that say enough of all


class Rows(Protocol):
    """Examples, wherever they lie."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Row: ...


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    inputs, targets: (B, T) int32, targets[b, t] the token after inputs[b, t]. mask: (B, T) bool,
    the targets that count. rows: (B,) int64, which examples these are; examples: they themselves.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    rows: np.ndarray
    examples: tuple[Row, ...]


class Batches:
    """Length-bucketed batches, freshly composed in each epoch; every row once an epoch.

    pad_id: fills rows up to a multiple of `pad_multiple`, which keeps the shapes few. window: how
    many batches at most are sorted by length together; small data gets smaller windows, so that
    its batches differ between epochs too. weights: (N,) how often an epoch shows each row: 2 is
    twice, and of rows with weight 0.5 every epoch has a half, two epochs in a row have all.
    """

    def __init__(
        self,
        examples: Rows,
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
        weights: np.ndarray | None = None,
        pad_id: int,
        pad_multiple: int = 8,
        window: int = 64,
    ) -> None:
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.pad_id = pad_id
        self.pad_multiple = pad_multiple
        self._groups = _groups(weights, len(examples))
        self.rows = sum(count for _, count in self._groups)
        self.window = max(1, min(window, len(self) // 2))
        self.lengths = lengths(examples)
        self._padded = _padded(self.lengths, pad_multiple)
        self._order: tuple[int, list[np.ndarray]] = (-1, [])  # of the epoch asked for last

    def __len__(self) -> int:
        """Batches in an epoch, a smaller one for the remainder included."""
        return -(-self.rows // self.batch_size)

    def at(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch, both from 0. Raises IndexError beyond the epoch's end."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        if self._order[0] != epoch:
            self._order = (epoch, self._compose(epoch))
        return collate(self.examples, self._order[1][index], self.pad_id, self.pad_multiple)

    def padding(self) -> float:
        """Share of the first epoch's cells that hold padding."""
        batches = self._compose(0)
        cells = sum(len(rows) * int(self._padded[rows].max()) for rows in batches)
        return 1 - sum(int((self.lengths[rows] - 1).sum()) for rows in batches) / cells

    def shared(self) -> float:
        """Share of the tokens of some batches that lie in beginnings counted already."""
        batches = self._compose(0)[:SOME_BATCHES]
        laid = sum(
            len(lay_out([self.examples[int(row)] for row in rows], share=True).tokens)
            for rows in batches
        )
        tokens = sum(int((self.lengths[rows] - 1).sum()) for rows in batches)
        return 1 - laid / tokens if tokens else 0.0

    def _compose(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch."""
        if not self.shuffle:
            return _cut(self._epoch_rows(epoch), self.batch_size)
        # Raw Philox output, unlike Generator's methods, is the same in every version of NumPy.
        random = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        rows = _shuffled(self._epoch_rows(epoch), random)
        windows = _cut(rows, self.window * self.batch_size)
        # Rows of one padded length stay in random order: sorting them would save nothing.
        by_length = [w[np.argsort(self._padded[w], kind="stable")] for w in windows]
        batches = list(itertools.chain(*(_cut(w, self.batch_size) for w in by_length)))
        return [batches[i] for i in _shuffled(np.arange(len(batches)), random)]

    def _epoch_rows(self, epoch: int) -> np.ndarray:
        """Every row as often as its weight says, in no order that matters."""
        return np.concatenate(
            [
                self._part(group, rows, count, epoch)
                for group, (rows, count) in enumerate(self._groups)
            ]
        )

    def _part(self, group: int, rows: np.ndarray, count: int, epoch: int) -> np.ndarray:
        """`count` rows: those at epoch * count and after of an endless row of permutations."""
        if count == len(rows):
            return rows
        first, last = epoch * count // len(rows), ((epoch + 1) * count - 1) // len(rows)
        passes = [
            _shuffled(rows, np.random.Philox(np.random.SeedSequence([self.seed, group, turn])))
            for turn in range(first, last + 1)
        ]
        begin = epoch * count - first * len(rows)
        return np.concatenate(passes)[begin : begin + count]


def lengths(examples: Rows) -> np.ndarray:
    """(N,) tokens of each example."""
    known = getattr(examples, "lengths", None)
    if known is not None:
        return np.asarray(known)
    return np.array([len(examples[i].tokens) for i in range(len(examples))], dtype=np.int64)


def _groups(weights: np.ndarray | None, rows: int) -> list[tuple[np.ndarray, int]]:
    """The rows of each weight, and how many of them an epoch shows."""
    if weights is None or not rows:
        return [(np.arange(rows), rows)]
    return [
        (chosen, in_an_epoch(len(chosen), float(weight)))
        for weight in np.unique(weights)
        for chosen in [np.flatnonzero(weights == weight)]
    ]


def in_an_epoch(rows: int, weight: float) -> int:
    """How many times an epoch shows a row of so many that have this weight."""
    return max(1, round(weight * rows)) if rows else 0


def sequential(
    examples: Rows, batch_size: int, pad_id: int, pad_multiple: int = 8
) -> Iterator[Batch]:
    """Every row once, the shortest first: for validation."""
    order = np.argsort(lengths(examples), kind="stable")
    for rows in _cut(order, batch_size):
        yield collate(examples, rows, pad_id, pad_multiple)


def collate(examples: Rows, rows: np.ndarray, pad_id: int, pad_multiple: int = 8) -> Batch:
    """One batch of the given rows. Padding is never a target."""
    chosen = tuple(examples[int(row)] for row in rows)
    longest = np.array([max(len(example.tokens) for example in chosen)])
    shape = len(rows), int(_padded(longest, pad_multiple)[0])
    inputs = np.full(shape, pad_id, dtype=np.int32)
    targets = np.full(shape, pad_id, dtype=np.int32)
    mask = np.zeros(shape, dtype=bool)
    for b, example in enumerate(chosen):
        length = len(example.tokens) - 1
        inputs[b, :length] = example.tokens[:-1]
        targets[b, :length] = example.tokens[1:]
        mask[b, :length] = example.targets[1:]
    return Batch(inputs, targets, mask, np.asarray(rows, dtype=np.int64), chosen)


def _padded(lengths: np.ndarray, multiple: int) -> np.ndarray:
    """Columns that examples of so many tokens need: their inputs, rounded up."""
    return -(-(lengths - 1) // multiple) * multiple


def _shuffled(rows: np.ndarray, random: np.random.Philox) -> np.ndarray:
    return rows[np.argsort(random.random_raw(len(rows)), kind="stable")]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
