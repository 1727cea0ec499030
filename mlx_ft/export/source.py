"""What is exported: an adapter, the run that made it, and the base that it belongs to."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from mlx_ft import adapter_folder, lora, lora_files, memory, runtime
from mlx_ft.adapter_template import read_template
from mlx_ft.config.schema import Config, ModelConfig, PathsConfig
from mlx_ft.data import template
from mlx_ft.data.template import TemplateChoice
from mlx_ft.errors import AdapterError
from mlx_ft.export import rows
from mlx_ft.models import load as models
from mlx_ft.models.folder import read_config
from mlx_ft.saved import SavedRun, find_run, open_run


@dataclass(frozen=True)
class Source:
    """An adapter's folder and its run's configuration, every `auto` resolved.

    run: None for an adapter that has no run folder around it; `config` then says only which model.
    about: what the adapter's own settings say of where it comes from. base_given: the base model
    was named by the user.
    """

    adapter: Path
    config: Config
    run: SavedRun | None
    about: Mapping[str, Any]
    device: str
    base_given: bool = False

    @property
    def cache_dir(self) -> Path:
        """Where converted models and encoded rows are kept."""
        return Path(self.config.paths.cache_dir).expanduser()

    @property
    def template(self) -> str | None:
        """The chat template that the adapter was trained with, as `template.install` takes it.

        Raises AdapterError.
        """
        text = self._saved_template
        if text is not None:
            return text or None  # empty: the tokenizer writes its chats in Python
        return None if self.run is None else self.run.config.data.template

    @cached_property
    def _saved_template(self) -> str | None:
        """The one that lies with the adapter, or with its run's."""
        folders = [self.adapter, *([] if self.run is None else [self.run.adapter])]
        texts = (read_template(folder) for folder in folders)
        return next((text for text in texts if text is not None), None)

    @property
    def system_prompt(self) -> str | None:
        """The system message that all training rows shared."""
        found = None if self.run is None else self.run.summary.get("system_prompt")
        if isinstance(found, str) and found:
            return found
        return adapter_folder.origin(self.adapter).system_prompt

    @property
    def revision(self) -> str | None:
        """Of the base that the adapter was trained on; None where another one was named."""
        found = None if self.base_given else self.about.get("base_revision")
        return found if isinstance(found, str) else None

    def locate(self) -> models.Located:
        """The base model's files, held against what the adapter was trained on.

        Raises ModelError, AdapterError.
        """
        return self._located

    @cached_property
    def _located(self) -> models.Located:
        located = models.locate(self.config.model, self.cache_dir)
        weights = models.weights_digest(located)
        adapter_folder.check_base(self.adapter, weights, insisted=self.base_given)
        if self.base_given:
            _check_order(self.adapter, self.about, located)
        return located

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
        if self._saved_template:
            return template.install_text(tokenizer, self._saved_template, f"{self.adapter}")
        return template.install(tokenizer, self.template)


def find(reference: str | None, model: str | None = None) -> Source:
    """What `reference` names: a run as for `find_run`, an adapter's folder, or a checkpoint's.

    model: the base in place of the one that is recorded, by recipe or as for `model.path`. Raises
    AdapterError, ModelError.
    """
    adapter = None if reference is None else _adapter_folder(reference)
    if adapter is None:
        run: SavedRun | None = find_run(reference)
        assert run is not None
        adapter = run.adapter
    else:
        run = _run_around(adapter)
    _, settings = lora_files.read_settings(adapter)
    about = settings.get("mlx_ft")
    about = about if isinstance(about, dict) else {}
    config = _bare(adapter, model) if run is None else run.config
    if run is not None and model is not None:
        config = replace(config, model=adapter_folder.named(model, config.model))
    device = runtime.select_device(config.device)
    resolved = memory.resolve(config, device)
    return Source(adapter, resolved, run, about, device, base_given=model is not None)


def _adapter_folder(reference: str) -> Path | None:
    try:
        path = Path(reference).expanduser()
        return path if (path / lora_files.SETTINGS).is_file() else None
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


def _bare(adapter: Path, model: str | None) -> Config:
    return Config(
        model=adapter_folder.base_of(adapter, model),
        paths=PathsConfig(cache_dir=str(runtime.default_cache_dir())),
    )


def _check_order(adapter: Path, about: Mapping[str, Any], located: models.Located) -> None:
    """Raise AdapterError for a base whose rows of q and k lie in another order than before."""
    keys = lora_files.read_settings(adapter)[0].keys  # none: all projections
    moved = not keys or any(key.rpartition(".")[2] in rows.HEADS for key in keys)
    if not moved or located.config.get("model_type") not in rows.FAMILIES:
        return
    base = adapter_folder.origin(adapter).base or str(about.get("base_name", ""))
    was, found = _was_in_pairs(base, about.get("base_revision")), rows.in_pairs(located.config)
    if was in (None, found):
        return
    words = {True: "in pairs, as GGUF has them", False: "in halves, as transformers has them"}
    raise AdapterError(
        f"the adapter in {adapter} was trained on {base}, whose rows of q and k lie "
        f"{words[not found]}; {located.name} has them {words[found]}, and together they would be "
        "scrambled. Leave --model off; --base NAME says what the base is called on the hub"
    )


def _was_in_pairs(base: str, revision: Any) -> bool | None:
    """The order of a Llama that an adapter was trained on; None: nobody knows."""
    if base == "embedded":  # a package has a version; its copy on the hub a commit
        return re.fullmatch(r"[0-9a-f]{40}", str(revision)) is None
    if base.endswith(".gguf"):
        return True
    config = read_config(Path(base))[0] if base else None
    if config is not None:
        return rows.in_pairs(config)
    return False if re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", base) else None  # a name on the hub
