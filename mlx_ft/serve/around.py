"""What a server does around a training job: memory before it, its adapter and a word after it."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from mlx_ft.runfolder import read_json
from mlx_ft.serve import shelf
from mlx_ft.serve.bases import composed
from mlx_ft.serve.job import RUN, Job
from mlx_ft.serve.plan import Plan, plan
from mlx_ft.serve.state import State

logger = logging.getLogger(__name__)


class Around:
    """As `jobs.Around` has it."""

    def __init__(self, state: State) -> None:
        self._state = state

    @contextmanager
    def room(self, job: Job) -> Iterator[None]:
        """Where both do not fit, the model leaves memory for as long as the job runs."""
        found = self._plan(job)
        if found is None or found.fits:
            yield
            return
        logger.info("job %s: %s: the model leaves memory until it has ended", job.id, found.said)
        self._state.leave(f"job {job.id} is training, and there is no memory for both")
        try:
            yield
        finally:
            self._state.come_back()

    def keep(self, job: Job) -> None:
        """Put the adapter of the run into the store, under the name that the job was given."""
        run = self._state.store.place("jobs", job.id) / RUN
        summary = read_json(run / "summary.json")
        about = {
            "base": job.model,
            "digest": shelf.origin(run),
            "job": job.id,
            "run_id": summary.get("run_id"),
            "created": int(time.time()),
        }
        self._state.shelf.put(job.adapter, run / "adapter", about)
        try:
            self._state.refresh(job.adapter)
        except Exception as error:  # the adapter is kept all the same
            logger.error("job %s: %s is kept, and cannot be loaded: %s", job.id, job.adapter, error)

    def after(self, job: Job) -> None:
        """Say in the log, and to the webhook, how the job has ended."""
        logger.info("job %s (%s): %s%s", job.id, job.adapter, job.status,
                    f": {job.error}" if job.error else "")  # fmt: skip
        url = self._state.settings.webhook
        if url is not None:
            arguments = (url, job)
            threading.Thread(target=self._tell, args=arguments, name="webhook", daemon=True).start()

    def _plan(self, job: Job) -> Plan | None:
        """None where it cannot be told: the job will say what is wrong."""
        try:
            return plan(composed(*job.overrides), self._state.settings.memory)
        except Exception as error:
            logger.warning("job %s: its memory cannot be estimated: %s", job.id, error)
            return None

    def _tell(self, url: str, job: Job) -> None:
        from mlx_ft.tracking.webhook import notify

        run = self._state.store.home / "jobs" / job.id / RUN
        summary = {**read_json(run / "summary.json"), "status": job.status, "reason": job.error}
        notify(url, summary, run, job.adapter)
