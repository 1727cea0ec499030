"""Rejected rows, kept as they were: mend them, and read the file as any other."""

from __future__ import annotations

import json
from pathlib import Path
from types import TracebackType
from typing import IO

from mlx_ft.data.rows import BadRow


class Quarantine:
    """The rows of `path` and, line by line beside them, why: `<name>.reasons.jsonl`.

    Both files are made anew by the first row; without one there are none. A row that has no text
    (a huge one, a damaged file) is an empty line, which is no row when the file is read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.reasons = path.with_name(f"{path.stem}.reasons.jsonl")
        self.rows = 0
        self._files: tuple[IO[bytes], IO[bytes]] | None = None

    def add(self, bad: BadRow) -> None:
        """Append a row. Bytes that were not UTF-8 are written as they were."""
        if self._files is None:
            self._files = self.path.open("wb"), self.reasons.open("wb")
        rows, reasons = self._files
        # Printed JSON becomes one line: JSON has no line breaks but between its tokens.
        line = " ".join(part.strip("\r") for part in bad.raw.split("\n"))
        rows.write(line.encode("utf-8", "surrogateescape" if _escaped(line) else "surrogatepass"))
        rows.write(b"\n")
        why = {"where": bad.where, "code": bad.code, "sentence": bad.sentence}
        reasons.write(json.dumps(why).encode() + b"\n")
        self.rows += 1

    def __enter__(self) -> Quarantine:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for file in self._files or ():
            file.close()


def _escaped(line: str) -> bool:
    """Whether bytes stand in this text as Python's surrogate escapes, and nothing worse."""
    try:
        line.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False
    return True
