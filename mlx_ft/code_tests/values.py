"""Values that go from one confined process to the other, as JSON that stands for plain data only.

None, bool, int and str stand for themselves; all else is [kind, content].
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

MAX_ITEMS = 10_000  # of a generator
SEQUENCES: dict[str, Any] = {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset}
# Kinds with a text for their content, and what reads it.
TEXTS = {
    "datetime.date": "fromisoformat",
    "datetime.datetime": "fromisoformat",
    "datetime.time": "fromisoformat",
    "decimal.Decimal": None,
    "fractions.Fraction": None,
}
NUMBERS: dict[str, Any] = {"float": float, "complex": complex}


class NotDataError(Exception):
    """A value that does not go from one process to the other."""


def encode(value: Any, keep: Callable[[Any], int] | None = None) -> Any:
    """A value as JSON. keep: notes a function and gives its number; None: functions do not go.

    Subclasses go as what they extend. Raises NotDataError for what is no data.
    """
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, (float, complex)):
        kind = "float" if isinstance(value, float) else "complex"
        return [kind, repr(value)]
    if isinstance(value, (bytes, bytearray)):
        return ["bytes", value.hex()]
    for kind, sequence in SEQUENCES.items():
        if isinstance(value, sequence):
            return [kind, [encode(item, keep) for item in value]]
    if isinstance(value, dict):
        return ["dict", [[encode(key, keep), encode(item, keep)] for key, item in value.items()]]
    if isinstance(value, range):
        return ["range", [value.start, value.stop, value.step]]
    return _encode_object(value, keep)


def _encode_object(value: Any, keep: Callable[[Any], int] | None) -> Any:
    kind = f"{type(value).__module__}.{type(value).__name__}"
    if kind in TEXTS:
        return [kind, value.isoformat() if TEXTS[kind] else str(value)]
    if kind == "datetime.timedelta":
        return [kind, [value.days, value.seconds, value.microseconds]]
    if keep and hasattr(value, "__next__"):
        return ["iterator", [encode(item, keep) for item in itertools.islice(value, MAX_ITEMS)]]
    if keep and callable(value):
        return ["function", keep(value)]
    raise NotDataError(f"{kind} is not plain data")


def decode(coded: Any, call: Callable[[int], Any] | None = None) -> Any:
    """The value that `encode` stood for. call: makes what stands for a function.

    Gives only plain types, whatever the text says. Raises NotDataError for an unknown kind.
    """
    if not isinstance(coded, list):
        return coded
    kind, content = coded
    if kind in NUMBERS:
        return NUMBERS[kind](content)
    if kind == "bytes":
        return bytes.fromhex(content)
    if kind in SEQUENCES:
        return SEQUENCES[kind](decode(item, call) for item in content)
    if kind == "dict":
        return {decode(key, call): decode(item, call) for key, item in content}
    if kind == "range":
        return range(*content)
    if kind == "iterator":
        return _iterate([decode(item, call) for item in content])
    if kind == "function" and call:
        return call(content)
    if kind in TEXTS or kind == "datetime.timedelta":
        return _decode_object(kind, content)
    raise NotDataError(f"unknown kind {kind!r}")


def _decode_object(kind: str, content: Any) -> Any:
    module, name = kind.split(".")
    made = getattr(__import__(module), name)
    if kind == "datetime.timedelta":
        return made(*content)
    reader = TEXTS[kind]
    return getattr(made, reader)(content) if reader else made(content)


def _iterate(items: list[Any]) -> Iterator[Any]:
    yield from items
    if len(items) == MAX_ITEMS:
        raise NotDataError(f"only the first {MAX_ITEMS} items of a generator come across")


def literal(value: Any) -> str:
    """`repr`, with the items of sets in order: the same text in every process."""
    if isinstance(value, set) and value:
        return "{" + ", ".join(sorted(map(literal, value))) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(literal, value)) + "]"
    if isinstance(value, tuple):
        return "(" + ", ".join(map(literal, value)) + ("," if len(value) == 1 else "") + ")"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{literal(k)}: {literal(v)}" for k, v in value.items()) + "}"
    return repr(value)
