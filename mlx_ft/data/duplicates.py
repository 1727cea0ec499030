"""Rows that say nearly the same: MinHash (Broder 1997) over triples of words."""

from __future__ import annotations

import re
import string
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from mlx_ft.data.rows import Conversation

PERMUTATIONS = 64
BANDS = 16  # of four values each: a pair with similarity s meets with probability 1 - (1 - s^4)^16
SIMILAR = 0.7  # share of equal values, an estimate of the Jaccard similarity
SHINGLE = 3
# Words; where a script does not part them by spaces, each character.
_WORDS = re.compile(r"[\u0e00-\u0eff\u1000-\u109f\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|\w+")
_MIX = tuple(
    np.uint64(value) for value in (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9)
)


_ASCII = str.maketrans(
    string.ascii_uppercase + string.punctuation.replace("_", ""),
    string.ascii_lowercase + " " * (len(string.punctuation) - 1),
)
# h(x) = a x + b mod 2^32 for odd a: 2-universal in its high bits (Dietzfelbinger et al. 1997).
_RANDOM = np.random.Philox(20260).random_raw(2 * PERMUTATIONS).astype(np.uint32)
_FACTORS, _OFFSETS = _RANDOM[:PERMUTATIONS] | np.uint32(1), _RANDOM[PERMUTATIONS:]


class Signatures:
    """Collects the signatures of rows, some hundred at a time."""

    def __init__(self) -> None:
        self._ids: dict[str, int] = {}
        self._parts: list[np.ndarray] = []

    def add(self, conversations: Sequence[Conversation]) -> None:
        """Append a signature for each row."""
        if len(self._ids) > 1_000_000:  # the memory of it must not grow with the file
            self._ids.clear()
        ids: list[int] = []
        ends = []
        for conversation in conversations:
            for text in _said(conversation):
                ids.extend(map(self._id, _words(text)))
            ends.append(len(ids))
        shingles = _shingles(np.array(ids, dtype=np.uint64))
        self._parts.append(_minima(shingles, np.array(ends, dtype=np.int64)))

    def all(self) -> np.ndarray:
        """(rows, PERMUTATIONS) uint32."""
        return np.concatenate(self._parts or [np.zeros((0, PERMUTATIONS), np.uint32)])

    def _id(self, word: str) -> int:
        """A number for a word: the same in every run, unlike `hash`."""
        known = self._ids.get(word)
        if known is None:
            known = self._ids[word] = _stable_hash(word)
        return known


def _words(text: str) -> list[str]:
    if text.isascii():  # as the pattern does it, and several times faster
        return text.translate(_ASCII).split()
    return _WORDS.findall(text.casefold())


