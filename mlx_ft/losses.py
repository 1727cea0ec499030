"""Losses as sums with their counts; the division comes once, after everything is added up."""

from __future__ import annotations

from collections.abc import Callable

import mlx.core as mx


def cross_entropy(
    logits: mx.array, labels: mx.array, weights: mx.array, label_smoothing: float = 0.0
) -> tuple[mx.array, mx.array]:
    """Summed next-token loss over the positions that count.

    logits: (N, V), any float type, computed in float32. labels: (N,) token ids. weights: (N,),
    1 for a target, 0 for filling. With label smoothing e the target distribution is
    (1 - e) one-hot + e / V uniform (Szegedy et al. 2016).
    Returns (sum in nats, number of targets), float32 scalars.
    """
    logits = logits.astype(mx.float32)
    log_normalizer = mx.logsumexp(logits, axis=-1)
    label_logits = mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    losses = log_normalizer - label_logits
    if label_smoothing:
        uniform = log_normalizer - logits.mean(axis=-1)
        losses = (1 - label_smoothing) * losses + label_smoothing * uniform
    # where, not a product: 0 * inf would be NaN.
    return mx.where(weights > 0, losses, 0).sum(), weights.sum()


def causal_lm_loss(
    logits_at: Callable[[mx.array, mx.array], mx.array],
    inputs: mx.array,
    positions: mx.array,
    labels: mx.array,
    weights: mx.array,
    label_smoothing: float = 0.0,
) -> tuple[mx.array, mx.array]:
    """Summed loss of the target positions of a batch.

    logits_at(inputs, positions): logits (N, V) at `positions` of the flattened (B * T) batch.
    inputs: (B, T). positions, labels, weights: (N,), filled up with weight 0.
    Returns (sum in nats, number of targets).
    """
    logits = logits_at(inputs, positions)
    return cross_entropy(logits, labels, weights, label_smoothing)
