"""One optimizer step in its two halves: gradients of a micro-batch added up, and the update.

Losses and gradients travel as sums with the number of targets behind them, and are divided once
per optimizer step: a token weighs the same in whichever micro-batch, or process, it falls.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_ft import joint, together
from mlx_ft.config.schema import Config, OptimizerConfig, TrainConfig
from mlx_ft.data.arrays import packed, padded
from mlx_ft.data.batch import Batch
from mlx_ft.losses import causal_lm_loss, full_logits_loss
from mlx_ft.memory_guard import MemoryGuard
from mlx_ft.models.forward import Forward
from mlx_ft.models.segments import Segments
from mlx_ft.state import TrainState

logger = logging.getLogger(__name__)

Sums = joint.Sums
Inputs = tuple[Sequence[mx.array], Segments | None]  # of a micro-batch, and its cache


@dataclass(frozen=True)
class Compute:
    """How steps are computed; what they compute is the same up to rounding.

    compiled: `mx.compile`; what takes segments is not. segments: rows without padding; share:
    what rows of a batch begin with is computed once. targets_only: logits of nothing else.
    """

    compiled: bool = False
    segments: bool = False
    share: bool = False
    targets_only: bool = True

    @classmethod
    def of(cls, config: Config) -> Compute:
        """As the configuration of a run, resolved, asks for."""
        segments, share = config.data.packing == "segments", config.data.share_prefixes
        return cls(
            compiled=bool(config.train.compile),
            segments=segments,
            share=segments and (config.lora.dropout == 0 if share == "auto" else bool(share)),
            targets_only=config.train.targets_only,
        )


def zeros(state: TrainState) -> Sums:
    """Of nothing yet."""
    gradients = tree_map(mx.zeros_like, state.model.trainable_parameters())
    return gradients, mx.array(0.0), mx.array(0.0)


@dataclass(frozen=True)
class Step:
    """The two halves of an optimizer step: gradients of a micro-batch added up, and the update.

    prepare: what a micro-batch is computed from, before what is measured of its memory.
    """

    prepare: Callable[[Batch], Inputs]
    accumulate: Callable[[Sums, Inputs], Sums]
    update: Callable[..., tuple[mx.array, mx.array, mx.array]]
    guard: MemoryGuard


def build(
    state: TrainState,
    forward: Forward,
    optimizer_config: OptimizerConfig,
    config: TrainConfig,
    compute: Compute,
    guard: MemoryGuard,
) -> Step:
    """The step of a run. forward: of the state's model."""
    model, optimizer, buckets = state.model, state.optimizer, state.buckets
    if compute.targets_only and not forward.splits:
        logger.info("this model's logits are computed at every position, targets or not")

    def update(
        gradients: Any, total: mx.array, count: mx.array, limit: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        # Not earlier: one array of all gradients would hold a checkpointed layer's activations
        # until the last of them is there.
        mean = tree_map(lambda g: g / count, buckets.join(gradients))
        clipped, norm = clip(mean, optimizer_config.max_grad_norm)
        old_parameters = buckets.join(model.trainable_parameters())
        old_state = tree_map(lambda array: array, optimizer.state)
        parameters = optimizer.apply_gradients(clipped, old_parameters)
        loss = total / count
        finite = mx.isfinite(total) & mx.isfinite(norm) & _all_finite(parameters)
        taken = finite & (loss <= limit)
        keep = partial(_where, taken)
        model.update(buckets.split(tree_map(keep, parameters, old_parameters)))
        # In place: a compiled function watches this very dictionary.
        optimizer.state.update(tree_map(keep, optimizer.state, old_state))
        return loss, norm, taken

    if compute.compiled:
        captured = [model.state, optimizer.state]
        update = mx.compile(update, inputs=captured, outputs=captured)
    prepare, accumulate = _accumulation(state, forward, config, compute)
    return Step(prepare, accumulate, update, guard)


def _accumulation(
    state: TrainState, forward: Forward, config: TrainConfig, compute: Compute
) -> tuple[Callable[[Batch], Inputs], Callable[[Sums, Inputs], Sums]]:
    """A micro-batch -> its arrays; (sums, these) -> sums with those of the micro-batch."""
    gradient = summed_gradient(
        state.model, forward, config.label_smoothing, whole=not compute.targets_only
    )

    def accumulate(sums: Sums, *arrays: mx.array, cache: Any = None) -> Sums:
        (batch_total, batch_count), batch_gradients = gradient(*arrays, cache=cache)
        gradients, total, count = sums
        added = tree_map(mx.add, gradients, batch_gradients)
        return added, total + batch_total, count + batch_count

    def without_padding(batch: Batch) -> Inputs:
        arrays = packed(batch, share=compute.share)
        assert arrays.layout is not None
        return arrays.tensors, forward.cache(batch.examples, arrays.layout)

    def by_segments(sums: Sums, given: Inputs) -> Sums:
        return accumulate(sums, *given[0], cache=given[1])

    seat = together.seat()
    if compute.segments and compute.targets_only and seat is not None:
        runner = joint.Runner(state.model, forward, config.label_smoothing)

        def with_others(sums: Sums, given: Inputs) -> Sums:
            tensors, cache = given
            assert cache is not None
            alone = partial(by_segments, sums, given)
            found: Sums = seat.ask(joint.Request(runner, sums, tensors, cache, alone))
            return found

        return without_padding, with_others
    if compute.segments:
        return without_padding, by_segments
    step: Callable[..., Sums] = accumulate
    if compute.compiled:
        captured = [state.model.state, state.optimizer.state]
        step = mx.compile(accumulate, inputs=captured, outputs=captured)
    return lambda batch: (padded(batch).tensors, None), lambda sums, given: step(sums, *given[0])


def summed_gradient(
    model: nn.Module, forward: Forward, label_smoothing: float, *, whole: bool = False
) -> Callable[..., tuple[tuple[mx.array, mx.array], Any]]:
    """(inputs, positions, labels, weights, cache) -> ((loss sum, targets), gradients of the sum).

    whole: all logits, and then those of the targets.
    """

    def loss(
        inputs: mx.array,
        positions: mx.array,
        labels: mx.array,
        weights: mx.array,
        cache: Segments | None = None,
    ) -> tuple[mx.array, mx.array]:
        arrays = inputs, positions, labels, weights
        if whole:
            return full_logits_loss(forward, *arrays, label_smoothing, cache)
        return causal_lm_loss(forward, *arrays, label_smoothing, cache, train=True)

    gradient: Callable[..., tuple[tuple[mx.array, mx.array], Any]] = nn.value_and_grad(model, loss)
    return gradient


def clip(gradients: Any, max_norm: float | None) -> tuple[Any, mx.array]:
    """Scale `gradients` so that their global L2 norm is at most `max_norm`.

    Returns (gradients, norm before). Pascanu et al. 2013.
    """
    leaves = cast(list[tuple[str, mx.array]], tree_flatten(gradients))
    squares = [g.astype(mx.float32).square().sum() for _, g in leaves]
    norm = mx.sqrt(mx.sum(mx.stack(squares)))
    if max_norm is None:
        return gradients, norm
    factor = mx.minimum(1.0, max_norm / (norm + 1e-6))
    return tree_map(lambda g: g * factor, gradients), norm


def _all_finite(tree: Any) -> mx.array:
    leaves = cast(list[tuple[str, mx.array]], tree_flatten(tree))
    return mx.all(mx.stack([mx.isfinite(array).all() for _, array in leaves]))


def _where(finite: mx.array, new: mx.array, old: mx.array) -> mx.array:
    return mx.where(finite, new, old)
