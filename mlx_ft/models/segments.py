"""Attention over segments: a batch without padding, on any architecture of mlx-lm.

A model's layers look at one token at a time but in attention, and there mlx-lm's models ask the
cache they are given: `offset` is where tokens stand in their row, `update_and_fetch` may add keys
and values, `make_mask` says what may be seen. `Segments` answers for a batch of shape (N, 1),
every token with its own offset, and the attention itself is done here, segment by segment.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import exponentials
from mlx_ft.layout import Group, Layout

NAME = "scaled_dot_product_attention"


class Segments:
    """Stands in for the cache of every layer. offset: (N,) int32, as mlx-lm's caches call it.

    hidden: (N, 1, D), what goes into the first adapted layer; None: it is to be computed.
    """

    def __init__(self, layout: Layout, hidden: mx.array | None = None) -> None:
        self.offset = mx.array(layout.offsets)
        self.groups = layout.groups
        self.hidden = hidden

    @classmethod
    def joined(cls, parts: Sequence[Segments]) -> Segments:
        """Those of several batches whose tokens lie one behind the other."""
        found = cls.__new__(cls)
        found.offset = mx.concatenate([part.offset for part in parts])
        found.hidden = None
        hidden = [part.hidden for part in parts if part.hidden is not None]
        if hidden:
            found.hidden = mx.concatenate(hidden)
        groups: list[Group] = []
        tokens = 0
        for part in parts:
            before = len(groups)
            groups += [group.moved(tokens, before) for group in part.groups]
            tokens += len(part.offset)
        found.groups = tuple(groups)
        return found

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Nothing is remembered from call to call."""
        return keys, values

    def make_mask(
        self, _tokens: int, return_array: bool = False, window_size: int | None = None
    ) -> Window | None:
        """What `attend` is given as mask. Raises TypeError for a model that wants an array."""
        if return_array:
            raise TypeError("segments have no mask array")
        return None if window_size is None else Window(window_size)


class Window:
    """How many tokens back a layer sees, the token itself included."""

    def __init__(self, size: int) -> None:
        self.size = size


def install(model: nn.Module) -> bool:
    """Let the attention of `model` know `Segments`; False when it is not mlx-lm's own.

    mlx-lm's models call a function of their module's. The one put in its place computes the same
    for every other cache, up to rounding: with the exponentials of `mlx_ft.exponentials`.
    """
    names = {type(module).__module__ for module in model.modules()}
    modules = [sys.modules[name] for name in sorted(names) if name.startswith("mlx_lm.")]
    attending = [module for module in modules if hasattr(module, NAME)]
    for module in attending:
        own = getattr(module, NAME)
        if not hasattr(own, "without_segments"):
            setattr(module, NAME, _with_segments(own))
    return bool(attending)


def _with_segments(own: Callable[..., mx.array]) -> Callable[..., mx.array]:
    def attention(
        queries: mx.array,
        keys: mx.array,
        values: mx.array,
        cache: Any,
        scale: float,
        mask: Any,
        sinks: mx.array | None = None,
    ) -> mx.array:
        if isinstance(cache, Segments):
            if mask is not None and not isinstance(mask, Window):  # part of its attention
                raise TypeError("segments take no mask of the model's own")
            window = None if mask is None else mask.size
            return attend(queries, keys, values, cache.groups, scale, window, sinks)
        if exponentials.native() and not hasattr(cache, "bits"):  # not quantized
            return exponentials.attention(queries, keys, values, scale, mask, sinks)
        more = {} if sinks is None else {"sinks": sinks}
        return own(queries, keys, values, cache=cache, scale=scale, mask=mask, **more)

    attention.without_segments = own  # type: ignore[attr-defined]
    return attention


def attend(
    queries: mx.array,
    keys: mx.array,
    values: mx.array,
    groups: Sequence[Group],
    scale: float,
    window: int | None = None,
    sinks: mx.array | None = None,
) -> mx.array:
    """Attention of each segment to itself, causally, and to what its rows have before it.

    queries: (N, H, 1, d); keys, values: (N, K, 1, d), where K divides H; of all tokens, in the
    order of `groups`. window: tokens back that are seen. Returns (N, H, 1, width of a
    value).
    """
    # split, not slices: its gradient is one concatenation.
    cuts = [group.end for group in groups[:-1]]
    parts = [
        [_rows(part, group) for part, group in zip(mx.split(array, cuts), groups, strict=True)]
        for array in (queries, keys, values)
    ]
    done = []
    for index, group in enumerate(groups):
        query, key, value = (part[index] for part in parts)
        mask: Any = "causal"
        if group.before:
            key, value = (_after(part, index, group) for part in parts[1:])
        if window is not None and group.offset + group.length > window:
            mask = _window(group, window)
        found = exponentials.attention(query, key, value, scale, mask, sinks)
        shape = queries.shape[1], 1, values.shape[-1]
        done.append(found.transpose(0, 2, 1, 3).reshape(-1, *shape))
    return mx.concatenate(done) if len(done) > 1 else done[0]


def _rows(array: mx.array, group: Group) -> mx.array:
    """(tokens, heads, 1, d) -> (segments, heads, tokens of each, d)."""
    heads, _, size = array.shape[1:]
    return array.reshape(group.count, group.length, heads, size).transpose(0, 2, 1, 3)


def _after(part: list[mx.array], index: int, group: Group) -> mx.array:
    """A group's keys or values behind those of the segments that come before it."""
    before = [part[at][member : member + 1] for at, member in group.before]
    spread = [mx.broadcast_to(one, (group.count, *one.shape[1:])) for one in before]
    return mx.concatenate([*spread, part[index]], axis=2)


def _window(group: Group, window: int) -> mx.array:
    """(length, offset + length) bool: what each token sees."""
    queries = mx.arange(group.offset, group.offset + group.length)[:, None]
    keys = mx.arange(group.offset + group.length)[None]
    return (queries >= keys) & (queries < keys + window)
