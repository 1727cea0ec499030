"""Accepting a sweep: what is wrong with any trial is found before anything is written."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlx_ft import runtime
from mlx_ft.config.compose import explain, refusal, resolve
from mlx_ft.config.given import folder_fault
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError, UserError
from mlx_ft.sweeper.grid import Trial

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
HYDRA_SUBDIR = "${hydra.job.num}"  # Hydra's own: nobody has chosen another


def accept(trials: Sequence[Trial], cfg: DictConfig, loader: Any) -> tuple[Config, list[Trial]]:
    """Compose and check every trial, without a model in memory.

    cfg: composed for multirun. Returns the first's Config, and the trials with the folders that
    they will have. Raises ConfigError with the faults of all trials.
    """
    faults, own = _Faults(), own_folders(cfg)
    configs: list[tuple[Trial, Config]] = []
    for number, given in enumerate(trials):
        trial = given
        try:
            composed = loader.load_sweep_config(cfg, [*trial.overrides])
            config = resolve(composed, trial.overrides)
            if own:
                trial = replace(trial, folder=_own_folder(composed, number))
            configs.append((trial, config))
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
    HydraConfig.instance().set_config(cfg)
    _check_apart([trial for trial, _ in configs], faults)
    faults.refuse(len(trials))
    first = configs[0][1]
    cache_dir = Path(first.paths.cache_dir).expanduser()
    runtime.prepare(first.threads if len(threads) == 1 else None, cache_dir)
    _check_folders(configs, cfg, faults)
    _check_inputs(configs, faults)
    faults.refuse(len(trials))
    return first, [trial for trial, _ in configs]


def own_folders(cfg: DictConfig) -> bool:
    """Whether the user names the trials' folders: by `hydra.sweep.subdir`."""
    sweep = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    texts = OmegaConf.to_container(cfg.hydra.overrides.hydra, resolve=False)
    assert isinstance(sweep, dict)
    assert isinstance(texts, list)
    given = any(text.partition("=")[0] == "hydra.sweep.subdir" for text in texts)
    return given or sweep["subdir"] != HYDRA_SUBDIR


def _own_folder(composed: DictConfig, number: int) -> str:
    """What `hydra.sweep.subdir` says for a trial, as a launcher will ask. Raises ConfigError."""
    with open_dict(composed.hydra.job):
        composed.hydra.job.num, composed.hydra.job.id = number, str(number)
    HydraConfig.instance().set_config(composed)  # where ${hydra:...} looks
    try:
        found = composed.hydra.sweep.subdir
        fault = folder_fault(found)
    except (OmegaConfBaseException, ValueError) as error:
        fault = str(error).splitlines()[0]
    if fault is not None:
        raise refusal("the sweep", [f"hydra.sweep.subdir: {fault}"])
    return str(found)


def _check_apart(trials: Sequence[Trial], faults: _Faults) -> None:
    """No two trials may write to one folder."""
    first: dict[Path, Trial] = {}
    for trial in trials:
        other = first.setdefault(Path(os.path.normpath(trial.folder)), trial)
        if other is not trial:
            faults.add(
                f"hydra.sweep.subdir: {trial.folder} is the folder of trial {other.name} already. "
                "Name what varies, e.g. hydra.sweep.subdir=\\${hydra.job.num}, or leave it out",
                trial.name,
            )


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
