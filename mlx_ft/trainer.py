"""The training step and the loop around it; knows neither files nor trackers.

Losses and gradients travel as sums with the number of targets behind them, and are divided once
per optimizer step: a token weighs the same in whichever micro-batch it falls.
"""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map

from mlx_ft import lora, optim
from mlx_ft.config.schema import Config, OptimizerConfig, TrainConfig
from mlx_ft.data.arrays import packed, padded
from mlx_ft.data.batch import Batch, Batches, collate
from mlx_ft.errors import TrainingError
from mlx_ft.losses import causal_lm_loss, full_logits_loss
from mlx_ft.memory_guard import MemoryGuard
from mlx_ft.memory_watch import is_out_of_memory
from mlx_ft.models.forward import Forward, forward_of
from mlx_ft.models.segments import Segments
from mlx_ft.state import TrainState

logger = logging.getLogger(__name__)

RECENT_LOSSES = 20  # whose median says what a usual loss is
ENOUGH_LOSSES = 5
PART_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: keeps the seeds of parts far apart

Sums = tuple[Any, mx.array, mx.array]  # of gradients, of losses, number of targets


@dataclass(frozen=True)
class Plan:
    """How far a run goes. steps: optimizer steps; micro_steps: micro-batches."""

    steps: int
    micro_steps: int
    accumulation: int
    batches_per_epoch: int

    @property
    def epochs(self) -> float:
        """Passes over the training rows."""
        return self.micro_steps / self.batches_per_epoch


