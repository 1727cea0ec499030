"""The tracker that writes to MLflow, through a journal."""

from __future__ import annotations

import atexit
import logging
import math
import shlex
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import PathsConfig, TrackingConfig
from mlx_ft.tracking.context import context_tags
from mlx_ft.tracking.journal import Journal
from mlx_ft.tracking.params import accepted_key, columns_and_cells, flatten, split_oversized
from mlx_ft.tracking.records import (
    Dataset,
    End,
    File,
    Metrics,
    Record,
    Register,
    Resume,
    Start,
    Table,
    Tags,
    describe,
)
from mlx_ft.tracking.replay import LONG_PARAMETERS, find_or_create
from mlx_ft.tracking.state import same
from mlx_ft.tracking.store import MlflowStore
from mlx_ft.tracking.uri import artifact_root, from_there, store_uri, without_password
from mlx_ft.tracking.writer import Writer

logger = logging.getLogger("mlx_ft.tracking")

CHANGED_TAG = "mlx_ft.changed_points"
MEASUREMENTS = ("memory/", "train/tokens_per_second")  # differ whenever a step is done again

SHOWN = 8  # things that could not be written, in the warning


@dataclass(frozen=True)
class Patience:
    """Seconds that the training waits for MLflow, at most."""

    run_id: float = 60.0  # importing mlflow and making its database, on a busy machine
    flush: float = 10.0
    end: float = 60.0


