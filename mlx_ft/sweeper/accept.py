"""Accepting a sweep: what is wrong with any trial is found before anything is written."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from mlx_ft import runtime
from mlx_ft.config.compose import explain, refusal, resolve
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError, UserError
from mlx_ft.sweeper.grid import Trial

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def accept(trials: Sequence[Trial], cfg: DictConfig, loader: Any) -> Config:
    """Compose and check every trial, without a model in memory; returns the first's Config.

    cfg: composed for multirun. Raises ConfigError with the faults of all trials.
    """
    faults = _Faults()
    configs: list[tuple[Trial, Config]] = []
    for trial in trials:
        try:
            composed = loader.load_sweep_config(cfg, [*trial.overrides])
            configs.append((trial, resolve(composed, trial.overrides)))
        except ConfigError as error:
            for fault in error.faults:
                faults.add(fault, trial.name)
        except Exception as error:  # whatever a malformed file makes Hydra raise
            faults.add(explain(error), trial.name)
    threads = {config.threads for _, config in configs}
    if len(threads) > 1 and cfg.hydra.launcher._target_ == BASIC_LAUNCHER:
        faults.add(
            "threads: cannot vary within a sweep with the basic launcher, which runs every trial "
            "in this process. Give one value, or take another launcher (hydra/launcher=NAME)"
        )
    faults.refuse(len(trials))
    first = configs[0][1]
    cache_dir = Path(first.paths.cache_dir).expanduser()
    runtime.prepare(first.threads if len(threads) == 1 else None, cache_dir)
    _check_folders(configs, cfg, faults)
    _check_inputs(configs, faults)
    faults.refuse(len(trials))
    return first


class _Faults:
    """Sentences, each with the trials that it is about; none means all."""

    def __init__(self) -> None:
        self._trials: dict[str, list[str]] = {}

    def add(self, fault: str, *trials: str) -> None:
        self._trials.setdefault(fault, []).extend(trials)

    def refuse(self, n_trials: int) -> None:
        """Raise ConfigError if there are any."""
        if self._trials:
            lines = [_placed(fault, names, n_trials) for fault, names in self._trials.items()]
            raise refusal("the sweep", lines)


def _placed(fault: str, names: Sequence[str], n_trials: int) -> str:
    """The fault and, unless all trials have it, which ones do."""
    if len(names) in (0, n_trials):
        return fault
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    which = f"trial {names[0]}{more}"
    return f"{which}: {fault}" if "\n" in fault else f"{fault} ({which})"


def _check_folders(
    configs: Sequence[tuple[Trial, Config]], cfg: DictConfig, faults: _Faults
) -> None:
    from mlx_ft.runfolder import held_files, writable  # MLX may be imported from here on

    folder = Path(str(cfg.hydra.sweep.dir)).expanduser()
    advice = "Choose another folder with hydra.sweep.dir=FOLDER"
    if reason := writable(folder, folder):
        faults.add(f"hydra.sweep.dir: cannot write to {folder}: {reason}. {advice}")
        return
    for trial, config in configs:
        if config.train.resume == "never" and held_files(folder / trial.folder):
            faults.add(f"hydra.sweep.dir: {folder} holds such trials already. {advice}", trial.name)


def _check_inputs(configs: Sequence[tuple[Trial, Config]], faults: _Faults) -> None:
    """Data, judge and model of every trial; what several trials share is looked at once."""
    from mlx_ft.console import configure_logging

    configure_logging(configs[0][1].log_level)
    known: dict[str, str | None] = {}
    for trial, config in configs:
        key = repr((config.data, config.seed, config.eval.task_rows, config.model,
                    config.memory_profile, config.device, config.paths))  # fmt: skip
        if key not in known:
            known[key] = _fault_of(config)
        if fault := known[key]:
            faults.add(fault, trial.name)


def _fault_of(config: Config) -> str | None:
    from mlx_ft.accept import prepare_inputs

    try:
        prepare_inputs(config)
    except UserError as error:
        return "\n      ".join([error.message, *error.faults])
    return None
