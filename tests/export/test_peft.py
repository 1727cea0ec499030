"""PEFT's files: there and back, and what cannot be taken over."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import LoraConfig
from mlx_ft.errors import AdapterError
from mlx_ft.export import peft
from tests.fakes import logits, randomize
from tests.models import tiny

FOUR = {**tiny.LLAMA, "num_hidden_layers": 4}


@pytest.fixture
def saved(tmp_path):
    """(the adapted model, the adapter's folder)."""
    model = tiny.build(FOUR)
    adapter = lora.attach(model, LoraConfig(rank=3, alpha=12, num_layers=2, dropout=0.1))
    randomize(model)
    lora_files.save(lora.parameters(model), adapter, tmp_path / "adapter", {})
    return model, tmp_path / "adapter"


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)
    return folder


def test_what_is_written_says_what_the_adapter_computes(saved, tmp_path):
    """By PEFT's definition: W x + alpha / r B A x, for the modules and layers that it names."""
    model, folder = saved
    written = write(tmp_path / "peft", peft.files(folder, "org/base", FOUR))
    settings = json.loads((written / "adapter_config.json").read_text())
    arrays = load_file(written / "adapter_model.safetensors")
    assert settings["layers_to_transform"] == [2, 3]
    assert settings["base_model_name_or_path"] == "org/base"
    assert sorted(settings["target_modules"]) == [
        "down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj",
    ]  # fmt: skip
    bare = tiny.build(FOUR)
    s = settings["lora_alpha"] / settings["r"]
    for layer in settings["layers_to_transform"]:
        for owner, names in (("self_attn", "qkvo"), ("mlp", ("gate", "up", "down"))):
            for name in names:
                path = f"model.layers.{layer}.{owner}.{name}_proj"
                a = arrays[f"base_model.model.{path}.lora_A.weight"]
                b = arrays[f"base_model.model.{path}.lora_B.weight"]
                module = getattr(getattr(bare.layers[layer], owner), f"{name}_proj")
                module.weight = module.weight + s * mx.array(b @ a)
    assert len(arrays) == 2 * 7 * 2
    np.testing.assert_allclose(logits(bare), logits(model), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rslora", [False, True])
def test_what_is_read_is_the_same_adapter(saved, tmp_path, rslora):
    model, folder = saved
    files = peft.files(folder, "org/base", FOUR)
    settings = json.loads(files[peft.SETTINGS])
    if rslora:
        settings |= {"use_rslora": True, "lora_alpha": settings["lora_alpha"] / 3**0.5}
    files[peft.SETTINGS] = json.dumps(settings).encode()
    adapter, arrays, _ = peft.read(write(tmp_path / "peft", files))
    adapter = peft.fit(adapter, arrays, 4)
    assert (adapter.rank, adapter.num_layers, adapter.dropout) == (3, 2, 0.1)
    assert adapter.scale == pytest.approx(4)
    again = tiny.build(FOUR)
    weights = {name: mx.array(array) for name, array in arrays.items()}
    lora_files.save(weights, adapter, tmp_path / "again", {})
    lora.load(again, tmp_path / "again")
    np.testing.assert_allclose(logits(again), logits(model), rtol=1e-5, atol=1e-6)


def test_families_with_other_names_are_refused(saved):
    with pytest.raises(AdapterError, match="gpt2"):
        peft.files(saved[1], "org/base", {"model_type": "gpt2"})


@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"use_dora": True}, "use_dora: found True"),
        ({"bias": "all"}, "bias: found 'all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"rank_pattern": {"q_proj": 4}}, "rank_pattern"),
        ({"peft_type": "IA3"}, "peft_type"),
        ({"r": 0}, "r: found 0"),
        ({"r": 4}, "expected rank 4"),
        ({"r": "many"}, "r: found 'many'; expected a whole number from 1 to 4096"),
    ],
)
def test_settings_that_mean_something_else_are_refused(saved, tmp_path, settings, fault):
    files = peft.files(saved[1], "org/base", FOUR)
    changed = {**json.loads(files[peft.SETTINGS]), **settings}
    files[peft.SETTINGS] = json.dumps(changed).encode()
    with pytest.raises(AdapterError) as error:
        peft.read(write(tmp_path / "peft", files))
    assert fault in str(error.value)


def test_every_array_that_is_wrong_is_named(saved, tmp_path):
    folder = write(tmp_path / "peft", peft.files(saved[1], "org/base", FOUR))
    path = folder / peft.WEIGHTS
    arrays = load_file(path)
    names = sorted(arrays)
    arrays[names[0]] = np.full_like(arrays[names[0]], np.nan)
    del arrays[names[2]]
    arrays["base_model.model.lm_head.weight"] = np.zeros((2, 2), np.float32)
    save_file(arrays, path)
    with pytest.raises(AdapterError) as error:
        peft.read(folder)
    assert len(error.value.faults) == 3
    for text in ("NaN", "is missing", "lm_head"):
        assert any(text in fault for fault in error.value.faults)


def test_folders_that_are_none_are_refused(tmp_path):
    with pytest.raises(AdapterError, match="not a PEFT adapter") as error:
        peft.read(tmp_path)
    assert len(error.value.faults) == 2
    (tmp_path / peft.SETTINGS).write_text("{}")
    (tmp_path / peft.WEIGHTS).write_bytes(b"no")
    with pytest.raises(AdapterError, match="KeyError"):
        peft.read(tmp_path)
    (tmp_path / peft.SETTINGS).write_text('{"r": 2, "lora_alpha": 2}')
    with pytest.raises(AdapterError, match="cannot be read"):
        peft.read(tmp_path)


def test_layers_with_a_gap_are_refused(saved, tmp_path):
    folder = write(tmp_path / "peft", peft.files(saved[1], "org/base", FOUR))
    adapter, arrays, _ = peft.read(folder)
    with pytest.raises(AdapterError, match="layers 2, 3 of 5"):
        peft.fit(adapter, arrays, 5)
