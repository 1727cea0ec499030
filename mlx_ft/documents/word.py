"""DOCX to sections, by the styles of its paragraphs."""

from __future__ import annotations

import io
import re
import zipfile

import docx
from docx.table import Table
from docx.text.paragraph import Paragraph

from mlx_ft.documents.sections import (
    BOLD,
    END_BOLD,
    END_LINK,
    LINK,
    LOST,
    Document,
    Outline,
    code,
    listing,
    paragraph,
    table,
)

MAX_UNPACKED = 512 * 2**20


class DocxRefused(Exception):
    """The file cannot be used; the message is the reason."""


def read_docx(content: bytes, file: str) -> Document:
    """A DOCX file's sections; places are paragraph numbers. Raises DocxRefused."""
    if content.startswith(b"\xd0\xcf\x11\xe0"):
        raise DocxRefused("encrypted, or in the older .doc format: save it as plain .docx")
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        if sum(member.file_size for member in archive.infolist()) > MAX_UNPACKED:
            raise DocxRefused(f"it unpacks to more than {MAX_UNPACKED // 2**20} MiB")
    opened = docx.Document(io.BytesIO(content))
    outline = Outline(file, "docx")
    items: list[str] = []
    codes: list[str] = []
    ordered, begin = False, ""
    for number, child in enumerate(opened.iter_inner_content(), start=1):
        place = f"paragraph {number}"
        style = child.style.name or "" if child.style else ""
        kind = _kind(child, style)
        if kind != "item" and items:
            outline.add(listing(items, begin, ordered=ordered))
            items = []
        if kind != "code" and codes:
            outline.add(code("\n".join(codes), begin))
            codes = []
        if not items and not codes:
            begin = place
        if isinstance(child, Table):
            rows = [[cell.text for cell in row.cells] for row in child.rows]
            outline.add(table(rows, place))
        elif kind == "item":
            items.append(_inline(child))
            ordered = "Number" in style
        elif kind == "code":
            codes.append(child.text)
        elif kind == "heading":
            outline.heading(_level(style), _inline(child), place)
        else:
            outline.add(paragraph(_inline(child), place))
    if items:
        outline.add(listing(items, begin, ordered=ordered))
    if codes:
        outline.add(code("\n".join(codes), begin))
    document = outline.document()
    document.title = document.title or opened.core_properties.title or ""
    return document


def _kind(child: Paragraph | Table, style: str) -> str:
    if isinstance(child, Table):
        return "table"
    if re.match(r"(?:Heading \d|Title$)", style):
        return "heading"
    if style.startswith("List") or child._p.xpath("./w:pPr/w:numPr"):
        return "item"
    if re.search(r"\b(?:code|preformatted|verbatim|source)\b", style, re.IGNORECASE):
        return "code"
    return "text"


def _level(style: str) -> int:
    digits = re.search(r"\d", style)
    return int(digits[0]) + 1 if digits else 1


def _inline(text: Paragraph) -> str:
    """Inline text with marks; a picture among the words is marked as lost."""
    linked = {run._r for link in text.hyperlinks for run in link.runs}
    parts = []
    for child in text.iter_inner_content():
        for run in getattr(child, "runs", [child]):
            if run._r.xpath(".//w:drawing | .//w:object"):
                parts.append(LOST)
            piece = run.text
            if run._r in linked:
                piece = f"{LINK}{piece}{END_LINK}"
            parts.append(f"{BOLD}{piece}{END_BOLD}" if run.bold and piece.strip() else piece)
    return "".join(parts).replace(f"{END_BOLD}{BOLD}", "")
