"""How good an item is: reasons to reject it, and a score from 0 to 1 with its reasons."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from mlx_ft.documents.items import Candidate
from mlx_ft.documents.prose import (
    balanced,
    complete,
    content_words,
    leaning,
    pointing,
    sentences,
    stale,
    words,
)
from mlx_ft.documents.questions import has_steps
from mlx_ft.documents.sections import Block

# Least and most words of an answer; of code, words are what white space parts.
LENGTHS = {
    "definition": (6, 90),
    "question": (15, 320),
    "list": (6, 300),
    "summary": (8, 90),
    "text_to_code": (2, 160),
    "code_to_text": (10, 200),
    "function": (4, 400),
}
_SELF = re.compile(
    r"\b(?:this|the (?:next|previous|following|current)) (?:section|page|chapter|document|guide|"
    r"tutorial|article|part|file|manual|readme|release|post|documentation|module)\b",
    re.IGNORECASE,
)
_FORWARD = re.compile(r":$|\bbelow\b|follow|this example|like this|like so", re.IGNORECASE)
_VERSIONED = re.compile(
    r"\b(?:new in|since|as of|starting with|deprecated|changed in|added in|prior to|until) "
    r"(?:version |v)?\d",
    re.IGNORECASE,
)
_ELSEWHERE = re.compile(r"\b(?:see|refer to|have a look at|check out|read more)\b", re.IGNORECASE)
_TEMPLATE = re.compile(r"\{\{|\}\}|\{%|%\}|<%|\uFFFD|\.\. \w+::|:\w+:`|\[\[|(?m:^\W*\[[ xX]\] )")


@dataclass(frozen=True)
class Verdict:
    """rejected: the reason, or "". score: from 0 to 1. reasons: what it is made of."""

    rejected: str
    score: float
    reasons: tuple[str, ...]


def judge(item: Candidate, min_quality: float) -> Verdict:
    """Accept or reject an item; only the first reason to reject it is told."""
    for reason in _faults(item):
        return Verdict(reason, 0.0, (reason,))
    score, reasons = item.score, list(item.reasons)
    for cost, said in _weaknesses(item):
        score -= cost
        reasons.append(f"{said} (-{cost:.2f})")
    score = round(max(0.0, min(1.0, score)), 2)
    rejected = "score too low" if score < min_quality else ""
    return Verdict(rejected, score, tuple(reasons))


def _faults(item: Candidate) -> Iterator[str]:
    """Reasons for which an item is no good, whatever else it has."""
    least, most = LENGTHS[item.kind]
    count = len(item.answer.split()) if "code" in item.kind else len(words(item.answer))
    if count < least:
        yield "answer too short"
    if count > most:
        yield "answer too long"
    if len(words(item.ask)) > 32 or not balanced(item.ask):
        yield "question unclear"
    if item.kind == "function":
        return
    if _TEMPLATE.search(_prose(item)):
        yield "markup in the text"
    if stale(_prose(item)):
        yield "unfinished or legal text"
    if _SELF.search(_prose(item)):
        yield "speaks of its own page"
    if item.kind in ("definition", "summary"):
        yield from _standing(item)
    elif item.kind == "question":
        yield from _answering(item)
    elif item.kind == "list" and any(pointing(line) for line in item.answer.split("\n")):
        yield "points elsewhere"


def _standing(item: Candidate) -> Iterator[str]:
    """Faults of sentences that have to be understood by themselves."""
    found = sentences(item.answer)
    if leaning(found[0]):
        yield "leans on what stood before"
    if any(pointing(sentence) for sentence in found):
        yield "points elsewhere"
    if not balanced(item.answer):
        yield "sentence incomplete"


def _answering(item: Candidate) -> Iterator[str]:
    """Faults of a section, or of the text after a lead-in, as an answer."""
    whole = item.answer == item.section.markdown
    blocks = item.section.blocks if whole else (Block("paragraph", item.answer, item.place),)
    prose = [block for block in blocks if block.kind == "paragraph"]
    if not prose and not any(block.kind == "list" for block in blocks):
        yield "no sentence in the answer"
    if any(block.lost for block in blocks):
        yield "a picture or block is missing"
    if any(entry.linked > 0.5 for block in blocks for entry in block.entries):
        yield "mostly links"
    if blocks[0].kind == "paragraph" and leaning(sentences(blocks[0].text)[0]):
        yield "leans on what stood before"
    if blocks[0].kind in ("code", "table") and not item.ask.startswith("how do I"):
        yield "begins without a sentence"
    for n, block in enumerate(blocks):
        if block.kind != "paragraph":
            continue
        if pointing(block.text) and not _announces(block.text, blocks, n):
            yield "points elsewhere"
        said = sentences(block.text)
        if not all(complete(s) or (s is said[-1] and s.endswith(":")) for s in said):
            yield "sentence incomplete"
    if item.ask.startswith(("how do I", "what should I do")):
        remedy = item.ask.startswith("what") and "`" in item.answer
        if not remedy and not has_steps(item.answer):
            yield "does not answer"


def _announces(text: str, blocks: tuple[Block, ...], n: int) -> bool:
    """Whether what a paragraph points to comes right after it."""
    follows = n + 1 < len(blocks) and blocks[n + 1].kind != "paragraph"
    found = pointing(text)
    return follows and bool(_FORWARD.search(found))


def _weaknesses(item: Candidate) -> Iterator[tuple[float, str]]:
    """What makes an item less useful, each with what it costs."""
    text = _prose(item)
    if _VERSIONED.search(text):
        yield 0.2, "speaks of versions"
    if item.kind != "function" and _ELSEWHERE.search(text):
        yield 0.2 if item.kind == "definition" else 0.1, "refers to another place"
    if item.kind in ("definition", "summary") and re.search(r"\b(?:we|our|us|I|my)\b", text):
        yield 0.15, "first person"
    if item.kind == "definition" and len(words(item.answer)) < 9:
        yield 0.1, "short answer"
    if item.kind == "question":
        asked = set(content_words(item.ask)) - set(content_words("problem know meant explain"))
        if asked and not asked & set(content_words(item.answer)):
            yield 0.2, "the answer shares no word with the question"
        if item.section.has_children and item.answer == item.section.markdown:
            yield 0.1, "subsections say more"
        tables = sum(len(row) for row in item.answer.split("\n") if row.startswith("|"))
        if tables > len(item.answer) / 2:
            yield 0.1, "mostly a table"
        if len(words(item.answer)) > 220:
            yield 0.1, "long answer"
    if re.search(r"https?://\S+", text):
        yield 0.05, "a web address in the text"


def _prose(item: Candidate) -> str:
    """The item's text without its code."""
    if "code" in item.kind and item.kind != "code_to_text":
        return item.ask
    return re.sub(r"```.*?```|`[^`]*`", "", f"{item.given}\n{item.answer}", flags=re.DOTALL)
