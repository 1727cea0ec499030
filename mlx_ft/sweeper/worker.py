"""One trial in a process of its own: what every engine calls there."""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.singleton import Singleton
from hydra.core.utils import run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, open_dict

STOP = ".stop"  # in the sweep's folder: no trial begins any more
WORKERS = (
    "workers"  # in the sweep's folder: what trials have said on the terminal that is not there
)
RESUME = "++train.resume=auto"


@dataclass(frozen=True)
class Job:
    """A trial on its way to a worker. folder: the sweep's."""

    number: int
    arguments: tuple[str, ...]
    folder: Path
    config: DictConfig
    context: HydraContext
    task: TaskFunction
    singletons: Any

    @property
    def log(self) -> Path:
        """What the trial has said; there once it has begun."""
        return self.folder / WORKERS / f"{self.number}.log"

    @property
    def pid(self) -> Path:
        """Names the process that the trial runs in; there while it does."""
        return self.log.with_suffix(".pid")

    def going_on(self) -> Job:
        """The same one, which goes on with what an earlier attempt has left."""
        if any(text.lstrip("+").startswith("train.resume=") for text in self.arguments):
            return self
        return replace(self, arguments=(*self.arguments, RESUME))


def work(job: Job) -> tuple[int, dict[str, Any]]:
    """Run the trial; returns its number and its row."""
    if (job.folder / STOP).exists():
        return job.number, {"status": "NOT RUN"}
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        log = stack.enter_context(job.log.open("a", buffering=1))
        stack.enter_context(_listening(job.pid))
        stack.enter_context(redirect_stdout(log))
        stack.enter_context(redirect_stderr(log))
        return job.number, attempt(job)


def attempt(job: Job) -> dict[str, Any]:
    """The trial's row, whatever comes in its way, as Hydra may raise an error of its own."""
    try:
        return run_here(job)
    except KeyboardInterrupt:
        return {"status": "KILLED"}
    except Exception as error:
        if (job.folder / STOP).exists():  # what interrupted code has made of the signal
            return {"status": "KILLED"}
        traceback.print_exc()
        return {"status": "FAILED", "error": f"{type(error).__name__}: {error}"}


def deaf() -> None:
    """A worker without a trial has nothing to save: a signal is for the others."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def _listening(pid: Path) -> Iterator[None]:
    """While a trial runs a signal ends it, as it would end a process of its own."""
    main = threading.current_thread() is threading.main_thread()
    for number in (signal.SIGINT, signal.SIGTERM) if main else ():
        signal.signal(number, signal.default_int_handler)
    pid.write_text(str(os.getpid()))
    try:
        yield
    finally:
        pid.unlink(missing_ok=True)
        if main:
            deaf()


def run_here(job: Job) -> dict[str, Any]:
    """Compose the trial's configuration and run it; returns its row."""
    setup_globals()
    Singleton.set_state(job.singletons)
    loader: Any = job.context.config_loader
    config = loader.load_sweep_config(job.config, [*job.arguments])
    with open_dict(config.hydra.job):
        config.hydra.job.id, config.hydra.job.num = str(job.number), job.number
    HydraConfig.instance().set_config(config)
    done = run_job(
        hydra_context=job.context,
        task_function=job.task,
        config=config,
        job_dir_key="hydra.sweep.dir",
        job_subdir_key="hydra.sweep.subdir",
    )
    row: Mapping[str, Any] = done.return_value
    return dict(row)
