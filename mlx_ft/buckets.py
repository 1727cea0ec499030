"""The adapter's arrays joined to a few long ones, so that an update is few operations.

An adapter has hundreds of small arrays, and a rule some twenty operations for each of them, which
cost more than what they compute. A rule that treats every number alike can take them joined.
"""

from __future__ import annotations

import math
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten, tree_unflatten

MOST = 2**18  # numbers in a bucket: 1 MB, which stay in a processor's cache
AT_ONCE = 20  # buckets that are worked on at once: MLX's MLX_BFS_MAX_WIDTH
ALIKE = (optimizers.Adam, optimizers.Lion, optimizers.SGD)  # AdamW is an Adam


class Buckets:
    """How the arrays of a tree lie in buckets.

    parameters: the adapter's. rule: what will update them; one that looks at whole matrices
    (Adafactor, Muon) gets the tree as it is.
    """

    def __init__(self, parameters: Any, rule: optimizers.Optimizer) -> None:
        leaves: Any = tree_flatten(parameters)
        self._shapes: dict[str, tuple[int, ...]] = {name: leaf.shape for name, leaf in leaves}
        self._members: dict[str, list[str]] = {}
        if isinstance(rule, ALIKE):
            self._fill({name: leaf.size for name, leaf in leaves})

    def _fill(self, sizes: dict[str, int]) -> None:
        room = 0
        for name, size in sizes.items():
            if size > room:
                bucket = f"bucket{len(self._members)}"
                self._members[bucket], room = [], MOST
            self._members[bucket].append(name)
            room -= size

    def join(self, tree: Any) -> Any:
        """The buckets by their names; of a rule that takes none, `tree`."""
        if not self._members:
            return tree
        leaves: Any = dict(tree_flatten(tree))
        return {
            bucket: mx.concatenate([leaves[name].reshape(-1) for name in names])
            for bucket, names in self._members.items()
        }

    def split(self, joined: Any) -> Any:
        """The tree that `join` was given."""
        if not self._members:
            return joined
        return tree_unflatten([*self._parts(joined).items()])

    def _parts(self, joined: dict[str, mx.array]) -> dict[str, mx.array]:
        found: dict[str, mx.array] = {}
        for bucket, names in self._members.items():
            shapes = [self._shapes[name] for name in names]
            ends = [*accumulate(map(math.prod, shapes))]
            parts = zip(names, mx.split(joined[bucket], ends[:-1]), shapes, strict=True)
            found |= {name: part.reshape(shape) for name, part, shape in parts}
        return found

    def named(self, state: Any) -> dict[str, mx.array]:
        """An optimizer's state with the names that it has without buckets: of each array its own.

        So a checkpoint does not depend on the order in which a model lists its arrays.
        """
        leaves: Any = dict(tree_flatten(state))
        if not self._members:
            return dict(leaves)
        found = {name: leaf for name, leaf in leaves.items() if name not in self._of_buckets(state)}
        for moment in self._moments(state):
            parts = self._parts({bucket: state[bucket][moment] for bucket in self._members})
            found |= {f"{name}.{moment}": part for name, part in parts.items()}
        return found

    def unnamed(self, named: dict[str, mx.array], state: Any) -> dict[str, mx.array]:
        """What `named` gave, by the flattened names of `state`."""
        if not self._members:
            return dict(named)
        found = {name: leaf for name, leaf in named.items() if name in state}
        for moment in self._moments(state):
            for bucket, names in self._members.items():
                parts = [named[f"{name}.{moment}"].reshape(-1) for name in names]
                found[f"{bucket}.{moment}"] = mx.concatenate(parts)
        return found

    def _moments(self, state: Any) -> list[str]:
        return [*state[next(iter(self._members))]]

    def _of_buckets(self, state: Any) -> set[str]:
        return {f"{bucket}.{moment}" for bucket in self._members for moment in state[bucket]}
