"""Definitions: sentences, list items and table rows that say what a term is or does."""

from __future__ import annotations

import re
from collections.abc import Iterator

from mlx_ft.documents.grammar import DOES, VERBS, finite, sentence_cased
from mlx_ft.documents.items import Candidate
from mlx_ft.documents.prose import complete, sentences, word_set, words
from mlx_ft.documents.sections import Block, Entry, Section

_IS = re.compile(
    r"(?P<subject>(?:(?:An?|The)\s+)?[^,;:.!?()\"“”]{2,60}?)\s+(?P<verb>is|are)\s+"
    r"(?P<rest>(?:an?|the|one of|any|used|a set|a way|like)\s.+)",
)
_CODE_DOES = re.compile(
    r"(?P<the>(?:The|A|An)\s+)?(?P<term>`[^`]+`)(?P<noun>\s+[a-z]+)?\s+(?P<verb>[a-z]+s)\s+(?P<rest>.+)"
)
_NOUNS = word_set(
    "command function method option flag key setting parameter argument class module decorator "
    "attribute property file folder directory type variable filter tag block object package "
    "library field header hook event signal macro operator keyword plugin extension tool key code "
    "metric column name role format"
)
_NOT_A_TERM = re.compile(
    r"\b(?:this|that|these|those|it|they|he|she|you|we|I|there|here|what|which|who|how|where|when|"
    r"why|if|and|but|or|not|no|also|only|one|all|most|many|some|any|each|every|both|default|"
    r"result|reason|idea|goal|purpose|problem|difference|example|answer|point|thing|way|advantage|"
    r"first|second|last|next|other|another|same|above|following|value|exception|rest|output|"
    r"recommended|easiest|simplest|best|main|only|do|does|can|will|is|are|has|have|its|our|your|"
    r"their|my|in|on|at|to|as|since|because|while|with|for|from|by|when|using)\b",
    re.IGNORECASE,
)
_EMPTY_REST = re.compile(
    r"(?:an?|the)\s+(?:good|bad|great|nice|common|bit|lot|little|must|no-op|mistake|error|problem|"
    r"same|default|only|first|last|next|best|most|reason|result|case|one|following|recommended|"
    r"preferred|easiest|simplest|right|correct|wrong|key|main|few|number|simple matter|breaking|"
    r"subject|better|useful|convenient|pretty|really|more|work in progress|bug|pain|exception|"
    r"given|latter|former|ones?|current|new|old|important|big|huge|small)\b|"
    r"used\s+(?!(?:to|for|by|as|in|when|with)\b)|any\b(?!\s+\w+\s+(?:that|which|of))",
    re.IGNORECASE,
)
_LEANS = re.compile(r"\b(?:this|these|those|ditto|likewise|above|below|the same)\b", re.IGNORECASE)
# Verbs that say what a thing is rather than what it does.
_STATES = {
    "contains": "contain", "holds": "hold", "describes": "describe", "represents": "represent",
    "indicates": "indicate", "defines": "define", "specifies": "specify", "lists": "list",
}  # fmt: skip
_MEANING = {
    "meaning": "mean", "description": "is", "purpose": "is", "explanation": "is",
    "what it is": "is", "what it does": "do", "effect": "do", "content": "contain",
    "contents": "contain", "definition": "is", "details": "is", "summary": "is",
}  # fmt: skip


def definitions(section: Section, names: frozenset[str]) -> Iterator[Candidate]:
    """Every definition that a section's sentences, lists and tables hold.

    names: words that are written with a capital within a sentence too.
    """
    for block in section.blocks:
        if block.kind == "paragraph":
            for sentence in sentences(block.text):
                yield from _sentence(sentence, block, section, names)
        elif block.kind == "list":
            for entry in block.entries:
                yield from _term(entry, block, section)
        elif block.kind == "table":
            yield from _rows(block, section)


def _sentence(
    sentence: str, block: Block, section: Section, names: frozenset[str]
) -> Iterator[Candidate]:
    if block.lost or not complete(sentence) or re.search(r"\b(?:this|these|those)\b", sentence):
        return
    does = _CODE_DOES.fullmatch(sentence)
    if does and does["verb"] in DOES and (does["noun"] or "").strip() in {"", *_NOUNS}:
        if bool(does["the"]) != bool(does["noun"]):
            return  # "the `x` computes" and "`x` function computes" are not said
        term = (does["the"] or "").lower() + _called(does["term"]) + (does["noun"] or "")
        ask = f"what does {term} {_STATES.get(does['verb'], 'do')}?"
        why = f"sentence says what {does['term']} {does['verb']}"
        yield Candidate("definition", ask, sentence, section, block.place, 0.95, (why,))
        return
    match = _IS.fullmatch(sentence)
    if match and _defines(match["subject"], match["rest"]):
        subject = match["subject"]
        article, _, noun = subject.partition(" ")
        if article in ("A", "An"):
            subject = f"{article.lower()} {noun}"
        elif article == "The":
            subject = f"the {noun}"
        else:
            subject = sentence_cased(subject, names)
        ask = f"what {match['verb']} {subject}?"
        why = f'sentence of the form "X {match["verb"]} {match["rest"].split()[0]} ..."'
        yield Candidate("definition", ask, sentence, section, block.place, 0.95, (why,))


