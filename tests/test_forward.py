"""Logits at chosen positions are the model's own, in every family, and cost only those rows."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import lora
from mlx_ft.config.schema import LoraConfig
from mlx_ft.models.forward import forward_of
from tests.fakes import randomize
from tests.families import FAMILIES
from tests.models import tiny

# Their logits are scaled or capped after the head; the split must not be used.
BENT: dict[str, dict[str, Any]] = {
    "gemma2": {
        **FAMILIES["gemma3_text"].config,
        "model_type": "gemma2",
        "final_logit_softcapping": 30.0,
        "attn_logit_softcapping": 50.0,
        "query_pre_attn_scalar": 16,
    },
    "cohere": {
        "model_type": "cohere",
        "hidden_size": 64,
        "num_hidden_layers": 2,
        "intermediate_size": 96,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 260,
        "logit_scale": 0.0625,
    },
    "granite": {
        **tiny.LLAMA,
        "model_type": "granite",
        "logits_scaling": 8.0,
        "attention_multiplier": 0.25,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.22,
        "attention_bias": False,
        "mlp_bias": False,
    },
}


def difference(model: nn.Module) -> tuple[float, bool]:
    """(largest difference from the full logits relative to the largest logit, saves work)."""
    model.eval()
    tokens = mx.array(np.random.RandomState(0).randint(0, 260, (3, 9)))
    positions = mx.array([0, 4, 8, 9, 26, 0])
    forward = forward_of(model)
    expected = model(tokens).reshape(27, -1)[positions]
    found = forward.logits_at(tokens, positions)
    assert found.shape == (6, 260)
    return float(mx.abs(found - expected).max() / mx.abs(expected).max()), forward.splits


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_saves_work_and_is_exact(family: str) -> None:
    model = tiny.build(FAMILIES[family].config)
    assert difference(model) == (pytest.approx(0, abs=1e-5), True)
    lora.attach(model, LoraConfig(rank=2))
    randomize(model)
    assert difference(model) == (pytest.approx(0, abs=1e-5), True)


@pytest.mark.parametrize("family", BENT)
@pytest.mark.parametrize("size", [1.0, 0.2], ids=["as built", "small logits"])
def test_scaled_or_capped_logits_stay_the_models_own(family: str, size: float) -> None:
    model = tiny.build(BENT[family])
    embedding = model.model.embed_tokens
    embedding.weight = embedding.weight * size
    assert difference(model) == (0.0, False)


def test_untied_head_and_half_precision() -> None:
    model = tiny.build({**tiny.LLAMA, "tie_word_embeddings": False})
    assert difference(model) == (pytest.approx(0, abs=1e-5), True)
    model.set_dtype(mx.bfloat16)
    assert difference(model) == (pytest.approx(0, abs=1e-2), True)


def test_quantized_head() -> None:
    model = tiny.build()
    nn.quantize(model, 32, 4)
    assert difference(model) == (pytest.approx(0, abs=1e-5), True)


def test_dropout_does_not_hide_the_split() -> None:
    """A trained adapter in training mode, as on a resumed run: the probe must not be random."""
    model = tiny.build()
    lora.attach(model, LoraConfig(rank=4, dropout=0.5))
    randomize(model, scale=1.0)
    model.train()
    assert forward_of(model).splits


class WithoutParts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(260, 8)

    def __call__(self, tokens: mx.array) -> mx.array:
        return self.table.as_linear(self.table(tokens))


def test_an_unknown_shape_of_model_takes_the_full_path() -> None:
    assert difference(WithoutParts()) == (0.0, False)
