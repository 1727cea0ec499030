"""`lora.init_from`: an adapter that a training begins with, in place of a new one.

Its numbers are taken, nothing of its training: optimizer, schedule and rows begin anew.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import LoraConfig
from mlx_ft.errors import AdapterError


@dataclass(frozen=True)
class Start:
    """The adapter to begin with. digest: tells its content from others'."""

    folder: Path
    adapter: lora_files.Adapter
    weights: Mapping[str, mx.array]
    digest: str


def find(config: LoraConfig) -> Start | None:
    """The adapter that `lora.init_from` names; None: a new one is wanted.

    Raises AdapterError when it cannot be read, or the configuration asks for another kind.
    """
    if config.init_from is None:
        return None
    folder = Path(config.init_from).expanduser()
    if (folder / "adapter" / lora_files.SETTINGS).is_file():
        folder = folder / "adapter"  # a run's folder was given
    adapter, _ = lora_files.read_settings(folder)
    faults = []
    if config.rank != adapter.rank:
        faults.append(f"lora.rank: found {config.rank}; the adapter has {adapter.rank}")
    if not math.isclose(lora.scale(config), adapter.scale, rel_tol=1e-6):
        faults.append(
            f"lora.alpha, lora.scaling: found {config.alpha}, {config.scaling}, a scale of "
            f"{lora.scale(config)}; the adapter has {adapter.scale}: lora.scaling=standard "
            f"lora.alpha={adapter.scale * adapter.rank}"
        )
    if faults:
        raise AdapterError(
            f"lora.init_from: the adapter in {folder} is of another kind than this run asks for. "
            "Give the run the adapter's:",
            faults,
        )
    path = folder / lora_files.WEIGHTS
    try:
        weights = cast(dict[str, mx.array], mx.load(str(path)))
        content = hashlib.sha256(path.read_bytes())
    except (OSError, RuntimeError) as error:
        raise AdapterError(f"{path} cannot be read: {error}") from None
    content.update(json.dumps([adapter.rank, adapter.scale]).encode())
    return Start(folder, adapter, weights, content.hexdigest())


def put(model: nn.Module, start: Start) -> None:
    """Give the adapter that is on `model` the numbers of another one.

    Raises AdapterError, which lists what of the two does not fit, and the settings that would.
    """
    faults = lora_files.mismatches(lora.shapes(model), start.weights)
    if faults:
        keys, count = ",".join(start.adapter.keys), start.adapter.num_layers
        more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
        raise AdapterError(
            f"lora.init_from: the adapter in {start.folder} is on other projections than this run "
            f"asks for, or of another model. Its own are lora.num_layers={count} "
            f"lora.target_modules=[{keys}]",
            [*faults[:10], *more],
        )
    weights = [(name, array.astype(mx.float32)) for name, array in start.weights.items()]
    model.load_weights(weights, strict=False)
