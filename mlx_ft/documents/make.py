"""Documents to items: every rule tried, every candidate judged, every question worded."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field, replace

from mlx_ft.documents.codes import bodies, codes
from mlx_ft.documents.definitions import definitions
from mlx_ft.documents.grammar import apparatus
from mlx_ft.documents.items import Candidate
from mlx_ft.documents.prose import capital, english
from mlx_ft.documents.quality import judge
from mlx_ft.documents.questions import lists, questions, summary
from mlx_ft.documents.sections import Document, Section


@dataclass(frozen=True)
class Item:
    """An accepted pair. question: as a user asks it, without what it shows (`given`)."""

    kind: str
    question: str
    given: str
    answer: str
    section: Section
    title: str
    place: str
    quality: float
    reasons: tuple[str, ...]
    common: bool = False

    @property
    def key(self) -> str:
        """The section it belongs to, for the split."""
        return section_key(self.section)

    @property
    def prompt(self) -> str:
        """The user's turn."""
        return f"{self.question}\n\n{self.given}" if self.given else self.question


@dataclass
class Made:
    """What came of a document. rejected: reason -> count of candidates."""

    document: Document
    items: list[Item] = field(default_factory=list)
    rejected: Counter[str] = field(default_factory=Counter)
    warnings: list[str] = field(default_factory=list)


def section_key(section: Section) -> str:
    """A section's name in the split: its file and where it begins."""
    return f"{section.file}:{section.place} {' / '.join(section.titles)}"


def title_of(document: Document, section: Section, chapters: Collection[str]) -> str:
    """What a question calls the page: its title; of a file with several chapters, the chapter's."""
    chapter = section.titles[0] if section.titles and document.title in chapters else ""
    title = chapter or document.title
    return title if title and not apparatus(title) else f"`{document.file}`"


def surrounds(document: Document, section: Section) -> bool:
    """Whether a section is a changelog, a licence, a list of links or the like."""
    name = re.sub(r"\.\w+$", "", document.file.rsplit("/", 1)[-1])
    named = apparatus(re.sub(r"[-_]", " ", name)) and document.format not in ("python", "source")
    return named or any(apparatus(title) for title in section.titles)


def make(
    document: Document, min_quality: float, kinds: Collection[str], names: frozenset[str]
) -> Made:
    """The items of a document, their questions still without words about where they are from.

    names: words that are written with a capital within a sentence too.
    """
    made = Made(document, warnings=list(document.warnings))
    prose = [b.text for s in document.sections for b in s.blocks if b.kind == "paragraph"]
    if document.format == "source":
        made.warnings.append("only raw chunks are made of this language")
        return made
    if not english(" ".join(prose)):
        made.warnings.append("not in English, which the rules are for: only raw chunks")
        return made
    chapters = {one.titles[0] for one in document.sections if one.titles}
    for section in document.sections:
        title = title_of(document, section, chapters)
        if surrounds(document, section):
            made.rejected["section is a changelog, licence, list of links or the like"] += 1
            continue
        for candidate in _candidates(document, section, title, names):
            if candidate.kind not in kinds:
                continue
            verdict = judge(candidate, min_quality)
            if verdict.rejected:
                made.rejected[verdict.rejected] += 1
            else:
                made.items.append(_item(candidate, title, verdict.score, verdict.reasons))
    return made


def _candidates(
    document: Document, section: Section, title: str, names: frozenset[str]
) -> Iterator[Candidate]:
    if document.format == "python":
        yield from bodies(section)
        return
    yield from questions(section, title, names)
    yield from definitions(section, names)
    yield from lists(section)
    yield from summary(section)
    yield from codes(section)


def _item(candidate: Candidate, title: str, quality: float, reasons: tuple[str, ...]) -> Item:
    return Item(
        candidate.kind,
        candidate.ask,
        candidate.given,
        candidate.answer,
        candidate.section,
        "" if candidate.alone else title,  # what it shows says where it is from
        candidate.place,
        quality,
        reasons,
        candidate.common,
    )


def worded(items: Sequence[Item], subject: str) -> tuple[list[Item], list[tuple[Item, str]]]:
    """Items with their questions in full, none asked or answered twice; and those left out.

    A question names its subject or its page; where two are the same then, also its section. Of
    two that are still the same, the better stays.
    """
    asked = Counter(_worded(item, subject, exact=False) for item in items)
    full = [
        replace(item, question=_worded(item, subject, exact=item.common or asked[name] > 1))
        for item in items
        for name in [_worded(item, subject, exact=False)]
    ]
    kept: list[Item] = []
    left: list[tuple[Item, str]] = []
    prompts: set[str] = set()
    answers: set[tuple[str, str]] = set()
    order = sorted(range(len(full)), key=lambda n: (-full[n].quality, n))
    for n in order:
        item = full[n]
        if item.prompt.casefold() in prompts:
            left.append((item, "question asked twice"))
        elif (item.kind, item.answer) in answers:
            left.append((item, "answer given twice"))
        else:
            prompts.add(item.prompt.casefold())
            answers.add((item.kind, item.answer))
            kept.append(item)
    place = {id(item): n for n, item in enumerate(full)}
    return sorted(kept, key=lambda item: place[id(item)]), left


def _worded(item: Item, subject: str, *, exact: bool) -> str:
    if not item.title:
        return capital(item.question)
    section = item.section.titles[-1] if item.section.titles else item.title
    if exact and section != item.title:
        where = f"the section {_quoted(section)} of {_quoted(item.title)}"
        return f"According to {where}, {item.question}"
    if exact or not subject:
        return f"According to {_quoted(item.title)}, {item.question}"
    return f"In {subject}, {item.question}"


def _quoted(title: str) -> str:
    if title.count("`") == 2 and title.startswith("`") and title.endswith("`"):
        return title
    return '"' + title.replace('"', "'") + '"'
