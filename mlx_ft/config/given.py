"""What was given, held against the world: paths, and arguments that would change nothing."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import DictConfig

from mlx_ft.config.groups import Groups
from mlx_ft.config.schema import Config
from mlx_ft.config.screen import shown

# Keys of a sweep that only some choices of another one use.
USED_BY = {
    "sampler_seed": ("sampler", ("tpe", "spread", "random")),
    "pruner_warmup": ("pruner", ("median", "asha", "patience")),
    "pruner_startup": ("pruner", ("median",)),
    "pruner_factor": ("pruner", ("asha",)),
    "pruner_patience": ("pruner", ("patience",)),
}


def path_fault(path: str) -> str | None:
    """Why this cannot be a path at all; None for one that is merely not there."""
    try:
        Path(path).expanduser().stat()
    except (FileNotFoundError, NotADirectoryError):
        return None  # whoever opens it says so, and knows what was expected
    except OSError as error:
        return f"found {path!r}; this path cannot be used: {error.strerror or error}"
    except RuntimeError:
        user = path.partition("/")[0]
        return f"found {path!r}; there is no user {user[1:]!r}. Write the folder's whole path"
    except ValueError as error:
        return f"found {path!r}; this is no path: {error}"
    return None


def folder_fault(value: Any) -> str | None:
    """Why this cannot be a folder to write to; None for one that is merely not there."""
    if not isinstance(value, (str, int)) or isinstance(value, bool) or not str(value).strip():
        return f"found {shown(repr(value))}; expected a folder"
    return path_fault(str(value))


def idle_faults(
    arguments: Sequence[str], config: Config, cfg: DictConfig
) -> list[tuple[tuple[str, ...], str]]:
    """Arguments without effect, as faults with the keys that they are about.

    cfg: what was composed of the arguments, with its `hydra` node.
    """
    found = _idle_in_a_sweep(arguments, config)
    epochs, steps = _given(arguments, "train", "epochs"), config.train.max_steps
    if epochs is None or steps is None or _given(arguments, "train", "max_steps") is not None:
        return found
    text = (
        f"train.epochs={epochs} has no effect while train.max_steps is {steps} "
        f"(from {_origin(cfg, 'train', 'max_steps', steps)}). Add train.max_steps=null"
    )
    return [*found, (("train.max_steps",), text)]


def _idle_in_a_sweep(arguments: Sequence[str], config: Config) -> list[tuple[tuple[str, ...], str]]:
    """Settings of a sampler or a pruner that is not the chosen one."""
    found: list[tuple[tuple[str, ...], str]] = []
    for leaf, (chooser, users) in USED_BY.items():
        value, chosen = _given(arguments, "sweep", leaf), getattr(config.sweep, chooser)
        if value is not None and chosen not in users:
            key = f"sweep.{leaf}"
            text = (
                f"{key}={value} has no effect with sweep.{chooser}={chosen}; "
                f"{', '.join(users)} would use it. Leave it out"
            )
            found.append(((key, f"sweep.{chooser}"), text))
    return found


def _given(arguments: Sequence[str], section: str, leaf: str) -> str | None:
    """The text of a value among the arguments: `train.epochs=3` or `train={epochs: 3}`."""
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key.lstrip("+") == f"{section}.{leaf}":
            return value
        found = re.search(rf"[{{,]\s*{leaf}\s*:\s*([^,}}]*)", value)
        if key.lstrip("+") == section and found:
            return found[1].strip()
    return None


def _origin(cfg: DictConfig, section: str, leaf: str, value: Any) -> str:
    """The last chosen file that gives a key this value, e.g. `data=geography_sql`."""
    groups = Groups(tuple(Path(source.path) for source in cfg.hydra.runtime.config_sources
                          if source.schema == "file"))  # fmt: skip
    found = f"{cfg.hydra.job.config_name}.yaml"
    for group, choice in cfg.hydra.runtime.choices.items():
        path = groups.find(f"{group}/{choice}")
        content = yaml.safe_load(path.read_bytes()) if path else None
        if isinstance(content, Mapping):
            own = content if group == section else content.get(section)
            if isinstance(own, Mapping) and own.get(leaf) == value:
                found = f"{group}={choice}"
    return found
