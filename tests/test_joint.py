"""Gradients of several runs in one pass, against each run's own."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_ft import joint, lora
from mlx_ft.activations import Store
from mlx_ft.config.schema import LoraConfig
from mlx_ft.data.arrays import packed
from mlx_ft.data.batch import collate
from mlx_ft.joint import Request, Runner, compute
from mlx_ft.models.checkpointing import checkpoint_layers
from mlx_ft.models.forward import forward_of, with_frozen
from mlx_ft.shared import twin
from mlx_ft.step import summed_gradient
from tests.fakes import answer_row, randomize, snapshot
from tests.families import FAMILIES
from tests.models import tiny

PROMPT = [5, 6, 7, 8, 9, 10, 11, 12, 13, 14]
# Batches of one, three and two rows: of different lengths, with a common beginning and without.
ROWS = (
    ([7, 8, 9, 1, 30],),
    ([*PROMPT, 1, 2, 3], [*PROMPT, 4, 5, 6], [7, 8, 9, 1]),
    ([*PROMPT, 20], [3, 2, 1, 2, 3]),
)
ADAPTERS = (
    LoraConfig(rank=2, alpha=4, num_layers=2),
    LoraConfig(rank=5, alpha=40, num_layers=1, target_modules="attention"),
    LoraConfig(rank=3, alpha=3, num_layers=2, target_modules="mlp"),
)


def request(base: nn.Module, number: int, config: LoraConfig, store: Store | None = None) -> Any:
    """A run's wish, after one micro-batch that it has already, and its answer alone."""
    model = twin(base)
    lora.attach(model, config)
    randomize(model, seed=number)
    forward = forward_of(model)
    if store is not None:
        forward = with_frozen(forward, model, len(model.layers) - int(config.num_layers), store)
    model.train()
    lora.seed_dropout(model, 40 + number)
    examples = [answer_row(row, 2) for row in ROWS[number]]
    batch = collate(examples, np.arange(len(examples)), pad_id=258)
    arrays = packed(batch, share=config.dropout == 0)
    cache = forward.cache(batch.examples, arrays.layout)
    smoothing = 0.1 * number
    sums = (
        tree_map(lambda array: mx.full(array.shape, 0.5), model.trainable_parameters()),
        mx.array(3.0),
        mx.array(7.0),
    )

    def alone():
        (total, count), found = summed_gradient(model, forward, smoothing)(
            *arrays.tensors, cache=cache
        )
        return tree_map(mx.add, sums[0], found), sums[1] + total, sums[2] + count

    return Request(Runner(model, forward, smoothing), sums, arrays.tensors, cache, alone)


def agree(found: joint.Sums, expected: joint.Sums) -> None:
    assert found[1].item() == pytest.approx(expected[1].item(), rel=1e-5)
    assert found[2].item() == expected[2].item()
    ours, theirs = snapshot(found[0]), snapshot(expected[0])
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        size = np.abs(array - 0.5).max()
        assert size > 0, name
        np.testing.assert_allclose(ours[name], array, rtol=1e-4, atol=1e-4 * size, err_msg=name)


@pytest.fixture
def passes(monkeypatch):
    """How many requests each joint pass had."""
    seen, genuine = [], joint.summed

    def summed(requests):
        seen.append(len(requests))
        return genuine(requests)

    monkeypatch.setattr(joint, "summed", summed)
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_each_gets_its_own_gradient(family, passes):
    base = tiny.build(FAMILIES[family].config)
    base.freeze()
    requests = [request(base, at, config) for at, config in enumerate(ADAPTERS)]
    expected = [one.alone() for one in requests]
    mx.eval(expected)
    joined = all(one.runner.joins for one in requests)
    for _ in range(2):  # the models are as they were
        for found, wanted in zip(compute(requests, set()), expected, strict=True):
            assert not isinstance(found, Exception), found
            agree(found, wanted)
    assert passes == ([3, 3] if joined else [])
    if family in ("llama", "mistral", "qwen3", "phi3"):
        assert joined


@pytest.mark.parametrize(
    "configs",
    [
        [LoraConfig(rank=2, dropout=0.3), LoraConfig(rank=2, dropout=0.3), LoraConfig(rank=2)],
        [LoraConfig(rank=3, num_layers=1), LoraConfig(rank=4, num_layers=1), LoraConfig(rank=1)],
    ],
    ids=["dropout", "depths"],
)
def test_dropout_and_remembered_layers(configs, passes, tmp_path):
    base = tiny.build()
    base.freeze()
    store = Store(tmp_path, 2**24)
    stores = [store if config.num_layers == 1 else None for config in configs]
    requests = [
        request(base, at, config, own)
        for at, (config, own) in enumerate(zip(configs, stores, strict=True))
    ]
    expected = [one.alone() for one in requests]
    for found, wanted in zip(compute(requests, set()), expected, strict=True):
        agree(found, wanted)
    # Who enters the model above its frozen layers is computed with the likes of it.
    assert passes == ([3] if stores[0] is None else [2])
    store.close()


def test_checkpointed_layers(passes):
    base = tiny.build()
    base.freeze()
    requests = [request(base, at, config) for at, config in enumerate(ADAPTERS)]
    expected = [one.alone() for one in requests]
    mx.eval(expected)
    checkpoint_layers(requests[0].runner.model)
    for found, wanted in zip(compute(requests, set()), expected, strict=True):
        agree(found, wanted)
    assert passes == [3]


def test_other_bases_are_not_mixed(passes):
    bases = [tiny.build(seed=seed) for seed in (0, 1)]
    for base in bases:
        base.freeze()
    requests = [
        request(bases[at % 2], at, LoraConfig(rank=2, target_modules=places))
        for at, places in enumerate(["mlp", "attention", "all-linear"])
    ]
    expected = [one.alone() for one in requests]
    for found, wanted in zip(compute(requests, set()), expected, strict=True):
        agree(found, wanted)
    assert passes == [2]


def test_a_quantized_base(passes):
    base = tiny.build()
    nn.quantize(base, group_size=32, bits=4)
    base.freeze()
    requests = [request(base, at, config) for at, config in enumerate(ADAPTERS)]
    expected = [one.alone() for one in requests]
    for found, wanted in zip(compute(requests, set()), expected, strict=True):
        agree(found, wanted)
    assert passes == [3]


def test_memory_that_runs_out_is_everybodys_and_the_models_stay_whole(monkeypatch, passes, caplog):
    base = tiny.build()
    base.freeze()
    requests = [request(base, at, config) for at, config in enumerate(ADAPTERS)]
    expected = [one.alone() for one in requests]
    mx.eval(expected)
    with monkeypatch.context() as patch:
        patch.setattr(joint, "head_loss", partial(_fails, MemoryError("no room")))
        assert [type(found) for found in compute(requests, set())] == [MemoryError] * 3
    with monkeypatch.context() as patch:  # a model that is of another shape: one by one
        patch.setattr(joint, "head_loss", partial(_fails, TypeError("another shape")))
        refused: set[Any] = set()
        for found, wanted in zip(compute(requests, refused), expected, strict=True):
            agree(found, wanted)
    assert len(caplog.messages) == 1
    for found, wanted in zip(compute(requests, refused), expected, strict=True):
        agree(found, wanted)
    assert len(passes) == 2  # and is not asked for again
    for found, wanted in zip(compute(requests, set()), expected, strict=True):
        agree(found, wanted)
    assert len(passes) == 3


def _fails(error: Exception, *_: Any, **__: Any) -> None:
    raise error
