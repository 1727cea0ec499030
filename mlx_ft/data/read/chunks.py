"""Byte blocks cut at line ends: the unit that a row parser, or another process, works on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_ft.data.read.blocks import Damaged, failure_row
from mlx_ft.data.rows import BadRow

LINE_LIMIT = 64 << 20  # bytes; a longer line or JSON element is never held in memory


@dataclass(frozen=True)
class Chunk:
    """Whole lines of a file, without the last line end. line: the number of the first one.

    encoding: what the file had; `data` is UTF-8 (or bytes that never were text).
    """

    path: Path
    line: int
    data: bytes
    encoding: str = "UTF-8"


def cut_chunks(
    data: Iterator[bytes], path: Path, encoding: str = "UTF-8", limit: int = LINE_LIMIT
) -> Iterator[Chunk | BadRow]:
    """Blocks as chunks; lines beyond `limit` bytes, and what ends the stream early, as BadRows."""
    line, size = 1, 0
    held: list[bytes] = []  # of a line whose end has not come; empty once it is beyond the limit
    try:
        for block in data:
            cut = block.rfind(b"\n")
            if cut < 0:
                size += len(block)
                held = [*held, block] if size <= limit else []
                continue
            first = block.find(b"\n")
            if size + first > limit:
                yield huge_row(path, line, size + first, limit)
                line, held, start = line + 1, [], first + 1
            else:
                start = 0
            if start <= cut:
                whole = b"".join([*held, block[start:cut]])
                yield Chunk(path, line, whole, encoding)
                line += whole.count(b"\n") + 1
            held, size = [block[cut + 1 :]], len(block) - cut - 1
    except (Damaged, OSError) as error:
        yield failure_row(path, line, error, b"".join(held).decode("utf-8", "surrogateescape"))
        return
    if size > limit:
        yield huge_row(path, line, size, limit)
    elif size:
        yield Chunk(path, line, b"".join(held), encoding)


def huge_row(path: Path, line: int, size: int, limit: int) -> BadRow:
    """A row that is longer than `limit` bytes, skipped unread."""
    sentence = (
        f"the row has {size:,} bytes or more, and the limit is {limit:,}; check for a missing "
        "line break or bracket"
    )
    return BadRow(path, line, "huge_line", sentence, "")
