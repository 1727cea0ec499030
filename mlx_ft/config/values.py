"""The values of a composed configuration, before they are judged."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from omegaconf.resolvers import oc

from mlx_ft.config import secrets
from mlx_ft.config.keys import keys, sections
from mlx_ft.config.suggest import did_you_mean


def read(cfg: DictConfig, faults: dict[str, str]) -> Iterator[tuple[str, Any]]:
    """Every known key with its value, interpolations resolved; the rest goes to `faults`."""
    for top in cfg:
        if top == "hydra":
            continue
        if top not in sections():
            yield from _value(cfg, str(top), str(top), faults)
            continue
        section = next((value for _, value in _value(cfg, top, None, faults)), None)
        if isinstance(section, DictConfig):
            for leaf in section:
                yield from _value(section, leaf, f"{top}.{leaf!s}", faults)
        elif top not in faults:
            faults[top] = f"found {section!r}; expected a section with keys"


def _value(
    node: DictConfig, leaf: Any, name: str | None, faults: dict[str, str]
) -> Iterator[tuple[str, Any]]:
    """One value of `node`, or a fault; `name` is None for a section, which stays a node."""
    if name is not None and name not in keys():
        faults[name] = f"there is no such key. {did_you_mean(name)}"
        return
    try:
        value = node[leaf]
        if name is not None and OmegaConf.is_config(value):
            value = OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
    except MissingMandatoryValue:
        faults[name or leaf] = f"has no value yet. Give it as {name or leaf}=VALUE"
    except (OmegaConfBaseException, ValueError) as error:
        text = str(error).splitlines()[0]
        faults[name or leaf] = re.sub(r"^\w+ raised while resolving interpolation: ", "", text)
    else:
        yield name or leaf, value


def environment_texts(cfg: DictConfig) -> dict[str, Any]:
    """The values that come from environment variables, with `${oc.env:...}` unresolved."""
    # With what is Hydra's own: values may be taken from there.
    copy: DictConfig = OmegaConf.masked_copy(cfg, [*cfg])
    OmegaConf.copy_cache(from_config=cfg, to_config=copy)  # the same ${now:...}
    OmegaConf.register_new_resolver("oc.env", secrets.lookup, replace=True)
    try:
        found = dict(read(copy, {}))
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)
    found = {name: value for name, value in found.items() if "${oc.env:" in str(value)}
    plain = dict(read(cfg, {})) if found else {}  # an escaped one is the same in both
    return {name: value for name, value in found.items() if value != plain.get(name)}
