"""`mlx-ft import`: PEFT's adapters for a base of ours, there and back."""

import json

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_ft import lora
from mlx_ft.config.compose import CommandLine, accept
from mlx_ft.errors import AdapterError, ModelError, OutputError
from mlx_ft.export import peft, taking
from mlx_ft.models.gguf import convert
from mlx_ft.models.read import read_model
from tests.export import small
from tests.models import tiny


def take(tmp_path, model=None, folder="peft", said=None):
    say = (lambda line: said.append(line)) if said is not None else (lambda _: None)
    taking.take(tmp_path / folder, tmp_path / "mine", model, tmp_path / "cache", say)
    return tmp_path / "mine"


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        (folder / name).write_bytes(content)


@pytest.fixture
def exported(tmp_path):
    """A folder of PEFT's; the model with the adapter that is in it."""
    model = small.save_model(tmp_path / "base")
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    write(tmp_path / "peft", peft.files(tmp_path / "adapter", str(tmp_path / "base"), small.LLAMA))
    return model


def test_what_is_taken_computes_the_same(exported, tmp_path):
    said = []
    mine = take(tmp_path, said=said)
    model, _ = read_model(tmp_path / "base")
    adapter = lora.load(model, mine)
    assert (adapter.rank, adapter.num_layers, adapter.scale) == (4, 2, 3)
    np.testing.assert_allclose(small.logits(model), small.logits(exported), rtol=1e-5, atol=1e-6)
    about = json.loads((mine / "adapter_config.json").read_text())["mlx_ft"]
    assert about["base_model"] == str(tmp_path / "base")
    assert about["base_name"] == "base"
    assert said[-1].startswith("to train it further:\n  mlx-ft train ")


def test_bfloat16_is_taken_as_float32(exported, tmp_path):
    path = tmp_path / "peft" / peft.WEIGHTS
    arrays = {name: array.astype(mx.bfloat16) for name, array in mx.load(str(path)).items()}
    mx.eval(arrays)
    mx.save_safetensors(str(path), arrays)
    found = mx.load(str(take(tmp_path) / "adapters.safetensors"))
    name = "model.layers.1.self_attn.q_proj"
    assert found[f"{name}.lora_a"].dtype == mx.float32
    theirs = arrays[f"base_model.model.{name}.lora_A.weight"].astype(mx.float32)
    assert mx.array_equal(found[f"{name}.lora_a"], theirs.T)


def test_for_a_gguf_base_rows_are_put_in_pairs(tmp_path):
    """An adapter made with transformers' copy of the model, on ours that came from a GGUF file."""
    original = tiny.write_gguf(tmp_path / "a.gguf")
    small.save_adapter(tmp_path / "adapter", original, "org/base")
    write(tmp_path / "peft", peft.files(tmp_path / "adapter", "org/base", tiny.LLAMA))
    mine = take(tmp_path, str(tmp_path / "a.gguf"))
    folder = convert(tmp_path / "a.gguf", tmp_path / "cache")
    model, config = read_model(folder)
    assert config["rope_traditional"]
    lora.load(model, mine)
    np.testing.assert_allclose(small.logits(model), small.logits(original), rtol=1e-3, atol=1e-5)
    again = peft.files(mine, "org/base", config)
    write(tmp_path / "again", again)
    before = load_file(tmp_path / "peft" / peft.WEIGHTS)
    after = load_file(tmp_path / "again" / peft.WEIGHTS)
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_its_settings_are_those_of_a_training(exported, tmp_path):
    take(tmp_path)
    adapter, _ = lora.read_settings(tmp_path / "mine")
    given = taking.train_settings(tmp_path / "mine", "embedded", adapter)
    config = accept(CommandLine((*given, "data=custom", "data.path=rows.jsonl"))).config
    assert config.lora.init_from == str(tmp_path / "mine")
    assert lora.scale(config.lora) == adapter.scale
    assert config.lora.target_modules == list(adapter.keys)


def test_everything_that_does_not_fit_is_told_at_once(exported, tmp_path):
    path = tmp_path / "peft" / peft.WEIGHTS
    arrays = load_file(path)
    name = "base_model.model.model.layers.2.mlp.up_proj.lora_B.weight"
    arrays[name] = np.zeros((7, 4), np.float32)
    for kind, shape in (("A", (4, 64)), ("B", (64, 4))):
        arrays[f"base_model.model.model.layers.2.mlp.other_proj.lora_{kind}.weight"] = np.ones(
            shape, np.float32
        )
    save_file(arrays, path)
    with pytest.raises(AdapterError, match="does not fit") as error:
        take(tmp_path)
    text = "\n".join(error.value.faults)
    assert "model.layers.2.mlp.up_proj.lora_b: shape (4, 7), expected (4, 96)" in text
    assert "model.layers.2.mlp.other_proj.lora_a: not part of this model" in text
    assert not (tmp_path / "mine").exists()


def test_a_base_that_is_not_here_is_asked_for(exported, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    settings = tmp_path / "peft" / peft.SETTINGS
    content = json.loads(settings.read_text()) | {"base_model_name_or_path": "org/elsewhere"}
    settings.write_text(json.dumps(content))
    with pytest.raises(ModelError, match="mlx-ft models download org/elsewhere"):
        take(tmp_path)
    said = []
    take(tmp_path, str(tmp_path / "base"), said=said)
    assert "made for org/elsewhere, taken for base" in said[0]


def test_other_families_and_places_that_are_taken_are_refused(exported, tmp_path):
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**small.LLAMA, "model_type": "gpt_neox"})
    )
    with pytest.raises(AdapterError, match="gpt_neox"):
        take(tmp_path)
    (tmp_path / "mine").write_text("")
    with pytest.raises(OutputError):
        take(tmp_path)


def test_a_chat_template_beside_it_is_taken_along(exported, tmp_path):
    (tmp_path / "peft" / "chat_template.jinja").write_text(small.CHATML)
    assert (take(tmp_path) / "chat_template.jinja").read_text() == small.CHATML
