"""A base model in memory with its adapters, and what a request is answered with."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from mlx_ft.engine.engine import Engine, Limits
from mlx_ft.engine.request import Unknown
from mlx_ft.errors import AdapterError
from mlx_ft.serve.bases import Base, Bases, Model
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.prompts import Prompts, with_template
from mlx_ft.serve.shelf import Adapter, check

LOADING = 120.0  # seconds that a request waits for a model
TEMPLATES = 4  # chat templates beside the model's own that are kept


class Current:
    """A base model on its way into memory, or there. loaded: stamps of its adapters, by name."""

    def __init__(self, bases: Bases, base: Base, limits: Limits) -> None:
        self.base = base
        self.loaded: dict[str, str] = {}
        self._templates: dict[str, Prompts] = {}
        self._lock = threading.Lock()
        self._model: Model | None = None
        self._own: Prompts | None = None

        def make() -> tuple[Any, Any]:
            self._model = model = bases.load(base)
            self._own = Prompts(model.tokenizer, model.vocabulary)
            return model.model, model.tokenizer

        self.engine = Engine(make, limits)

    @property
    def model(self) -> Model:
        """Once it is there. Raises what loading it raised, TimeoutError."""
        self.engine.ready(LOADING)
        assert self._model is not None
        return self._model

    @property
    def is_ready(self) -> bool:
        """Whether it answers at once."""
        try:
            self.engine.ready(0)
        except Exception:
            return False
        return True

    def prompts(self, adapter: Adapter | None) -> Prompts:
        """With the chat template that the adapter was trained with."""
        model, own = self.model, self._own
        assert own is not None
        text = adapter.template if adapter is not None else None
        if text is None or text == own.template:
            return own
        with self._lock:  # several threads ask
            if text not in self._templates:
                while len(self._templates) >= TEMPLATES:
                    self._templates.pop(next(iter(self._templates)))
                made = with_template(model.folder, model.eos, model.vocabulary, text)
                self._templates[text] = made
            return self._templates[text]

    def have(self, adapter: Adapter) -> None:
        """Load an adapter unless it is there. Raises AdapterError."""
        known = adapter.name in self.engine.adapters  # it forgets what was replaced behind it
        if known and self.loaded.get(adapter.name) == adapter.stamp:
            return
        digest = self.model.digest
        if adapter.digest is not None and adapter.digest != digest:
            raise AdapterError(
                f"the adapter {adapter.name!r} was trained on other weights than those of "
                f"{self.base.name} as it is here; train it again"
            )
        check(adapter.folder)
        self.engine.load(adapter.name, adapter.folder)
        self.loaded[adapter.name] = adapter.stamp

    def drop(self, name: str) -> bool:
        """Unload an adapter; False when it was not there."""
        if self.loaded.pop(name, None) is None:
            return False
        with suppress(Unknown):  # forgotten already
            self.engine.unload(name)
        return True


@dataclass(frozen=True)
class Target:
    """What a request is answered with. adapter: as the engine calls it; label: in the metrics;
    fingerprint: tells the base from others.
    """

    engine: Engine
    prompts: Prompts
    adapter: str | None
    label: str
    context: int
    defaults: Mapping[str, Any]
    fingerprint: str

    def check(self, prompt: int, answer: int) -> None:
        """Raises Refused when prompt and answer are longer than the model's context."""
        if prompt + answer > self.context:
            raise Refused(
                f"This model's maximum context length is {self.context} tokens. However, you "
                f"requested {prompt + answer} tokens ({prompt} in the messages, {answer} in the "
                "completion). Please reduce the length of the messages or completion.",
                code="context_length_exceeded",
                param="messages",
            )
