"""Every key of the schema, what it accepts, and the conversion of a value to it."""

from __future__ import annotations

import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cache
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.config.screen import shown

MODULE_GROUPS = ("all-linear", "attention", "mlp")

# What mx.quantize accepts: bits, and group sizes with the preferred one first.
QUANTIZATION: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {
    "affine": ((4, 2, 3, 5, 6, 8), (64, 32, 128)),
    "mxfp4": ((4,), (32,)),
    "nvfp4": ((4,), (16,)),
    "mxfp8": ((8,), (32,)),
}
MAX_WEIGHT = 1000  # of a data source
QUANTIZE_KEYS = ("bits", "group_size", "mode")


@dataclass(frozen=True)
class Key:
    """One key of the configuration: `lora.rank`, what it accepts and what it means."""

    name: str
    kinds: tuple[str, ...]
    default: Any
    metadata: Mapping[str, Any]

    @property
    def free_form(self) -> bool:
        """Whether the keys below this one are the user's own (`tracking.tags`)."""
        return "tags" in self.kinds

    def expected(self) -> str:
        """What the key accepts, as text for an error or a table."""
        words = [_KIND_TEXT.get(kind, kind.strip("'")) for kind in self.kinds]
        if choices := self.metadata["choices"]:
            words[words.index(_KIND_TEXT["str"])] = "one of " + ", ".join(choices)
        text = " or ".join(words)
        limits = self.limits()
        return f"{text}, {limits}" if limits else text

    def limits(self) -> str:
        """The range, e.g. `at least 0, below 1`."""
        bounds = (
            ("minimum", "at least"),
            ("above", "above"),
            ("maximum", "at most"),
            ("below", "below"),
        )
        given = [(word, self.metadata[name]) for name, word in bounds]
        return ", ".join(f"{word} {bound:g}" if bound < 1e6 else f"{word} {bound:,}"
                         for word, bound in given if bound is not None)  # fmt: skip


_KIND_TEXT = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list": "a list of names",
    "mapping": "a mapping {bits: 4, group_size: 64, mode: affine}",
    "tags": "a mapping of texts",
    "null": "null",
    "sources": "a list of texts or {path: X, weight: W}",
    "share": "a share such as 5%",
}


@cache
def sections() -> dict[str, type]:
    """The groups that are sections of the configuration, e.g. `lora` -> LoraConfig."""
    hints = typing.get_type_hints(Config)
    return {
        name: hint for name, hint in hints.items() if is_dataclass(hint) and isinstance(hint, type)
    }


@cache
def keys() -> dict[str, Key]:
    """Every key, dotted, in the order of the schema."""
    found: dict[str, Key] = {}
    for owner, prefix in [*((cls, f"{name}.") for name, cls in sections().items()), (Config, "")]:
        hints = typing.get_type_hints(owner)
        defaults = owner()
        for field in fields(owner):
            if not is_dataclass(hints[field.name]):
                name = prefix + field.name
                kind = field.metadata["kind"]
                kinds = tuple(kind.split("|")) if kind else _kinds(hints[field.name])
                found[name] = Key(name, kinds, getattr(defaults, field.name), field.metadata)
    return found


def _kinds(hint: Any) -> tuple[str, ...]:
    """The kinds of an annotation: `int | None` -> ("int", "null")."""
    if typing.get_origin(hint) is dict:
        return ("tags",)
    parts = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    return tuple("null" if part is type(None) else part.__name__ for part in parts)


def convert(key: Key, value: Any) -> Any:
    """The value in the key's type. Raises ValueError with what was expected and found."""
    for kind in key.kinds:
        converted = _CONVERTERS[kind](value) if kind in _CONVERTERS else _word(kind, value)
        if converted is not _NO:
            _check_range(key, converted)
            return converted
    raise ValueError(_mismatch(key, value))


def _mismatch(key: Key, value: Any) -> str:
    text = f"found {shown(repr(value))}; expected {key.expected()}"
    if choices := key.metadata["choices"]:
        text += _closest(str(value), choices)
    return text


def _closest(word: str, choices: typing.Sequence[str]) -> str:
    import difflib

    close = difflib.get_close_matches(word, choices, n=1)
    return f". Did you mean {close[0]}?" if close else ""


_NO = object()  # a value that is not of the kind


def _word(kind: str, value: Any) -> Any:
    return value if value == kind.strip("'") else _NO


