"""Places where a long text can be cut so that its parts have, together, the tokens of the whole.

A tokenizer needs several hundred bytes for each token that it has not handed over yet, and works
on one text with one core. Where it is known how it reads, long texts are given to it in parts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

PART = 50_000  # characters, at least
SPACE = "▁"
_LETTER = "a-zA-Zа-яА-Я一-龥가-힣"  # letters (\p{L}) that no normalizer joins with white space
# Of GPT-2, Llama 3, Qwen and GPT-4o: what each matches before a cut between a letter and white
# space ends there, and nothing in them looks back.
_CONTRACTED = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_REST = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    *(
        rf"{_CONTRACTED}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|{digits}"
        rf"| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_REST}"
        for digits in (r"\p{N}", r"\p{N}{1,3}")
    ),
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+{_CONTRACTED}?"
    rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*{_CONTRACTED}?"
    rf"|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|{_REST}",
)


class Seams(NamedTuple):
    """Where a tokenizer's texts can be cut. dropped: white space there that a cut takes away,
    because the tokenizer puts it before every text.
    """

    place: re.Pattern[str]
    dropped: int = 0


def find(backend: Any) -> Seams | None:
    """The seams of a Rust tokenizer; None where it does not show that there are any."""
    about = json.loads(backend.to_str())
    model = about["model"]
    plain = not (model.get("dropout") or model.get("continuing_subword_prefix"))
    if model["type"] != "BPE" or not plain or model.get("end_of_word_suffix"):
        return None
    if any(_touches(token["content"]) for token in about["added_tokens"]):
        return None
    if _by_words(about):
        return Seams(re.compile(rf"(?<=[{_LETTER}])(?=[ \n][{_LETTER}])"))
    prefix = _prefix(about)
    if prefix is None or any(_SPANS.search(piece) for piece in model["vocab"]):
        return None
    space = rf" (?=[{_LETTER}])" if prefix else rf"(?= [{_LETTER}])"
    return Seams(re.compile(rf"(?<=[{_LETTER}]){space}"), int(prefix))


def parts(text: str, seams: Seams, size: int = PART) -> Iterator[str]:
    """A text cut at seams, each part but the last at least `size` characters long."""
    start = 0
    while found := seams.place.search(text, start + size):
        yield text[start : found.start()]
        start = found.start() + seams.dropped
    yield text[start:]


_SPANS = re.compile(f"[{_LETTER}]{SPACE}")  # a token that goes from one word into the next


def _touches(content: str) -> bool:
    """Whether a token that is taken out of the text beforehand may lie at a seam."""
    if len(content) > 1 and content.isspace():
        return False  # a seam has one white space, between letters
    return bool(re.search(rf"^[\s{_LETTER}]|[{_LETTER}]\s|[\s{_LETTER}]$", content))


def _by_words(about: Mapping[str, Any]) -> bool:
    """Whether the text is cut into words first, and every seam is a border of two words."""
    normalizer = about["normalizer"]
    if normalizer is not None and normalizer["type"] != "NFC":
        return False
    return any(map(_splits, _steps(about))) and all(
        _splits(step)
        or step["type"] == "Digits"
        or (step["type"] == "ByteLevel" and not step["add_prefix_space"])
        for step in _steps(about)
    )


def _steps(about: Mapping[str, Any]) -> list[dict[str, Any]]:
    step = about["pre_tokenizer"]
    if step is None:
        return []
    return list(step["pretokenizers"]) if step["type"] == "Sequence" else [step]


def _splits(step: Mapping[str, Any]) -> bool:
    if step["type"] == "ByteLevel":
        return bool(step["use_regex"]) and not step["add_prefix_space"]
    if step["type"] != "Split" or step["behavior"] != "Isolated" or step["invert"]:
        return False
    return step["pattern"].get("Regex") in WORDS


def _prefix(about: Mapping[str, Any]) -> bool | None:
    """Of a SentencePiece vocabulary: whether a space goes before every text. None: another one."""
    normalizer, steps = about["normalizer"], _steps(about)
    if normalizer is None and len(steps) == 1 and steps[0]["type"] == "Metaspace":
        return bool(steps[0]["prepend_scheme"] != "never")
    if normalizer is None or any(step.get("pattern") != {"String": " "} for step in steps):
        return None  # Gemma splits at spaces, of which the normalizer has left none
    rules = normalizer["normalizers"] if normalizer["type"] == "Sequence" else [normalizer]
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": SPACE}
    if rules == [{"type": "Prepend", "prepend": SPACE}, replace]:
        return True
    return False if rules == [replace] else None
