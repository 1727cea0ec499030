"""Adapters side by side on one base model: each row of a batch goes through its own.

An adapted projection computes y = W x + s_i B_i A_i x, where i is the row's adapter. The matrices
of all of them lie in one stack a projection, padded to the largest rank, and each row's product
takes its own by number (S-LoRA, arXiv:2311.03285, does so on CUDA).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_ft import lora
from mlx_ft.errors import AdapterError

BASE = 0  # the slot of rows without an adapter: zeros


@dataclass
class Route:
    """Which slots the rows of the current pass take. alike: one for all of them; None: several."""

    alike: int | None = BASE
    rows: mx.array | None = None


class Routed(nn.Module):
    """A projection with a stack of adapters."""

    def __init__(self, linear: nn.Module, route: Route) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.linear = linear
        self._route = route
        self._ranks: dict[int, int] = {}
        self._a: mx.array | None = None  # (slots, inputs, largest rank)
        self._b: mx.array | None = None  # (slots, largest rank, outputs), times the scale

    def __call__(self, x: mx.array) -> mx.array:
        """(B, T, inputs) -> (B, T, outputs)."""
        y: mx.array = self.linear(x)
        alike, rows = self._route.alike, self._route.rows
        if alike is not None:
            if alike not in self._ranks:
                return y
            assert self._a is not None
            assert self._b is not None
            rank = self._ranks[alike]
            delta = (x @ self._a[alike, :, :rank]) @ self._b[alike, :rank]
        elif self._a is not None and self._b is not None:
            low = mx.gather_mm(x, self._a, rhs_indices=rows)
            delta = mx.gather_mm(low, self._b, rhs_indices=rows)
        else:
            return y
        return y + delta.astype(y.dtype)

    def put(self, slot: int, a: mx.array, b: mx.array) -> None:
        """Set a slot: a (inputs, rank), b (rank, outputs), times the scale."""
        self._ranks[slot] = a.shape[1]
        self._a, self._b = self._room(slot + 1, a, b)
        self._a[slot], self._b[slot] = 0, 0
        self._a[slot, :, : a.shape[1]] = a
        self._b[slot, : b.shape[0]] = b
        mx.eval(self._a, self._b)

    def take_off(self, slot: int) -> None:
        """Make it compute what the base does."""
        if self._ranks.pop(slot, None) is None:
            return
        if self._ranks and self._a is not None and self._b is not None:
            self._a[slot], self._b[slot] = 0, 0
            mx.eval(self._a, self._b)
        else:
            self._a = self._b = None

    def grow(self, slots: int) -> None:
        """Have so many slots at least, so that every row's number is one."""
        if self._a is not None and self._b is not None and len(self._a) < slots:
            self._a, self._b = self._room(slots, self._a[0], self._b[0])
            mx.eval(self._a, self._b)

    def _room(self, slots: int, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        """The stacks, with room for so many slots and for the largest rank."""
        rank = max(self._ranks.values())
        if self._a is None or self._b is None:
            wider = mx.zeros((slots, a.shape[0], rank), a.dtype)
            return wider, mx.zeros((slots, rank, b.shape[1]), b.dtype)
        more = max(0, slots - len(self._a))
        wide = max(0, rank - self._a.shape[2])
        return (
            mx.pad(self._a, [(0, more), (0, 0), (0, wide)]),
            mx.pad(self._b, [(0, more), (0, wide), (0, 0)]),
        )

    @property
    def nbytes(self) -> int:
        """Of the stack."""
        return sum(array.nbytes for array in (self._a, self._b) if array is not None)


class Slots:
    """The adapters that are on a bare, frozen model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.route = Route()
        self._routed: dict[str, Routed] = {}
        self._slots: dict[str, int] = {}
        self._paths: dict[str, list[str]] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._slots

    @property
    def names(self) -> tuple[str, ...]:
        """Of what is here."""
        return tuple(self._slots)

    @property
    def nbytes(self) -> int:
        """Of all stacks."""
        return sum(routed.nbytes for routed in self._routed.values())

    def load(self, name: str, folder: Path) -> None:
        """Put the adapter saved in `folder` on the model, in place of one of that name.

        Raises AdapterError that lists what does not fit; the model is then as before.
        """
        with self._bare():
            adapter = lora.load(self.model, folder)
            try:
                found = {
                    path: (layer.lora_a, layer.lora_b * adapter.scale)
                    for path, layer in lora.adapted(self.model)
                    if lora.is_of_linear(layer)
                }
                others = len(lora.adapted(self.model)) - len(found)
                mx.eval(found)
            finally:
                lora.detach(self.model)
        if others:
            raise AdapterError(
                f"the adapter in {folder} sits on {others} projections of experts, which cannot be "
                "served beside others. Fuse it: mlx-ft fuse"
            )
        slot = self._slots.get(name, self._free())
        self.unload(name)
        self._slots[name], self._paths[name] = slot, [*found]
        for path, (a, b) in found.items():
            self._at(path).put(slot, a, b)
        for routed in self._routed.values():
            routed.grow(max(self._slots.values()) + 1)

    def unload(self, name: str) -> None:
        """Take it off; nothing if it is not here."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        for path in self._paths.pop(name):
            self._routed[path].take_off(slot)

    def take(self, names: Sequence[str | None]) -> None:
        """Let the rows of the next passes go through these; None is the base."""
        slots = [BASE if name is None else self._slots[name] for name in names]
        if len(set(slots)) == 1:
            self.route.alike, self.route.rows = slots[0], None
        else:
            self.route.alike, self.route.rows = None, mx.array(slots, mx.uint32)

    @contextmanager
    def _bare(self) -> Iterator[None]:
        """The model as it came, while something else is attached to it."""
        routed = self._routed.items()
        self.model.update_modules(tree_unflatten([(path, one.linear) for path, one in routed]))
        try:
            yield
        finally:
            self.model.update_modules(tree_unflatten([*routed]))

    def _free(self) -> int:
        used = set(self._slots.values())
        return next(slot for slot in range(1, len(used) + 2) if slot not in used)

    def _at(self, path: str) -> Routed:
        if path not in self._routed:
            modules: dict[str, Any] = dict(self.model.named_modules())
            routed = Routed(modules[path], self.route)
            self.model.update_modules(tree_unflatten([(path, routed)]))
            self._routed[path] = routed
        return self._routed[path]
