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

from mlx_ft.tracking.uri import SQLITE, database_file

logger = logging.getLogger("mlx_ft.tracking")

METRICS_PER_CALL = 1000  # MLflow's limits
PARAMS_PER_CALL = 100
DIGEST_LENGTH = 12  # shown beside the name in lists of runs; MLflow takes up to 36
TABLES_TAG = "mlflow.loggedArtifacts"  # which artifacts the UI offers as tables
EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}  # how the UI presents it
JOURNAL_TAG = "mlx_ft.journal"  # finds a run whose id was lost
FOLDER_TAG = "mlx_ft.run_dir"
HOST_TAG = "mlx_ft.host"
REASON_TAG = "mlx_ft.end_reason"
UNWRITTEN_TAG = "mlx_ft.unwritten_points"
ADAPTER = "adapter"  # among the artifacts of a run
REFUSALS = ("INVALID_PARAMETER_VALUE", "BAD_REQUEST", "MALFORMED_REQUEST")

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
        client = import_client(with_database=database is not None)
        # Four processes that migrate a fresh database at once crash: one after the other.
        with _exclusive(database):
            if database is not None and artifact_root is not None and not database.exists():
                _make_database(database, artifact_root)
            self._client = client(tracking_uri=uri, registry_uri=uri)
            self._experiment_id = self._experiment(experiment_name, artifact_root)
        self._tables: dict[str, list[str]] = {}
        self.remote = database is None  # an answer may be lost on the way

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

    def runs_of(self, journal: str) -> list[str]:
        """The runs that were created for a journal, the oldest first: a lost answer makes two."""
        found = self._client.search_runs(
            [self._experiment_id],
            filter_string=f"tags.`{JOURNAL_TAG}` = '{journal}'",
            order_by=["attributes.start_time ASC"],
        )
        return sorted(str(run.info.run_id) for run in found)

    def lifecycle(self, run_id: str) -> str | None:
        """`active`, `deleted` (in MLflow's trash), or None: there is no such run."""
        run = self._run(run_id)
        return None if run is None else str(run.info.lifecycle_stage)

    def reopen(self, run_id: str) -> bool:
        """Show the run as RUNNING again, from the trash too. False: there is no such run."""
        run = self._run(run_id)
        if run is None:
            return False
        if run.info.lifecycle_stage != "active":
            logger.info("The MLflow run %s was deleted: it is restored.", run_id)
            self._client.restore_run(run_id)
        self._client.update_run(run_id, "RUNNING")
        self.untag(run_id, REASON_TAG, UNWRITTEN_TAG)
        return True

    def discard(self, run_id: str) -> None:
        """Delete a run that nobody writes to."""
        self._client.delete_run(run_id)

    def _run(self, run_id: str) -> Any:
        from mlflow.exceptions import MlflowException

        try:
            run = self._client.get_run(run_id)
        except MlflowException as error:
            if error.error_code == "RESOURCE_DOES_NOT_EXIST":
                return None
            raise
        return run

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

    def untag(self, run_id: str, *keys: str) -> None:
        """Remove those of the tags that are set."""
        for key in self._client.get_run(run_id).data.tags.keys() & set(keys):
            self._client.delete_tag(run_id, key)

    def text(self, run_id: str, text: str, file: str) -> None:
        """Write a text artifact."""
        self._client.log_text(run_id, text, file)

    def table(self, run_id: str, columns: list[str], data: list[list[Any]], file: str) -> None:
        """Write rows as a JSON artifact that the UI shows as a table."""
        content = {"columns": columns, "data": data}
        self.text(run_id, json.dumps(content, ensure_ascii=False, allow_nan=False), file)
        if run_id not in self._tables:  # an earlier process may have written others
            before = self._client.get_run(run_id).data.tags.get(TABLES_TAG, "[]")
            self._tables[run_id] = [entry["path"] for entry in json.loads(before)]
        files = self._tables[run_id]
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

    def register(self, name: str, run_id: str, alias: str, tags: Mapping[str, str]) -> None:
        """Make the adapter of a run the version of `name` that has the alias."""
        from mlflow.exceptions import MlflowException

        try:
            source = f"{self._client.get_run(run_id).info.artifact_uri}/{ADAPTER}"
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            logger.warning("MLflow has no run %s any more: its adapter is not registered", run_id)
            return
        try:
            self._client.create_registered_model(name)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = self._client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
        found = known[0] if known else self._client.create_model_version(
            name, source, run_id, dict(tags), await_creation_for=None
        )  # fmt: skip
        self._client.set_registered_model_alias(name, alias, found.version)

    def close(self, run_id: str, status: str, time: int) -> None:
        """End the run: FINISHED, FAILED or KILLED. time: milliseconds since 1970."""
        self._client.set_terminated(run_id, status, time)

    def running(self, host: str) -> dict[str, str]:
        """The runs of a machine that are shown as RUNNING, with the folders that they write to."""
        filter_string = f"attributes.status = 'RUNNING' and tags.`{HOST_TAG}` = '{host}'"
        found, token = dict[str, str](), None
        while True:
            page = self._client.search_runs(
                [self._experiment_id], filter_string=filter_string, page_token=token
            )
            folders = ((str(run.info.run_id), run.data.tags.get(FOLDER_TAG)) for run in page)
            found |= {run_id: folder for run_id, folder in folders if folder}
            if not (token := page.token):
                return found


def is_refusal(error: Exception) -> bool:
    """Whether the store works and will not take this, now or later."""
    local = isinstance(error, (FileNotFoundError, NotADirectoryError, UnicodeError))
    return local or getattr(error, "error_code", None) in REFUSALS  # MlflowException


def import_client(with_database: bool) -> Any:
    """MLflow's client class, and with it what a client for a database would import later."""
    for key, value in ENVIRONMENT.items():
        os.environ.setdefault(key, value)
    from mlflow.tracking import MlflowClient

    if with_database:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    # What fails is raised to us and said once; the migration's progress is nobody's business.
    logging.getLogger("mlflow").setLevel(logging.CRITICAL)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    logging.getLogger("urllib3.connectionpool").setLevel(logging.ERROR)  # each retry
    return MlflowClient


def _make_database(database: Path, artifact_root: str) -> None:
    """Make an empty database that appears whole: SQLite's tables are made one by one, and half
    of them, which a killed process would leave, can neither be used nor completed.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    partial = database.with_name(f".{database.name}.partial")
    for name in (partial.name, f"{partial.name}-journal"):
        partial.with_name(name).unlink(missing_ok=True)
    SqlAlchemyStore(f"{SQLITE}{partial}", artifact_root).engine.dispose()
    partial.replace(database)


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
