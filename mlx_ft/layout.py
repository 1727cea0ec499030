"""Examples as one row of tokens without padding, in which common beginnings lie only once.

Everything but attention looks at one token at a time, so the tokens of a batch may lie in any
order. Attention runs segment by segment: a segment sees itself, causally, and all of the segments
that its row begins with.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

MIN_SHARED = 8  # tokens in common that are worth a segment of their own
DEEPEST = 16  # segments that a row is cut into at most, and one more


class Row(Protocol):
    """An example. tokens: (T,) int32; targets: (T,) bool, the tokens to be predicted."""

    @property
    def tokens(self) -> np.ndarray: ...  # noqa: D102
    @property
    def targets(self) -> np.ndarray: ...  # noqa: D102


@dataclass(frozen=True)
class Group:
    """Segments of one length that see the same tokens before their own; they lie side by side.

    start: index of their first token. count: segments. length: tokens of each. offset: tokens that
    their rows have before them; before: where these are, as (group, segment of it).
    """

    start: int
    count: int
    length: int
    offset: int = 0
    before: tuple[tuple[int, int], ...] = ()

    @property
    def end(self) -> int:
        """Index behind their last token."""
        return self.start + self.count * self.length

    def moved(self, tokens: int, groups: int) -> Group:
        """The same one behind so many tokens, and groups, of others."""
        before = tuple((group + groups, member) for group, member in self.before)
        return replace(self, start=self.start + tokens, before=before)


@dataclass(frozen=True)
class Layout:
    """A batch as one row of N tokens with M targets.

    tokens, offsets: (N,) int32; an offset is the number of tokens before it in its own row.
    origins: (N,) int64, the row (in the batch) of a token, the first one where several share it.
    groups: cover all tokens, in order. positions, labels: (M,) int32, where a target is predicted
    and which token it is; several rows may have theirs at one position.
    """

    tokens: np.ndarray
    offsets: np.ndarray
    origins: np.ndarray
    groups: tuple[Group, ...]
    positions: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, eq=False)
class _Segment:
    """The tokens [begin, end) on which `rows` agree; parent: what these rows have before."""

    rows: tuple[int, ...]
    begin: int
    end: int
    parent: _Segment | None

    @property
    def length(self) -> int:
        return self.end - self.begin

    @property
    def path(self) -> list[_Segment]:
        """From the beginning of the row to this one."""
        return [*(self.parent.path if self.parent else []), self]


def lay_out(examples: Sequence[Row], *, share: bool) -> Layout:
    """The inputs of a batch's rows: their tokens but the last one.

    share: what several rows begin with lies once, where that is `MIN_SHARED` tokens or more.
    """
    inputs = [np.asarray(example.tokens[:-1], dtype=np.int32) for example in examples]
    every = tuple(range(len(inputs)))
    if share:
        segments = list(_shared(inputs, every, 0, None))
    else:
        segments = [_Segment((row,), 0, len(inputs[row]), None) for row in every]
    return _placed(examples, inputs, segments)


def _shared(
    inputs: list[np.ndarray], rows: tuple[int, ...], begin: int, parent: _Segment | None
) -> Iterator[_Segment]:
    """The segments of `rows` from their token `begin` on, a parent before its children."""
    depth = 0 if parent is None else len(parent.path)
    alike: defaultdict[bytes, list[int]] = defaultdict(list)
    for row in rows:
        rest = inputs[row][begin:]
        # A row that ends sooner shares nothing more.
        shares = len(rest) >= MIN_SHARED and depth < DEEPEST
        alike[rest[:MIN_SHARED].tobytes() if shares else b"%d" % row].append(row)
    for members in alike.values():
        if len(members) == 1:
            if len(inputs[members[0]]) > begin:
                yield _Segment((members[0],), begin, len(inputs[members[0]]), parent)
            continue
        common = begin + _common([inputs[row][begin:] for row in members])
        segment = _Segment(tuple(members), begin, common, parent)
        yield segment
        yield from _shared(inputs, segment.rows, common, segment)


def _common(arrays: list[np.ndarray]) -> int:
    """How many leading entries all arrays have in common."""
    shortest = min(len(array) for array in arrays)
    differing = np.zeros(shortest, dtype=bool)
    for array in arrays[1:]:
        differing |= array[:shortest] != arrays[0][:shortest]
    return int(differing.argmax()) if differing.any() else shortest


def _placed(examples: Sequence[Row], inputs: list[np.ndarray], segments: list[_Segment]) -> Layout:
    grouped: defaultdict[tuple[int, int], list[_Segment]] = defaultdict(list)
    for segment in segments:
        grouped[id(segment.parent), segment.length].append(segment)
    laid = [segment for members in grouped.values() for segment in members]
    ends = list(itertools.accumulate(segment.length for segment in laid))
    starts = {id(s): end - s.length for s, end in zip(laid, ends, strict=True)}
    places = {
        id(segment): (group, member)
        for group, members in enumerate(grouped.values())
        for member, segment in enumerate(members)
    }
    groups = tuple(
        Group(
            starts[id(first)],
            len(members),
            first.length,
            first.begin,
            tuple(places[id(segment)] for segment in first.path[:-1]),
        )
        for members in grouped.values()
        for first in members[:1]
    )
    positions, labels = _targets(examples, inputs, laid, starts)
    return Layout(
        np.concatenate([inputs[s.rows[0]][s.begin : s.end] for s in laid]),
        np.concatenate([np.arange(s.begin, s.end, dtype=np.int32) for s in laid]),
        np.concatenate([np.full(s.length, s.rows[0], dtype=np.int64) for s in laid]),
        groups,
        positions,
        labels,
    )


def _targets(
    examples: Sequence[Row], inputs: list[np.ndarray], laid: list[_Segment], starts: dict[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Every row's targets, row by row, as (positions, labels)."""
    places = [np.empty(len(tokens), dtype=np.int32) for tokens in inputs]
    for segment in laid:
        start = starts[id(segment)]
        for row in segment.rows:
            places[row][segment.begin : segment.end] = np.arange(start, start + segment.length)
    masks = [np.asarray(example.targets[1:], dtype=bool) for example in examples]
    labels = [
        np.asarray(example.tokens[1:], dtype=np.int32)[mask]
        for example, mask in zip(examples, masks, strict=True)
    ]
    positions = [place[mask] for place, mask in zip(places, masks, strict=True)]
    return np.concatenate(positions), np.concatenate(labels)