def _int(value: Any) -> Any:
    if isinstance(value, bool):
        return _NO
    if isinstance(value, float) and value.is_integer():  # 1e3
        return int(value)
    if isinstance(value, str) and re.fullmatch(r"[+-]?\d{1,18}", value.strip()):  # oc.env
        return int(value)
    return value if isinstance(value, int) else _NO


def _float(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return _NO
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _NO
    return number if math.isfinite(number) else _NO


def _bool(value: Any) -> Any:
    if isinstance(value, str) and value.lower() in ("true", "false"):  # oc.env
        return value.lower() == "true"
    return value if isinstance(value, bool) else _NO


def _str(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value if isinstance(value, str) and value.strip() else _NO


def _list(value: Any) -> Any:
    if not isinstance(value, (list, tuple)) or not value:
        return _NO
    return list(value) if all(isinstance(item, str) and item for item in value) else _NO


def _tags(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return _NO
    items = {str(key): _tag(item) for key, item in value.items()}
    return _NO if _NO in items.values() else items


def _tag(value: Any) -> Any:
    return str(value) if isinstance(value, (str, int, float)) else _NO


def _null(value: Any) -> Any:
    return None if value is None else _NO


def _sources(value: Any) -> Any:
    """Where rows come from, completed: [a, {path: b, weight: 2}], each with a weight."""
    if not isinstance(value, (list, tuple)) or not value:
        return _NO
    found = []
    for entry in value:
        source = entry if isinstance(entry, Mapping) else {"path": entry}
        path, weight = source.get("path"), _float(source.get("weight", 1))
        if set(source) - {"path", "weight"} or not isinstance(path, str) or not path.strip():
            raise ValueError(f"found {entry!r}; expected a text or {{path: X, weight: W}}")
        if weight is _NO or not 0 < weight <= MAX_WEIGHT:
            raise ValueError(
                f"found weight {source['weight']!r}; expected a number above 0, at most "
                f"{MAX_WEIGHT}: how often a row of {path!r} is shown in an epoch"
            )
        found.append({"path": path, "weight": weight})
    return found


def _share(value: Any) -> Any:
    if not isinstance(value, str) or not re.fullmatch(r"\d{1,3}(\.\d+)?\s*%", value.strip()):
        return _NO
    return value.strip() if float(value.strip().rstrip("% ")) <= 100 else _NO


def _mapping(value: Any) -> Any:
    """A quantization, completed: {bits: 8} -> {bits: 8, group_size: 64, mode: affine}."""
    if not isinstance(value, Mapping):
        return _NO
    if unknown := [str(key) for key in value if key not in QUANTIZE_KEYS]:
        raise ValueError(f"unknown {', '.join(unknown)}; expected {', '.join(QUANTIZE_KEYS)}")
    mode = value.get("mode", "affine")
    if not isinstance(mode, str) or mode not in QUANTIZATION:
        raise ValueError(f"found mode {mode!r}; expected one of {', '.join(QUANTIZATION)}")
    bits, sizes = QUANTIZATION[mode]
    found = {"bits": value.get("bits", bits[0]), "group_size": value.get("group_size", sizes[0])}
    for name, allowed in (("bits", bits), ("group_size", sizes)):
        found[name] = _int(found[name])
        if found[name] not in allowed:
            choices = ", ".join(map(str, sorted(allowed)))
            raise ValueError(f"found {name} {value[name]!r}; mode {mode} takes {choices}")
    return {**found, "mode": mode}


_CONVERTERS: dict[str, Callable[[Any], Any]] = {
    "int": _int,
    "float": _float,
    "bool": _bool,
    "str": _str,
    "list": _list,
    "mapping": _mapping,
    "tags": _tags,
    "null": _null,
    "sources": _sources,
    "share": _share,
}


def _check_range(key: Key, value: Any) -> None:
    """Raises ValueError for a number out of range, or a word that is not a choice."""
    choices = key.metadata["choices"]
    if key.name == "lora.target_modules" and isinstance(value, str):
        choices = MODULE_GROUPS
        if value not in choices:
            raise ValueError(
                f"found {value!r}; expected one of {', '.join(choices)}, or a list such as "
                f"[{value}]{_closest(value, choices)}"
            )
    if isinstance(value, str) and choices and value not in choices:
        raise ValueError(_mismatch(key, value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return
    limit = key.metadata
    if (
        (limit["minimum"] is not None and value < limit["minimum"])
        or (limit["maximum"] is not None and value > limit["maximum"])
        or (limit["above"] is not None and value <= limit["above"])
        or (limit["below"] is not None and value >= limit["below"])
    ):
        raise ValueError(_mismatch(key, value))
