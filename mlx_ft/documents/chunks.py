"""Raw text for continued training: pieces of a document, cut between blocks or sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mlx_ft.documents.prose import sentences
from mlx_ft.documents.sections import Block, Section

LEAST = 20  # words


@dataclass(frozen=True)
class Chunk:
    """A piece of raw text. source: file and place of its beginning. sections: titles in it."""

    text: str
    source: str
    section: tuple[str, ...]
    side: str


@dataclass(frozen=True)
class _Piece:
    text: str
    place: str
    titles: tuple[str, ...]

    @property
    def size(self) -> int:
        return len(self.text.split())


def chunks(sections: Sequence[Section], side: str, most: int) -> Iterator[Chunk]:
    """Chunks of at most about `most` words of consecutive sections of one document.

    A piece of code or a table larger than that is cut between its lines.
    """
    held: list[_Piece] = []
    for piece in (piece for section in sections for piece in _pieces(section, most)):
        if held and sum(p.size for p in held) + piece.size > most:
            yield _chunk(sections[0].file, held, side)
            held = []
        held.append(piece)
    if held:
        yield _chunk(sections[0].file, held, side)


def source_of(file: str, place: str) -> str:
    """File and place as editors and PDF readers take it: `a.md:12`, `a.pdf#page=3`."""
    kind, _, number = place.partition(" ")
    return f"{file}#{kind}={number}" if number else f"{file}:{place}"


def _chunk(file: str, pieces: Sequence[_Piece], side: str) -> Chunk:
    text = "\n\n".join(piece.text for piece in pieces)
    return Chunk(text, source_of(file, pieces[0].place), pieces[0].titles, side)


def _pieces(section: Section, most: int) -> Iterator[_Piece]:
    """The blocks of a section, large ones cut; the heading goes with the first."""
    heading = ""
    if section.titles and not section.file.endswith(".py"):
        heading = f"{'#' * min(len(section.titles), 6)} {section.titles[-1]}\n\n"
    for block in section.blocks:
        for text in _cut(block, most):
            yield _Piece(heading + text, block.place, section.titles)
            heading = ""


def _cut(block: Block, most: int) -> Iterator[str]:
    if len(block.markdown.split()) <= most:
        yield block.markdown
        return
    units = sentences(block.text) if block.kind == "paragraph" else block.text.split("\n")
    joint = " " if block.kind == "paragraph" else "\n"
    held: list[str] = []
    size = 0
    for unit in units:
        if held and size + len(unit.split()) > most:
            yield _fenced(block, joint.join(held))
            held, size = [], 0
        held.append(unit)
        size += len(unit.split())
    yield _fenced(block, joint.join(held))


def _fenced(block: Block, text: str) -> str:
    return Block(block.kind, text, block.place, language=block.language).markdown
