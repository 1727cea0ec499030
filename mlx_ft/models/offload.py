"""Layers that are seldom used keep their arrays in a file, and memory has them while they are used.

An array that MLX has loaded lazily is read when something is computed from it. So nothing else
needs to know which layers these are.
"""

from __future__ import annotations

import fcntl
import os
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

LOCK, ARRAYS = ".lock", ".safetensors"


class Offload:
    """The arrays of some layers in a file in `folder`; frozen ones, as changes would be lost.

    Raises OSError when it cannot be written.
    """

    def __init__(self, layers: Sequence[nn.Module], folder: Path) -> None:
        self._layers = layers
        folder.mkdir(parents=True, exist_ok=True)
        _remove_left_behind(folder)
        self._handle, lock = tempfile.mkstemp(LOCK, dir=folder)
        self._lock = Path(lock)
        self._file = self._lock.with_suffix(ARRAYS)
        with suppress(OSError):  # a file system without locks: nothing is removed there
            fcntl.flock(self._handle, fcntl.LOCK_EX)
        try:
            mx.save_safetensors(str(self._file), self._arrays())
        except RuntimeError as error:
            self._remove()
            raise OSError(f"{self._file} could not be written: {error}") from error

    def _arrays(self) -> dict[str, mx.array]:
        return {
            f"{number}.{name}": array
            for number, layer in enumerate(self._layers)
            for name, array in _leaves(layer)
        }

    def rest(self) -> None:
        """Take the arrays out of memory, until they are used again."""
        arrays: Any = mx.load(str(self._file))
        for number, layer in enumerate(self._layers):
            names = [name for name, _ in _leaves(layer)]
            layer.update(tree_unflatten([(name, arrays[f"{number}.{name}"]) for name in names]))

    def close(self) -> None:
        """Have the arrays in memory again, for whoever has the model now; the file goes."""
        try:
            mx.eval(self._arrays())
        finally:
            self._remove()

    def _remove(self) -> None:
        self._file.unlink(missing_ok=True)
        self._lock.unlink(missing_ok=True)
        os.close(self._handle)


def _leaves(layer: nn.Module) -> list[tuple[str, mx.array]]:
    found: Any = tree_flatten(layer.parameters())
    return found  # type: ignore[no-any-return]


def _remove_left_behind(folder: Path) -> None:
    """Files of processes that are gone without a word: nobody holds their locks."""
    for lock in folder.glob(f"*{LOCK}"):
        with suppress(OSError), lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            lock.with_suffix(ARRAYS).unlink(missing_ok=True)
            lock.unlink()
