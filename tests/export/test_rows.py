"""The two orders of a Llama's query and key rows."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft.export import rows
from mlx_ft.models.gguf import convert
from mlx_ft.models.read import read_model
from tests.models import tiny


@pytest.mark.parametrize("trailing", [(), (3,)])
def test_there_and_back(trailing):
    array = np.arange(24 * max(1, sum(trailing))).reshape(24, *trailing)
    paired = rows.to_pairs(array, 3)
    assert (rows.to_halves(paired, 3) == array).all()
    # Row j of a head and row j + half are neighbours: 0 and 4 of the first head of 8.
    first = paired.reshape(24, -1)[:, 0] // max(1, sum(trailing))
    assert first[:8].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]


def test_a_converted_model_in_halves_is_the_original(tmp_path):
    """tiny.py permutes as llama.cpp does; its rotary embedding is then the plain one again."""
    original = tiny.write_gguf(tmp_path / "a.gguf")
    model, config = read_model(convert(tmp_path / "a.gguf", tmp_path))
    assert rows.in_pairs(config)
    found = model.layers[1].self_attn
    for name in ("q_proj", "k_proj"):
        heads = rows.heads_of(f"model.layers.1.self_attn.{name}", config)
        halves = rows.to_halves(mx.array(getattr(found, name).weight), heads)
        expected = getattr(original.layers[1].self_attn, name).weight
        np.testing.assert_array_equal(np.array(halves), np.array(expected))


def test_only_q_and_k_of_llamas_have_an_order():
    assert rows.heads_of("model.layers.0.self_attn.v_proj", tiny.LLAMA) is None
    assert rows.heads_of("model.layers.0.self_attn.k_proj", tiny.LLAMA) == 2
    assert rows.heads_of("a.k_proj", {"num_attention_heads": 4, "num_key_value_heads": None}) == 4
    assert not rows.in_pairs(tiny.LLAMA)
    assert not rows.in_pairs({"model_type": "qwen2", "rope_traditional": True})
