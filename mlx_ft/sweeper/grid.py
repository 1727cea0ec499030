"""The grid: swept arguments -> trials, each with a name and a folder name."""

from __future__ import annotations

import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override

from mlx_ft.config.compose import refusal
from mlx_ft.config.ranges import Interval, interval_of
from mlx_ft.errors import ConfigError

MOST_TRIALS = 1000
LONGEST_FOLDER = 100


@dataclass(frozen=True)
class Trial:
    """One point of the grid. name: what varies, e.g. `rank=8 learning_rate=1e-4`."""

    name: str
    folder: str
    overrides: tuple[str, ...]


@dataclass(frozen=True)
class Axis:
    """One argument. key without its `++` prefix; texts: its values as arguments.

    interval: what it ranges over, if it does; texts are then its ends.
    """

    key: str
    prefix: str
    texts: tuple[str, ...]
    interval: Interval | None = None

    @property
    def varies(self) -> bool:
        """Whether it tells trials apart."""
        return len(self.texts) > 1


def expand(arguments: Sequence[str], config_loader: Any = None) -> list[Trial]:
    """Every combination, in the order of the command line: the last argument varies fastest.

    config_loader: lists the choices of a group for `glob(...)`. Raises ConfigError when there
    are too many, or they cannot be listed.
    """
    axes = axes_of(arguments, config_loader)
    if endless := [f"{axis.key}: {axis.interval}" for axis in axes if axis.interval]:
        raise refusal(
            "the sweep",
            [
                f"{one}; an interval cannot be listed. Give the values, a,b,c or "
                "range(a,b,step), or search it: sweep=search"
                for one in endless
            ],
        )
    count = 1
    for axis in axes:
        count *= len(axis.texts)
    if count > MOST_TRIALS:
        raise ConfigError(
            f"The sweep has {count:,} trials; at most {MOST_TRIALS:,} are allowed. Give fewer "
            "values"
        )
    return trials_of(axes, itertools.product(*(axis.texts for axis in axes)))


def axes_of(arguments: Sequence[str], config_loader: Any = None) -> list[Axis]:
    """What each argument ranges over."""
    parser = OverridesParser.create(config_loader=config_loader)
    return [_axis(override) for override in parser.parse_overrides([*arguments])]


def trials_of(
    axes: Sequence[Axis], points: Iterable[Sequence[str]], *, digest: bool = False
) -> list[Trial]:
    """A trial for each point, which has one of the texts of each axis.

    digest: of the point in every folder's name, where others than these might take it.
    """
    labels = _labels(axes)
    names, overrides = [], []
    for values in points:
        pairs = [*zip(axes, labels, values, strict=True)]
        varying = [f"{label}={_plain(text)}" for axis, label, text in pairs if axis.varies]
        names.append(" ".join(varying) or "trial")
        overrides.append(tuple(f"{axis.prefix}{axis.key}={text}" for axis, _, text in pairs))
    folders = _folders(names, overrides, digest)
    return [Trial(*parts) for parts in zip(names, folders, overrides, strict=True)]


def _axis(override: Override) -> Axis:
    element = override.get_key_element()
    key = element.lstrip("+")
    prefix = element[: len(element) - len(key)]
    interval = interval_of(override)
    if interval is not None:
        return Axis(key, prefix, (interval.text(interval.low), interval.text(interval.high)),
                    interval)  # fmt: skip
    return Axis(key, prefix, _texts(override))


def _texts(override: Override) -> tuple[str, ...]:
    """The values as the user wrote them (1e-4, not 0.0001) where that can be told."""
    raw = (override.input_line or "").partition("=")[2]
    if not override.is_sweep_override():
        return (raw,)
    texts = tuple(override.sweep_string_iterator())
    inner = re.sub(r"^choice\((.*)\)$", r"\1", raw)
    parts = tuple(part.strip() for part in inner.split(","))
    simple = len(parts) == len(texts) and not re.search(r"[\[\](){}'\"\\]", inner)
    return parts if simple else texts


def _labels(axes: Sequence[Axis]) -> list[str]:
    """The last part of each key, or the whole key where two would look the same."""
    leaves = Counter(axis.key.rpartition(".")[2] for axis in axes if axis.varies)
    return [
        axis.key if leaves[axis.key.rpartition(".")[2]] > 1 else axis.key.rpartition(".")[2]
        for axis in axes
    ]


def _plain(text: str) -> str:
    """A value for a name: unquoted, and never an interpolation that would be resolved again."""
    return text.strip("'\"").replace("$", "").replace("\\", "")


def is_crowded(axes: Sequence[Axis]) -> bool:
    """Whether folders named by their points alone could be the same for two of them."""
    return any(
        len({_safe(_plain(text)) for text in axis.texts}) < len(set(axis.texts)) for axis in axes
    )


def _safe(name: str) -> str:
    return re.sub(r"[^\w.,=+-]+", "_", name.replace(" ", ",")).strip(".")


def _folders(names: Sequence[str], overrides: Sequence[Sequence[str]], digest: bool) -> list[str]:
    """Folder names, with a digest where the trial's name is too long or does not tell it apart.

    Not with its number: the same trial of a larger sweep has the same folder.
    """
    safe = [_safe(name) for name in names]
    counts = Counter(safe)
    return [
        name if counts[name] == 1 and len(name) <= LONGEST_FOLDER and not digest
        else f"{name[:LONGEST_FOLDER]}-{hashlib.sha256(repr(given).encode()).hexdigest()[:8]}"
        for name, given in zip(safe, overrides, strict=True)
    ]  # fmt: skip
