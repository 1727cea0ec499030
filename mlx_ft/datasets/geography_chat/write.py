"""Facts to conversations: which phrasing, which answer, and the row of the file."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from mlx_ft.datasets.geography_chat.answers import ANSWERS
from mlx_ft.datasets.geography_chat.facts import Fact
from mlx_ft.datasets.geography_chat.phrasings import FOLLOW_UPS, OPENERS, QUESTIONS, SWITCHES
from mlx_ft.datasets.geography_sql.splits import shuffled

# What can be asked of another country by its name alone.
SWITCHABLE = ("capital", "continent", "currency", "language", "population", "area")
OPENED = 0.2  # share of the conversations that begin with a greeting
NOT_KNOWN = (
    "don't know", "do not know", "never heard", "not aware", "not familiar", "no country",
    "not a country", "not a real", "does not exist", "doesn't exist", "fictional", "no such",
)  # fmt: skip

Row = dict[str, object]


@dataclass(frozen=True)
class Turn:
    """A question and its place: the first, one about the same country, or of another one."""

    fact: Fact
    place: Literal["first", "follow_up", "switch"] = "first"


def unknown(name: str, kind: str) -> Fact:
    """A question of this kind about a country that is made up."""
    slots = {"country": name, "asked_as": kind}
    return Fact("unknown", name, "unknown", slots, NOT_KNOWN)


class Writer:
    """Writes the conversations of one split; every list of phrasings is used evenly."""

    def __init__(self, split: str, rng: random.Random) -> None:
        self.split = split
        self.rng = rng
        self.decks: dict[Sequence[str], list[str]] = {}

    def row(self, plan: Sequence[Turn]) -> Row:
        """One line of a file: the turns, and what a right answer to the last question holds."""
        messages = []
        for turn in plan:
            messages.append({"role": "user", "content": self.question(turn)})
            answer = self.deal(ANSWERS[turn.fact.wording], turn.fact.slots)
            messages.append({"role": "assistant", "content": answer})
        last = plan[-1].fact
        row: Row = {"messages": messages, "kind": last.kind, "answer": list(last.accepted)}
        return {**row, "not": list(last.rejected)} if last.rejected else row

    def question(self, turn: Turn) -> str:
        """The text of a question; some conversations begin with a greeting."""
        slots = dict(turn.fact.slots)
        if "winner" in slots:
            slots["first"], slots["second"] = shuffled((slots["winner"], slots["loser"]), self.rng)
        kind = slots.get("asked_as", turn.fact.kind)
        if turn.place == "switch":
            return self.deal(SWITCHES[self.split], slots)
        if turn.place == "follow_up":
            return self.deal(FOLLOW_UPS[kind][self.split], slots)
        question = self.deal(QUESTIONS[kind][self.split], slots)
        opened = self.rng.random() < OPENED
        return f"{self.deal(OPENERS[self.split], {})} {question}" if opened else question

    def deal(self, phrasings: Sequence[str], slots: Mapping[str, str]) -> str:
        """The next phrasing that goes together with the names, filled in."""
        deck = self.decks.setdefault(phrasings, [])
        if not any(_fits(phrasing, slots) for phrasing in deck):
            deck += shuffled(phrasings, self.rng)
        chosen = next(phrasing for phrasing in deck if _fits(phrasing, slots))
        deck.remove(chosen)
        text = chosen.format(**slots)
        return text[0].upper() + text[1:]


def _fits(phrasing: str, slots: Mapping[str, str]) -> bool:
    """The Philippines's and Kenya's: a possessive only where it is easily formed."""
    return not any(f"{{{slot}}}'s" in phrasing and name[-1] == "s" for slot, name in slots.items())
