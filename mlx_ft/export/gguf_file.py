"""A fused model as a GGUF file, which llama.cpp, Ollama and LM Studio read.

The file's layout and Q8_0's blocks are the business of ggml's own package `gguf` (an extra). Which
tensors and numbers a family has is here, as models/gguf.py reads them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ft.errors import ModelError, UserError
from mlx_ft.export import rows
from mlx_ft.export.fuse import Fused
from mlx_ft.export.tensors import is_finite
from mlx_ft.models.gguf import NAMES

# Our name -> general.file_type, ggml's name. Vectors are float32 in all of them.
KINDS = {"float32": (0, "F32"), "float16": (1, "F16"), "q8_0": (7, "Q8_0")}
BLOCK, BLOCK_BYTES = 32, 34  # of Q8_0
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
THEIRS = {ours: theirs for theirs, ours in NAMES.items()}
IDS = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}
FREQUENCIES = "rope_freqs.weight"


@dataclass(frozen=True)
class Words:
    """The tokenizer's part. vocabulary: of `gguf_vocabulary.read`; ids: "bos" -> token, those of
    `IDS` that there are, and "eot" where an answer ends otherwise than a text.
    """

    vocabulary: Mapping[str, Any]
    ids: Mapping[str, int]
    adds_bos: bool
    template: str


def check(fused: Fused) -> None:
    """Raise ModelError for a model that cannot be written."""
    model_type = fused.config.get("model_type")
    if model_type not in FAMILIES:
        raise ModelError(
            f"a {model_type} model cannot be written as GGUF here; {', '.join(FAMILIES)} can. "
            "Export to hf; llama.cpp's own convert_hf_to_gguf.py takes that folder"
        )
    faults = [
        f"{name}: GGUF's {FAMILIES[model_type]} has no such tensor"
        for name in fused.names
        if named(name) is None
    ]
    if (kind := _scaling(fused)) not in ("default", "llama3"):
        faults.append(f"rope_scaling: found {kind!r}; expected none, or llama3")
    if faults:
        raise ModelError("this model cannot be written as GGUF:", faults)


def write(path: Path, fused: Fused, kind: str, name: str, words: Words) -> None:
    """Write the file, a tensor at a time. kind: a key of `KINDS`. Raises ModelError, OSError."""
    check(fused)
    library = package()
    family = FAMILIES[fused.config["model_type"]]
    writer = library.GGUFWriter(path, family)
    writer.add_string("general.name", name)
    writer.add_uint32("general.file_type", KINDS[kind][0])
    writer.add_uint32("general.quantization_version", 2)
    _add_numbers(writer, fused, family)
    _add_words(writer, words)
    arrays = _arrays(fused)
    types = {ours: _type(array, kind) for ours, array in arrays.items()}
    for ours, array in arrays.items():
        raw = library.GGMLQuantizationType[types[ours]]
        size = _bytes(array.shape, types[ours])
        writer.add_tensor_info(named(ours), array.shape, np.dtype(np.float32), size, raw_dtype=raw)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        _write_arrays(writer, library, arrays, types)
    finally:
        writer.close()


def package() -> Any:
    """ggml's `gguf`. Raises UserError where it is not installed."""
    try:
        import gguf
    except ImportError:
        raise UserError(
            "GGUF files are written by the package gguf, which is not installed: "
            "pip install 'mlx-ft[gguf]'"
        ) from None
    return gguf


def named(name: str) -> str | None:
    """GGUF's name of a tensor; None where there is none.

    model.layers.3.self_attn.q_proj.weight -> blk.3.attn_q.weight
    """
    path, _, leaf = name.rpartition(".")
    if name == FREQUENCIES:
        return name
    if leaf not in ("weight", "bias"):
        return None
    if path in THEIRS:
        return f"{THEIRS[path]}.{leaf}"
    start, _, rest = path.removeprefix("model.layers.").partition(".")
    if path.startswith("model.layers.") and start.isdecimal() and rest in THEIRS:
        return f"blk.{start}.{THEIRS[rest]}.{leaf}"
    return None


