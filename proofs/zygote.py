"""A process that has imported everything and forks: a training starts in a fraction of a second.

Reads one JSON object a line: {"arguments", "folder", "after", "event", "signal", "again", "watch",
"disk", "file_size", "env"}; forks a child that runs `train.py ARGUMENTS` in `folder`, and

- sends it `signal` after `after` seconds, and once more `again` seconds later;
- or kills it with SIGKILL at its `event`-th change of the file system;
- or lets its disk fail: `disk` are the arguments of `FaultyDisk`;
- or limits its files to `file_size` bytes each.

It answers {"code", "signal", "seconds", "since", "events", "rows", "calls"}. since: seconds from
the last signal to the end. rows: training steps in the file `watch` just before and just after the
first signal. calls: what a disk that may fail was asked for. What the child prints goes to
`output.txt` in its folder.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from mlx_ft.interrupt import die_quietly
from proofs.faulty_disk import FaultyDisk

CHANGES = frozenset({
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "fcntl.flock",
})  # fmt: skip


def prepare() -> None:
    """Import what a run imports, and compute nothing: threads do not survive a fork."""
    # ruff: noqa: F401
    from mlx_ft import runtime

    runtime.prepare()
    import matplotlib.backends.backend_agg
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking
    import mlx.core
    import transformers

    import mlx_ft.main
    import mlx_ft.plots
    import mlx_ft.run
    import mlx_ft.session
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    import mlx_lm.models.llama
    import mlx_lm.tuner.lora
    import mlx_lm.utils


def child(order: dict[str, Any]) -> None:
    """Run one training and leave with its exit code."""
    os.chdir(order["folder"])
    output = os.open("output.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    beside = None
    if "file_size" in order:  # which does not limit what is printed
        beside = subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=output)
        assert beside.stdin is not None
        output = beside.stdin.fileno()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(order.get("env", {}))
    count, last = 0, order.get("event")

    def watch(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        writes = (
            event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+")
        )
        if writes or event in CHANGES:
            count += 1
            if count == last:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(watch)
    disk = _restrain(order)
    code = 99
    die_quietly()  # as train.py does, or a signal after the run's end shows a traceback of ours
    try:
        from mlx_ft.main import main

        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        if beside is not None:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
            for descriptor in (1, 2, output):
                os.close(descriptor)
            beside.wait()
        Path("events.txt").write_text(json.dumps([count, disk.calls if disk else []]))
        os._exit(code)


def _restrain(order: dict[str, Any]) -> FaultyDisk | None:
    if (size := order.get("file_size")) is not None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    if (given := order.get("disk")) is None:
        return None
    disk = FaultyDisk(**{**given, "under": Path(given["under"])})
    disk.__enter__()
    return disk


def serve() -> None:
    """Answer orders until stdin ends."""
    prepare()
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        started = time.monotonic()
        pid = os.fork()
        if pid == 0:
            child(order)
        status, rows, told = _wait(pid, order)
        found = Path(order["folder"], "events.txt")
        whole = os.WIFEXITED(status) and found.exists()
        events, calls = json.loads(found.read_text()) if whole else (None, None)
        found.unlink(missing_ok=True)
        answer = {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "seconds": time.monotonic() - started,
            "since": None if told is None else time.monotonic() - told,
            "events": events,
            "rows": rows,
            "calls": calls,
        }
        print(json.dumps(answer), flush=True)


def _wait(pid: int, order: dict[str, Any]) -> tuple[int, list[int], float | None]:
    """The exit status, the steps done around the first signal, and when the last one was sent."""
    after, number = order.get("after"), order.get("signal", signal.SIGKILL)
    deadlines = [] if after is None else [time.monotonic() + after]
    if deadlines and order.get("again"):
        deadlines.append(deadlines[0] + order["again"])
    limit = time.monotonic() + 120
    rows: list[int] = []
    told = None
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status, rows, told
        if deadlines and time.monotonic() >= deadlines[0]:
            deadlines.pop(0)
            before = _steps(order)
            os.kill(pid, number)
            told = time.monotonic()
            rows = rows or [before, _steps(order)]
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGABRT)  # a hang is a failure
        time.sleep(0.001)


def _steps(order: dict[str, Any]) -> int:
    """Steps that the watched metrics tell of."""
    try:
        return Path(order["folder"], order["watch"]).read_bytes().count(b'"train/loss"')
    except (OSError, KeyError):
        return 0


if __name__ == "__main__":
    serve()
