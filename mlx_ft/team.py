"""Several processes train one adapter: each computes the gradient of its share of the rows.

`mlx.launch` starts them. The process of rank 0 leads: it is the run, with its folder, validations,
optimizer and checkpoints. Before a step it sends out its adapter, and after it all sums are added
up. So the others hold nothing that could come to differ, and to go on is the leader's alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import accumulate
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from mlx_ft import lora, runtime
from mlx_ft.errors import ConfigError, TeamError
from mlx_ft.memory_watch import is_out_of_memory
from mlx_ft.step import Sums

HEADER = 2  # numbers before the adapter: first micro-step and how many; none: that was all


@dataclass(frozen=True)
class Order:
    """The micro-batches of an optimizer step."""

    first: int
    count: int

    @property
    def micro_steps(self) -> range:
        """Counted from the beginning of the run."""
        return range(self.first, self.first + self.count)


class Team:
    """The processes of one run. rank: this one's; 0 leads. Raises TeamError when one is gone."""

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank, self.size = int(group.rank()), int(group.size())
        self._broken = False  # what is sent through a broken ring may never come back
        self._called = False  # the others will send their sums before they listen again

    def share(self, rows: np.ndarray) -> np.ndarray:
        """Rows of a batch for this process; of like length, as a batch lies by length."""
        return rows[self.rank :: self.size]

    def agree(self, what: Mapping[str, Any] | str) -> None:
        """Raise ConfigError in every process unless all have the same `what`."""
        # In pieces of 16 bits, whose sums are exact.
        digest = np.frombuffer(sha256(repr(what).encode()).digest(), np.uint16)
        mine = mx.array(digest.astype(np.int32))
        if not mx.array_equal(self._sum(mine), mine * self.size).item():
            raise ConfigError(
                "the processes of this run differ in configuration, data or model. Give each of "
                "them the same arguments and files, on unlike machines also numbers for what is "
                "auto (memory_profile.micro_batch_size, device)"
            )

    def call(self, order: Order, adapter: Mapping[str, mx.array]) -> None:
        """As the leader: send out the next step and the adapter that it is taken from."""
        self._sum(mx.array([order.first, order.count], mx.int32))
        self._sum(_joined(adapter.values()))
        self._called = True

    def end(self) -> None:
        """As the leader: there are no more steps.

        In the middle of one nothing can be said: the others learn of it when this process is gone.
        """
        if not self._broken and not self._called:
            self._sum(mx.zeros(HEADER, mx.int32))

    @contextmanager
    def led(self) -> Iterator[None]:
        """While the leader trains; afterwards the others are told, whatever happened."""
        try:
            yield
        finally:
            with suppress(TeamError):  # nobody is left to be told
                self.end()

    def listen(self, model: nn.Module) -> Order | None:
        """As a follower: take over the leader's adapter for the next step; None: no more."""
        header: Any = self._sum(mx.zeros(HEADER, mx.int32)).tolist()
        first, count = header
        if not count:
            return None
        shapes = {name: array.shape for name, array in lora.parameters(model).items()}
        size = sum(int(np.prod(shape)) for shape in shapes.values())
        arrays = _parted(self._sum(mx.zeros(size)), [*shapes.values()])
        model.update(tree_unflatten([*zip(shapes, arrays, strict=True)]))
        return Order(first, count)

    def total(self, sums: Sums) -> Sums:
        """Of all processes."""
        gradients, *counts = sums
        leaves: Any = tree_flatten(gradients)
        names, arrays = zip(*leaves, strict=True)
        shapes = [*(array.shape for array in arrays), (), ()]
        found = _parted(self._sum(_joined([*arrays, *counts])), shapes)
        self._called = False
        return tree_unflatten([*zip(names, found, strict=False)]), found[-2], found[-1]

    def _sum(self, array: mx.array) -> mx.array:
        try:
            found = mx.distributed.all_sum(array, group=self._group)
            mx.eval(found)
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise
            self._broken = True
            raise TeamError(
                "another process of this run is gone, or cannot be reached. The run can go on "
                "from here with as many as there are then"
            ) from error
        return found


def _joined(arrays: Any) -> mx.array:
    return mx.concatenate([array.reshape(-1).astype(mx.float32) for array in arrays])


def _parted(joined: mx.array, shapes: Sequence[tuple[int, ...]]) -> list[mx.array]:
    ends = [*accumulate(int(np.prod(shape)) for shape in shapes)]
    parts = mx.split(joined, ends[:-1])
    return [part.reshape(shape) for part, shape in zip(parts, shapes, strict=True)]


def join() -> Team | None:
    """The team that this process is one of; None: it is alone. Raises TeamError."""
    if not runtime.one_of_several():
        return None
    try:
        group = mx.distributed.init(strict=True)
    except (RuntimeError, ValueError) as error:
        raise TeamError(f"the other processes of this run cannot be reached: {error}") from error
    return Team(group) if group.size() > 1 else None
