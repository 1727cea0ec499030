"""The files of an adapter: `adapters.safetensors` and `adapter_config.json`, as mlx-lm has them."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, cast

import mlx.core as mx
import numpy as np
from safetensors.numpy import save as array_bytes

from mlx_ft import durable
from mlx_ft.errors import AdapterError

WEIGHTS = "adapters.safetensors"
SETTINGS = "adapter_config.json"
MAX_RANK = 4096


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


def mismatches(expected: Mapping[str, tuple[int, ...]], found: Mapping[str, mx.array]) -> list[str]:
    """What of an adapter's arrays is missing, too much, of another shape, or not finite."""
    faults = [f"{name}: missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{name}: not part of this model" for name in sorted(found.keys() - expected.keys())]
    both = sorted(expected.keys() & found.keys())
    zeros = {name: (0 * found[name]).sum() for name in both}  # isfinite takes 10 times as long
    mx.eval(zeros)  # in one pass
    for name in both:
        if found[name].shape != expected[name]:
            faults.append(f"{name}: shape {found[name].shape}, expected {expected[name]}")
        elif zeros[name].item() != 0:  # NaN
            faults.append(f"{name}: holds NaN or infinity")
    return faults
