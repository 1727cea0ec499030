"""The training step and the loop around it; knows neither files nor trackers.

Losses and gradients travel as sums with the number of targets behind them, and are divided once
per optimizer step: a token weighs the same in whichever micro-batch it falls.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map

from mlx_ft import lora, optim
from mlx_ft.config.schema import OptimizerConfig, TrainConfig
from mlx_ft.data.arrays import to_arrays
from mlx_ft.data.batch import Batches
from mlx_ft.errors import TrainingError
from mlx_ft.losses import causal_lm_loss
from mlx_ft.models.heads import LogitsAt, logits_at
from mlx_ft.state import TrainState

logger = logging.getLogger(__name__)


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


def plan(config: TrainConfig, batches_per_epoch: int, accumulation: int) -> Plan:
    """Steps from `max_steps`, or else from `epochs`; the last window may be a partial one."""
    if config.max_steps is not None:
        micro_steps = config.max_steps * accumulation
    else:
        micro_steps = max(1, math.ceil(config.epochs * batches_per_epoch))
    return Plan(math.ceil(micro_steps / accumulation), micro_steps, accumulation, batches_per_epoch)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. loss: mean over targets, nats; grad_norm: before clipping."""

    step: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    target_tokens: int
    seconds: float
    skipped: bool


def train(
    state: TrainState,
    batches: Batches,
    run_plan: Plan,
    optimizer_config: OptimizerConfig,
    config: TrainConfig,
    *,
    seed: int,
    compiled: bool,
) -> Iterator[StepResult]:
    """Yield one result per optimizer step, from where `state` stands to the plan's end.

    Between two results the caller may evaluate, save or stop: the state is whole. Raises
    TrainingError after `config.nonfinite_patience` skipped steps in a row.
    """
    accumulate, update = _build_step(state, optimizer_config, config, compiled)
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
            # Dropout of a micro-step is a function of (seed, micro_step), as its rows are.
            lora.seed_dropout(state.model, (seed << 32) | micro_step)
            sums = accumulate(*sums, *vars(to_arrays(batch)).values())
            mx.eval(sums)
            tokens += int(batches.lengths[batch.rows].sum())
            target_tokens += int(batch.mask.sum())
        loss, grad_norm, finite = update(*sums)
        del sums  # an adapter's worth of memory
        mx.eval(loss, grad_norm, finite, state.model.trainable_parameters(), state.optimizer.state)
        seconds = time.perf_counter() - started
        progress.micro_step += window  # now, not before: a broken window is taken again
        result = StepResult(
            progress.step + 1,
            progress.micro_step / len(batches),
            float(loss),
            rate,
            float(grad_norm),
            tokens,
            target_tokens,
            seconds,
            skipped=not bool(finite),
        )
        _count(state, result)
        yield result
        ended = progress.step == run_plan.steps
        _check_patience(state, config.nonfinite_patience, ended=ended)


def _count(state: TrainState, result: StepResult) -> None:
    progress = state.progress
    progress.step = result.step
    progress.tokens += result.tokens
    progress.target_tokens += result.target_tokens
    progress.train_seconds += result.seconds
    if not result.skipped:
        progress.nonfinite_in_a_row = 0
        return
    progress.skipped_steps += 1
    progress.nonfinite_in_a_row += 1
    logger.warning(
        "step %d skipped: loss %s, gradient norm %s; the adapter is unchanged",
        result.step,
        result.loss,
        result.grad_norm,
    )


def _check_patience(state: TrainState, patience: int, *, ended: bool = False) -> None:
    progress = state.progress
    all_skipped = ended and progress.skipped_steps == progress.step > 0
    if progress.nonfinite_in_a_row < patience and not all_skipped:
        return
    raise TrainingError(
        f"{progress.nonfinite_in_a_row} steps in a row gave a loss or gradient that is not "
        f"finite, the last one step {progress.step} (train.nonfinite_patience={patience}). The "
        "adapter is the one from before them. Lower optimizer.learning_rate, or set "
        "memory_profile.compute_dtype=float32"
    )


def _zeros(state: TrainState) -> tuple[Any, mx.array, mx.array]:
    gradients = tree_map(mx.zeros_like, state.model.trainable_parameters())
    return gradients, mx.array(0.0), mx.array(0.0)


Accumulate = Callable[..., tuple[Any, mx.array, mx.array]]
Update = Callable[[Any, mx.array, mx.array], tuple[mx.array, mx.array, mx.array]]


def _build_step(
    state: TrainState, optimizer_config: OptimizerConfig, config: TrainConfig, compiled: bool
) -> tuple[Accumulate, Update]:
    model, optimizer = state.model, state.optimizer
    logits, saves_work = logits_at(model)
    if not saves_work:
        logger.info("this model's logits are computed at every position, targets or not")
    gradient = summed_gradient(model, logits, config.label_smoothing)

    def accumulate(
        gradients: Any, total: mx.array, count: mx.array, *arrays: mx.array
    ) -> tuple[Any, mx.array, mx.array]:
        (batch_total, batch_count), batch_gradients = gradient(*arrays)
        added = tree_map(mx.add, gradients, batch_gradients)
        return added, total + batch_total, count + batch_count

    def update(
        gradients: Any, total: mx.array, count: mx.array
    ) -> tuple[mx.array, mx.array, mx.array]:
        mean = tree_map(lambda g: g / count, gradients)
        clipped, norm = clip(mean, optimizer_config.max_grad_norm)
        old_parameters = model.trainable_parameters()
        old_state = tree_map(lambda array: array, optimizer.state)
        optimizer.update(model, clipped)
        finite = mx.isfinite(total) & mx.isfinite(norm) & _all_finite(model.trainable_parameters())
        keep = partial(_where, finite)
        model.update(tree_map(keep, model.trainable_parameters(), old_parameters))
        # In place: a compiled function watches this very dictionary.
        optimizer.state.update(tree_map(keep, optimizer.state, old_state))
        return total / count, norm, finite

    if not compiled:
        return accumulate, update
    captured = [model.state, optimizer.state]
    return (
        mx.compile(accumulate, inputs=captured, outputs=captured),
        mx.compile(update, inputs=captured, outputs=captured),
    )


def summed_gradient(
    model: nn.Module, logits: LogitsAt, label_smoothing: float
) -> Callable[..., tuple[tuple[mx.array, mx.array], Any]]:
    """(inputs, positions, labels, weights) -> ((loss sum, targets), gradients of the sum)."""

    def loss(*arrays: mx.array) -> tuple[mx.array, mx.array]:
        inputs, positions, labels, weights = arrays
        return causal_lm_loss(logits, inputs, positions, labels, weights, label_smoothing)

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
