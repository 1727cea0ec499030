"""LoRA adapters: attach, count, save, load, detach. Files are those of mlx-lm.

An adapted projection computes y = W x + s B A x, with W frozen (Hu et al. 2021). The layers are
mlx-lm's, so that what is trained here is computed in the same way wherever mlx-lm loads it.
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten
from safetensors.numpy import save as array_bytes

from mlx_ft import durable
from mlx_ft.config.schema import LoraConfig
from mlx_ft.errors import AdapterError, ConfigError

logger = logging.getLogger(__name__)

WEIGHTS = "adapters.safetensors"
SETTINGS = "adapter_config.json"
MAX_RANK = 4096

# A group is told by the name of the module that holds the projection, across model families.
GROUPS = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "moe", "feed_forward", "ffn", "experts"),
}


@dataclass(frozen=True)
class Adapter:
    """What is attached to a model, as mlx-lm's `adapter_config.json` describes it."""

    rank: int
    scale: float
    dropout: float
    num_layers: int
    keys: tuple[str, ...]

    def settings(self) -> dict[str, Any]:
        """The content of `adapter_config.json` that mlx-lm reads."""
        return {
            "fine_tune_type": "lora",
            "num_layers": self.num_layers,
            "lora_parameters": {
                "rank": self.rank,
                "scale": self.scale,
                "dropout": self.dropout,
                "keys": list(self.keys),
            },
        }


def scale(config: LoraConfig) -> float:
    """s in y = W x + s B A x: alpha / r, or alpha / sqrt(r) for rsLoRA (arXiv:2312.03732)."""
    divisor = math.sqrt(config.rank) if config.scaling == "rslora" else config.rank
    return config.alpha / divisor


