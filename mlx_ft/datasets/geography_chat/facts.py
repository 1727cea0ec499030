"""What is asked: facts about the most populous countries, each with the answers that count.

The facts themselves are those of geography_sql; here they get names, rounding and wording.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from mlx_ft.datasets.geography_sql.database import read_facts
from mlx_ft.datasets.geography_sql.make import WITH_ARTICLE
from mlx_ft.datasets.geography_sql.splits import NOT_ASKED

LEAST_POPULATION = 35_000_000
TOLERANCE = 0.1  # of a number that counts as right: sources and years differ by that much
CLEARLY = 2.5  # how many times as large the larger of two countries is
PAIRS = 27  # of countries that are compared, by each measure
MOST_LISTED = 3  # neighbors; of a country with more, one is asked for
# One part of these is on another continent, or the count of a list is open to dispute.
NO_CONTINENT = frozenset({"Egypt", "Indonesia", "Russia", "Turkey"})
NO_NEIGHBORS = frozenset({"Morocco"})
NO_CAPITAL = frozenset({"South Africa"})  # several seats of government
ALSO = {
    "Kyiv": ("Kiev",), "Mandarin": ("Chinese",),
    "Myanmar": ("Burma",), "Persian": ("Farsi",), "Washington": ("Washington DC",),
    "DR Congo": ("Democratic Republic of the Congo", "Democratic Republic of Congo"),
    "United Kingdom": ("UK", "Great Britain"), "United States": ("USA",),
    "US dollar": ("United States dollar", "American dollar"), "euro": ("euros",),
    "pound sterling": ("British pound", "pounds sterling"), "Chinese yuan": ("renminbi",),
}  # fmt: skip
DENIALS = ("No", "is not", "isn't", "does not", "doesn't", "do not", "don't")


@dataclass(frozen=True)
class Fact:
    """Something that can be asked. country: what "it" stands for afterwards.

    wording: the key of its answers in `answers.py`. slots: what the phrasings' slots stand for.
    accepted: texts of which a right answer holds one; rejected: those that it must not hold.
    """

    kind: str
    country: str
    wording: str
    slots: Mapping[str, str]
    accepted: tuple[str, ...]
    rejected: tuple[str, ...] = ()


class World:
    """What is known: `facts` about each of the `countries`, in a fixed order."""

    def __init__(self) -> None:
        rows = sorted(read_facts("country"), key=lambda row: -int(row["population"]))
        self.rows = {row["name"]: row for row in rows}
        self.countries = [
            name
            for name, row in self.rows.items()
            if name not in NOT_ASKED and int(row["population"]) > LEAST_POPULATION
        ]
        self.languages: dict[str, list[str]] = {}
        for row in read_facts("language"):
            self.languages.setdefault(row["country"], []).append(row["language"])
        self.neighbors: dict[str, list[str]] = {name: [] for name in self.rows}
        for row in read_facts("border"):
            self.neighbors[row["country"]].append(row["neighbor"])
            self.neighbors[row["neighbor"]].append(row["country"])
        self.facts = {
            country: [fact for kind in _ABOUT for fact in kind(self, country)]
            for country in self.countries
        }

    def find(self, country: str, kind: str) -> Fact | None:
        """The fact of this kind about the country, if it is asked about."""
        return next((fact for fact in self.facts[country] if fact.kind == kind), None)

    def comparisons(self) -> list[tuple[Fact, Fact]]:
        """Pairs of countries of which one is clearly larger, and one has clearly more people."""
        count = len(self.countries)
        # Strides that share no factor with the count pair each country with many others.
        pairs = (
            (self.countries[index], self.countries[(index * stride + 5) % count])
            for stride in (7, 9, 13)
            for index in range(count)
        )
        found: dict[frozenset[str], tuple[Fact, Fact]] = {}
        for first, second in pairs:
            area, people = (self._ratio(key, first, second) for key in ("area", "population"))
            if min(max(area, 1 / area), max(people, 1 / people)) > CLEARLY:
                found[frozenset((first, second))] = (
                    comparison("larger", *((first, second) if area > 1 else (second, first))),
                    comparison(
                        "more_people", *((first, second) if people > 1 else (second, first))
                    ),
                )
        return list(found.values())[:PAIRS]

    def _ratio(self, column: str, first: str, second: str) -> float:
        return float(self.rows[first][column]) / float(self.rows[second][column])


def comparison(kind: str, winner: str, loser: str) -> Fact:
    """A fact about two countries. A sentence may name both, so the loser must not do anything."""
    slots = {"winner": spoken(winner), "loser": spoken(loser)}
    verbs = ("is", "has", "covers", "would be")
    rejected = tuple(f"{loser} {verb}" for verb in verbs)
    return Fact(kind, winner, kind, slots, names(winner), rejected)


def spoken(country: str) -> str:
    """The name as it stands in a sentence: the Netherlands."""
    return f"the {country}" if country in WITH_ARTICLE else country


def names(name: str) -> tuple[str, ...]:
    """A name and the others that mean the same."""
    return (name, *ALSO.get(name, ()))


def listed(items: Sequence[str]) -> str:
    """Names as a list in a sentence: a, b and c."""
    return " and ".join(filter(None, [", ".join(items[:-1]), items[-1]]))


def orders(items: Sequence[str]) -> tuple[str, ...]:
    """The list in every order, with and without "and"."""
    lists = [list(order) for order in itertools.permutations(items)]
    return tuple(dict.fromkeys(text for one in lists for text in (listed(one), ", ".join(one))))


def in_words(value: float) -> str:
    """A number rounded to two digits, in words from a million: 47 million."""
    digits = 1 - math.floor(math.log10(value))
    rounded = round(value, digits)
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if rounded >= size:
            return f"{rounded / size:g} {word}"
    return f"{rounded:,.0f}"


def close_to(value: float) -> tuple[str, ...]:
    """Numbers in words that count as the value: rounded, exact, and round ones close to it."""
    unit = 10.0 ** (math.floor(math.log10(value)) - 2)
    step = 5 * unit
    low = math.ceil(value * (1 - TOLERANCE) / step)
    high = math.floor(value * (1 + TOLERANCE) / step)
    near = [_precise(count * step) for count in range(low, high + 1)]
    exact = (_precise(round(value / unit) * unit), f"{value:,.0f}")
    return tuple(dict.fromkeys([in_words(value), *near, *exact]))


def _precise(value: float) -> str:
    for size, word in ((1e9, "billion"), (1e6, "million")):
        if value >= size:
            return f"{value / size:.10g} {word}"
    return f"{value:,.0f}"


def _capital(world: World, country: str) -> Iterator[Fact]:
    if country in NO_CAPITAL:
        return
    capital = world.rows[country]["capital"]
    slots = {"country": spoken(country), "capital": capital}
    yield Fact("capital", country, "capital", slots, names(capital))
    longer = tuple(name for name in world.rows if name != country and country in name)
    yield Fact("country_of_capital", country, "country_of_capital", slots, names(country), longer)


def _continent(world: World, country: str) -> Iterator[Fact]:
    if country in NO_CONTINENT:
        return
    continent = world.rows[country]["continent"]
    slots = {"country": spoken(country), "continent": continent}
    yield Fact("continent", country, "continent", slots, (continent,))
    there = ("Yes", f"is in {continent}", f"is located in {continent}")
    yes = {**slots, "asked": continent}
    yield Fact("in_continent", country, "in_continent_yes", yes, there, ("No", "not in"))
    others = sorted({row["continent"] for row in world.rows.values()} - {continent})
    wrong = others[world.countries.index(country) % len(others)]
    no = {**slots, "asked": wrong}
    yield Fact("in_continent", country, "in_continent_no", no, DENIALS, ("Yes",))


def _currency(world: World, country: str) -> Iterator[Fact]:
    currency = world.rows[country]["currency"]
    if currency in NOT_ASKED:
        return
    slots = {"country": spoken(country), "currency": currency}
    short = currency.split()[-1]
    alike = {row["currency"] for row in world.rows.values() if short in row["currency"]}
    accepted = (*names(currency), *([short] if alike == {currency} and short != currency else []))
    yield Fact("currency", country, "currency", slots, accepted)


def _language(world: World, country: str) -> Iterator[Fact]:
    languages = world.languages[country]
    slots = {"country": spoken(country), "languages": listed(languages)}
    if len(languages) == 1:
        yield Fact("language", country, "language", slots, names(languages[0]))
    elif len(languages) == 2:
        yield Fact("language", country, "language", slots, orders(languages))


def _neighbors(world: World, country: str) -> Iterator[Fact]:
    neighbors = world.neighbors[country]
    if not neighbors or country in NO_NEIGHBORS:
        return
    largest = max(neighbors, key=lambda name: int(world.rows[name]["population"]))
    said = [spoken(name) for name in neighbors]
    slots = {"country": spoken(country), "neighbors": listed(said), "neighbor": spoken(largest)}
    if len(neighbors) > MOST_LISTED:
        accepted = tuple(dict.fromkeys([largest, *neighbors]))
        yield Fact("neighbor", country, "neighbor", slots, accepted)
    else:
        wording = "neighbors" if len(neighbors) > 1 else "only_neighbor"
        yield Fact("neighbors", country, wording, slots, orders(said))


def _border(world: World, country: str) -> Iterator[Fact]:
    neighbors = [name for name in world.neighbors[country] if name in world.countries]
    slots = {"country": spoken(country)}
    if neighbors and country not in NO_NEIGHBORS:
        other = max(neighbors, key=lambda name: int(world.rows[name]["population"]))
        yes = {**slots, "other": spoken(other)}
        yield Fact("border", country, "border_yes", yes, ("Yes",), ("No",))
    continent = world.rows[country]["continent"]
    far = [name for name in world.countries if world.rows[name]["continent"] != continent]
    apart = [name for name in far if name not in world.neighbors[country]]
    no = {**slots, "other": spoken(apart[world.countries.index(country) * 5 % len(apart)])}
    yield Fact("border", country, "border_no", no, DENIALS, ("Yes",))


def _population(world: World, country: str) -> Iterator[Fact]:
    value = float(world.rows[country]["population"])
    slots = {"country": spoken(country), "population": in_words(value)}
    yield Fact("population", country, "population", slots, close_to(value))


def _area(world: World, country: str) -> Iterator[Fact]:
    value = float(world.rows[country]["area"])
    slots = {"country": spoken(country), "area": in_words(value)}
    yield Fact("area", country, "area", slots, close_to(value))


_ABOUT = (
    _capital, _continent, _currency, _language, _neighbors, _border, _population, _area
)  # fmt: skip
