"""The families of functions: read from `families/*.yaml`, filled in with their parameters.

A family has `slots` (parameters and their options; an option that is a mapping gives several
values at once), and with `$slot` in their texts: `name` and `args` of the function, what it
`does` in words, its `body`, and to judge it: `check`, an expression for the right result that
was written apart from the body, `cases` of arguments, and `wrong` edits of the body.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import yaml

FAMILIES = Path(__file__).parent / "families"
Filling = dict[str, str]


@dataclass(frozen=True)
class Task:
    """One function that is asked for. does: in words, several ways. wrong: codes that fail."""

    kind: str
    signature: str
    does: tuple[str, ...]
    code: str
    check: str
    cases: tuple[str, ...]
    wrong: tuple[str, ...]


def read_families(folder: Path = FAMILIES) -> dict[str, dict[str, Any]]:
    """The families of every file: kind -> its texts."""
    families: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.glob("*.yaml")):
        for kind, family in yaml.safe_load(path.read_text(encoding="utf-8")).items():
            if kind in families:
                raise ValueError(f"{path}: {kind} is there twice")
            families[kind] = family
    return families


def fillings(slots: Mapping[str, Sequence[Any]]) -> list[Filling]:
    """Every choice of one option for each slot, in order; a mapping's keys are slots themselves."""
    result = []
    for chosen in itertools.product(*slots.values()):
        filling: Filling = {}
        for slot, option in zip(slots, chosen, strict=True):
            values = option if isinstance(option, dict) else {slot: option}
            filling |= {key: str(value) for key, value in values.items()}
        result.append(filling)
    return result


def fill(text: str, filling: Filling) -> str:
    """Put the values in for `$slot` and `${slot}`. Raises KeyError for a slot without a value."""
    return Template(text).substitute(filling)


def lines(text: str) -> list[str]:
    """The lines of a block, without empty ones."""
    return [line for line in text.splitlines() if line.strip()]


def edits(text: str, original: str) -> Iterator[str]:
    """`original` after each edit: lines of `old => new`. Raises ValueError where old is not."""
    for line in lines(text):
        old, _, new = line.partition(" =>")
        if original.count(old) == 0:
            raise ValueError(f"{old!r} is not in {original!r}")
        yield original.replace(old, new.removeprefix(" "), 1)


def build_task(kind: str, family: Mapping[str, Any], filling: Filling) -> Task:
    """The task that a family makes of these parameters."""
    name, args = fill(family["name"], filling).lower(), fill(family["args"], filling)
    head = f"def {name}({args}):\n"
    body = fill(family["body"], filling).rstrip()
    # A function's own name may be in its body, where the parameters make it.
    wrong = tuple(
        head + textwrap.indent(edited, "    ")
        for edited in edits(fill(family["wrong"], filling), body)
    )
    return Task(
        kind=kind,
        signature=f"{name}({args})",
        does=tuple(fill(line, filling) for line in lines(family["does"])),
        code=head + textwrap.indent(body, "    "),
        check=f"def expected({args}):\n    return {fill(family['check'], filling)}\n",
        cases=tuple(fill(line, filling) for line in lines(family["cases"])),
        wrong=(*wrong, head + "    return None", head + f"    return {args.split(',')[0]}"),
    )