class SeededDropout(nn.Module):
    """Inverted dropout (Srivastava et al. 2014) whose mask is a function of `key` alone.

    So a layer that is computed again for its gradient (`mx.checkpoint`) drops the same inputs,
    and a step repeated after a resume does too. p: probability of zeroing an input.
    """

    def __init__(self, p: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.p = p
        self._key = mx.random.key(0)  # the underscore keeps it out of the parameters

    def __call__(self, x: mx.array) -> mx.array:
        """Drop inputs while training."""
        if not self.training:
            return x
        keep = mx.random.bernoulli(1 - self.p, x.shape, key=self._key)
        return mx.where(keep, x, 0) * (1 / (1 - self.p))


def seed_dropout(model: nn.Module, seed: int) -> None:
    """Give every dropout of the adapter its own key, made from `seed` (64 bits)."""
    dropouts = [m for _, m in model.named_modules() if isinstance(m, SeededDropout)]
    if dropouts:
        keys = mx.random.split(mx.random.key(seed), len(dropouts))
        for dropout, key in zip(dropouts, keys, strict=True):
            dropout._key = key


def attach(model: nn.Module, config: LoraConfig) -> Adapter:
    """Freeze `model` and put trainable LoRA layers on the configured projections.

    B starts at zero, so the adapted model computes what the base does. A model with fewer layers
    than asked for gets it on all of them. Raises ConfigError when a target matches nothing,
    AdapterError when the model carries an adapter.
    """
    _refuse_adapted(model)
    layers = model.layers
    count = len(layers) if config.num_layers == "all" else int(config.num_layers)
    if count > len(layers):
        logger.warning("lora.num_layers is %d; this model has %d: all of them", count, len(layers))
        count = len(layers)
    chosen = layers[len(layers) - count :]
    available = {key for layer in chosen for key, _ in projections(layer)}
    keys = _match(config.target_modules, sorted(available))
    adapter = Adapter(config.rank, scale(config), config.dropout, count, tuple(keys))
    _convert(model, adapter)
    return adapter


def projections(layer: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """(path within the layer, projection) of everything that can carry an adapter."""
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear

    kinds = (nn.Linear, nn.QuantizedLinear, SwitchLinear, QuantizedSwitchLinear)
    for path, module in layer.named_modules():
        if isinstance(module, kinds):
            yield path, module


def _match(targets: str | list[str], available: list[str]) -> list[str]:
    wanted = [targets] if isinstance(targets, str) else list(targets)
    matched: set[str] = set()
    missing = []
    for name in wanted:
        hits = [path for path in available if _is_target(name, path)]
        matched.update(hits)
        if not hits:
            missing.append(name)
    if missing:
        names = sorted({path.rsplit(".", 1)[-1] for path in available})
        raise ConfigError(
            f"lora.target_modules: {', '.join(map(repr, missing))} matches no projection of this "
            f"model. It has: {', '.join(names)}; or use all-linear, attention, mlp"
        )
    return sorted(matched)


def _is_target(name: str, path: str) -> bool:
    if name == "all-linear":
        return True
    if name in GROUPS:
        owners = path.split(".")[:-1]
        return any(hint in owner for owner in owners for hint in GROUPS[name])
    return path == name or path.endswith(f".{name}")


def _convert(model: nn.Module, adapter: Adapter) -> None:
    from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

    model.freeze()
    layers = model.layers
    for layer in layers[len(layers) - adapter.num_layers :]:
        converted = []
        for path, module in projections(layer):
            if path not in adapter.keys:
                continue
            switch = isinstance(module, (SwitchLinear, QuantizedSwitchLinear))
            kind = LoRASwitchLinear if switch else LoRALinear
            lora = kind.from_base(
                module, r=adapter.rank, dropout=adapter.dropout, scale=adapter.scale
            )
            if adapter.dropout:
                lora.dropout = SeededDropout(adapter.dropout)
            converted.append((path, lora))
        layer.update_modules(tree_unflatten(converted))


def detach(model: nn.Module) -> None:
    """Take every LoRA layer off again; the base is as it was."""
    bare = [(path, module.linear) for path, module in adapted(model)]
    model.update_modules(tree_unflatten(bare))


def adapted(model: nn.Module) -> list[tuple[str, Any]]:
    """(path, layer) of everything that carries an adapter."""
    from mlx_lm.tuner.lora import LoRALinear, LoRASwitchLinear

    kinds = (LoRALinear, LoRASwitchLinear)
    return [(path, module) for path, module in model.named_modules() if isinstance(module, kinds)]


def _refuse_adapted(model: nn.Module) -> None:
    if adapted(model):
        raise AdapterError("this model already carries an adapter; detach it first")


def is_of_linear(layer: nn.Module) -> bool:
    """Whether it is the adapter of a plain projection, not of experts'."""
    from mlx_lm.tuner.lora import LoRALinear

    return isinstance(layer, LoRALinear)


def parameters(model: nn.Module) -> dict[str, mx.array]:
    """The adapter's arrays by their full names: lora_a (in, r), lora_b (r, out)."""
    return dict(tree_flatten(model.trainable_parameters()))


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Of the adapter's arrays, by their full names."""
    return {name: array.shape for name, array in parameters(model).items()}


def count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(array.size for array in parameters(model).values())


def save(
    weights: Mapping[str, mx.array],
    adapter: Adapter,
    folder: Path,
    about: Mapping[str, Any],
    files: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write `adapters.safetensors` and `adapter_config.json`: `folder` appears whole or not at all.

    about, files: as for `saved_files`. An earlier `folder` is replaced. Raises OSError.
    """
    durable.replace_folder(folder, saved_files(weights, adapter, about, files))


def saved_files(
    weights: Mapping[str, mx.array],
    adapter: Adapter,
    about: Mapping[str, Any],
    files: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, bytes]:
    """The files of an adapter by their names.

    about: kept under "mlx_ft" in the settings: base model, run, config; mlx-lm ignores it. files:
    texts to lie beside them, by name.
    """
    settings = {**adapter.settings(), "mlx_ft": dict(about)}
    return {
        WEIGHTS: to_bytes(weights),
        SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
        **{name: content.encode() for name, content in files.items()},
    }


def to_bytes(arrays: Mapping[str, mx.array]) -> bytes:
    """The arrays as a safetensors file."""
    # A view may have other strides, which safetensors would not look at.
    copies = {name: np.array(array, order="C") for name, array in arrays.items()}
    return array_bytes(copies, metadata={"format": "mlx"})


def read_settings(folder: Path) -> tuple[Adapter, dict[str, Any]]:
    """The adapter's shape and everything else in `adapter_config.json`.

    Raises AdapterError when a file is missing or does not describe a LoRA adapter.
    """
    faults = [
        f"{folder / name} is missing"
        for name in (SETTINGS, WEIGHTS)
        if not (folder / name).is_file()
    ]
    if faults:
        raise AdapterError(f"{folder} is not an adapter folder", faults)
    try:
        settings = json.loads((folder / SETTINGS).read_text(encoding="utf-8"))
        wanted, count = settings["lora_parameters"], settings["num_layers"]
        numbers = {name: wanted[name] for name in ("rank", "scale", "dropout")}
        keys = tuple(map(str, wanted.get("keys") or ()))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(
            f"{folder / SETTINGS} is not a LoRA description: {type(error).__name__}: {error}"
        ) from None
    faults = number_faults(numbers)
    if not _is_number(count) or count != int(count):
        faults.append(f"num_layers: found {count!r:.40}; expected a whole number")
    if faults:
        raise AdapterError(f"{folder / SETTINGS} is not a LoRA description:", faults)
    rank, scale, dropout = numbers.values()
    return Adapter(int(rank), float(scale), float(dropout), int(count), keys), settings


def number_faults(numbers: Mapping[str, Any]) -> list[str]:
    """What is wrong with an adapter's numbers, as they were read from a file.

    numbers: rank, scale (or alpha) and dropout in this order, by the names that the file has.
    """
    (rank, r), (scale, s), (dropout, p) = numbers.items()
    faults = []
    if not (_is_number(r) and 1 <= r <= MAX_RANK and r == int(r)):
        faults.append(f"{rank}: found {r!r:.40}; expected a whole number from 1 to {MAX_RANK}")
    if not _is_number(s):
        faults.append(f"{scale}: found {s!r:.40}; expected a finite number")
    if not (_is_number(p) and 0 <= p < 1):
        faults.append(f"{dropout}: found {p!r:.40}; expected at least 0 and less than 1")
    return faults


def _is_number(value: Any) -> bool:
    """Whether it is a finite number; JSON's readers take NaN, Infinity and 10**400 for some."""
    is_kind = isinstance(value, (int, float)) and not isinstance(value, bool)
    return is_kind and abs(value) <= sys.float_info.max


def load(model: nn.Module, folder: Path) -> Adapter:
    """Attach the adapter saved in `folder` to a bare `model`.

    Raises AdapterError that lists every tensor which is missing, unexpected, of another shape,
    or not finite; the model is then bare again.
    """
    _refuse_adapted(model)
    keys = [[path for path, _ in projections(layer)] for layer in model.layers]
    adapter, weights = read(folder, keys)
    put(model, adapter, weights, f"the adapter in {folder}")
    return adapter


def read(folder: Path, layers: Sequence[Sequence[str]]) -> tuple[Adapter, dict[str, mx.array]]:
    """The adapter saved in `folder` and its arrays; `layers`: the projections that each layer has.

    Raises AdapterError.
    """
    adapter, _ = read_settings(folder)
    if adapter.num_layers <= 0:  # mlx-lm's way of saying all
        adapter = replace(adapter, num_layers=len(layers))
    if not adapter.keys:  # and here too
        adapter = replace(adapter, keys=tuple(sorted({key for layer in layers for key in layer})))
    try:
        return adapter, cast(dict[str, mx.array], mx.load(str(folder / WEIGHTS)))
    except RuntimeError as error:
        raise AdapterError(f"{folder / WEIGHTS} cannot be read: {error}") from None


def put(model: nn.Module, adapter: Adapter, weights: Mapping[str, mx.array], name: str) -> None:
    """Attach an adapter with these arrays to a bare `model`.

    name: what it is called in an error. Raises AdapterError as `load` does.
    """
    _convert(model, adapter)
    if faults := mismatches(shapes(model), weights):
        detach(model)
        raise AdapterError(f"{name} does not fit this model", faults)
    model.load_weights(list(weights.items()), strict=False)


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, mx.array]) -> list[str]:
    """What of an adapter's arrays is missing, too much, of another shape, or not finite."""
    faults = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name}: not part of this model" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    finite = {name: mx.isfinite(found[name]).all() for name in both}
    mx.eval(finite)  # in one pass
    for name in both:
        if found[name].shape != expected[name]:
            faults.append(f"{name}: shape {found[name].shape}, expected {expected[name]}")
        elif not finite[name].item():
            faults.append(f"{name}: holds NaN or infinity")
    return faults
