"""What is kept of a training job, and its file, which a full disk only delays."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mlx_ft import durable

logger = logging.getLogger(__name__)

JOB = "job.json"
LOG = "log.txt"
RUN = "run"
QUEUED, RUNNING, PAUSED = "queued", "running", "paused"
SUCCEEDED, FAILED, CANCELLED, INTERRUPTED = "succeeded", "failed", "cancelled", "interrupted"
ENDED = (SUCCEEDED, FAILED, CANCELLED)
CAN_GO_ON = (PAUSED, INTERRUPTED, FAILED)


@dataclass
class Job:
    """What is kept of a job. overrides: of `train`, made by the server. asked: what it was made of.
    wanted: what it is to become when its process ends.
    """

    id: str
    adapter: str
    model: str
    dataset: str
    overrides: list[str]
    asked: dict[str, Any]
    status: str = QUEUED
    created: float = 0.0
    started: float | None = None
    ended: float | None = None
    error: str | None = None
    wanted: str | None = None
    attempts: int = 0
    idempotency_key: str | None = None

    def content(self) -> bytes:
        """Of its file."""
        return (json.dumps(asdict(self), indent=1) + "\n").encode()


class Record:
    """The jobs' files. One that cannot be written is written later, as the job then is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._late: dict[str, Job] = {}
        self._told: set[str] = set()

    def write(self, job: Job) -> None:
        """Keep what the job is, and what is late. Raises no OSError, but logs it, once a job."""
        self._late.setdefault(job.id, job)
        self.catch_up()

    def catch_up(self) -> None:
        """Try again what is late."""
        for job in [*self._late.values()]:
            try:
                durable.write(self._folder / job.id / JOB, job.content())
            except OSError as error:
                if job.id not in self._told:
                    logger.error("job %s is %s, its file cannot be written: %s; it is tried again "
                                 "with the next change", job.id, job.status, error)  # fmt: skip
                self._told.add(job.id)
            else:
                del self._late[job.id]
                self._told.discard(job.id)
