"""Which format a row's keys show."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

from mlx_ft.data.parse_values import blank, listed
from mlx_ft.data.rows import Fault, RowError


class Rule(NamedTuple):
    """One way to write a format. needs, takes: field -> the keys that may hold it, best first."""

    format: str
    needs: dict[str, tuple[str, ...]]
    takes: dict[str, tuple[str, ...]]


SYSTEM: dict[str, tuple[str, ...]] = {"system": ("system", "system_prompt")}
ANSWER = ("output", "response", "answer", "completion")
PROMPT = ("prompt", "question", "instruction", "query", "input")
SHAREGPT = ("conversations", "conversation")
# In order: where the keys of two rules are there and say the same, the first one is it.
RULES = (
    Rule("preference", {"chosen": ("chosen",), "rejected": ("rejected",)},
         {"prompt": (*PROMPT, "messages", *SHAREGPT), **SYSTEM}),
    Rule("messages", {"messages": ("messages",)}, SYSTEM),
    Rule("conversations", {"conversations": SHAREGPT}, SYSTEM),
    Rule("wikisql", {"question": ("question",), "table": ("table",), "sql": ("sql",)}, {}),
    Rule("alpaca", {"instruction": ("instruction",), "output": ANSWER},
         {"input": ("input", "context"), "history": ("history",), **SYSTEM}),
    Rule("alpaca", {"instruction": ("question", "query"), "input": ("context",),
                    "output": ("answer", "response", "output", "completion")}, SYSTEM),
    Rule("prompt_completion", {"prompt": ("prompt", "question", "query", "input"),
                               "completion": ("completion", "response", "answer", "output")},
         SYSTEM),
    Rule("text", {"text": ("text",)}, {}),
)  # fmt: skip
FORMATS = tuple(dict.fromkeys(rule.format for rule in RULES))
ALIASES = {"sharegpt": "conversations"}


class Match(NamedTuple):
    """A format that a row's keys show.

    keys: field -> key of the row. spare: keys that could have held one of these fields as well.
    """

    format: str
    keys: dict[str, str]
    spare: tuple[str, ...]


def choose(fields: dict[str, Any], format: str, conversations_key: str) -> Match:
    """The format of a row; null and empty values do not count where others decide.

    Raises RowError (`no_format`) when no format fits, or several that say different things.
    """
    if format != "auto":
        return _explicit(fields, ALIASES.get(format, format), conversations_key)
    matches = _matches(tuple(fields), conversations_key)
    if not matches:
        raise RowError(Fault("no_format", _unknown(tuple(fields), conversations_key)))
    if len(matches) == 1 and not matches[0].spare:
        return matches[0]
    present = tuple(key for key, value in fields.items() if not blank(value))
    matches = _matches(present, conversations_key) or matches
    best, *others = matches
    for key in best.spare:
        if not _repeats([fields[key]], [fields[used] for used in best.keys.values()]):
            raise RowError(Fault("no_format", _spare(best, key)))
    for other in others:
        if not _says_the_same(fields, best, other):
            raise RowError(Fault("no_format", _ambiguous(best, other)))
    return best


def _explicit(fields: dict[str, Any], format: str, conversations_key: str) -> Match:
    found = _matches(tuple(fields), conversations_key, format)
    if not found:
        needs = next(rule.needs for rule in _rules(conversations_key) if rule.format == format)
        missing = " and ".join(
            repr(keys[0]) for keys in needs.values() if not any(key in fields for key in keys)
        )
        sentence = f"data.format={format} needs {missing}; found the keys {listed(fields)}"
        raise RowError(Fault("no_format", sentence))
    if len(found) == 1 and not found[0].spare:
        return found[0]
    present = tuple(key for key, value in fields.items() if not blank(value))
    return next(iter(_matches(present, conversations_key, format)), found[0])


@lru_cache(maxsize=64)
def _rules(conversations_key: str) -> tuple[Rule, ...]:
    if conversations_key == "conversations":
        return RULES

    def own(fields: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
        return {
            field: tuple(dict.fromkeys(conversations_key if k in SHAREGPT else k for k in keys))
            for field, keys in fields.items()
        }

    return tuple(Rule(rule.format, own(rule.needs), own(rule.takes)) for rule in RULES)


@lru_cache(maxsize=4096)
def _matches(
    keys: tuple[str, ...], conversations_key: str, format: str | None = None
) -> tuple[Match, ...]:
    """Every format whose fields are there, without those that use but a part of another's keys.

    format: the only one that counts.
    """
    rules = [rule for rule in _rules(conversations_key) if format in (None, rule.format)]
    found = [match for rule in rules if (match := _match(rule, keys))]
    used = [frozenset(match.keys.values()) for match in found]
    return tuple(
        match
        for match, mine in zip(found, used, strict=True)
        if not any(mine < other for other in used)
    )


def _match(rule: Rule, keys: tuple[str, ...]) -> Match | None:
    chosen: dict[str, str] = {}
    spare: list[str] = []
    for field, names in (*rule.needs.items(), *rule.takes.items()):
        there = [name for name in names if name in keys and name not in chosen.values()]
        if there:
            chosen[field] = there[0]
            spare += there[1:]
        elif field in rule.needs:
            return None
    used = chosen.values()
    return Match(rule.format, chosen, tuple(key for key in spare if key not in used))


def _says_the_same(fields: dict[str, Any], best: Match, other: Match) -> bool:
    """Whether two readings of a row hold the same texts, such as `text` that renders `messages`."""
    first, second = ([fields[key] for key in match.keys.values()] for match in (best, other))
    return _repeats(second, first) or _repeats(first, second)


def _repeats(values: Iterable[Any], others: Iterable[Any]) -> bool:
    """Whether every text in some values is found in others."""
    said = "\n".join(_texts(list(others)))
    return all(text.strip() in said for text in _texts(list(values)))


def _texts(value: Any, levels: int = 8) -> Iterator[str]:
    """The strings within a value, without roles."""
    if isinstance(value, str):
        yield value
    elif levels and isinstance(value, dict):
        for key, item in value.items():
            if key not in ("role", "from"):
                yield from _texts(item, levels - 1)
    elif levels and isinstance(value, list):
        for item in value:
            yield from _texts(item, levels - 1)


@lru_cache(maxsize=256)
def _unknown(keys: tuple[str, ...], conversations_key: str) -> str:
    rules = _rules(conversations_key)
    needs = {rule.format: rule.needs for rule in reversed(rules)}  # the first rule of each format
    expected = "; ".join(
        " with ".join(repr(names[0]) for names in needs[format].values())
        for format in dict.fromkeys(rule.format for rule in rules)
    )
    known = {name for rule in rules for names in rule.needs.values() for name in names}
    meant = [
        f" Did you mean {close[0]!r} instead of {key!r}?"
        for key in keys[:20]
        if key not in known
        and (close := difflib.get_close_matches(key[:40].lower(), known, n=1, cutoff=0.8))
    ]
    return (
        f"no known format: found the keys {listed(keys)}; expected one of {expected}."
        f"{''.join(meant[:2])}"
    )


def _spare(best: Match, key: str) -> str:
    return (
        f"{key!r} says something else than {listed(best.keys.values())}, and either could be "
        f"meant; remove it, or set data.format={best.format} to leave it out"
    )


def _ambiguous(best: Match, other: Match) -> str:
    return (
        f"the keys show both {best.format} ({listed(best.keys.values())}) and {other.format} "
        f"({listed(other.keys.values())}), which say different things; set data.format to one of "
        "them"
    )
