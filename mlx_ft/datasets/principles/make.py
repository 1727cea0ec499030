"""Write the data set's files: `python -m mlx_ft.datasets.principles.make [--check]`."""

from __future__ import annotations

import ast
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from mlx_ft.datasets.geography_sql.splits import shuffled
from mlx_ft.datasets.making import make_files

SEED = 20263
SOURCES = Path(__file__).parent / "principles"
FIELDS = ("name", "says", "why", "bad", "good", "unless")
MAX_LINES = 16  # of a code example
# Each file of 25 principles gives validation and test rows, by turns two and three.
HELD_OUT = {"valid": (2, 3, 2, 3), "test": (3, 2, 3, 2)}
QUESTIONS = {
    "train": (
        'What does the coding principle "{name}" mean?',
        'Explain the principle "{name}" with a short example.',
        'Why should I follow "{name}" when I write code?',
        'My reviewer wrote "{name}". What is meant?',
        'Tell me about the principle "{name}" in programming.',
        'When does "{name}" apply, and when not?',
        'Teach me "{name}" with bad and good Python code.',
    ),
    "valid": ('What is the idea behind "{name}" in coding?',),
    "test": ('Please explain "{name}" to a new programmer.',),
}

Row = dict[str, Any]
Principle = Mapping[str, str]


def read_principles() -> dict[str, list[Principle]]:
    """The principles by topic, which is the name of their file."""
    return {
        path.stem: yaml.safe_load(path.read_text(encoding="utf-8"))
        for path in sorted(SOURCES.glob("*.yaml"))
    }


def faults() -> Iterator[str]:
    """What is wrong with the sources: a missing part, a double name, code that is no Python."""
    seen = set()
    for topic, principles in read_principles().items():
        for principle in principles:
            where = f"{topic}: {principle.get('name')}"
            if tuple(principle) != FIELDS or not all(map(str.strip, principle.values())):
                yield f"{where}: the parts are {list(principle)}; expected {list(FIELDS)}"
                continue
            if principle["name"].casefold() in seen:
                yield f"{where}: there is another principle of that name"
            seen.add(principle["name"].casefold())
            for part in ("bad", "good"):
                try:
                    ast.parse(principle[part])
                except SyntaxError as error:
                    yield f"{where}: the {part} code is not Python: {error}"
                if len(principle[part].splitlines()) > MAX_LINES:
                    yield f"{where}: the {part} code has more than {MAX_LINES} lines"


def make_row(topic: str, principle: Principle, question: str) -> Row:
    """One line of a file."""
    answer = (
        f"{principle['says']}\n\nWhy: {principle['why']}\n\n"
        f"Instead of\n\n```python\n{principle['bad'].strip()}\n```\n\n"
        f"write\n\n```python\n{principle['good'].strip()}\n```\n\n"
        f"When not: {principle['unless']}"
    )
    turns = {"user": question.format(name=principle["name"]), "assistant": answer}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    return {"messages": messages, "kind": topic, "name": principle["name"]}


def make_splits() -> dict[str, list[Row]]:
    """All rows of the data set, the same on every machine: split -> rows."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    chosen: dict[str, list[tuple[str, Principle]]] = {"train": [], "valid": [], "test": []}
    for at, (topic, principles) in enumerate(read_principles().items()):
        order = [(topic, principle) for principle in shuffled(principles, rng)]
        for split, counts in HELD_OUT.items():
            chosen[split] += order[: counts[at]]
            order = order[counts[at] :]
        chosen["train"] += order
    return {
        split: [
            make_row(*principle, QUESTIONS[split][at % len(QUESTIONS[split])])
            for at, principle in enumerate(shuffled(principles, rng))
        ]
        for split, principles in chosen.items()
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` judge them; returns the exit code."""
    if found := list(faults()):  # of the sources: nothing is written from them
        print("\n".join(found))
        return 1
    good = "every principle is whole, every example is Python"
    return make_files(arguments, Path(__file__).parent, __doc__, make_splits(), good=good)


if __name__ == "__main__":
    sys.exit(main())
