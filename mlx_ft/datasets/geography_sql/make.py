"""Write the data set's three files: `python -m mlx_ft.datasets.geography_sql.make [--check]`."""

from __future__ import annotations

import itertools
import math
import random
import sqlite3
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_ft.datasets.geography_sql.database import build_database
from mlx_ft.datasets.geography_sql.intents import INTENTS, Intent
from mlx_ft.datasets.geography_sql.phrasings import PHRASINGS
from mlx_ft.datasets.geography_sql.splits import SPLITS, shuffled, split_names
from mlx_ft.datasets.making import make_files

SEED = 20260
SYSTEM = "Answer with one SQL query."
ROWS = {"train": 1200, "valid": 150, "test": 150}
# Four continents and twelve phrasings allow no more than 48 questions of these in training.
CONTINENT_ROWS = 36
# Queries within queries are the hardest to learn, so training has more of them.
NESTED_ROWS = 56
WITH_ARTICLE = frozenset({
    "Bahamas", "Central African Republic", "Comoros", "Czech Republic", "DR Congo",
    "Dominican Republic", "Gambia", "Maldives", "Marshall Islands", "Netherlands", "Philippines",
    "Republic of the Congo", "Seychelles", "Solomon Islands", "United Arab Emirates",
    "United Kingdom", "United States",
})  # fmt: skip

Row = dict[str, object]


def quotas(split: str) -> dict[str, int]:
    """Rows of each intent; they add up to the split's size."""
    fixed = {}
    if split == "train":
        fixed = {kind: NESTED_ROWS for kind, intent in INTENTS.items() if intent.nested}
        fixed |= {
            kind: CONTINENT_ROWS
            for kind, intent in INTENTS.items()
            if intent.slots == ("continent",)
        }
    free = [kind for kind in INTENTS if kind not in fixed]
    each, extra = divmod(ROWS[split] - sum(fixed.values()), len(free))
    # Spread the remainder over the list, so that no family of intents gets it all.
    gets_extra = {free[index * len(free) // extra] for index in range(extra)}
    return {kind: fixed.get(kind, each + (kind in gets_extra)) for kind in INTENTS}


def candidates(
    connection: sqlite3.Connection, intent: Intent, names: dict[str, list[str]]
) -> list[dict[str, str]]:
    """Fillings of the intent's slots whose query has an answer, in the order of `names`."""
    fillings = (
        dict(zip(intent.slots, chosen, strict=True))
        for chosen in itertools.product(*(names[slot] for slot in intent.slots))
    )
    return [filling for filling in fillings if _has_answer(connection, intent, filling)]


def _has_answer(connection: sqlite3.Connection, intent: Intent, filling: dict[str, str]) -> bool:
    unlimited = intent.query(filling).split(" ORDER BY ")[0]
    rows = connection.execute(unlimited).fetchall()
    return len(rows) >= intent.at_least and all(row[0] for row in rows)


def ask(phrasing: str, filling: dict[str, str]) -> str | None:
    """Put names into a phrasing; None where the two do not go together (the Bahamas's)."""
    if any(f"{{{slot}}}'s" in phrasing and name[-1] == "s" for slot, name in filling.items()):
        return None
    spoken = {
        slot: f"the {name}" if slot == "country" and name in WITH_ARTICLE else name
        for slot, name in filling.items()
    }
    question = phrasing.format(**spoken)
    return question[0].upper() + question[1:]


def make_row(kind: str, question: str, filling: dict[str, str]) -> Row:
    """One line of a file: the conversation and the intent it belongs to."""
    turns = {"system": SYSTEM, "user": question, "assistant": INTENTS[kind].query(filling)}
    messages = [{"role": role, "content": content} for role, content in turns.items()]
    return {"messages": messages, "kind": kind}


def make_intent(
    kind: str, phrasings: Sequence[str], fillings: Sequence[dict[str, str]], count: int
) -> list[Row]:
    """Pair phrasings with fillings so that both come up as evenly as possible.

    Walks both lists in step and shifts one of them after each full cycle: no pair comes twice.
    """
    rows: list[Row] = []
    cycle = math.lcm(len(phrasings), len(fillings))
    for index in range(len(phrasings) * len(fillings)):
        filling = fillings[(index + index // cycle) % len(fillings)]
        question = ask(phrasings[index % len(phrasings)], filling)
        if question is not None:
            rows.append(make_row(kind, question, filling))
        if len(rows) == count:
            return rows
    raise ValueError(f"{kind}: only {len(rows)} questions can be made, {count} are wanted")


def make_splits() -> dict[str, list[Row]]:
    """All rows of the data set, the same on every machine: split -> rows."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    connection = build_database()
    names = split_names(connection, rng)
    splits: dict[str, list[Row]] = {}
    for split in SPLITS:
        rows: list[Row] = []
        for kind, count in quotas(split).items():
            phrasings = shuffled(PHRASINGS[kind][split], rng)
            fillings = shuffled(candidates(connection, INTENTS[kind], names[split]), rng)
            rows += make_intent(kind, phrasings, fillings, count)
        splits[split] = shuffled(rows, rng)
    connection.close()
    return splits


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` judge them; returns the exit code."""
    return make_files(arguments, Path(__file__).parent, __doc__, make_splits())


if __name__ == "__main__":
    sys.exit(main())