class MlflowTracker:
    """One MLflow run, a child of `parent_run_id` where given.

    journal: the file that keeps what MLflow has not taken; one that already tells of a run makes
    this tracker go on with that run. None: in memory. connect: opens the store, in the writer's
    thread; None: MLflow, as configured. A process that exits without `end` marks the run FAILED.
    """

    def __init__(
        self,
        config: TrackingConfig,
        paths: PathsConfig,
        parent_run_id: str | None = None,
        journal: Path | None = None,
        *,
        connect: Callable[[], MlflowStore] | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._config, self._paths = config, paths
        self._given_connect = connect
        self._parent = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        self._journal_file = None if journal is None else journal.absolute()
        self._patience = patience or Patience()
        self._folder = Path.cwd()
        self._where = "MLflow"
        self._journal = Journal(None)
        self._writer: Writer | None = None
        self._context: dict[str, str] | None = None
        self._surely_new = False
        self._ended = False
        self._waited = False  # for the run's id
        self._said_infinite = False

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits for it, once. None: not started, or MLflow failed."""
        if self._writer is None:
            return None
        found = self._writer.run_id(0 if self._waited else self._patience.run_id)
        self._waited = True
        return found

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run in the background: MLflow is imported and written to in a thread.

        That begins with the first figures, or after a few seconds: not before the first step.
        When the journal tells of a run, that one goes on: its parameters stay as they are.
        """
        self._journal = Journal(self._journal_file)
        self._surely_new = self._journal.is_new
        self._journal.note(self._beginning(name, params) if self._surely_new else Resume(_now()))
        own_tags = {**self._config.tags, **tags, **self._parent}
        self._note_tags(own_tags)
        uri, connect = self._store()
        self._where = f"MLflow at {without_password(uri)}"
        open_run = partial(self._open_run, self._given_connect or connect, own_tags)
        self._writer = Writer(self._journal, open_run, self._where)
        atexit.register(self._abandon)

    def _beginning(self, name: str, params: Mapping[str, Any]) -> Start:
        accepted, apart = split_oversized(flatten(params), LONG_PARAMETERS)
        if apart:
            logger.info("Too long for MLflow, so in %s: %s.", LONG_PARAMETERS, ", ".join(apart))
        return Start(_now(), name, uuid.uuid4().hex, str(self._folder), accepted, apart)

    def _store(self) -> tuple[str, Callable[[], MlflowStore]]:
        """The store's URI, and what opens it; the same one wherever a run is resumed."""
        start = self._journal.state.start
        config, paths = from_there(
            self._config, self._paths, Path(start.working_dir) if start else self._folder
        )
        uri = store_uri(config, paths)
        root = artifact_root(uri, paths)
        return uri, partial(MlflowStore, uri, root, config.experiment_name)

    def _open_run(
        self, connect: Callable[[], MlflowStore], own_tags: Mapping[str, str]
    ) -> tuple[MlflowStore, str]:
        """In the writer's thread: the store, and the id of the journal's run in it."""
        journal = self._journal
        if self._context is None:
            self._context = context_tags(self._folder)
            context = {key: value for key, value in self._context.items() if key not in own_tags}
            self._note_tags(context)
        store = connect()
        surely_new, self._surely_new = self._surely_new, False
        run_id = journal.state.run_id
        if run_id is not None and not store.reopen(run_id):
            logger.warning(
                "%s has no run %s any more: all that was noted goes to a new one.",
                self._where,
                run_id,
            )
            journal.start_over()
            run_id = None
        if run_id is None:
            run_id = find_or_create(store, journal, surely_new=surely_new)
            if not surely_new:
                store.reopen(run_id)
        return store, run_id

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Note values of one step; written at the next `flush`.

        A point that the journal has already, from before the run was resumed, is not noted
        again, nor a measurement of time or memory at a step that has one. Another value is.
        """
        if self._writer is None:
            return
        self._writer.wake()
        values, changed = self._news(metrics, int(step))
        if not values:
            return
        # The later of two values at a step is the valid one, wherever the clock has gone.
        now = max(_now(), self._journal.state.last_time + 1) if changed else _now()
        infinite = [key for key, value in values.items() if math.isinf(value)]
        if infinite and not self._said_infinite:
            self._said_infinite = True
            names = ", ".join(infinite)
            logger.warning("Infinite at step %d: %s. MLflow shows it as NaN.", step, names)
        self._journal.note(Metrics(now, int(step), values))

    def _news(self, metrics: Mapping[str, float], step: int) -> tuple[dict[str, float], bool]:
        """The values that are to be noted, and whether one differs from an earlier one."""
        values, changed = dict[str, float](), False
        for name, given in metrics.items():
            key, value = accepted_key(name), float(given)
            known = self._journal.value(key, step)
            if known is None:
                values[key] = value
            elif not key.startswith(MEASUREMENTS) and not same(known, value):
                values[key], changed = value, True
        return values, changed

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Attach rows as a table, `<name>.json`; columns in the order of first appearance."""
        self._note(Table(_now(), name, *columns_and_cells(rows)))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags: what is known only later."""
        if self._writer is not None:
            self._note_tags(tags)

    def _note_tags(self, tags: Mapping[str, str]) -> None:
        if tags:
            self._journal.note(Tags(_now(), {accepted_key(k): str(v) for k, v in tags.items()}))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Attach a file, or a folder with what is in it, as it is when it is written."""
        source, here = path.absolute(), self._journal.folder
        inside = self._journal_file is not None and source.is_relative_to(here)
        self._note(File(_now(), str(source.relative_to(here) if inside else source), folder))

    def log_dataset(
        self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str
    ) -> None:
        """Name the data: digest of its content, where it came from, counts, and its use."""
        self._note(Dataset(_now(), name, digest, source, dict(profile), context))

    def register(self, name: str, run_id: str, alias: str, tags: Mapping[str, str]) -> None:
        """Make the adapter of a tracked run a version of a registered model; twice is once."""
        self._note(Register(_now(), name, run_id, alias, dict(tags)))

    def flush(self) -> None:
        """Write what was noted; returns after `patience.flush` seconds even when MLflow hangs.

        What was noted is on the disk afterwards. Does not wait while MLflow is still starting:
        it gets everything then.
        """
        if self._writer is not None:
            self._journal.sync()
            self._writer.write(self._patience.flush)

    def end(self, status: str, reason: str | None = None) -> None:
        """Write everything and close the run: FINISHED, FAILED or KILLED.

        Says how many metric values and which other things could not be written. A second call
        does nothing.
        """
        if self._writer is None or self._ended:
            return
        self._ended = True
        atexit.unregister(self._abandon)
        if changed := self._journal.state.changed_points:
            self.log_tags({CHANGED_TAG: str(changed)})
            logger.info(
                "%d metric values differ from those of the same step before the run was resumed; "
                "MLflow has both.",
                changed,
            )
        self._note(End(_now(), status, reason))
        self._journal.sync()
        if not self._writer.finish(self._patience.end):
            self._say_unwritten(self._writer.failure)

    def _say_unwritten(self, failure: str | None) -> None:
        records = [record for _, record in self._journal.pending()]
        kinds = [describe(record) for record in records if not isinstance(record, Metrics)]
        others = list(dict.fromkeys(kinds))
        if len(others) > SHOWN:
            others[SHOWN:] = [f"{len(others) - SHOWN} more"]
        logger.warning(
            "Not written to %s: %d metric values; %s (%s). %s",
            self._where,
            self._journal.pending_points(),
            ", ".join(others) or "nothing else known",
            failure or f"no answer within {self._patience.end:.0f} s",
            "The run's own folder has them."
            if self._journal_file is None
            else f"When it works again: mlx-ft sync {shlex.quote(str(self._journal.folder))}",
        )

    def _abandon(self) -> None:
        self.end("FAILED", "The process ended before the run did.")

    def _note(self, record: Record) -> None:
        if self._writer is not None:
            self._journal.note(record)


def _now() -> int:
    return time.time_ns() // 1_000_000
