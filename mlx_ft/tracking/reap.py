"""Runs that MLflow shows as RUNNING although their process is gone."""

from __future__ import annotations

import logging
import platform
import time
from collections.abc import Mapping
from pathlib import Path

from mlx_ft.config.schema import Config
from mlx_ft.tracking.journal import NAME, Journal
from mlx_ft.tracking.store import REASON_TAG, MlflowStore, is_refusal
from mlx_ft.tracking.sync import run_lock, sync_journal
from mlx_ft.tracking.uri import artifact_root, database_file, has_running, store_uri
from mlx_ft.tracking.writer import OUTAGE, in_words

logger = logging.getLogger("mlx_ft.tracking")


def reap(config: Config) -> dict[str, str]:
    """Close the runs of this machine whose process ended without a word, as KILLED.

    Looked at: what the store of `config` shows as RUNNING, with a run folder that is here and
    whose lock nobody holds. What their journals still hold is written. Returns the closed runs'
    ids and folders. Never raises: what goes wrong is one warning.
    """
    uri = store_uri(config.tracking, config.paths)
    if database_file(uri) is not None and not has_running(uri):
        return {}  # found without importing mlflow
    try:
        root = artifact_root(uri, config.paths)
        store = MlflowStore(uri, root, config.tracking.experiment_name)
        return _close_all(store, store.running(platform.node()))
    except Exception as error:
        logger.warning("Runs whose process is gone could not be closed: %s", in_words(error))
        return {}


def _close_all(store: MlflowStore, running: Mapping[str, str]) -> dict[str, str]:
    """One run after the other; what is wrong with one does not stop the rest, an outage does."""
    closed, in_a_row = dict[str, str](), 0
    for run_id, folder in running.items():
        try:
            if _closed(store, run_id, Path(folder)):
                closed[run_id] = folder
            in_a_row = 0
        except Exception as error:  # such as a folder of somebody else's
            logger.warning("%s: its run could not be closed: %s", folder, in_words(error))
            in_a_row += not (isinstance(error, OSError) or is_refusal(error))
            if in_a_row == OUTAGE:
                break
    return closed


def _closed(store: MlflowStore, run_id: str, folder: Path) -> bool:
    if not folder.is_dir():
        return False
    with run_lock(folder) as free:
        if not free:
            return False
        journal = Journal(folder / NAME) if (folder / NAME).is_file() else Journal(None)
        try:
            if journal.state.run_id == run_id:
                return _end_as_told(store, run_id, journal)
        finally:
            journal.close()
        store.tag(run_id, REASON_TAG, "the process ended without a word")
        store.close(run_id, "KILLED", time.time_ns() // 1_000_000)
    return True


def _end_as_told(store: MlflowStore, run_id: str, journal: Journal) -> bool:
    result = sync_journal(journal, lambda: store, "")
    if result.problem:
        logger.warning("%s: its run could not be closed: %s", journal.folder, result.problem)
    end = journal.state.end
    if result.outcome == "complete" and end is not None:  # told, and lost by the store
        store.close(run_id, end.status, end.time)
    return result.outcome in ("complete", "written")
