"""Examples to batches: data is seekable, a batch is a pure function of (seed, epoch, index)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_ft.data.chat import Example


@dataclass(frozen=True)
class Batch:
    """Rows padded on the right to one length.

    inputs, targets: (B, T) int32, targets[b, t] the token after inputs[b, t]. mask: (B, T) bool,
    the targets that count. rows: (B,) int64, which examples these are.
    """

    inputs: np.ndarray
    targets: np.ndarray
    mask: np.ndarray
    rows: np.ndarray


class Batches:
    """Length-bucketed batches, freshly composed in each epoch; every row once an epoch.

    pad_id: fills rows up to a multiple of `pad_multiple`, which keeps the shapes few. window: how
    many batches at most are sorted by length together; small data gets smaller windows, so that
    its batches differ between epochs too.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int,
        *,
        shuffle: bool = True,
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
        self.window = max(1, min(window, len(self) // 2))
        self._padded = np.array([_padded(example, pad_multiple) for example in examples])
        self._order: tuple[int, list[np.ndarray]] = (-1, [])  # of the epoch asked for last

    def __len__(self) -> int:
        """Batches in an epoch, a smaller one for the remainder included."""
        return -(-len(self.examples) // self.batch_size)

    def at(self, epoch: int, index: int) -> Batch:
        """Batch `index` of an epoch, both from 0. Raises IndexError beyond the epoch's end."""
        if not 0 <= index < len(self):
            raise IndexError(f"batch {index} of an epoch of {len(self)}")
        if self._order[0] != epoch:
            self._order = (epoch, self._compose(epoch))
        return collate(self.examples, self._order[1][index], self.pad_id, self.pad_multiple)

    def target_tokens(self) -> int:
        """Targets in an epoch."""
        return sum(int(example.targets.sum()) for example in self.examples)

    def _compose(self, epoch: int) -> list[np.ndarray]:
        """The rows of each batch of an epoch."""
        if not self.shuffle:
            return _cut(np.arange(len(self.examples)), self.batch_size)
        # Raw Philox output, unlike Generator's methods, is the same in every version of NumPy.
        random = np.random.Philox(np.random.SeedSequence([self.seed, epoch]))
        rows = _shuffled(np.arange(len(self.examples)), random)
        windows = _cut(rows, self.window * self.batch_size)
        # Rows of one padded length stay in random order: sorting them would save nothing.
        by_length = [w[np.argsort(self._padded[w], kind="stable")] for w in windows]
        batches = list(itertools.chain(*(_cut(w, self.batch_size) for w in by_length)))
        return [batches[i] for i in _shuffled(np.arange(len(batches)), random)]


def sequential(
    examples: Sequence[Example], batch_size: int, pad_id: int, pad_multiple: int = 8
) -> Iterator[Batch]:
    """Every row once, the shortest first: for validation."""
    order = np.argsort([len(example.tokens) for example in examples], kind="stable")
    for rows in _cut(order, batch_size):
        yield collate(examples, rows, pad_id, pad_multiple)


def collate(
    examples: Sequence[Example], rows: np.ndarray, pad_id: int, pad_multiple: int = 8
) -> Batch:
    """One batch of the given rows. Padding is never a target."""
    shape = len(rows), max(_padded(examples[row], pad_multiple) for row in rows)
    inputs = np.full(shape, pad_id, dtype=np.int32)
    targets = np.full(shape, pad_id, dtype=np.int32)
    mask = np.zeros(shape, dtype=bool)
    for b, row in enumerate(rows):
        example = examples[row]
        length = len(example.tokens) - 1
        inputs[b, :length] = example.tokens[:-1]
        targets[b, :length] = example.tokens[1:]
        mask[b, :length] = example.targets[1:]
    return Batch(inputs, targets, mask, np.asarray(rows, dtype=np.int64))


def _padded(example: Example, multiple: int) -> int:
    """Columns that an example needs: its inputs, rounded up."""
    return -(-(len(example.tokens) - 1) // multiple) * multiple


def _shuffled(rows: np.ndarray, random: np.random.Philox) -> np.ndarray:
    return rows[np.argsort(random.random_raw(len(rows)), kind="stable")]


def _cut(rows: np.ndarray, size: int) -> list[np.ndarray]:
    return [rows[i : i + size] for i in range(0, len(rows), size)]
