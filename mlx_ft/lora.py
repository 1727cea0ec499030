"""LoRA adapters: attach, count, load, detach; their files are in `lora_files`.

An adapted projection computes y = W x + s B A x, with W frozen (Hu et al. 2021). The layers are
mlx-lm's, so that what is trained here is computed in the same way wherever mlx-lm loads it.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_ft.config.schema import LoraConfig
from mlx_ft.errors import AdapterError, ConfigError
from mlx_ft.lora_files import Adapter, mismatches, read

logger = logging.getLogger(__name__)

# A group is told by the name of the module that holds the projection, across model families.
GROUPS = {
    "attention": ("attn", "attention"),
    "mlp": ("mlp", "moe", "feed_forward", "ffn", "experts"),
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


def put(model: nn.Module, adapter: Adapter, weights: Mapping[str, mx.array], name: str) -> None:
    """Attach an adapter with these arrays to a bare `model`.

    name: what it is called in an error. Raises AdapterError as `load` does.
    """
    _convert(model, adapter)
    if faults := mismatches(shapes(model), weights):
        detach(model)
        raise AdapterError(f"{name} does not fit this model", faults)
    model.load_weights(list(weights.items()), strict=False)
