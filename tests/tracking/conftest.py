"""One MLflow database for all tests of this folder, and MLflow's own server with faults on it."""

from __future__ import annotations

import shutil
import sqlite3
import threading
import time
import warnings
from contextlib import closing
from pathlib import Path

import pytest

from mlx_ft.config.schema import Config
from mlx_ft.tracking.store import MlflowStore
from mlx_ft.tracking.uri import artifact_root, tracking_uri


class Database:
    """What MLflow holds, read with sqlite3."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def config(self) -> Config:
        config = Config()
        config.paths.tracking_dir = str(self.folder)
        return config

    def rows(self, query, *values):
        with closing(sqlite3.connect(self.folder / "mlflow.db")) as connection:
            return connection.execute(query, values).fetchall()

    def points(self, run_id):
        query = "select key, step, value, is_nan from metrics where run_uuid = ? order by key, step"
        return self.rows(query, run_id)

    def pairs(self, table, run_id):
        return dict(self.rows(f"select key, value from {table} where run_uuid = ?", run_id))

    def run(self, run_id):
        query = "select name, status, end_time from runs where run_uuid = ?"
        return self.rows(query, run_id)[0]

    def active_runs(self, name):
        query = "select run_uuid from runs where name = ? and lifecycle_stage = 'active'"
        return [run_id for (run_id,) in self.rows(query, name)]


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    database = Database(tmp_path_factory.mktemp("mlruns"))
    config = database.config()
    uri = tracking_uri(config)
    MlflowStore(uri, artifact_root(uri, config.paths), config.tracking.experiment_name)
    shutil.copy(database.folder / "mlflow.db", database.folder / "empty.db")
    return database


class Server:
    """MLflow's server, in threads. `fault` (None: none) holds for every request from now on:

    refused: nobody listens; 500: an error instead of doing it; lost: an error after doing it;
    lost-run: so for the creation of runs; hang: no answer until `recover`; slow: 0.2 s late.
    """

    def __init__(self, app) -> None:
        self._app = app
        self._recovered = threading.Event()
        self._port = 0
        self._server = None
        self.fault = None
        self._listen()
        self.url = f"http://127.0.0.1:{self._port}"

    def set(self, fault):
        self._recovered.clear()
        self.fault = fault
        if fault == "refused":
            self.stop()

    def recover(self):
        self.fault = None
        self._recovered.set()
        if self._server is None:
            self._listen()

    def stop(self):
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def _listen(self):
        from werkzeug.serving import WSGIRequestHandler, make_server

        class Quiet(WSGIRequestHandler):
            def log_request(self, *_):
                pass

        self._server = make_server(
            "127.0.0.1", self._port, self._answer, threaded=True, request_handler=Quiet
        )
        self._server.daemon_threads = True
        self._port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def _answer(self, environ, respond):
        if self.fault == "slow":
            time.sleep(0.2)
        if self.fault == "hang":
            self._recovered.wait(30)
        lost_run = self.fault == "lost-run" and environ["PATH_INFO"].endswith("runs/create")
        if self.fault == "lost" or lost_run:
            b"".join(self._app(environ, lambda *_: None))
        if self.fault in ("500", "lost") or lost_run:
            respond("500 Internal Server Error", [("Content-Type", "text/plain")])
            return [b"broken"]
        return self._app(environ, respond)


@pytest.fixture(scope="session")
def server(database):
    patch = pytest.MonkeyPatch()
    config = database.config()
    uri = tracking_uri(config)
    patch.setenv("_MLFLOW_SERVER_FILE_STORE", uri)
    patch.setenv("_MLFLOW_SERVER_ARTIFACT_ROOT", artifact_root(uri, config.paths))
    patch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    patch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_JITTER", "0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Starlette's, about its own
        import mlflow.server.fastapi_app  # noqa: F401
        from mlflow.server import app

    server = Server(app)
    yield server
    server.recover()
    server.stop()
    patch.undo()
