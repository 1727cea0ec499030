"""Arrays to safetensors files, one array in memory at a time.

The header needs only shapes and types, so arrays that are not computed yet are computed when it is
their turn. Format: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_ft import durable
from mlx_ft.errors import ModelError
from mlx_ft.models.folder import INDEX

SHARD_BYTES = 5 * 10**9  # as transformers cuts them
KINDS = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.int32: "I32",
    mx.uint8: "U8",
}
WORDS = {1: mx.uint8, 2: mx.uint16, 4: mx.uint32}  # NumPy has no bfloat16


def write(folder: Path, arrays: dict[str, mx.array], shard_bytes: int = SHARD_BYTES) -> int:
    """Write `model*.safetensors` and their index; returns the bytes of all arrays.

    `arrays` is emptied on the way. Raises ModelError when values are not finite, OSError.
    """
    total = sum(array.nbytes for array in arrays.values())
    shards = _shards({name: array.nbytes for name, array in arrays.items()}, shard_bytes)
    places: dict[str, str] = {}
    faults: list[str] = []
    for number, names in enumerate(shards, 1):
        several = f"-{number:05d}-of-{len(shards):05d}" if len(shards) > 1 else ""
        file = f"model{several}.safetensors"
        places |= dict.fromkeys(names, file)
        faults += _write_shard(folder / file, names, arrays)
    if faults:
        raise ModelError(
            "these tensors hold values that are not finite in this precision; choose another one "
            "with --dtype:",
            faults,
        )
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(places.items()))}
    durable.write(folder / INDEX, (json.dumps(index, indent=2) + "\n").encode())
    return total


def _shards(sizes: dict[str, int], limit: int) -> list[list[str]]:
    """The names in their order, cut so that no part is larger than `limit` where it can be."""
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
    return shards


def _write_shard(path: Path, names: Sequence[str], arrays: dict[str, mx.array]) -> list[str]:
    """Write one file; returns the names of the arrays that are not finite."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name in names:
        array = arrays[name]
        begin, end = end, end + array.nbytes
        header[name] = {
            "dtype": KINDS[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    faults = []
    with durable.naming(path), path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in names:
            array = arrays.pop(name)
            if not is_finite(array):
                faults.append(name)
            file.write(content(array))
            del array
            mx.clear_cache()
    return faults


def is_finite(array: mx.array) -> bool:
    """Whether no value of it is NaN or infinite."""
    return not mx.issubdtype(array.dtype, mx.floating) or bool(mx.isfinite(array).all().item())


def content(array: mx.array) -> bytes:
    """An array's values as they lie in a file."""
    flat = array.reshape(-1).view(WORDS[array.dtype.size])
    return np.array(flat).tobytes()
