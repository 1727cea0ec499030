"""The run that holds a sweep together: its children are the trials."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.tracking.mlflow_tracker import MlflowTracker
from mlx_ft.tracking.store import FOLDER_TAG
from mlx_ft.tracking.tracker import NullTracker, Tracker


class ParentRun:
    """A sweep's run. run_id: what its trials take as parent; None when there is no store."""

    def __init__(self, tracker: Tracker) -> None:
        self._tracker = tracker
        self.run_id = tracker.run_id

    def finish(
        self, status: str, rows: list[dict[str, Any]], best: Mapping[str, Any] | None
    ) -> None:
        """Log the table of trials and the best trial's numbers, and close the run.

        rows: one per trial. best: the best of them, None when there is none. Its numbers become
        metrics `best/<key>`; words and settings (keys with a dot, such as `lora.rank`) become
        tags `best.<key>`.
        """
        self._tracker.log_table("trials", rows)
        if best is not None:
            results = {key for key, value in best.items() if _is_number(value) and "." not in key}
            self._tracker.log_metrics({f"best/{key}": best[key] for key in results}, step=0)
            self._tracker.log_tags(
                {f"best.{key}": str(value) for key, value in best.items() if key not in results}
            )
        self._tracker.end(status)


def start_parent(config: Config, name: str, n_trials: int, journal: Path) -> ParentRun:
    """Open a sweep's run, whose id the trials get as their parent; waits until it is known.

    journal: in the sweep's folder; a sweep that goes on has the run that it had.
    """
    if config.tracking.backend == "none":
        return ParentRun(NullTracker())
    tracker = MlflowTracker(config.tracking, config.paths, journal=journal)
    tags = {"mlx_ft.kind": "sweep", FOLDER_TAG: str(journal.absolute().parent)}
    tracker.start(name, {"sweep": {"name": name, "trials": n_trials}}, tags)
    return ParentRun(tracker)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
