"""Gradients of several runs in one pass over the frozen base that they share.

Their tokens go through the base behind one another, as segments that do not see each other, and
through each projection's adapters run by run. The sum of their losses is differentiated: a run's
adapter has a part in its own loss only, so that its gradient is that of the run alone.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten, tree_map_with_path, tree_unflatten

from mlx_ft import lora
from mlx_ft.losses import head_loss
from mlx_ft.models.forward import REFUSALS, Forward
from mlx_ft.models.segments import Segments

logger = logging.getLogger(__name__)

Sums = tuple[Any, mx.array, mx.array]  # of gradients, of losses, number of targets
Tensors = Sequence[mx.array]  # inputs (N, 1); positions, labels, weights (M,)


@dataclass(frozen=True)
class Runner:
    """A run as far as others compute with it.

    adapted: its adapters by the paths of their projections. base: tells its base from others.
    """

    model: nn.Module
    forward: Forward
    label_smoothing: float
    adapted: Mapping[str, nn.Module] = field(init=False)
    base: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "adapted", dict(lora.adapted(self.model)))
        _, first = next(iter(tree_flatten(self.model.parameters())))
        object.__setattr__(self, "base", id(first))

    @property
    def joins(self) -> bool:
        """Whether others' tokens can go with its own: not through a mixture of experts."""
        return self.forward.splits and all(map(lora.is_of_linear, self.adapted.values()))


@dataclass(frozen=True)
class Request:
    """A micro-batch of a run, to be added to `sums`. alone: how it is done without others."""

    runner: Runner
    sums: Sums
    tensors: Tensors
    cache: Segments
    alone: Callable[[], Sums]

    @property
    def kind(self) -> tuple[Any, ...]:
        """Equal for those that can be computed in one pass."""
        frozen = self.runner.forward.frozen
        entered = None if frozen is None else frozen.entrance.depth
        return self.runner.joins or id(self), self.runner.base, entered


class Joined(nn.Module):
    """A projection whose input (N, 1, D) is cut into runs, each with its adapter or none.

    adapters: those that there are; owners: the runs that they are of. ends: where each run's
    tokens end.
    """

    def __init__(
        self,
        linear: nn.Module,
        adapters: Sequence[nn.Module],
        owners: Sequence[int],
        ends: Sequence[int],
    ) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self.adapters = list(adapters)
        self._owners = dict(zip(owners, self.adapters, strict=True))
        self._ends = list(ends)

    def __call__(self, x: mx.array) -> mx.array:
        """(N, 1, outputs). Raises TypeError when the tokens are not behind one another."""
        if x.shape[0] != self._ends[-1]:
            raise TypeError("the model has changed the order of its tokens")
        parts = [*mx.split(self.linear(x), self._ends[:-1])]
        inputs = [*mx.split(x, self._ends[:-1])]
        for owner, adapter in self._owners.items():
            low = adapter.dropout(inputs[owner]) @ adapter.lora_a
            delta = adapter.scale * (low @ adapter.lora_b)
            parts[owner] = parts[owner] + delta.astype(x.dtype)
        return mx.concatenate(parts)


def compute(requests: Sequence[Request], refused: set[Any]) -> list[Sums | Exception]:
    """The answer to each request, or what went wrong with it.

    refused: the kinds that a model did not stand before, which are not tried again; added to.
    """
    kinds: defaultdict[Any, list[int]] = defaultdict(list)
    for index, request in enumerate(requests):
        kinds[request.kind].append(index)
    found: dict[int, Sums | Exception] = {}
    for kind, indices in kinds.items():
        answers = _answers([requests[at] for at in indices], kind, refused)
        found.update(zip(indices, answers, strict=True))
    return [found[index] for index in range(len(requests))]


