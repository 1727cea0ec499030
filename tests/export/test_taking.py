"""`mlx-ft import`: PEFT's adapters for a base of ours, there and back."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from mlx_ft import initial, lora, lora_files
from mlx_ft.config.compose import CommandLine, accept
from mlx_ft.config.schema import ModelConfig
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
    adapter, _ = lora_files.read_settings(tmp_path / "mine")
    given = taking.train_settings(tmp_path / "mine", "org/base", adapter, "main")
    config = accept(CommandLine((*given, "data=custom", "data.path=rows.jsonl"))).config
    assert config.lora.init_from == str(tmp_path / "mine")
    assert config.model.revision == "main"
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


def change(folder, name, **changes):
    """Change PEFT's settings, or write the file of that name."""
    file = folder / name
    content = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(content | changes))


def test_a_scale_of_many_digits_is_accepted_as_it_is_printed(exported, tmp_path):
    change(tmp_path / "peft", peft.SETTINGS, lora_alpha=32 / 3)
    start = f"lora.init_from={take(tmp_path)}"
    adapter, _ = lora_files.read_settings(tmp_path / "mine")
    printed = taking.train_settings(tmp_path / "mine", "embedded", adapter)
    initial.find(accept(CommandLine(tuple(printed))).config.lora)
    with pytest.raises(AdapterError) as error:
        initial.find(accept(CommandLine(("lora.rank=4", start))).config.lora)
    [told] = [words for words in error.value.faults[0].split() if words.startswith("lora.alpha=")]
    given = ("lora.rank=4", "lora.scaling=standard", start, told)
    initial.find(accept(CommandLine(given)).config.lora)


@pytest.mark.parametrize(
    "given",
    [
        small.CHATML,
        [
            {"name": "tool_use", "template": "{{ 1 }}"},
            {"name": "default", "template": small.CHATML},
        ],
    ],
)
def test_a_chat_template_in_the_tokenizer_s_settings_is_taken_along(exported, tmp_path, given):
    change(tmp_path / "peft", "tokenizer_config.json", chat_template=given)
    assert (take(tmp_path) / "chat_template.jinja").read_text() == small.CHATML


@pytest.mark.parametrize("content", [b"chatml", b"{{ 1 }}\xff"])
def test_a_chat_template_that_is_none_is_refused(exported, tmp_path, content):
    (tmp_path / "peft" / "chat_template.jinja").write_bytes(content)
    with pytest.raises(AdapterError, match=r"Jinja|UTF-8"):
        take(tmp_path)


def test_tokens_that_it_adds_are_said_to_be_ignored(exported, tmp_path):
    tokens = {"0": {"content": "<|im_end|>"}, "300": {"content": "<tool>"}}
    change(tmp_path / "peft", "tokenizer_config.json", added_tokens_decoder=tokens)
    change(tmp_path / "peft", "added_tokens.json", **{"<call>": 301})
    said = []
    take(tmp_path, said=said)
    assert "added tokens, which the base does not have: <call>, <tool>" in said[0]


def test_the_base_s_revision_is_the_adapter_s(exported, tmp_path, monkeypatch):
    """Only on the hub; a base that was named instead has its own."""
    change(tmp_path / "peft", peft.SETTINGS, base_model_name_or_path="org/base", revision="v1")
    here, asked = taking.locate, []

    def located(config, cache_dir):
        asked.append(config.revision)
        return here(ModelConfig(path=str(tmp_path / "base")), cache_dir)

    monkeypatch.setattr(taking, "locate", located)
    with pytest.raises(ModelError, match="hf download org/base --revision v1"):
        take(tmp_path)
    monkeypatch.setattr(taking, "needs_download", lambda _: False)
    said = []
    take(tmp_path, said=said)
    assert "model.revision=v1" in said[-1]
    shutil.rmtree(tmp_path / "mine")
    take(tmp_path, str(tmp_path / "base"))
    assert asked == ["v1", None]


def test_numbers_that_no_adapter_has_are_all_named(exported, tmp_path):
    wrong = {"r": float("inf"), "lora_alpha": float("nan"), "lora_dropout": 1.0}
    change(tmp_path / "peft", peft.SETTINGS, **wrong)
    with pytest.raises(AdapterError) as error:
        take(tmp_path)
    found = [line.split(":")[0] for line in error.value.faults[:3]]
    assert found == ["r", "lora_alpha", "lora_dropout"]
    (tmp_path / "peft" / peft.SETTINGS).write_text("[" * 200_000)
    with pytest.raises(AdapterError, match="is not a LoRA description"):
        take(tmp_path)
