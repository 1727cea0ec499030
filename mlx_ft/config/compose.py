"""From the command line to a checked Config: the only place that drives Hydra's composition.

Hydra's own entry (`@hydra.main`) writes a folder and a log before the task starts and stops at
the first bad override. So its pieces are called one by one here: check, compose, resolve.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hydra import version as hydra_version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from mlx_ft.config import conf_dir, secrets
from mlx_ft.config.check import build, convert_all, cross_faults, get
from mlx_ft.config.given import idle_faults, path_fault
from mlx_ft.config.groups import Groups
from mlx_ft.config.guard import composed_faults, file_faults, reach_hydra
from mlx_ft.config.keys import keys
from mlx_ft.config.overrides import check_overrides
from mlx_ft.config.schema import Config
from mlx_ft.config.values import environment_texts, read
from mlx_ft.errors import ConfigError

# Given with every command line, so that Hydra writes nothing whatever the primary config is:
# ours, the user's own, or a run's config.yaml, which knows nothing of Hydra.
SETTINGS = (
    "hydra/help=mlx_ft",
    "hydra/job_logging=none",
    "hydra/hydra_logging=none",
    "hydra/sweeper=mlx_ft",
    "hydra.output_subdir=null",
    "hydra.job.chdir=false",
)
SWEEP_DIR = "${oc.select:paths.output_dir,outputs}/sweeps"  # and in it the sweep's name
# Where Hydra would put things, unless an argument or a file says otherwise.
HYDRA_RUN_DIR = "outputs/${now:%Y-%m-%d}/${now:%H-%M-%S}"
HYDRA_SWEEP_DIR = "multirun/${now:%Y-%m-%d}/${now:%H-%M-%S}"


@dataclass(frozen=True)
class CommandLine:
    """What was asked for: the `key=value` arguments and where the YAML files are."""

    overrides: tuple[str, ...] = ()
    config_name: str = "main"
    config_dirs: tuple[Path, ...] = ()
    multirun: bool = False

    @property
    def groups(self) -> Groups:
        """The YAML files to choose from; the user's folders come before ours."""
        return Groups((*self.config_dirs, conf_dir()))

    def for_hydra(self) -> list[str]:
        """The arguments as Hydra gets them; check() has accepted them.

        A key that the schema knows may be missing in a partial file of the user: `++` sets it
        there too. A group that is in no defaults list, as with a run's config.yaml, takes a
        choice only with `+`.
        """
        listed = self.groups.listed(self.config_name)
        names = self.groups.names()
        texts = [*SETTINGS]
        for text in self.overrides:
            key, _, value = text.partition("=")
            if key.startswith("hydra") or key.startswith("~"):
                texts.append(text)
            elif key in names and not value.startswith("{"):
                texts.append(text if key in listed else f"+{text}")
            else:
                texts.append("++" + text.lstrip("+"))
        return texts


@dataclass(frozen=True)
class Accepted:
    """public: as it may be saved. choices: each group's file. run_dir: the user's."""

    config: Config
    public: dict[str, Any]
    choices: dict[str, str]
    run_dir: Path | None


def accept(command: CommandLine) -> Accepted:
    """The whole way from a command line to a typed configuration. Raises ConfigError."""
    check(command)
    cfg = compose(open_hydra(command), command)
    run_dir = Path(cfg.hydra.run.dir) if _raw(cfg.hydra.run) != HYDRA_RUN_DIR else None
    config, public = resolve_both(cfg, command.overrides)
    return Accepted(config, public, group_choices(cfg), run_dir)


def _raw(folder: DictConfig) -> Any:
    """A folder of Hydra's as text, before its interpolations."""
    return OmegaConf.to_container(folder, resolve=False)["dir"]  # type: ignore[call-overload, index]


def check(command: CommandLine) -> None:
    """Raise one ConfigError with every fault that the arguments have by themselves."""
    for folder in command.config_dirs:
        if path_fault(str(folder)) or not folder.is_dir():
            raise ConfigError(f"There is no folder {folder} (--config-dir)")
    groups = command.groups
    faults = check_overrides(command.overrides, groups, multirun=command.multirun)
    if groups.find(command.config_name) is None:
        options = ", ".join(groups.options(""))
        faults.insert(0, f"--config-name {command.config_name}: no such file; there is: {options}")
    faults += file_faults(groups.find(command.config_name), command.config_dirs)
    if faults:
        raise refusal("the arguments", faults)


def refusal(where: str, faults: Sequence[str]) -> ConfigError:
    """The error that lists these faults."""
    return ConfigError(f"{len(faults)} fault{'s' * (len(faults) > 1)} in {where}:", faults)


def open_hydra(command: CommandLine) -> Any:
    """Hydra's machinery, searching the user's folders first and `conf/` last."""
    hydra_version.setbase("1.3")
    GlobalHydra.instance().clear()
    path = create_config_search_path(str(conf_dir()))
    for folder in reversed(command.config_dirs):
        path.prepend("command-line", f"file://{folder.resolve()}", SearchPathQuery(provider="main"))
    return Hydra.create_main_hydra2(task_name="train", config_search_path=path)


