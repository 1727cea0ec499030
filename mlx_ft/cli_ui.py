"""`mlx-ft ui`: MLflow's server on a project's runs, begun and ended with this process."""

from __future__ import annotations

import argparse
import os
import signal
import socket
import subprocess
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType

from mlx_ft.errors import MlxFtError, UserError

SQLITE_HEADER = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
PATIENCE = 5.0  # seconds that the server has to end by itself
LAST_LINES = 20
POLL = 0.2  # seconds between looks whether the server listens
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def run(args: argparse.Namespace) -> int:
    """Serve until Ctrl-C; returns the exit code. Raises UserError, MlxFtError."""
    from mlx_ft.config import compose
    from mlx_ft.tracking import reap, ui_command, ui_environment, ui_page
    from mlx_ft.tracking.uri import database_file, tracking_uri

    command = compose.CommandLine(tuple(args.overrides))
    compose.check(command)
    config = compose.resolve(compose.compose(compose.open_hydra(command), command))
    line = ui_command(config, args.host, args.port)
    _check_database(database_file(tracking_uri(config)))
    _check_port(args.host, args.port)
    for run_id, folder in reap(config).items():
        print(f"Its process is gone, so it is closed: run {run_id}, {folder}")
    page = ui_page(config, args.host, args.port)
    print("MLflow starts, which takes 5 to 20 seconds. Ctrl-C ends it.", flush=True)
    return serve(line, ui_environment(), (args.host, args.port), f"It is ready: {page}")


def serve(
    command: Sequence[str], environment: Mapping[str, str], address: tuple[str, int], ready: str
) -> int:
    """Run a server until it is told to end by a signal to this process.

    ready: printed as soon as it listens at `address`, (host, port). Returns 0 after Ctrl-C,
    128 + number after another signal. What the server says is shown only when it ends by itself,
    which raises MlxFtError. Its processes are a group of their own, so that Ctrl-C on the
    terminal reaches them through this process alone.
    """
    server = _Server()
    threading.Thread(target=server.tell, args=(address, ready), daemon=True).start()
    # An ignored signal stays ignored: that is how nohup works.
    wanted = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, server.stop) for number in wanted}
    try:
        last = server.run(command, environment)
    finally:
        server.ended.set()
        # Told to end, this process does: a signal sent twice must not change with what code.
        told = server.stopped_by is not None
        for number, handler in previous.items():
            signal.signal(number, signal.SIG_IGN if told else handler)
    if server.stopped_by is None:
        raise MlxFtError(f"MLflow's server ended by itself (exit code {server.code}):", last)
    return 0 if server.stopped_by == signal.SIGINT else 128 + server.stopped_by


class _Server:
    def __init__(self) -> None:
        self.stopped_by: int | None = None
        self.code: int | None = None
        self._process: subprocess.Popen[str] | None = None
        self._timer: threading.Timer | None = None
        self.ended = threading.Event()

    def tell(self, address: tuple[str, int], ready: str) -> None:
        """Print `ready` when something listens at `address`, unless the server has ended."""
        while not self.ended.wait(POLL):
            try:
                socket.create_connection(_reachable(address), timeout=1).close()
            except OSError:
                continue
            if not self.ended.is_set() and self.stopped_by is None:
                with suppress(OSError):  # nobody reads it
                    print(ready, flush=True)
            return

    def run(self, command: Sequence[str], environment: Mapping[str, str]) -> list[str]:
        """Start it and wait until it has ended; returns the last lines that it printed."""
        with subprocess.Popen(
            command,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        ) as process:
            self._process = process
            if self.stopped_by is not None:  # while it was being started
                self._end()
            assert process.stdout is not None
            last = deque((line.rstrip() for line in process.stdout), maxlen=LAST_LINES)
            self.code = process.wait()
        if self._timer is not None:
            self._timer.cancel()
        return [line for line in last if line]

    def stop(self, number: int, _: FrameType | None) -> None:
        """A signal's handler; the first one counts: `timeout` and shells send it twice."""
        if self.stopped_by is None:
            self.stopped_by = number
            self._end()

    def _end(self) -> None:
        if self._process is not None:
            self._kill(signal.SIGTERM)
            self._timer = threading.Timer(PATIENCE, self._kill, [signal.SIGKILL])
            self._timer.start()

    def _kill(self, number: int) -> None:
        assert self._process is not None
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)


def _reachable(address: tuple[str, int]) -> tuple[str, int]:
    """Where a server that listens on all of a machine's addresses is found on it."""
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(address[0], address[0]), address[1]  # noqa: S104


def _check_port(host: str, port: int) -> None:
    """Raise UserError for an address on which no server can listen."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as the server does
            probe.bind((host, port))
    except OSError as error:
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}. Choose another port with --port"
        ) from error


def _check_database(path: Path | None) -> None:
    """Raise UserError for a file that MLflow's server could not open as its database."""
    if path is None:
        return
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head not in (b"", SQLITE_HEADER):
        raise UserError(
            f"{path} is not an SQLite database. Name MLflow's with paths.tracking_dir=FOLDER or "
            "tracking.uri=sqlite:///FILE"
        )
