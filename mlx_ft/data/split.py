"""Training and validation rows, when the data brings no split of its own."""

from __future__ import annotations

import numpy as np

from mlx_ft.errors import DataError


def split(fingerprints: np.ndarray, labels: np.ndarray, fraction: float, seed: int) -> np.ndarray:
    """(rows,) bool: which rows are set aside; about `fraction` of them, of each label.

    fingerprints: (rows,) uint64; rows that say the same stay on one side. labels: (rows,) int.
    Which rows go depends on the seed and on what they say, not on their order. Raises DataError
    when a side would be empty.
    """
    aside = np.zeros(len(fingerprints), bool)
    if fraction == 0:
        return aside
    distinct, first, group = np.unique(fingerprints, return_index=True, return_inverse=True)
    if len(distinct) < 2:
        raise DataError(
            f"{len(fingerprints)} row(s), {len(distinct)} of them distinct, cannot be split into "
            "training and validation rows; add rows, give data.valid_path, or set "
            "data.valid_fraction=0."
        )
    sizes = np.bincount(group)
    # Systematic sampling: with the groups in order of label, then by a seeded hash, a group is
    # set aside whenever the share so far falls behind. So every label gives its share.
    order = np.lexsort((_hash(distinct, seed), labels[first]))
    taken = seen = 0
    chosen = np.zeros(len(distinct), bool)
    for one in order.tolist():
        seen += sizes[one]
        if taken + sizes[one] / 2 <= fraction * seen:
            chosen[one] = True
            taken += sizes[one]
    if not chosen.any():
        chosen[order[np.argmin(sizes[order])]] = True
    elif chosen.all():
        chosen[order[-1]] = False
    return np.asarray(chosen[group])


def _hash(values: np.ndarray, seed: int) -> np.ndarray:
    """SplitMix64 (Steele, Lea & Flood 2014) of each value and the seed."""
    mixed = values + np.uint64(seed * 0x9E3779B97F4A7C15 % 2**64)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(mixed ^ (mixed >> np.uint64(31)))
