"""A finished run or an adapter alone, found again by its folder, its id or its name."""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from mlx_ft import adapter_folder
from mlx_ft.adapter_template import TEMPLATE as TEMPLATE
from mlx_ft.adapter_template import read_template
from mlx_ft.config.compose import CommandLine, accept, config_from_dict
from mlx_ft.config.schema import Config, DataConfig, ModelConfig
from mlx_ft.errors import AdapterError, MlxFtError
from mlx_ft.runfolder import ORIGIN, read_json, step_of
from mlx_ft.runtime import default_output_dir

logger = logging.getLogger(__name__)


SCHEME = "models:/"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class SavedRun:
    """A run folder with its configuration and adapter; or what is known of an adapter alone.

    own_adapter: its folder, where that is not the run's final one. base_given: the base model was
    named by the user.
    """

    folder: Path
    config: Config
    summary: dict[str, Any]
    own_adapter: Path | None = None
    base_given: bool = False

    @property
    def adapter(self) -> Path:
        """The folder of the adapter."""
        return self.own_adapter or self.folder / "adapter"

    @property
    def is_alone(self) -> bool:
        """Whether nothing is known of the run: it is an adapter's folder, or no adapter at all."""
        return not (self.folder / CONFIG).is_file()

    @property
    def started_in(self) -> Path:
        """The folder that relative paths of its configuration count from."""
        return _started_in(self.folder, self.summary)

    @property
    def template(self) -> str | None:
        """The chat template that the run was trained with; None: the tokenizer's own.

        Raises AdapterError for a file that holds none.
        """
        found = read_template(self.adapter)
        return self.config.data.template if found is None else found or None

    @property
    def name(self) -> str:
        """A short name: of the run folder, the adapter's folder, or the base model."""
        if self.is_alone and self.own_adapter is None:
            return self.config.model.path
        folder = self.folder.absolute().name
        step = f"/{self.own_adapter.name}" if self.own_adapter and not self.is_alone else ""
        return f"{folder}{step}"

    @property
    def title(self) -> str:
        """`outputs/runs/X (FINISHED, step 130)`, `my/adapter on embedded`."""
        if self.own_adapter is not None:  # alone, or a checkpoint's
            return f"{self.own_adapter} on {self.config.model.path}"
        if self.is_alone:
            return self.config.model.path
        status = self.summary.get("status", "not ended")
        return f"{self.folder} ({status}, step {self.summary.get('steps', '?')})"


def find_run(
    reference: str | Path | None = None,
    output_dir: Path | None = None,
    *,
    model: str | None = None,
) -> SavedRun:
    """The run that `reference` names: a folder, a tracked run's id, a registered model
    (`models:/NAME/VERSION`, `models:/NAME@ALIAS`), or None for the newest; or an adapter by its
    folder: copied away from its run, a checkpoint's, or made by mlx-lm.

    output_dir: where runs are; None is `MLX_FT_OUTPUTS`, or `outputs`. model: the base model, by
    recipe or as `model.path` takes it; None: the one that run or adapter name. Raises AdapterError
    when there is no such run, it has no adapter, or its files cannot be read.
    """
    if output_dir is None:
        output_dir = default_output_dir()
    folder = _newest(output_dir) if reference is None else _folder(str(reference), output_dir)
    if adapter_folder.is_adapter(folder) and not (folder / CONFIG).is_file():
        return _adapter_alone(folder, model)
    if not (folder / "adapter").is_dir():
        raise AdapterError(
            f"{folder} has no adapter folder: the run ended before its first step. "
            "Name another run with --run"
        )
    return _on(_with_system(open_run(folder), folder / "adapter"), model)


def _with_system(run: SavedRun, adapter: Path) -> SavedRun:
    """With the system message that an adapter names, where the run has not told one (yet)."""
    if run.summary.get("system_prompt") or not adapter_folder.is_adapter(adapter):
        return run
    system = adapter_folder.origin(adapter).system_prompt
    return replace(run, summary={**run.summary, "system_prompt": system})


def _on(run: SavedRun, model: str | None) -> SavedRun:
    if model is None:
        return run
    base = adapter_folder.named(model, run.config.model)
    return replace(run, config=replace(run.config, model=base), base_given=True)


def base_alone(model: str) -> SavedRun:
    """What takes a run's place where only a base model is wanted. model: as for `find_run`."""
    base = adapter_folder.named(model, ModelConfig())
    return SavedRun(Path(base.path), _without_rows(base), {}, base_given=True)


def _adapter_alone(folder: Path, model: str | None) -> SavedRun:
    """An adapter without its run, or one of the checkpoints of a run that is there."""
    run_folder = folder.parent.parent
    if step_of(folder) >= 0 and (run_folder / CONFIG).is_file():
        run = _on(_with_system(open_run(run_folder), folder), model)
        return replace(run, summary={**run.summary, "steps": step_of(folder)}, own_adapter=folder)
    config = _without_rows(adapter_folder.base_of(folder, model))
    told = adapter_folder.origin(folder)
    summary = {"run_id": told.run_id, "steps": told.step, "system_prompt": told.system_prompt}
    return SavedRun(folder, config, summary, folder, base_given=model is not None)


def _without_rows(model: ModelConfig) -> Config:
    """The usual configuration for a base model, with no rows to be judged on."""
    usual = accept(CommandLine()).config
    return replace(usual, model=model, data=DataConfig(path=[], metric="none"))


