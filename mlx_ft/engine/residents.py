"""The adapters that are on the model, within a budget; they come back when they are asked for."""

from __future__ import annotations

import time
import zlib
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mlx_ft import lora_files
from mlx_ft.engine.request import Replaced
from mlx_ft.engine.slots import Slots


@dataclass(eq=False)
class Adapter:
    """One that was loaded. key: tells it from another one that had its name. users: requests that
    are waiting or answered; there while it has some, even when unloaded. seen: what its files held
    when it was loaded, for they may be read again.
    """

    name: str
    key: str
    folder: Path
    users: int = 0
    used: float = 0.0
    seen: tuple[int, ...] | None = None


class Residents:
    """What of all that was loaded has a slot now. Used on the engine's thread alone."""

    def __init__(self, slots: Slots) -> None:
        self._slots = slots
        self._here: dict[str, Adapter] = {}

    def bring(self, adapter: Adapter, budget: int) -> None:
        """Have it on the model; the longest unused ones go when all have more bytes than that.

        Raises AdapterError; Replaced when its folder has another one by now.
        """
        adapter.used = time.monotonic()
        if adapter.key in self._slots:
            return
        seen = _contents(adapter.folder)
        if adapter.seen is not None and seen != adapter.seen:
            raise Replaced(
                f"the files of the adapter {adapter.name!r} have changed since it was loaded, and "
                "it was in memory no longer. Ask again for what is there now"
            )
        self._slots.load(adapter.key, adapter.folder)
        adapter.seen = seen
        self._here[adapter.key] = adapter
        while self._slots.nbytes > budget:
            unused = [one for one in self._here.values() if one is not adapter and not one.users]
            if not unused:
                break
            self._take_off(min(unused, key=lambda one: one.used))

    def forget_all_but(self, wanted: Collection[str]) -> list[str]:
        """Take off what was unloaded, once nobody waits for its answers; the keys of these.

        wanted: keys of what was not unloaded.
        """
        gone = [one for one in self._here.values() if one.key not in wanted and not one.users]
        for adapter in gone:
            self._take_off(adapter)
        return [adapter.key for adapter in gone]

    def _take_off(self, adapter: Adapter) -> None:
        self._slots.unload(adapter.key)
        del self._here[adapter.key]


def _contents(folder: Path) -> tuple[int, ...]:
    """What tells an adapter's files from others: a copy of them is the same."""
    found = []
    for name in (lora_files.SETTINGS, lora_files.WEIGHTS):
        with suppress(OSError):  # reading it says what is wrong
            found.append(zlib.crc32((folder / name).read_bytes()))
    return tuple(found)
