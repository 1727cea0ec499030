"""Accepting a sweep: what is wrong with any trial is found before anything is written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from mlx_ft import runtime
from mlx_ft.config.check import sweep_faults
from mlx_ft.config.compose import SWEEP_DIR as SWEEPS
from mlx_ft.config.compose import explain, refusal, resolve
from mlx_ft.config.given import folder_fault
from mlx_ft.config.keys import sections
from mlx_ft.config.schema import Config
from mlx_ft.errors import ConfigError, UserError
from mlx_ft.sweeper.book import Book, common, name_of
from mlx_ft.sweeper.grid import Trial
from mlx_ft.sweeper.settings import BASIC_LAUNCHER

KEPT_WORKERS = ("joblib", "ray", "together")  # a worker runs one trial after the other
HYDRA_SUBDIR = "${hydra.job.num}"  # Hydra's own: nobody has chosen another


@dataclass(frozen=True)
class Accepted:
    """A sweep that can begin. refused: trials that cannot be run, and why; some can.

    first: the configuration of the first trial that can be run. book: of the sweep's folder.
    configs: of those that can be run and were known from the beginning. looked: what is known of
    data and models, for trials that come later.
    """

    first: Config
    trials: list[Trial]
    refused: dict[Trial, str]
    book: Book
    configs: dict[Trial, Config]
    looked: dict[str, tuple[str | None, str | None]] = field(default_factory=dict)


def accept(
    trials: Sequence[Trial], cfg: DictConfig, loader: Any, identity: Mapping[str, Any] | None = None
) -> Accepted:
    """Compose and check every trial, without a model in memory; nothing is written.

    cfg: composed for multirun. identity: what the sweep is known by, beside what its trials have
    alike. A trial that cannot be run does not keep others from it. Raises ConfigError with the
    faults of all trials when none can, or the sweep as a whole cannot.
    """
    faults = _Faults(len(trials))
    configs, placed = _composed(trials, cfg, loader, faults)
    faults.refuse_if_all()
    threads = {config.threads for _, config in configs}
    if len(threads) > 1 and _keeps_processes(cfg.hydra.launcher):
        faults.add(
            "threads: cannot vary within a sweep with this launcher, which runs several trials in "
            "one process. Give one value, or take hydra/launcher=submitit_local"
        )
    _check_apart([trial for trial, _ in configs], faults)
    faults.refuse_if_all()
    first = configs[0][1]
    cache_dir = Path(first.paths.cache_dir).expanduser()
    runtime.prepare(first.threads if len(threads) == 1 else None, cache_dir)
    looked: dict[str, tuple[str | None, str | None]] = {}
    digests = _check_inputs(configs, faults, looked)
    faults.refuse_if_all()
    refused = {trial: fault for trial in placed if (fault := faults.of(trial.name))}
    able = [(trial, config) for trial, config in configs if trial not in refused]
    settings = [
        {**_flat(asdict(config)), "data.digest": digests[trial], **_began_with(config)}
        for trial, config in able
    ]
    book = _book(cfg, able[0][1], placed, {**common(settings), **(identity or {})})
    if reason := _unwritable(book.folder):
        faults.add(reason)
    faults.refuse_if_all()
    return Accepted(able[0][1], placed, refused, book, dict(able), looked)


def _began_with(config: Config) -> dict[str, str]:
    """What is in the adapter that a trial begins with, wherever it lies."""
    from mlx_ft import initial  # MLX may be imported from here on

    start = initial.find(config.lora)
    return {} if start is None else {"lora.init_from.digest": start.digest}


def look_at(
    trials: Sequence[Trial], cfg: DictConfig, loader: Any, accepted: Accepted
) -> dict[Trial, str]:
    """What is wrong with further trials of a sweep; those that can be run are not in it."""
    faults = _Faults(len(trials) + 1)
    configs, _ = _composed(trials, cfg, loader, faults)
    _check_inputs(configs, faults, accepted.looked)
    return {trial: fault for trial in trials if (fault := faults.of(trial.name))}


def _composed(
    trials: Sequence[Trial], cfg: DictConfig, loader: Any, faults: _Faults
) -> tuple[list[tuple[Trial, Config]], list[Trial]]:
    """The trials that are right in themselves, and all of them in the folders that they have."""
    own = own_folders(cfg)
    configs: list[tuple[Trial, Config]] = []
    placed: list[Trial] = []
    for number, given in enumerate(trials):
        trial = given
        try:
            composed = loader.load_sweep_config(cfg, [*trial.overrides])
            config = resolve(composed, trial.overrides)
            if own:
                trial = replace(trial, folder=_own_folder(composed, number))
            for fault in sweep_faults(config):
                faults.add(fault, trial.name)
            configs.append((trial, config))
        except ConfigError as error:
            for fault in error.faults:
                faults.add(fault, trial.name)
        except Exception as error:  # whatever a malformed file makes Hydra raise
            faults.add(explain(error), trial.name)
        placed.append(trial)
    HydraConfig.instance().set_config(cfg)
    return configs, placed


def _keeps_processes(launcher: DictConfig) -> bool:
    return launcher._target_ == BASIC_LAUNCHER or launcher.get("engine") in KEPT_WORKERS


def _book(
    cfg: DictConfig, config: Config, trials: Sequence[Trial], shared: Mapping[str, Any]
) -> Book:
    """Of the folder that the user names, or of the one that the sweep is known by."""
    raw = OmegaConf.to_container(cfg.hydra.sweep, resolve=False)
    assert isinstance(raw, dict)
    folder, name = Path(str(cfg.hydra.sweep.dir)).expanduser(), config.sweep.name
    if raw["dir"] == SWEEPS:
        folder /= name or name_of(trials, shared)
    elif name is not None:
        raise refusal("the sweep", [f"sweep.name={name} and hydra.sweep.dir: one folder is enough"])
    return Book(folder, shared)


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of the schema with their values."""
    found: dict[str, Any] = {}
    for key, value in values.items():
        inner = value if isinstance(value, Mapping) and key in sections() else None
        found |= {key: value} if inner is None else {f"{key}.{k}": v for k, v in inner.items()}
    return found


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
                f"hydra.sweep.subdir: {trial.folder} is the folder of {other.name} and of "
                f"{trial.name}. Name what varies, e.g. hydra.sweep.subdir=\\${{hydra.job.num}}, or "
                "leave it out"
            )


