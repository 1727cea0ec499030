"""One row of JSON: its syntax, and what the syntax allows and a row must not have."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from mlx_ft.data.read.chunks import Chunk
from mlx_ft.data.read.stats import ReadStats
from mlx_ft.data.rows import BadRow, Fault, Record, RowError

KINDS = {list: "an array", str: "a text", type(None): "null", bool: "true or false"}
# Escapes that may stand for a control character or half of a surrogate pair.
SUSPECT = re.compile(r"\\(?:b|f|u00[01]|u007[fF]|u[dD][89a-fA-F])")
BAD_CHARACTER = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ud800-\udfff]")


def parse_chunk(chunk: Chunk, stats: ReadStats) -> Iterator[Record | BadRow]:
    """The rows of some lines of JSON Lines; counts them, and blank lines, in `stats`."""
    path = chunk.path
    for number, raw in enumerate(chunk.data.split(b"\n"), chunk.line):
        if not raw or raw.isspace():
            stats.blank_lines += 1
            continue
        try:
            record = Record(parse_line(raw, chunk.encoding), path, number)
        except RowError as error:
            stats.bad += 1
            [fault] = error.found
            text = raw.decode("utf-8", "surrogateescape").rstrip("\r")
            yield BadRow(path, number, fault.code, fault.sentence, text)
        else:
            stats.rows += 1
            yield record


def parse_line(raw: bytes, encoding: str = "UTF-8") -> dict[str, Any]:
    """The object in a line of UTF-8. Raises RowError with one fault."""
    try:
        return parse(raw.decode())
    except UnicodeDecodeError as error:
        raise RowError(encoding_fault(raw, error.start, encoding)) from None
    except RowError:
        if raw.startswith(b"\xef\xbb\xbf"):  # files with a mark were put one after the other
            return parse_line(raw[3:], encoding)
        if not raw.strip(b"\0\r"):
            sentence = "the line is NUL bytes only; the file was not completely written"
            raise RowError(Fault("control_character", sentence)) from None
        raise


def parse(text: str) -> dict[str, Any]:
    """The JSON object that is this text. Raises RowError with one fault."""
    try:
        value = DECODER.decode(text)
    except json.JSONDecodeError as error:
        raise RowError(syntax_fault(error, f"column {error.colno}")) from None
    except (RecursionError, ValueError) as error:
        raise RowError(limit_fault(error)) from None
    return checked(value, text)


def checked(value: Any, text: str) -> dict[str, Any]:
    """A value that is an object of good characters. text: the JSON that it comes from."""
    if type(value) is not dict:
        raise RowError(object_fault(value))
    # Four scans of the raw text (each a memchr) are cheaper than looking at every string.
    suspicious = "\\u" in text or "\\b" in text or "\\f" in text
    if "\x7f" in text or (suspicious and SUSPECT.search(text)):
        fault = character_fault(value)
        if fault:
            raise RowError(fault)
    return value


def object_fault(value: Any) -> Fault:
    """Why a value that is no object is no row."""
    kind = KINDS.get(type(value), "a number")
    example = '{"text": ...}' if type(value) is str else "{...}"
    return Fault("not_an_object", f"found {kind}, expected a JSON object such as {example}")


def character_fault(value: Any) -> Fault | None:
    """The first control character or lone surrogate in any text or key of a value."""
    waiting: list[tuple[Any, Any]] = [((), value)]  # a path is (path, key), so that it costs little
    while waiting:
        path, item = waiting.pop()
        if type(item) is str:
            if found := BAD_CHARACTER.search(item):
                return _named(found, dotted(path) or "the text")
        elif type(item) is dict:
            for key in item:
                if found := BAD_CHARACTER.search(key):
                    return _named(found, f"the key {key[:80]!r}")
            waiting += [((path, key), part) for key, part in reversed(item.items())]
        elif type(item) is list:
            waiting += [((path, i), item[i]) for i in range(len(item) - 1, -1, -1)]
    return None


def dotted(path: Any) -> str:
    """`messages[0].content` for a nested path (((), "messages"), 0), ..."""
    parts: list[str] = []
    while path:
        path, key = path
        parts.append(f"[{key}]" if isinstance(key, int) else f".{key}")
    return "".join(reversed(parts)).removeprefix(".")


def _named(found: re.Match[str], place: str) -> Fault:
    character, at = found[0], found.start() + 1
    if character >= "\ud800":
        return Fault(
            "lone_surrogate",
            f"{place} has \\u{ord(character):04x} at character {at}, half of a surrogate pair; "
            "write both halves or none",
        )
    return Fault(
        "control_character",
        f"{place} has the control character U+{ord(character):04X} at character {at}; remove it",
    )


def encoding_fault(raw: bytes, start: int, encoding: str) -> Fault:
    """Bytes that are not text."""
    if encoding != "UTF-8":
        place = f"at about byte {start + 1} of the line (as UTF-8)"
        return Fault("encoding", f"the {encoding} text is damaged {place}; save the file as UTF-8")
    return Fault(
        "encoding",
        f"byte {start + 1} of the line (0x{raw[start]:02x}) is not UTF-8; save the file as UTF-8",
    )


def syntax_fault(error: json.JSONDecodeError, place: str) -> Fault:
    """What is not JSON, where, and what to do."""
    found = error.doc[error.pos : error.pos + 12].partition("\n")[0]
    if error.msg.startswith("Invalid control character"):
        return Fault(
            "control_character",
            f"not JSON: the control character U+{ord(error.doc[error.pos]):04X} stands in a "
            f"text at {place}; write it as an escape such as \\n or \\t, or remove it",
        )
    message = error.msg[0].lower() + error.msg[1:].removesuffix(" at")
    said = f"found {found!r}" if found.strip() else "the row ends there"
    return Fault("json_syntax", f"not JSON: {message} at {place}; {said}; {_hint(error, found)}")


def _hint(error: json.JSONDecodeError, found: str) -> str:
    before = error.doc[max(0, error.pos - 40) : error.pos].rstrip()
    if error.msg == "Extra data":
        return "write one row on each line"
    if found.startswith("'"):
        return "JSON has double quotes"
    if found.startswith(("None", "True", "False")):
        return "write null, true or false"
    if before.endswith(",") and found[:1] in ("}", "]"):
        return "remove the comma before it"
    if found.startswith(("//", "/*", "#")):
        return "JSON has no comments"
    return "mend it, or check for a row that is cut off or a quote that is not escaped"


def limit_fault(error: Exception) -> Fault:
    """JSON that Python will not take: too deep, or a number of thousands of digits."""
    if isinstance(error, RecursionError):
        return Fault("nesting", "the JSON is nested too deeply to be a row; flatten it")
    return Fault("json_syntax", "a number has more than 4,300 digits; write it as a text")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        sentence = f"the key {twice[:80]!r} appears twice in one object; remove one"
        raise RowError(Fault("duplicate_key", sentence))
    return fields


def _no_constant(literal: str) -> Any:
    raise RowError(Fault("nan_literal", f"{literal} is not JSON; write a number or null"))


def _finite(literal: str) -> float:
    value = float(literal)
    if math.isinf(value):
        raise RowError(
            Fault("nan_literal", f"{literal[:40]} is too large for a number; write it as a text")
        )
    return value


DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_constant=_no_constant, parse_float=_finite
)
