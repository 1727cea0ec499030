"""Who answers in a chat: the base model and adapters on it, each in a slot of one engine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft import adapter_folder, api
from mlx_ft.api import Tuned
from mlx_ft.data import template
from mlx_ft.engine.engine import Engine, Limits
from mlx_ft.errors import AdapterError
from mlx_ft.models import load as models
from mlx_ft.models.load import Located
from mlx_ft.models.tokenizer import load_tokenizer
from mlx_ft.same_base import is_same, said
from mlx_ft.saved import SavedRun, find_run

BASE = "base"


@dataclass(frozen=True)
class Voice:
    """The base or an adapter. key: its name in the engine; None for the base.

    tokenizer: makes its prompts, by its own chat template. system: the system message that it was
    trained with. stop: texts that end its answers beside the tokens that end everybody's.
    """

    name: str
    key: str | None
    tokenizer: Any
    system: str | None
    stop: tuple[str, ...] = ()


class Voices:
    """The base model of a run, loaded once, and what has been put on it.

    model: the base that the user named; None: that of the run. Raises AdapterError, ModelError.
    """

    def __init__(self, run: SavedRun, model: str | None, limits: Limits | None = None) -> None:
        self.run = run
        self._model = model
        self._tuned: Tuned | None = None
        self._known: dict[str, Voice] = {}
        self.engine = Engine(self._make, limits)
        try:
            self.engine.ready()
            self.base = Voice(BASE, None, self._loaded.tokenizer, run.summary.get("system_prompt"))
        except BaseException:
            self.close()
            raise

    def _make(self) -> tuple[Any, Any]:
        """In the engine's thread, where MLX then computes."""
        self._tuned = api.load(self.run, adapter=False)
        return self._tuned.model, self._tuned.tokenizer

    @property
    def _loaded(self) -> Tuned:
        assert self._tuned is not None  # the engine is ready
        return self._tuned

    @property
    def located(self) -> Located:
        """The base model's files."""
        assert self._loaded.located is not None
        return self._loaded.located

    @property
    def window(self) -> int | None:
        """Tokens that the model was made for; None where it does not say."""
        return self.located.window

    def adapter(self, reference: str | None) -> Voice:
        """The voice of a run or an adapter, which is put on the base; None: of the chat's own run.

        Raises AdapterError for one of another base model, or that does not fit.
        """
        run = self.run if reference is None else find_run(reference, model=self._model)
        key = _key(run.adapter)
        if key not in self._known:
            self._check(run)
            self.engine.load(key, run.adapter)
            self._known[key] = self._voice(run, key)
        return self._known[key]

    def _check(self, run: SavedRun) -> None:
        ours, theirs = self._loaded.run.config.model, run.config.model
        if run is not self.run and not is_same(ours, theirs):
            raise AdapterError(
                f"{run.name} is of another base model ({said(theirs)}) than this chat's "
                f"({said(ours)}). For a chat with it: mlx-ft chat --run {run.folder}"
            )
        if adapter_folder.is_adapter(run.adapter):  # else the engine says what is missing
            weights = models.weights_digest(self.located)
            adapter_folder.check_base(run.adapter, weights, insisted=run.base_given)

    def _voice(self, run: SavedRun, key: str) -> Voice:
        system = run.summary.get("system_prompt")
        if run.template == self.run.template:
            return Voice(run.name, key, self.base.tokenizer, system)
        tokenizer: Any = load_tokenizer(self.located)
        template.install(tokenizer, run.template)
        others = set(tokenizer.eos_token_ids) - set(self.base.tokenizer.eos_token_ids)
        stop = tuple(tokenizer.decode([token]) for token in sorted(others))
        return Voice(run.name, key, tokenizer, system, stop)

    def close(self) -> None:
        """End the engine's thread."""
        self.engine.close(drain=False, timeout=5)


def _key(folder: Path) -> str:
    """Tells an adapter from another one that had its folder before."""
    try:
        written = (folder / "adapters.safetensors").stat().st_mtime_ns
    except OSError:  # the engine says what is missing
        written = 0
    return f"{folder.absolute()}@{written}"
