"""Losses as sums with their counts; the division comes once, after everything is added up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import mlx.core as mx

from mlx_ft import exponentials

CHUNK = 2**24  # logits that are in memory at once

Head = Callable[[mx.array], mx.array]  # final hidden states (N, D) -> logits (N, V)


class Halves(Protocol):
    """A model before its head, at positions of a flattened batch, and its head."""

    @property
    def head(self) -> Head: ...  # noqa: D102
    def at(self, tokens: mx.array, positions: mx.array, cache: Any, /) -> mx.array: ...  # noqa: D102


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
    losses = exponentials.logsumexp(logits) - _wanted(logits, labels, label_smoothing)
    # where, not a product: 0 * inf would be NaN.
    return mx.where(weights > 0, losses, 0).sum(), weights.sum()


def head_loss(
    head: Head,
    hidden: mx.array,
    labels: mx.array,
    weights: mx.array,
    label_smoothing: float = 0.0,
    *,
    train: bool = False,
) -> tuple[mx.array, mx.array]:
    """`cross_entropy(head(hidden), ...)`, without ever holding all of its logits.

    head: frozen. hidden: (N, D), at target positions. labels, weights: (N,). The positions are
    taken chunk by chunk. train: a chunk's gradient by `hidden` is computed while its logits are
    there, and the backward pass has only to scale it (as in Hsu et al. 2024, arXiv:2410.10989);
    nothing else can be differentiated then. Returns (sum in nats, number of targets).
    """
    if not train:
        return _chunked(head, hidden, labels, weights, label_smoothing)[0], weights.sum()

    @mx.custom_function
    def total(hidden: mx.array) -> tuple[mx.array, mx.array]:
        found, gradient = _chunked(head, hidden, labels, weights, label_smoothing, train=True)
        return found, gradient

    @total.vjp
    def _scaled(hidden: mx.array, cotangents: Any, outputs: Any) -> Any:
        return (outputs[1] * cotangents[0]).astype(hidden.dtype)

    found: Any = total(hidden)
    return found[0], weights.sum()


def _chunked(
    head: Head,
    hidden: mx.array,
    labels: mx.array,
    weights: mx.array,
    label_smoothing: float,
    *,
    train: bool = False,
) -> tuple[mx.array, mx.array]:
    """(sum of the losses, its gradient by `hidden` (N, D), float32, empty unless `train`)."""
    width = head(hidden[:1]).shape[-1]
    size = max(1, CHUNK // width)
    total, gradients = mx.array(0.0), []
    for start in range(0, len(hidden), size):
        cut = slice(start, start + size)
        chunk = mx.depends([hidden[cut]], [total])[0]  # no chunk before the one before it is done
        found, gradient = _chunk(head, chunk, labels[cut], weights[cut], label_smoothing, train)
        total = total + found
        if train:
            gradient, total = mx.depends([gradient, total], [gradient, total])
            gradients.append(gradient)
    return total, mx.concatenate(gradients) if train else mx.array([])


def _chunk(
    head: Head,
    hidden: mx.array,
    labels: mx.array,
    weights: mx.array,
    smoothing: float,
    train: bool,
) -> tuple[mx.array, mx.array]:
    outputs = head(hidden)
    logits = outputs.astype(mx.float32)
    if not train:
        return cross_entropy(logits, labels, weights, smoothing)[0], mx.array([])
    # What the loss needs of the logits is taken first, so that they can go.
    wanted = _wanted(logits, labels, smoothing)
    [logits] = mx.depends([logits], [wanted])
    # One pass of exponentials for loss and gradient.
    probabilities, log_normalizer = exponentials.normalized(logits)
    total = mx.where(weights > 0, log_normalizer - wanted, 0).sum()
    places = labels[:, None]
    at_labels = mx.take_along_axis(probabilities, places, axis=-1) - (1 - smoothing)
    by_logits = mx.put_along_axis(probabilities, places, at_labels, axis=-1)
    if smoothing:
        by_logits = by_logits - smoothing / by_logits.shape[-1]
    _, [gradient] = mx.vjp(
        lambda hidden: [head(hidden)], [hidden], [by_logits.astype(outputs.dtype)]
    )
    # Here, and not at the logits, which are so many more: a row's gradient is of its logits alone.
    return total, mx.where(weights[:, None] > 0, gradient.astype(mx.float32), 0)


def _wanted(logits: mx.array, labels: mx.array, smoothing: float) -> mx.array:
    """(N,): the logits' mean under the target distribution; the normalizer less it is the loss."""
    at_labels = mx.take_along_axis(logits, labels[:, None], axis=-1)[:, 0]
    if not smoothing:
        return at_labels
    return (1 - smoothing) * at_labels + smoothing * logits.mean(axis=-1)


def causal_lm_loss(
    forward: Halves,
    inputs: mx.array,
    positions: mx.array,
    labels: mx.array,
    weights: mx.array,
    label_smoothing: float = 0.0,
    cache: Any = None,
    *,
    train: bool = False,
) -> tuple[mx.array, mx.array]:
    """Summed loss of the target positions of a batch.

    inputs: (B, T). positions, labels, weights: (N,), of the flattened batch, filled up with
    weight 0. cache: what every layer is given as such. train: see `head_loss`.
    Returns (sum in nats, number of targets).
    """
    hidden = forward.at(inputs, positions, cache)
    return head_loss(forward.head, hidden, labels, weights, label_smoothing, train=train)


def full_logits_loss(
    forward: Halves,
    inputs: mx.array,
    positions: mx.array,
    labels: mx.array,
    weights: mx.array,
    label_smoothing: float = 0.0,
    cache: Any = None,
) -> tuple[mx.array, mx.array]:
    """`causal_lm_loss` by way of logits at every position, as most trainers take it."""
    every = mx.arange(inputs.size)
    logits = forward.head(forward.at(inputs, every, cache))
    return cross_entropy(logits[positions], labels, weights, label_smoothing)
