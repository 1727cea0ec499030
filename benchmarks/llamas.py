"""Models for benchmarks: the embedded one, or random llamas of any size, with an adapter on.

Importing this brings in the fast BLAS, which has to come before MLX.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mlx_ft import exponentials, lora  # noqa: E402
from mlx_ft.config.schema import LoraConfig, ModelConfig  # noqa: E402
from mlx_ft.models.load import load, locate  # noqa: E402
from mlx_ft.models.read import import_mlx_lm  # noqa: E402


@dataclass(frozen=True)
class Row:
    """tokens: (T,) int32; targets: (T,) bool."""

    tokens: np.ndarray
    targets: np.ndarray


@dataclass(frozen=True)
class Shape:
    """A Llama's sizes; heads are 64 wide, three of them share keys and values where it divides."""

    hidden: int = 576
    layers: int = 6
    vocabulary: int = 8192

    @property
    def heads(self) -> int:
        return self.hidden // 64

    @property
    def inner(self) -> int:
        return self.hidden * 8 // 3 // 64 * 64


def embedded(rank: int, layers: int | str) -> Any:
    """SmolLM2-135M-Instruct in float32."""
    located = locate(ModelConfig(), runtime.default_cache_dir())
    loaded = load(located, ModelConfig(), compute_dtype="float32", dequantize=True)
    return adapted(loaded.model, rank, layers)


def random_llama(shape: Shape, rank: int, layers: int | str) -> Any:
    """A Llama with random weights."""
    import_mlx_lm()
    from mlx_lm.models.llama import Model, ModelArgs

    mx.random.seed(0)
    model = Model(
        ModelArgs(
            model_type="llama",
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            intermediate_size=shape.inner,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.heads // 3 if shape.heads % 3 == 0 else shape.heads,
            rms_norm_eps=1e-5,
            vocab_size=shape.vocabulary,
        )
    )
    return adapted(model, rank, layers)


def adapted(model: Any, rank: int, layers: int | str) -> Any:
    """The model with an adapter whose B is not zero, so that all of its gradients are there."""
    exponentials.install(model)
    lora.attach(model, LoraConfig(rank=rank, alpha=2.0 * rank, num_layers=layers))
    mx.random.seed(1)
    moved = [
        (name, array + 0.01 * mx.random.normal(array.shape))
        for name, array in lora.parameters(model).items()
    ]
    model.load_weights(moved, strict=False)
    mx.eval(model.parameters())
    return model


def linear_parameters(layers: list[nn.Module]) -> int:
    """Weights of the projections of these layers, without their adapters."""
    leaves = [leaf for layer in layers for leaf in flat(layer.parameters()).items()]
    return sum(a.size for name, a in leaves if a.ndim == 2 and "lora_" not in name)


def flat(tree: Any) -> dict[str, mx.array]:
    """Arrays by their full names."""
    return cast(dict[str, mx.array], dict(tree_flatten(tree)))


def random_rows(lengths: list[int], vocabulary: int, targets: float, seed: int = 0) -> list[Row]:
    """Rows of so many tokens; the last share `targets` of each is to be predicted."""
    random = np.random.default_rng(seed)
    rows = []
    for length in lengths:
        tokens = random.integers(1, vocabulary, length).astype(np.int32)
        rows.append(Row(tokens, np.arange(length) >= length - max(1, round(targets * length))))
    return rows
