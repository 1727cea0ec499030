"""Where MLflow keeps its runs, and the command that shows them."""

from __future__ import annotations

import os
import re
import sqlite3
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from mlx_ft.config.schema import Config, PathsConfig, TrackingConfig
from mlx_ft.errors import UserError

SQLITE = "sqlite:///"


def store_uri(tracking: TrackingConfig, paths: PathsConfig) -> str:
    """MLflow's tracking URI: the user's, or the database in `paths.tracking_dir`, absolute."""
    if tracking.uri is None:
        return f"{SQLITE}{_absolute(paths.tracking_dir) / 'mlflow.db'}"
    if tracking.uri.startswith(SQLITE):
        return f"{SQLITE}{_absolute(tracking.uri.removeprefix(SQLITE))}"
    return tracking.uri


def from_there(
    tracking: TrackingConfig, paths: PathsConfig, start: Path
) -> tuple[TrackingConfig, PathsConfig]:
    """The two with relative places counted from the folder `start`, if it is still there."""
    if not start.is_dir():
        return tracking, paths
    folder = str(start / Path(paths.tracking_dir).expanduser())
    uri = tracking.uri
    if uri is not None and uri.startswith(SQLITE):
        uri = f"{SQLITE}{start / Path(uri.removeprefix(SQLITE)).expanduser()}"
    return replace(tracking, uri=uri), replace(paths, tracking_dir=folder)


def tracking_uri(config: Config) -> str:
    """MLflow's tracking URI of this configuration."""
    return store_uri(config.tracking, config.paths)


def database_file(uri: str) -> Path | None:
    """The database file of an SQLite URI; None for any other."""
    return Path(uri.removeprefix(SQLITE)) if uri.startswith(SQLITE) else None


def artifact_root(uri: str, paths: PathsConfig) -> str | None:
    """Where new experiments keep files, as a URI; None when a server decides.

    Beside an SQLite database; in `paths.tracking_dir` for other databases.
    """
    if re.match(r"(https?|databricks|uc)\b", uri):
        return None
    database = database_file(uri)
    folder = database.parent if database else _absolute(paths.tracking_dir)
    return (folder / "artifacts").as_uri()


def without_password(text: str) -> str:
    """The text with the password of every URI in it replaced by `***`."""
    return re.sub(r"(://[^/\s:@]*):[^/\s@]+@", r"\1:***@", text)


def ui_command(config: Config, host: str, port: int) -> list[str]:
    """The command that serves MLflow's UI on this configuration's runs.

    Raises UserError when the runs are on a server that has its own UI, or when there are none.
    """
    uri = tracking_uri(config)
    root = artifact_root(uri, config.paths)
    if root is None:
        raise UserError(
            f"tracking.uri is the server {without_password(uri)}, which shows its runs itself: "
            "open that address in a browser."
        )
    database = database_file(uri)
    if database is not None and not database.is_file():
        raise UserError(
            f"There are no runs yet: {database} does not exist. Train first "
            "(`python train.py`), or name another folder with `paths.tracking_dir=FOLDER`."
        )
    server = [sys.executable, "-m", "mlflow", "server", "--workers", "1"]
    store = ["--backend-store-uri", uri, "--default-artifact-root", root, "--no-serve-artifacts"]
    return [*server, *store, "--host", host, "--port", str(port)]


def ui_page(config: Config, host: str, port: int) -> str:
    """The address of this configuration's runs, as training runs, in the UI of `ui_command`.

    MLflow's own front page shows the GenAI side of an experiment, which is empty here.
    """
    experiment = _experiment_id(tracking_uri(config), config.tracking.experiment_name)
    page = "experiments" if experiment is None else f"experiments/{experiment}/runs"
    return f"http://{host}:{port}/#/{page}?workflowType=machine_learning"


def has_running(uri: str) -> bool:
    """Whether an SQLite database shows a run as RUNNING, of any experiment."""
    return _first(uri, "select 1 from runs where status = ?", "RUNNING") is not None


def _experiment_id(uri: str, name: str) -> int | None:
    return _first(uri, "select experiment_id from experiments where name = ?", name)


def _first(uri: str, query: str, value: str) -> int | None:
    """Read with sqlite3: importing mlflow costs seconds. None: not there, or not SQLite."""
    database = database_file(uri)
    if database is None or not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{database.as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(query, (value,)).fetchone()
    except sqlite3.Error:
        return None
    return int(row[0]) if row else None


def ui_environment() -> dict[str, str]:
    """The environment for `ui_command`: this one, less telemetry, background jobs and warnings."""
    quiet = {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        "PYTHONWARNINGS": "ignore",  # the server's own libraries
    }
    return quiet | dict(os.environ)


def _absolute(path: str) -> Path:
    return Path(os.path.abspath(Path(path).expanduser()))  # noqa: PTH100  (symlinks stay)
