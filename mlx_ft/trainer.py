"""The loop around the training step; knows neither files nor trackers."""

from __future__ import annotations

import logging
import math
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from mlx_ft import lora, optim, together
from mlx_ft import step as steps
from mlx_ft.config.schema import OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batch, Batches, collate
from mlx_ft.errors import TrainingError
from mlx_ft.memory_guard import MemoryGuard
from mlx_ft.memory_watch import is_out_of_memory
from mlx_ft.models.forward import Forward, forward_of
from mlx_ft.state import TrainState
from mlx_ft.step import Compute, Step, Sums
from mlx_ft.team import Order, Team

logger = logging.getLogger(__name__)

RECENT_LOSSES = 20  # whose median says what a usual loss is
ENOUGH_LOSSES = 5
PART_STRIDE = 0x9E3779B97F4A7C15  # 2^64 / golden ratio: keeps the seeds of parts far apart
RANK_STRIDE = 0xC2B2AE3D27D4EB4F  # an odd number: those of processes


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
    team: Team | None = None,
) -> Iterator[StepResult]:
    """Yield one result per optimizer step, from where `state` stands to the plan's end.

    Between two results the caller may evaluate, save, stop, or put other arrays into the state:
    it is whole. forward: of the state's model, when it is there already. team: which this process
    leads. Raises TrainingError after `config.skip_patience` skipped steps in a row, and when a
    single row does not fit into memory; TeamError when another process is gone.
    """
    forward = forward or forward_of(state.model)
    step = steps.build(state, forward, optimizer_config, config, compute, guard or MemoryGuard())
    progress = state.progress
    while progress.step < run_plan.steps:
        started = time.perf_counter() - together.waited()
        rate = optim.learning_rate(optimizer_config, progress.step, run_plan.steps)
        state.optimizer.learning_rate = rate
        state.model.train()
        window = min(run_plan.accumulation, run_plan.micro_steps - progress.micro_step)
        order = Order(progress.micro_step, window)
        if team is not None:
            team.call(order, state.adapter())
        sums, tokens, target_tokens = _window(step, state, batches, order, seed, team)
        limit = spike_limit(config.spike_factor, progress.recent_losses)
        loss, grad_norm, taken = _update(step, sums, state, limit)
        del sums  # an adapter's worth of memory
        seconds = time.perf_counter() - together.waited() - started
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


def follow(
    state: TrainState,
    batches: Batches,
    optimizer_config: OptimizerConfig,
    config: TrainConfig,
    *,
    seed: int,
    compute: Compute,
    forward: Forward,
    guard: MemoryGuard,
    team: Team,
) -> None:
    """Compute this process's share of each step that the leader takes, until it has done.

    state: its adapter is the leader's. Raises TeamError when another process is gone.
    """
    step = steps.build(state, forward, optimizer_config, config, compute, guard)
    state.model.train()
    while (order := team.listen(state.model)) is not None:
        _window(step, state, batches, order, seed, team)


def _window(
    step: Step, state: TrainState, batches: Batches, order: Order, seed: int, team: Team | None
) -> tuple[Sums, int, int]:
    """Over the micro-batches of an optimizer step: (sums, tokens, targets), of all processes."""
    sums, tokens, target_tokens = steps.zeros(state), 0, 0
    for micro_step in order.micro_steps:
        batch = batches.at(*divmod(micro_step, len(batches)))
        tokens += int(batches.lengths[batch.rows].sum())
        target_tokens += int(batch.mask.sum())
        key = (seed << 32) | micro_step
        if team is None:
            sums = _add(step, sums, state, batches, batch, key)
        elif len(rows := team.share(batch.rows)):
            own = collate(batches.examples, rows, batches.pad_id, batches.pad_multiple)
            rank_key = (key + team.rank * RANK_STRIDE) % 2**64
            sums = _add(step, sums, state, batches, own, rank_key)
    return sums if team is None else team.total(sums), tokens, target_tokens


def _update(step: Step, sums: Sums, state: TrainState, limit: float) -> Sums:
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
    step: Step, sums: Sums, state: TrainState, batches: Batches, batch: Batch, seed: int
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
                    given = step.prepare(piece)
                    with step.guard.part(piece.mask):
                        added = step.accumulate(added, given)
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
