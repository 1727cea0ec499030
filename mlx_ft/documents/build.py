"""`mlx-ft data from-documents`: a folder of documents -> rows to train on."""

from __future__ import annotations

import dataclasses
import itertools
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ft.documents import chroma, write
from mlx_ft.documents.chunks import LEAST, Chunk, chunks, source_of
from mlx_ft.documents.items import KINDS
from mlx_ft.documents.make import Item, Made, make, section_key, surrounds, worded
from mlx_ft.documents.prose import names
from mlx_ft.documents.read import read, require
from mlx_ft.documents.sections import Document, Section
from mlx_ft.documents.split import RUN, groups, shingles, split
from mlx_ft.documents.walk import Found, Unread, walk
from mlx_ft.errors import DataError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuildOptions:
    """out: folder to write. subject: what the documents are about ("Flask"), for the questions.

    valid_fraction, test_fraction: shares of the items. min_quality: from 0 to 1. kinds: of
    `items.KINDS`. chunk_words: most words of a raw chunk; 0 makes none. max_file_bytes: larger
    files are left out. overwrite: replace an earlier result.
    """

    out: Path
    subject: str = ""
    valid_fraction: float = 0.1
    test_fraction: float = 0.0
    seed: int = 42
    min_quality: float = 0.7
    kinds: tuple[str, ...] = tuple(KINDS)
    chunk_words: int = 400
    max_file_bytes: int = 32 * 2**20
    overwrite: bool = False


@dataclass
class BuildResult:
    """What was made. items: side -> rows. report: the content of `report.json`."""

    out: Path
    items: dict[str, list[dict[str, Any]]]
    chunks: dict[str, list[dict[str, Any]]]
    unread: list[Unread]
    report: dict[str, Any] = field(default_factory=dict)


def build(source: Path | str, options: BuildOptions) -> BuildResult:
    """Read documents, make items and chunks, split them, write the folder.

    source: a folder, one file, or `chroma:PATH/COLLECTION`. Raises DataError for options out of
    range, a missing library, a source without any usable text, and an output folder that is not
    ours to write; nothing is written then.
    """
    _check(options)
    write.check(options.out, options.overwrite)
    documents, unread = _documents(source, options)
    named = names(" ".join(prose_of(documents)))
    made = [make(d, options.min_quality, options.kinds, named) for d in documents]
    items, repeated = worded([item for one in made for item in one.items], options.subject)
    for item, reason in repeated:
        next(one for one in made if one.document.file == item.section.file).rejected[reason] += 1
    sides, together = _sides(documents, items, options)
    pieces, dropped = _chunks(documents, sides, items, options)
    if not items and not any(pieces.values()):
        raise DataError(
            "Nothing in the documents can be used; see why for each.",
            [f"{one.file}: {one.reason}" for one in unread]
            or [f"{one.document.file}: no item and no chunk" for one in made],
        )
    rows = {side: [_row(i) for i in items if sides[i.key] == side] for side in _names(options)}
    report = {
        "source": str(source) if str(source).startswith("chroma:") else Path(source).name,
        **_plain(options),
        "items": {side: len(found) for side, found in rows.items()},
        "kinds": dict(sorted(Counter(item.kind for item in items).items())),
        "chunks": {side: len(found) for side, found in pieces.items()},
        "overlap": {"sections_kept_together": together, "chunks_dropped": dropped},
        "files": [_about(one, items) for one in made],
        "unread": [{"file": one.file, "reason": one.reason} for one in unread],
    }
    write.publish(options.out, rows, pieces, report)
    return BuildResult(options.out, rows, pieces, unread, report)


def prose_of(documents: Sequence[Document]) -> Iterator[str]:
    """The paragraphs of documents."""
    for document in documents:
        for section in document.sections:
            yield from (block.text for block in section.blocks if block.kind == "paragraph")


def _check(options: BuildOptions) -> None:
    faults = []
    for name in ("valid_fraction", "test_fraction", "min_quality"):
        if not 0 <= getattr(options, name) <= 1:
            faults.append(f"{name} is {getattr(options, name)}; expected 0 to 1")
    if options.valid_fraction + options.test_fraction > 0.9:
        faults.append("valid_fraction and test_fraction leave less than a tenth for training")
    if unknown := sorted(set(options.kinds) - set(KINDS)):
        faults.append(f"unknown kind(s) {', '.join(unknown)}; known: {', '.join(KINDS)}")
    if options.chunk_words and options.chunk_words < LEAST:
        faults.append(f"chunk_words is {options.chunk_words}; expected 0, or at least {LEAST}")
    if options.max_file_bytes < 1:
        faults.append(f"max_file_bytes is {options.max_file_bytes}; expected at least 1")
    if faults:
        raise DataError("The options cannot be used.", faults)


