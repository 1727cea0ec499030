"""What a sweep as a whole is asked for, and the launcher that follows from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from mlx_ft.config.check import build, convert_all
from mlx_ft.config.compose import refusal
from mlx_ft.config.keys import keys
from mlx_ft.config.schema_sweep import SweepConfig
from mlx_ft.errors import ConfigError

BASIC_LAUNCHER = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
WORKERS = "hydra_plugins.mlx_ft_launchers.plugin.WorkersLauncher"


@dataclass(frozen=True)
class Settings:
    """What a sweep is asked for. seeds: the argument that repeats each point, if there is one.

    seed: of the sweep's trials, or of the first of several.
    """

    sweep: SweepConfig
    seeds: tuple[str, ...] = ()
    seed: int = 0


def settings_of(arguments: Sequence[str], cfg: DictConfig, loader: Any) -> Settings:
    """The keys of `sweep`, which are the same for all trials. Raises ConfigError.

    One that is wrong has its default here; `accept` says what is wrong.
    """
    parsed = OverridesParser.create(config_loader=loader).parse_overrides([*arguments])
    single = [one.input_line for one in parsed if not one.is_sweep_override()]
    try:
        composed = loader.load_sweep_config(cfg, single)
        given = OmegaConf.to_container(OmegaConf.select(composed, "sweep") or {}, resolve=True)
        assert isinstance(given, dict)
        values = {f"sweep.{name!s}": value for name, value in given.items()}
        values["seed"] = OmegaConf.select(composed, "seed")
    except Exception:  # whatever a malformed file makes Hydra raise
        return Settings(SweepConfig())
    config = build(convert_all({k: v for k, v in values.items() if k in keys()})[0])
    count = config.sweep.seeds
    if count == 1:
        return Settings(config.sweep, seed=config.seed)
    if any(
        one.get_key_element().lstrip("+") == "seed" for one in parsed if one.is_sweep_override()
    ):
        raise refusal("the sweep", [f"sweep.seeds={count} and several values of seed: give one"])
    seeds = ",".join(str(config.seed + number) for number in range(count))
    return Settings(config.sweep, (f"++seed={seeds}",), config.seed)


def choose_launcher(cfg: DictConfig, sweep: SweepConfig) -> None:
    """Let `cfg` have the launcher that `sweep.together` asks for. Raises ConfigError."""
    if sweep.together == 1:
        return
    launcher = cfg.hydra.launcher
    if launcher.get("_target_") != BASIC_LAUNCHER:
        raise ConfigError(
            f"sweep.together={sweep.together}: found hydra/launcher={launcher.get('engine')}; "
            "its trials train in one process. Leave one of the two out"
        )
    with read_write(cfg.hydra), open_dict(cfg.hydra):
        cfg.hydra.launcher = {"_target_": WORKERS, "engine": "together", "n_jobs": sweep.together}
