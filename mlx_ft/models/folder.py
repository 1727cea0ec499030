"""Checks a model folder without loading its weights and without importing MLX."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlx_ft.errors import ModelError
from mlx_ft.models import rotary
from mlx_ft.models.known import model_types

INDEX = "model.safetensors.index.json"
WEIGHTS = "model*.safetensors"  # what mlx-lm reads
PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tiktoken.model")
MAX_HEADER = 100_000_000  # the limit of the safetensors format

QUANT_METHODS = ("bitnet", "mxfp4", "mxfp8", "fp8", "compressed-tensors", "modelopt", "awq", "gptq")
CONVERSION = (
    "pickled weights can run code when they are opened and are not read. Convert them on a "
    "machine where that is safe: AutoModelForCausalLM.from_pretrained(FOLDER)"
    ".save_pretrained(NEW_FOLDER) in transformers writes safetensors"
)


def check_folder(folder: Path) -> dict[str, Any]:
    """The config of a model folder that can be loaded safely.

    Raises one ModelError with every fault that can be found without reading the weights.
    """
    config, faults = read_config(folder)
    if config is not None:
        faults += config_faults(config)
    faults += _tokenizer_faults(folder)
    faults += weight_faults(folder)
    if not any((folder / name).is_file() for name in TOKENIZERS):
        faults.append(f"no tokenizer: none of {', '.join(TOKENIZERS)} is there")
    if faults or config is None:
        raise ModelError(f"{folder} cannot be used as a model:", faults)
    return config


def read_config(folder: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The content of config.json, `rotary.settled`, or None, and what is wrong with it."""
    path = folder / "config.json"
    try:
        if not path.is_file():
            return None, ["config.json is missing"]
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return None, [f"config.json cannot be read: {error}"]
    if not isinstance(config, dict):
        return None, [f"config.json holds a {type(config).__name__}, expected an object"]
    return rotary.settled(config), []


def config_faults(config: dict[str, Any]) -> list[str]:
    """What in a config keeps the model from being loaded: code, unknown types.

    auto_map names code for transformers; mlx-lm has its own for every type that it knows.
    """
    model_type = config.get("model_type")
    known = model_types()
    coded = ("model_file",) if model_type in known else ("model_file", "auto_map")
    faults = [
        f"config.json: {key}={config[key]!r} would run code from the model's folder, which is "
        "refused. Use a conversion without it"
        for key in coded
        if config.get(key)
    ]
    if not isinstance(model_type, str):
        faults.append(f"config.json: model_type is {model_type!r}, expected a name such as 'llama'")
    elif model_type not in known:
        near = difflib.get_close_matches(model_type, known, n=5, cutoff=0.5)
        hint = f"near it are {', '.join(near)}" if near else f"it knows {len(known)} others"
        faults.append(f"config.json: mlx-lm has no model_type {model_type!r}; {hint}")
    return faults + rotary.faults(config) + _quantization_faults(config)


def _quantization_faults(config: dict[str, Any]) -> list[str]:
    """MLX's own `quantization`, or the `quantization_config` of others that mlx-lm reads."""
    settings = config.get("quantization")
    if settings is not None:
        numbers = isinstance(settings, dict) and all(
            isinstance(settings.get(key), int) for key in ("bits", "group_size")
        )
        return (
            []
            if numbers
            else [
                f"config.json: quantization is {settings!r}, expected numbers bits and group_size"
            ]
        )
    settings = config.get("quantization_config") or {}
    method = settings.get("quant_method") if isinstance(settings, dict) else settings
    if not settings or method in QUANT_METHODS:
        return []
    return [
        f"config.json: quantization_config.quant_method {method!r} is not read; "
        f"read are {', '.join(QUANT_METHODS)}. Use the unquantized model"
    ]


def _tokenizer_faults(folder: Path) -> list[str]:
    try:
        _tokenizer_config(folder)
    except (OSError, ValueError) as error:
        return [f"tokenizer_config.json cannot be read: {error}"]
    return []


def _tokenizer_config(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    content = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return content if isinstance(content, dict) else {}


def unused_code(folder: Path, config: dict[str, Any]) -> list[str]:
    """Notes on code that a checked model folder names and that is not run.

    Without trust_remote_code transformers takes a tokenizer class of its own, or refuses.
    """
    texts = []
    if config.get("auto_map"):
        own = f"mlx-lm's own {config['model_type']} is used"
        texts.append(f"config.json names code (auto_map), which is not run: {own}")
    if _tokenizer_config(folder).get("auto_map"):
        own = "transformers' own tokenizer is used"
        texts.append(f"tokenizer_config.json names code (auto_map), which is not run: {own}")
    return texts


def weight_faults(folder: Path) -> list[str]:
    """What is wrong with the weight files: none, pickled, cut off, or shards missing."""
    try:
        names = {path.name for path in folder.iterdir()}
    except OSError as error:
        return [f"the folder cannot be listed ({error.strerror})"]
    files = sorted(folder.glob(WEIGHTS))
    if not files and INDEX not in names:
        return [missing_weights(names)]
    faults = []
    tensors: set[str] = set()
    for path in files:
        try:
            tensors |= safetensors_header(path).keys()
        except ModelError as error:
            faults.append(error.message)
    if INDEX in names:
        faults += _index_faults(folder / INDEX, names, tensors, check_tensors=not faults)
    return faults


def missing_weights(names: Iterable[str]) -> str:
    """Why a folder or repository with these files has no weights that can be read."""
    names = set(names)
    if "adapter_config.json" in names:
        return "this is an adapter, not a model: give the model it was made for"
    for suffix in (".safetensors", ".gguf", *PICKLED):
        found = sorted(name for name in names if name.endswith(suffix))
        if not found:
            continue
        if suffix == ".safetensors":
            return f"no {WEIGHTS}; there is {found[0]}, which mlx-lm does not read"
        if suffix == ".gguf":
            return f"only GGUF weights ({found[0]}): give the file itself, or a safetensors model"
        return f"only pickled weights ({found[0]}): {CONVERSION}"
    return f"no weights: {WEIGHTS} is not there"


def _index_faults(
    index: Path, names: set[str], tensors: set[str], check_tensors: bool
) -> list[str]:
    try:
        weight_map = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        shards = sorted(set(weight_map.values()))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return [f"{index.name} cannot be read: {type(error).__name__}: {error}"]
    faults = [
        f"{index.name} names {shard}, which is missing" for shard in shards if shard not in names
    ]
    if not faults and check_tensors:
        faults += [
            f"{index.name} names the tensor {name} in {shard}, which does not have it"
            for name, shard in weight_map.items()
            if name not in tensors
        ]
    return faults


def safetensors_header(path: Path) -> dict[str, dict[str, Any]]:
    """Name -> {"dtype", "shape", "data_offsets"} of every tensor in a safetensors file.

    Raises ModelError when the file is cut off or is no safetensors file.
    Format: https://github.com/huggingface/safetensors#format
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(MAX_HEADER, size - 8):
                raise ModelError(f"{path.name} is cut off or no safetensors file ({size} bytes)")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path.name} cannot be read: {type(error).__name__}: {error}") from error
    if size != 8 + length + end:
        raise ModelError(f"{path.name} is cut off: {size} bytes, expected {8 + length + end}")
    return dict(header)
