"""What a model is made of, before anything of it is downloaded: its numbers, and an empty model.

An array of MLX has a shape and a type before it has a content, so that a model of any size can be
built, quantized and adapted as a run would do it, and counted, without memory for its weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.models import gguf, hub, rotary
from mlx_ft.models.folder import config_faults, read_config
from mlx_ft.models.gguf_header import read_header

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


def _llama(hidden: int, intermediate: int, layers: int, heads: int, **more: Any) -> dict[str, Any]:
    return {
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        **more,
    }


# What counts in the config.json of every model that `conf/model` names, by `model.path`.
SHIPPED: Mapping[str, Mapping[str, Any]] = {
    "embedded": _llama(
        576, 1536, 30, 9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True,
        quantization={"group_size": 32, "bits": 4, "mode": "affine",
                      "model.embed_tokens": {"group_size": 32, "bits": 8, "mode": "affine"}},
    ),
    "mistralai/Mistral-7B-Instruct-v0.3": _llama(
        4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=32768
    ),
    "mistralai/Mistral-7B-Instruct-v0.2": _llama(
        4096, 14336, 32, 32, num_key_value_heads=8, vocab_size=32000
    ),
    "codellama/CodeLlama-7b-Instruct-hf": _llama(4096, 11008, 32, 32, vocab_size=32016),
    "TinyLlama/TinyLlama-1.1B-Chat-v1.0": _llama(
        2048, 5632, 22, 32, num_key_value_heads=4, vocab_size=32000
    ),
    "microsoft/phi-2": {
        "model_type": "phi",
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 51200,
        "partial_rotary_factor": 0.4,
    },
}  # fmt: skip


def find(model: ModelConfig, given: Path | None = None) -> Mapping[str, Any]:
    """The config.json of a model: the `given` one, or one that is here, or a shipped recipe's.

    Never asks the network. Raises ModelError, for an unknown model with what is needed.
    """
    config = _read(given) if given is not None else _known(model)
    if faults := config_faults(dict(config)):
        raise ModelError(f"{given or model.path} cannot be used as a model:", faults)
    return config


def _read(file: Path) -> Mapping[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"--config: {file} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ModelError(f"--config: {file} holds a {type(content).__name__}, expected an object")
    return rotary.settled(content)


def _known(model: ModelConfig) -> Mapping[str, Any]:
    if model.path == "embedded":
        return SHIPPED[model.path]
    kind, path = hub.classify(model.path)
    if kind == "gguf":
        return gguf.config_of(read_header(path))
    if kind == "hub":
        snapshots = hub.cache_folder(model.path).glob("snapshots/*/config.json")
        newest = sorted(snapshots, key=lambda file: file.stat().st_mtime)
        if not newest and model.path in SHIPPED:
            return SHIPPED[model.path]
        if not newest:
            raise _unknown(model.path)
        path = newest[-1].parent
    config, faults = read_config(path)
    if config is None:
        raise ModelError(f"{path} cannot be used as a model:", faults)
    return config


def _unknown(name: str) -> ModelError:
    return ModelError(
        f"{name} is not on this machine, and no recipe of mlx-ft knows its architecture. One of "
        "these is needed:",
        [
            "its config.json (a few kB; on its page on the hub): --config FILE",
            "a recipe with its shape, e.g. model=mistral_7b_v03; `mlx-ft models list` shows them",
            f"the model itself: mlx-ft models download {name}",
        ],
    )


def empty(config: Mapping[str, Any], model: ModelConfig, *, compute_dtype: str) -> nn.Module:
    """A frozen model of that config, as `load` would leave it, whose weights are not computed.

    model: resolved; its `quantize` and `dequantize` are carried out. Raises ModelError.
    """
    import mlx.core as mx

    from mlx_ft.models import quantize
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    from mlx_lm.utils import _get_classes

    packing = _packing(config)
    try:
        model_class, arguments = _get_classes(dict(config))
        made: nn.Module = model_class(arguments.from_dict(dict(config)))
        if packing:
            _pack(made, packing)
        elif model.quantize:
            quantize.quantize(made, model.quantize)
        if model.dequantize:
            quantize.dequantize(made)
        quantize.cast(made, getattr(mx, compute_dtype))
    except Exception as error:  # mlx-lm's classes raise whatever a config provokes
        raise ModelError(
            f"mlx-lm cannot build a model of this config.json ({type(error).__name__}: {error})"
        ) from error
    made.freeze()
    return made


def _packing(config: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """How its weights are quantized, as MLX does it. Raises ModelError for another way."""
    found = config.get("quantization") or config.get("quantization_config")
    if not found:
        return None
    numbers = (
        [found.get(name) for name in ("bits", "group_size")] if isinstance(found, Mapping) else []
    )
    if not numbers or not all(isinstance(number, int) and number > 0 for number in numbers):
        raise ModelError(
            f"config.json has the quantization {found!r}, which cannot be counted here; expected "
            "MLX's, with bits and group_size. Name a model that is not quantized, or by MLX"
        )
    return dict(found)


def _pack(model: nn.Module, settings: Mapping[str, Any]) -> None:
    """Quantize the layers as a model's config.json says."""
    import mlx.nn as nn

    group_size, bits = settings["group_size"], settings["bits"]

    def chosen(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized") or module.weight.shape[-1] % group_size:
            return False
        own: bool | dict[str, Any] = settings.get(path, True)
        return own

    mode = settings.get("mode", "affine")
    nn.quantize(model, group_size, bits, mode=mode, class_predicate=chosen)


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's frozen weights as they lie in memory, scales included."""
    from mlx.utils import tree_flatten

    trained: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    found: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return sum(array.nbytes for name, array in found.items() if name not in trained)
