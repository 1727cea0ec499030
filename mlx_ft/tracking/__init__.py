"""What a run leaves behind for people to look at: parameters, metrics, tables, files, status.

`MlflowTracker` writes to MLflow from a thread of its own; nothing that goes wrong there reaches
the training. Only `store.py` imports mlflow.
"""

from __future__ import annotations

from pathlib import Path

from mlx_ft.config.schema import Config
from mlx_ft.tracking.mlflow_tracker import MlflowTracker
from mlx_ft.tracking.parent import ParentRun, start_parent
from mlx_ft.tracking.reap import reap
from mlx_ft.tracking.sync import SyncResult, sync_run
from mlx_ft.tracking.tracker import NOTE, NullTracker, Tracker
from mlx_ft.tracking.uri import tracking_uri, ui_command, ui_environment, ui_page

__all__ = [
    "NOTE",
    "MlflowTracker",
    "NullTracker",
    "ParentRun",
    "SyncResult",
    "Tracker",
    "build_tracker",
    "reap",
    "start_parent",
    "sync_run",
    "tracking_uri",
    "ui_command",
    "ui_environment",
    "ui_page",
]


def build_tracker(
    config: Config, parent_run_id: str | None, journal: Path | None = None
) -> Tracker:
    """The tracker that `tracking.backend` names; with a parent, its run is a child of that run.

    journal: the run folder's `tracking.jsonl`; see MlflowTracker.
    """
    if config.tracking.backend == "none":
        return NullTracker()
    return MlflowTracker(config.tracking, config.paths, parent_run_id, journal)
