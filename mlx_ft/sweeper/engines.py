"""What runs workers: joblib on this machine, submitit for SLURM, Ray for a cluster.

Each is a library of its own that is imported only when it is asked for.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from mlx_ft.errors import ConfigError
from mlx_ft.sweeper.worker import Job, deaf, work

Answer = tuple[int, dict[str, Any]]
ATTEMPTS = 2  # of a trial whose process dies: the second one goes on from its checkpoint
POLL = 0.5  # seconds
NEEDED = {"joblib": "joblib", "submitit_local": "submitit", "submitit_slurm": "submitit",
          "ray": "ray"}  # fmt: skip
DIED = "its process died twice, at last with no other trial beside it (was it out of memory?)"
UNBORN = "the workers die before they begin (is there memory for them?)"


class Engine(Protocol):
    """Runs jobs in workers."""

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """Yield each job's number and row as it ends, in whatever order."""

    def stop(self) -> None:
        """Ask what runs to end now; called from a signal handler."""


def engine_of(name: str, n_jobs: int, settings: Mapping[str, Any], folder: str) -> Engine:
    """The engine of a launcher's name. folder: the sweep's.

    Raises ConfigError for wrong settings, and when its library is not installed.
    """
    if name == "together":
        from mlx_ft.sweeper.together import Together

        return Together(n_jobs)
    if n_jobs < 1:
        raise ConfigError(f"hydra.launcher.n_jobs: found {n_jobs}; expected 1 or more")
    library = NEEDED[name]
    if find_spec(library) is None:
        raise ConfigError(
            f"hydra/launcher={name} needs the package {library}, which is not installed: "
            f"pip install {library}"
        )
    given = {key: value for key, value in settings.items() if value not in (None, {})}
    if name == "joblib":
        return Joblib(n_jobs, given)
    if name == "ray":
        return Ray(n_jobs, given)
    return Submitit(name.removeprefix("submitit_"), n_jobs, given, folder)


def _unknown(settings: Mapping[str, Any]) -> ConfigError:
    names = ", ".join(sorted(settings))
    return ConfigError(f"hydra.launcher: this launcher knows no {names}")


class Joblib:
    """Processes of this machine. One that dies takes the others with it: they go on again."""

    def __init__(self, n_jobs: int, settings: Mapping[str, Any]) -> None:
        if settings:
            raise _unknown(settings)
        self._n_jobs = n_jobs
        self._pids: list[Path] = []

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """See Engine. After a death the trials that had begun go on one at a time."""
        self._pids = [job.pid for job in jobs]
        left = {job.number: job for job in jobs}
        yield from self._together(left)
        deaths = 0
        while left:  # a worker has died
            begun = [job for job in left.values() if job.log.exists()]
            deaths += not begun
            if deaths == ATTEMPTS:
                yield from ((number, {"status": "FAILED", "error": UNBORN}) for number in left)
                return
            for job in begun:
                alone = {job.number: job}
                yield from self._together(alone)
                del left[job.number]
                if alone:
                    yield job.number, {"status": "FAILED", "error": DIED}
            yield from self._together(left)

    def _together(self, left: dict[int, Job]) -> Iterator[Answer]:
        """Run them until a worker dies; takes out of `left` whatever came to an end."""
        from joblib import Parallel, delayed

        # Never 1: joblib would run it in this very process.
        pool = Parallel(
            max(2, self._n_jobs), return_as="generator_unordered", batch_size=1, initializer=deaf
        )
        with suppress(BrokenProcessPool):
            for number, row in pool(delayed(work)(job) for job in [*left.values()]):
                del left[number]
                yield number, row

    def stop(self) -> None:
        """See Engine."""
        for file in self._pids:
            with suppress(OSError, ValueError):
                os.kill(int(file.read_text()), signal.SIGTERM)


class Submitit:
    """Jobs of SLURM, or processes of this machine in the same way."""

    def __init__(self, cluster: str, n_jobs: int, settings: Mapping[str, Any], folder: str) -> None:
        import submitit

        self._cluster, self._n_jobs = cluster, n_jobs
        self._running: dict[int, Any] = {}
        try:
            self._executor = submitit.AutoExecutor(f"{folder}/submitit", cluster=cluster)
        except RuntimeError as error:  # no srun
            raise ConfigError(
                f"hydra/launcher=submitit_{cluster}: {error} Start it on a machine of the cluster, "
                "or take hydra/launcher=submitit_local"
            ) from error
        try:
            self._executor.update_parameters(**settings)
        except (NameError, TypeError, ValueError) as error:
            raise ConfigError(f"hydra.launcher: {error}") from error

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """See Engine."""
        waiting = deque(jobs)
        while waiting or self._running:
            while waiting and len(self._running) < self._n_jobs:
                job = waiting.popleft()
                self._running[job.number] = self._executor.submit(work, job)
            for number, task in [*self._running.items()]:
                if task.done():
                    del self._running[number]
                    yield number, _answer(task)
            time.sleep(POLL)

    def stop(self) -> None:
        """See Engine."""
        for task in [*self._running.values()]:
            if self._cluster == "local":  # whose `cancel` gives a second to save
                with suppress(OSError, ValueError):
                    os.kill(int(task.job_id), signal.SIGTERM)
            else:
                task.cancel(check=False)


def _answer(task: Any) -> dict[str, Any]:
    try:
        _, row = task.result()
    except Exception as error:  # whatever the worker or the cluster says
        lines = [line for line in str(error).splitlines() if line.strip()]
        return {"status": "FAILED", "error": f"its job ended: {lines[-1] if lines else error!r}"}
    found: dict[str, Any] = row
    return found


class Ray:
    """Tasks of a Ray cluster, or of one that is started here. address: of a running cluster."""

    def __init__(self, n_jobs: int, settings: Mapping[str, Any]) -> None:
        known = {"address", "num_cpus", "num_gpus"}
        if unknown := {key: settings[key] for key in settings.keys() - known}:
            raise _unknown(unknown)
        self._n_jobs, self._settings = n_jobs, settings
        self._running: dict[Any, int] = {}

    def run(self, jobs: Sequence[Job]) -> Iterator[Answer]:
        """See Engine."""
        # Under `uv run` Ray would start its workers by that, in an environment without Ray.
        os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
        import ray

        address = self._settings.get("address")
        cores = max(os.cpu_count() or 1, self._n_jobs)
        local = {} if address else {"num_cpus": cores, "include_dashboard": False}
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(address=address, log_to_driver=False, **local)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)  # Ray has put its own there
        need = {key: self._settings[key] for key in ("num_cpus", "num_gpus")
                if key in self._settings}  # fmt: skip
        remote = ray.remote(**{"num_cpus": 1, "max_retries": ATTEMPTS - 1, **need})(work)
        waiting = deque(jobs)
        try:
            while waiting or self._running:
                while waiting and len(self._running) < self._n_jobs:
                    job = waiting.popleft()
                    self._running[remote.remote(job)] = job.number
                ready, _ = ray.wait([*self._running], timeout=POLL)
                for task in ready:
                    yield self._running.pop(task), _answer(_Result(ray, task))
        finally:
            ray.shutdown()

    def stop(self) -> None:
        """See Engine."""
        import ray

        for task in [*self._running]:
            ray.cancel(task, force=False)


class _Result:
    """A Ray task that is answered for as the others are."""

    def __init__(self, ray: Any, task: Any) -> None:
        self._ray, self._task = ray, task

    def result(self) -> Any:
        return self._ray.get(self._task)
