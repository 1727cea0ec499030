"""The static check of `key=value` arguments, before Hydra composes anything.

Hydra reports only the first bad override, composes `+lora.x=1` without a word, and would run
`_target_`s. Here every argument is parsed with Hydra's own grammar and held against the schema;
all faults come back together.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Glob, Override
from hydra.errors import HydraException

from mlx_ft.config.given import folder_fault
from mlx_ft.config.groups import Groups
from mlx_ft.config.keys import QUANTIZE_KEYS, convert, keys, sections
from mlx_ft.config.ranges import interval_of
from mlx_ft.config.screen import shown
from mlx_ft.config.suggest import did_you_mean

HYDRA_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
HYDRA_KEYS = (*HYDRA_PATHS, "hydra.verbose", "hydra/launcher", "hydra.launcher.*")
SWEEP_KEYS = ("hydra.sweep.", "hydra/launcher", "hydra.launcher.")  # nothing but a sweep has them
MOST_VALUES = 10_000  # of one sweep

_SHAPE = re.compile(r"(?P<prefix>\+\+|\+|~)?(?P<key>[^=@\s]+)(?P<package>@[^=]*)?(?P<value>=.*)?",
                    re.DOTALL)  # fmt: skip


def check_overrides(texts: Sequence[str], groups: Groups, *, multirun: bool) -> list[str]:
    """Every fault of the `key=value` arguments, one line each."""
    parser = OverridesParser.create()
    faults: list[str] = []
    seen: dict[str, str] = {}
    for text in texts:
        found = [*_faults(text, parser, groups, multirun)]
        key = _key(text)
        if not found and key in seen:
            found = [f"sets {shown(key)} again, after `{shown(seen[key])}`. Keep one of them"]
        seen.setdefault(key, text)
        faults += [f"`{shown(text)}`: {fault}" for fault in found]
    return faults


def _key(text: str) -> str:
    return text.partition("=")[0].lstrip("+~")


def _faults(text: str, parser: Any, groups: Groups, multirun: bool) -> Iterator[str]:
    shape = _SHAPE.fullmatch(text)
    if text.startswith("-") or shape is None or (shape["value"] is None and shape["prefix"] != "~"):
        yield _not_key_value(text, groups)
        return
    key = shape["key"]
    if "_target_" in text:
        yield "_target_ would run code and is refused everywhere. Remove it"
    elif shape["package"]:
        yield "packages (@) are not used here. Write group=choice"
    elif key == "hydra" or key.startswith(("hydra.", "hydra/")):
        yield from _hydra_faults(key, shape["prefix"], text, parser, multirun)
    elif not _known(key, groups):
        yield f"there is no {shown(key)}. {did_you_mean(key, groups.names())}"
    elif not _free_form(key) and (fault := _prefix_fault(shape["prefix"], key, groups)):
        yield fault
    else:
        yield from _value_faults(key, text, parser, groups, multirun)


def _not_key_value(text: str, groups: Groups) -> str:
    if _known(text, groups):
        return f"has no value. Write {text}=VALUE, without spaces"
    if text.startswith("-"):
        return f"there is no such option. Settings have no dashes: {text.lstrip('-')}"
    return "is not of the form key=value. Quote values with spaces: 'key=\"a b\"'"


def _known(key: str, groups: Groups) -> bool:
    parent, _, leaf = key.rpartition(".")
    if parent in keys() and "mapping" in keys()[parent].kinds:
        return leaf in QUANTIZE_KEYS
    return key in keys() or key in sections() or key in groups.names() or _free_form(key)


def _free_form(key: str) -> bool:
    """Whether the key lies below one whose names are the user's own: tracking.tags.owner."""
    parent = key.rpartition(".")[0]
    return parent in keys() and keys()[parent].free_form


def _prefix_fault(prefix: str | None, key: str, groups: Groups) -> str | None:
    if prefix == "~":
        return f"{key} cannot be removed. Set it to another value"
    if prefix == "+" or (prefix == "++" and key in groups.names()):
        return f"{key} exists already. Write {key}=VALUE, without {prefix}"
    return None


def _hydra_faults(
    key: str, prefix: str | None, text: str, parser: Any, multirun: bool
) -> Iterator[str]:
    if prefix or not (key in HYDRA_KEYS or key.startswith("hydra.launcher.")):
        hint = " Use -m for a sweep" if key == "hydra.mode" else ""
        yield f"of Hydra's own settings only {', '.join(HYDRA_KEYS)} can be set.{hint}"
        return
    if key == "hydra.run.dir" and multirun:
        yield "has no effect on a sweep. Write hydra.sweep.dir=FOLDER"
    if key.startswith(SWEEP_KEYS) and not multirun:
        meant = "hydra.run.dir=FOLDER, or add -m" if key in HYDRA_PATHS else "it with -m"
        yield f"has no effect on a single run. Write {meant}"
    override, fault = _parse(text, parser)
    if override is None:
        yield fault
    elif override.is_sweep_override():
        yield f"{key} cannot be swept. Give one value"
    elif key == "hydra/launcher" and not re.fullmatch(r"[\w-]+", str(override.value())):
        yield "expected the name of a launcher, e.g. basic"
    else:
        value = override.value()
        yield from _interpolation_faults(value, paths=key in HYDRA_PATHS)
        if key in HYDRA_PATHS and (unusable := folder_fault(value)):
            yield unusable