def _defines(subject: str, rest: str) -> bool:
    article, _, noun = subject.partition(" ")
    term = noun if article in ("A", "An", "The") else subject
    bare = re.sub(r"`[^`]*`", "`x`", term)
    if _NOT_A_TERM.search(bare) or _EMPTY_REST.match(rest) or len(term.split()) > 4:
        return False
    if article == "The" and "`" not in term and not re.search(r"[A-Z]", term):
        return False  # "the loss is a ..." speaks of one that was mentioned before
    if bare.count("`") % 2 or re.search(r"\w+ed\b|\w+ly\b|\w+ing\b", bare.split()[0].lower()):
        return False
    return len(words(rest)) >= 5


def _called(term: str) -> str:
    """A function's name without the signature that it is shown with."""
    if re.search(r"[\"'\d]", term.partition("->")[0]) and "=" not in term:
        return term  # a certain call, rather than the function
    return re.sub(r"^`([\w.]+)\((?:[^()]|\([^()]*\))*\)(?: -> [^`]*)?`$", r"`\1`", term)


def _term(entry: Entry, block: Block, section: Section) -> Iterator[Candidate]:
    """A list item of the form "`term`: what it is"."""
    if not entry.lead or entry.lost or len(words(entry.text)) < 4:
        return
    lead = entry.lead.rstrip(".:")
    first = entry.text.split()[0].lower()
    if first in VERBS or first in ("if", "when", "because", "since", "unless", "note", "you"):
        return
    if _LEANS.search(entry.text) or "?" in entry.whole or "," in lead or finite(lead):
        return
    if len(lead.split()) > 5 or lead.split()[0].lower() in VERBS:
        return
    why = "list item of the form term: description"
    text = _full(entry.text)
    if entry.more and entry.text.endswith(":"):
        text = text[:-1] + ":"  # it goes on
    answer = entry.followed(f"{lead}: {text}")
    if re.fullmatch(r"`[^`]+`", lead):
        ask, score = f"what is {_called(lead)}?", 0.9
    elif lead[0].isupper() and re.match(
        r"(?:An?|The|Any|One|Used|Refers|Represents)\b", entry.text
    ):
        ask, score = f'what does the term "{lead}" mean?', 0.75
    else:
        return
    common = re.fullmatch(r"`?[\w ]+`?", lead) is not None
    yield Candidate("definition", ask, answer, section, block.place, score, (why,), common=common)


def _rows(block: Block, section: Section) -> Iterator[Candidate]:
    """Rows of a table whose first column holds terms and another one what they mean."""
    header = block.rows[0]
    names = [cell.casefold() for cell in header]
    column = next((n for n, name in enumerate(names) if n and name in _MEANING), None)
    if column is None:
        return
    for row in block.rows[1:]:
        terms = re.findall(r"`[^`]+`", row[0])
        if not terms or re.sub(r"`[^`]+`|,|\band\b", "", row[0]).strip():
            continue
        if len(words(re.sub(r"`[^`]*`", "", row[column]))) < 3 or _LEANS.search(row[column]):
            continue
        many = len(terms) > 1
        shown = f"{', '.join(terms[:-1])} and {terms[-1]}" if many else terms[0]
        facts = [
            f"{header[n]}: {row[n].rstrip('.')}."
            for n in range(1, len(row))
            if n != column and row[n] and header[n] and len(row[n]) < 200
        ]
        verb = _MEANING[names[column]]
        terms_shown, noun = shown, header[0].casefold()
        if noun in _NOUNS:
            shown = f"the {noun}{'s' if many else ''} {shown}"
        ask = f"what {'are' if many else 'is'} {shown}?"
        if verb != "is":
            ask = f"what {'do' if many else 'does'} {shown} {verb}?"
        answer = " ".join([f"{terms_shown}: {_full(row[column])}", *facts])
        why = f'table row, column "{header[column]}"'
        common = all(re.fullmatch(r"`[a-z]+`", term) for term in terms)
        shared_out = many and ";" in row[column]  # which half is of which term is left open
        score = 0.6 if shared_out else 0.95
        yield Candidate(
            "definition", ask, answer, section, block.place, score, (why,), common=common
        )


def _full(text: str) -> str:
    """A description with a capital and a full stop."""
    text = text.rstrip()
    if not text.startswith("`"):
        text = text[:1].upper() + text[1:]
    return text if re.search(r"[.!?][)\"”]?$", text) else text.rstrip(",;:") + "."
