"""A process that has imported everything and forks: a training starts in a fraction of a second.

Reads one JSON object a line: {"arguments", "folder", "after", "event", "signal", "env"}; forks a
child that runs `train.py ARGUMENTS` in `folder`, sends it `signal` after `after` seconds, or kills
it with SIGKILL at its `event`-th change of the file system; answers {"code", "signal", "seconds",
"events"}. What the child prints goes to `output.txt` in its folder.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

CHANGES = frozenset({
    "os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree", "fcntl.flock",
})  # fmt: skip


def prepare() -> None:
    """Import what a run imports, and compute nothing: threads do not survive a fork."""
    from mlx_ft import runtime

    runtime.prepare()
    import matplotlib.backends.backend_agg
    import mlflow.store.tracking.sqlalchemy_store
    import mlflow.tracking
    import mlx.core
    import transformers  # noqa: F401

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
    code = 99
    try:
        from mlx_ft.main import main

        code = main(order["arguments"])
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        Path("events.txt").write_text(str(count))
        os._exit(code)


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
        status = _wait(pid, order.get("after"), order.get("signal", signal.SIGKILL))
        events = Path(order["folder"], "events.txt")
        answer = {
            "code": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
            "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
            "seconds": time.monotonic() - started,
            "events": int(events.read_text()) if os.WIFEXITED(status) and events.exists() else None,
        }
        print(json.dumps(answer), flush=True)


def _wait(pid: int, after: float | None, number: int) -> int:
    deadline = None if after is None else time.monotonic() + after
    limit = time.monotonic() + 120
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return status
        if deadline is not None and time.monotonic() >= deadline:
            os.kill(pid, number)
            deadline = None
        if time.monotonic() > limit:
            os.kill(pid, signal.SIGABRT)  # a hang is a failure
        time.sleep(0.001)


if __name__ == "__main__":
    serve()
