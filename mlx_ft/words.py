"""Does a text say an answer? By its words: case, accents and punctuation do not count."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from typing import Any

# Letters that no decomposition turns into plain ones.
PLAIN = str.maketrans({
    "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th", "æ": "ae", "œ": "oe", "ı": "i",
})  # fmt: skip
_APOSTROPHE = re.compile(r"['’‘ʻʼ`´]")
_THOUSANDS = re.compile(r"(?<=\d),(?=\d{3}(?!\d))")
_WORD = re.compile(r"\d+(?:\.\d+)+|[^\W_]+")


def says(text: str, answer: str) -> bool:
    """Whether the words of `answer` stand next to one another in `text`.

    An apostrophe parts words (France's) or does not (N'Djamena): either reading will do.
    """
    return any(
        f" {plain_words(answer, gap)} " in f" {plain_words(text, gap)} " for gap in (" ", "")
    )


def plain_words(text: str, apostrophe: str = " ") -> str:
    """The words in lower case without accents, one space between; 1,000 is 1000, 2.5 stays."""
    plain = unicodedata.normalize("NFKD", _APOSTROPHE.sub(apostrophe, text).casefold())
    plain = "".join(letter for letter in plain if not unicodedata.combining(letter))
    return " ".join(_WORD.findall(_THOUSANDS.sub("", plain).translate(PLAIN)))


def texts_of(fields: Mapping[str, Any], key: str) -> list[str]:
    """The texts of a row's field, which may be one text, a list or nothing.

    Raises ValueError for anything else, and for a text without a word.
    """
    value = fields.get(key)
    texts = [value] if isinstance(value, str) else value or []
    if not isinstance(texts, list) or not all(
        isinstance(text, str) and plain_words(text) for text in texts
    ):
        raise ValueError(f"the row's `{key}` is {value!r}; expected texts with words in them")
    return texts
