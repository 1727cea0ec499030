"""A batch on the device: the only place where data becomes MLX arrays."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ft.data.batch import Batch
from mlx_ft.layout import Layout, lay_out

# Target positions are filled up to a multiple of this, so that compiled steps see few shapes.
POSITION_MULTIPLE = 64


@dataclass(frozen=True)
class Arrays:
    """A batch on the device: inputs (B, T); positions, labels, weights (N,).

    layout: how tokens without padding, (T, 1), belong together; None for padded rows.
    """

    inputs: mx.array
    positions: mx.array
    labels: mx.array
    weights: mx.array
    layout: Layout | None = None

    @property
    def tensors(self) -> tuple[mx.array, mx.array, mx.array, mx.array]:
        """What a compiled function takes."""
        return self.inputs, self.positions, self.labels, self.weights


def padded(batch: Batch) -> Arrays:
    """The batch's targets as positions in its flattened (B * T) tokens, filled with weight 0."""
    positions = np.flatnonzero(batch.mask)
    filled = math.ceil(max(1, len(positions)) / POSITION_MULTIPLE) * POSITION_MULTIPLE
    fill = (0, filled - len(positions))
    return Arrays(
        mx.array(batch.inputs),
        mx.array(np.pad(positions, fill).astype(np.int32)),
        mx.array(np.pad(batch.targets.reshape(-1)[positions], fill).astype(np.int32)),
        mx.array(np.pad(np.ones(len(positions), np.float32), fill)),
    )


def packed(batch: Batch, *, share: bool) -> Arrays:
    """The batch without padding; share: what rows begin with lies once."""
    layout = lay_out(batch.examples, share=share)
    fill = (0, 0 if len(layout.positions) else 1)  # of rows without any target
    return Arrays(
        mx.array(layout.tokens[:, None]),
        mx.array(np.pad(layout.positions, fill)),
        mx.array(np.pad(layout.labels, fill)),
        mx.array(np.pad(np.ones(len(layout.positions), np.float32), fill)),
        layout,
    )


def pad_id(tokenizer: Any, vocabulary: int | None = None) -> int:
    """Any token that the model has does: padding lies after a row's end and is never a target.

    vocabulary: rows of the model's embedding; None when unknown.
    """
    candidates = (tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    limit = math.inf if vocabulary is None else vocabulary
    return next(int(token) for token in candidates if token is not None and token < limit)
