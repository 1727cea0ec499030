"""What the scripts that make the built-in data sets share: rows to files, and `--check`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def render(rows: Rows) -> str:
    """The text of a file: one JSON object a line."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def make_files(
    arguments: Sequence[str] | None,
    folder: Path,
    description: str | None,
    splits: Mapping[str, Rows],
    faults: Callable[[], Iterable[str]] = tuple,
    good: str | None = None,
) -> int:
    """Write `<split>.jsonl` into `folder`, or with `--check` only judge; returns the exit code.

    faults: what is wrong with the rows themselves, in sentences; asked for by `--check`. good: what
    to say when there are none.
    """
    parser = argparse.ArgumentParser(prog="make", description=description)
    parser.add_argument(
        "--check", action="store_true", help="write nothing; 1 if a file differs or a row is wrong"
    )
    parser.add_argument("--out", type=Path, default=folder, help="folder of the files")
    options = parser.parse_args(arguments)
    texts = {options.out / f"{split}.jsonl": render(rows) for split, rows in splits.items()}
    if not options.check:
        options.out.mkdir(parents=True, exist_ok=True)
        for path, text in texts.items():
            path.write_bytes(text.encode())
        return 0
    found = [
        f"{path}: differs from what the generator writes; run make without --check"
        for path, text in texts.items()
        if not path.is_file() or path.read_bytes() != text.encode()
    ]
    found += faults()
    for sentence in found or ([good] if good else []):
        print(sentence)
    return 1 if found else 0
