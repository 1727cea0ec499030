"""Training, validation and test sides: whole sections, and nothing that overlaps across."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence

from mlx_ft.documents.prose import words

RUN = 8  # words in a row that two items must not share across the split


def shingles(text: str) -> set[tuple[str, ...]]:
    """Every run of `RUN` words; a shorter text is one run."""
    found = words(text)
    if len(found) < RUN:
        return {tuple(found)} if found else set()
    return {tuple(found[i : i + RUN]) for i in range(len(found) - RUN + 1)}


def groups(texts: Mapping[str, Iterable[str]]) -> list[list[str]]:
    """Sections (by key) that share a run of words, joined; ordered by their first key.

    texts: what each section's items say.
    """
    parent: dict[str, str] = {key: key for key in texts}

    def root(key: str) -> str:
        while parent[key] != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    first: dict[Hashable, str] = {}
    for key in sorted(texts):
        for text in texts[key]:
            for run in shingles(text):
                a, b = root(first.setdefault(run, key)), root(key)
                parent[max(a, b)] = min(a, b)
    joined: dict[str, list[str]] = defaultdict(list)
    for key in sorted(texts):
        joined[root(key)].append(key)
    return [joined[key] for key in sorted(joined)]


def split(
    joined: Sequence[Sequence[str]],
    sizes: Mapping[str, int],
    fractions: Mapping[str, float],
    seed: int,
) -> dict[str, str]:
    """Section key -> side; a group goes to one side as a whole.

    sizes: items of each section. fractions: share of the items for each side but `train`. Groups
    are taken in an order that depends on the seed and their first key alone, so that a new file
    moves few sections of others; one that would overfill a side stays in training.
    """
    total = sum(sizes.values())
    order = sorted(joined, key=lambda group: _hash(seed, group[0]))
    sides = {key: "train" for group in joined for key in group}
    taken: set[str] = set()
    for side, fraction in fractions.items():
        room = fraction * total
        for group in order:
            size = sum(sizes[key] for key in group)
            if group[0] in taken or not size or size > room + 0.5:
                continue
            room -= size
            taken.add(group[0])
            sides.update(dict.fromkeys(group, side))
    return sides


def _hash(seed: int, key: str) -> bytes:
    return hashlib.sha256(f"{seed}\0{key}".encode()).digest()
