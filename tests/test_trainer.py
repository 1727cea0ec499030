"""The loop: repeatable to the bit, unharmed by a bad step, the same compiled or not."""

import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import lora, trainer
from mlx_ft.config.schema import LoraConfig, OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batches
from mlx_ft.errors import TrainingError
from mlx_ft.state import TrainState
from tests.fakes import batches, furthest, randomize, relative, rows, same, snapshot, state, train
from tests.models import tiny

ROWS = rows(7)
ADAMW = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01)
DROPOUT = LoraConfig(rank=4, alpha=8, dropout=0.3)
PLAIN_AND_COMPILED = pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])


def trained(seed: int, compiled: bool, steps: int = 4, dropout: float = 0.3) -> TrainState:
    adapter = replace(DROPOUT, dropout=dropout)
    run = state(ADAMW, adapter, seed=seed)
    data = batches(ROWS, seed=seed)
    train(run, data, steps, accumulation=2, optimizer=ADAMW, seed=seed, compiled=compiled)
    return run


@PLAIN_AND_COMPILED
def test_same_seed_same_bits_other_seed_other_adapter(compiled: bool) -> None:
    """With dropout, accumulation, and windows that cross the end of an epoch."""
    first, again, other = (trained(seed, compiled) for seed in (1, 1, 2))
    assert same(snapshot(first.adapter()), snapshot(again.adapter()))
    assert same(snapshot(first.optimizer.state), snapshot(again.optimizer.state))
    assert not same(snapshot(first.adapter()), snapshot(other.adapter()))


@PLAIN_AND_COMPILED
def test_dropout_is_drawn_from_seed_and_micro_step(compiled: bool) -> None:
    """One model, one set of rows: only the seed of the draws differs; each draw is a new one."""
    losses = []
    for seed in (1, 1, 2):
        run = state(adapter=DROPOUT)
        randomize(run.model)
        still = OptimizerConfig(name="sgd", learning_rate=1e-30, momentum=0.0)
        data = Batches(ROWS[:2], 2, 0, shuffle=False, pad_id=258)
        results = train(run, data, 3, optimizer=still, seed=seed, compiled=compiled)
        losses.append([r.loss for r in results])
    assert losses[0] == losses[1]
    assert losses[0] != losses[2]
    assert len(set(losses[0])) == 3


def test_compiled_agrees_with_plain_while_rate_and_shapes_change() -> None:
    plain, compiled = (trained(3, c, steps=6, dropout=0.0) for c in (False, True))
    assert furthest(snapshot(plain.adapter()), snapshot(compiled.adapter())) < 1e-4
    assert furthest(snapshot(plain.optimizer.state), snapshot(compiled.optimizer.state)) < 1e-4


@PLAIN_AND_COMPILED
def test_optimizer_state_and_learning_rate_reach_the_step(compiled: bool) -> None:
    """SGD by hand: v_t = m v_(t-1) + g_t, p_t = p_(t-1) - rate_t v_t, with a rate that falls."""
    rule = OptimizerConfig(
        name="sgd", momentum=0.9, learning_rate=0.1, schedule="linear", max_grad_norm=None
    )
    run = state(rule)
    randomize(run.model)
    data = Batches(ROWS[:2], 2, 0, shuffle=False, pad_id=258)
    config = TrainConfig(max_steps=3)
    before = snapshot(run.adapter())
    velocity = {name: np.zeros_like(array) for name, array in before.items()}
    rates = []
    for result in trainer.train(
        run, data, trainer.plan(config, 1, 1), rule, config, seed=0, compiled=compiled
    ):
        after = snapshot(run.adapter())
        gradient = mean_gradient(before, data)
        for name in velocity:
            velocity[name] = 0.9 * velocity[name] + gradient[name]
        expected = {n: before[n] - result.learning_rate * velocity[n] for n in before}
        assert furthest(after, expected) < 1e-5
        assert int(run.optimizer.state["step"]) == result.step
        before = after
        rates.append(result.learning_rate)
    assert rates == pytest.approx([0.1, 0.055, 0.01])


