"""What a document is to us: sections with their titles, and blocks with their places."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

# Marks that readers put around inline text; private-use characters, stripped from the input.
BOLD, END_BOLD, LINK, END_LINK, LOST = "\ue000", "\ue001", "\ue002", "\ue003", "\ue004"
_MARKS = re.compile(f"[{BOLD}-{LOST}]")
_LEAD = re.compile(f"\\s*{BOLD}([^{BOLD}{END_BOLD}]+){END_BOLD}\\s*([:.!?]?)\\s*(.*)", re.DOTALL)
_TERM = re.compile(r"(`[^`]+`)\s*(?::|—|–|--?)\s+(.+)", re.DOTALL)
_LINKED = re.compile(f"{LINK}([^{END_LINK}]*){END_LINK}")


@dataclass(frozen=True)
class Entry:
    """Inline text. text: without the lead. lead: the bold words or code term it begins with.

    linked: share of its words that are links. lost: something inside it has no text, such as a
    picture in the middle of a sentence. more: of a list's item, what follows the first paragraph,
    as Markdown.
    """

    text: str
    lead: str = ""
    linked: float = 0.0
    lost: bool = False
    more: str = ""

    @property
    def whole(self) -> str:
        """Lead, text and what follows together, as Markdown."""
        if not self.lead or not self.text:
            return self.followed(self.lead or self.text)
        return self.followed(f"{self.lead}{'' if self.lead[-1] in '.!?:' else ':'} {self.text}")

    def followed(self, text: str) -> str:
        """A text for the entry's own, and what follows it."""
        between = "\n" if re.match(r"(?:-|1\.) ", self.more) else "\n\n"  # a list may be close
        return f"{text}{between}{self.more}" if text and self.more else text or self.more


@dataclass(frozen=True)
class Block:
    """A piece of a section. kind: `paragraph`, `list`, `code` or `table`.

    text: Markdown; of code, the code alone. place: line or page, as in the source.
    entries: of a list, its items; of a paragraph, one. rows: of a table, the header first.
    """

    kind: str
    text: str
    place: str
    entries: tuple[Entry, ...] = ()
    rows: tuple[tuple[str, ...], ...] = ()
    language: str = ""

    @property
    def markdown(self) -> str:
        """The block as it stands in an answer."""
        if self.kind != "code":
            return self.text
        fence = "````" if "```" in self.text else "```"
        return f"{fence}{self.language}\n{self.text}\n{fence}"

    @property
    def lost(self) -> bool:
        """Whether something inside its text could not be carried over."""
        return any(entry.lost for entry in self.entries)


@dataclass(frozen=True)
class Section:
    """Blocks under one heading, without those of its subsections. titles: outermost first."""

    file: str
    titles: tuple[str, ...]
    place: str
    blocks: tuple[Block, ...]
    has_children: bool = False

    @property
    def markdown(self) -> str:
        """All its blocks, without the heading."""
        return "\n\n".join(block.markdown for block in self.blocks)


@dataclass
class Document:
    """A file that was read. format: of the reader. title: its first heading, or its name."""

    file: str
    format: str
    title: str
    sections: list[Section]
    warnings: list[str] = field(default_factory=list)


class Outline:
    """Collects a document's blocks under its headings, in reading order."""

    def __init__(self, file: str, format: str) -> None:
        self.file, self.format = file, format
        self.warnings: list[str] = []
        self._open: list[tuple[int, str]] = []
        self._place = "1"
        self._blocks: list[Block] = []
        self._sections: list[Section] = []

    def heading(self, level: int, title: str, place: str) -> None:
        """Begin a section. level: 1 is outermost."""
        title = heading_text(title)
        if not title:
            return
        self._close(has_children=bool(self._open) and level > self._open[-1][0])
        self._open = [(at, name) for at, name in self._open if at < level]
        self._open.append((level, title))
        self._place = place

    def add(self, block: Block | None) -> None:
        """Append a block to the open section."""
        if block is not None:
            self._blocks.append(block)

    def document(self, title: str = "") -> Document:
        """What was collected. title: where the file names itself other than by a heading."""
        self._close(has_children=False)
        name = title or next((s.titles[0] for s in self._sections if s.titles), "")
        return Document(self.file, self.format, name, self._sections, self.warnings)

    def _close(self, *, has_children: bool) -> None:
        if self._blocks or self._open:
            titles = tuple(name for _, name in self._open)
            section = Section(self.file, titles, self._place, tuple(self._blocks), has_children)
            self._sections.append(section)
        self._blocks = []


