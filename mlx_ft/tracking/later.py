"""What is found out about a run after its end goes to the run itself."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import Config
from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.tracking.journal import NAME, Journal
from mlx_ft.tracking.mlflow_tracker import MlflowTracker
from mlx_ft.tracking.params import accepted_key, columns_and_cells
from mlx_ft.tracking.records import Dataset, Metrics, Record, Table
from mlx_ft.tracking.store import MlflowStore
from mlx_ft.tracking.sync import run_lock, sync_run
from mlx_ft.tracking.uri import artifact_root, database_file, tracking_uri, without_password
from mlx_ft.tracking.writer import batches, in_words, write_batch

KIND = {"mlx_ft.kind": "evaluation"}


@dataclass(frozen=True)
class Findings:
    """figures: by MLflow's names, of one step. table: its name, and rows. dataset: name, digest."""

    figures: Mapping[str, float]
    step: int
    table: str
    rows: Sequence[Mapping[str, Any]]
    dataset: tuple[str, str]

    def records(self) -> list[Record]:
        """As a journal has them."""
        now = time.time_ns() // 1_000_000
        name, digest = self.dataset
        figures = {accepted_key(key): float(value) for key, value in self.figures.items()}
        found: list[Record] = [Metrics(now, self.step, figures)]
        found.append(Dataset(now, name, digest, name, {"rows": len(self.rows)}, "evaluation"))
        if self.rows:
            found.append(Table(now, self.table, *columns_and_cells(self.rows)))
        return found


def note(folder: Path | None, run_id: str | None, config: Config, found: Findings) -> str:
    """Write findings to a run that has ended; returns its id in MLflow.

    folder: the run's, if it is here; its journal keeps what MLflow does not take now. run_id: of a
    run without one. config: says which MLflow, relative places counted from here. Raises UserError
    for a run that still goes on, MlxFtError when MLflow does not take it.
    """
    if folder is not None and (folder / NAME).is_file():
        return _through_journal(folder, config, found)
    if run_id is None:
        raise ValueError("the run was not tracked")
    return _directly(run_id, config, found)


def is_tracked(folder: Path | None, run_id: str | None) -> bool:
    """Whether there is a run that `note` could write to."""
    return run_id is not None or (folder is not None and (folder / NAME).is_file())


def _through_journal(folder: Path, config: Config, found: Findings) -> str:
    try:
        with run_lock(folder) as free:
            if not free:
                raise UserError(f"{folder} still goes on; log its evaluation after its end")
            journal = Journal(folder / NAME)
            try:
                for record in found.records():
                    journal.note(record)
                journal.sync()
            finally:
                journal.close()
        result = sync_run(folder, config)
    except OSError as error:
        raise MlxFtError(f"{folder} cannot be written: {error.strerror or error}") from error
    if result.run_id is None or result.outcome not in ("written", "complete"):
        raise MlxFtError(
            f"MLflow at {result.store} did not take the evaluation "
            f"({result.problem or result.outcome}). It is kept; when MLflow works again: "
            f"mlx-ft sync {shlex.quote(str(folder))}"
        )
    if result.given_up:
        raise MlxFtError(f"MLflow at {result.store} refused a part:", result.given_up)
    return result.run_id


def _directly(run_id: str, config: Config, found: Findings) -> str:
    uri = tracking_uri(config)
    where, database = without_password(uri), database_file(uri)
    gone = f"MLflow at {where} has no run {run_id}: nothing was logged"
    if database is not None and not database.is_file():
        raise MlxFtError(gone)
    journal = Journal(None)
    try:
        root = artifact_root(uri, config.paths)
        store = MlflowStore(uri, root, config.tracking.experiment_name)
        if store.lifecycle(run_id) != "active":
            raise MlxFtError(gone)
        journal.acknowledge(run_id)
        for record in found.records():
            journal.note(record)
        for batch in batches(journal.pending()):
            write_batch(store, run_id, batch, journal)
    except MlxFtError:
        raise
    except Exception as error:  # whatever MLflow, its server or the network says
        raise MlxFtError(f"MLflow at {where} did not take it: {in_words(error)}") from error
    return run_id


def note_apart(name: str, config: Config, found: Findings, tags: Mapping[str, str]) -> str:
    """Write findings about a run that was not tracked to a new one; returns its id.

    Raises MlxFtError when MLflow does not take it.
    """
    tracking = replace(config.tracking, backend="mlflow")
    tracker = MlflowTracker(tracking, config.paths)
    tracker.start(name, {}, {**KIND, **tags})
    tracker.log_metrics(found.figures, found.step)
    tracker.log_table(found.table, found.rows)
    tracker.log_dataset(
        found.dataset[0], found.dataset[1], found.dataset[0], {"rows": len(found.rows)},
        "evaluation",
    )  # fmt: skip
    tracker.end("FINISHED")
    if tracker.run_id is None:
        where = without_password(tracking_uri(config))
        raise MlxFtError(f"MLflow at {where} did not take the evaluation")
    return tracker.run_id
