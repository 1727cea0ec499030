"""Values of a row: what each must be, and the sentence for what it is instead."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from mlx_ft.data.rows import Fault

SHOWN = 60  # characters of a value in a sentence
SHOWN_KEYS = 12
_KINDS = {
    str: "a string",
    dict: "an object",
    list: "an array",
    bool: "a boolean",
    type(None): "missing or null",
}

# Keys of what a text model does not see -> what `<...>` in a text stands for.
MEDIA = {
    **dict.fromkeys(("image", "images"), "image"),
    **dict.fromkeys(("video", "videos"), "video"),
    **dict.fromkeys(("audio", "audios"), "audio"),
}


def kind(value: Any) -> str:
    """What a JSON value is, for a sentence."""
    return _KINDS.get(type(value), "a number")


def blank(value: Any) -> bool:
    """Whether a value says nothing: null, white space, or an empty list or object."""
    if isinstance(value, str):
        return not value or value.isspace()
    return value is None or value == [] or value == {}


def string(value: Any, where: str, faults: list[Fault]) -> str:
    """A text that is not empty; else a fault, and the empty string."""
    if not isinstance(value, str):
        faults.append(Fault("wrong_type", f"{where} is not a string but {kind(value)}"))
        return ""
    if not value or value.isspace():
        faults.append(Fault("empty_turn", f"{where} is empty"))
    return value


def optional_string(value: Any, where: str, faults: list[Fault]) -> str:
    """A text that may be null or empty: then the empty string."""
    if value is None or isinstance(value, str):
        return value if value and not blank(value) else ""
    return string(value, where, faults)


def quoted(text: str) -> str:
    """A text in quotes, cut where it is long."""
    return repr(text if len(text) <= SHOWN else f"{text[:SHOWN]}...")


def shown(value: Any) -> str:
    """A string in quotes or a number as it is; of anything else, what it is."""
    if isinstance(value, str):
        return quoted(value)
    number = isinstance(value, float) or (type(value) is int and value.bit_length() < 64)
    return str(value) if number else kind(value)


def listed(keys: Iterable[str]) -> str:
    """Keys for a sentence, cut where they are many."""
    names = [quoted(key) for key in keys]
    if more := len(names) - SHOWN_KEYS:
        names = [*names[:SHOWN_KEYS], f"{more} more"] if more > 0 else names
    return ", ".join(names) or "none"


def check_media(
    fields: Mapping[str, Any], where: str, texts: Iterable[str], faults: list[Fault]
) -> None:
    """Faults of a row or turn (where) with images, videos or sound, or with their places in it."""
    if MEDIA.keys().isdisjoint(fields):
        return
    texts = tuple(texts)
    for key, name in MEDIA.items():
        mark = f"<{name}>"
        marked = key in fields and any(mark in text for text in texts)
        if not blank(fields.get(key)):
            found = f"{where} has {name}s, which a text model does not see"
        elif marked:
            found = f"{where} has {mark!r} beside an empty {key!r}: a text model sees no {name}s"
        else:
            continue
        rest = f" and each {mark!r}" if marked else ""
        sentence = f"{found}; remove the key {key!r}{rest} to train on the text alone"
        faults.append(Fault("no_format", sentence))