def heading_text(raw: str) -> str:
    """A heading without marks, numbering, anchors and pictographs."""
    text = re.sub(r"\s*\{\s*[#:.][^}]*\}\s*$", "", strip_marks(raw))
    text = re.sub(r"[\u2190-\u2bff\ufe0f\U0001f000-\U0001faff¶]+", "", text)
    text = re.sub(r"^\s*(?:\d+(?:\.\d+)*[.)]?|[A-Z][.)])\s+(?=\S)", "", text)
    return " ".join(text.split()).strip("# ").removesuffix(":")


def strip_marks(text: str) -> str:
    """Inline text without our marks, its white space single."""
    return " ".join(_MARKS.sub("", text).split())


def entry(raw: str) -> Entry | None:
    """Inline text with our marks, as an entry; None when nothing is in it."""
    plain = strip_marks(raw)
    if not plain:
        return None
    linked = sum(len(found.split()) for found in _LINKED.findall(raw)) / len(plain.split())
    if re.fullmatch(r"<?https?://\S+", plain):
        linked = 1.0
    lost = LOST in raw
    match = _LEAD.match(raw)
    if match and strip_marks(match[1]) and match[3].strip():
        lead, rest = strip_marks(match[1]) + match[2], strip_marks(match[3])
        bare = re.sub(r"^(?:—|–|--?)\s+", "", rest)
        # Bold words that the sentence simply goes on from are no lead.
        if lead[-1] in ".:!?" or bare != rest:
            return Entry(bare, lead.removesuffix(":"), linked, lost)
    term = _TERM.fullmatch(plain)
    if term:
        return Entry(term[2], term[1], linked, lost)
    return Entry(plain, "", linked, lost)


def paragraph(raw: str, place: str) -> Block | None:
    """A paragraph from inline text with our marks."""
    found = entry(raw)
    # A term with its description is an entry of a list; in a paragraph it is the sentence itself.
    return Block("paragraph", strip_marks(raw), place, (found,)) if found else None


def listing(raws: list[str], place: str, *, ordered: bool = False, more: bool = False) -> Block:
    """A list from the inline texts of its items. more: items held further blocks, left out."""
    block = list_of([found for raw in raws if (found := entry(raw))], place, ordered=ordered)
    return replace(block, entries=tuple(replace(e, lost=e.lost or more) for e in block.entries))


def list_of(entries: Sequence[Entry], place: str, *, ordered: bool = False) -> Block:
    """A list from its entries."""
    lines = []
    for number, one in enumerate(entries, start=1):
        mark = f"{number}. " if ordered else "- "
        lines.append(mark + textwrap.indent(one.whole, " " * len(mark))[len(mark) :])
    return Block("list", "\n".join(lines), place, tuple(entries))


def item(inside: Document) -> Entry | None:
    """What was read inside a list's item, as one entry; None when nothing is in it."""
    blocks = []
    for section in inside.sections:
        blocks += [found for found in (paragraph(t, "") for t in section.titles[-1:]) if found]
        blocks += section.blocks
    if not blocks:
        return None
    head = blocks[0].entries[0] if blocks[0].kind == "paragraph" else Entry("")
    rest = blocks[1:] if head.text else blocks
    return replace(
        head,
        linked=max([head.linked, *(one.linked for block in rest for one in block.entries)]),
        lost=head.lost or any(block.lost for block in rest),
        more="\n\n".join(block.markdown for block in rest),
    )


def code(text: str, place: str, language: str = "") -> Block | None:
    """A block of code; blank lines around it are dropped."""
    text = text.expandtabs(4).strip("\n").rstrip()
    return Block("code", text, place, language=language) if text.strip() else None


def table(rows: list[list[str]], place: str) -> Block | None:
    """A table from inline texts; its first row is the header."""
    cells = [tuple(strip_marks(cell) for cell in row) for row in rows]
    if len(cells) < 2 or len({len(row) for row in cells}) != 1:
        return None
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells]
    lines.insert(1, "|" + "---|" * len(cells[0]))
    return Block("table", "\n".join(lines), place, rows=tuple(cells))