def _arrays(fused: Fused) -> dict[str, mx.array]:
    """The weights, a Llama's q and k in pairs; Llama 3's stretched wave lengths beside them."""
    found = fused.take()
    if fused.config["model_type"] in rows.FAMILIES:
        for name, array in found.items():
            if heads := rows.heads_of(name.rpartition(".")[0], fused.config):
                found[name] = rows.to_pairs(array, heads)
    if _scaling(fused) == "llama3":
        found[FREQUENCIES] = _stretch(fused)
    return found


def _stretch(fused: Fused) -> mx.array:
    """(half a head,) how many times as long a wave is as without scaling; as mlx-lm has them."""
    own: Any = fused.model
    rope = own.layers[0].self_attn.rope
    plain = own.args.rope_theta ** (mx.arange(0, rope.dims, 2) / rope.dims)
    stretch: mx.array = rope._freqs / plain
    return stretch


def _scaling(fused: Fused) -> str:
    own: Any = fused.model
    found = getattr(own.args, "rope_scaling", None) or {}
    return str(found.get("rope_type") or found.get("type") or "default")


def _add_numbers(writer: Any, fused: Fused, family: str) -> None:
    own: Any = fused.model
    args = own.args
    heads = int(args.num_attention_heads)
    width = int(getattr(args, "head_dim", None) or args.hidden_size // heads)
    numbers = {
        "context_length": args.max_position_embeddings or fused.config["max_position_embeddings"],
        "embedding_length": args.hidden_size,
        "block_count": args.num_hidden_layers,
        "feed_forward_length": args.intermediate_size,
        "attention.head_count": heads,
        "attention.head_count_kv": args.num_key_value_heads or heads,
        "rope.dimension_count": width,
        "vocab_size": args.vocab_size,
    }
    if width != args.hidden_size // heads:
        numbers |= {"attention.key_length": width, "attention.value_length": width}
    for key, number in numbers.items():
        writer.add_uint32(f"{family}.{key}", int(number))
    writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", float(args.rms_norm_eps))
    writer.add_float32(f"{family}.rope.freq_base", float(args.rope_theta))


def _add_words(writer: Any, words: Words) -> None:
    for key in ("model", "pre"):
        writer.add_string(f"tokenizer.ggml.{key}", words.vocabulary[key])
    for key in ("tokens", "token_type", "merges", "scores"):
        if key in words.vocabulary:
            writer.add_array(f"tokenizer.ggml.{key}", words.vocabulary[key])
    for key, token in words.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{IDS.get(key, key)}_token_id", token)
    writer.add_bool("tokenizer.ggml.add_bos_token", words.adds_bos)
    writer.add_bool("tokenizer.ggml.add_space_prefix", words.vocabulary["add_space_prefix"])
    if words.template:
        writer.add_string("tokenizer.chat_template", words.template)


def _type(array: mx.array, kind: str) -> str:
    if array.ndim < 2:
        return "F32"
    wanted = KINDS[kind][1]
    return "F16" if wanted == "Q8_0" and array.shape[-1] % BLOCK else wanted


def _bytes(shape: tuple[int, ...], type_: str) -> int:
    values = math.prod(shape)
    return (
        values // BLOCK * BLOCK_BYTES if type_ == "Q8_0" else values * {"F32": 4, "F16": 2}[type_]
    )


def _write_arrays(
    writer: Any, library: Any, arrays: dict[str, mx.array], types: Mapping[str, str]
) -> None:
    faults = []
    for name, type_ in types.items():
        array = arrays.pop(name)
        narrow = array.astype(mx.float16) if type_ == "F16" else array.astype(mx.float32)
        if not is_finite(narrow):
            faults.append(name)
        values = np.array(narrow)
        if type_ == "Q8_0":
            values = library.quants.quantize(values, library.GGMLQuantizationType.Q8_0)
        writer.write_tensor_data(np.ascontiguousarray(values))
        del array, narrow, values
        mx.clear_cache()
    if faults:
        raise ModelError(
            "these tensors hold values that float16 cannot; choose --dtype float32:", faults
        )
