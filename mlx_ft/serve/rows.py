"""Rows that clients send: looked at by the same reader that a training has, then kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from mlx_ft import durable
from mlx_ft.config.schema_data import DataConfig
from mlx_ft.errors import DataError
from mlx_ft.serve import names, texts
from mlx_ft.serve.store import Store

ROWS = "rows.jsonl"
MOST_ROWS = 1_000_000


def of_texts(given: Sequence[str]) -> tuple[bytes, str]:
    """(rows as JSON Lines, what was made of the texts). Raises DataError when nothing is left."""
    parsed = texts.parse(given)
    if not parsed.rows:
        raise DataError(f"train_texts: {parsed.said or 'found nothing'}; expected texts")
    return as_lines(parsed.rows), parsed.said


def of_file(content: bytes, name: str) -> tuple[bytes, str]:
    """The same for an uploaded file: JSON Lines, or one JSON list.

    Rows with nothing but a text are taken as `of_texts` takes them. Raises DataError.
    """
    rows = decoded(content, name)
    alone = [row["text"] for row in rows
             if row.keys() == {"text"} and isinstance(row["text"], str)]  # fmt: skip
    if alone and len(alone) == len(rows):
        return of_texts(alone)
    return as_lines(rows), f"{len(rows)} rows are trained as they are"


def decoded(content: bytes, name: str) -> list[dict[str, Any]]:
    """The objects of a file. Raises DataError."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: expected JSON Lines in UTF-8 ({error.reason})") from None
    if text.lstrip()[:1] == "[":
        rows = _json(text, name)
        numbered = [*enumerate(rows, 1)] if isinstance(rows, list) else []
    else:
        lines = [(at, line) for at, line in enumerate(text.split("\n"), 1) if line.strip()]
        numbered = [(at, _json(line, f"{name}:{at}")) for at, line in lines]
    faults = [f"{name}:{at}: expected an object" for at, row in numbered
              if not isinstance(row, dict)]  # fmt: skip
    if faults or not numbered:
        raise DataError(f"{name}: expected rows as JSON objects", faults[:10] or ["found none"])
    if len(numbered) > MOST_ROWS:
        raise DataError(f"{name}: {len(numbered):,} rows; expected at most {MOST_ROWS:,}")
    return [row for _, row in numbered]


def as_lines(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """JSON Lines."""
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def look(store: Store, content: bytes, name: str) -> None:
    """Read and parse every row as a training would. Raises DataError with lines and reasons.

    name: what the client calls it, for messages.
    """
    from mlx_ft.data import build, sources

    path = store.home / f".{names.made('rows')}.jsonl"
    durable.write(path, content)
    try:
        config = DataConfig(path=str(path))
        build.look(sources.find(config), config)
    except DataError as error:
        faults = [fault.replace(str(path), name) for fault in error.faults]
        raise DataError(error.message.replace(str(path), name), faults) from None
    finally:
        path.unlink(missing_ok=True)


def digest(content: bytes) -> str:
    """Tells rows from others."""
    return hashlib.sha256(content).hexdigest()


def _json(text: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"{where}: not JSON: {reason}") from None
