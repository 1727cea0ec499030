"""Several trials at once, each in a worker of an engine: processes here, SLURM or Ray elsewhere.

What a worker is told and what it answers travels by the engine; everything else lies in the
sweep's folder, which all workers see.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from mlx_ft.errors import Interrupted
from mlx_ft.interrupt import TWICE, StopSignal
from mlx_ft.sweeper.engines import Engine
from mlx_ft.sweeper.trial import TRIAL_NAME
from mlx_ft.sweeper.worker import STOP, WORKERS, Job

Row = Mapping[str, Any]


def launch(
    engine: Engine,
    config: DictConfig,
    context: HydraContext,
    task: TaskFunction,
    overrides: Sequence[Sequence[str]],
    first: int,
) -> list[JobReturn]:
    """Run a trial for each list of arguments and say how each ended when it has.

    Returns the answers in the order of the trials; a worker that died has left none. Raises
    KeyboardInterrupt after a signal, once the trials that were running have saved themselves.
    """
    folder = Path(str(config.hydra.sweep.dir)).absolute()
    folder.mkdir(parents=True, exist_ok=True)
    state = Singleton.get_state()
    jobs = [
        Job(first + at, tuple(given), folder, config, context, task, state).going_on()
        for at, given in enumerate(overrides)
    ]
    for path in (folder / STOP, *(path for job in jobs for path in (job.log, job.pid))):
        path.unlink(missing_ok=True)  # of an earlier time
    answers = {job.number: JobReturn(overrides=job.arguments) for job in jobs}
    print(f"What trials say on the way: {folder / WORKERS}, and each one's train.log", flush=True)
    with _stopping(engine, folder):
        names = {job.number: _name(job) for job in jobs}
        for done, (number, row) in enumerate(engine.run(jobs), 1):
            print(_ended(names[number], row, done, len(jobs)), flush=True)
            answers[number].return_value = row
            answers[number].status = JobStatus.COMPLETED
    return [answers[job.number] for job in jobs]


def _name(job: Job) -> str:
    start = f"++hydra.job.env_set.{TRIAL_NAME}="
    given = (text.removeprefix(start) for text in job.arguments if text.startswith(start))
    return next(given, f"trial {job.number}").strip("'")


def _ended(name: str, row: Row, done: int, count: int) -> str:
    figure = row.get("objective")
    shown = f" {figure:.4f}" if isinstance(figure, float) else ""
    why = f": {row['error']}" if row.get("error") else ""
    return f"{name}: {row['status']}{shown}{why} ({done} of {count})"


@contextmanager
def _stopping(engine: Engine, folder: Path) -> Iterator[None]:
    """A signal is passed on to the workers, which save their trials; a second one ends us."""
    came: list[int] = []
    since = 0.0

    def note(number: int, _: FrameType | None) -> None:
        nonlocal since
        if came:
            if time.monotonic() - since > TWICE:
                os._exit(128 + number)
            return
        came.append(number)
        since = time.monotonic()
        with suppress(OSError):
            os.write(2, b"\nstopping: running trials save themselves first; again: at once\n")
            (folder / STOP).touch()
        engine.stop()

    main = threading.current_thread() is threading.main_thread()
    wanted = [s for s in StopSignal.SIGNALS if main and signal.getsignal(s) is not signal.SIG_IGN]
    previous = {s: signal.signal(s, note) for s in wanted}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        (folder / STOP).unlink(missing_ok=True)
    if came:
        name = signal.Signals(came[0]).name
        sys.stdout.flush()
        raise KeyboardInterrupt(f"stopped by {name}") from Interrupted(
            f"stopped by {name}", came[0]
        )