def plan(
    config: TrainConfig, batches_per_epoch: int, accumulation: int, done: tuple[int, int] = (0, 0)
) -> Plan:
    """Steps from `max_steps`, or else from `epochs`; the last window may be a partial one.

    done: (steps, micro-steps) of a run that goes on; its last window may have been a partial one.
    """
    steps, micro_step = done
    if config.max_steps is not None:
        micro_steps = micro_step + max(0, config.max_steps - steps) * accumulation
    else:
        micro_steps = max(micro_step, 1, math.ceil(config.epochs * batches_per_epoch))
    left = math.ceil((micro_steps - micro_step) / accumulation)
    return Plan(steps + left, micro_steps, accumulation, batches_per_epoch)


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


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. loss: mean over targets, nats; grad_norm: before clipping.

    skipped: the adapter is as it was; spike: because of a finite loss that is far too high.
    """

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    target_tokens: int
    seconds: float
    skipped: bool
    spike: bool = False


def train(
    state: TrainState,
    batches: Batches,
    run_plan: Plan,
    optimizer_config: OptimizerConfig,
    config: TrainConfig,
    *,
    seed: int,
    compute: Compute,
    forward: Forward | None = None,
    guard: MemoryGuard | None = None,
) -> Iterator[StepResult]:
    """Yield one result per optimizer step, from where `state` stands to the plan's end.

    Between two results the caller may evaluate, save, stop, or put other arrays into the state:
    it is whole. forward: of the state's model, when it is there already. Raises TrainingError
    after `config.skip_patience` skipped steps in a row, and when a single row does not fit into
    memory.
    """
    forward = forward or forward_of(state.model)
    step = _build_step(state, forward, optimizer_config, config, compute, guard or MemoryGuard())
    progress = state.progress
    while progress.step < run_plan.steps:
        started = time.perf_counter()
        rate = optim.learning_rate(optimizer_config, progress.step, run_plan.steps)
        state.optimizer.learning_rate = rate
        state.model.train()
        window = min(run_plan.accumulation, run_plan.micro_steps - progress.micro_step)
        sums, tokens, target_tokens = _zeros(state), 0, 0
        for micro_step in range(progress.micro_step, progress.micro_step + window):
            batch = batches.at(*divmod(micro_step, len(batches)))
            sums = _add(step, sums, state, batches, batch, (seed << 32) | micro_step)
            tokens += int(batches.lengths[batch.rows].sum())
            target_tokens += int(batch.mask.sum())
        limit = spike_limit(config.spike_factor, progress.recent_losses)
        loss, grad_norm, taken = _update(step, sums, state, limit)
        del sums  # an adapter's worth of memory
        seconds = time.perf_counter() - started
        progress.micro_step += window  # now, not before: a broken window is taken again
        finite = math.isfinite(float(loss)) and math.isfinite(float(grad_norm))
        result = StepResult(
            progress.step + 1,
            progress.micro_step / len(batches),
            float(loss),
            rate,
            float(grad_norm),
            tokens,
            target_tokens,
            seconds,
            skipped=not bool(taken),
            spike=finite and float(loss) > limit,
        )
        _count(state, result)
        yield result
        _check_patience(state, config.skip_patience, ended=progress.step == run_plan.steps)


def _update(step: _Step, sums: Sums, state: TrainState, limit: float) -> Sums:
    """The optimizer's update, evaluated: (loss, gradient norm, whether it was taken).

    Raises TrainingError when memory runs out in it; the state is then as before.
    """
    model, optimizer = state.model, state.optimizer
    before = model.trainable_parameters(), tree_map(lambda array: array, optimizer.state)
    try:
        result = step.update(*sums, mx.array(limit))
        mx.eval(result, model.trainable_parameters(), optimizer.state)
        return result
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error) or type(error).__name__
    model.update(before[0])
    optimizer.state.update(before[1])
    raise step.guard.no_update(reason)


def _add(
    step: _Step, sums: Sums, state: TrainState, batches: Batches, batch: Batch, seed: int
) -> Sums:
    """`sums` with those of one micro-batch, taken in as many parts as memory asks for.

    The parts are of the same rows, and what is added up are sums: the gradient is the same.
    seed: of the micro-batch's dropout, which is a function of it as the rows are.
    """
    while True:
        added, taken = sums, state.progress.parts
        try:
            with step.guard.batch(batch.mask, taken) as parts:
                taken = parts
                for part, piece in enumerate(_pieces(batches, batch, parts)):
                    lora.seed_dropout(state.model, (seed + part * PART_STRIDE) % 2**64)
                    with step.guard.part(piece.mask):
                        added = step.accumulate(added, piece)
                        mx.eval(added)
                return added
        except Exception as error:
            if not is_out_of_memory(error):
                raise
            reason = str(error) or type(error).__name__
        added = sums  # lets go of the failed part's arrays, as leaving `except` does
        step.guard.ran_out(reason, batch.mask, taken, state.progress)


def _pieces(batches: Batches, batch: Batch, parts: int) -> Iterator[Batch]:
    if parts == 1:
        yield batch
        return
    for rows in np.array_split(batch.rows, parts):
        yield collate(batches.examples, rows, batches.pad_id, batches.pad_multiple)


def spike_limit(factor: float | None, recent: list[float]) -> float:
    """The loss above which a step is skipped: `factor` times the median of the recent losses.

    Infinite without a factor, and until there are enough losses to tell.
    """
    if factor is None or len(recent) < ENOUGH_LOSSES:
        return math.inf
    return factor * statistics.median(recent)


def _count(state: TrainState, result: StepResult) -> None:
    progress = state.progress
    progress.step = result.step
    progress.tokens += result.tokens
    progress.target_tokens += result.target_tokens
    progress.train_seconds += result.seconds
    if not result.skipped:
        progress.skipped_in_a_row = 0
        progress.recent_losses = [*progress.recent_losses, result.loss][-RECENT_LOSSES:]
        return
    progress.skipped_steps += 1
    progress.skipped_in_a_row += 1
    progress.spikes += result.spike
    logger.warning(
        "step %d skipped: loss %s, gradient norm %s%s; the adapter is unchanged",
        result.step,
        result.loss,
        result.grad_norm,
        " (a spike: train.spike_factor)" if result.spike else "",
    )


def _check_patience(state: TrainState, patience: int, *, ended: bool = False) -> None:
    progress = state.progress
    all_skipped = ended and progress.skipped_steps == progress.step > 0
    if progress.skipped_in_a_row < patience and not all_skipped:
        return
    spikes = f", {progress.spikes} of them spikes," if progress.spikes else ""
    raise TrainingError(
        f"{progress.skipped_in_a_row} steps in a row{spikes} gave a loss or gradient that is not "
        f"finite or far too high, the last one step {progress.step} (train.skip_patience="
        f"{patience}). The adapter is the one from before them. Lower optimizer.learning_rate, or "
        "set memory_profile.compute_dtype=float32"
    )


def _zeros(state: TrainState) -> Sums:
    gradients = tree_map(mx.zeros_like, state.model.trainable_parameters())
    return gradients, mx.array(0.0), mx.array(0.0)


@dataclass(frozen=True)
class _Step:
    """The two halves of an optimizer step: gradients of a micro-batch added up, and the update."""

    accumulate: Callable[[Sums, Batch], Sums]
    update: Callable[..., tuple[mx.array, mx.array, mx.array]]
    guard: MemoryGuard


def _build_step(
    state: TrainState,
    forward: Forward,
    optimizer_config: OptimizerConfig,
    config: TrainConfig,
    compute: Compute,
    guard: MemoryGuard,
) -> _Step:
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
    return _Step(_accumulation(state, forward, config, compute), update, guard)


def _accumulation(
    state: TrainState, forward: Forward, config: TrainConfig, compute: Compute
) -> Callable[[Sums, Batch], Sums]:
    """(sums, micro-batch) -> sums with those of the micro-batch."""
    gradient = summed_gradient(
        state.model, forward, config.label_smoothing, whole=not compute.targets_only
    )

    def accumulate(sums: Sums, *arrays: mx.array, cache: Any = None) -> Sums:
        (batch_total, batch_count), batch_gradients = gradient(*arrays, cache=cache)
        gradients, total, count = sums
        added = tree_map(mx.add, gradients, batch_gradients)
        return added, total + batch_total, count + batch_count

    def without_padding(sums: Sums, batch: Batch) -> Sums:
        arrays = packed(batch, share=compute.share)
        assert arrays.layout is not None
        return accumulate(sums, *arrays.tensors, cache=forward.cache(batch.examples, arrays.layout))

    if compute.segments:
        return without_padding
    step: Callable[..., Sums] = accumulate
    if compute.compiled:
        captured = [state.model.state, state.optimizer.state]
        step = mx.compile(accumulate, inputs=captured, outputs=captured)
    return lambda sums, batch: step(sums, *padded(batch).tensors)


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
