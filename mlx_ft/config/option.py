"""A field of the schema: its default, meaning and range."""

from __future__ import annotations

from dataclasses import field
from typing import Any


def option(
    default: Any,
    meaning: str,
    *,
    kind: str | None = None,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    below: float | None = None,
    choices: tuple[str, ...] = (),
) -> Any:
    """A config field with its meaning and range.

    kind: for `Any` fields, the accepted forms joined by "|", out of
    `int`, `float`, `bool`, `str`, `list`, `mapping`, `null` and quoted words, e.g. "int|'auto'".
    minimum, maximum: inclusive bounds; above, below: exclusive ones.
    """
    metadata = {
        "meaning": meaning,
        "kind": kind,
        "minimum": minimum,
        "maximum": maximum,
        "above": above,
        "below": below,
        "choices": choices,
    }
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
