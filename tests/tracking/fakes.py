"""A store in a file, which outlives the process that wrote to it, as MLflow's does."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mlx_ft.tracking.store import Point


class FileStore:
    """Every accepted call is a line of the file. `fails`: calls that raise this error.

    Like MLflow it holds a point with the same key, step, time and value once.
    """

    remote = False

    def __init__(self, path: Path, watch: Callable[[str], None] = lambda _: None) -> None:
        self.path = path
        self.fails: dict[str, Exception] = {}
        self._watch = watch

    def _call(self, name: str, *values: Any) -> None:
        if name in self.fails:
            raise self.fails[name]
        self._watch(f"before {name}")
        with self.path.open("a") as file:
            file.write(json.dumps([name, *values], default=str) + "\n")
        self._watch(f"after {name}")

    def lines(self) -> Iterator[list[Any]]:
        if self.path.exists():
            yield from map(json.loads, self.path.read_text().splitlines())

    def of(self, name: str) -> list[list[Any]]:
        return [values for called, *values in self.lines() if called == name]

    def create_run(self, name: str, time: int, tags: Mapping[str, str]) -> str:
        run_id = f"run-{os.urandom(4).hex()}"
        self._call("create_run", run_id, name, time, dict(tags))
        return run_id

    def runs(self) -> dict[str, dict[str, str]]:
        """The runs that are there, with the tags that they were created with."""
        gone = {run_id for (run_id,) in self.of("discard") + self.of("vanish")}
        return {run[0]: run[3] for run in self.of("create_run") if run[0] not in gone}

    def runs_of(self, journal: str) -> list[str]:
        self._call("runs_of", journal)
        return [run for run, tags in self.runs().items() if tags.get("mlx_ft.journal") == journal]

    def lifecycle(self, run_id: str) -> str | None:
        return "active" if run_id in self.runs() else None

    def reopen(self, run_id: str) -> bool:
        self._call("reopen", run_id)
        return run_id in self.runs()

    def discard(self, run_id: str) -> None:
        self._call("discard", run_id)

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        self._call("params", run_id, dict(params))

    def metrics(self, run_id: str, points: list[Point]) -> None:
        self._call("metrics", run_id, [list(point) for point in points])

    def points(self, run_id: str) -> list[tuple[str, int, float]]:
        """Key, step and value of each point that is held, in order."""
        held = dict.fromkeys(
            (key, step, value, time)
            for run, points in self.of("metrics")
            if run == run_id
            for key, value, time, step in points
        )
        return [(key, step, value) for key, step, value, _ in held]

    def tag(self, run_id: str, key: str, value: str) -> None:
        self._call("tag", run_id, key, value)

    def untag(self, run_id: str, *keys: str) -> None:
        self._call("untag", run_id, *keys)

    def tags(self, run_id: str) -> dict[str, str]:
        later = {key: value for run, key, value in self.of("tag") if run == run_id}
        return self.runs()[run_id] | later

    def text(self, *values: Any) -> None:
        self._call("text", *values)

    def table(self, *values: Any) -> None:
        self._call("table", *values)

    def file(self, run_id: str, path: Path, folder: str) -> None:
        self._call("file", run_id, str(path), folder)

    def dataset(self, *values: Any) -> None:
        self._call("dataset", *values)

    def close(self, run_id: str, status: str, time: int) -> None:
        self._call("close", run_id, status, time)