def _parse(text: str, parser: Any) -> tuple[Override | None, str]:
    try:
        return parser.parse_override(text), ""
    except (HydraException, ValueError) as error:  # ValueError: an integer of 5,000 digits
        reason = str(error).splitlines()[0]
        key, _, value = text.partition("=")
        if re.match(r"~[^'\"]*$", value):
            quoted = f"'{key}=\"{value}\"'"
            home = re.sub(r"^~(?=/|$)", "$HOME", value)
            other = f", or write {key}={home}" if home != value else ""
            return None, f"cannot be read: quote a ~ for Hydra, {quoted}{other}"
        return None, f"cannot be read ({reason}). Quote special characters: 'key=\"a, b\"'"
    except RecursionError:
        return None, "cannot be read (nested too deeply)"


def _value_faults(
    key: str, text: str, parser: Any, groups: Groups, multirun: bool
) -> Iterator[str]:
    override, fault = _parse(text, parser)
    if override is None:
        yield fault
        return
    if override.is_delete():
        return
    if override.is_sweep_override() and not multirun:
        yield (
            "several values make a sweep. Add -m to `train` to run all of them (with "
            f"sweep.dry_run=true only to see them), or write a list as {key}=[a,b]"
        )
    try:
        values = _values(override, groups)
    except (HydraException, ValueError) as error:
        yield str(error)
        return
    if override.is_sweep_override() and key.startswith("sweep."):
        yield f"{key} is of the whole sweep and cannot be swept. Give one value"
        return
    if key.startswith("sweep.") and not multirun:
        yield "has no effect on a single run. Write it with -m"
    for value in values:
        yield from _interpolation_faults(value)
    found = [[*_one_value(key, value, groups)] for value in values]
    if all(found):  # otherwise the sweep says which of its trials cannot be run
        yield from itertools.chain.from_iterable(found)


def _values(override: Override, groups: Groups) -> list[Any]:
    """The value, or every value of a sweep, of an interval its ends.

    Raises ValueError when they cannot be listed.
    """
    if not override.is_sweep_override():
        return [override.value()]
    if (interval := interval_of(override)) is not None:  # the sweep says if it takes one
        return [interval.low, interval.high]
    glob = override.value()
    if isinstance(glob, Glob):
        options = groups.options(override.key_or_group)
        found: list[Any] = list(glob.filter(options))
        if not found:
            raise ValueError(f"matches nothing; there is: {', '.join(options) or 'no such group'}")
        return found
    found = [*itertools.islice(override.sweep_iterator(Override._convert_value), MOST_VALUES + 1)]
    if not found or len(found) > MOST_VALUES:
        count = f"more than {MOST_VALUES:,}" if found else "no"
        raise ValueError(f"gives {count} values")
    return found


def _one_value(key: str, value: Any, groups: Groups) -> Iterator[str]:
    if isinstance(value, str) and "${" in value:
        return  # judged after composition, when it is known
    if isinstance(value, dict) and key in sections():
        for name, inner in value.items():
            if _known(f"{key}.{name}", groups):
                yield from _one_value(f"{key}.{name}", inner, groups)
            else:
                yield f"there is no {key}.{name}. {did_you_mean(f'{key}.{name}')}"
    elif key in groups.names() or key in sections():
        yield from _choice_faults(key, value, groups)
    elif key in keys():
        try:
            convert(keys()[key], value)
        except ValueError as error:
            yield str(error)


def _choice_faults(group: str, choice: Any, groups: Groups) -> Iterator[str]:
    if choice is None and group not in sections():
        return  # experiment=null
    if isinstance(choice, (str, int)) and groups.find(f"{group}/{choice}"):
        return
    options = groups.options(group)
    close = difflib.get_close_matches(str(choice).replace("-", "_"), options, n=1)
    hint = f" Did you mean {close[0]}?" if close else ""
    yield f"there is no {group} {shown(repr(choice))}; there is: {', '.join(options)}.{hint}"


_HEAD = re.compile(r"\$\{\s*([\w.]*)\s*([:}]?)")


def _interpolation_faults(value: Any, paths: bool = False) -> Iterator[str]:
    """Only ${oc.env:NAME} and ${some.key}; for Hydra's folders also ${now:...}, ${hydra...}."""
    if isinstance(value, dict):
        value = [*value, *value.values()]
    if isinstance(value, list):
        for item in value:
            yield from _interpolation_faults(item, paths)
    elif isinstance(value, str):
        for head, after in _HEAD.findall(value):
            parent = head.rpartition(".")[0]
            known = head in keys() or head in sections() or parent in keys()
            resolver = ("oc.env", "now", "hydra") if paths else ("oc.env",)
            if after == ":" and head in resolver:
                continue
            if after == "}" and (known or (paths and head.startswith("hydra."))):
                continue
            yield f"${{{head}...}} is refused; only ${{oc.env:NAME}} and ${{some.key}} are allowed"
