"""Gradient checkpointing: the same loss and gradients, with dropout too, and less memory."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ft import lora
from mlx_ft.config.schema import LoraConfig
from mlx_ft.models.checkpointing import checkpoint_layers, count
from tests import fakes
from tests.families import FAMILIES
from tests.models import tiny


def gradients(model, tokens, seed=7):
    model.train()
    lora.seed_dropout(model, seed)
    value, grads = nn.value_and_grad(model, lambda x: model(x).astype(mx.float32).square().mean())(
        tokens
    )
    mx.eval(value, grads)
    return float(value), {name: np.array(array) for name, array in tree_flatten(grads)}


def adapted(config=None, **adapter):
    model = tiny.build(config)
    model.freeze()
    lora.attach(model, LoraConfig(rank=4, alpha=8, **adapter))
    fakes.randomize(model)  # B is zero at first, which would hide the gradient of A
    return model


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_gradients_are_the_same(family):
    tokens = mx.array([[1, 5, 9, 2, 7, 3]])
    kept = adapted(FAMILIES[family].config)
    forgotten = adapted(FAMILIES[family].config)
    checkpoint_layers(forgotten)
    (loss, expected), (again, found) = gradients(kept, tokens), gradients(forgotten, tokens)
    assert loss == pytest.approx(again, rel=1e-6)
    assert fakes.furthest(expected, found) < 1e-5


def test_gradients_are_the_same_with_dropout():
    tokens = mx.array([[1, 5, 9, 2, 7, 3], [4, 4, 8, 1, 0, 2]])
    kept, forgotten = adapted(dropout=0.3), adapted(dropout=0.3)
    checkpoint_layers(forgotten)
    (loss, expected), (again, found) = gradients(kept, tokens), gradients(forgotten, tokens)
    assert loss == pytest.approx(again, rel=1e-6)
    assert fakes.furthest(expected, found) < 1e-5
    assert fakes.furthest(expected, gradients(kept, tokens, seed=8)[1]) > 1e-3


def test_other_models_of_the_family_are_left_alone():
    first, second = adapted(), adapted()
    checkpoint_layers(first)
    assert type(first.layers[0]) is not type(second.layers[0])
    assert isinstance(first.layers[0], type(second.layers[0]))
    assert lora.parameters(first).keys() == lora.parameters(second).keys()


@pytest.mark.parametrize(
    ("asked", "adapted", "found"), [(True, 4, 4), (False, 4, 0), (2, 4, 2), (9, 4, 4), (1, 1, 1)]
)
def test_how_many_layers_are_meant(asked, adapted, found):
    assert count(asked, adapted) == found


def test_the_lowest_layers_with_an_adapter_forget_first():
    tokens = mx.array([[1, 5, 9, 2, 7, 3]])
    config = {**tiny.LLAMA, "num_hidden_layers": 4}
    kept, forgotten = adapted(config, num_layers=3), adapted(config, num_layers=3)
    checkpoint_layers(forgotten, 2)
    own = type(kept.layers[0])
    assert [type(layer) is own for layer in forgotten.layers] == [True, False, False, True]
    (_, expected), (_, found) = gradients(kept, tokens), gradients(forgotten, tokens)
    assert fakes.furthest(expected, found) < 1e-5


def test_less_memory_is_used():
    config = {**tiny.LLAMA, "num_hidden_layers": 12}
    tokens = mx.zeros((8, 128), dtype=mx.int32)
    peaks = []
    for forgotten in (0, 6, 12):
        model = adapted(config)
        checkpoint_layers(model, forgotten)
        mx.eval(model.parameters())
        mx.reset_peak_memory()
        gradients(model, tokens)
        peaks.append(mx.get_peak_memory())
        del model
    assert peaks[2] < 0.6 * peaks[0]
    assert peaks[2] < 0.8 * peaks[1] < 0.8 * 0.8 * peaks[0]


def test_dropout_keeps_the_expected_share_and_scale():
    dropout = lora.SeededDropout(0.25)
    x = mx.ones((1000, 100))
    out = np.array(dropout(x))
    assert np.mean(out == 0) == pytest.approx(0.25, abs=0.01)
    assert np.unique(out[out != 0]) == pytest.approx(1 / 0.75)
    dropout.eval()
    assert np.array(dropout(x)).min() == 1
