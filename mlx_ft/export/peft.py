"""Adapters to PEFT's files and back.

PEFT keeps lora_A (rank, inputs) and lora_B (outputs, rank), mlx-lm their transposes; the scale is
alpha / rank, or alpha / sqrt(rank) for rsLoRA (arXiv:2312.03732).
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors.numpy import save

from mlx_ft import lora_files
from mlx_ft.errors import AdapterError
from mlx_ft.export import rows

WEIGHTS = "adapter_model.safetensors"
SETTINGS = "adapter_config.json"
PREFIX = "base_model.model."
# Families whose projections have the same names in mlx-lm and in transformers.
SAME_NAMES = frozenset({
    "cohere", "gemma", "gemma2", "granite", "llama", "mistral", "olmo2", "phi3", "qwen2", "qwen3",
    "smollm3", "starcoder2",
})  # fmt: skip
# What an adapter may have beside A and B that y = W x + s B A x does not say.
PLAIN: Mapping[str, tuple[Any, ...]] = {
    "use_dora": (False, None),
    "bias": ("none", None),
    "modules_to_save": (None, []),
    "rank_pattern": ({}, None),
    "alpha_pattern": ({}, None),
    "fan_in_fan_out": (False, None),
    "lora_bias": (False, None),
    "trainable_token_indices": (None, []),
    "exclude_modules": (None, []),
    "layer_replication": (None, []),
    "target_parameters": (None, []),
    "use_qalora": (False, None),
    "alora_invocation_tokens": (None, []),
    # Others begin with a part of the base, which is then another one.
    "init_lora_weights": (True, False, None, "gaussian", "orthogonal", "eva"),
}
_NAME = re.compile(r"(.+\.layers\.(\d+)\.(.+))\.lora_([AB])\.(?:default\.)?weight")
_OURS = re.compile(r".+\.layers\.(\d+)\.(.+)\.lora_[ab]")


def files(folder: Path, base_name: str, config: Mapping[str, Any]) -> dict[str, bytes]:
    """PEFT's files of the adapter in `folder`. base_name: the base model's name on the hub.

    config: the config.json of the base here, whose rows of q and k may be in another order than
    transformers'. Raises AdapterError for families whose projections are called otherwise there.
    """
    model_type = config.get("model_type")
    if model_type not in SAME_NAMES:
        raise AdapterError(
            f"an adapter of a {model_type} model cannot be written for PEFT: transformers calls "
            f"its projections otherwise. It can for: {', '.join(sorted(SAME_NAMES))}. Or fuse it: "
            "mlx-ft fuse"
        )
    adapter, _ = lora_files.read_settings(folder)
    arrays = read_arrays(folder / lora_files.WEIGHTS)
    places = _places(arrays, folder)
    arrays = for_transformers(arrays, config)
    weights = {_theirs(name): np.ascontiguousarray(array.T) for name, array in arrays.items()}
    settings = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base_name,
        "r": adapter.rank,
        "lora_alpha": adapter.scale * adapter.rank,
        "lora_dropout": adapter.dropout,
        "use_rslora": False,
        "use_dora": False,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "target_modules": sorted({path.rpartition(".")[2] for _, path in places}),
        "layers_to_transform": sorted({layer for layer, _ in places}),
        "layers_pattern": "layers",
    }
    return {
        WEIGHTS: save(weights, metadata={"format": "pt"}),
        SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
    }


def read(folder: Path) -> tuple[lora_files.Adapter, dict[str, np.ndarray], dict[str, Any]]:
    """(adapter, its arrays by mlx-lm's names, PEFT's settings) of a PEFT folder.

    Raises AdapterError that lists everything that cannot be taken over.
    """
    faults = [f"{folder / name} is missing" for name in (SETTINGS, WEIGHTS)
              if not (folder / name).is_file()]  # fmt: skip
    if faults:
        raise AdapterError(f"{folder} is not a PEFT adapter", faults)
    try:
        settings = json.loads((folder / SETTINGS).read_text("utf-8"))
        rank, alpha = settings["r"], settings["lora_alpha"]
        dropout = settings.get("lora_dropout") or 0.0
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise AdapterError(
            f"{folder / SETTINGS} is not a LoRA description: {type(error).__name__}: {error}"
        ) from None
    arrays = read_arrays(folder / WEIGHTS)
    faults = lora_files.number_faults({"r": rank, "lora_alpha": alpha, "lora_dropout": dropout})
    faults += _refused(settings) + ([] if faults else _shapes(arrays, rank))
    if faults:
        raise AdapterError(f"the PEFT adapter in {folder} cannot be taken over:", faults)
    found = {_ours(name): np.ascontiguousarray(array.T) for name, array in arrays.items()}
    names = [match for name in arrays if (match := _NAME.fullmatch(name))]
    layers = sorted({int(match.group(2)) for match in names})
    keys = tuple(sorted({match.group(3) for match in names}))
    scale = alpha / (math.sqrt(rank) if settings.get("use_rslora") else rank)
    # How many there are in all only the model knows: `fit` counts from the last.
    return lora_files.Adapter(int(rank), scale, float(dropout), layers[0], keys), found, settings


def fit(
    adapter: lora_files.Adapter, arrays: Mapping[str, np.ndarray], layers: int
) -> lora_files.Adapter:
    """The adapter for a model of so many layers. Raises AdapterError unless it is on the last ones.

    adapter: of `read`, with its first layer as `num_layers`.
    """
    first = adapter.num_layers
    there = {int(name.split(".layers.")[1].split(".")[0]) for name in arrays}
    if there != set(range(first, layers)):
        raise AdapterError(
            f"the adapter is on the layers {', '.join(map(str, sorted(there)))} of {layers}; "
            "expected the last ones, without a gap"
        )
    return lora_files.Adapter(
        adapter.rank, adapter.scale, adapter.dropout, layers - first, adapter.keys
    )


def _places(arrays: Mapping[str, np.ndarray], folder: Path) -> set[tuple[int, str]]:
    """(layer, projection in it) of every pair. Raises AdapterError for what PEFT cannot have."""
    found, faults = set[tuple[int, str]](), []
    for name, array in sorted(arrays.items()):
        match = _OURS.fullmatch(name)
        if match is None:
            faults.append(f"{name}: not lora_a or lora_b of a projection of a layer")
        elif array.ndim != 2:
            faults.append(f"{name}: shape {array.shape}; expected a matrix: PEFT has no experts")
        else:
            found.add((int(match.group(1)), match.group(2)))
    if faults:
        raise AdapterError(f"the adapter in {folder} cannot be written for PEFT:", faults)
    return found


def for_transformers(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """An adapter of the base with this config for the same base in transformers' order of rows."""
    return _reordered(arrays, config, rows.to_halves)


