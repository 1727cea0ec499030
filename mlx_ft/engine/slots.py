"""Adapters side by side on one base model: each row of a batch goes through its own.

An adapted projection computes y = W x + s_i B_i A_i x, where i is the row's adapter. The matrices
of all of them lie in one stack a projection, padded to the largest rank, and each row's product
takes its own by number (S-LoRA, arXiv:2311.03285, does so on CUDA).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_unflatten

from mlx_ft import lora, lora_files
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

    @property
    def arrays(self) -> list[mx.array]:
        """The stacks, which nothing has evaluated yet after a change."""
        return [array for array in (self._a, self._b) if array is not None]

    def put(self, slot: int, a: mx.array, b: mx.array) -> None:
        """Set a slot: a (inputs, rank), b (rank, outputs), times the scale."""
        self._ranks[slot] = a.shape[1]
        self._a, self._b = self._room(slot + 1, a, b)
        rank = self._a.shape[2]
        self._a[slot] = mx.pad(a, [(0, 0), (0, rank - a.shape[1])])
        self._b[slot] = mx.pad(b, [(0, rank - b.shape[0]), (0, 0)])

    def take_off(self, slot: int, last: int) -> None:
        """Forget a slot; the last one takes its number. The stacks are then as small as can be."""
        self._ranks.pop(slot, None)
        if last != slot and last in self._ranks:
            self._ranks[slot] = self._ranks.pop(last)
        if not self._ranks:
            self._a = self._b = None
        if self._a is None or self._b is None:
            return
        kept = mx.array([last if at == slot else at for at in range(last)])
        rank = max(self._ranks.values())
        self._a = mx.contiguous(self._a[kept][:, :, :rank])
        self._b = mx.contiguous(self._b[kept][:, :rank])

    def grow(self, slots: int) -> None:
        """Have so many slots at least, so that every row's number is one."""
        if self._a is not None and self._b is not None and len(self._a) < slots:
            self._a, self._b = self._room(slots, self._a[0], self._b[0])

    def _room(self, slots: int, a: mx.array, b: mx.array) -> tuple[mx.array, mx.array]:
        """The stacks, with room for so many slots and for the largest rank."""
        rank = max(self._ranks.values())
        if self._a is None or self._b is None:
            wider = mx.zeros((slots, a.shape[0], rank), a.dtype)
            return wider, mx.zeros((slots, rank, b.shape[1]), b.dtype)
        more = max(0, slots - len(self._a))
        wide = max(0, rank - self._a.shape[2])
        if not more and not wide:
            return self._a, self._b
        return (
            mx.pad(self._a, [(0, more), (0, 0), (0, wide)]),
            mx.pad(self._b, [(0, more), (0, wide), (0, 0)]),
        )

    @property
    def nbytes(self) -> int:
        """Of the stack."""
        return sum(array.nbytes for array in self.arrays)


class Slots:
    """The adapters that are on a bare, frozen model."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.route = Route()
        self._routed: dict[str, Routed] = {}
        self._slots: dict[str, int] = {}
        names = {id(module): path for path, module in model.named_modules()}
        self._layers = [
            {key: (f"{names[id(layer)]}.{key}", module) for key, module in lora.projections(layer)}
            for layer in model.layers
        ]

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
        adapter, arrays = lora_files.read(folder, [[*layer] for layer in self._layers])
        chosen = self._layers[max(0, len(self._layers) - adapter.num_layers) :]
        places = dict(layer[key] for layer in chosen for key in layer if key in adapter.keys)
        if others := sum(not _is_plain(module) for module in places.values()):
            raise AdapterError(
                f"the adapter in {folder} sits on {others} projections of experts, which cannot be "
                "served beside others. Fuse it: mlx-ft fuse"
            )
        expected: dict[str, tuple[int, ...]] = {}
        for path, module in places.items():
            inputs, outputs = _size(module)
            expected[f"{path}.lora_a"] = (inputs, adapter.rank)
            expected[f"{path}.lora_b"] = (adapter.rank, outputs)
        if faults := lora_files.mismatches(expected, arrays):
            raise AdapterError(f"the adapter in {folder} does not fit this model", faults)
        self.unload(name)
        slot = self._slots[name] = len(self._slots) + 1
        try:
            self._route_through(places)
            for path in places:
                a, b = arrays[f"{path}.lora_a"], arrays[f"{path}.lora_b"]
                self._routed[path].put(slot, a, b * adapter.scale)
            for routed in self._routed.values():
                routed.grow(slot + 1)
            mx.eval([routed.arrays for routed in self._routed.values()])  # in one pass
        except BaseException:  # such as memory that runs out: half of it is none
            self.unload(name)
            raise

    def unload(self, name: str) -> None:
        """Take it off; nothing if it is not here."""
        slot = self._slots.pop(name, None)
        if slot is None:
            return
        last = len(self._slots) + 1
        for routed in self._routed.values():
            routed.take_off(slot, last)
        self._slots = {one: slot if at == last else at for one, at in self._slots.items()}
        mx.eval([routed.arrays for routed in self._routed.values()])

    def take(self, names: Sequence[str | None]) -> None:
        """Let the rows of the next passes go through these; None is the base."""
        slots = [BASE if name is None else self._slots[name] for name in names]
        if len(set(slots)) == 1:
            self.route.alike, self.route.rows = slots[0], None
        else:
            self.route.alike, self.route.rows = None, mx.array(slots, mx.uint32)

    def _route_through(self, places: Mapping[str, nn.Module]) -> None:
        """Let each of these projections have a stack."""
        new = {
            path: Routed(m, self.route) for path, m in places.items() if path not in self._routed
        }
        self.model.update_modules(tree_unflatten([*new.items()]))
        self._routed |= new


def _is_plain(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.QuantizedLinear))


def _size(module: nn.Module) -> tuple[int, int]:
    """(inputs, outputs) of a projection, whose weights may be packed."""
    outputs, inputs = module.weight.shape
    if isinstance(module, nn.QuantizedLinear):
        inputs = inputs * 32 // module.bits
    return inputs, outputs
