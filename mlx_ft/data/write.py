"""Rows to files: JSON Lines, JSON, CSV, TSV and Parquet, also packed; whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from itertools import islice
from pathlib import Path
from typing import IO, Any

from mlx_ft.data.read.kind import SUFFIXES, suffix
from mlx_ft.errors import DataError

Row = Mapping[str, Any]
BATCH = 1000  # rows of a Parquet row group
ZSTD = (".zst", ".zstd")
GZIP = (".gz", ".gzip")


def write_rows(path: Path, rows: Iterable[Row]) -> int:
    """Write rows in the form that the name says, e.g. `rows.csv.gz`; how many they were.

    The file appears when it is complete, in place of one that was there. A table has the columns
    of all rows; CSV holds lists and objects as JSON, and nothing for null. Raises DataError for a
    name or a row that the form does not take, and OSError.
    """
    ending = suffix(path)
    if ending not in SUFFIXES:
        known = ", ".join(SUFFIXES)
        raise DataError(f"{path}: expected a name with one of {known}, also with .gz or .zst")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with ExitStack() as stack:
            raw = stack.enter_context(temporary.open("wb"))
            number = _WRITERS[ending](stack.enter_context(_packed(raw, path)), rows)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink()
        raise
    return number


def line_of(row: Row) -> str:
    """A row as one line of JSON. Raises DataError where JSON has no form for a value."""
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
        text.encode()
    except UnicodeEncodeError:  # half of a surrogate pair has no form but the escape
        return json.dumps(row)
    except (TypeError, ValueError, RecursionError) as error:
        raise DataError(f"a row cannot be written as JSON: {error}") from error
    return text


def _packed(raw: IO[bytes], path: Path) -> Any:
    """The stream to write to; the same rows give the same bytes."""
    packing = path.suffix.lower()
    if packing in GZIP:
        return gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0)
    if packing in ZSTD:
        import zstandard

        return zstandard.ZstdCompressor().stream_writer(raw, closefd=False)
    return raw


def _write_lines(file: IO[bytes], rows: Iterable[Row]) -> int:
    number = 0
    for row in rows:
        file.write(line_of(row).encode() + b"\n")
        number += 1
    return number


def _write_json(file: IO[bytes], rows: Iterable[Row]) -> int:
    """A list with one row on each line."""
    number = 0
    for row in rows:
        file.write((b",\n" if number else b"[\n") + line_of(row).encode())
        number += 1
    file.write(b"\n]\n" if number else b"[]\n")
    return number


def _write_csv(file: IO[bytes], rows: Iterable[Row], delimiter: str = ",") -> int:
    with tempfile.TemporaryFile() as spooled:
        spool = _Spool(spooled, rows)
        text = io.TextIOWrapper(file, "utf-8", newline="", write_through=True)
        writer = csv.writer(text, delimiter=delimiter, lineterminator="\r\n")  # RFC 4180
        writer.writerow(spool.names)
        for row in spool:
            writer.writerow([_cell(row.get(name)) for name in spool.names])
        text.detach()
        return spool.number


def _write_tsv(file: IO[bytes], rows: Iterable[Row]) -> int:
    return _write_csv(file, rows, "\t")


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else line_of(value)


def _write_parquet(file: IO[bytes], rows: Iterable[Row]) -> int:
    import pyarrow
    from pyarrow import parquet

    with tempfile.TemporaryFile() as spooled:
        spool = _Spool(spooled, rows)
        names = spool.names
        try:
            tables = [_schema(batch, names) for batch in _batches(spool)]
            schema = pyarrow.unify_schemas(
                [pyarrow.schema([]), *tables], promote_options="permissive"
            )
            with parquet.ParquetWriter(file, schema) as writer:
                for batch in _batches(spool):
                    columns = {name: [row.get(name) for row in batch] for name in names}
                    writer.write_table(pyarrow.table(columns, schema=schema))
        except pyarrow.ArrowException as error:
            raise DataError(
                f"the rows do not fit into the columns of a table: {error}; write JSON Lines"
            ) from error
        return spool.number


def _schema(batch: list[Row], names: list[str]) -> Any:
    import pyarrow

    return pyarrow.schema(
        [(name, pyarrow.infer_type([row.get(name) for row in batch])) for name in names]
    )


def _batches(rows: Iterable[Row]) -> Iterator[list[Row]]:
    found = iter(rows)
    while some := list(islice(found, BATCH)):
        yield some


class _Spool:
    """Rows on disk, to be read twice: a table's columns are known after the last row only."""

    def __init__(self, file: IO[bytes], rows: Iterable[Row]) -> None:
        names: dict[str, None] = {}
        self.file, self.number = file, 0
        for row in rows:
            names.update(dict.fromkeys(row))
            file.write(line_of(row).encode() + b"\n")
            self.number += 1
        self.names = list(names)

    def __iter__(self) -> Iterator[Row]:
        self.file.seek(0)
        return map(json.loads, self.file)


_WRITERS = {
    ".jsonl": _write_lines,
    ".ndjson": _write_lines,
    ".json": _write_json,
    ".csv": _write_csv,
    ".tsv": _write_tsv,
    ".parquet": _write_parquet,
}
