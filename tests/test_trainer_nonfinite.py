"""A step whose loss or gradient is not finite: skipped, counted, and without a trace."""

import math

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import trainer
from mlx_ft.config.schema import LoraConfig, OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batches
from mlx_ft.errors import TrainingError
from mlx_ft.state import TrainState
from mlx_ft.step import Compute
from tests.fakes import rows, same, snapshot, state, train
from tests.models import tiny

ADAMW = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01)
SMALL = LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "down_proj"], num_layers=1)
PLAIN_AND_COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])


class Poisonable(nn.Module):
    """A model whose token 0 gives logits, or only gradients, that are not finite."""

    def __init__(self, model: nn.Module, poison: float | str) -> None:
        super().__init__()
        self.inner = model
        self.poison = poison

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def __call__(self, tokens: mx.array) -> mx.array:
        bad = (tokens == 0).any()
        logits = self.inner(tokens)
        if self.poison == "gradient":  # of a square root at 0
            root = mx.sqrt(mx.where(bad, 0 * logits.sum(), 1.0))
            return logits + root - mx.stop_gradient(root)
        return logits * mx.where(bad, self.poison, 1.0)


def healthy_then_bad(bad: tuple[int, ...], count: int) -> Batches:
    """Rows of one batch each, in order; token 0 stands only in those of `bad`."""
    examples = rows(count, seed=4)
    for i, example in enumerate(examples):
        example.tokens[example.tokens == 0] = 1
        if i in bad:
            example.tokens[0] = 0
    return Batches(examples, 1, 0, shuffle=False, pad_id=258)


@PLAIN_AND_COMPILED
@pytest.mark.parametrize("poison", [math.nan, math.inf, "gradient"])
def test_a_step_that_is_not_finite_changes_nothing(poison: float | str, compiled: bool) -> None:
    run = state(ADAMW, SMALL, model=Poisonable(tiny.build(), poison))
    data = healthy_then_bad((1, 3), 5)
    config = TrainConfig(max_steps=5, skip_patience=2)
    seen = [(snapshot(run.adapter()), moments(run))]
    skipped = []
    losses = []
    for result in trainer.train(
        run,
        data,
        trainer.plan(config, 5, 1),
        ADAMW,
        config,
        seed=0,
        compute=Compute(compiled=compiled),
    ):
        seen.append((snapshot(run.adapter()), moments(run)))
        skipped.append(result.skipped)
        losses.append(result.loss)
    assert [math.isfinite(loss) for loss in losses] == [
        poison == "gradient" or not was_skipped for was_skipped in skipped
    ]
    assert skipped == [False, True, False, True, False]
    for step, was_skipped in enumerate(skipped):
        for before, after in zip(seen[step], seen[step + 1], strict=True):
            assert same(before, after) == was_skipped
    assert run.progress.skipped_steps == 2
    assert run.progress.skipped_in_a_row == 0
    assert run.progress.step == 5
    assert int(run.optimizer.state["step"]) == 3


def moments(run: TrainState) -> dict[str, np.ndarray]:
    """The optimizer's state but the learning rate, which the trainer sets."""
    arrays = snapshot(run.optimizer.state)
    return {name: array for name, array in arrays.items() if name != "learning_rate"}


@PLAIN_AND_COMPILED
def test_skipped_steps_leave_no_trace_in_later_ones(compiled: bool) -> None:
    """The good rows alone give the same adapter, at a constant rate."""
    rule = OptimizerConfig(schedule="constant", warmup_steps=0)
    config = TrainConfig(max_steps=5)
    with_bad, without = healthy_then_bad((1, 3), 5), healthy_then_bad((1, 3), 5)
    without.examples = [e for e in without.examples if 0 not in e.tokens]
    adapters = []
    for data in (with_bad, Batches(without.examples, 1, 0, shuffle=False, pad_id=258)):
        run = state(rule, SMALL, model=Poisonable(tiny.build(), math.nan))
        config = TrainConfig(max_steps=len(data))
        train(run, data, len(data), optimizer=rule, config=config, compiled=compiled)
        adapters.append(snapshot(run.adapter()))
    assert same(*adapters)


def test_one_bad_micro_batch_skips_its_whole_window() -> None:
    run = state(model=Poisonable(tiny.build(), math.nan))
    results = train(run, healthy_then_bad((1,), 4), 2, accumulation=2)
    assert [r.skipped for r in results] == [True, False]
    assert run.progress.micro_step == 4


@PLAIN_AND_COMPILED
def test_patience_ends_in_an_error_that_says_what_to_do(
    compiled: bool, caplog: pytest.LogCaptureFixture
) -> None:
    run = state(ADAMW, SMALL, model=Poisonable(tiny.build(), math.nan))
    config = TrainConfig(max_steps=6, skip_patience=3)
    before = snapshot(run.adapter())
    with pytest.raises(TrainingError, match=r"3 steps in a row.*step 4.*learning_rate"):
        train(run, healthy_then_bad((1, 2, 3, 4), 6), 6, config=config, compiled=compiled)
    assert run.progress.skipped_steps == run.progress.skipped_in_a_row == 3
    assert [r.levelname for r in caplog.records].count("WARNING") == 3
    assert "step 4 skipped: loss nan" in caplog.text
    assert not same(before, snapshot(run.adapter()))  # step 1 was good
    assert all(np.isfinite(array).all() for array in snapshot(run.adapter()).values())