def open_run(folder: Path) -> SavedRun:
    """Read `config.yaml` and `summary.json` of a run folder.

    Relative paths in the configuration count from where the run was started, if the summary
    says so. Raises AdapterError when one of the two files cannot be read.
    """
    config_path, summary_path = folder / CONFIG, folder / "summary.json"
    try:
        config = config_from_dict(yaml.safe_load(config_path.read_text("utf-8")))
    except Exception as error:  # whatever a damaged file makes its readers raise
        raise _unreadable(config_path, error) from error
    summary: Any = {}
    try:
        if summary_path.exists():
            summary = json.loads(summary_path.read_text("utf-8"))
        if not isinstance(summary, dict):
            raise TypeError(f"found {type(summary).__name__}, expected an object")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(summary_path, error) from error
    return SavedRun(folder, _from_there(config, _started_in(folder, summary)), summary)


def _started_in(folder: Path, summary: dict[str, Any]) -> Path:
    found = summary.get("working_dir") or read_json(folder / ORIGIN).get("working_dir")
    return Path(found) if isinstance(found, str) else Path()


def _unreadable(path: Path, error: Exception) -> AdapterError:
    faults = error.faults if isinstance(error, MlxFtError) else ()
    return AdapterError(
        f"{path} cannot be used: damaged, or written by another version. "
        "Name another run with --run",
        faults or [f"{type(error).__name__}: {error}"],
    )


def _from_there(config: Config, start: Path) -> Config:
    """The configuration with its relative local paths counted from `start`."""
    model, data = config.model, config.data
    if model.path != "embedded" and (start / model.path).exists():  # else a name on the hub
        model = replace(model, path=_joined(start, model.path))
    data = replace(
        data,
        path=_data_path(start, data.path)
        if isinstance(data.path, str)
        else [{**entry, "path": _data_path(start, entry["path"])} for entry in data.path],
        valid_path=data.valid_path and _joined(start, data.valid_path),
        test_path=data.test_path and _joined(start, data.test_path),
        database=data.database and _joined(start, data.database),
        template=_joined(start, data.template)
        if data.template and data.template.endswith(".jinja")
        else data.template,
    )
    lora = config.lora
    if lora.init_from:
        lora = replace(lora, init_from=_joined(start, lora.init_from))
    return replace(config, model=model, data=data, lora=lora)


def _data_path(start: Path, given: str) -> str:
    """`org/name` that is no file there was, and is, a dataset of the hub."""
    hub_like = re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) is not None
    known = (start / given).exists() or (start / given).parent.exists()
    return given if hub_like and not known else _joined(start, given)


def _joined(start: Path, given: str) -> str:
    if given.startswith(("builtin:", "hub:", "~")):
        return given
    return str(start / given)  # an absolute path stays as it is


def _newest(output_dir: Path) -> Path:
    found = [*output_dir.glob("runs/*/adapter"), *output_dir.glob("sweeps/**/adapter")]
    for adapter in sorted(found, key=lambda path: path.stat().st_mtime, reverse=True):
        folder = adapter.parent
        if not (folder / CONFIG).is_file():
            logger.warning("%s has no config.yaml and is passed over", folder)
            continue
        if newer := _without_adapter(output_dir, adapter.stat().st_mtime):
            logger.warning(
                "%s is newer but has no adapter: it ended before its first step, or still runs. "
                "%s is used; name another run with --run",
                newer,
                folder,
            )
        return folder
    raise AdapterError(
        f"no run with an adapter in {output_dir.absolute()} (runs, sweeps). "
        "Train one with `mlx-ft train`, or name a run folder with --run"
    )


def _without_adapter(output_dir: Path, since: float) -> Path | None:
    """The newest run folder begun after `since` that holds no adapter."""
    begun = {
        file.parent: file.stat().st_mtime
        for file in output_dir.glob("runs/*/config.yaml")
        if not (file.parent / "adapter").is_dir() and file.stat().st_mtime > since
    }
    return max(begun, key=lambda folder: begun[folder], default=None)


def _registered(reference: str, output_dir: Path) -> Path:
    """By the MLflow that the newest run here was tracked in, or else the default one."""
    from mlx_ft.tracking import registry  # MLflow is imported for nothing else
    from mlx_ft.tracking.uri import from_there

    try:
        run = open_run(_newest(output_dir))
        tracking, paths = from_there(run.config.tracking, run.config.paths, run.started_in)
        config = replace(run.config, tracking=tracking, paths=paths)
    except AdapterError:
        config = accept(CommandLine()).config
    return registry.find(reference, config)


def _folder(reference: str, output_dir: Path) -> Path:
    if reference.startswith(SCHEME):
        return _registered(reference, output_dir)
    try:
        path = Path(reference).expanduser()
        if (path / CONFIG).is_file():
            return path
        if path.is_dir() and path.name == "adapter" and (path.parent / CONFIG).is_file():
            return path.parent
        if adapter_folder.is_adapter(path):
            return path
    except (OSError, RuntimeError):
        pass  # too long, not permitted, no such user: no folder
    for file in output_dir.glob("**/summary.json"):
        try:
            summary = json.loads(file.read_text("utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(summary, dict) and summary.get("run_id") == reference:
            return file.parent
    raise AdapterError(
        f"--run: {reference!r} is neither a run folder (with config.yaml), nor an adapter's folder "
        f"(with {adapter_folder.SETTINGS}), nor the id of a run in {output_dir.absolute()}, nor a "
        "registered model (models:/NAME/VERSION)"
    )