def compose(hydra: Any, command: CommandLine) -> DictConfig:
    """Compose once; the result still has its `hydra` node. Raises ConfigError."""
    mode = RunMode.MULTIRUN if command.multirun else RunMode.RUN
    try:
        cfg: DictConfig = hydra.config_loader.load_configuration(
            config_name=command.config_name, overrides=command.for_hydra(), run_mode=mode
        )
    except Exception as error:  # whatever a malformed file makes Hydra raise
        raise refusal("the configuration", [explain(error)]) from error
    if _raw(cfg.hydra.sweep) == HYDRA_SWEEP_DIR:
        cfg.hydra.sweep.dir = SWEEP_DIR
    HydraConfig.instance().set_config(cfg)
    folder = "hydra.sweep.dir" if command.multirun else "hydra.run.dir"
    apart = command.config_dirs or command.config_name != "main"
    own = _own(mode) if apart or reach_hydra(command.overrides) else cfg
    if faults := composed_faults(cfg, own, command.for_hydra(), folder):
        raise refusal("the configuration", faults)
    return cfg


def _own(mode: RunMode) -> DictConfig:
    """What `conf/` alone gives."""
    loader = ConfigLoaderImpl(create_config_search_path(str(conf_dir())))
    own: DictConfig = loader.load_configuration("main", [*SETTINGS], mode)
    return own


def explain(error: BaseException) -> str:
    """The messages of an error and its causes, in one line."""
    texts: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        text = " ".join(line.strip() for line in str(cause).splitlines() if line.strip())
        if text and not any(text in earlier for earlier in texts):
            texts.append(text)
        cause = cause.__cause__
    return ": ".join(texts) or type(error).__name__


def resolve(cfg: DictConfig, arguments: Sequence[str] = ()) -> Config:
    """The typed configuration. Raises one ConfigError with every fault.

    arguments: those of the command line, of which none may be without effect.
    """
    return _resolved(cfg, arguments)[0]


def resolve_both(cfg: DictConfig, arguments: Sequence[str] = ()) -> tuple[Config, dict[str, Any]]:
    """(`resolve`, `public_dict`), for less than one after the other. Raises ConfigError."""
    config, texts = _resolved(cfg, arguments)
    return config, _public(config, texts)


def _resolved(cfg: DictConfig, arguments: Sequence[str]) -> tuple[Config, dict[str, Any]]:
    """The configuration, and the texts of what comes from environment variables."""
    faults: dict[str, str] = {}
    values, wrong = convert_all(dict(read(cfg, faults)))
    texts = environment_texts(cfg)
    for name in wrong.keys() & texts.keys():
        origin = secrets.source(texts[name])
        wrong[name] = f"found a value from {origin}; expected {keys()[name].expected()}"
    faults |= wrong
    config = build(values)
    if fault := secrets.password_fault(config.tracking.uri, texts.get("tracking.uri")):
        faults["tracking.uri"] = fault
    hook = config.tracking.webhook
    if fault := secrets.webhook_fault(hook, texts.get("tracking.webhook")):
        faults["tracking.webhook"] = fault
    lines = [f"{name}: {fault}" for name, fault in faults.items()]
    related = cross_faults(config, skip=faults) + idle_faults(arguments, config, cfg)
    for names, line in related:
        lines.append(secrets.hide(line, {name: get(config, name) for name in names}, texts))
    if lines:
        raise refusal("the configuration", lines)
    return config, texts


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The typed configuration of a run's saved `config.yaml`. Raises ConfigError."""
    return resolve(OmegaConf.create(dict(values)))


def public_dict(cfg: DictConfig) -> dict[str, Any]:
    """Everything resolved, except `${oc.env:...}`, which stays as text: no secret is written.

    Complete and flat of Hydra: as `config.yaml` it runs again. Raises ConfigError.
    """
    return resolve_both(cfg)[1]


def _public(config: Config, texts: Mapping[str, Any]) -> dict[str, Any]:
    public: dict[str, Any] = _escaped(asdict(config))
    for name, text in texts.items():
        section, _, leaf = name.rpartition(".")
        (public[section] if section else public)[leaf] = text
    return public


def _escaped(value: Any) -> Any:
    """A text such as `${seed}` that is meant as it is, so that OmegaConf reads it as that again."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", r"\1\1\\${", value)
    return value


def group_choices(cfg: DictConfig) -> dict[str, str]:
    """Which file each group was taken from, e.g. {"optimizer": "adamw"}."""
    choices = OmegaConf.to_container(cfg.hydra.runtime.choices)
    assert isinstance(choices, dict)
    ours = {str(k): v for k, v in choices.items() if not str(k).startswith("hydra/")}
    return {group: str(choice) for group, choice in ours.items() if choice is not None}
