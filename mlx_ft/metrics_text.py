"""Scores of answers by their text alone."""

from __future__ import annotations

import json
import re
import string
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NoReturn

from mlx_ft.words import plain_words, says, texts_of

Fields = Mapping[str, Any]
NO_FIELDS: Fields = MappingProxyType({})
_ARTICLES = re.compile(r"\b(a|an|the)\b")
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_JSON_FENCE = re.compile(r"```(?:json\b)?(.*?)(?:```)?", re.DOTALL | re.IGNORECASE)


class ExactMatch:
    """Right when both texts are the same but for whitespace."""

    name = "exact_match"
    workers = 1

    def __call__(self, prediction: str, reference: str, _fields: Fields = NO_FIELDS, /) -> bool:
        """Whether both texts consist of the same words."""
        return prediction.split() == reference.split()


class NormalisedMatch:
    """Right when both texts are the same but for case, punctuation, articles and whitespace.

    As the exact match of SQuAD counts (Rajpurkar et al., arXiv:1606.05250): ASCII punctuation is
    removed, then a, an and the.
    """

    name = "normalised_match"
    workers = 1

    def __call__(self, prediction: str, reference: str, _fields: Fields = NO_FIELDS, /) -> bool:
        """Whether what is left of both is equal.

        Raises ValueError where nothing is left of the reference.
        """
        wanted = normalised(reference)
        if not wanted:
            raise ValueError(
                f"nothing is left of {reference!r} without articles and signs; use exact_match"
            )
        return normalised(prediction) == wanted


def normalised(text: str) -> str:
    """The words in lower case, without ASCII punctuation and without a, an, the."""
    plain = text.lower().translate(_NO_PUNCTUATION)
    return " ".join(_ARTICLES.sub(" ", plain).split())


class Contains:
    """Right when the reference is in the prediction, as whole words.

    Case, accents and punctuation do not count.
    """

    name = "contains"
    workers = 1

    def __call__(self, prediction: str, reference: str, _fields: Fields = NO_FIELDS, /) -> bool:
        """Whether the prediction says the reference. Raises ValueError for one without a word."""
        if not plain_words(reference):
            raise ValueError(f"the answer {reference!r} has no word to look for; use exact_match")
        return says(prediction, reference)


class ContainsAnswer:
    """Right when one of the row's accepted answers is in the prediction, as whole words.

    The row's `answer` is a text or a list of texts; its `not`, if there is one, lists what the
    prediction must not say. Case, accents and punctuation do not count.
    """

    name = "contains_answer"
    workers = 1

    def __call__(self, prediction: str, _reference: str, fields: Fields = NO_FIELDS, /) -> bool:
        """Whether the prediction says an accepted answer, and nothing that it must not."""
        accepted = texts_of(fields, "answer")
        if not accepted:
            raise ValueError("the row has no `answer`: a text, or a list of accepted texts")
        refused = texts_of(fields, "not")
        return any(says(prediction, answer) for answer in accepted) and not any(
            says(prediction, answer) for answer in refused
        )


class JsonValid:
    """Right when the whole prediction is JSON (RFC 8259), in a Markdown fence or not."""

    name = "json_valid"
    workers = 1

    def __call__(self, prediction: str, _reference: str, _fields: Fields = NO_FIELDS, /) -> bool:
        """Whether it can be read; NaN and infinities are no JSON."""
        text = prediction.strip()
        fenced = _JSON_FENCE.fullmatch(text)
        try:
            json.loads(
                fenced.group(1) if fenced else text,
                parse_constant=_refuse,
                parse_int=str,  # of any length
            )
        except (ValueError, RecursionError):
            return False
        return True


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