def _documents(source: Path | str, options: BuildOptions) -> tuple[list[Document], list[Unread]]:
    if isinstance(source, str) and source.startswith("chroma:"):
        return chroma.read_collection(source), []
    found = list(walk(Path(source), options.max_file_bytes, options.out))
    files = [one for one in found if isinstance(one, Found)]
    require(files)
    unread = [one for one in found if isinstance(one, Unread)]
    documents = []
    for file in files:
        document = read(file)
        if isinstance(document, Unread):
            unread.append(document)
        else:
            documents.append(document)
    for one in unread:
        logger.info("%s is left out: %s", one.file, one.reason)
    return documents, sorted(unread, key=lambda one: one.file)


def _sides(
    documents: Sequence[Document], items: Sequence[Item], options: BuildOptions
) -> tuple[dict[str, str], int]:
    """Section key -> side, and how many sections overlap with others and so stay with them."""
    texts: dict[str, list[str]] = {
        section_key(section): [] for document in documents for section in document.sections
    }
    for item in items:
        texts[item.key] += [item.answer, item.given] if item.given else [item.answer]
    joined = groups(texts)
    fractions = {"valid": options.valid_fraction, "test": options.test_fraction}
    sides = split(joined, Counter(item.key for item in items), fractions, options.seed)
    return sides, sum(len(group) for group in joined if len(group) > 1)


def _names(options: BuildOptions) -> list[str]:
    fractions = {"train": 1.0, "valid": options.valid_fraction, "test": options.test_fraction}
    return [side for side, fraction in fractions.items() if fraction > 0]


def _chunks(
    documents: Sequence[Document],
    sides: dict[str, str],
    items: Sequence[Item],
    options: BuildOptions,
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, int]]:
    """Side -> raw chunks, and the counts of those dropped.

    A chunk for training that shares a run of words with an item or chunk of another side would
    show it.
    """
    names = _names(options)
    found: dict[str, list[Chunk]] = {side: [] for side in names}
    for document in documents if options.chunk_words else ():
        for side, sections in _consecutive(document, sides):
            found[side] += chunks(sections, side, options.chunk_words)
    held_out = [text for i in items if sides[i.key] != "train" for text in (i.answer, i.given)]
    held_out += [chunk.text for side in names[1:] for chunk in found[side]]
    secret = {run for text in held_out for run in shingles(text) if len(run) == RUN}
    dropped: Counter[str] = Counter()
    texts: set[str] = set()
    rows: dict[str, list[dict[str, Any]]] = {side: [] for side in names}
    for side in names:
        for chunk in found[side]:
            reason = ""
            if len(chunk.text.split()) < LEAST:
                reason = "too short"
            elif chunk.text in texts:
                reason = "repeated"
            elif side == "train" and secret & shingles(chunk.text):
                reason = "overlaps with another side"
            texts.add(chunk.text)
            if reason:
                dropped[reason] += 1
                continue
            rows[side].append(
                {"text": chunk.text, "source": chunk.source, "section": list(chunk.section)}
            )
    return rows, dict(sorted(dropped.items()))


def _consecutive(document: Document, sides: dict[str, str]) -> Iterator[tuple[str, list[Section]]]:
    """Runs of sections on one side, without those that only surround the text."""
    kept = [section for section in document.sections if not surrounds(document, section)]
    for side, sections in itertools.groupby(kept, key=lambda s: sides[section_key(s)]):
        yield side, list(sections)


def _row(item: Item) -> dict[str, Any]:
    return {
        "messages": [
            {"role": "user", "content": item.prompt},
            {"role": "assistant", "content": item.answer},
        ],
        "source": source_of(item.section.file, item.place),
        "section": list(item.section.titles),
        "kind": item.kind,
        "quality": item.quality,
        "quality_reasons": list(item.reasons),
    }


def _about(made: Made, items: Sequence[Item]) -> dict[str, Any]:
    file = made.document.file
    kinds = Counter(item.kind for item in items if item.section.file == file)
    return {
        "file": file,
        "format": made.document.format,
        "sections": len(made.document.sections),
        "items": dict(sorted(kinds.items())),
        "rejected": dict(sorted(made.rejected.items())),
        "warnings": made.warnings,
    }


def _plain(options: BuildOptions) -> dict[str, Any]:
    """The options that the content depends on."""
    shown = dataclasses.asdict(options)
    return {name: shown[name] for name in sorted(shown) if name not in ("out", "overwrite")}
