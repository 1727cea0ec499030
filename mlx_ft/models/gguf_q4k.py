"""Q4_K tensors as MLX's 4-bit triplets, which hold the same values.

MLX reads them as float16, with every second group of 32 scaled like its neighbour (mlx 0.32.4).
A block of 256 values: float16 d and dmin, 8 scales and 8 minima of 6 bits in 12 bytes, 128 bytes
of 4-bit values; value = d * scale * q - dmin * minimum.
Format: https://github.com/ggml-org/ggml/blob/master/src/ggml-common.h (block_q4_K)
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from mlx_ft.models.gguf_header import TensorInfo

if TYPE_CHECKING:
    import mlx.core as mx

BLOCK_BYTES, GROUPS, GROUP_SIZE = 144, 8, 32
Bytes = npt.NDArray[np.uint8]


def read_q4_k(path: Path, tensor: TensorInfo) -> dict[str, mx.array]:
    """weight (R, C/8) uint32, scales and biases (R, C/32) float16 of an (R, C) tensor."""
    import mlx.core as mx

    data = np.fromfile(path, np.uint8, tensor.size, offset=tensor.start)
    blocks = data.reshape(-1, BLOCK_BYTES)
    rows = tensor.shape[:-1]
    d, dmin = (blocks[:, i : i + 2].copy().view(np.float16).astype(np.float32) for i in (0, 2))
    scales, minima = _unpack_scales(blocks[:, 4:16])
    return {
        "weight": mx.array(_repack(blocks[:, 16:]).reshape(*rows, -1)),
        "scales": mx.array((d * scales).astype(np.float16).reshape(*rows, -1)),
        "biases": mx.array((-dmin * minima).astype(np.float16).reshape(*rows, -1)),
    }


def _unpack_scales(packed: Bytes) -> tuple[Bytes, Bytes]:
    """(N, 12) bytes -> scales and minima, (N, 8) each.

    The first four of each lie in the low 6 bits of bytes 0-3 and 4-7; the others have their low
    4 bits in bytes 8-11 and their high 2 bits on top of bytes 0-3 and 4-7.
    """
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = np.concatenate([low & 63, (rest & 15) | (low >> 6 << 4)], axis=1)
    minima = np.concatenate([high & 63, (rest >> 4) | (high >> 6 << 4)], axis=1)
    return scales, minima


def _repack(packed: Bytes) -> npt.NDArray[np.uint32]:
    """(N, 128) bytes -> (N, 32) words in order; 32 bytes hold one group low, the next one high."""
    pairs = packed.reshape(-1, GROUPS // 2, 1, GROUP_SIZE)
    values = np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 32, 8)
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words: npt.NDArray[np.uint32] = np.bitwise_or.reduce(
        values.astype(np.uint32) << shifts, axis=-1
    )
    return words
