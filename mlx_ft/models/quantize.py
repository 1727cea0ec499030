"""Precision of a model in memory: quantize, dequantize, cast."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from mlx_ft.config.keys import QUANTIZATION, QUANTIZE_KEYS
from mlx_ft.errors import ModelError

if TYPE_CHECKING:
    import mlx.core as mx
    import mlx.nn as nn


def quantize_faults(wanted: Any) -> list[str]:
    """What is wrong with a `model.quantize` value, one line each."""
    if wanted is None:
        return []
    if not isinstance(wanted, dict):
        return [f"model.quantize: found {wanted!r}, expected {{bits, group_size, mode}} or null"]
    faults = [
        f"model.quantize.{key}: unknown key, expected bits, group_size, mode"
        for key in wanted.keys() - {*QUANTIZE_KEYS}
    ]
    mode = wanted.get("mode") or "affine"
    if not isinstance(mode, str) or mode not in QUANTIZATION:
        return [
            *faults,
            f"model.quantize.mode: found {mode!r}, expected one of {', '.join(QUANTIZATION)}",
        ]
    for key, values in zip(("bits", "group_size"), QUANTIZATION[mode], strict=True):
        if wanted.get(key) is not None and wanted[key] not in values:
            expected = ", ".join(map(str, sorted(values)))
            faults.append(
                f"model.quantize.{key}: found {wanted[key]!r}, expected {expected} ({mode})"
            )
    return faults


def quantize(model: nn.Module, wanted: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Quantize the layers of a plain model in place, as `mlx_lm.convert -q` would.

    wanted: {bits, group_size, mode}, each optional. Returns the settings as mlx-lm keeps them in
    config.json, and notes about layers that stay plain.
    """
    import mlx.nn as nn

    mode = wanted.get("mode") or "affine"
    (bits, *_), (group_size, *_) = QUANTIZATION[mode]
    settings: dict[str, Any] = {
        "group_size": wanted.get("group_size") or group_size,
        "bits": wanted.get("bits") or bits,
        "mode": mode,
    }
    layers: dict[str, Any] = dict(settings)
    undivided: list[str] = []
    choose = getattr(model, "quant_predicate", None)

    def predicate(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if not hasattr(module, "to_quantized"):
            return False
        if module.weight.shape[-1] % settings["group_size"]:
            undivided.append(path)
            return False
        choice = choose(path, module) if choose else True
        if isinstance(choice, dict):
            layers[path] = choice
        return choice

    nn.quantize(model, **settings, class_predicate=predicate)
    notes = []
    if undivided:
        notes.append(
            f"{len(undivided)} layers stay unquantized, their width is no multiple of "
            f"{settings['group_size']}: {', '.join(undivided)}"
        )
    return layers, notes


def dequantize(model: nn.Module) -> list[str]:
    """Make quantized layers plain ones, in place; notes about those that stay quantized."""
    from mlx_lm.utils import dequantize_model

    scaled = [name for name, module in model.named_modules() if "global_scale" in module]
    if scaled:  # dequantize_model leaves the tensor's scale out
        raise ModelError(
            "layers with an nvfp4 tensor scale cannot be dequantized; set model.dequantize=false:",
            scaled,
        )
    dequantize_model(model)
    left = [name for name, module in model.named_modules() if "scales" in module]
    return [f"{len(left)} layers stay quantized: {', '.join(left)}"] if left else []


def cast(model: nn.Module, dtype: mx.Dtype) -> list[str]:
    """Cast floats to `dtype`, scales of quantized layers included, so that products stay in it.

    Honours the architecture's own list of parameters that must keep their precision. Returns a
    note when scales lose bits.
    """
    import mlx.core as mx
    from mlx.utils import tree_map_with_path

    may_cast = getattr(model, "cast_predicate", lambda _: True)

    def convert(path: str, value: mx.array) -> mx.array:
        floating = mx.issubdtype(value.dtype, mx.floating)
        if floating and may_cast(path) and not path.endswith("global_scale"):
            return value.astype(dtype)
        return value

    scales = {module["scales"].dtype for _, module in model.named_modules() if "scales" in module}
    model.update(tree_map_with_path(convert, model.parameters()))
    if dtype == mx.bfloat16 and scales & {mx.float16, mx.float32}:
        return ["scales of the quantized layers rounded to bfloat16"]
    return []
