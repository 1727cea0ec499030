"""Which names belong to training, validation and test: none is in training and elsewhere."""

from __future__ import annotations

import random
import re
import sqlite3
from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
Name = tuple[str, str]  # (kind, name)

SPLITS = ("train", "valid", "test")
# Share of each kind's groups of names; training takes the rest.
HELD_OUT = {"valid": 0.15, "test": 0.17}
KINDS = {
    "continent": "SELECT DISTINCT continent FROM country ORDER BY 1",
    "country": "SELECT name FROM country ORDER BY 1",
    "city": "SELECT name FROM city ORDER BY 1",
    "currency": "SELECT name FROM currency ORDER BY 1",
    "language": "SELECT DISTINCT language FROM language ORDER BY 1",
}
# The held-out continents need their main languages and currencies held out with them;
# the training continents need some that several countries share.
FIXED = {
    "Africa": "train", "Asia": "train", "Europe": "train", "South America": "train",
    "North America": "test", "Oceania": "test",
    "Arabic": "train", "French": "train", "German": "train", "Portuguese": "train",
    "Russian": "train", "euro": "train",
    "English": "test", "Samoan": "test", "Tok Pisin": "test", "Haitian Creole": "test",
    "Spanish": "valid", "Maori": "valid", "Fijian": "valid", "Tongan": "valid",
    "US dollar": "test", "Australian dollar": "test", "Canadian dollar": "test",
    "East Caribbean dollar": "valid", "Mexican peso": "valid", "Fijian dollar": "valid",
}  # fmt: skip
# Facts that are disputed or ambiguous; they stay in the database and are never asked about.
NOT_ASKED = frozenset({
    "Cyprus", "Equatorial Guinea", "Israel", "Kosovo", "Palestine", "Taiwan", "Vatican City",
    "Ciudad de la Paz", "Jerusalem", "Malabo", "Pristina", "Ramallah", "San Jose", "Taipei",
    "Victoria", "New Taiwan dollar", "Zimbabwe gold",
    # Cities on another continent than the one their country is counted with.
    "Istanbul", "Novosibirsk", "Omsk", "Vladivostok", "Yekaterinburg",
})  # fmt: skip


def shuffled(items: Sequence[T], rng: random.Random) -> list[T]:
    """Shuffle with `random()` alone: its sequence is the same in every Python."""
    result = list(items)
    for last in range(len(result) - 1, 0, -1):
        other = int(rng.random() * (last + 1))
        result[last], result[other] = result[other], result[last]
    return result


def all_names(connection: sqlite3.Connection) -> list[Name]:
    """Every name that a question could hold, by kind."""
    return [(kind, row[0]) for kind, query in KINDS.items() for row in connection.execute(query)]


def group_names(names: Sequence[Name]) -> list[list[Name]]:
    """Group names of which one is in the other as whole words: Guinea and Guinea-Bissau.

    A group stays in one split, so that no held-out name is read inside a training name.
    """
    words = [re.findall(r"\w+", name.casefold()) for _, name in names]
    padded = [f" {' '.join(parts)} " for parts in words]
    group_of = list(range(len(names)))
    for inner, text in enumerate(padded):
        for outer, longer in enumerate(padded):
            if inner != outer and text in longer and group_of[inner] != group_of[outer]:
                old, new = sorted((group_of[inner], group_of[outer]), reverse=True)
                group_of = [new if group == old else group for group in group_of]
    groups: dict[int, list[Name]] = {}
    for name, group in zip(names, group_of, strict=True):
        groups.setdefault(group, []).append(name)
    return list(groups.values())


def split_names(
    connection: sqlite3.Connection, rng: random.Random
) -> dict[str, dict[str, list[str]]]:
    """Split the names that may be asked about: split -> kind -> names in random order.

    Continents are few: the held-out ones serve validation and test alike.
    """
    result: dict[str, dict[str, list[str]]] = {
        split: {kind: [] for kind in KINDS} for split in SPLITS
    }
    by_kind: dict[str, list[list[Name]]] = {kind: [] for kind in KINDS}
    for group in group_names(all_names(connection)):
        by_kind[group[0][0]].append(group)
    for groups in by_kind.values():
        order = shuffled(groups, rng)
        for position, group in enumerate(order):
            split = _split_of(group, position / len(order))
            for kind, name in group:
                if name not in NOT_ASKED and "'" not in name:
                    result[split][kind].append(name)
    result["valid"]["continent"] = list(result["test"]["continent"])
    return result


def _split_of(group: list[Name], share: float) -> str:
    """The split of a group: fixed for a few names, else by its place in the shuffled order."""
    fixed = {FIXED[name] for _, name in group if name in FIXED}
    if fixed:
        (split,) = fixed
        return split
    if share < HELD_OUT["valid"]:
        return "valid"
    return "test" if share < HELD_OUT["valid"] + HELD_OUT["test"] else "train"
