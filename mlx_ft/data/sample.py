"""Some rows in place of all of them, when judging all would take too long."""

from __future__ import annotations

from typing import TypeVar

import numpy as np

from mlx_ft.data.encoded import Conversations, Examples

Rows = TypeVar("Rows", Examples, Conversations)

_STEP = 0x9E3779B97F4A7C15  # 2**64 over the golden ratio: its multiples fill [0, 2**64) evenly


def sample(rows: Rows, count: int | None) -> Rows:
    """`count` of the rows in their order, or all of them where there are no more; None: all.

    One comes from each of `count` equal stretches, so every file of a mixture and every part of a
    sorted file gives its share. Always the same ones. Their places within the stretches differ,
    as rows are often made in a fixed turn of kinds.
    """
    if count is None or count >= len(rows):
        return rows
    return rows[np.array([_place(i, count, len(rows)) for i in range(count)], dtype=np.int64)]


def _place(i: int, count: int, total: int) -> int:
    first, end = i * total // count, (i + 1) * total // count
    return first + (end - first) * (i * _STEP % 2**64) // 2**64
