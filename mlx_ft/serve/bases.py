"""The base models that can be asked for: the recipes of `conf/model`, and what was named beside."""

from __future__ import annotations

import gc
import logging
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft.config import Config, conf_dir, quoted
from mlx_ft.errors import ModelError
from mlx_ft.serve import names

if TYPE_CHECKING:
    import mlx.nn as nn

logger = logging.getLogger(__name__)

BASE = "base"  # whichever is in use, without any adapter
# What models call the number of tokens that they were made for.
CONTEXTS = ("max_position_embeddings", "n_positions", "max_sequence_length", "n_ctx", "seq_length")
CONTEXT = 4096  # of a model that does not say

_composing = threading.Lock()  # Hydra keeps what it composes in one place


def composed(*overrides: str) -> Config:
    """The configuration of a run. Raises ConfigError."""
    from mlx_ft.config.compose import CommandLine, accept

    with _composing:
        return accept(CommandLine(overrides)).config


@dataclass(frozen=True)
class Base:
    """A model by its name. path: as `model.path` has it; overrides: of `train`, which choose it."""

    name: str
    path: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """A base model in memory, bare and frozen. context: tokens of a prompt and its answer.

    digest: tells its weights from others. vocabulary: number of tokens that it has.
    """

    base: Base
    model: nn.Module
    tokenizer: Any
    folder: Path
    eos: Any
    context: int
    digest: str
    vocabulary: int | None


class Bases:
    """named: more names, with a folder, file or hub name each, given by whoever starts the server.

    context: the largest one that is to be used; None leaves the model's.
    """

    def __init__(
        self, cache_dir: Path, named: Mapping[str, str] | None = None, context: int | None = None
    ) -> None:
        from mlx_ft.models.catalog import recipes

        self._cache_dir, self._context = cache_dir, context
        found = recipes(conf_dir())
        self._all = {name: Base(name, path, (f"model={name}",)) for name, path in found.items()}
        for name, path in (named or {}).items():
            if name == BASE:
                raise names.BadName(f"model: {BASE!r} is whichever model is in use; rename {path}")
            own = (f"model.path={quoted(path)}",)
            self._all[names.checked(name, "model")] = Base(name, path, own)

    def __iter__(self) -> Iterator[Base]:
        return iter(self._all.values())

    def find(self, name: str) -> Base | None:
        """By its name, or by the hub's name of a recipe."""
        if name in self._all:
            return self._all[name]
        return next((base for base in self._all.values() if base.path == name), None)

    def is_here(self, base: Base) -> bool:
        """Whether it can be used without downloading anything."""
        from mlx_ft.models import gguf, hub

        if base.path == "embedded":
            return gguf.find_embedded() is not None
        try:
            kind, path = hub.classify(base.path)
        except ModelError:
            return False
        if kind != "hub":
            return path.exists()
        # What the hub's library says takes its time.
        return hub.cache_folder(base.path).is_dir() and hub.cached(base.path) is not None

    def config(self, base: Base, *overrides: str) -> Config:
        """Of a run on it. Raises ConfigError."""
        return composed(*base.overrides, f"paths.cache_dir={quoted(str(self._cache_dir))}",
                        *overrides)  # fmt: skip

    def load(self, base: Base) -> Model:
        """Read it into memory, in the precision that a run on this machine has.

        Raises ModelError, ConfigError.
        """
        from mlx_ft import memory, runtime
        from mlx_ft.data import template
        from mlx_ft.models import load as models

        asked = self.config(base)
        config = memory.resolve(asked, runtime.select_device(asked.device))
        located = models.locate(config.model, self._cache_dir)
        loaded = models.load(
            located,
            config.model,
            compute_dtype=config.memory_profile.compute_dtype,
            dequantize=bool(config.model.dequantize),
        )
        chosen = template.install(loaded.tokenizer, None)
        if chosen.note:
            logger.warning(chosen.note)
        numbers = located.config.get("text_config") or located.config
        own = next((numbers[key] for key in CONTEXTS if isinstance(numbers.get(key), int)), CONTEXT)
        words = numbers.get("vocab_size")
        return Model(
            base, loaded.model, loaded.tokenizer, located.path, located.config.get("eos_token_id"),
            min(own, self._context or own), models.weights_digest(located),
            words if isinstance(words, int) else None,
        )  # fmt: skip


def free_memory() -> None:
    """Give back what models that are no longer used have left."""
    import mlx.core as mx

    gc.collect()
    mx.clear_cache()
