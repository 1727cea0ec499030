"""Training jobs: a queue that survives the server, one job at a time, each in its own process."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

from mlx_ft import durable
from mlx_ft.errors import UserError
from mlx_ft.runfolder import LOCK, read_json
from mlx_ft.serve import names
from mlx_ft.serve.job import (
    CAN_GO_ON,
    ENDED,
    FAILED,
    INTERRUPTED,
    JOB,
    LOG,
    PAUSED,
    QUEUED,
    RUN,
    RUNNING,
    SUCCEEDED,
    Job,
    Record,
)
from mlx_ft.serve.store import Missing, Store

logger = logging.getLogger(__name__)

COMMAND = (sys.executable, "-P", "-m", "mlx_ft.serve.child")  # -P: nothing of its folder is code
GRACE = 60.0  # seconds that a job has to save itself
LAST_WORDS = 2000  # characters of a log that may say why
LONGEST_QUEUE = 100


class Conflict(UserError):
    """What is asked does not go with the job's state."""


class Full(UserError):
    """So many jobs are waiting that no other one is taken."""


class Around(Protocol):
    """What is done around a job's process, on the thread that waits for it."""

    def room(self, job: Job) -> AbstractContextManager[None]:
        """There is memory for the job while this is entered."""

    def keep(self, job: Job) -> None:
        """Take over what the job has made, before it is said to have succeeded."""

    def after(self, job: Job) -> None:
        """The job has ended, or was stopped; it says how."""


