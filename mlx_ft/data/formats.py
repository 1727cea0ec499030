"""Records to conversations: whatever shape a row has, found by its keys."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from mlx_ft.data.parse_keys import FORMATS, choose
from mlx_ft.data.parse_preference import parse_preference
from mlx_ft.data.parse_rows import (
    Fields,
    FormatOptions,
    Keys,
    Said,
    parse_alpaca,
    parse_conversations,
    parse_messages,
    parse_prompt_completion,
    parse_text,
    parse_wikisql,
)
from mlx_ft.data.parse_tools import read_tools
from mlx_ft.data.parse_turns import TURN_KEYS
from mlx_ft.data.parse_values import MEDIA, blank, check_media, kind, quoted
from mlx_ft.data.rows import Conversation, Fault, Message, Record, RowError

__all__ = ["FORMATS", "Conversation", "FormatOptions", "Message", "Record", "detect",
           "fingerprint", "parse", "read_label", "unused_keys"]  # fmt: skip

DEFAULTS = FormatOptions()
PARSERS: Mapping[str, Callable[[Fields, Keys, FormatOptions, list[Fault]], Said]] = {
    "messages": parse_messages,
    "conversations": parse_conversations,
    "alpaca": parse_alpaca,
    "prompt_completion": parse_prompt_completion,
    "text": parse_text,
    "preference": parse_preference,
    "wikisql": parse_wikisql,
}
_CLEAR = {"desirable": True, "undesirable": False, "true": True, "false": False}
_RATED = {
    **_CLEAR, "1": True, "0": False, "good": True, "bad": False, "👍": True, "👎": False,
    "thumbs up": True, "thumbs down": False,
}  # fmt: skip
# What a label says of an answer. In flat rows 0 and 1, good and bad are as likely a class to be
# told apart; in a text or a preference pair every label is one.
FEEDBACK: Mapping[str, Mapping[str, bool]] = {
    "messages": _RATED,
    "conversations": _RATED,
    "alpaca": _CLEAR,
    "prompt_completion": _CLEAR,
}
# Keys that mean something whatever the format; LLaMA-Factory calls its label `kto_tag`.
NOT_SHAPE = ("label", "kto_tag", "kind")
# What `data from-documents` says of a row beside its content: where it is from, and how good it is.
PROVENANCE = ("source", "section", "quality", "quality_reasons")
TOOL_KEYS = ("tools", "functions")


def detect(fields: dict[str, Any], options: FormatOptions = DEFAULTS) -> str | None:
    """The format that a row's keys show; None when none fits, or several that differ."""
    try:
        return choose(fields, "auto", options.conversations_key).format
    except RowError:
        return None


def parse(record: Record, format: str = "auto", options: FormatOptions = DEFAULTS) -> Conversation:
    """A row as a conversation. format: one of `FORMATS`, or `auto` to go by the row's keys.

    Raises RowError with every fault of the row.
    """
    fields = record.fields
    match = choose(fields, format, options.conversations_key)
    faults: list[Fault] = []
    messages, text, rejected = PARSERS[match.format](fields, match.keys, options, faults)
    label = None
    if (given := fields.get("label", fields.get("kto_tag"))) is not None:
        label = read_label(given, match.format, faults)
    tools: tuple[dict[str, Any], ...] = ()
    if messages and not fields.keys().isdisjoint(TOOL_KEYS):
        tools = _tools(fields, faults)
    if messages and not blank(fields.get("documents")):
        faults.append(Fault("no_format", "'documents' cannot be shown to the model; remove it"))
    if not MEDIA.keys().isdisjoint(fields):
        said = [message.content for message in (*messages, *rejected)]
        check_media(fields, "the row", (*said, text or ""), faults)
    if faults:
        raise RowError(*faults)
    return Conversation(messages, text, label, record, rejected, tools, match.format)


