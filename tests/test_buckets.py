"""The joined update against the one of MLX, array by array."""

from __future__ import annotations

import mlx.core as mx
import mlx.optimizers as optimizers
import numpy as np
import pytest

from mlx_ft import buckets, optim
from mlx_ft.buckets import Buckets
from mlx_ft.config.schema import OptimizerConfig
from tests.fakes import same, snapshot, state

SHAPES = {"a": (3, 5), "b": (7,), "c": (2, 2, 2), "d": (11, 1), "e": (1,)}
NAMES = ("adamw", "adam", "lion", "sgd", "adafactor", "muon")
JOINED = ("adamw", "adam", "lion", "sgd")


def tree(seed: int) -> dict[str, dict[str, mx.array]]:
    random = np.random.default_rng(seed)
    arrays = {name: mx.array(random.normal(size=shape).astype(np.float32))
              for name, shape in SHAPES.items()}  # fmt: skip
    return {"lower": {name: arrays[name] for name in "ab"},
            "upper": {name: arrays[name] for name in "cde"}}  # fmt: skip


def rule(name: str) -> optimizers.Optimizer:
    return optim.build_optimizer(OptimizerConfig(name=name, weight_decay=0.1, learning_rate=0.01))


@pytest.mark.parametrize("most", [1, 16, 20, 1000])
def test_what_is_joined_is_split_again(most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MOST", most)
    found = Buckets(tree(0), rule("adamw"))
    joined = found.join(tree(0))
    assert all(len(array.shape) == 1 for array in joined.values())
    assert len(joined) == {1: 5, 16: 3, 20: 3, 1000: 1}[most]
    assert same(snapshot(found.split(joined)), snapshot(tree(0)))


@pytest.mark.parametrize("most", [16, 1000])
@pytest.mark.parametrize("name", NAMES)
def test_three_updates_are_those_of_the_single_arrays(
    name: str, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "MOST", most)
    alone, together = rule(name), rule(name)
    parameters, own = tree(0), tree(0)
    found = Buckets(own, together)
    assert (found.join(own) is own) == (name not in JOINED)
    alone.init(parameters)
    together.init(found.join(own))
    for step in (1, 2, 3):
        parameters = alone.apply_gradients(tree(step), parameters)
        own = found.split(together.apply_gradients(found.join(tree(step)), found.join(own)))
    assert same(snapshot(own), snapshot(parameters))
    assert not same(snapshot(own), snapshot(tree(0)))
    assert same(snapshot(found.named(together.state)), snapshot(alone.state))


def test_a_state_comes_back_by_name_in_whichever_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "MOST", 16)
    adam = rule("adamw")
    found = Buckets(tree(0), adam)
    adam.init(found.join(tree(0)))
    adam.apply_gradients(found.join(tree(1)), found.join(tree(0)))
    named = found.named(adam.state)
    back = found.unnamed(dict(reversed(named.items())), adam.state)
    assert same(snapshot(back), snapshot(adam.state))

    turned = {part: dict(reversed(arrays.items())) for part, arrays in reversed(tree(0).items())}
    other = Buckets(turned, adam)
    later = rule("adamw")
    later.init(other.join(turned))
    arrays = other.unnamed(named, later.state)
    assert same(snapshot(other.named(_nested(arrays))), snapshot(named))


def _nested(flat: dict[str, mx.array]) -> dict[str, object]:
    found: dict[str, object] = {name: array for name, array in flat.items() if "." not in name}
    for name, array in flat.items():
        bucket, _, moment = name.partition(".")
        if moment:
            found.setdefault(bucket, {})[moment] = array  # type: ignore[attr-defined]
    return found


def test_a_run_keeps_its_optimizer_by_the_names_of_the_adapter() -> None:
    run = state()
    names = {name.rpartition(".")[0] for name in run.optimizer_state() if "." in name}
    assert names == set(run.adapter())
    kept = run.optimizer_state()
    assert {array.shape for name, array in kept.items() if name.endswith(".m")} == {
        array.shape for array in run.adapter().values()
    }
