"""Write the data set's files: `python -m mlx_ft.datasets.python_functions.make [--check]`."""

from __future__ import annotations

import ast
import os
import random
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from mlx_ft.code_tests.run import run_tests
from mlx_ft.datasets.geography_sql.splits import shuffled
from mlx_ft.datasets.making import make_files
from mlx_ft.datasets.python_functions.families import (
    Task,
    build_task,
    fillings,
    read_families,
)

SEED = 20261
SYSTEM = "Answer with one Python function."
ROWS = {"train": 400, "valid": 50, "test": 50}
REQUESTS = {
    "train": (
        "Write a Python function `{signature}` that {does}.",
        "Define a Python function `{signature}`. It {does}.",
        "I need a Python function `{signature}` that {does}.",
        "Implement `{signature}` in Python: it {does}.",
        "Please write `{signature}`, a Python function that {does}.",
        "Give me the Python function `{signature}`, which {does}.",
    ),
    "valid": ("Can you write a Python function `{signature}` that {does}?",),
    "test": (
        "Code a Python function `{signature}`; it {does}.",
        "Show me the Python function `{signature}` that {does}.",
    ),
}
MAX_TESTS = 8

Row = dict[str, Any]


def split_tasks() -> dict[str, list[Task]]:
    """The tasks of each split. Every family is in training, with parameters of its own there."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    families = read_families()
    order = shuffled(list(families), rng)
    counts = {split: quotas(order, rows) for split, rows in ROWS.items()}
    # The families that give test rows begin at the other end of the order.
    counts["test"] = quotas(order[::-1], ROWS["test"])
    splits: dict[str, list[Task]] = {split: [] for split in ROWS}
    for kind, family in families.items():
        chosen = iter(shuffled(fillings(family["slots"]), rng))
        for split in ("test", "valid", "train"):
            for _ in range(counts[split][kind]):
                splits[split].append(build_task(kind, family, next(chosen)))
    return {split: shuffled(tasks, rng) for split, tasks in splits.items()}


def quotas(order: Sequence[str], rows: int) -> dict[str, int]:
    """Rows of each family: as many of all, the rest to the first ones."""
    each, extra = divmod(rows, len(order))
    return {kind: each + (at < extra) for at, kind in enumerate(order)}


def write_tests(task: Task) -> list[str]:
    """The task's tests: what `check` says for each of its cases. Raises ValueError."""
    asked = [text for case in task.cases for text in (f"({case},)", f"expected({case})")]
    verdict = run_tests(task.check, ["assert expected"], values=asked)
    if not verdict.passed:
        raise ValueError(f"{task.signature}: {verdict.reason}")
    name = task.signature.split("(")[0]
    tests = {
        arguments: _assertion(f"{name}({arguments[1:-1].removesuffix(',')})", result)
        for arguments, result in zip(verdict.values[::2], verdict.values[1::2], strict=True)
    }
    return list(tests.values())[:MAX_TESTS]


def _assertion(call: str, result: str) -> str:
    if result in ("True", "False", "None"):
        return f"assert {call} is {result}"
    if isinstance(ast.literal_eval(result), float):
        return f"assert abs({call} - {result}) < 1e-6"
    return f"assert {call} == {result}"


def make_row(task: Task, request: str, does: str) -> Row:
    """One line of a file, but for its tests."""
    turns = {
        "system": SYSTEM,
        "user": request.format(signature=task.signature, does=does),
        "assistant": task.code,
    }
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    return {"messages": messages, "kind": task.kind}


def ask(split: str, tasks: Sequence[Task]) -> list[Row]:
    """Put the tasks into words: requests and descriptions take turns."""
    requests = REQUESTS[split]
    return [
        make_row(
            task, requests[at % len(requests)], task.does[at // len(requests) % len(task.does)]
        )
        for at, task in enumerate(tasks)
    ]


def make_splits() -> dict[str, list[Row]]:
    """All rows of the data set, the same on every machine: split -> rows."""
    splits: dict[str, list[Row]] = {}
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, tasks in split_tasks().items():
            tests = pool.map(write_tests, tasks)
            rows = zip(ask(split, tasks), tests, strict=True)
            splits[split] = [{**row, "tests": found} for row, found in rows]
    return splits


def faults(pairs: Iterable[tuple[Task, Row]]) -> Iterator[str]:
    """What is wrong with rows: an answer that fails its tests, a wrong one that passes them."""

    def check(pair: tuple[Task, Row]) -> list[str]:
        task, row = pair
        found = []
        verdict = run_tests(task.code, row["tests"])
        if not verdict.passed:
            found.append(f"{task.signature}: the answer fails: {verdict.reason}")
        found += [
            f"{task.signature}: passes as well:\n{code}"
            for code in task.wrong
            if run_tests(code, row["tests"]).passed
        ]
        return found

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for found in pool.map(check, pairs):
            yield from found


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` judge them by running them; returns the exit code."""
    splits = make_splits()

    def judged() -> Iterator[str]:
        tasks = split_tasks()
        for split, rows in splits.items():
            yield from faults(zip(tasks[split], rows, strict=True))

    good = "every answer passes its tests, every wrong one fails"
    return make_files(arguments, Path(__file__).parent, __doc__, splits, judged, good)


if __name__ == "__main__":
    sys.exit(main())
