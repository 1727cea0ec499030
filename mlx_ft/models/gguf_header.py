"""Reads the header of a GGUF file in plain Python: metadata, and where each tensor lies.

MLX's own GGUF reader trusts every length in the file and reads out of bounds on a damaged one,
so the file is checked here before MLX opens it.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

from __future__ import annotations

import math
import mmap
import struct
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_ft.errors import ModelError

# Metadata value types by number; 8 is a string, 9 an array.
SCALARS = ("<B", "<b", "<H", "<h", "<I", "<i", "<f", "<?", "", "", "<Q", "<q", "<d")
STRING, ARRAY = 8, 9

# Tensor types by number: name, values per block, bytes per block.
TENSOR_TYPES = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    30: ("BF16", 1, 2),
}


@dataclass(frozen=True)
class TensorInfo:
    """One tensor. shape: slowest dimension first, as MLX has it. type: e.g. "Q4_1".

    start, size: its bytes in the file.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    start: int
    size: int


@dataclass(frozen=True)
class Header:
    """metadata: plain Python values; arrays are lists. tensors: in the file's order."""

    metadata: dict[str, Any]
    tensors: tuple[TensorInfo, ...]

    @property
    def architecture(self) -> str:
        """The family, e.g. "llama"; empty when the file does not say."""
        return str(self.metadata.get("general.architecture", ""))

    @property
    def usual_type(self) -> str:
        """The type of most values, e.g. "Q4_1"."""
        values: Counter[str] = Counter()
        for tensor in self.tensors:
            values[tensor.type] += math.prod(tensor.shape)
        return values.most_common(1)[0][0] if values else ""

    @property
    def parameters(self) -> int:
        """Values in all tensors."""
        return sum(math.prod(tensor.shape) for tensor in self.tensors)


def read_header(path: Path) -> Header:
    """Parse and bounds-check the header of a local, trusted GGUF file.

    Raises ModelError when the file is not GGUF, of an unknown version, or cut off.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _Reader(data, path).header()
    except ValueError as error:  # an empty file cannot be mapped
        raise ModelError(f"{path} is not a GGUF file: {error}") from error
    except RecursionError as error:
        raise ModelError(f"{path} cannot be read: its metadata is nested too deeply") from error
    except OSError as error:
        raise ModelError(f"{path}: cannot be read ({error.strerror})") from error


class _Reader:
    """A cursor over the file's bytes."""

    def __init__(self, data: mmap.mmap, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def header(self) -> Header:
        if self.data[:4] != b"GGUF":
            raise ModelError(f"{self.path} is not a GGUF file: it does not begin with 'GGUF'")
        self.position = 4
        version = self.scalar("<I")
        if version not in (2, 3):
            raise ModelError(f"{self.path}: GGUF version {version}; versions 2 and 3 are read")
        tensor_count, metadata_count = self.scalar("<Q"), self.scalar("<Q")
        metadata = {}
        for _ in range(metadata_count):
            key = self.string()
            metadata[key] = self.value(self.scalar("<I"))
        tensors = [self.tensor() for _ in range(tensor_count)]
        alignment = metadata.get("general.alignment", 32)
        if not isinstance(alignment, int) or alignment < 0:
            raise self.cut_off(f"general.alignment is {alignment!r}")
        alignment = alignment or 32
        data = -(-self.position // alignment) * alignment
        tensors = [replace(tensor, start=data + tensor.start) for tensor in tensors]
        for tensor in tensors:
            if tensor.start + tensor.size > len(self.data):
                raise self.cut_off(f"tensor {tensor.name} ends beyond the end of the file")
        return Header(metadata, tuple(tensors))

    def tensor(self) -> TensorInfo:
        """The next tensor; its start counts from the data section."""
        name = self.string()
        dimensions = self.scalar("<I")
        if dimensions > 8:
            raise self.cut_off(f"tensor {name} has {dimensions} dimensions")
        shape = tuple(self.scalar("<Q") for _ in range(dimensions))[::-1]
        number, offset = self.scalar("<I"), self.scalar("<Q")
        kind, values, size = TENSOR_TYPES.get(number, (f"type {number}", 1, 0))
        return TensorInfo(name, shape, kind, offset, math.prod(shape) // values * size)

    def value(self, kind: int) -> Any:
        if kind == STRING:
            return self.string()
        if kind == ARRAY:
            item, count = self.scalar("<I"), self.scalar("<Q")
            if count > len(self.data):
                raise self.cut_off(f"an array claims {count} items")
            if item == STRING:
                return [self.string() for _ in range(count)]
            return [self.value(item) for _ in range(count)]
        if not 0 <= kind < len(SCALARS):
            raise self.cut_off(f"unknown metadata type {kind}")
        return self.scalar(SCALARS[kind])

    def scalar(self, form: str) -> Any:
        size = struct.calcsize(form)
        return struct.unpack(form, self.take(size))[0]

    def string(self) -> str:
        return self.take(self.scalar("<Q")).decode("utf-8", "replace")

    def take(self, size: int) -> bytes:
        if self.position + size > len(self.data):
            raise self.cut_off("the header ends beyond the end of the file")
        taken = self.data[self.position : self.position + size]
        self.position += size
        return taken

    def cut_off(self, what: str) -> ModelError:
        return ModelError(
            f"{self.path} is damaged or not completely copied: {what}. "
            "Compare its size with the original and copy it again."
        )
