"""Which base model is in memory, with which adapters, and who answers in its name."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlx_ft.engine.engine import Engine, Limits
from mlx_ft.engine.request import Unknown
from mlx_ft.serve.bases import BASE, Base, Bases, Model, free_memory
from mlx_ft.serve.current import Current, Target
from mlx_ft.serve.errors import Away, Refused
from mlx_ft.serve.metrics import Metrics
from mlx_ft.serve.names import BadName
from mlx_ft.serve.shelf import Adapter, Shelf
from mlx_ft.serve.store import Missing, Store

logger = logging.getLogger(__name__)

DRAINING = 300.0  # seconds that answers have to end before their model goes


@dataclass(frozen=True)
class Settings:
    """Of a server. base: the name of the model that it begins with. named: models beside the
    recipes. memory: bytes for serving and training together. tracking: overrides of every job.
    """

    home: Path
    base: str
    cache_dir: Path
    tracking: tuple[str, ...] = ()
    named: Mapping[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)
    context: int | None = None
    answer: int = 1024
    memory: int | None = None
    lora_routes: bool = False
    webhook: str | None = None


class State:
    """The base in use, its adapters, and which of them answers in its name. From any thread."""

    def __init__(self, settings: Settings, store: Store, bases: Bases, shelf: Shelf) -> None:
        self.settings, self.store, self.bases, self.shelf = settings, store, bases, shelf
        self.metrics = Metrics()
        self.began = int(time.time())
        self.closing = threading.Event()
        self._lock = threading.RLock()  # of what follows
        self._base = self._known(settings.base)
        self._current: Current | None = None
        self._away: str | None = None
        self._active: Adapter | None = None

    def start(self) -> None:
        """Begin to load the base."""
        with self._lock:
            if self._current is None and not self.closing.is_set():
                self._current = Current(self.bases, self._base, self.settings.limits)
                self._away = None

    @property
    def base(self) -> Base:
        """The one in use, or that comes back."""
        return self._base

    @property
    def active(self) -> str | None:
        """The adapter that answers in the name of the base."""
        active = self._active
        return None if active is None else active.name

    @property
    def current(self) -> Current:
        """What is in memory. Raises Away."""
        found = self._current
        if found is None:
            raise Away(self._away or "the server is being closed", 30)
        return found

    @property
    def is_ready(self) -> bool:
        """Whether a request is answered at once."""
        found = self._current
        return found is not None and found.is_ready and not self.closing.is_set()

    def target(self, name: str) -> Target:
        """What answers to a model's name, loaded if need be; another base drains this one first.

        Raises Refused, Away, AdapterError, ModelError.
        """
        with self._lock:
            base, adapter = self._meant(name)
            current = self._at(base)
            if adapter is not None:
                self._wait(current)
                current.have(adapter)
        model = self._wait(current)
        return Target(
            current.engine, current.prompts(adapter),
            None if adapter is None else adapter.name, adapter.name if adapter else base.name,
            model.context, adapter.defaults if adapter else {}, f"fp_{model.digest[:12]}",
        )  # fmt: skip

    def activate(self, name: str) -> Adapter:
        """Let an adapter answer in the name of its base. Raises as `target`, Missing."""
        with self._lock:
            adapter = self.shelf.find(name)
            current = self._at(self._base_of(adapter))
            self._wait(current)
            current.have(adapter)
            self._active = adapter
            return adapter

    def deactivate(self) -> str | None:
        """Let the base answer for itself again; returns which adapter did."""
        with self._lock:
            active, self._active = self._active, None
            if active is not None and self._current is not None:
                self._current.drop(active.name)
            return None if active is None else active.name

    def drop(self, name: str) -> bool:
        """Unload an adapter, for it is gone or another one now; False when it was not loaded."""
        with self._lock:
            if self._active is not None and self._active.name == name:
                self._active = None
            return self._current is not None and self._current.drop(name)

    def refresh(self, name: str) -> None:
        """The adapter of this name was replaced: have the new one wherever the old one was."""
        with self._lock:
            current = self._current
            if current is None or name not in current.loaded:
                return
            was_active = self._active is not None and self._active.name == name
            self.drop(name)
            if was_active:
                self.activate(name)

    def loaded(self, name: str) -> bool:
        """Whether an adapter is in memory, or registered to come there at once."""
        current = self._current
        return current is not None and name in current.loaded

    def leave(self, why: str) -> None:
        """Answer what was taken, then let go of the model and its memory."""
        with self._lock:
            current, self._current, self._away = self._current, None, why
        if current is not None:
            _end(current.engine)
            del current
            free_memory()

    def come_back(self) -> None:
        """Have the base again, with the adapter that answered in its name."""
        with self._lock:
            self.start()
            active = self._active
            if active is None or self._current is None:
                return
        try:
            self.activate(active.name)
        except Exception as error:  # deleted meanwhile, or its base cannot be read any more
            logger.warning("the adapter %s does not come back: %s", active.name, error)
            self._active = None

    def close(self) -> None:
        """For good."""
        self.closing.set()
        self.leave("the server is being closed")

    # What follows holds the lock.

    def _known(self, name: str) -> Base:
        base = self.bases.find(name)
        if base is None:
            raise Unknown(f"there is no model {name[:100]!r}")
        return base

    def _meant(self, name: str) -> tuple[Base, Adapter | None]:
        """(base, adapter) of a model's name. Raises Refused."""
        if name == BASE:
            return self._base, None
        base = self.bases.find(name)
        if base is not None:
            return base, self._now_active() if base == self._base else None
        try:
            adapter = self.shelf.find(name)
        except (Missing, BadName):
            raise Refused(
                f"The model {name[:100]!r} does not exist. GET /v1/models lists what there is",
                404,
                code="model_not_found",
                param="model",
            ) from None
        return self._base_of(adapter), adapter

    def _now_active(self) -> Adapter | None:
        """As it is now: its defaults may have been set since it became active."""
        try:
            return None if self._active is None else self.shelf.find(self._active.name)
        except Missing:
            return None

    def _base_of(self, adapter: Adapter) -> Base:
        base = None if adapter.base is None else self.bases.find(adapter.base)
        return self._base if base is None else base

    def _at(self, base: Base) -> Current:
        """The base in memory, after its predecessor has answered what it has taken."""
        if base == self._base:
            return self.current
        _ = self.current  # while there is no memory for the one there is none for another
        if not self.bases.is_here(base):
            raise absent(base)
        logger.info("from %s to %s", self._base.name, base.name)
        self.leave(f"the model changes to {base.name}")
        self._base, self._active = base, None
        self.start()
        return self.current

    def _wait(self, current: Current) -> Model:
        try:
            return current.model
        except TimeoutError:
            raise Away(f"{current.base.name} is being loaded", 10) from None
        except Exception as error:  # whatever its files make the readers raise
            logger.error("%s cannot be loaded: %s", current.base.name, error)
            raise Refused(
                f"{current.base.name} cannot be loaded; the server's log says why", 500,
                code="model_failed",
            ) from error  # fmt: skip


def absent(base: Base) -> Refused:
    """What is said of a model that has to be downloaded first."""
    return Refused(
        f"The model {base.name!r} ({base.path}) is not on this machine. Download it: "
        f"POST /api/download-model/{base.name}",
        404,
        code="model_not_downloaded",
        param="model",
    )


def _end(engine: Engine) -> None:
    engine.close(timeout=DRAINING)
    engine.close(drain=False, timeout=DRAINING)
