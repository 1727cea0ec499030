"""The loop: repeatable to the bit, resumable anywhere, the same compiled or not."""

import math
from dataclasses import replace

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import lora, trainer
from mlx_ft.config.schema import LoraConfig, OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batch, Batches
from mlx_ft.state import TrainState
from mlx_ft.step import Compute, clip
from tests.fakes import batches, furthest, randomize, relative, rows, same, snapshot, state, train

ROWS = rows(7)
ADAMW = OptimizerConfig(learning_rate=3e-3, weight_decay=0.01)
SMALL = LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "down_proj"], num_layers=1)
DROPOUT = replace(SMALL, dropout=0.3)
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
    run = state(rule, SMALL)
    randomize(run.model)
    data = Batches(ROWS[:2], 2, 0, shuffle=False, pad_id=258)
    config = TrainConfig(max_steps=3)
    before = snapshot(run.adapter())
    velocity = {name: np.zeros_like(array) for name, array in before.items()}
    rates = []
    for result in trainer.train(
        run,
        data,
        trainer.plan(config, 1, 1),
        rule,
        config,
        seed=0,
        compute=Compute(compiled=compiled),
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
    run = state(adapter=SMALL)
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
    clipped, found = clip(tree, limit)
    assert relative(float(found), norm) < 1e-6
    factor = 1.0 if limit is None else min(1.0, limit / norm)
    assert relative(clipped["a"], factor * arrays["a"]) < 1e-4
    assert relative(clipped["b"]["c"], factor * arrays["b"]["c"]) < 1e-4


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
    list(trainer.train(whole, data, plan, ADAMW, config, seed=1, compute=Compute()))

    first = state(ADAMW, DROPOUT)
    for result in trainer.train(first, data, plan, ADAMW, config, seed=1, compute=Compute()):
        if result.step == 3:
            break
    second = state(ADAMW, DROPOUT)
    second.model.load_weights([*first.adapter().items()], strict=False)
    second.optimizer.state = first.optimizer.state
    second.progress = first.progress
    fresh = batches(ROWS, seed=1)
    list(trainer.train(second, fresh, plan, ADAMW, config, seed=1, compute=Compute()))
    assert same(snapshot(whole.adapter()), snapshot(second.adapter()))
    assert same(snapshot(whole.optimizer.state), snapshot(second.optimizer.state))


def test_a_window_that_breaks_is_taken_again_as_a_whole() -> None:
    """An error in its second micro-batch, memory run out for one, leaves the state untouched."""
    config = TrainConfig(max_steps=2)

    class Breaking(Batches):
        broken = False

        def at(self, epoch: int, index: int) -> Batch:
            if (epoch, index) == (0, 3) and not self.broken:
                self.broken = True
                raise MemoryError
            return super().at(epoch, index)

    whole, broken = state(ADAMW, DROPOUT), state(ADAMW, DROPOUT)
    train(whole, batches(ROWS), 2, accumulation=2, optimizer=ADAMW)
    data = Breaking(ROWS, 2, 0, pad_id=258)
    plan = trainer.plan(config, len(data), 2)
    with pytest.raises(MemoryError):
        list(trainer.train(broken, data, plan, ADAMW, config, seed=0, compute=Compute()))
    assert (broken.progress.step, broken.progress.micro_step) == (1, 2)
    list(trainer.train(broken, data, plan, ADAMW, config, seed=0, compute=Compute()))
    assert same(snapshot(whole.adapter()), snapshot(broken.adapter()))


def test_the_largest_seed_is_a_seed() -> None:
    run = state(adapter=DROPOUT)
    (result,) = train(run, batches(ROWS), 1, seed=2**32 - 1)
    assert math.isfinite(result.loss)


def test_validating_and_generating_between_steps_changes_no_bit() -> None:
    whole, disturbed = state(ADAMW, DROPOUT), state(ADAMW, DROPOUT)
    train(whole, batches(ROWS), 3, optimizer=ADAMW)
    config = TrainConfig(max_steps=3)
    data = batches(ROWS)
    for _ in trainer.train(
        disturbed,
        data,
        trainer.plan(config, 4, 1),
        ADAMW,
        config,
        seed=0,
        compute=Compute(),
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
