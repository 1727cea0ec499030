"""An adapter worked into its base: W + s B A for every adapted projection.

The base is dequantized first: rounding back to 4 bits loses most of a small update (docs/export.md
has figures). Nothing is computed here. The arrays of the result are made when they are written,
one after the other, so that a model larger than memory can be fused.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map, tree_unflatten

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import ModelConfig
from mlx_ft.errors import ModelError
from mlx_ft.export import rows
from mlx_ft.models import quantize
from mlx_ft.models.load import Located
from mlx_ft.models.read import read_model

DTYPES = ("float32", "bfloat16", "float16")
# What a config.json says of weights that are no longer so, or that nobody is to run.
DROPPED = ("quantization", "quantization_config", "auto_map", "_name_or_path")


@dataclass(frozen=True)
class Fused:
    """A plain model whose arrays are computed when they are wanted, and its config.json.

    adapter: what was worked in. notes: what was done to the base, for the user.
    """

    model: nn.Module
    config: dict[str, Any]
    adapter: lora_files.Adapter
    dtype: str
    notes: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        """The names of the weights."""
        return [*_flat(self.model)]

    def take(self) -> dict[str, mx.array]:
        """The weights, most of them not computed yet; the model lets go of them.

        So each lives only as long as whoever writes it holds it.
        """
        taken = _flat(self.model)
        self.model.update(tree_map(lambda _: mx.array(0.0), self.model.parameters()))
        return taken


def fuse(
    located: Located, model: ModelConfig, adapter: Path, *, dtype: str | None, computed: str
) -> Fused:
    """Work the adapter in folder `adapter` into the base that it was trained on.

    model: as of the run; a base that it quantized at load is rounded in the same way. dtype: of
    the result; None: the base's own, and for a quantized base `computed`, the precision that the
    run computed in. The rows of q and k come in transformers' order. Raises AdapterError,
    ModelError.
    """
    base, found = read_model(located.path)
    notes: list[str] = []
    packed = bool(found.get("quantization"))
    if model.quantize and not packed:
        settings, skipped = quantize.quantize(base, model.quantize)
        notes += [f"quantized to {settings['bits']} bits, as the run did", *skipped]
        packed = True
    dtype = dtype or (computed if packed else _own(base))
    attached = lora.load(base, adapter)
    if packed:
        notes += quantize.dequantize(base)
        notes.append(f"dequantized to {dtype}")
    _merge(base)
    config = {key: value for key, value in located.config.items() if key not in DROPPED}
    if rows.in_pairs(located.config):
        _to_halves(base, located.config)
        del config["rope_traditional"]
        notes.append("rows of q and k in transformers' order")
    notes += quantize.cast(base, getattr(mx, dtype))
    key = "torch_dtype" if "torch_dtype" in config else "dtype"
    return Fused(base, {**config, key: dtype}, attached, dtype, tuple(notes))


def pack(fused: Fused, wanted: Mapping[str, Any]) -> Fused:
    """The model quantized as `wanted` ({bits, group_size}) says; still nothing is computed."""
    settings, notes = quantize.quantize(fused.model, dict(wanted))
    config = {**fused.config, "quantization": settings, "quantization_config": settings}
    return Fused(fused.model, config, fused.adapter, fused.dtype, (*fused.notes, *notes))


def _flat(model: nn.Module) -> dict[str, mx.array]:
    found: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
    return found


def _own(model: nn.Module) -> str:
    """The precision of most of a model's numbers."""
    counts: Counter[str] = Counter()
    for array in _flat(model).values():
        if mx.issubdtype(array.dtype, mx.floating):
            counts[str(array.dtype).rpartition(".")[2]] += array.size
    return counts.most_common(1)[0][0]


def _merge(model: nn.Module) -> None:
    """Put a plain projection in the place of every adapted one: in float32."""
    plain, packed = [], []
    for path, layer in lora.adapted(model):
        base = layer.linear
        if "scales" in base:
            packed.append(path)
            continue
        a, b = layer.lora_a.astype(mx.float32), layer.lora_b.astype(mx.float32)
        # a projection's: (inputs, r), (r, outputs); experts': (E, r, inputs), (E, outputs, r)
        update = b.T @ a.T if lora.is_of_linear(layer) else b @ a
        base.weight = base.weight.astype(mx.float32) + layer.scale * update
        plain.append((path, base))
    if packed:
        raise ModelError("these projections cannot be dequantized, and so not be fused:", packed)
    model.update_modules(tree_unflatten(plain))


def _to_halves(model: nn.Module, config: Mapping[str, Any]) -> None:
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear) and (heads := rows.heads_of(path, config)):
            for name in ("weight", "bias"):
                if name in module:
                    module[name] = rows.to_halves(module[name], heads)
