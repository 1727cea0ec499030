"""The order of a Llama's query and key rows, which two rotary embeddings want differently.

transformers turns row j of a head with row j + half ("halves"); GGUF's llama files have these two
side by side ("pairs"), and so have models that were made from one: `rope_traditional` in their
config. Both compute the same; an adapter or a model has to be in the order of its base.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

import mlx.core as mx
import numpy as np

Array = TypeVar("Array", mx.array, np.ndarray)

FAMILIES = ("llama", "mistral")
HEADS = {"q_proj": "num_attention_heads", "k_proj": "num_key_value_heads"}


def in_pairs(config: Mapping[str, Any]) -> bool:
    """Whether a model with this config.json has its rows in pairs."""
    return config.get("model_type") in FAMILIES and bool(config.get("rope_traditional"))


def heads_of(path: str, config: Mapping[str, Any]) -> int | None:
    """How many heads the rows of a projection belong to; None: their order never matters.

    path: `model.layers.0.self_attn.q_proj`.
    """
    name = HEADS.get(path.rpartition(".")[2])
    if name is None:
        return None
    return int(config.get(name) or config["num_attention_heads"])


def to_pairs(rows: Array, heads: int) -> Array:
    """(rows, ...) from halves to pairs."""
    return _moved(rows, (heads, 2, rows.shape[0] // heads // 2))


def to_halves(rows: Array, heads: int) -> Array:
    """(rows, ...) from pairs to halves."""
    return _moved(rows, (heads, rows.shape[0] // heads // 2, 2))


def _moved(rows: Array, split: tuple[int, int, int]) -> Array:
    return rows.reshape(*split, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