def mean_gradient(adapter: dict[str, np.ndarray], data: Batches) -> dict[str, np.ndarray]:
    """Of mlx's own mean cross-entropy over full logits, at another model with these weights."""
    run = state()
    run.model.load_weights([(n, mx.array(a)) for n, a in adapter.items()], strict=False)
    batch = data.at(0, 0)

    def loss(model: nn.Module) -> mx.array:
        losses = nn.losses.cross_entropy(model(mx.array(batch.inputs)), mx.array(batch.targets))
        mask = mx.array(batch.mask)
        return (losses * mask).sum() / mask.sum()

    return snapshot(nn.value_and_grad(run.model, loss)(run.model)[1])


@pytest.mark.parametrize("limit", [1e-3, 1e3, None])
def test_clipping_scales_to_the_global_norm(limit: float | None) -> None:
    random = np.random.RandomState(0)
    arrays = {"a": random.standard_normal((3, 4)), "b": {"c": random.standard_normal(5)}}
    tree = {"a": mx.array(arrays["a"], mx.float32), "b": {"c": mx.array(arrays["b"]["c"])}}
    norm = math.sqrt(sum((array**2).sum() for array in (arrays["a"], arrays["b"]["c"])))
    clipped, found = trainer.clip(tree, limit)
    assert relative(float(found), norm) < 1e-6
    factor = 1.0 if limit is None else min(1.0, limit / norm)
    assert relative(clipped["a"], factor * arrays["a"]) < 1e-4
    assert relative(clipped["b"]["c"], factor * arrays["b"]["c"]) < 1e-4


class Poisonable(nn.Module):
    """A model whose token 0 gives logits that are not finite."""

    def __init__(self, model: nn.Module, poison: float) -> None:
        super().__init__()
        self.inner = model
        self.poison = poison

    @property
    def layers(self) -> list[nn.Module]:
        return self.inner.layers

    def __call__(self, tokens: mx.array) -> mx.array:
        bad = (tokens == 0).any()
        return self.inner(tokens) * mx.where(bad, self.poison, 1.0)


def healthy_then_bad(bad: tuple[int, ...], count: int) -> Batches:
    """Rows of one batch each, in order; token 0 stands only in those of `bad`."""
    examples = rows(count, seed=4)
    for i, example in enumerate(examples):
        example.tokens[example.tokens == 0] = 1
        if i in bad:
            example.tokens[0] = 0
    return Batches(examples, 1, 0, shuffle=False, pad_id=258)


@PLAIN_AND_COMPILED
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_step_that_is_not_finite_changes_nothing(poison: float, compiled: bool) -> None:
    run = state(ADAMW, model=Poisonable(tiny.build(), poison))
    data = healthy_then_bad((1, 3), 5)
    config = TrainConfig(max_steps=5, nonfinite_patience=2)
    seen = [(snapshot(run.adapter()), moments(run))]
    skipped = []
    for result in trainer.train(
        run, data, trainer.plan(config, 5, 1), ADAMW, config, seed=0, compiled=compiled
    ):
        seen.append((snapshot(run.adapter()), moments(run)))
        skipped.append(result.skipped)
    assert skipped == [False, True, False, True, False]
    for step, was_skipped in enumerate(skipped):
        for before, after in zip(seen[step], seen[step + 1], strict=True):
            assert same(before, after) == was_skipped
    assert run.progress.skipped_steps == 2
    assert run.progress.nonfinite_in_a_row == 0
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
        run = state(rule, model=Poisonable(tiny.build(), math.nan))
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
    run = state(ADAMW, model=Poisonable(tiny.build(), math.nan))
    config = TrainConfig(max_steps=6, nonfinite_patience=3)
    before = snapshot(run.adapter())
    with pytest.raises(TrainingError, match=r"3 steps in a row.*step 4.*learning_rate"):
        train(run, healthy_then_bad((1, 2, 3, 4), 6), 6, config=config, compiled=compiled)
    assert run.progress.skipped_steps == run.progress.nonfinite_in_a_row == 3
    assert [r.levelname for r in caplog.records] == ["WARNING"] * 3
    assert "step 4 skipped: loss nan" in caplog.text
    assert not same(before, snapshot(run.adapter()))  # step 1 was good
    assert all(np.isfinite(array).all() for array in snapshot(run.adapter()).values())


