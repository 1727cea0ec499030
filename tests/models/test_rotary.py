"""A config.json of transformers 5: theta and scaling in `rope_parameters` alone."""

import json

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.export import fuse
from mlx_ft.models import architecture, rotary
from mlx_ft.models.load import locate
from mlx_ft.models.read import read_model
from tests.export import small
from tests.models import tiny

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
PLAIN = {name: value for name, value in tiny.LLAMA.items() if name != "rope_theta"}
TOKENS = mx.array([[72, 101, 108, 108, 111, 5, 77, 200]])


def model(folder, config):
    tiny.save(folder, config)
    return np.array(read_model(folder)[0](TOKENS))


@pytest.mark.parametrize("kind", ["default", "llama3"])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "qwen2", "smollm3"])
def test_it_computes_as_with_the_old_names(tmp_path, kind, model_type):
    scaling = {"rope_type": kind, **(LLAMA3 if kind == "llama3" else {})}
    base = {**PLAIN, "model_type": model_type}
    old = base | {"rope_theta": 500.0, "rope_scaling": scaling}
    new = base | {"rope_parameters": {"rope_theta": 500.0, **scaling}}
    ours, theirs = model(tmp_path / "new", new), model(tmp_path / "old", old)
    assert (ours == theirs).all()
    assert not np.allclose(ours, model(tmp_path / "none", base), atol=1e-4)


def test_what_is_fused_says_it_in_both_ways(tmp_path):
    given = {"rope_theta": 500.0, "rope_type": "llama3", **LLAMA3}
    config = {**small.LLAMA, "rope_parameters": given}
    del config["rope_theta"]
    small.save_adapter(tmp_path / "adapter", small.save_model(tmp_path / "base", config), "base")
    located = locate(ModelConfig(path=str(tmp_path / "base")), tmp_path)
    made = fuse.fuse(located, ModelConfig(), tmp_path / "adapter", dtype=None, computed="float32")
    assert made.config["rope_parameters"] == given
    assert made.config["rope_theta"] == 500.0
    assert made.config["rope_scaling"] == {"rope_type": "llama3", "type": "llama3", **LLAMA3}


def test_what_a_model_reads_itself_or_says_in_the_old_way_stays():
    qwen3 = {"model_type": "qwen3", "rope_parameters": {"rope_theta": 5.0}}
    assert rotary.settled(qwen3) == qwen3
    both = {"model_type": "llama", "rope_theta": 7.0, "rope_parameters": {"rope_theta": 5.0}}
    assert rotary.settled(both) == both
    odd = {"model_type": "llama", "rope_parameters": 3}
    assert rotary.settled(odd) == odd


def test_a_text_model_within_and_the_part_that_is_turned():
    text = {"model_type": "llama", "rope_parameters": {"rope_theta": 5.0}}
    found = rotary.settled({"model_type": "mistral3", "text_config": text})
    assert found["text_config"]["rope_theta"] == 5.0
    phi = {"model_type": "phi", "rope_parameters": {"partial_rotary_factor": 0.25}}
    assert rotary.settled(phi)["partial_rotary_factor"] == 0.25


def test_other_ones_for_each_kind_of_layer_are_refused(tmp_path):
    given = {"full_attention": {"rope_theta": 1e6}, "sliding_attention": {"rope_theta": 1e4}}
    config = {**PLAIN, "rope_parameters": given}
    tiny.save(tmp_path / "model", config)
    with pytest.raises(ModelError) as error:
        locate(ModelConfig(path=str(tmp_path / "model")), tmp_path)
    [fault] = error.value.faults
    assert "full_attention, sliding_attention" in fault
    assert rotary.faults({**config, "model_type": "laguna"}) == []


def test_a_config_alone_is_estimated(tmp_path):
    config = {**PLAIN, "rope_parameters": {"rope_theta": 500.0}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = architecture.find(ModelConfig(path="org/name"), tmp_path / "config.json")
    assert found["rope_theta"] == 500.0