def unused_keys(
    fields: dict[str, Any], format: str = "auto", options: FormatOptions = DEFAULTS
) -> list[str]:
    """The keys of a row, and of its turns, that nothing looks at.

    `kind` is looked at: it groups the answers in `samples.jsonl`. What `data from-documents`
    writes of a row's origin (`PROVENANCE`) is there for people, and no surprise.
    """
    try:
        match = choose(fields, format, options.conversations_key)
    except RowError:
        return [key for key in fields if key not in NOT_SHAPE]
    used = {*match.keys.values(), *NOT_SHAPE, *MEDIA}
    if match.format != "text":
        used.update(TOOL_KEYS)
    if isinstance(fields.get("source"), str) and isinstance(fields.get("section"), list):
        used.update(PROVENANCE)
    unused = [key for key in fields if key not in used]
    known = TURN_KEYS
    if match.format in ("conversations", "preference"):
        known = known | {options.from_key, options.value_key}
    for key in match.keys.values():
        turns, place = fields[key], f"{key}[]"
        if match.format == "preference" and isinstance(turns, dict):
            turns, place = [turns], key
        if isinstance(turns, list):
            found = [
                turn for turn in turns if isinstance(turn, dict) and not known.issuperset(turn)
            ]
            names = dict.fromkeys(name for turn in found for name in turn if name not in known)
            unused += [f"{place}.{name}" for name in names]
    return unused


def fingerprint(conversation: Conversation) -> str:
    """SHA-256 (hex) of what a row says, apart from case and white space.

    Who says it, calls, tools and the rejected answer count; label and weights do not.
    """
    if conversation.text is not None:
        parts = ["text", " ".join(conversation.text.casefold().split())]
    else:
        parts = _parts(conversation.messages)
        if conversation.rejected:
            parts += ["rejected", *_parts(conversation.rejected)]
        if conversation.tools:
            parts += ["tools", _plain(conversation.tools)]
    return hashlib.sha256("\0".join(parts).encode("utf-8", "surrogatepass")).hexdigest()


def _parts(messages: tuple[Message, ...]) -> list[str]:
    parts = []
    for message in messages:
        parts += [message.role, " ".join(message.content.casefold().split())]
        if message.tool_calls:
            parts.append(_plain(message.tool_calls))
    return parts


def _plain(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, ensure_ascii=False, default=str)
    return " ".join(text.casefold().split())


def _tools(fields: dict[str, Any], faults: list[Fault]) -> tuple[dict[str, Any], ...]:
    given = [key for key in TOOL_KEYS if not blank(fields.get(key))]
    if len(given) == 2:
        faults.append(Fault("tools", "both 'tools' and 'functions' are there; keep one"))
    return read_tools(fields[given[0]], given[0], faults) if given else ()


def read_label(value: Any, format: str, faults: list[Fault]) -> str | None:
    """`desirable` or `undesirable` where a label of this format says so, else the class's name."""
    if isinstance(value, float) and value.is_integer():  # a table's column with gaps
        value = int(value)
    if isinstance(value, str):
        return _word(value, format, faults)
    if isinstance(value, int) and value.bit_length() < 64:
        return _word(str(value).lower(), format, faults)
    if value is not None:
        sentence = f"label is {kind(value)}; expected a string, a whole number, true or false"
        faults.append(Fault("label", sentence))
    return None


def _word(word: str, format: str, faults: list[Fault]) -> str | None:
    if not (name := word.strip()):
        return None
    words = FEEDBACK.get(format)
    if words is None:
        return name
    said = words.get(name.casefold().replace("_", " ").replace("-", " "))
    if said is not None:
        return "desirable" if said else "undesirable"
    if meant := _misspelt(name[:40].casefold()):
        faults.append(Fault("label", f"label is {quoted(name)}. Did you mean {meant}?"))
    return name


@lru_cache(maxsize=256)
def _misspelt(word: str) -> str | None:
    close = difflib.get_close_matches(word, ("desirable", "undesirable"), n=1, cutoff=0.8)
    return close[0] if close else None
