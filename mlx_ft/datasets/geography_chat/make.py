"""Write the data set's three files: `python -m mlx_ft.datasets.geography_chat.make [--check]`."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from mlx_ft.datasets.geography_chat.facts import Fact, World
from mlx_ft.datasets.geography_chat.phrasings.pairs import MADE_UP
from mlx_ft.datasets.geography_chat.write import SWITCHABLE, Row, Turn, Writer, unknown
from mlx_ft.datasets.geography_sql.splits import SPLITS, shuffled
from mlx_ft.datasets.making import make_files

SEED = 20262
TRAIN_ROWS = 1000
ROUNDS = 4  # how often training goes through the facts about each country
LONGEST = 3  # turns of a conversation
# Rows of validation and of test, by the kind of the last question.
HELD_OUT = {
    "capital": 14, "country_of_capital": 12, "continent": 14, "in_continent": 12, "currency": 14,
    "language": 12, "neighbors": 4, "neighbor": 5, "border": 8, "population": 8, "area": 4,
    "larger": 4, "more_people": 4, "unknown": 5,
}  # fmt: skip
# Kinds of which one gives the other away are not in one conversation.
FAMILY = {"country_of_capital": "capital", "in_continent": "continent", "border": "neighbor",
          "neighbors": "neighbor"}  # fmt: skip

Plan = list[Turn]
Sequel = tuple[tuple[str, str], ...]  # the kinds and countries of a conversation


def make_splits() -> dict[str, list[Row]]:
    """All rows of the data set, the same on every machine: split -> rows."""
    rng = random.Random(SEED)  # noqa: S311 - not for secrets
    world = World()
    plans = {"train": shuffled(plan_training(world, rng), rng)}
    known = {_sequel(plan) for plan in plans["train"]}
    for split in SPLITS[1:]:
        plans[split] = shuffled(plan_held_out(world, rng, split, known), rng)
        known |= {_sequel(plan) for plan in plans[split] if len(plan) > 1}
    splits = {}
    for split, planned in plans.items():
        writer = Writer(split, rng)
        splits[split] = [writer.row(plan) for plan in planned]
    return splits


def plan_training(world: World, rng: random.Random) -> list[Plan]:
    """Conversations that go through all facts, `ROUNDS` times, as evenly as possible."""
    plans = [
        [Turn(one), Turn(other, "follow_up")]
        for pair in world.comparisons()
        for one, other in (pair, pair[::-1])
    ]
    plans += plan_switches(world, rng) + plan_switches(world, rng)
    plans += plan_unknown(world, rng, MADE_UP["train"])
    rounds = [(country, turn) for turn in range(ROUNDS) for country in world.countries]
    each, extra = divmod(TRAIN_ROWS - len(plans), len(rounds))
    for index, (country, turn) in enumerate(rounds):
        facts = _one_of_each(world.facts[country], turn + index)
        # Spread the remainder, so that no part of the list gets it all.
        more = (index + 1) * extra // len(rounds) - index * extra // len(rounds)
        chunks = _chunks(facts, each + more, rng)
        plans += [[Turn(f, "follow_up" if i else "first") for i, f in enumerate(c)] for c in chunks]
    return plans


def plan_switches(world: World, rng: random.Random) -> list[Plan]:
    """For every country a question that another country's answer leads to: "And Chad?"."""
    others = shuffled(world.countries, rng)
    kinds = shuffled(SWITCHABLE, rng)
    plans = []
    for index, country in enumerate(world.countries):
        kind = kinds[index % len(kinds)]
        fact = world.find(country, kind)
        before = next(
            (found for name in others if name != country and (found := world.find(name, kind))),
            None,
        )
        if fact and before:
            plans.append([Turn(before), Turn(fact, "switch")])
            others.append(others.pop(others.index(before.country)))
    return plans


