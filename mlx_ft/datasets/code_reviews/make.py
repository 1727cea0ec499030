"""Write the data set's files: `python -m mlx_ft.datasets.code_reviews.make [--check]`."""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlx_ft.code_tests.run import extract_code, run_tests
from mlx_ft.datasets.code_reviews.faults import (
    Fault,
    build_fault,
    place,
    read_faults,
    read_helpers,
)
from mlx_ft.datasets.geography_sql.splits import shuffled
from mlx_ft.datasets.making import make_files
from mlx_ft.datasets.python_functions.families import fillings
from mlx_ft.datasets.python_functions.make import quotas

SEED = 20262
SYSTEM = "Review the code: name the faulty line, say what is wrong and why, and mend it."
ROWS = {"train": 160, "valid": 20, "test": 20}
REQUESTS = {
    "train": (
        "Please review this code.",
        "What is wrong here?",
        "Find the fault in this Python code.",
        "There is a bug in this code. Where is it, and how is it mended?",
        "Would you take a look at this before it is merged?",
        "Review:",
    ),
    "valid": ("Can you spot the mistake in this code?",),
    "test": ("Something is not right in this code. Please review it.",),
}
HELD_OUT_HELPERS = 5

Row = dict[str, Any]


def split_faults() -> dict[str, list[Fault]]:
    """The faults of each split, with sound code around them; every family is in training."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    families = read_faults()
    order = shuffled(list(families), rng)
    counts = {split: quotas(order, rows) for split, rows in ROWS.items()}
    counts["test"] = quotas(order[::-1], ROWS["test"])
    helpers = shuffled(read_helpers(), rng)
    splits: dict[str, list[Fault]] = {split: [] for split in ROWS}
    for kind, family in families.items():
        chosen = iter(shuffled(fillings(family["slots"]), rng))
        for split in ("test", "valid", "train"):
            own = helpers[HELD_OUT_HELPERS:] if split == "train" else helpers[:HELD_OUT_HELPERS]
            for _ in range(counts[split][kind]):
                fault = build_fault(kind, family, next(chosen))
                splits[split].append(_surround(fault, own, rng))
    return {split: shuffled(faults, rng) for split, faults in splits.items()}


def _surround(fault: Fault, helpers: Sequence[str], rng: random.Random) -> Fault:
    before, after = shuffled(helpers, rng)[:2]
    way = int(rng.random() * 3)
    if way == 0 or len(fault.faulty.splitlines()) > 14:
        return fault
    # Imports and constants stand at the top.
    at_top = fault.faulty.startswith("def ")
    return place(fault, [before], []) if way == 1 and at_top else place(fault, [], [after])


def make_row(fault: Fault, request: str) -> Row:
    """One line of a file."""
    source = fault.faulty.splitlines()[fault.line - 1].strip()
    review = f"Line {fault.line}: `{source}`\n\n{fault.what} {fault.why}"
    turns = {
        "system": SYSTEM,
        "user": f"{request}\n\n```python\n{fault.faulty}\n```",
        "assistant": f"{review}\n\nMended:\n\n```python\n{fault.mended}\n```",
    }
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    row: Row = {"messages": messages, "kind": fault.kind, "line": fault.line}
    if fault.setup:
        row["setup"] = fault.setup
    return {**row, "tests": list(fault.tests)}


def make_splits() -> dict[str, list[Row]]:
    """All rows of the data set, the same on every machine: split -> rows."""
    return {
        split: [
            make_row(fault, REQUESTS[split][at % len(REQUESTS[split])])
            for at, fault in enumerate(faults)
        ]
        for split, faults in split_faults().items()
    }


def wrong(rows: Iterable[Row]) -> Iterator[str]:
    """Rows whose faulty code passes their tests, or whose mended code does not."""

    def check(row: Row) -> list[str]:
        _, user, assistant = row["messages"]
        faulty, mended = (
            run_tests(f"{row.get('setup', '')}\n{extract_code(turn['content'])}", row["tests"])
            for turn in (user, assistant)
        )
        found = []
        # A fault shows in a test: code that does not even load shows nothing.
        if faulty.passed or not faulty.reason.startswith("test"):
            found.append(f"{row['kind']}: the faulty code: {faulty.reason or 'passes'}")
        if not mended.passed:
            found.append(f"{row['kind']}: the mended code: {mended.reason}")
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(check, rows):
            yield from found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` judge them by running them; returns the exit code."""
    splits = make_splits()

    def faults() -> Iterator[str]:
        for rows in splits.values():
            yield from wrong(rows)

    good = "every faulty code fails its tests, every mended one passes"
    return make_files(arguments, Path(__file__).parent, __doc__, splits, faults, good)


if __name__ == "__main__":
    sys.exit(main())
