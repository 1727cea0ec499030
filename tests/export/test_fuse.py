"""Fused weights against W + s B A in NumPy, and fused models against base and adapter."""

import json

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten
from safetensors.numpy import load_file

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.export import folder, fuse
from mlx_ft.models import quantize
from mlx_ft.models.folder import check_folder
from mlx_ft.models.load import Located, locate
from mlx_ft.models.read import read_model, read_tokenizer
from tests.export import small
from tests.fakes import relative
from tests.models import tiny


def fused(base, adapter, model=None, dtype=None):
    located = Located(base, "small", "folder", None, check_folder(base))
    return fuse.fuse(located, model or ModelConfig(), adapter, dtype=dtype, computed="float32")


def written(made, base, target, ends=()):
    target.mkdir()
    folder.write(target, made, base, small.CHATML, list(ends))
    return target


@pytest.fixture
def base(tmp_path):
    """(folder of the base, folder of the adapter, the two together as a model)."""
    model = small.save_model(tmp_path / "base")
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    return tmp_path / "base", tmp_path / "adapter", model


def test_every_weight_is_w_plus_s_b_a(base, tmp_path):
    place = written(fused(*base[:2]), base[0], tmp_path / "out")
    found, before = load_file(place / "model.safetensors"), load_file(base[0] / "model.safetensors")
    arrays = load_file(base[1] / "adapters.safetensors")
    assert found.keys() == before.keys()
    changed = 0
    for name, weight in before.items():
        path = name.removesuffix(".weight")
        expected = weight
        if f"{path}.lora_a" in arrays:
            expected = weight + 3 * (arrays[f"{path}.lora_a"] @ arrays[f"{path}.lora_b"]).T
            changed += 1
        np.testing.assert_allclose(found[name], expected, rtol=1e-5, atol=1e-6)
    assert changed == 2 * 7


def test_mlx_lm_loads_it_and_computes_the_same(base, tmp_path):
    place = written(fused(*base[:2]), base[0], tmp_path / "out")
    model, _ = read_model(place)
    assert relative(small.logits(model), small.logits(base[2])) < 1e-5


def test_a_quantized_base_is_dequantized(tmp_path):
    """As the run computed with it: the fused model is plain, and differs by rounding alone."""
    model = small.save_model(tmp_path / "plain")
    settings, _ = quantize.quantize(model, {"bits": 4, "group_size": 32})
    tmp_path.joinpath("base").mkdir()
    mx.save_safetensors(
        str(tmp_path / "base" / "model.safetensors"), dict(tree_flatten(model.parameters()))
    )
    (tmp_path / "base" / "config.json").write_text(
        json.dumps({**small.LLAMA, "quantization": settings})
    )
    small.save_tokenizer(tmp_path / "base")
    quantize.dequantize(model)
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    made = fused(tmp_path / "base", tmp_path / "adapter")
    assert "quantization" not in made.config
    assert made.dtype == "float32"
    place = written(made, tmp_path / "base", tmp_path / "out")
    found, _ = read_model(place)
    assert relative(small.logits(found), small.logits(model)) < 1e-5


def test_a_base_that_the_run_rounded_is_rounded(base, tmp_path):
    plain, adapter, _ = base
    wanted = {"bits": 4, "group_size": 32, "mode": "affine"}
    place = written(fused(plain, adapter, ModelConfig(quantize=wanted)), plain, tmp_path / "out")
    rounded = tiny.build(small.LLAMA)
    rounded.load_weights(str(plain / "model.safetensors"))
    quantize.quantize(rounded, wanted)
    quantize.dequantize(rounded)
    from mlx_ft import lora

    lora.load(rounded, adapter)
    found, _ = read_model(place)
    assert relative(small.logits(found), small.logits(rounded)) < 1e-5
    assert relative(small.logits(found), small.logits(base[2])) > 1e-3


