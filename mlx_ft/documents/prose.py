"""English text as rules see it: sentences, words, and what a sentence leans on."""

from __future__ import annotations

import re
from collections import Counter

_WORD = re.compile(r"[^\W_]+(?:['’.\-_][^\W_]+)*")
_END = re.compile(r"[.!?][\"”’')\]]*\s+(?=[A-Z`\"“'(\[*0-9])")
_ABBREVIATION = re.compile(
    r"(?:\b(?:e\.g|i\.e|etc|vs|cf|al|approx|resp|incl|Fig|Eq|Sec|No|Mr|Mrs|Dr|Prof|St|Inc|Ltd)"
    r"|\b[A-Z])\.\s+$"
)
_PRONOUN_START = re.compile(
    r"(?:this|that|these|those|it|its|they|them|their|he|his|she|her|such|both|either|neither|"
    r"here|there|also|however|but|and|or|so|yet|nor|then|thus|therefore|hence|otherwise|instead|"
    r"moreover|furthermore|additionally|likewise|similarly|conversely|besides|again|next|finally|"
    r"lastly|first|firstly|second|secondly|third|another|others?|most of them|some of them|"
    r"as (?:a result|such|mentioned|noted|shown|described|explained|you can see|before)|"
    r"in (?:addition|contrast|this(?! order)|that|these|those|such|other words|both|either)|"
    r"for (?:example|instance|this|that|these|those)|on the (?:other hand|contrary)|"
    r"at (?:this|that) point|with (?:this|that|these|those)|by (?:this|that)|"
    r"to (?:do|achieve|accomplish) (?:this|that|so|it)|because of (?:this|that)|"
    r"after (?:this|that)|if (?:so|not)|even so|after all|the (?:former|latter|same|above|rest|"
    r"other|others|previous|next|following|second|third|last|first one|example|result|output|"
    r"problem|reason|difference|code|idea|answer))\b",
    re.IGNORECASE,
)
_COMPARED = re.compile(
    r"\b(?:is|are|works?|do(?:es)?) (?:also|more|less|even|similar(?:ly)?|different|another|no "
    r"different|not much|the same|just as|identical|likewise|slightly)\b"
    r"(?!.*\b(?:than|to|from|as)\b)"
)
_POINTING = re.compile(
    r"\b(?:(?:above|below)(?!\s+(?:\d|zero|it\b|its\b|the\b|an?\b|`))|"
    r"aforementioned|previously|earlier|(?:as|the|in) follow(?:s|ing)|"
    r"(?:previous|next|preceding|last|this|following) (?:section|chapter|page|paragraph|example|"
    r"step|guide|tutorial|document|article)s?\b|(?:this|previous|preceding) (?:case|way|issue|one)|"
    r"these (?:two|three|cases|pages)|"
    r"(?:see|refer to|described in|listed in) (?:also |the )|the (?:latter|former)|"
    r"as (?:mentioned|noted|shown|described|explained|discussed)|we(?:'ve| have) (?:seen|just))\b"
    r"|\bhere\b(?=[.,;:)]|$)|\bsteps? \d|:$|↑|↓|→$",
    re.IGNORECASE,
)
_STALE = re.compile(
    r"\b(?:TODO|FIXME|XXX|TBD|lorem ipsum|coming soon|work in progress|not yet (?:written|"
    r"documented)|click here|copyright|all rights reserved)\b|©",
    re.IGNORECASE,
)


def word_set(text: str) -> frozenset[str]:
    """The words of a text."""
    return frozenset(text.split())


STOP_WORDS = word_set(
    "a about after all also an and any are as at be because been but by can do does each for from "
    "had has have how if in into is it its may more most must no not of on one only or other our "
    "out over same should so some such than that the their them then there these they this to two "
    "up use used using was we were what when where which while who why will with without would "
    "you your"
)


def words(text: str) -> list[str]:
    """Words in lower case; `lora.rank` and `don't` are one word each."""
    return [word.casefold() for word in _WORD.findall(text)]


def content_words(text: str) -> list[str]:
    """Words that carry meaning, cut to a stem of at most six letters so that inflections meet."""
    return [
        word.removesuffix("s")[:6]
        for word in words(text)
        if word not in STOP_WORDS and len(word) > 2
    ]


def sentences(text: str) -> list[str]:
    """Sentences in order. Nothing is split inside inline code or after an abbreviation."""
    # Code of the same length keeps positions: a full stop in it ends nothing.
    shown = re.sub(r"`[^`]*`", lambda found: "`" + "x" * (len(found[0]) - 2) + "`", text)
    found, begin = [], 0
    for match in _END.finditer(shown):
        if _ABBREVIATION.search(shown[max(begin, match.end() - 12) : match.end()]):
            continue
        found.append(text[begin : match.end()].strip())
        begin = match.end()
    found.append(text[begin:].strip())
    return [sentence for sentence in found if sentence]


def complete(sentence: str) -> bool:
    """Whether it begins and ends as a sentence does, with every bracket and quote closed."""
    if not re.match(r"[\"“'(\[]*[A-Z0-9`]", sentence) or len(words(sentence)) < 4:
        return False
    return bool(re.search(r"[.!?][\"”’')\]]*$", sentence)) and balanced(sentence)


def balanced(text: str) -> bool:
    """Whether brackets, double quotes and backticks are in pairs."""
    bare = re.sub(r"`[^`]*`", "", text)
    pairs = all(bare.count(a) == bare.count(b) for a, b in ("()", "[]", "{}", "“”"))
    return pairs and bare.count('"') % 2 == 0 and "`" not in bare


def leaning(sentence: str) -> str:
    """The words by which a sentence leans on what stood before it; "" if none."""
    bare = sentence.lstrip("\"“'([ ")
    found = _PRONOUN_START.match(bare) or _COMPARED.search(bare)
    return found[0] if found else ""


def pointing(text: str) -> str:
    """Words that point to another place of the document; "" if none."""
    found = _POINTING.search(re.sub(r"`[^`]*`", "`x`", text))
    return found[0] if found else ""


def stale(text: str) -> str:
    """Words of an unfinished or legal text; "" if none."""
    found = _STALE.search(text)
    return found[0] if found else ""


def english(text: str) -> bool:
    """Whether enough of the words are English function words; short texts are taken as such."""
    found = words(text)
    return len(found) < 40 or sum(word in STOP_WORDS for word in found) / len(found) > 0.15


def central(lead: str, whole: str) -> float:
    """Share of the five most frequent content words of `whole` that `lead` mentions."""
    # Equal counts are ordered by first occurrence, so the result does not depend on hashing.
    top = [word for word, _ in Counter(content_words(whole)).most_common(5)]
    said = set(content_words(lead))
    return sum(word in said for word in top) / len(top) if top else 0.0


def capital(text: str) -> str:
    """The text with its first letter as a capital."""
    return text[:1].upper() + text[1:]


def names(text: str) -> frozenset[str]:
    """Proper names: words with a capital within sentences, or that are never written small."""
    within = Counter(re.findall(r"(?<=[a-z,;] )[A-Z][a-z]+\b", text))
    small = Counter(_singular(word) for word in re.findall(r"\b[a-z]+\b", text))
    found = set(re.findall(r"\b[A-Z][a-z]+\b", text))
    return frozenset(
        word
        for word in found
        if small[_singular(word.lower())] < max(1, within[word]) and word.lower() not in STOP_WORDS
    )


def _singular(word: str) -> str:
    return re.sub(r"(?<=[sxzh])es$|(?<!s)s$", "", word)
