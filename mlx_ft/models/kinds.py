"""A model cut to its lower layers, where the upper ones are only more of the same."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import mlx.nn as nn
from mlx.utils import tree_flatten

PLAIN = (int, float, str, type(None))  # attributes by which a layer may behave differently


@contextmanager
def each_kind(model: nn.Module) -> Iterator[bool]:
    """Within it the model ends above the first layer of its last kind; yields whether it is cut.

    A layer is of another kind by its modules' classes, their arrays' shapes or plain attributes,
    so a layer that knows its own number is alone of its kind, and such a model stays whole.
    """
    layers = getattr(model, "layers", None)
    found = _holder(model, layers) if isinstance(layers, list) else None
    if found is None or layers is None:
        yield False
        return
    kinds = [kind(layer) for layer in layers]
    enough = 1 + max(kinds.index(one) for one in kinds)
    if enough == len(layers):
        yield False
        return
    holder, name = found
    holder[name] = layers[:enough]
    try:
        yield True
    finally:
        holder[name] = layers


def kind(layer: nn.Module) -> Any:
    """Equal for layers that differ in nothing but the numbers in their arrays."""
    modules = [
        (path, type(module), [pair for pair in vars(module).items() if isinstance(pair[1], PLAIN)])
        for path, module in layer.named_modules()
    ]
    arrays: Any = tree_flatten(layer.parameters())
    return modules, [(path, array.shape, array.dtype) for path, array in arrays]


def _holder(model: nn.Module, layers: list[Any]) -> tuple[dict[str, Any], str] | None:
    for module in model.modules():
        for name, part in module.items():
            if part is layers:
                return module, name
    return None
