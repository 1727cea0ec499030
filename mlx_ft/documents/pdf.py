"""PDF to sections: larger lines are headings, gaps part paragraphs, running lines are dropped."""

from __future__ import annotations

import io
import itertools
import logging
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

from pypdf import PdfReader

from mlx_ft.documents.sections import Document, Outline, paragraph, strip_marks

# It remarks on every fault that it can read past.
logging.getLogger("pypdf").setLevel(logging.CRITICAL)

MAX_PAGES = 3000
HEADING_RATIO = 1.12  # of the body's font size
GAP_RATIO = 1.35  # of the usual distance between lines


class PdfRefused(Exception):
    """The file cannot be used; the message is the reason."""


@dataclass(frozen=True)
class Line:
    """A line of text. size: of its font, points. top: distance from the page's foot, points."""

    text: str
    page: int
    size: float
    top: float


def read_pdf(content: bytes, file: str) -> Document:
    """A PDF's sections; places are page numbers. Raises PdfRefused: encrypted, scanned."""
    reader = PdfReader(io.BytesIO(content))
    if reader.is_encrypted and not reader.decrypt(""):
        raise PdfRefused("encrypted: it needs a password")
    pages = len(reader.pages)
    lines: list[Line] = []
    empty = []
    for number in range(1, min(pages, MAX_PAGES) + 1):
        found = _lines(reader.pages[number - 1], number)
        lines += found
        if not found:
            empty.append(number)
    if not lines:
        raise PdfRefused(f"no text on its {pages} page(s): scanned or drawn; it needs OCR first")
    outline = Outline(file, "pdf")
    if empty:
        outline.warnings.append(f"{len(empty)} of {pages} pages have no text: {_some(empty)}")
    if pages > MAX_PAGES:
        outline.warnings.append(f"only the first {MAX_PAGES} of {pages} pages were read")
    _fill(outline, _without_running(lines, pages))
    title = reader.metadata.title if reader.metadata else None
    document = outline.document()
    document.title = document.title or strip_marks(str(title or ""))
    return document


def _lines(page: Any, number: int) -> list[Line]:
    """The lines of a page in the order of the text, with their sizes and positions."""
    parts: list[tuple[str, float, float]] = []

    def visit(text: str, cm: list[float], tm: list[float], _font: object, size: float) -> None:
        top = tm[4] * cm[1] + tm[5] * cm[3] + cm[5]
        scale = abs(tm[3] * cm[3]) or abs(tm[1] * cm[2]) or 1.0
        parts.append((text, round(size * scale, 1), top))

    page.extract_text(visitor_text=visit)
    lines: list[Line] = []
    text, size, top = "", 0.0, 0.0
    for part, part_size, part_top in parts:
        for n, piece in enumerate(part.split("\n")):
            if n and text.strip():
                lines.append(Line(strip_marks(text), number, size, top))
            if n:
                text = ""
            if piece.strip() and not text.strip():
                size, top = part_size, part_top
            text += piece
    if text.strip():
        lines.append(Line(strip_marks(text), number, size, top))
    return lines


def _without_running(lines: list[Line], pages: int) -> list[Line]:
    """Lines without page numbers, and without headers and footers that most pages repeat."""

    def shape(line: Line) -> str:
        return re.sub(r"\d+", "#", line.text)

    edges: Counter[str] = Counter()
    for _, group in itertools.groupby(lines, key=lambda line: line.page):
        here = list(group)
        edges.update({shape(line) for line in (*here[:2], *here[-2:])})
    running = {text for text, count in edges.items() if count >= max(3, pages // 2)}
    numbers = re.compile(r"(?:page\s+)?[\divxlc]+(?:\s*(?:/|of)\s*\d+)?", re.IGNORECASE)
    return [
        line for line in lines if shape(line) not in running and not numbers.fullmatch(line.text)
    ]


def _fill(outline: Outline, lines: list[Line]) -> None:
    sizes: Counter[float] = Counter()
    for line in lines:
        sizes[line.size] += len(line.text)
    body = sizes.most_common(1)[0][0] if sizes else 0.0
    larger = sorted({s for s in sizes if s >= body * HEADING_RATIO}, reverse=True)
    pitch = _pitch(lines)
    held: list[Line] = []
    for line in lines:
        heading = line.size in larger and len(line.text.split()) <= 14
        if held and (heading or _parted(held[-1], line, pitch)):
            _flush(outline, held)
            held = []
        if heading and re.search(r"[A-Za-z]", line.text):
            outline.heading(larger.index(line.size) + 1, line.text, f"page {line.page}")
        elif not heading:
            held.append(line)
    _flush(outline, held)


def _pitch(lines: list[Line]) -> float:
    """The usual distance between two lines of a page."""
    gaps = Counter(
        round(a.top - b.top, 0)
        for a, b in itertools.pairwise(lines)
        if a.page == b.page and a.size == b.size and 0 < a.top - b.top < 60
    )
    # The smallest of the common ones: in a short text the gaps between paragraphs are as common.
    return min((g for g, n in gaps.items() if 2 * n >= max(gaps.values())), default=12.0)


def _parted(above: Line, line: Line, pitch: float) -> bool:
    """Whether a new paragraph begins: a gap, a jump upwards, or a page after a full stop."""
    if above.page != line.page:
        return above.text.endswith((".", "!", "?", ":"))
    gap = above.top - line.top
    return gap > pitch * GAP_RATIO or gap < -pitch or above.size != line.size


def _flush(outline: Outline, lines: list[Line]) -> None:
    """Add lines as a paragraph; words divided at a line's end are joined."""
    text = ""
    for line in lines:
        divided = re.search(r"[a-z]-$", text) and line.text[:1].islower()
        text = text[:-1] + line.text if divided else f"{text} {line.text}"
    if lines:
        block = paragraph(_mended(text), f"page {lines[0].page}")
        outline.add(block)


def _mended(text: str) -> str:
    """Ligatures as letters."""
    for ligature, letters in {"ﬁ": "fi", "ﬂ": "fl", "ﬀ": "ff", "ﬃ": "ffi", "ﬄ": "ffl"}.items():
        text = text.replace(ligature, letters)
    return text


def _some(pages: list[int]) -> str:
    shown = ", ".join(map(str, pages[:10]))
    return shown + (", ..." if len(pages) > 10 else "")
