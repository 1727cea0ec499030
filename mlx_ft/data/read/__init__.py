"""Files to rows: any of JSON Lines, JSON, CSV, TSV and Parquet, also packed, streamed.

`read` gives a file's rows; `parts` gives JSON Lines in chunks, which `parse_chunk` turns into rows
in whichever process it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from mlx_ft.data.read.blocks import Damaged, failure_row, open_blocks, peek
from mlx_ft.data.read.chunks import LINE_LIMIT, Chunk, cut_chunks
from mlx_ft.data.read.encoding import utf8
from mlx_ft.data.read.json_file import read_json
from mlx_ft.data.read.json_row import parse_chunk
from mlx_ft.data.read.kind import EXPECTED, PARQUET, other_kind, suffix, text_kind
from mlx_ft.data.read.parquet import read_parquet
from mlx_ft.data.read.quarantine import Quarantine
from mlx_ft.data.read.stats import ReadStats
from mlx_ft.data.read.table import read_table
from mlx_ft.data.rows import BadRow, Record

__all__ = ["LINE_LIMIT", "Chunk", "Quarantine", "ReadStats", "parse_chunk", "parts", "read"]

HEAD = 1 << 20
KINDS = {"lines": "JSON Lines", "json": "JSON", "table": "a table"}


def read(
    path: Path, stats: ReadStats | None = None, *, limit: int = LINE_LIMIT
) -> Iterator[Record | BadRow]:
    """The rows of a file, one at a time, in the order of their lines.

    Nothing that a file holds raises: what is wrong is a BadRow. A file that cannot be read or has
    no rows is one too. limit: bytes of the longest row. stats: counts, up to date at the end.
    """
    stats = ReadStats() if stats is None else stats
    for part in parts(path, stats, limit=limit):
        if isinstance(part, Chunk):
            yield from parse_chunk(part, stats)
        else:
            yield part


def parts(
    path: Path, stats: ReadStats, *, limit: int = LINE_LIMIT
) -> Iterator[Chunk | Record | BadRow]:
    """A file's rows as `read` gives them, but JSON Lines as chunks of about 2 MiB.

    The rows of a chunk are not in `stats` until `parse_chunk` has counted them.
    """
    try:
        yield from _parts(path, stats, limit)
    except (Damaged, OSError) as error:  # before anything could be read
        stats.bad += 1
        yield failure_row(path, 1, error)


def _parts(path: Path, stats: ReadStats, limit: int) -> Iterator[Chunk | Record | BadRow]:
    if str(path).startswith("hub:"):
        from mlx_ft.data.hub import read_hub

        yield from _counted(read_hub(path, stats), path, stats)
        return
    start, data = peek(open_blocks(path), 4)
    if start == PARQUET:
        stats.kind = "Parquet"
        yield from _counted(read_parquet(data, path), path, stats)
        return
    start, data = peek(data, HEAD)
    if other := other_kind(start):
        stats.bad += 1
        yield BadRow(path, 1, "file_unreadable", f"this is {other}; {EXPECTED}", "")
        return
    encoding, data = utf8(data)
    head, data = peek(data, HEAD)
    if not head.strip() and len(head) < HEAD:
        for _ in data:  # the file's own failure, if that is why
            pass
        stats.bad += 1
        yield BadRow(path, 1, "file_unreadable", f"the file is empty; {EXPECTED}", "")
        return
    ending = suffix(path)
    kind = text_kind(head.decode("utf-8", "replace"), len(head) < HEAD, ending)
    stats.kind = KINDS.get(kind or "", "")
    if kind == "lines":
        for part in cut_chunks(data, path, encoding, limit):
            stats.bad += isinstance(part, BadRow)
            yield part
    elif kind == "json":
        yield from _counted(read_json(data, path, stats, encoding, limit), path, stats)
    elif kind == "table":
        lines = cut_chunks(data, path, encoding, limit)
        yield from _counted(read_table(lines, path, stats, ending), path, stats)
    else:
        stats.bad += 1
        sentence = (
            f"this is text without rows; {EXPECTED}; for documents see `mlx-ft data from-documents`"
        )
        yield BadRow(path, 1, "file_unreadable", sentence, "")


def _counted(
    rows: Iterable[Record | BadRow], path: Path, stats: ReadStats
) -> Iterator[Record | BadRow]:
    """The rows, counted; a file without any is itself a bad row."""
    row = None
    for row in rows:
        if isinstance(row, Record):
            stats.rows += 1
        else:
            stats.bad += 1
        yield row
    if row is None:
        stats.bad += 1
        yield BadRow(path, 1, "file_unreadable", f"the file has no rows; {EXPECTED}", "")