def for_base(arrays: Mapping[str, np.ndarray], config: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """An adapter made with transformers, for the base with this config.json."""
    return _reordered(arrays, config, rows.to_pairs)


def _reordered(
    arrays: Mapping[str, np.ndarray], config: Mapping[str, Any], order: Callable[..., Any]
) -> dict[str, np.ndarray]:
    """Only B has rows of the projection: our (r, outputs)."""
    if not rows.in_pairs(config):
        return dict(arrays)
    found = {}
    for name, array in arrays.items():
        path, _, leaf = name.rpartition(".")
        heads = rows.heads_of(path, config)
        is_moved = leaf == "lora_b" and heads is not None
        found[name] = order(array.T, heads).T if is_moved else array
    return found


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file in float32. Raises AdapterError."""
    try:  # not through safetensors: NumPy has no bfloat16
        loaded = cast(dict[str, mx.array], mx.load(str(path), format="safetensors"))
        return {name: np.array(array.astype(mx.float32)) for name, array in loaded.items()}
    except (OSError, RuntimeError, TypeError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None


def _refused(settings: Mapping[str, Any]) -> list[str]:
    faults = [
        f"{key}: found {settings[key]!r}; expected {good[0]!r}"
        for key, good in PLAIN.items()
        if key in settings and settings[key] not in good
    ]
    if (kind := str(settings.get("peft_type", "LORA"))) != "LORA":
        faults.append(f"peft_type: found {kind!r}; expected 'LORA'")
    return faults


def _shapes(arrays: Mapping[str, np.ndarray], rank: int) -> list[str]:
    """What is wrong with names, pairs, ranks and values."""
    faults, pairs = [], dict[str, set[str]]()
    for name, array in sorted(arrays.items()):
        match = _NAME.fullmatch(name)
        if match is None or not name.startswith(PREFIX):
            faults.append(f"{name}: not A or B of a projection of a layer")
            continue
        pairs.setdefault(match.group(1), set()).add(match.group(4))
        have = array.shape[0 if match.group(4) == "A" else -1] if array.ndim == 2 else None
        if have != rank:
            faults.append(f"{name}: shape {array.shape}; expected rank {rank}")
        elif not np.isfinite(array).all():
            faults.append(f"{name}: holds NaN or infinity")
    faults += [f"{path}: A or B is missing" for path, kinds in pairs.items() if len(kinds) < 2]
    return faults if arrays else ["it has no arrays"]


def _theirs(name: str) -> str:
    path, _, leaf = name.rpartition(".")
    theirs = {"lora_a": "lora_A", "lora_b": "lora_B"}[leaf]
    return f"{PREFIX}{path}.{theirs}.weight"


def _ours(name: str) -> str:
    match = _NAME.fullmatch(name)
    assert match is not None  # `_shapes` has seen it
    return f"{match.group(1).removeprefix(PREFIX)}.lora_{match.group(4).lower()}"
