"""Jobs watched: their log by pages, their figures, and what happens as server-sent events."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path as Folder
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query
from starlette.responses import StreamingResponse

from mlx_ft.runfolder import METRICS
from mlx_ft.serve.job import ENDED, INTERRUPTED, PAUSED, Job
from mlx_ft.serve.progress import Tail, progress, rows
from mlx_ft.serve.schemas import LONGEST_NAME
from mlx_ft.serve.server import Here, Server

EVERY = 0.5  # seconds between two looks
QUIET = 15.0  # seconds after which a comment says that the connection is alive
PAGE = 1 << 16  # bytes of a log
# How the reference system calls what a job is.
STATUS = {"succeeded": "completed", "paused": "stopped"}
router = APIRouter(prefix="/api/training", tags=["training"])
JobId = Annotated[str, Path(max_length=LONGEST_NAME)]


def status(here: Server, job: Job) -> dict[str, Any]:
    """A job as the reference system shows one."""
    found = progress(here.jobs.folder(job))
    return {
        "job_id": job.id,
        "status": STATUS.get(job.status, job.status),
        "progress": 100.0 if job.status == "succeeded" else round(found.percent, 1),
        "current_step": found.step,
        "total_steps": found.total,
        "loss": found.loss,
        "metrics": dict(found.metrics),
        "error": job.error,
        "adapter_name": job.adapter,
        "model_name": job.model,
        "dataset_name": job.dataset,
        "created": job.created,
        "started": job.started,
        "ended": job.ended,
    }


@router.get("/logs/{job_id}", summary="A job's log, by pages")
def log(
    job_id: JobId,
    here: Here,
    offset: Annotated[int, Query(ge=0, lt=1 << 40)] = 0,
    limit: Annotated[int, Query(ge=1, le=1 << 20)] = PAGE,
) -> dict[str, Any]:
    """offset: in bytes; go on with `next_offset`. A page ends with a line where it has one."""
    path = here.jobs.log(here.jobs.get(job_id))
    content, size = b"", 0
    if path.is_file():
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(offset)
            content = file.read(limit)
    if (end := content.rfind(b"\n") + 1) and offset + len(content) < size:
        content = content[:end]
    return {
        "job_id": job_id,
        "text": content.decode("utf-8", "replace"),
        "offset": offset,
        "next_offset": offset + len(content),
        "size": size,
    }


@router.get("/metrics/{job_id}", summary="A job's figures")
def metrics(
    job_id: JobId,
    here: Here,
    after: Annotated[int, Query(ge=0, lt=1 << 40, description="Rows to leave out.")] = 0,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 1000,
) -> dict[str, Any]:
    """One row for each step or validation, as in the run's `metrics.jsonl`."""
    found = rows(here.jobs.folder(here.jobs.get(job_id)), after)
    return {"job_id": job_id, "rows": found[:limit], "has_more": len(found) > limit}


EVENTS: dict[int | str, dict[str, Any]] = {
    200: {"description": "status, metrics, end", "content": {"text/event-stream": {}}}
}


@router.get("/events/{job_id}", responses=EVENTS, summary="What happens to a job, as it happens")
def events(job_id: JobId, here: Here) -> StreamingResponse:
    """Server-sent events: `status` when it changes, `metrics` of each step, `end` at last."""
    job = here.jobs.get(job_id)
    headers = {"cache-control": "no-store"}
    return StreamingResponse(_events(here, job), headers=headers, media_type="text/event-stream")


async def _events(here: Server, job: Job) -> AsyncIterator[str]:
    tail, before, quiet = Tail(_metrics(here, job)), "", 0.0
    while True:
        ended = job.status in (*ENDED, PAUSED, INTERRUPTED)
        rows = await asyncio.to_thread(tail.more)
        said = [_event("metrics", row) for row in rows]
        if job.status != before:
            before = job.status
            said.append(_event("status", await asyncio.to_thread(status, here, job)))
        if ended or here.state.closing.is_set():
            said.append(_event("end", {"job_id": job.id, "status": STATUS.get(before, before)}))
            yield "".join(said)
            return
        quiet += EVERY
        if said or quiet >= QUIET:
            yield "".join(said) or ": still here\n\n"
            quiet = 0.0
        await asyncio.sleep(EVERY)


def _metrics(here: Server, job: Job) -> Folder:
    return here.jobs.folder(job) / METRICS


def _event(name: str, content: dict[str, Any]) -> str:
    return f"event: {name}\ndata: {json.dumps(content)}\n\n"
