"""MLflow's client behind the few calls that a run needs. The only module that imports mlflow.

Every call names its run, so that neither MLflow's global state nor its environment variables
decide where something lands. Every call but `create_run` may be repeated without a second effect.
"""

from __future__ import annotations

import fcntl
import json
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from mlx_ft.tracking.uri import database_file

logger = logging.getLogger("mlx_ft.tracking")

METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
DIGEST_LENGTH = 12  # shown beside the name in lists of runs; MLflow takes up to 36
TABLES_TAG = "mlflow.loggedArtifacts"  # which artifacts the UI offers as tables
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # how the UI presents it

# Defaults for what the user has not set. MLflow's own are 7 retries of 120 seconds.
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "15",
}

T = TypeVar("T")


class Point(NamedTuple):
    """One value of one metric. time: milliseconds since 1970, when it was noted."""

    key: str
    value: float
    time: int
    step: int


class MlflowStore:
    """A connection to one experiment of one MLflow tracking store.

    uri: MLflow's tracking URI. artifact_root: where a new experiment keeps files; None leaves it
    to the server. Makes the database and the experiment when they are not there yet.
    """

    def __init__(self, uri: str, artifact_root: str | None, experiment_name: str) -> None:
        database = database_file(uri)
        client = _import_client(with_database=database is not None)
        # Four processes that migrate a fresh database at once crash: one after the other.
        with _exclusive(database):
            self._client = client(tracking_uri=uri, registry_uri=uri)
            self._experiment_id = self._experiment(experiment_name, artifact_root)
        self._tables: dict[str, list[str]] = {}

    def _experiment(self, name: str, artifact_root: str | None) -> str:
        experiment = self._client.get_experiment_by_name(name)
        if experiment is None:
            return str(self._client.create_experiment(name, artifact_root, EXPERIMENT_TAGS))
        if experiment.lifecycle_stage != "active":
            logger.info("The MLflow experiment %s was deleted: it is restored.", name)
            self._client.restore_experiment(experiment.experiment_id)
        return str(experiment.experiment_id)

    def create_run(self, name: str, time: int, tags: Mapping[str, str]) -> str:
        """Open a run and return its id. time: milliseconds since 1970."""
        run = self._client.create_run(
            self._experiment_id, start_time=time, tags=dict(tags), run_name=name
        )
        return str(run.info.run_id)

    def params(self, run_id: str, params: Mapping[str, str]) -> None:
        """Write parameters, whose keys and values MLflow accepts."""
        from mlflow.entities import Param

        for chunk in _chunks(list(params.items()), PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=[Param(*pair) for pair in chunk])

    def metrics(self, run_id: str, points: Sequence[Point]) -> None:
        """Write points. The same point (with its time) written twice is there once.

        MLflow keeps NaN, but turns an infinity into 1.8e308, which is neither true nor
        drawable: it is written as NaN.
        """
        from mlflow.entities import Metric

        for chunk in _chunks(points, METRICS_PER_CALL):
            metrics = [
                Metric(p.key, math.nan if math.isinf(p.value) else p.value, p.time, p.step)
                for p in chunk
            ]
            self._client.log_batch(run_id, metrics=metrics)

    def tag(self, run_id: str, key: str, value: str) -> None:
        """Set a tag."""
        self._client.set_tag(run_id, key, value)

    def text(self, run_id: str, text: str, file: str) -> None:
        """Write a text artifact."""
        self._client.log_text(run_id, text, file)

    def table(self, run_id: str, columns: list[str], data: list[list[Any]], file: str) -> None:
        """Write rows as a JSON artifact that the UI shows as a table."""
        content = {"columns": columns, "data": data}
        self.text(run_id, json.dumps(content, ensure_ascii=False, allow_nan=False), file)
        files = self._tables.setdefault(run_id, [])
        if file not in files:
            files.append(file)
        tables = [{"path": name, "type": "table"} for name in files]
        self.tag(run_id, TABLES_TAG, json.dumps(tables))

    def file(self, run_id: str, path: Path, folder: str) -> None:
        """Copy a file into `folder`, or a folder's content into `folder/<its name>`."""
        if path.is_dir():
            target = f"{folder}/{path.name}" if folder else path.name
            self._client.log_artifacts(run_id, str(path), target)
        else:
            self._client.log_artifact(run_id, str(path), folder or None)

    def dataset(
        self,
        run_id: str,
        name: str,
        digest: str,
        source: str,
        profile: Mapping[str, Any],
        context: str,
    ) -> None:
        """Name a dataset as an input. The digest is shown short: the whole is in the profile."""
        from mlflow.entities import Dataset, DatasetInput, InputTag

        dataset = Dataset(
            name=name,
            digest=digest.removeprefix("sha256:")[:DIGEST_LENGTH],
            source_type="local",
            source=json.dumps({"uri": source}),
            profile=json.dumps({**profile, "digest": digest}),
        )
        tags = [InputTag("mlflow.data.context", context)]
        self._client.log_inputs(run_id, [DatasetInput(dataset, tags)])

    def close(self, run_id: str, status: str) -> None:
        """End the run: FINISHED, FAILED or KILLED."""
        self._client.set_terminated(run_id, status)


def _import_client(with_database: bool) -> Any:
    """MLflow's client class, and with it what a client for a database would import later."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    if with_database:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    # What fails is raised to us and said once; the migration's progress is nobody's business.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    return MlflowClient


@contextmanager
def _exclusive(database: Path | None) -> Iterator[None]:
    """Hold the lock file beside the database: one process at a time."""
    if database is None:
        yield
        return
    database.parent.mkdir(parents=True, exist_ok=True)
    with database.with_name(f".{database.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))