def test_a_gguf_base_comes_out_in_transformers_order(tmp_path):
    tiny.write_gguf(tmp_path / "a.gguf")
    located = locate(ModelConfig(path=str(tmp_path / "a.gguf")), tmp_path / "cache")
    model, _ = read_model(located.path)
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "a.gguf")
    made = fuse.fuse(located, ModelConfig(), tmp_path / "adapter", dtype=None, computed="float32")
    assert "rope_traditional" not in made.config
    place = written(made, located.path, tmp_path / "out")
    found, config = read_model(place)
    assert not config.get("rope_traditional")
    assert relative(small.logits(found), small.logits(model)) < 1e-5


@pytest.mark.parametrize(
    ("given", "asked", "found"),
    [(mx.bfloat16, None, "BF16"), (mx.float16, None, "F16"), (mx.bfloat16, "float32", "F32")],
)
def test_the_precision_is_the_base_s_own_or_as_asked(tmp_path, given, asked, found):
    model = small.save_model(tmp_path / "base", dtype=given)
    small.save_adapter(tmp_path / "adapter", model, tmp_path / "base")
    made = fused(tmp_path / "base", tmp_path / "adapter", dtype=asked)
    place = written(made, tmp_path / "base", tmp_path / "out")
    from mlx_ft.models.folder import safetensors_header

    header = safetensors_header(place / "model.safetensors")
    assert {entry["dtype"] for entry in header.values()} == {found}
    assert json.loads((place / "config.json").read_text())["dtype"] == made.dtype


def test_quantized_again_it_loads_packed(base, tmp_path):
    made = fuse.pack(fused(*base[:2]), {"bits": 8, "group_size": 32, "mode": "affine"})
    place = written(made, base[0], tmp_path / "out")
    model, config = read_model(place)
    assert config["quantization"]["bits"] == 8
    assert "scales" in model.layers[0].self_attn.q_proj
    assert 0 < relative(small.logits(model), small.logits(base[2])) < 0.05


def test_arrays_are_computed_when_they_are_written_and_let_go(base):
    made = fused(*base[:2])
    arrays = made.take()
    assert all(array.size <= 1 for _, array in tree_flatten(made.model.parameters()))
    mx.eval(list(arrays.values()))
    before = mx.get_active_memory()
    size = sum(array.nbytes for array in arrays.values())
    arrays.clear()
    assert before - mx.get_active_memory() > 0.9 * size


def test_the_folder_has_template_and_ends_and_no_code(base, tmp_path):
    (base[0] / "config.json").write_text(
        json.dumps(
            {**small.LLAMA, "auto_map": {"AutoModel": "code.Model"}, "torch_dtype": "float32"}
        )
    )
    (base[0] / "code.py").write_text("")
    place = written(
        fused(*base[:2]), base[0], tmp_path / "out", ends=[small.TOKENS.index("<|im_end|>")]
    )
    config = json.loads((place / "config.json").read_text())
    assert "auto_map" not in config
    assert config["torch_dtype"] == "float32"
    ends = [small.TOKENS.index("</s>"), small.TOKENS.index("<|im_end|>")]
    assert config["eos_token_id"] == ends
    assert json.loads((place / "generation_config.json").read_text())["eos_token_id"] == ends
    assert sorted(path.name for path in place.iterdir()) == [
        "chat_template.jinja", "config.json", "generation_config.json", "model.safetensors",
        "model.safetensors.index.json", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    tokenizer = read_tokenizer(place, config["eos_token_id"])
    assert tokenizer.chat_template == small.CHATML
    assert set(tokenizer.eos_token_ids) == set(ends)


def test_infinite_values_are_refused(base, tmp_path):
    weights = mx.load(str(base[0] / "model.safetensors"))
    weights["model.norm.weight"] = weights["model.norm.weight"] * 1e6
    mx.eval(weights)
    mx.save_safetensors(str(base[0] / "model.safetensors"), weights)
    with pytest.raises(ModelError, match="not finite") as error:
        written(fused(*base[:2], dtype="float16"), base[0], tmp_path / "out")
    assert error.value.faults == ("model.norm.weight",)
