"""Questions from headings and bold lead-ins, lists, and summaries."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_ft.documents.grammar import (
    VERBS,
    bare,
    finite,
    how_to,
    mine,
    plural,
    sentence_cased,
    small,
    verbal,
)
from mlx_ft.documents.items import Candidate
from mlx_ft.documents.prose import (
    capital,
    central,
    complete,
    content_words,
    pointing,
    sentences,
    words,
)
from mlx_ft.documents.sections import Block, Section

_INVERTED = re.compile(
    r"(?:how (?:much|many|long)|how|what|why|when|where|which|who|can|is|are|does?|should|will)\s+"
    r"(?:is|are|do|does|can|should|will|would|must|I|you|it|there)\b",
    re.IGNORECASE,
)
_EMBEDDED = re.compile(r"(?:how|what|why|when|where|which|who)\s", re.IGNORECASE)
_TROUBLE = re.compile(r"troubleshoot|faq|problem|pitfall|gotcha|known issue|errors?\b", re.I)
_FAILS = re.compile(
    r"\b(?:slow|fails?|failed|failing|error|cannot|can't|not|no|nan|missing|nothing|wrong|refused|"
    r"denied|timeout|times out|crash\w*|out of memory|hangs?|stuck|never|skipped)\b",
    re.IGNORECASE,
)
_PREPOSITION = re.compile(
    r"(?:other|more|another|further|on|in|with|without|from|for|to|by|as|at|if|when|and|or|not|under|after|before|via|vs|per)\b",
    re.IGNORECASE,
)
_MASS = re.compile(r"`|(?:ity|tion|sion|ment|ness|ance|ence|ism|ics|ing)$")
_LEANS = re.compile(r"\b(?:it|this|that|these|those|they|them|its|their|here|there|we|our)\b", re.I)
_STEPS = re.compile(
    rf"(?:^|[.:;,]\s+|\bcan\s+|\bmust\s+|\bshould\s+|\bneed to\s+)(?:{'|'.join(sorted(VERBS))})\b",
    re.IGNORECASE,
)
_NO_PHRASE = re.compile(r"\b(?:your|my|I|you)\b|[,;:]| [-–—] |[^\w\s`'\"()./&-]", re.IGNORECASE)
_NUMBERS = {"two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9}
_COUNT = rf"(?:{'|'.join(_NUMBERS)}|several|some|many)"
_HAS = {"supports": "support", "provides": "provide", "offers": "offer", "contains": "contain",
        "includes": "include", "has": "have", "accepts": "accept", "defines": "define",
        "takes": "take"}  # fmt: skip


def questions(section: Section, title: str, names: frozenset[str]) -> Iterator[Candidate]:
    """Questions that the section's heading and its bold lead-ins ask.

    title: of the page, as the question names it. names: words that are written with a capital
    within a sentence too.
    """
    if len(section.titles) > 1 or (section.titles and section.titles[0] != title):
        asked = _ask(section.titles[-1], section, names)
        if asked and section.blocks:
            ask, score, why = asked
            place = section.place
            yield Candidate("question", ask, section.markdown, section, place, score, (why,))
    for block in section.blocks:
        for entry in block.entries:
            asked = _ask(entry.lead, section, names) if _clause(entry.lead) else None
            if asked and not entry.lost and not entry.lead.startswith("`"):
                ask, score, why = asked
                text = entry.followed(entry.text[:1].upper() + entry.text[1:])
                why = why.replace("heading", "bold lead-in")
                if ask.startswith("what should one know"):  # it may be a clause as well
                    ask = f'explain the point "{entry.lead.rstrip(".")}".'
                yield Candidate("question", ask, text, section, block.place, score, (why,))


def _clause(lead: str) -> bool:
    """Whether a lead-in is a heading of its own, rather than a word that is stressed or a term."""
    return len(words(lead)) >= 2 and (lead[-1:] in ".?!" or finite(lead))


def _ask(heading: str, section: Section, names: frozenset[str]) -> tuple[str, float, str] | None:
    """A question that a heading asks, how sure that is, and the rule."""
    title = heading.rstrip(".!:").strip()
    asks = title.endswith("?")
    quoted = re.fullmatch(r"[\"“](.+)[\"”]", title)
    # What people write small is code or a path, and a heading with a comma is seldom one phrase.
    if bare(title) or len(words(title)) > 14 or (_LEANS.search(title) and not (asks or quoted)):
        return None
    if asks and _INVERTED.match(title):
        return sentence_cased(title, names), 0.95, "heading is a question"
    if asks:
        embedded = _EMBEDDED.match(title)
        said = sentence_cased(title.rstrip("?"), names)
        return (f"explain {said}.", 0.9, "heading is an indirect question") if embedded else None
    if any(_TROUBLE.search(name) for name in section.titles) and (quoted or _FAILS.search(title)):
        said = quoted[1] if quoted else title
        return f'what should I do about this problem: "{said}"?', 0.9, "heading names a problem"
    if quoted:
        return None
    if _EMBEDDED.match(title) and not re.match(r"how to\b", title, re.I):
        if _INVERTED.match(title):
            return f"{sentence_cased(title, names)}?", 0.9, "heading is a question"
        return f"explain {sentence_cased(title, names)}.", 0.9, "heading is an indirect question"
    if doing := how_to(capital(sentence_cased(title, names))):
        return f"how do I {mine(doing)}?", 0.9, "heading names a task"
    if finite(title):
        return f'what is meant by "{title}"?', 0.85, "heading is a statement"
    if _PREPOSITION.match(title) or verbal(title):
        return None
    if len(words(title)) == 1 and not (plural(title) or title in names or _MASS.search(title)):
        return None
    if _NO_PHRASE.search(title) or len(words(title)) > 7:
        return None
    phrase = re.sub(r"^([a-z]+ of )", r"the \1", sentence_cased(title, names))
    return f"what should one know about {phrase}?", 0.75, "heading is a phrase"


def has_steps(answer: str) -> bool:
    """Whether a text tells what to do: code, or an instruction."""
    return "```" in answer or bool(_STEPS.search(answer))


def lists(section: Section) -> Iterator[Candidate]:
    """Lists that a sentence announces, or that are all of a section with a plural heading."""
    blocks = section.blocks
    for before, block in zip((None, *blocks), blocks, strict=False):
        if block.kind != "list" or not _listable(block):
            continue
        ask = ""
        if before is not None and before.kind == "paragraph":
            ask = announced(sentences(before.text)[-1], len(block.entries))
        why = "sentence announces the list"
        if not ask and len(blocks) == 1 and section.titles:
            heading = section.titles[-1]
            if plural(heading) and len(words(heading)) > 1 and not _LEANS.search(heading):
                ask, why = f"name the {small(heading[:1].lower() + heading[1:])}.", "plural heading"
        if ask:
            place = block.place
            yield Candidate("list", ask, block.text, section, place, 0.9, (why,))


def _listable(block: Block) -> bool:
    entries = block.entries
    short = all(len(words(entry.whole)) <= 60 for entry in entries)
    own = all(entry.linked < 0.6 and not entry.lost for entry in entries)
    return 2 <= len(entries) <= 14 and short and own


def announced(sentence: str, count: int) -> str:
    """The question that a sentence before a list of `count` items answers; "" if none."""
    said = sentence.strip().removesuffix(":").strip()
    if said == sentence.strip() or _LEANS.search(re.sub(r"\bThere are\b|\bthese\b", "", said)):
        return ""
    number = re.search(rf"\b({'|'.join(_NUMBERS)})\b", said, re.IGNORECASE)
    if number and _NUMBERS[number[1].lower()] != count:
        return ""
    if match := re.fullmatch(r"The following (.{3,60}?) (are|is|can be|may be) (\w+.*)", said):
        return f"which {match[1]} {match[2]} {match[3]}?" if plural(match[1]) else ""
    if match := re.fullmatch(rf"There are ({_COUNT}) (.+)", said):
        known = match[1] if match[1] in _NUMBERS else ""
        return f"name the {known} {match[2]}.".replace("  ", " ") if plural(match[2]) else ""
    if match := re.fullmatch(r"The (.{3,60}?) (?:are|include)(?: as follows)?", said):
        return f"what are the {match[1]}?" if plural(match[1]) else ""
    if match := re.fullmatch(
        rf"(.{{2,40}}?) ({'|'.join(_HAS)}) (?:(?:the following|these) )?({_COUNT} )?(?!to )(.+)",
        said,
    ):
        subject, things = small(match[1]), match[4]
        if plural(things) and not re.search(r"\b(?:and|that|which|if|when)\b", subject):
            return f"which {things} does {subject} {_HAS[match[2]]}?"
    if match := re.fullmatch(rf"({'|'.join(_NUMBERS)}) (.+)", said, re.IGNORECASE):
        return f"name the {match[1].lower()} {match[2]}." if plural(match[2]) else ""
    return ""


def summary(section: Section) -> Iterator[Candidate]:
    """The leading sentence or two of a section of nothing but paragraphs, as its summary.

    They have to mention the section's main words, those of its heading, and something of each
    paragraph.
    """
    prose = [block for block in section.blocks if block.kind == "paragraph" and not block.lost]
    if not section.titles or not 2 <= len(prose) == len(section.blocks):
        return
    passage = "\n\n".join(block.text for block in prose)
    every = [sentence for block in prose for sentence in sentences(block.text)]
    total = len(words(passage))
    if not 70 <= total <= 320 or not all(complete(s) and not pointing(s) for s in every):
        return
    heading = set(content_words(section.titles[-1]))
    for count in (1, 2):  # the shorter one, if it is enough
        lead = " ".join(every[:count])
        share = central(lead, passage)
        said = set(content_words(lead))
        spans = all(said & set(content_words(block.text)) for block in prose)
        if share < 0.6 or not spans or not heading & said or len(words(lead)) > 0.4 * total:
            continue
        if not re.match(r"(?:if|when|as|after|before|because|since|although|while)\b", lead, re.I):
            ask = f'summarize this section, "{section.titles[-1]}", with sentences of its own:'
            why = f"extractive: leading {count} sentence(s), with {share:.0%} of the main words"
            yield Candidate(
                "summary", ask, lead, section, prose[0].place, 0.6 + 0.35 * share, (why,), passage,
                alone=True,
            )  # fmt: skip
        return
