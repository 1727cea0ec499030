"""A model is cut above the first layer of its last kind, and is whole again afterwards."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest

from mlx_ft import lora
from mlx_ft.config.schema import LoraConfig
from mlx_ft.models.forward import forward_of
from mlx_ft.models.kinds import each_kind
from tests.fakes import randomize
from tests.families import FAMILIES
from tests.models import tiny

DEEP = {**tiny.LLAMA, "num_hidden_layers": 6}


def left(model: nn.Module) -> int:
    with each_kind(model) as cut:
        within = len(model.layers)
    assert cut == (within < len(model.layers))
    return within


def test_layers_that_are_alike_but_for_their_numbers_need_one() -> None:
    model = tiny.build(DEEP)
    randomize(model)
    assert left(model) == 1
    assert len(model.layers) == 6


def test_adapted_layers_are_a_kind_of_their_own() -> None:
    model = tiny.build(DEEP)
    lora.attach(model, LoraConfig(rank=2, num_layers=2))
    assert left(model) == 5


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer.self_attn, "scale", 0.5),
        lambda layer: setattr(layer.mlp, "down_proj", nn.Linear(64, 64)),
        lambda layer: setattr(layer, "mlp", nn.Identity()),
    ],
    ids=["attribute", "shape", "class"],
)
def test_one_other_layer_is_kept(change: Any) -> None:
    model = tiny.build(DEEP)
    change(model.layers[3])
    assert left(model) == 4


def test_layers_that_know_their_number_stay() -> None:
    model = tiny.build(DEEP)
    for number, layer in enumerate(model.layers):
        layer.layer_idx = number
    assert left(model) == 6


def test_models_without_layers_stay() -> None:
    with each_kind(nn.Linear(2, 2)) as cut:
        assert not cut


def test_it_is_whole_after_an_error() -> None:
    model = tiny.build(DEEP)
    with pytest.raises(RuntimeError), each_kind(model):
        raise RuntimeError
    assert len(model.layers) == 6


class Stubborn(nn.Module):
    """Adds to its layer's output, and takes no segments."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner
        self.use_sliding = False  # as a Llama asks its layers

    def __call__(self, x: mx.array, mask: Any, cache: Any) -> mx.array:
        if cache is not None:
            raise TypeError("no segments here")
        found: mx.array = self.inner(x, mask, cache)
        return found + 1


def test_an_upper_layer_that_takes_no_segments_is_seen() -> None:
    model = tiny.build(DEEP)
    model.layers[4] = Stubborn(model.layers[4])
    found = forward_of(model)
    assert found.splits
    assert not found.segments


class Short(nn.Module):
    """Refuses to be a part of itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model.model

    @property
    def layers(self) -> list[Any]:
        return self.model.layers  # type: ignore[no-any-return]

    def __call__(self, tokens: mx.array, cache: Any = None) -> mx.array:
        if len(self.layers) != 6:
            raise ValueError("where are my layers")
        return self.model.embed_tokens.as_linear(self.model(tokens, cache=cache))


def test_a_model_that_cannot_be_cut_is_tried_whole() -> None:
    found = forward_of(Short(tiny.build(DEEP)))
    assert found.splits
    assert found.segments


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_found_as_it_is_when_whole(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = {**FAMILIES[family].config, "num_hidden_layers": 4}
    model = tiny.build(config)
    found = forward_of(model)
    monkeypatch.setattr("mlx_ft.models.kinds._holder", lambda *_: None)
    whole = forward_of(model)
    assert (found.splits, found.segments) == (whole.splits, whole.segments)
