"""What is exported: an adapter, the run that made it, and the base that it belongs to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_ft import lora, memory, runtime
from mlx_ft.config.schema import Config, ModelConfig, PathsConfig
from mlx_ft.data import template
from mlx_ft.data.template import TemplateChoice
from mlx_ft.errors import AdapterError
from mlx_ft.models import load as models
from mlx_ft.saved import TEMPLATE, SavedRun, find_run, open_run


@dataclass(frozen=True)
class Source:
    """An adapter's folder and its run's configuration, every `auto` resolved.

    run: None for an adapter that has no run folder around it; `config` then says only which model.
    about: what the adapter's own settings say of where it comes from.
    """

    adapter: Path
    config: Config
    run: SavedRun | None
    about: Mapping[str, Any]
    device: str

    @property
    def cache_dir(self) -> Path:
        """Where converted models and encoded rows are kept."""
        return Path(self.config.paths.cache_dir).expanduser()

    @property
    def template(self) -> str | None:
        """The chat template that the adapter was trained with, as `template.install` takes it."""
        try:
            # Empty: the tokenizer writes its chats in Python.
            return (self.adapter / TEMPLATE).read_text("utf-8") or None
        except OSError:
            return None if self.run is None else self.run.template

    @property
    def system_prompt(self) -> str | None:
        """The system message that all training rows shared."""
        found = None if self.run is None else self.run.summary.get("system_prompt")
        return found if isinstance(found, str) and found else None

    def locate(self) -> models.Located:
        """The base model's files. Raises ModelError."""
        return models.locate(self.config.model, self.cache_dir)

    def load(self, located: models.Located) -> models.Loaded:
        """The base as the run computed with it, with the adapter on."""
        loaded = self.base(located, self.config.model)
        lora.load(loaded.model, self.adapter)
        loaded.model.eval()
        return loaded

    def base(self, located: models.Located, model: ModelConfig) -> models.Loaded:
        """A bare model in the run's precision."""
        return models.load(
            located,
            model,
            compute_dtype=self.config.memory_profile.compute_dtype,
            dequantize=bool(model.dequantize),
        )

    def install(self, tokenizer: Any) -> TemplateChoice:
        """Give the tokenizer the adapter's chat template."""
        return template.install(tokenizer, self.template)


def find(reference: str | None, model: str | None = None) -> Source:
    """What `reference` names: a run as for `find_run`, an adapter's folder, or a checkpoint's.

    model: the base in place of the one that is recorded, as for `model.path`. Raises AdapterError,
    ModelError.
    """
    adapter = None if reference is None else _adapter_folder(reference)
    if adapter is None:
        run: SavedRun | None = find_run(reference)
        assert run is not None
        adapter = run.adapter
    else:
        run = _run_around(adapter)
    _, settings = lora.read_settings(adapter)
    about = settings.get("mlx_ft")
    about = about if isinstance(about, dict) else {}
    config = _bare(adapter, about, model) if run is None else run.config
    if run is not None and model is not None:
        config = replace(config, model=replace(config.model, path=model, revision=None))
    device = runtime.select_device(config.device)
    return Source(adapter, memory.resolve(config, device), run, about, device)


def _adapter_folder(reference: str) -> Path | None:
    try:
        path = Path(reference).expanduser()
        return path if (path / lora.SETTINGS).is_file() else None
    except (OSError, RuntimeError):
        return None  # too long, not permitted, no such user: no folder


def _run_around(adapter: Path) -> SavedRun | None:
    """The run that `RUN/adapter` or `RUN/checkpoints/step-N` belongs to."""
    adapter = adapter.absolute()
    own = [adapter.parent] if adapter.name == "adapter" else []
    if adapter.parent.name == "checkpoints":
        own.append(adapter.parent.parent)
    found = next((folder for folder in own if (folder / "config.yaml").is_file()), None)
    return None if found is None else open_run(found)


def _bare(adapter: Path, about: Mapping[str, Any], model: str | None) -> Config:
    path = model or about.get("base_model")
    if not isinstance(path, str):
        raise AdapterError(
            f"{adapter / lora.SETTINGS} does not say which model the adapter belongs to. "
            "Name it: --model MODEL (embedded, a folder, a .gguf file or a name on the hub)"
        )
    revision = about.get("base_revision") if model is None else None
    return Config(
        model=ModelConfig(path=path, revision=_revision(path, revision)),
        paths=PathsConfig(cache_dir=str(runtime.default_cache_dir())),
    )


def _revision(path: str, revision: Any) -> str | None:
    """Only a hub repository has revisions; of the embedded model a package's version is kept."""
    from mlx_ft.models import hub

    if path == "embedded" or not isinstance(revision, str):
        return None
    return revision if hub.classify(path)[0] == "hub" else None
