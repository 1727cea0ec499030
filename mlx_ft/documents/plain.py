"""Plain text to sections: paragraphs between blank lines, underlined or upper-case headings."""

from __future__ import annotations

import re

from mlx_ft.documents.sections import Block, Document, Outline, listing, paragraph

_UNDERLINE = re.compile(r"\s*(=|-|~|\*){4,}\s*$")
_ITEM = re.compile(r"\s{0,6}(?:[-*•o]|\d+[.)])\s+(\S.*)$")


def read_plain(text: str, file: str) -> Document:
    """A text file's sections; places are line numbers."""
    outline = Outline(file, "text")
    lines = text.split("\n")
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].strip():
            end += 1
        if end > at:
            _paragraph(lines[at:end], at + 1, outline)
        at = end + 1
    return outline.document()


def _paragraph(lines: list[str], first: int, outline: Outline) -> None:
    """Add one run of lines without a blank: a heading, a list, a paragraph, or several."""
    if len(lines) > 1 and _UNDERLINE.match(lines[1]) and len(lines[0].split()) <= 12:
        level = 1 if lines[1].strip()[0] in "=*" else 2
        outline.heading(level, lines[0], str(first))
        lines, first = lines[2:], first + 2
    elif len(lines) == 1 and _upper(lines[0]):
        outline.heading(1, lines[0].strip().capitalize(), str(first))
        return
    if not lines:
        return
    items: list[str] = []
    for line in lines:
        match = _ITEM.match(line)
        if match:
            items.append(match[1])
        elif items:
            items[-1] += " " + line.strip()
    starts = _ITEM.match(lines[0])
    block: Block | None
    if starts and len(items) > 1:
        block = listing(items, str(first), ordered=lines[0].strip()[0].isdigit())
    else:
        block = paragraph(" ".join(line.strip() for line in lines), str(first))
    outline.add(block)


def _upper(line: str) -> bool:
    letters = [c for c in line if c.isalpha()]
    return len(letters) > 3 and len(line.split()) <= 8 and line == line.upper()