def test_the_plan_counts_steps_epochs_and_the_partial_window() -> None:
    bounded = trainer.plan(TrainConfig(max_steps=10, epochs=99), 4, 2)
    assert (bounded.steps, bounded.micro_steps, bounded.epochs) == (10, 20, 5.0)
    whole = trainer.plan(TrainConfig(epochs=1.5), 5, 3)
    assert (whole.micro_steps, whole.steps) == (8, 3)
    least = trainer.plan(TrainConfig(epochs=1e-6), 5, 3)
    assert (least.micro_steps, least.steps) == (1, 1)


def test_results_count_what_went_through_the_model() -> None:
    run = state()
    data = batches(ROWS)
    results = train(run, data, 2, accumulation=4, config=TrainConfig(epochs=2))
    tokens = sum(len(example.tokens) for example in ROWS)
    targets = sum(int(example.targets.sum()) for example in ROWS)
    assert [(r.tokens, r.target_tokens) for r in results] == [(tokens, targets)] * 2
    assert (run.progress.tokens, run.progress.target_tokens) == (2 * tokens, 2 * targets)
    assert [(r.step, r.epoch) for r in results] == [(1, 1.0), (2, 2.0)]


def test_stopping_and_going_on_is_the_same_as_never_stopping() -> None:
    """All progress is in the state: another optimizer and model that take it over go on."""
    config = TrainConfig(max_steps=6)
    data = batches(ROWS, seed=1)
    plan = trainer.plan(config, len(data), 2)
    whole = state(ADAMW, DROPOUT)
    list(trainer.train(whole, data, plan, ADAMW, config, seed=1, compiled=False))

    first = state(ADAMW, DROPOUT)
    for result in trainer.train(first, data, plan, ADAMW, config, seed=1, compiled=False):
        if result.step == 3:
            break
    second = state(ADAMW, DROPOUT)
    second.model.load_weights([*first.adapter().items()], strict=False)
    second.optimizer.state = first.optimizer.state
    second.progress = first.progress
    fresh = batches(ROWS, seed=1)
    list(trainer.train(second, fresh, plan, ADAMW, config, seed=1, compiled=False))
    assert same(snapshot(whole.adapter()), snapshot(second.adapter()))
    assert same(snapshot(whole.optimizer.state), snapshot(second.optimizer.state))


def test_validating_and_generating_between_steps_changes_no_bit() -> None:
    whole, disturbed = state(ADAMW, DROPOUT), state(ADAMW, DROPOUT)
    train(whole, batches(ROWS), 3, optimizer=ADAMW)
    config = TrainConfig(max_steps=3)
    data = batches(ROWS)
    for _ in trainer.train(
        disturbed, data, trainer.plan(config, 4, 1), ADAMW, config, seed=0, compiled=False
    ):
        disturbed.model.eval()
        mx.eval(mx.random.uniform(shape=(3,)))
        data.at(7, 0)
    assert same(snapshot(whole.adapter()), snapshot(disturbed.adapter()))


def test_only_the_adapter_is_trained() -> None:
    run = state()
    base = {n: a for n, a in snapshot(run.model.parameters()).items() if ".lora_" not in n}
    results = train(run, batches(ROWS), 20, optimizer=OptimizerConfig(learning_rate=1e-2))
    after = snapshot(run.model.parameters())
    assert all(after[name].tobytes() == array.tobytes() for name, array in base.items())
    assert lora.count(run.model) == sum(a.size for n, a in after.items() if ".lora_" in n)
    assert np.mean([r.loss for r in results[-4:]]) < np.mean([r.loss for r in results[:4]])