class Jobs:
    """The jobs of a store, done one after another.

    naming: held from the look for a free name until the job that has it is in the queue.
    """

    def __init__(self, store: Store, around: Around) -> None:
        self._store, self._around = store, around
        self._record = Record(store.home / "jobs")
        self._changed, self.naming = threading.Condition(), threading.Lock()
        self._jobs: dict[str, Job] = {}
        self._process: subprocess.Popen[bytes] | None = None
        self._current: str | None = None
        self._told = False
        self._closing = False
        self._read_all()
        self._worker = threading.Thread(target=self._work, name="jobs", daemon=True)

    def start(self) -> None:
        """Begin to work through the queue."""
        self._worker.start()

    def add(self, job: Job, files: Mapping[str, bytes] = MappingProxyType({})) -> Job:
        """Queue a job; the one that there is for its idempotency key, if there is one.

        files: to lie in its folder, which are its data: nothing else can change or remove them.
        Raises Conflict, Full.
        """
        with self._changed:
            for known in self._jobs.values():
                if job.idempotency_key and known.idempotency_key == job.idempotency_key:
                    if known.asked != job.asked:
                        raise Conflict("this idempotency key was used for another job")
                    return known
            waiting = sum(known.status == QUEUED for known in self._jobs.values())
            if waiting >= LONGEST_QUEUE:
                raise Full(f"{waiting} jobs are waiting already")
            job.created = time.time()
            self._store.put("jobs", job.id, {**files, JOB: job.content()}, {})
            self._record.catch_up()
            self._jobs[job.id] = job
            self._changed.notify_all()
            return job

    def get(self, job_id: str) -> Job:
        """Raises Missing."""
        with self._changed:
            if job_id not in self._jobs:
                raise Missing(f"there is no job {job_id[:40]!r}")
            return self._jobs[job_id]

    def all(self) -> list[Job]:
        """The newest first."""
        with self._changed:
            return sorted(self._jobs.values(), key=lambda job: job.created, reverse=True)

    def stop(self, job_id: str, wanted: str) -> Job:
        """Let a job become CANCELLED or PAUSED. Raises Missing, Conflict."""
        job = self.get(job_id)
        with self._changed:
            before = job.status
            if before in (QUEUED, PAUSED, INTERRUPTED):
                self._become(job, wanted)
            elif before == RUNNING:
                job.wanted = wanted
                if self._current == job.id:
                    self._tell_to_stop()
                self._record.write(job)
            elif before != wanted:
                raise Conflict(f"job {job.id} has {before}")
        if before not in (RUNNING, wanted):  # of one that runs, the worker says so
            self._after(job)
        return job

    def resume(self, job_id: str) -> Job:
        """Queue a stopped job again: it goes on from its checkpoint. Raises Missing, Conflict."""
        job = self.get(job_id)
        with self._changed:
            if job.status not in CAN_GO_ON:
                raise Conflict(f"job {job.id} is {job.status}, and cannot be resumed")
            job.error = job.wanted = job.ended = None
            self._become(job, QUEUED)
            self._changed.notify_all()
        return job

    def folder(self, job: Job) -> Path:
        """Of its run."""
        return self._store.home / "jobs" / job.id / RUN

    def log(self, job: Job) -> Path:
        """What its process has said."""
        return self._store.home / "jobs" / job.id / LOG

    def close(self) -> None:
        """Stop what runs, which saves itself; the queue stays for the next start."""
        with self._changed:
            self._closing = True
            self._tell_to_stop()
            self._changed.notify_all()
        if self._worker.is_alive():
            self._worker.join(GRACE)
        with self._changed:
            self._record.catch_up()

    def _tell_to_stop(self) -> None:
        """Once: a second signal would end the process before it has saved itself."""
        if self._process is not None and not self._told:
            self._told = True
            self._process.send_signal(signal.SIGTERM)

    # What follows runs on the worker's thread, but for `_become` and `_after`.

    def _work(self) -> None:
        while (job := self._next()) is not None:
            try:
                with self._around.room(job):
                    code = self._run(job)
                if code == 0:
                    self._around.keep(job)
                self._end(job, code)
            except Exception as error:
                with self._changed:
                    job.error = f"{type(error).__name__}: {error}"
                    self._become(job, FAILED)
            self._after(job)

    def _next(self) -> Job | None:
        """The oldest in the queue, running now; None when the server closes."""
        with self._changed:
            while not self._closing:
                queued = [job for job in self._jobs.values() if job.status == QUEUED]
                if queued:
                    job = min(queued, key=lambda one: one.created)
                    self._become(job, RUNNING)
                    return job
                self._changed.wait()
        return None

    def _after(self, job: Job) -> None:
        try:
            self._around.after(job)
        except Exception:
            logger.exception("after job %s", job.id)

    def _run(self, job: Job) -> int:
        self._wait_for_earlier(self.folder(job))
        command = [
            *COMMAND, *job.overrides,
            f"hydra.run.dir={_quoted(self.folder(job))}", "train.resume=auto",
        ]  # fmt: skip
        with self.log(job).open("ab") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=log, stderr=log, cwd=self._store.home,
                start_new_session=True,  # Ctrl-C on the terminal is for the server
            )  # fmt: skip
        with self._changed:
            self._process, self._current, self._told = process, job.id, False
            if job.wanted is not None or self._closing:
                self._tell_to_stop()
        try:
            return process.wait()
        finally:
            with self._changed:
                self._process = self._current = None
            if process.stdin is not None:
                process.stdin.close()

    def _wait_for_earlier(self, run: Path) -> None:
        """A process of a server that was killed may still be saving the run."""
        until = time.monotonic() + GRACE
        while run.is_dir() and time.monotonic() < until and not self._closing:
            try:
                durable.lock(run / LOCK).close()
                return
            except BlockingIOError:
                time.sleep(0.2)

    def _end(self, job: Job, code: int) -> None:
        summary = read_json(self.folder(job) / "summary.json")
        with self._changed:
            if code == 0:
                status = SUCCEEDED
            elif job.wanted is not None:
                status = job.wanted
            elif self._closing or code < 0 or code >= 128:
                status, job.error = INTERRUPTED, f"its process ended by signal {_signal(code)}"
            else:
                status, job.error = FAILED, summary.get("reason") or self._last_words(job)
            self._become(job, status)

    def _last_words(self, job: Job) -> str:
        try:
            return self.log(job).read_text("utf-8", "replace")[-LAST_WORDS:].strip()
        except OSError as error:
            return str(error)

    def _become(self, job: Job, status: str) -> None:
        job.status = status
        if status == RUNNING:
            job.started, job.attempts = time.time(), job.attempts + 1
        if status in ENDED:
            job.ended = time.time()
        self._record.write(job)

    def _read_all(self) -> None:
        """The jobs of an earlier server; what ran then was interrupted with it."""
        known = {one.name for one in fields(Job)}
        for name in self._store.names("jobs"):
            kept = read_json(self._store.place("jobs", name) / JOB)
            if not names.is_id(name, "job") or kept.get("id") != name:
                continue
            job = Job(**{key: value for key, value in kept.items() if key in known})
            self._jobs[name] = job
            if job.status == RUNNING:
                job.error = "the server ended while it ran"
                self._become(job, job.wanted or INTERRUPTED)


def _signal(code: int) -> int:
    return -code if code < 0 else code - 128


def _quoted(path: Path) -> str:
    from mlx_ft.config import quoted

    return quoted(os.fspath(path))