def plan_unknown(world: World, rng: random.Random, names: Sequence[str]) -> list[Plan]:
    """Questions about countries that are made up, half of them after one about a real country."""
    kinds = shuffled(SWITCHABLE, rng)
    countries = shuffled(world.countries, rng)
    plans = []
    for index, name in enumerate(names):
        kind = kinds[index % len(kinds)]
        asked = unknown(name, kind)
        known = [fact for c in countries if (fact := world.find(c, kind))]
        before = known[index % len(known)]
        # By halves and not in turn, so that each kind comes in both ways.
        after = index < len(names) // 2
        plans.append([Turn(before), Turn(asked, "switch")] if after else [Turn(asked)])
    return plans


def plan_held_out(world: World, rng: random.Random, split: str, known: set[Sequel]) -> list[Plan]:
    """Conversations that end in a question of each kind; with turns before it, all are new."""
    plans = plan_unknown(world, rng, MADE_UP[split][: HELD_OUT["unknown"]])
    pairs = shuffled(world.comparisons(), rng)
    for position, kind in enumerate(("larger", "more_people")):
        for _ in range(HELD_OUT[kind]):
            plans.append([Turn(pairs.pop()[position])])
    for kind, count in HELD_OUT.items():
        if kind in ("larger", "more_people", "unknown"):
            continue
        facts = [fact for c in world.countries for fact in world.facts[c] if fact.kind == kind]
        for index, fact in enumerate(_evenly(shuffled(facts, rng), count)):
            plans.append(_new_plan(world, rng, fact, index % 4, known))
    return plans


def _new_plan(world: World, rng: random.Random, fact: Fact, way: int, known: set[Sequel]) -> Plan:
    """A plan that ends in this fact: alone, after a switch, or after one or two other questions."""
    while True:
        plan = [Turn(fact)]
        if way == 1 and fact.kind in SWITCHABLE:
            found = [world.find(c, fact.kind) for c in world.countries if c != fact.country]
            plan = [Turn(shuffled([f for f in found if f], rng)[0]), Turn(fact, "switch")]
        elif way and fact.kind != "country_of_capital":
            others = shuffled([f for f in world.facts[fact.country] if _apart([f, fact])], rng)
            before = next(
                chosen
                for i in range(len(others))
                if _apart(chosen := others[i : i + (2 if way > 2 else 1)])
            )
            plan = [Turn(f, "follow_up" if i else "first") for i, f in enumerate([*before, fact])]
        if len(plan) == 1 or _sequel(plan) not in known:
            return plan


def _evenly(facts: Sequence[Fact], count: int) -> list[Fact]:
    """So many facts, no wording more often than another where there are several."""
    wordings = sorted({fact.wording for fact in facts})
    by_wording: list[Iterator[Fact]] = [
        iter([fact for fact in facts if fact.wording == wording]) for wording in wordings
    ]
    result: list[Fact] = []
    while len(result) < count:
        result += [fact for facts in by_wording if (fact := next(facts, None))]
    return result[:count]


def _one_of_each(facts: Sequence[Fact], turn: int) -> list[Fact]:
    """One fact of each kind; of a yes and a no of one kind, one in turn."""
    by_kind: dict[str, list[Fact]] = {}
    for fact in facts:
        by_kind.setdefault(fact.kind, []).append(fact)
    return [found[turn % len(found)] for found in by_kind.values()]


def _chunks(facts: Sequence[Fact], count: int, rng: random.Random) -> list[list[Fact]]:
    """The facts in random order as so many conversations."""
    while True:
        order = shuffled(facts, rng)
        cuts = sorted(shuffled(range(1, len(facts)), rng)[: count - 1])
        chunks = [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]
        if all(len(chunk) <= LONGEST and _apart(chunk) for chunk in chunks):
            return chunks


def _apart(facts: Sequence[Fact]) -> bool:
    """Whether no fact gives another away, and it is clear which country "it" stands for."""
    families = [FAMILY.get(fact.kind, fact.kind) for fact in facts]
    named_first = all(fact.kind != "country_of_capital" for fact in facts[1:])
    return len(set(families)) == len(facts) and named_first and "neighbor" not in families[:-1]


def _sequel(plan: Plan) -> Sequel:
    return tuple((turn.fact.kind, turn.fact.country) for turn in plan)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with `--check` judge them; returns the exit code."""
    return make_files(arguments, Path(__file__).parent, __doc__, make_splits())


if __name__ == "__main__":
    sys.exit(main())