def _answers(
    requests: Sequence[Request], kind: Any, refused: set[Any]
) -> Sequence[Sums | Exception]:
    if len(requests) > 1 and kind not in refused:
        try:
            return summed(requests)
        except REFUSALS as error:
            refused.add(kind)
            logger.warning("these trials are computed one by one: %s", error)
        except Exception as error:  # memory that runs out: each takes smaller batches
            return [error for _ in requests]
    answers: list[Sums | Exception] = []
    for request in requests:
        try:
            answers.append(request.alone())
        except Exception as error:
            answers.append(error)
    return answers


def summed(requests: Sequence[Request]) -> list[Sums]:
    """`sums` of each request with those of its micro-batch, from one pass. All of one `kind`.

    Raises one of REFUSALS for a model that does not stand it.
    """
    runners = [request.runner for request in requests]
    first = runners[0]
    inputs, positions = _behind(requests)
    cache = Segments.joined([request.cache for request in requests])
    sizes = [len(request.tensors[0]) for request in requests]
    targets = np.cumsum([len(request.tensors[1]) for request in requests]).tolist()

    def loss() -> tuple[mx.array, list[tuple[mx.array, mx.array]]]:
        hidden = mx.split(first.forward.at(inputs, positions, cache), targets[:-1])
        each = [
            head_loss(
                first.forward.head,
                own,
                request.tensors[2],
                request.tensors[3],
                request.runner.label_smoothing,
                train=True,
            )
            for own, request in zip(hidden, requests, strict=True)
        ]
        return sum((total for total, _ in each), mx.array(0.0)), each

    with _joined(runners, np.cumsum(sizes).tolist()) as owners:
        (_, each), gradients = nn.value_and_grad(first.model, loss)()
        by_run = _by_run(gradients, owners, len(runners))
    answers = [
        _added(request.sums, totals[0], totals[1], own)
        for request, totals, own in zip(requests, each, by_run, strict=True)
    ]
    mx.eval(answers)
    return answers


def _behind(requests: Sequence[Request]) -> tuple[mx.array, mx.array]:
    """All inputs, one behind the other, and the targets' positions in them."""
    inputs = [request.tensors[0] for request in requests]
    starts = np.cumsum([0, *(len(array) for array in inputs[:-1])]).tolist()
    positions = [
        request.tensors[1] + start for request, start in zip(requests, starts, strict=True)
    ]
    return mx.concatenate(inputs), mx.concatenate(positions)


@contextmanager
def _joined(runners: Sequence[Runner], ends: Sequence[int]) -> Iterator[dict[str, list[int]]]:
    """The first one's model with the adapters of all; yields whose they are, by path."""
    model, own = runners[0].model, runners[0].adapted
    paths = {path: None for runner in runners for path in runner.adapted}
    bare = {path: module for path, module in model.named_modules() if path in paths}
    owners = {
        path: [index for index, runner in enumerate(runners) if path in runner.adapted]
        for path in paths
    }
    joined = {
        path: Joined(
            bare[path].linear if path in own else bare[path],
            [runners[index].adapted[path] for index in indices],
            indices,
            ends,
        )
        for path, indices in owners.items()
    }
    model.update_modules(tree_unflatten([*joined.items()]))
    try:
        yield owners
    finally:
        model.update_modules(tree_unflatten([*bare.items()]))


def _by_run(
    gradients: Any, owners: Mapping[str, Sequence[int]], count: int
) -> list[dict[str, mx.array]]:
    """Each run's gradients by the names that its own model has for them."""
    found: list[dict[str, mx.array]] = [{} for _ in range(count)]
    for name, gradient in cast(list[tuple[str, mx.array]], tree_flatten(gradients)):
        path, place = name.rsplit(".adapters.", 1)
        number, leaf = place.split(".", 1)
        found[owners[path][int(number)]][f"{path}.{leaf}"] = gradient
    return found


def _added(sums: Sums, total: mx.array, count: mx.array, own: Mapping[str, mx.array]) -> Sums:
    gradients, totals, counts = sums
    added = tree_map_with_path(lambda path, gradient: gradient + own[path], gradients)
    return added, totals + total, counts + count
