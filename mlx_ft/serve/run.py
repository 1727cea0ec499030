"""A server from its first moment to its last: listening, ready, drained."""

from __future__ import annotations

import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import uvicorn

from mlx_ft import lora_files
from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.saved import find_run
from mlx_ft.serve import shelf
from mlx_ft.serve.app import create_app
from mlx_ft.serve.protocol import Patient
from mlx_ft.serve.security import Rules
from mlx_ft.serve.server import Server
from mlx_ft.serve.state import Settings

CONNECTIONS = 1000
IDLE = 20  # seconds that a connection may be idle between two requests
HEADERS = 1 << 16  # bytes


@dataclass(frozen=True)
class Listen:
    """Where to listen. drain: seconds that answers have to end once the server is told to."""

    host: str = "127.0.0.1"
    port: int = 8080
    drain: int = 60
    adapters: Mapping[str, str] = field(default_factory=dict)


def run(settings: Settings, rules: Rules, listen: Listen) -> int:
    """Serve until a signal; returns 0 after Ctrl-C, 128 + number after another one.

    Raises UserError kinds before it listens, and what loading the model raised.
    """
    began = time.monotonic()
    with bound(listen.host, listen.port) as sock, closing(Server.open(settings)) as server:
        give(server, listen.adapters)
        config = uvicorn.Config(
            create_app(server, rules), http=Patient, ws="none", lifespan="on", log_config=None,
            access_log=False, server_header=False, timeout_keep_alive=IDLE,
            timeout_graceful_shutdown=listen.drain, limit_concurrency=CONNECTIONS,
            h11_max_incomplete_event_size=HEADERS,
        )  # fmt: skip
        name = f"[{listen.host}]" if ":" in listen.host else listen.host
        loop = Loop(config, server, f"http://{name}:{sock.getsockname()[1]}", began)
        return loop.serve_until_signal(sock)


class Loop(uvicorn.Server):
    """uvicorn's, which says when it is ready, and how it was ended."""

    def __init__(self, config: uvicorn.Config, server: Server, url: str, began: float) -> None:
        super().__init__(config)
        self._server, self._url, self._began = server, url, began
        self._stopped_by: int | None = None
        self._failure: BaseException | None = None

    def serve_until_signal(self, sock: socket.socket) -> int:
        """The exit code. Raises what loading the model raised."""
        # uvicorn takes the two for itself while it serves, and raises them again at the end.
        numbers = [signal.SIGINT, signal.SIGTERM]
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
            numbers.append(signal.SIGHUP)
        before = {number: signal.signal(number, self._note) for number in numbers}
        threading.Thread(target=self._announce, name="ready", daemon=True).start()
        try:
            self.run(sockets=[sock])
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        if self._failure is not None:
            raise self._failure
        if self._stopped_by in (None, signal.SIGINT):
            return 0
        return 128 + int(self._stopped_by or 0)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal lets answers come to their end; streams of events end at once."""
        self._server.state.closing.set()
        super().handle_exit(sig, frame)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self._stopped_by is None:
            self._stopped_by = number
        if number == signal.SIGHUP:
            self.handle_exit(number, frame)

    def _announce(self) -> None:
        """Say that the model is there and somebody listens; or end, with the reason."""
        while not self.started and not self.should_exit:
            time.sleep(0.02)
        while not self.should_exit:
            try:
                base = self._server.state.current.model.base
            except TimeoutError:
                continue
            except Exception as error:
                if not self._server.state.closing.is_set():
                    self._failure, self.should_exit = error, True
                return
            seconds = time.monotonic() - self._began
            print(f"{base.name} answers at {self._url} ({seconds:.1f} s). Ctrl-C ends it.",
                  flush=True)  # fmt: skip
            return


def bound(host: str, port: int) -> socket.socket:
    """A socket with that address. Raises UserError."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # With the protocol by name asyncio sends without delay; else an answer takes 40 ms longer.
    sock = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind((host, port))
    except OSError as error:
        sock.close()
        raise UserError(
            f"--host {host} --port {port}: {error.strerror}. Choose another port with --port"
        ) from error
    return sock


def give(server: Server, adapters: Mapping[str, str]) -> None:
    """Have the adapters that the command line names by their runs or folders.

    Raises UserError kinds, all of them at once.
    """
    faults = []
    for name, reference in adapters.items():
        try:
            folder, path = _adapter(reference)
            base = None if path is None else server.bases.find(path)
            digest = shelf.origin(folder.parent)
            server.shelf.give(name, folder, None if base is None else base.name, digest)
        except MlxFtError as error:
            faults += [f"{name}={reference}: {line}" for line in (error.message, *error.faults)]
    if faults:
        raise UserError("--adapter cannot be used:", faults)


def _adapter(reference: str) -> tuple[Path, str | None]:
    """(folder, `model.path` of its base) of a run, a registered model, or an adapter's folder."""
    folder = Path(reference).expanduser()
    if (folder / lora_files.SETTINGS).is_file() and not (folder.parent / "config.yaml").is_file():
        _, settings = lora_files.read_settings(folder)
        about = settings.get("mlx_ft")
        path = about.get("base_model") if isinstance(about, dict) else None
        return folder.absolute(), path if isinstance(path, str) else None
    found = find_run(reference)
    return found.adapter.absolute(), found.config.model.path


def keys(file: Path | None, variable: str | None) -> tuple[str, ...]:
    """The API keys of a file, one a line, and of an environment variable. Raises UserError."""
    found = [variable.strip()] if variable and variable.strip() else []
    if file is not None:
        try:
            lines: Sequence[str] = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--api-key-file {file}: cannot be read: {error}") from None
        own = [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not own:
            raise UserError(f"--api-key-file {file}: found no key; expected one a line")
        found += own
    return tuple(found)
