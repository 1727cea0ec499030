"""A run's folder: made only once the run is accepted, held by a lock, written atomically."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import re
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, suppress
from datetime import datetime
from logging.handlers import MemoryHandler
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from mlx_ft import durable
from mlx_ft.config import yaml_text
from mlx_ft.errors import InUseError, OutputError, StorageError

LOCK = ".lock"
LOCK_SECONDS = 3.0
METRICS = "metrics.jsonl"
JOURNAL = "tracking.jsonl"  # what was noted for the tracker, and what of it was written
ORIGIN = "origin.json"  # what the run was made from: its fingerprint, where it was started
LINE_FORMAT = "%(asctime)s %(levelname)-7s %(message)s"


class RunFolder:
    """Where one run writes. `path` is absolute.

    Raises OutputError when the folder cannot be made, already holds a run, or is in use.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    @classmethod
    def create(cls, path: Path | None, output_dir: Path, *, resume: bool = False) -> RunFolder:
        """Make `path`, or a new folder named by the time under `output_dir`/runs.

        resume: the folder may hold a run.
        """
        try:
            if path is None:
                folder = cls(_new_folder(output_dir.expanduser().resolve() / "runs"))
            else:
                folder = cls(path.expanduser().resolve())
                folder.path.mkdir(parents=True, exist_ok=True)
            folder._take(resume)
        except OSError as error:
            where = path if path is not None else output_dir
            key = "hydra.run.dir" if path is not None else "paths.output_dir"
            raise OutputError(
                f"{key}: cannot write to {where}: {error.strerror or error}. "
                f"Choose a writable folder with {key}=FOLDER"
            ) from None
        return folder

    def _take(self, resume: bool) -> None:
        if not resume:
            self._refuse_earlier_run()  # without making a lock file there
        self._lock = _lock(self.path)
        if self._lock is None:
            raise InUseError(
                f"hydra.run.dir: {self.path} is in use by another run{_holder(self.path)}. "
                "Wait for its end, or choose another folder"
            )
        if not resume:
            self._refuse_earlier_run()  # one that ended between the two

    def _refuse_earlier_run(self) -> None:
        if taken := held_files(self.path):
            self.release()
            raise OutputError(
                f"hydra.run.dir: {self.path} already holds a run ({', '.join(taken)}). "
                "Choose another folder, or go on with it: train.resume=auto; nothing was changed"
            )

    @property
    def adapter(self) -> Path:
        """Folder of the final adapter."""
        return self.path / "adapter"

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    def check(self) -> None:
        """Raise StorageError when the folder is no longer the one that was locked.

        What is written to its path then would be a second, crippled run in its place.
        """
        if self._lock is None:
            return
        mine = os.fstat(self._lock.fileno())
        with suppress(FileNotFoundError, NotADirectoryError):
            there = (self.path / LOCK).stat()
            if (mine.st_dev, mine.st_ino) == (there.st_dev, there.st_ino):
                return
        raise StorageError(
            f"{self.path}, or {LOCK} in it, was removed or renamed while the run went on. What "
            "it had written is where the folder is now, if it is anywhere: put it back and go on "
            "with the run, or begin again"
        )

    def write_text(self, name: str, text: str) -> Path:
        """Write a whole file; a reader sees the old or the new one, never a part."""
        # A lone surrogate, which JSON allows, becomes its JSON escape.
        return self.write_bytes(name, text.encode("utf-8", errors="backslashreplace"))

    def write_bytes(self, name: str, content: bytes) -> Path:
        """As write_text, for bytes."""
        self.check()
        durable.write(self.path / name, content)
        return self.path / name

    def write_config(self, public: Mapping[str, Any]) -> Path:
        """The composed configuration, which runs again as it is."""
        header = "# Run again: python train.py --config-dir THIS_FOLDER --config-name config\n"
        return self.write_text("config.yaml", header + yaml_text.dump(public))

    def write_summary(self, summary: Mapping[str, Any]) -> Path:
        """`summary.json`; figures that are not finite become null."""
        finite = {key: _json_number(value) for key, value in summary.items()}
        return self.write_text("summary.json", json.dumps(finite, indent=2) + "\n")

    def write_rows(self, name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
        """A JSON-lines file."""
        lines = [json.dumps(dict(row), ensure_ascii=False) for row in rows]
        return self.write_text(name, "".join(line + "\n" for line in lines))

    def append_metrics(self, row: Mapping[str, Any]) -> None:
        """One line of `metrics.jsonl`, whole and flushed."""
        finite = {key: _json_number(value) for key, value in row.items()}
        self.check()
        place = self.path / METRICS
        with durable.naming(place), place.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def read_metrics(self) -> list[dict[str, Any]]:
        """The rows of `metrics.jsonl`, up to the first line that is not whole."""
        rows = []
        try:
            for line in (self.path / METRICS).read_bytes().splitlines(keepends=True):
                rows.append(dict(json.loads(line)))
                if not line.endswith(b"\n"):
                    return rows[:-1]
        except (OSError, ValueError, TypeError, RecursionError):
            pass
        return rows

    def sync_metrics(self) -> None:
        """Wait until the lines of `metrics.jsonl` are on the disk."""
        self.check()
        with (self.path / METRICS).open("a") as file:
            durable.sync(file.fileno())

    def log_handler(self) -> logging.Handler:
        """A handler that writes `train.log`."""
        handler = _LogHandler(self.path / "train.log", encoding="utf-8")
        handler.setFormatter(logging.Formatter(LINE_FORMAT))
        return handler

    def release(self) -> None:
        """Let go of the folder."""
        if self._lock is not None:
            self._lock.close()  # the file stays: removing it would let two others in
            self._lock = None


def held_files(path: Path) -> list[str]:
    """The files by which a folder is known to hold a run."""
    found = [name for name in ("config.yaml", "summary.json") if (path / name).exists()]
    # A new run would take another's checkpoint for its own, made before.
    return found + (["checkpoints"] if checkpoint_folders(path / "checkpoints") else [])


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; empty when there is none that can be read."""
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def step_of(folder: Path) -> int:
    """50 of `step-000050`; -1 for a folder of another name."""
    found = re.fullmatch(r"step-(\d+)", folder.name)
    return int(found[1]) if found else -1


def checkpoint_folders(parent: Path) -> list[Path]:
    """The checkpoints in a folder, the newest last, damaged ones included."""
    found = [path for path in parent.glob("step-*") if step_of(path) >= 0]
    return sorted(found, key=step_of)


def _lock(folder: Path) -> IO[str] | None:
    """Hold the folder's lock file until it is closed, or the process is gone; None: taken.

    Waits a little: `mlx-ft sync` and `ui` hold it while they look at a run.
    """
    lock = (folder / LOCK).open("a+", encoding="utf-8")
    deadline = time.monotonic() + LOCK_SECONDS
    while True:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            if time.monotonic() > deadline:
                lock.close()
                return None
        time.sleep(0.1)
    lock.truncate(0)
    lock.write(f"{os.getpid()} {socket.gethostname()}\n")  # for people; what counts is the lock
    lock.flush()
    return lock


def _holder(folder: Path) -> str:
    try:
        pid, host = (folder / LOCK).read_text("utf-8").split()
    except (OSError, ValueError):
        return ""
    return f" (process {pid} on {host})"


class _LogHandler(logging.FileHandler):
    """`train.log`; a full disk is told once, not with a traceback for each line."""

    _failed = False

    def handleError(self, _: logging.LogRecord) -> None:  # noqa: N802
        if not self._failed:
            self._failed = True
            print(f"warning: {self.baseFilename} cannot be written any more", file=sys.stderr)


class LogFile(AbstractContextManager["LogFile"]):
    """`train.log`: what is said before there is a folder is kept until `open`."""

    def __init__(self) -> None:
        self._buffer = MemoryHandler(1000, flushLevel=logging.CRITICAL + 1, flushOnClose=False)
        self._handler: logging.Handler | None = None
        logging.getLogger("mlx_ft").addHandler(self._buffer)

    def open(self, handler: logging.Handler) -> None:
        """Write to `handler` from now on, beginning with what was kept."""
        logger = logging.getLogger("mlx_ft")
        logger.removeHandler(self._buffer)
        self._buffer.setTarget(handler)
        self._buffer.flush()
        logger.addHandler(handler)
        self._handler = handler

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        logger = logging.getLogger("mlx_ft")
        logger.removeHandler(self._buffer)
        if self._handler is not None:
            logger.removeHandler(self._handler)
            with suppress(OSError):  # a full disk is told by the error that it caused
                self._handler.close()


def _new_folder(parent: Path) -> Path:
    parent.mkdir(parents=True, exist_ok=True)
    stamp = datetime.now().strftime("%Y-%m-%d_%H-%M-%S")
    for suffix in ("", *(f"-{number}" for number in range(2, 1000))):
        path = parent / f"{stamp}{suffix}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise OSError(f"no free name for {stamp} in {parent}")


def _json_number(value: Any) -> Any:
    """JSON knows neither NaN nor infinity."""
    if isinstance(value, float) and not (abs(value) < float("inf")):
        return None
    return value


def writable(path: Path | None, output_dir: Path) -> str | None:
    """Why a run could not be written there, found without writing; None if it could."""
    target = (path if path is not None else output_dir).expanduser().absolute()
    existing = next(
        (parent for parent in (target, *target.parents) if parent.exists() or parent.is_symlink()),
        Path("/"),
    )
    if not existing.is_dir():
        return f"{existing} is not a folder"
    if not os.access(existing, os.W_OK | os.X_OK):
        return f"{existing} is not writable"
    return None
