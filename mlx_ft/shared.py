"""What the runs of one process have in common: the base model, and how it was judged."""

from __future__ import annotations

import copy
import gc
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import cache
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import lora, together
from mlx_ft.config.schema import ModelConfig
from mlx_ft.deferred import Deferred
from mlx_ft.judgement import Base
from mlx_ft.models import load as models
from mlx_ft.models.load import Loaded, Located


class Shared:
    """Keeps the base model of a run for the next one, when that wants the same.

    Between runs the model is as it was loaded: bare, its layers of their own classes.
    """

    def __init__(self) -> None:
        self._key = ""
        self._loaded: Loaded | None = None
        self._kinds: list[type] = []
        self._bases: dict[str, Base] = {}

    def load(
        self,
        located: Located,
        config: ModelConfig,
        *,
        compute_dtype: str,
        dequantize: bool,
        tokenizer: Deferred[Any] | None = None,
    ) -> Loaded:
        """As `models.load`, which is called only for a model that is not here yet."""
        key = json.dumps(
            [_files(located), str(located.path), located.config, asdict(config), compute_dtype,
             dequantize, str(mx.default_device())]
        )  # fmt: skip
        gc.collect()  # the run before hangs in cycles, and this one's peak would have its arrays
        mx.clear_cache()
        if self._loaded is None or key != self._key:
            if key != self._key:
                self._key, self._bases = key, {}
            self._loaded = None  # two might not fit into memory
            self._loaded = models.load(
                located,
                config,
                compute_dtype=compute_dtype,
                dequantize=dequantize,
                tokenizer=tokenizer,
            )
            self._kinds = [type(layer) for layer in self._loaded.model.layers]
        found = replace(self._loaded, deferred=tokenizer or self._loaded.deferred)
        if together.seat() is not None:  # others have theirs at the same time
            found = replace(found, model=twin(found.model))
        return found

    def leave(self, kind: type[BaseException] | None, *_: object) -> None:
        """Take everything off the model that the run has put on it, as that ends.

        kind: of what ended it. A model that a run has failed with is not used again: a compiled
        step that was broken off leaves traces in place of its weights.
        """
        if together.seat() is not None:
            return  # it had a model of its own
        if kind is not None:
            self._loaded = None
        if self._loaded is None:
            return
        model = self._loaded.model
        lora.detach(model)
        for layer, kind in zip(model.layers, self._kinds, strict=True):
            layer.__class__ = kind
        model.eval()
        model.freeze()

    def base(self, subject: Mapping[str, Any]) -> Base | None:
        """How a run has judged the base model; subject: all that this depends on."""
        return self._bases.get(json.dumps(subject))

    def note_base(self, subject: Mapping[str, Any], base: Base) -> None:
        """Keep it for the runs to come."""
        self._bases[json.dumps(subject)] = base


def twin(model: nn.Module) -> nn.Module:
    """Another model of the same arrays: what is put on one of them the other has not."""
    arrays = [array for module in model.modules() for array in _own_arrays(module)]
    return copy.deepcopy(model, {id(array): array for array in arrays})


def _own_arrays(module: nn.Module) -> list[mx.array]:
    held = [*module.values(), *vars(module).values()]  # the latter are not parameters
    return [value for value in held if isinstance(value, mx.array)]


def _files(located: Located) -> list[tuple[str, int, int]]:
    """A model that is replaced on the disk is another one."""
    stats = [(path.name, path.stat()) for path in sorted(located.path.glob("*.safetensors"))]
    return [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]


@cache
def of_this_process() -> Shared:
    """The one that all trials of a sweep in this process have."""
    return Shared()
