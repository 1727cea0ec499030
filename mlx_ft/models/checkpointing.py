"""Gradient checkpointing: a layer's activations are computed again instead of kept.

Chen et al. 2016. Memory falls to one layer's activations and each layer's input; time grows by
about one forward pass.
"""

from __future__ import annotations

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten


def count(asked: bool | int, adapted: int) -> int:
    """Of `adapted` layers, those that `memory_profile.grad_checkpoint` (resolved) asks for."""
    return adapted * asked if isinstance(asked, bool) else min(asked, adapted)


def checkpoint_layers(model: nn.Module, count: int | None = None) -> None:
    """Let layers of `model` forget their activations between forward and backward.

    count: of the layers with something to train, the lowest ones, whose gradients come last; None:
    all. A layer without keeps nothing anyhow. Only this model changes: its layers get a class of
    their own, the original stays as it is.
    """
    kinds: dict[type, type] = {}
    trained = [layer for layer in model.layers if tree_flatten(layer.trainable_parameters())]
    for layer in trained[:count]:
        kind = type(layer)
        if kind not in kinds:
            kinds[kind] = type(kind.__name__, (kind,), {"__call__": _forgetting(kind)})
        layer.__class__ = kinds[kind]


def _forgetting(kind: type[nn.Module]) -> Any:
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        def compute(trainable: Any, *args: Any, **kwargs: Any) -> Any:
            # Gradients flow to what goes in as an argument, so the adapter has to.
            self.update(trainable)
            return kind.__call__(self, *args, **kwargs)

        return mx.checkpoint(compute)(self.trainable_parameters(), *args, **kwargs)

    return call
