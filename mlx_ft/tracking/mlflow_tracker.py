"""The tracker that writes to MLflow."""

from __future__ import annotations

import atexit
import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import PathsConfig, TrackingConfig
from mlx_ft.tracking.context import context_tags
from mlx_ft.tracking.params import accepted_key, columns_and_cells, flatten, split_oversized
from mlx_ft.tracking.store import MlflowStore, Point
from mlx_ft.tracking.uri import artifact_root, store_uri, without_password
from mlx_ft.tracking.writer import Entry, Writer

logger = logging.getLogger("mlx_ft.tracking")

LONG_PARAMETERS = "long_parameters.json"
REASON_TAG = "mlx_ft.end_reason"
UNWRITTEN_TAG = "mlx_ft.unwritten_points"
MAX_TAG = 8000  # characters; MLflow's limit


@dataclass(frozen=True)
class Patience:
    """Seconds that the training waits for MLflow, at most."""

    run_id: float = 60.0  # importing mlflow and making its database, on a busy machine
    flush: float = 10.0
    end: float = 60.0


class MlflowTracker:
    """One MLflow run, a child of `parent_run_id` where given.

    connect: opens the store, in the writer's thread; None: MLflow, as configured.
    A process that exits without `end` marks the run FAILED.
    """

    def __init__(
        self,
        config: TrackingConfig,
        paths: PathsConfig,
        parent_run_id: str | None = None,
        *,
        connect: Callable[[], MlflowStore] | None = None,
        patience: Patience | None = None,
    ) -> None:
        uri = store_uri(config, paths)
        root = artifact_root(uri, paths)
        self._where = f"MLflow at {without_password(uri)}"
        self._connect = connect or partial(MlflowStore, uri, root, config.experiment_name)
        self._tags = {accepted_key(key): value for key, value in config.tags.items()}
        self._parent = {} if parent_run_id is None else {"mlflow.parentRunId": parent_run_id}
        self._patience = patience or Patience()
        self._folder = Path.cwd()
        self._writer: Writer | None = None
        self._ended = False
        self._said_infinite = False

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; waits for it. None: not started, or MLflow failed."""
        return self._writer.run_id(self._patience.run_id) if self._writer else None

    def start(self, name: str, params: Mapping[str, Any], tags: Mapping[str, str]) -> None:
        """Open the run in the background: MLflow is imported and written to in a thread."""
        started = _now()
        own_tags = {**self._tags, **tags, **self._parent}

        def open_run() -> tuple[MlflowStore, str]:
            store = self._connect()
            return store, store.create_run(name, started, context_tags(self._folder) | own_tags)

        self._writer = Writer(open_run, self._where)
        accepted, apart = split_oversized(flatten(params), LONG_PARAMETERS)
        self._add("parameters", lambda store, run_id: store.params(run_id, accepted))
        if apart:
            logger.info("Too long for MLflow, so in %s: %s.", LONG_PARAMETERS, ", ".join(apart))
            text = json.dumps(apart, indent=2, ensure_ascii=False)
            self._add("long parameters", lambda store, run: store.text(run, text, LONG_PARAMETERS))
        atexit.register(self._abandon)

    def log_metrics(self, metrics: Mapping[str, float], step: int) -> None:
        """Note values of one step; written at the next `flush`."""
        if self._writer is None:
            return
        now = _now()
        points = [Point(key, float(value), now, int(step)) for key, value in metrics.items()]
        infinite = [point.key for point in points if math.isinf(point.value)]
        if infinite and not self._said_infinite:
            self._said_infinite = True
            names = ", ".join(infinite)
            logger.warning("Infinite at step %d: %s. MLflow shows it as NaN.", step, names)
        self._writer.add_points(points)

    def log_table(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Attach rows as a table, `<name>.json`; columns in the order of first appearance."""
        columns, cells = columns_and_cells(rows)
        file = f"{name}.json"
        self._add(file, lambda store, run_id: store.table(run_id, columns, cells, file))

    def log_tags(self, tags: Mapping[str, str]) -> None:
        """Set tags: what is known only later."""
        for key, value in tags.items():
            self._add(f"tag {key}", partial(_tag, accepted_key(key), value))

    def log_file(self, path: Path, folder: str = "") -> None:
        """Attach a file, or a folder with what is in it, as it is at the next `flush`."""
        source = path.absolute()
        self._add(source.name, lambda store, run_id: store.file(run_id, source, folder))

    def log_dataset(
        self, name: str, digest: str, source: str, profile: Mapping[str, Any], context: str
    ) -> None:
        """Name the data: digest of its content, where it came from, counts, and its use."""
        described = dict(profile)
        self._add(
            f"dataset {name}",
            lambda store, run: store.dataset(run, name, digest, source, described, context),
        )

    def flush(self) -> None:
        """Write what was noted; returns after `patience.flush` seconds even when MLflow hangs.

        Does not wait while MLflow is still starting: what was noted is written then.
        """
        if self._writer is not None:
            self._writer.write(self._patience.flush)

    def end(self, status: str, reason: str | None = None) -> None:
        """Write everything and close the run: FINISHED, FAILED or KILLED.

        Says how many metric values and which other things could not be written. A second call
        does nothing.
        """
        writer = self._writer
        if writer is None or self._ended:
            return
        self._ended = True
        atexit.unregister(self._abandon)

        def close(store: MlflowStore, run_id: str) -> None:
            if reason is not None:
                store.tag(run_id, REASON_TAG, reason[:MAX_TAG])
            if writer.unwritten_points:
                store.tag(run_id, UNWRITTEN_TAG, str(writer.unwritten_points))
            store.close(run_id, status)

        writer.add(Entry(f"status {status}", close))
        if not writer.finish(self._patience.end):
            others = ", ".join(writer.unwritten) or "nothing else known"
            logger.warning(
                "Not written to %s: %d metric values; %s (%s). The run's own folder has them.",
                self._where,
                writer.unwritten_points,
                others,
                writer.failure or f"no answer within {self._patience.end:.0f} s",
            )

    def _abandon(self) -> None:
        self.end("FAILED", "The process ended before the run did.")

    def _add(self, what: str, write: Callable[[MlflowStore, str], None]) -> None:
        if self._writer is not None:
            self._writer.add(Entry(what, write))


def _tag(key: str, value: str, store: MlflowStore, run_id: str) -> None:
    store.tag(run_id, key, value)


def _now() -> int:
    return time.time_ns() // 1_000_000