def _minima(shingles: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """(rows, PERMUTATIONS) uint32: the least value of every hash function over each row.

    shingles: (words,) uint32, of which row r has those from ends[r - 1] on; the last two begin in
    it and end in the next one, so only rows of fewer than three words use theirs.
    """
    begins = np.concatenate([[0], ends[:-1]])
    counts = np.maximum(ends - begins - (SHINGLE - 1), np.minimum(ends - begins, 1))
    if not counts.sum():
        return np.full((len(ends), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    starts = np.concatenate([[0], np.cumsum(counts)[:-1]])
    kept = np.repeat(begins - starts, counts) + np.arange(counts.sum())
    chosen = shingles[kept]
    filled = counts > 0
    found = np.full((len(ends), PERMUTATIONS), np.iinfo(np.uint32).max, np.uint32)
    for i in range(PERMUTATIONS):
        values = chosen * _FACTORS[i] + _OFFSETS[i]
        found[filled, i] = np.minimum.reduceat(values, starts[filled])
    return found


def _said(conversation: Conversation) -> Iterator[str]:
    """What a row says; instructions that all rows share would make them all alike."""
    if conversation.text is not None:
        yield conversation.text
    for message in conversation.messages:
        if message.role != "system":
            yield message.content


def _stable_hash(word: str) -> int:
    value = 0xCBF29CE484222325  # FNV-1a
    for byte in word.encode("utf-8", "surrogatepass"):
        value = ((value ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return value


def _shingles(words: np.ndarray) -> np.ndarray:
    """A 32-bit number for every three words in a row: entry i is of words i, i + 1, i + 2."""
    padded = np.concatenate([words, np.zeros(SHINGLE - 1, np.uint64)])
    mixed = np.zeros(len(words), np.uint64)
    for i, factor in enumerate(_MIX):
        mixed = (mixed ^ padded[i : i + len(words)]) * factor
        mixed ^= mixed >> np.uint64(29)
    return (mixed >> np.uint64(32)).astype(np.uint32)


@dataclass(frozen=True)
class Groups:
    """Rows that say nearly the same. of: (rows,) a group's number; rows alone have their own."""

    of: np.ndarray

    def repeats(self) -> int:
        """Rows beyond the first of each group."""
        return len(self.of) - len(np.unique(self.of))

    def pairs(self, these: np.ndarray) -> np.ndarray:
        """(repeats, 2) of `these` rows: each that repeats another, and the first of its group."""
        _, first, inverse = np.unique(self.of[these], return_index=True, return_inverse=True)
        before = first[inverse]
        again = np.flatnonzero(before != np.arange(len(these)))
        return np.stack([these[again], these[before[again]]], axis=1)

    def shared(self, these: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Which rows of `these` have a likeness among `others`; both are row indices."""
        return np.asarray(these[np.isin(self.of[these], self.of[others])])

    def partner(self, row: int, others: np.ndarray) -> int:
        """The first row of `others` in the same group."""
        return int(others[np.flatnonzero(self.of[others] == self.of[row])[0]])


def group(signatures: np.ndarray, fingerprints: np.ndarray) -> Groups:
    """Rows joined where their fingerprints are equal or their signatures agree to `SIMILAR`."""
    rows = len(signatures)
    parent = np.arange(rows)
    width = PERMUTATIONS // BANDS
    keys = [_key(signatures[:, band * width : (band + 1) * width]) for band in range(BANDS)]
    for key, exact in [(fingerprints, True), *((key, False) for key in keys)]:
        order = np.argsort(key, kind="stable")
        same = key[order][1:] == key[order][:-1]
        if not same.any():
            continue
        left, right = order[:-1][same], order[1:][same]
        first = order[_run_starts(same)][1:][same]  # of the bucket: the pairs stay linear in rows
        for a, b in ((left, right), (first, right)):
            agree = np.ones(len(a), bool) if exact else _similar(signatures, a, b)
            for x, y in zip(a[agree].tolist(), b[agree].tolist(), strict=True):
                _join(parent, x, y)
    return Groups(np.array([_root(parent, row) for row in range(rows)], dtype=np.int64))


def _key(band: np.ndarray) -> np.ndarray:
    key = np.zeros(len(band), np.uint64)
    for column in range(band.shape[1]):
        key = (key ^ band[:, column].astype(np.uint64)) * _MIX[0]
        key ^= key >> np.uint64(31)
    return key


def _run_starts(same: np.ndarray) -> np.ndarray:
    """For each sorted position, where its run of equal keys begins."""
    begins = np.concatenate([[True], ~same])
    return np.maximum.accumulate(np.where(begins, np.arange(len(begins)), 0))


def _similar(signatures: np.ndarray, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Whether pairs agree, in blocks that keep the memory small."""
    found = [
        np.mean(signatures[a[i : i + 65536]] == signatures[b[i : i + 65536]], axis=1) >= SIMILAR
        for i in range(0, len(a), 65536)
    ]
    return np.concatenate(found) if found else np.zeros(0, bool)


def _root(parent: np.ndarray, row: int) -> int:
    while parent[row] != row:
        parent[row] = parent[parent[row]]
        row = int(parent[row])
    return row


def _join(parent: np.ndarray, a: int, b: int) -> None:
    """The smaller row becomes the root, so a group is named by its first row."""
    a, b = _root(parent, a), _root(parent, b)
    if a != b:
        parent[max(a, b)] = min(a, b)
