"""One command line in a forked process of its own, and the record of what it did.

The parent imports what a run imports once; a case then takes 0.05 seconds to be refused and about
one second to train a step.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import io
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from proofs.override_cases import Case, with_job

Main = Callable[[list[str]], int]
SECONDS = 120  # of one case
MEMORY = 8 * 1024**3
KEPT = {"home", "site", "logs", "model", "rows.jsonl", "valid.jsonl", "readable.yaml", "loop",
        "mlflow.db"}  # fmt: skip
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.link", "os.symlink", "os.truncate",
           "os.chmod", "os.chown", "os.utime", "shutil.rmtree", "shutil.move"}  # fmt: skip
RUNS = {"os.system", "os.exec", "os.posix_spawn", "os.spawn", "os.forkpty", "subprocess.Popen",
        "os.fork", "pty.spawn", "pickle.find_class", "ctypes.dlopen"}  # fmt: skip
CANARY = """
import os
def mark(what):
    os.close(os.open(os.environ["CANARY"] + "/" + what, os.O_CREAT))
mark("imported")
def fire(*args, **kwargs):
    mark("called")
class Thing:
    def __init__(self, *args, **kwargs):
        mark("made")
"""


@dataclass
class Outcome:
    """What one case did. code: None after a timeout, negative after a signal."""

    code: int | None
    out: str
    err: str
    events: list[list[Any]]
    changed: list[str]  # below the scratch folder, relative to it
    seconds: float


class Scratch:
    """The folder in which every case runs, the same for all of them."""

    def __init__(self, root: Path) -> None:
        self.root, self.cwd = root, root / "cwd"
        for name in ("home", "tmp", "elsewhere", "marks", "site/canary", "logs"):
            (root / name).mkdir(parents=True)
        (root / "site/canary/__init__.py").write_text(CANARY)
        (root / "site/canary/x.yaml").write_text("_target_: canary.fire\n")
        (root / "readable.yaml").write_text("rank: 4\n")
        (root / "loop").symlink_to("loop")
        self.template: Path | None = None

    def environment(self) -> dict[str, str]:
        """The environment of a case, beside what Python itself needs."""
        names = {"HOME": "home", "TMPDIR": "tmp", "CANARY": "marks"}
        return {name: str(self.root / folder) for name, folder in names.items()} | {
            "HF_HUB_OFFLINE": "1", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "COLUMNS": "100",
            "MLFLOW_DISABLE_TELEMETRY": "true",
        }  # fmt: skip

    def clean(self, files: dict[str, str]) -> None:
        """An empty `cwd` with `files`; whatever an earlier case left goes, but for the cache."""
        left = [path for path in self.root.iterdir() if path.name not in KEPT]
        for path in (*left, *self.root.glob("home/[!.]*")):
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for name in ("cwd", "elsewhere", "marks", "tmp"):
            (self.root / name).mkdir()
        if self.template is not None:
            (self.cwd / "mlruns").mkdir()
            shutil.copy(self.template, self.cwd / "mlruns/mlflow.db")
        for name, text in files.items():
            (self.cwd / name).parent.mkdir(parents=True, exist_ok=True)
            (self.cwd / name).write_bytes(text.encode("utf-8", "surrogateescape"))

    def look(self) -> dict[str, tuple[int, int]]:
        """Every file and folder with size and time."""
        found = {}
        for folder, _, names in os.walk(self.root):
            for path in (folder, *(os.path.join(folder, name) for name in names)):  # noqa: PTH118
                with contextlib.suppress(OSError):
                    stat = os.lstat(path)
                    size = 0 if os.path.isdir(path) else stat.st_size  # noqa: PTH112
                    found[os.path.relpath(path, self.root)] = (size, stat.st_mtime_ns * bool(size))
        return found


def run(case: Case, scratch: Scratch, main: Main) -> Outcome:
    """Run one case in a process of its own."""
    scratch.clean(case.files)
    logs = scratch.root / "logs"
    for name in ("out", "err", "events"):
        (logs / name).write_bytes(b"")
    before, started = scratch.look(), time.monotonic()
    pid = os.fork()
    if pid == 0:
        _child(case, scratch, main)
    code = _wait(pid, started)
    after = scratch.look()
    changed = sorted(name for name in before | after if before.get(name) != after.get(name))
    return Outcome(
        code,
        (logs / "out").read_text("utf-8", "backslashreplace"),
        (logs / "err").read_text("utf-8", "backslashreplace"),
        [json.loads(line) for line in (logs / "events").read_text().splitlines()],
        [name for name in changed if not name.startswith("logs")],
        time.monotonic() - started,
    )


def _wait(pid: int, started: float) -> int | None:
    while time.monotonic() - started < SECONDS:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.killpg(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def _child(case: Case, scratch: Scratch, main: Main) -> None:
    """Never returns. Streams, limits and environment as a new process has them."""
    code = 70
    try:
        os.setsid()
        os.chdir(scratch.cwd)
        tempfile.tempdir = None
        with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
            resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for number, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(scratch.root / "logs" / name, os.O_WRONLY | os.O_APPEND), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        sys.stdout = io.TextIOWrapper(io.FileIO(1, "w"), "utf-8", "strict", line_buffering=True)
        sys.stderr = io.TextIOWrapper(
            io.FileIO(2, "w"), "utf-8", "backslashreplace", write_through=True
        )
        sys.argv = ["train.py", *case.args]
        record = os.open(scratch.root / "logs" / "events", os.O_WRONLY | os.O_APPEND)
        sys.addaudithook(lambda event, args: _audit(record, event, args))
        try:
            code = main(list(case.args))
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 71
        threading._shutdown()  # type: ignore[attr-defined]
        atexit._run_exitfuncs()
        sys.stdout.flush()
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(code)


def _audit(record: int, event: str, args: tuple[Any, ...]) -> None:
    if event == "open":
        path, _, flags = args
        if isinstance(path, int) or not flags & WRITES:
            return
        found = ["write", os.fsdecode(path)]
    elif event in CHANGES:
        if event != "os.truncate" and isinstance(args[-1], int) and args[-1] >= 0:
            return  # relative to an open folder, which shutil.rmtree has told
        first, last = event == "os.symlink", event in ("os.rename", "os.link", "os.symlink")
        paths = args[int(first) : 1 + last]
        found = ["write", *(os.fsdecode(path) for path in paths if not isinstance(path, int))]
    elif event == "sqlite3.connect":
        found = ["sqlite", str(args[0])]
    elif event in RUNS:
        found = ["runs", event, repr(args)[:300]]
    elif event in ("socket.connect", "socket.getaddrinfo"):
        found = ["network", repr(args[1] if event == "socket.connect" else args[0])[:100]]
    else:
        return
    os.write(record, json.dumps(found).encode() + b"\n")


def prepare_process(root: Path) -> Scratch:
    """A scratch folder, and this process made ready to fork cases."""
    scratch = Scratch(root)
    os.environ.update(scratch.environment() | {"OPENBLAS_NUM_THREADS": "1"})
    sys.path.insert(0, str(root / "site"))
    sys.dont_write_bytecode = True
    return scratch


def warm(scratch: Scratch) -> None:
    """Import what a run imports; make the model and, by one run, the caches."""
    from mlx_ft import runtime

    runtime.prepare(cache_dir=scratch.root / "home/.cache/mlx-ft")
    for name in ("matplotlib.pyplot", "mlx_ft.main", "mlx_ft.session", "mlx_ft.sweeper.trial"):
        importlib.import_module(name)
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    _first_run(scratch, "none", _make_inputs)


def make_database(scratch: Scratch) -> None:
    """A database as one run leaves it; each further case finds a copy (3 seconds less)."""
    importlib.import_module("mlflow.tracking")
    _first_run(scratch, "mlflow", lambda _: None)
    scratch.template = scratch.root / "mlflow.db"
    shutil.copy(scratch.cwd / "mlruns/mlflow.db", scratch.template)


def _first_run(scratch: Scratch, backend: str, before: Callable[[Path], None]) -> None:
    import mlx_ft.main

    def main(args: list[str]) -> int:
        before(scratch.root)
        return mlx_ft.main.main(args)

    outcome = run(Case("first", with_job([f"tracking={backend}"])), scratch, main)
    if outcome.code != 0:
        raise SystemExit(f"the job itself fails:\n{outcome.out}{outcome.err}")


def _make_inputs(root: Path) -> None:
    from tests.jobs import write_rows
    from tests.models import tiny

    tiny.save(root / "model")
    write_rows(root / "rows.jsonl", 6)
    write_rows(root / "valid.jsonl", 2)
