"""The output folder: complete or not there at all, and never in place of something else."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlx_ft.errors import DataError

FILES = (
    "train.jsonl", "valid.jsonl", "test.jsonl", "chunks.jsonl", "chunks_valid.jsonl",
    "chunks_test.jsonl", "report.json",
)  # fmt: skip


def check(out: Path, overwrite: bool) -> None:
    """Raise DataError when the folder cannot be written without harm."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise DataError(f"{out} is not a folder; name another place for the result.")
    inside = sorted(path.name for path in out.iterdir()) if out.exists() else []
    foreign = [name for name in inside if name not in FILES]
    if foreign:
        raise DataError(
            f"{out} holds files that are not an earlier result: {', '.join(foreign[:5])}; "
            "name an empty or a new folder."
        )
    if inside and not overwrite:
        raise DataError(f"{out} already holds a result; name another folder, or add --overwrite.")


def publish(
    out: Path,
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    chunks: Mapping[str, Sequence[Mapping[str, Any]]],
    report: Mapping[str, Any],
) -> None:
    """Write the files beside the folder's place and rename them into it. Raises DataError."""
    # Training takes an empty file of validation rows for a fault.
    files = {f"{side}.jsonl": _lines(rows) for side, rows in items.items() if rows}
    for side, rows in chunks.items():
        if rows:
            files["chunks.jsonl" if side == "train" else f"chunks_{side}.jsonl"] = _lines(rows)
    files["report.json"] = json.dumps(report, indent=1, ensure_ascii=False) + "\n"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as error:
        raise DataError(f"{out} cannot be written: {error.strerror}; name another place.") from None
    try:
        fresh = scratch / "new"
        fresh.mkdir()
        for name, text in files.items():
            with (fresh / name).open("w", encoding="utf-8", newline="\n") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        if out.exists():
            out.rename(scratch / "old")
        fresh.rename(out)
    except OSError as error:
        if (scratch / "old").exists() and not out.exists():
            (scratch / "old").rename(out)
        raise DataError(f"{out} cannot be written: {error.strerror}; name another place.") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _lines(rows: Sequence[Mapping[str, Any]]) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
