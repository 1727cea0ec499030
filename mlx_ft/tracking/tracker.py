"""The interface of a tracker, and the tracker that remembers nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

NOTE = "mlflow.note.content"  # the tag that MLflow's UI shows as the run's description (Markdown)


class Tracker(Protocol):
    """One run's record. No method raises because of the record's store, and none waits long."""

    @property
    def run_id(self) -> str | None:
        """The store's name for this run; waits for it. None: not started, or the store failed."""

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run in the background. params may be nested: `{"lora": {"rank": 8}}`."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Note values of one step; written at the next `flush`."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Attach rows as a table, `<name>.json`; columns in the order of first appearance."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags: what is known only later, such as what kept the best adapter."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Attach a file, or a folder with what is in it, as it is at the next `flush`."""

    def log_dataset(
        self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str
    ) -> None:
        """Name the data: digest of its content, where it came from, counts, and its use."""

    def register(self, name: str, run_id: str, alias: str, tags: Mapping[str, str]) -> None:
        """Make the adapter of a tracked run a version of a registered model."""

    def flush(self) -> None:
        """Write what was noted; returns after a few seconds even when the store is slow."""

    def end(self, status: str, reason: str | None = None) -> None:
        """Write everything and close the run: FINISHED, FAILED or KILLED."""


class NullTracker:
    """Remembers nothing (`tracking=none`)."""

    run_id: str | None = None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def log_file(self, path: Path, folder: str = "") -> None:
        """Nothing."""

    def log_dataset(
        self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str
    ) -> None:
        """Nothing."""

    def register(self, name: str, run_id: str, alias: str, tags: Mapping[str, str]) -> None:
        """Nothing."""

    def flush(self) -> None:
        """Nothing."""

    def end(self, status: str, reason: str | None = None) -> None:
        """Nothing."""