class _Faults:
    """Sentences, each with the trials that it is about; none means all."""

    def __init__(self, n_trials: int) -> None:
        self._n_trials = n_trials
        self._trials: dict[str, list[str]] = {}

    def add(self, fault: str, *trials: str) -> None:
        self._trials.setdefault(fault, []).extend(trials)

    def of(self, trial: str) -> str:
        """What is wrong with one of them."""
        return "; ".join(fault for fault, names in self._trials.items() if trial in names)

    def refuse_if_all(self) -> None:
        """Raise ConfigError if there is none without a fault."""
        faulty = {name for names in self._trials.values() for name in names}
        if len(faulty) == self._n_trials or any(not names for names in self._trials.values()):
            n = self._n_trials
            lines = [_placed(fault, names, n) for fault, names in self._trials.items()]
            raise refusal("the sweep", lines)


def _placed(fault: str, names: Sequence[str], n_trials: int) -> str:
    """The fault and, unless all trials have it, which ones do."""
    if len(names) in (0, n_trials):
        return fault
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    which = f"trial {names[0]}{more}"
    return f"{which}: {fault}" if "\n" in fault else f"{fault} ({which})"


def _unwritable(folder: Path) -> str | None:
    from mlx_ft.runfolder import writable  # MLX may be imported from here on

    if reason := writable(folder, folder):
        return (
            f"hydra.sweep.dir: cannot write to {folder}: {reason}. Choose another folder with "
            "hydra.sweep.dir=FOLDER"
        )
    return None


def _check_inputs(
    configs: Sequence[tuple[Trial, Config]],
    faults: _Faults,
    known: dict[str, tuple[str | None, str | None]],
) -> dict[Trial, str | None]:
    """Data, judge and model of every trial; what several trials share is looked at once.

    Returns the digest of each one's data.
    """
    from mlx_ft.console import configure_logging

    if configs:
        configure_logging(configs[0][1].log_level)
    digests: dict[Trial, str | None] = {}
    for trial, config in configs:
        key = repr((config.data, config.seed, config.eval.task_rows, config.model,
                    config.memory_profile, config.device, config.paths,
                    config.lora if config.lora.init_from else None))  # fmt: skip
        if key not in known:
            known[key] = _looked_at(config)
        digests[trial], fault = known[key]
        if fault is not None:
            faults.add(fault, trial.name)
    return digests


def _looked_at(config: Config) -> tuple[str | None, str | None]:
    """The digest of the data of a trial, and what is wrong with it."""
    from mlx_ft.accept import prepare_inputs

    try:
        return prepare_inputs(config).dataset.digest, None
    except UserError as error:
        return None, "\n      ".join([error.message, *error.faults])
