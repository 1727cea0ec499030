"""Parquet, some rows at a time."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from mlx_ft.data.read.values import row_fields
from mlx_ft.data.rows import BadRow, Record, RowError

BATCH = 256  # rows


def read_parquet(data: Iterator[bytes], path: Path) -> Iterator[Record | BadRow]:
    """The rows of a Parquet file; `line` is the row's number. Raises OSError and Damaged.

    data: the file's content, unpacked; it is used when the file itself is packed.
    """
    with path.open("rb") as file:
        if file.read(4) == b"PAR1":
            yield from _rows(file, path)
            return
    with tempfile.TemporaryFile() as file:  # its index is at the end: no stream
        for block in data:
            file.write(block)
        yield from _rows(file, path)


def _rows(file: IO[bytes], path: Path) -> Iterator[Record | BadRow]:
    from pyarrow import parquet

    number = 0
    # Damaged content makes pyarrow raise errors of many kinds, MemoryError among them.
    try:
        with parquet.ParquetFile(file) as table:
            twice = _twice(table.schema_arrow.names)
            if twice:
                sentence = f"two columns are named {twice!r}; rename one. No row was read"
                yield BadRow(path, 1, "file_unreadable", sentence, "")
                return
            for batch in table.iter_batches(batch_size=BATCH):
                try:
                    rows = batch.to_pylist()
                except Exception:  # one by one, so that it is said for the row that it is about
                    rows = _values(batch)
                for row in rows:
                    number += 1
                    yield _row(row, path, number)
    except Exception as error:
        reason = str(error).partition("\n")[0][:200]
        sentence = f"the Parquet data from row {number + 1} on cannot be read ({reason}); "
        yield BadRow(path, number + 1, "archive_damaged", sentence + "make the file again", "")


def _twice(names: list[str]) -> str | None:
    return next((name for name in names if names.count(name) > 1), None)


def _values(batch: Any) -> Iterator[dict[str, Any] | Exception]:
    """The rows of a batch in Python's types; what has none is an exception in its row only."""
    for i in range(batch.num_rows):
        try:
            yield batch.slice(i, 1).to_pylist()[0]
        except Exception as error:
            yield error


def _row(row: dict[str, Any] | Exception, path: Path, number: int) -> Record | BadRow:
    if isinstance(row, Exception):
        code = "encoding" if isinstance(row, UnicodeError) else "wrong_type"
        sentence = f"a value cannot be read ({row}); write it as text"
        return BadRow(path, number, code, sentence, "")
    try:
        return Record(row_fields(row), path, number)
    except RowError as error:
        [fault] = error.found
        raw = json.dumps(row, default=str, ensure_ascii=True)
        return BadRow(path, number, fault.code, fault.sentence, raw)
