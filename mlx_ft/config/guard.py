"""What the user's YAML files may not say: whatever would run code, and Hydra's own settings.

Hydra imports the packages of `hydra.searchpath` before it composes, makes the handlers that
`hydra.job_logging` names, and instantiates the launcher's arguments. So a primary config is looked
at before Hydra reads it, and the composed `hydra` node is held against the one of `conf/` alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mlx_ft.config.given import folder_fault

MOST_VALUES = 100_000  # of a file, once its aliases are unfolded
# What files may set of the `hydra` node, and what Hydra writes there itself.
FREE = ("run.dir", "sweep.dir", "sweep.subdir", "verbose", "launcher", "runtime", "overrides",
        "job.name", "job.config_name", "job.override_dirname", "help.app_name")  # fmt: skip
OURS = "run.dir, sweep.dir, sweep.subdir, verbose and launcher"


def file_faults(primary: Path | None, folders: Sequence[Path]) -> list[str]:
    """Faults of a primary config and of the groups' files in `folders`, before Hydra reads them.

    A file that cannot be parsed has none: composition says what is wrong with it.
    """
    files = [path for folder in folders for path in sorted(folder.glob("*/*.yaml"))]
    files += [path for folder in folders for path in sorted(folder.glob("hydra/*/*.yaml"))]
    faults = []
    for path in [*([primary] if primary else []), *files]:
        try:
            text = path.read_text("utf-8")
            root = yaml.compose(text, yaml.SafeLoader) if "*" in text or path == primary else None
            fault = _size_fault(root) if root is not None else None
            if fault is None and path == primary:
                fault = _searchpath_fault(yaml.safe_load(text))
        except (OSError, ValueError, yaml.YAMLError):
            continue
        except RecursionError:
            fault = "nested too deeply"
        if fault is not None:
            faults.append(f"{path}: {fault}")
    return faults


def _size_fault(root: yaml.Node) -> str | None:
    sizes: dict[int, int] = {}

    def size(node: yaml.Node) -> int:
        """Raises KeyError at an alias inside of what it stands for."""
        if id(node) in sizes:
            if sizes[id(node)] == 0:
                raise KeyError(str(node.start_mark))
            return sizes[id(node)]
        sizes[id(node)] = 0
        parts = node.value if isinstance(node, yaml.CollectionNode) else []
        flat = [one for part in parts for one in (part if isinstance(part, tuple) else (part,))]
        sizes[id(node)] = 1 + sum(map(size, flat))
        return sizes[id(node)]

    try:
        count = size(root)
    except KeyError:
        return "an alias (*name) stands inside of what it refers to"
    if count > MOST_VALUES:
        return f"its aliases (*name) unfold to more than {MOST_VALUES:,} values"
    return None


def _searchpath_fault(content: Any) -> str | None:
    """Of a primary config: packages of a search path would be imported at once."""
    if not isinstance(content, Mapping) or "hydra" not in content:
        return None
    if not isinstance(content["hydra"], Mapping):
        return f"hydra: found {content['hydra']!r}; expected a mapping such as {{run: {{dir: x}}}}"
    if "searchpath" in content["hydra"]:
        return "hydra.searchpath would import packages and is refused. Use --config-dir FOLDER"
    return None


def reach_hydra(arguments: Sequence[str]) -> bool:
    """Whether an argument may set Hydra's own settings, beyond the folders that anybody may."""
    keys = {text.partition("=")[0] for text in arguments} - {"hydra.run.dir", "hydra.sweep.dir"}
    return any("hydra" in key for key in keys)


def composed_faults(
    cfg: DictConfig, own: DictConfig, arguments: Sequence[str], folder: str
) -> list[str]:
    """Faults of a composed configuration, with its `hydra` node.

    own: composed of `conf/` alone. arguments: what Hydra was given. folder: the key of the one
    that will be written to.
    """
    content = _plain(cfg)
    faults = [f"{name}: would run code and is refused. Remove it" for name in _targets(content)]
    hydra = content["hydra"]
    for name in sorted(set(_differences(hydra, _plain(own.hydra)))):
        faults.append(
            f"hydra.{name}: of Hydra's own settings a file can set only {OURS}. Remove it"
        )
    known = [*hydra["overrides"]["hydra"], *hydra["overrides"]["task"]]
    if sorted(map(str, known)) != sorted(arguments):
        faults.append("hydra.overrides: cannot be set. Give arguments on the command line")
    return faults or [*_launcher_faults(cfg), *_folder_faults(cfg, folder)]


def _folder_faults(cfg: DictConfig, name: str) -> Iterator[str]:
    try:
        fault = folder_fault(OmegaConf.select(cfg, name))
    except (OmegaConfBaseException, ValueError) as error:
        fault = str(error).splitlines()[0]
    if fault is not None:
        yield f"{name}: {fault}"


def _plain(cfg: DictConfig) -> dict[str, Any]:
    """Without resolving anything."""
    plain = OmegaConf.to_container(cfg, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _targets(node: Any, at: str = "") -> Iterator[str]:
    """Where a `_target_` stands, except those of Hydra's own plugins."""
    if isinstance(node, Mapping):
        for key, value in node.items():
            name = f"{at}.{key}" if at else str(key)
            if key == "_target_" and at not in ("hydra.launcher", "hydra.sweeper"):
                yield name
            yield from _targets(value, name)
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield from _targets(value, f"{at}[{index}]")


def _differences(found: Any, expected: Any, at: str = "") -> Iterator[str]:
    """The keys under which two trees differ, except those that are free."""
    if at in FREE:
        return
    if isinstance(found, Mapping) and isinstance(expected, Mapping):
        for key in found.keys() | expected.keys():
            name = f"{at}.{key}" if at else str(key)
            yield from _differences(found.get(key, ...), expected.get(key, ...), name)
    elif found != expected:
        yield at


def _launcher_faults(cfg: DictConfig) -> list[str]:
    """Hydra instantiates the launcher, and every `_target_` that its values resolve to."""
    try:
        node = _plain(cfg.hydra)["launcher"]
        values = OmegaConf.to_container(cfg.hydra.launcher, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        return [f"hydra.launcher: {str(error).splitlines()[0]}"]
    classes = {f"{one.__module__}.{one.__name__}" for one in Plugins.instance().discover(Launcher)}
    if not isinstance(node, Mapping) or node.get("_target_") not in classes:
        return [f"hydra.launcher: is none of the installed launchers: {', '.join(sorted(classes))}"]
    own = {key for key in node if str(key).startswith("_")} - {"_target_"}
    inner = [*_targets({"hydra": {"launcher": values}}), *(f"hydra.launcher.{key}" for key in own)]
    return [f"{name}: would run code and is refused. Remove it" for name in inner]
