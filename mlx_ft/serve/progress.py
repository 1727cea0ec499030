"""How far a training job is, by the files of its run that grow."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlx_ft.runfolder import METRICS, ORIGIN, read_json


@dataclass(frozen=True)
class Progress:
    """How far a run is. total: steps that it goes to, None as long as it has not said so.

    loss: of the last step; metrics: the last of each, by name.
    """

    step: int
    total: int | None
    loss: float | None
    metrics: Mapping[str, float]

    @property
    def percent(self) -> float:
        """0 to 100."""
        return 100.0 * min(1.0, self.step / self.total) if self.total else 0.0


class Tail:
    """The whole lines of a JSON Lines file that grows, read once each."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0

    def more(self) -> list[dict[str, Any]]:
        """The rows since the last call; all of them again when the file was written anew."""
        try:
            if self._path.stat().st_size < self._at:
                self._at = 0
            with self._path.open("rb") as file:
                file.seek(self._at)
                content = file.read()
        except OSError:
            return []
        whole = content[: content.rfind(b"\n") + 1]
        self._at += len(whole)
        return _objects(whole.split(b"\n"))


def progress(run: Path) -> Progress:
    """What a run folder says of how far it is; read again when one of its files has changed."""
    return _progress(run, _mark(run / METRICS), _mark(run / ORIGIN))


@lru_cache(maxsize=1024)
def _progress(run: Path, *_: object) -> Progress:
    step, loss, metrics = 0, None, dict[str, float]()
    for row in rows(run):
        step = max(step, int(row.get("step", 0)))
        loss = row.get("train/loss", loss)
        metrics.update({k: v for k, v in row.items() if k != "step" and _number(v)})
    total = read_json(run / ORIGIN).get("steps")
    return Progress(step, total if isinstance(total, int) else None, loss, metrics)


def _mark(path: Path) -> tuple[int, int, int] | None:
    """Tells a file from what it was."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def rows(run: Path, after: int = 0) -> Sequence[dict[str, Any]]:
    """The figures of a run as it has noted them, without the first `after`."""
    return Tail(run / METRICS).more()[after:]


def _objects(lines: Sequence[bytes]) -> list[dict[str, Any]]:
    found = []
    for line in lines:
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict):
            found.append(row)
    return found


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
