"""A model as its final hidden states and its head: logits only where they are wanted.

The head is the widest product of a step, and half of a small model's time would go into logits of
prompt tokens that carry no loss.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ft.activations import Store
from mlx_ft.layout import Layout, Row, lay_out
from mlx_ft.models import segments
from mlx_ft.models.frozen import Entrance, Frozen
from mlx_ft.models.kinds import each_kind
from mlx_ft.models.offload import Offload
from mlx_ft.models.segments import Segments

logger = logging.getLogger(__name__)

# How a model says that it is not of the shape that is tried.
REFUSALS = (TypeError, ValueError, AttributeError, LookupError, NotImplementedError)

PROBE = ((1, 2, 3, 5, 7, 6, 4, 3, 2, 9, 1), (1, 2, 3, 5, 7, 6, 4, 3, 8))  # two rows
# A probe's largest difference, relative to the largest value. Where the same products are taken
# it is tight: a soft cap bends small logits by very little.
SAME = 1e-5
LIKE = {mx.float32: 1e-4, mx.float16: 1e-2, mx.bfloat16: 2e-2}


@dataclass(frozen=True)
class Forward:
    """The two halves of a model.

    backbone: (tokens (B, T), cache of every layer or None) -> final hidden states (B, T, D).
    head: (N, D) -> logits (N, V); both are the whole model and nothing where it cannot be split:
    `splits` is False. segments: whether the backbone takes `Segments` as its cache. frozen: what
    remembers the layers below the adapter.
    """

    backbone: Callable[[mx.array, Segments | None], mx.array]
    head: Callable[[mx.array], mx.array]
    splits: bool
    segments: bool
    frozen: Frozen | None = None

    def cache(self, examples: Sequence[Row], layout: Layout) -> Segments:
        """What the backbone is given for these examples, laid out so."""
        hidden = None if self.frozen is None else self.frozen.hidden(examples, layout)
        return Segments(layout, hidden)

    def at(self, tokens: mx.array, positions: mx.array, cache: Segments | None = None) -> mx.array:
        """Final hidden states (M, D) at `positions` (M,) of the flattened tokens (B, T)."""
        if self.frozen is None or cache is None:
            hidden = self.backbone(tokens, cache)
        else:
            with self.frozen.entrance.entered(cache.hidden):
                hidden = self.backbone(tokens, cache)
        return hidden.reshape(-1, hidden.shape[-1])[positions]

    def logits_at(self, tokens: mx.array, positions: mx.array) -> mx.array:
        """(M, V)."""
        return self.head(self.at(tokens, positions))


def forward_of(model: nn.Module) -> Forward:
    """Split `model`, as far as the parts reproduce its own logits on a probe.

    Models that scale or cap their logits keep their own path. Leaves the model in evaluation mode.
    """
    model.eval()  # dropout would make the probe's answers differ
    with each_kind(model) as cut:
        found = _tried(model)
    if cut and not (found.splits and found.segments):
        found = _tried(model)  # it may be the cut that it does not stand
    return found


def _tried(model: nn.Module) -> Forward:
    def whole(tokens: mx.array, cache: Segments | None) -> mx.array:
        caches = None if cache is None else [cache] * len(model.layers)
        logits: mx.array = model(tokens) if caches is None else model(tokens, cache=caches)
        return logits

    full = Forward(whole, lambda logits: logits, splits=False, segments=False)
    padded, positions = _padded(PROBE)
    try:
        expected = full.logits_at(padded, positions)
    except REFUSALS:
        return full
    found = _split(model)
    if found is None or not _same(found, padded, positions, expected):
        found = full
    takes_segments = segments.install(model) and _takes_segments(found, expected)
    return Forward(found.backbone, found.head, found.splits, takes_segments)


def with_frozen(
    forward: Forward, model: nn.Module, depth: int, store: Store, offload: Path | None = None
) -> Forward:
    """`forward` that computes the first `depth` layers of a row only once.

    offload: folder for their arrays while they are not used. The same `forward` for a model that
    cannot be entered above them. Raises OSError.
    """

    def alone(tokens: mx.array) -> mx.array:
        return forward.backbone(tokens, None)

    place: Offload | None = None
    try:
        entrance = Entrance(model, depth)
        place = Offload(model.layers[:depth], offload) if offload is not None else None
        return replace(forward, frozen=Frozen(entrance, alone, store, place))
    except BaseException as error:
        store.close()
        if place is not None:
            place.close()
        if not isinstance(error, REFUSALS):
            raise
        logger.info("frozen layers are computed each time: %s", error)
        return forward


def _split(model: Any) -> Forward | None:
    owner = getattr(model, "language_model", model)
    inner: Any = getattr(owner, "model", None) or getattr(owner, "transformer", None)
    if not isinstance(inner, nn.Module):
        return None

    def backbone(tokens: mx.array, cache: Segments | None) -> mx.array:
        caches = None if cache is None else [cache] * len(model.layers)
        hidden: mx.array = inner(tokens, cache=caches)  # None is said: Phi's has no default
        return hidden

    if isinstance(head := getattr(owner, "lm_head", None), nn.Module):
        return Forward(backbone, head, splits=True, segments=False)
    for name in ("embed_tokens", "wte"):
        embedding: Any = getattr(inner, name, None)
        if hasattr(embedding, "as_linear"):
            return Forward(backbone, embedding.as_linear, splits=True, segments=False)
    return None


def _padded(rows: Sequence[Sequence[int]]) -> tuple[mx.array, mx.array]:
    """(tokens (B, T), the flattened positions of all that are not padding)."""
    width = max(map(len, rows))
    tokens = mx.array([[*row, *[0] * (width - len(row))] for row in rows])
    positions = [at * width + i for at, row in enumerate(rows) for i in range(len(row))]
    return tokens, mx.array(positions)


@dataclass(frozen=True)
class _Row:
    tokens: np.ndarray
    targets: np.ndarray


def _same(found: Forward, tokens: mx.array, positions: mx.array, expected: mx.array) -> bool:
    try:
        return _alike(expected, found.logits_at(tokens, positions), SAME)
    except REFUSALS:
        return False


def _takes_segments(found: Forward, expected: mx.array) -> bool:
    """Whether the probe's rows, which begin alike, get their logits as segments too."""
    laid = lay_out(
        [_Row(np.array([*row, 0]), np.ones(len(row) + 1, dtype=bool)) for row in PROBE], share=True
    )
    try:
        hidden = found.at(mx.array(laid.tokens)[:, None], mx.array(laid.positions), Segments(laid))
        return _alike(expected, found.head(hidden), LIKE[expected.dtype])
    except REFUSALS:
        return False


def _alike(expected: mx.array, found: mx.array, tolerance: float) -> bool:
    if expected.shape != found.shape:
        return False
    difference = mx.abs(expected - found).max() / mx.abs(expected).max()
    return bool((difference <= tolerance).item())
