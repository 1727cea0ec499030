"""The run that holds a sweep together: its children are the trials."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.tracking.mlflow_tracker import MlflowTracker, Patience
from mlx_ft.tracking.store import FOLDER_TAG
from mlx_ft.tracking.tracker import NullTracker, Tracker

logger = logging.getLogger(__name__)

# A run that waits too long for its id loses nothing. A sweep's trials would lose their parent.
PATIENCE = Patience(run_id=600.0)
FILES = ("report.html", "trials.csv", "trials.md", "best.yaml")  # of a sweep's folder


class ParentRun:
    """A sweep's run. run_id: what its trials take as parent; None when there is no store."""

    def __init__(self, tracker: Tracker, folder: Path | None = None) -> None:
        """folder: the sweep's, whose report is logged when it ends."""
        self._tracker = tracker
        self._folder = folder
        self.run_id = tracker.run_id

    def finish(
        self, status: str, rows: list[dict[str, Any]], best: Mapping[str, Any] | None
    ) -> None:
        """Log the table of trials and the best trial's numbers, and close the run.

        rows: one per trial. best: the best of them, None when there is none. Its numbers become
        metrics `best/<key>`; words and settings (keys with a dot, such as `lora.rank`) become
        tags `best.<key>`. Its adapter becomes a version of the model that is registered by the
        name of its base (`base_name`), with the sweep's name as alias.
        The files of the sweep's report are attached.
        """
        self._tracker.log_table("trials", rows)
        files = [self._folder / name for name in FILES] if self._folder is not None else []
        for file in files:
            if file.is_file():
                self._tracker.log_file(file)
        if best is not None:
            results = {key for key, value in best.items() if _is_number(value) and "." not in key}
            self._tracker.log_metrics({f"best/{key}": best[key] for key in results}, step=0)
            self._tracker.log_tags(
                {f"best.{key}": str(value) for key, value in best.items() if key not in results}
            )
            self._register(best)
        self._tracker.end(status)

    def _register(self, best: Mapping[str, Any]) -> None:
        run_id, base = best.get("run_id"), best.get("base_name")
        if run_id and base and self._folder is not None:
            name = self._folder.name
            about = {"sweep": name, "trial": str(best.get("trial")), "base_model": str(base)}
            self._tracker.register(registered_name(base), run_id, _alias(name), about)


def registered_name(base: str) -> str:
    """Of the adapters of a base model; MLflow takes no slash and no colon."""
    return re.sub(r"[^\w.-]+", "--", base)


def _alias(name: str) -> str:
    """MLflow takes letters, digits, _ and -, and nothing that looks like a version."""
    found = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:200]
    return f"sweep-{found}" if re.fullmatch(r"(?i)v\d+|latest|\d+", found) else found


def start_parent(config: Config, name: str, n_trials: int, journal: Path) -> ParentRun:
    """Open a sweep's run, whose id the trials get as their parent; waits until it is known.

    journal: in the sweep's folder; a sweep that goes on has the run that it had.
    """
    if config.tracking.backend == "none":
        return ParentRun(NullTracker())
    tracker = MlflowTracker(config.tracking, config.paths, journal=journal, patience=PATIENCE)
    tags = {"mlx_ft.kind": "sweep", FOLDER_TAG: str(journal.absolute().parent)}
    tracker.start(name, {"sweep": {"name": name, "trials": n_trials}}, tags)
    parent = ParentRun(tracker, journal.parent)
    if parent.run_id is None:
        logger.warning(
            "MLflow has not opened the run of the sweep %s: trials that begin now are runs without"
            " a parent there. The sweep's folder %s has all of them.", name, journal.parent,
        )  # fmt: skip
    return parent


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
