"""The families of faults: read from `faults/*.yaml`, filled in with their parameters.

A family has `slots` as those of `python_functions`, and with `$slot` in their texts: the `faulty`
code with `#!` behind its faulty line, the `mended` code, `what` is wrong and `why`, and `tests`
that fail on the one and pass on the other; where these need more than data, `setup` defines it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_ft.datasets.python_functions.families import Filling, fill, read_families

FAULTS = Path(__file__).parent / "faults"
MARK = "#!"


@dataclass(frozen=True)
class Fault:
    """A fault and its mending. line: of the fault in `faulty`, from 1."""

    kind: str
    faulty: str
    line: int
    mended: str
    what: str
    why: str
    setup: str
    tests: tuple[str, ...]


def read_faults() -> dict[str, dict[str, Any]]:
    """The families of every file: kind -> its texts."""
    return read_families(FAULTS)


def read_helpers() -> list[str]:
    """Small sound functions to stand beside the faulty ones."""
    return (FAULTS / "helpers.txt").read_text(encoding="utf-8").strip().split("\n---\n")


def build_fault(kind: str, family: Mapping[str, Any], filling: Filling) -> Fault:
    """The fault that a family makes of these parameters. Raises ValueError without its mark."""
    faulty, line = unmark(fill(family["faulty"], filling))
    return Fault(
        kind=kind,
        faulty=faulty,
        line=line,
        mended=fill(family["mended"], filling).strip(),
        what=fill(family["what"], filling),
        why=fill(family["why"], filling),
        setup=fill(family.get("setup", ""), filling),
        tests=tuple(fill(test, filling) for test in family["tests"]),
    )


def unmark(code: str) -> tuple[str, int]:
    """The code without its mark, and the number of the line that had it."""
    lines = code.strip().splitlines()
    marked = [at for at, line in enumerate(lines, 1) if line.endswith(MARK)]
    if len(marked) != 1:
        raise ValueError(f"{len(marked)} lines are marked with {MARK}; expected one:\n{code}")
    return "\n".join(line.removesuffix(MARK).rstrip() for line in lines), marked[0]


def place(fault: Fault, before: Sequence[str], after: Sequence[str]) -> Fault:
    """The same fault with sound code before and after it."""

    def surround(code: str) -> str:
        return "\n\n\n".join([*before, code, *after])

    offset = len("\n\n\n".join([*before, ""]).splitlines())
    return Fault(
        kind=fault.kind,
        faulty=surround(fault.faulty),
        line=fault.line + offset,
        mended=surround(fault.mended),
        what=fault.what,
        why=fault.why,
        setup=fault.setup,
        tests=fault.tests,
    )
