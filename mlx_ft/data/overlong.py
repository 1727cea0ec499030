"""Rows with more tokens than a sequence may have: what of them is kept, as `data.overlong` says."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from mlx_ft.data.mask import Layout
from mlx_ft.data.rows import Conversation

OVERLONG = ("error", "drop", "truncate_left", "truncate_right", "split")


class Part(NamedTuple):
    """What is left of a row. tokens: (T,) int32; targets: (T,) bool. cut: tokens left out."""

    tokens: np.ndarray
    targets: np.ndarray
    cut: int


def first_token(layout: Layout, bos: int | None) -> int | None:
    """BOS, if the row begins with it and it is none that begins every turn (as SmolLM2's)."""
    begins = bos is not None and layout.tokens[:1] == [bos] and layout.tokens.count(bos) == 1
    return bos if begins else None


def right(layout: Layout, size: int) -> Part:
    """The first `size` tokens."""
    return Part(
        _ids(layout.tokens[:size]), layout.targets[:size], max(0, len(layout.tokens) - size)
    )


def left(layout: Layout, size: int, bos: int | None) -> Part:
    """The last `size` tokens; the first of them becomes `bos`."""
    cut = len(layout.tokens) - size
    if cut <= 0:
        return right(layout, size)
    return Part(*_window(layout, cut, len(layout.tokens), bos), cut)


def ends(conversation: Conversation) -> list[Conversation]:
    """What is left of a conversation when its oldest turns go, one exchange after the other.

    The system turn stays, but in the last resort: the last exchange alone. Whole turns, so that
    the template writes each as if it were the row.
    """
    messages = conversation.messages
    system = messages[:1] if messages and messages[0].role == "system" else ()
    answered = max((i for i, m in enumerate(messages) if m.role == "assistant"), default=0)
    starts = [i for i in range(len(system), answered) if messages[i].role == "user"]
    left = [system + messages[i:] for i in starts[1:]]
    if system and starts:
        left.append(messages[starts[-1] :])
    return [dataclasses.replace(conversation, messages=some) for some in left]


def split(layout: Layout, size: int, bos: int | None, *, context: bool) -> list[Part]:
    """Windows of at most `size` tokens in which every target is to be predicted exactly once.

    context: each window begins half a window before its first target (chats); else one token
    before it (raw text). The first token of windows further on becomes `bos`.
    cut: of the first window, the tokens that are in no window.
    """
    if len(layout.tokens) <= size:
        return [right(layout, size)]
    parts, seen = [], np.zeros(len(layout.tokens), dtype=bool)
    for start, end, first in _windows(layout, size, size // 2 if context else 1, bos):
        tokens, targets = _window(layout, start, end, bos)
        targets[: len(tokens) - (end - first)] = False  # learned in the window before
        seen[start:end] = True
        parts.append(Part(tokens, targets, 0))
    cut = int((~seen).sum())
    return [part._replace(cut=cut if i == 0 else 0) for i, part in enumerate(parts)]


def _windows(
    layout: Layout, size: int, context: int, bos: int | None
) -> Iterator[tuple[int, int, int]]:
    """(start, end, first target) of each window."""
    total = len(layout.tokens)
    # With BOS in the place of the first token, the first target needs one more before it.
    context = max(context, 1 if bos is None else 2)
    context = min(context, size - 1)  # each window learns something
    targets = np.flatnonzero(layout.targets)
    place = 0
    while place < len(targets):
        first = int(targets[place])
        end = min(total, max(0, first - context) + size)
        yield max(0, end - size), end, first
        place = int(np.searchsorted(targets, end))


def _window(layout: Layout, start: int, end: int, bos: int | None) -> tuple[np.ndarray, np.ndarray]:
    tokens, targets = _ids(layout.tokens[start:end]), layout.targets[start:end].copy()
    if start > 0 and bos is not None:
        tokens[0] = bos
    targets[:1] = False
    return tokens, targets


def _ids(tokens: list[int]) -> np.ndarray:
    return np.array(tokens, dtype=np.int32)
