"""Layers below the adapter give the same for a row in every epoch: they are computed once.

A row is computed alone, so that what it gives is a function of its tokens and of nothing else:
the same in whichever batch, and in a resumed run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_ft.activations import Store, key_of
from mlx_ft.layout import Layout, Row
from mlx_ft.models.offload import Offload

Backbone = Callable[[mx.array], mx.array]  # (1, T) -> final hidden states


class Entrance:
    """Lets a model be entered above its first `depth` layers, or left there.

    Its layers get a class of their own, which does as theirs unless asked otherwise. So models of
    any shape are served whose layers take hidden states first and return them.
    """

    def __init__(self, model: nn.Module, depth: int) -> None:
        self.depth = depth
        self._hidden: mx.array | None = None
        self._leaving = False
        kinds: dict[tuple[type, bool], type] = {}
        for index, layer in enumerate(model.layers[: depth + 1]):
            kind, below = type(layer), index < depth
            if (kind, below) not in kinds:
                call = self._passed(kind) if below else self._left(kind)
                kinds[kind, below] = type(kind.__name__, (kind,), {"__call__": call})
            layer.__class__ = kinds[kind, below]

    def _passed(self, kind: type[nn.Module]) -> Any:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._hidden is not None:
                return self._hidden
            return kind.__call__(layer, *args, **kwargs)

        return call

    def _left(self, kind: type[nn.Module]) -> Any:
        def call(layer: Any, *args: Any, **kwargs: Any) -> Any:
            if self._leaving:
                raise _LeftError(args[0])
            return kind.__call__(layer, *args, **kwargs)

        return call

    @contextmanager
    def entered(self, hidden: mx.array | None) -> Iterator[None]:
        """In it the model goes on from `hidden` (N, 1, D); None: as ever."""
        self._hidden = hidden
        try:
            yield
        finally:
            self._hidden = None

    def below(self, backbone: Backbone, tokens: np.ndarray) -> mx.array:
        """(T, D): what goes into the first adapted layer for a row of T tokens."""
        self._leaving = True
        try:
            backbone(mx.array(tokens)[None])
        except _LeftError as left:
            return left.hidden[0]
        finally:
            self._leaving = False
        raise TypeError("the model does not call its layers")


class _LeftError(Exception):
    def __init__(self, hidden: mx.array) -> None:
        super().__init__()
        self.hidden = hidden


class Frozen:
    """What the layers below the adapter give, computed or remembered.

    backbone: (1, T) tokens -> hidden states. offload: has the layers' arrays while they are not
    used. Raises TypeError for a model that cannot be entered.
    """

    def __init__(
        self,
        entrance: Entrance,
        backbone: Backbone,
        store: Store,
        offload: Offload | None = None,
    ) -> None:
        self.entrance = entrance
        self._backbone = backbone
        self._store = store
        self._offload = offload
        probe = self._compute(np.array([1, 2, 3, 5]))
        self._kind, self._width = probe.dtype, probe.shape[1]
        with entrance.entered(probe[None]):
            found = backbone(mx.array([[1, 2, 3, 5]]))
        expected = backbone(mx.array([[1, 2, 3, 5]]))
        if not mx.array_equal(found, expected).item():
            raise TypeError("the model's layers pass on more than hidden states")

    def hidden(self, examples: Sequence[Row], layout: Layout) -> mx.array:
        """(N, 1, D): what goes into the first adapted layer for the tokens of a batch."""
        rows = [self._row(np.asarray(example.tokens[:-1])) for example in examples]
        starts = np.cumsum([0, *(len(row) for row in rows[:-1])])
        found = mx.array(np.concatenate(rows)[starts[layout.origins] + layout.offsets])
        if self._offload is not None:
            self._offload.rest()  # always: answers may have been computed in between
        return found.view(self._kind)[:, None]

    def close(self) -> None:
        """Let another process write the store, and another run have the layers."""
        self._store.close()
        if self._offload is not None:
            self._offload.close()

    def _row(self, tokens: np.ndarray) -> np.ndarray:
        key = key_of(tokens)
        stored = self._store.get(key)
        if stored is None:
            stored = np.array(self._compute(tokens).view(self._raw)).tobytes()
            self._store.put(key, stored)
        kind = np.uint32 if self._raw == mx.uint32 else np.uint16  # NumPy has no bfloat16
        return np.frombuffer(stored, dtype=kind).reshape(-1, self._width)

    @property
    def _raw(self) -> mx.Dtype:
        return mx.uint32 if self._kind == mx.float32 else mx.uint16

    def _compute(self, tokens: np.ndarray) -> mx.array:
        hidden = self.entrance.below(self._backbone, tokens)
        mx.eval(hidden)
        return hidden
