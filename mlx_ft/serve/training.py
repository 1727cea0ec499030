"""The reference system's own paths: data in, a job, its status, and the adapter's name."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Annotated, Any

from fastapi import APIRouter, Header, Path, Query, Request
from pydantic import Field, ValidationError
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from mlx_ft.serve import names, rows
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.job import CANCELLED, PAUSED, QUEUED
from mlx_ft.serve.parameters import Lora, Order, Training
from mlx_ft.serve.schemas import LONGEST_NAME, Closed, Name, Text
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.store import Missing
from mlx_ft.serve.watching import JobId, status

router = APIRouter(prefix="/api/training", tags=["training"])
Texts = Annotated[list[Text], Field(min_length=1, max_length=rows.MOST_ROWS)]
Key = Annotated[str | None, Header(alias="Idempotency-Key", max_length=255)]
Named = Annotated[str, Path(max_length=LONGEST_NAME)]


class Upload(Closed):
    """Texts, or rows of messages, under a name."""

    dataset_name: Name
    train_texts: Texts | None = None
    messages: (
        Annotated[list[dict[str, Any]], Field(min_length=1, max_length=rows.MOST_ROWS)] | None
    ) = None


class Start(Closed):
    """A training job."""

    model_name: Name
    dataset_name: Name | None = None
    train_texts: Texts | None = None
    lora_config: Lora = Field(default_factory=Lora)
    training_config: Training = Field(default_factory=Training)
    output_dir: Annotated[str, Field(max_length=1000)] | None = Field(
        None, description="Only its last part is used, as the adapter's name."
    )


UPLOAD = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": {"schema": Upload.model_json_schema()},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["dataset_name", "file"],
                    "properties": {
                        "dataset_name": {"type": "string"},
                        "file": {"type": "string", "format": "binary"},
                    },
                }
            },
        },
    }
}


@router.post("/data/upload", openapi_extra=UPLOAD, summary="Upload data to train on")
async def upload(http: Request, here: Here) -> dict[str, Any]:
    """JSON with `train_texts` or `messages`, or a file as multipart/form-data.

    Texts of the form `### Instruction: ... ### Response: ...` become questions with answers.
    """
    kind = http.headers.get("content-type", "").partition(";")[0].strip().lower()
    async with here.uploads:
        if kind == "multipart/form-data":
            async with http.form(max_files=1, max_fields=4) as form:
                file, name = form.get("file"), form.get("dataset_name")
                if not isinstance(file, UploadFile) or not isinstance(name, str):
                    raise Refused("expected the fields dataset_name and file", 422,
                                  code="missing_required_parameter")  # fmt: skip
                content = await file.read()
            return await run_in_threadpool(_of_file, here, name, content)
        if kind != "application/json":
            raise Refused(f"content-type: found {kind[:100]!r}; expected application/json or "
                          "multipart/form-data", 415, code="unsupported_media_type")  # fmt: skip
        return await run_in_threadpool(_of_body, here, await http.body())


@router.post("/start", summary="Start a training job")
def start(request: Start, here: Here, key: Key = None) -> dict[str, Any]:
    """Queued; one job runs at a time. The same Idempotency-Key gives the same job."""
    base = here.bases.find(request.model_name)
    if base is None:
        known = ", ".join(base.name for base in here.bases)
        raise Refused(f"The model {request.model_name!r} does not exist. There is: {known}", 404,
                      code="model_not_found", param="model_name")  # fmt: skip
    dataset, content, said = _data(here, request)
    adapter = _adapter(request, dataset, content)
    order = Order(
        base, adapter, dataset, content, lora=request.lora_config, training=request.training_config,
        asked=request.model_dump(exclude={"train_texts"}), key=key,
    )  # fmt: skip
    with here.jobs.naming:
        replaces = _is_there(here, adapter)
        job, fresh = order.place(here)
    told = {**status(here, job), "message": said, "replaces_adapter": replaces}
    return {**told, "status": QUEUED} if fresh else told


@router.get("/status/{job_id}", summary="How far a job is")
def get_status(job_id: JobId, here: Here) -> dict[str, Any]:
    """progress: 0 to 100."""
    return status(here, here.jobs.get(job_id))


@router.post("/stop/{job_id}", summary="Stop a job; it can be resumed")
def stop(job_id: JobId, here: Here) -> dict[str, Any]:
    """It finishes its step and saves a checkpoint; its status is `stopped` once it has."""
    return status(here, here.jobs.stop(job_id, PAUSED))


@router.post("/cancel/{job_id}", summary="Stop a job for good")
def cancel(job_id: JobId, here: Here) -> dict[str, Any]:
    """It cannot be resumed."""
    return status(here, here.jobs.stop(job_id, CANCELLED))


@router.post("/resume/{job_id}", summary="Go on with a job")
def resume(job_id: JobId, here: Here) -> dict[str, Any]:
    """One that was stopped, interrupted, or has failed: from its last checkpoint."""
    return status(here, here.jobs.resume(job_id))


@router.get("/jobs", summary="All jobs")
def list_jobs(
    here: Here,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
    offset: Annotated[int, Query(ge=0, le=1 << 40)] = 0,
) -> dict[str, Any]:
    """The newest first."""
    jobs = here.jobs.all()
    found = [status(here, job) for job in jobs[offset : offset + limit]]
    return {"jobs": found, "total": len(jobs)}


def _of_body(here: Server, body: bytes) -> dict[str, Any]:
    try:
        asked = Upload.model_validate(json.loads(body))
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        raise Refused(f"{place or 'the body'}: {first['msg']}", 422, code="invalid_value",
                      param=place or None) from None  # fmt: skip
    except (ValueError, RecursionError) as error:
        raise Refused(f"the body is not JSON: {error}", 422, code="invalid_json") from None
    if (asked.train_texts is None) == (asked.messages is None):
        raise Refused("expected either train_texts or messages", 422, code="invalid_value")
    if asked.train_texts is not None:
        content, said = rows.of_texts(asked.train_texts)
    else:
        given = asked.messages or []
        # A list of turns alone is one conversation.
        single = all("role" in row for row in given)
        content = rows.as_lines([{"messages": given}] if single else given)
        said = f"{1 if single else len(given)} conversations are trained as they are"
    return _keep(here, asked.dataset_name, content, said)


def _of_file(here: Server, name: str, content: bytes) -> dict[str, Any]:
    content, said = rows.of_file(content, "file")
    return _keep(here, name, content, said)


def _keep(here: Server, name: str, content: bytes, said: str) -> dict[str, Any]:
    names.checked(name, "dataset_name")
    rows.look(here.store, content, "rows")
    replaced = _has_data(here, name)
    count = content.count(b"\n")
    about = {"rows": count, "bytes": len(content), "said": said, "digest": rows.digest(content)}
    here.store.put("datasets", name, {rows.ROWS: content}, about, replace=True)
    return {"status": "uploaded", "dataset_name": name, "rows": count, "bytes": len(content),
            "message": said, "replaced": replaced}  # fmt: skip


def _has_data(here: Server, name: str) -> bool:
    try:
        here.store.place("datasets", name)
    except Missing:
        return False
    return True


def _is_there(here: Server, adapter: str) -> bool:
    try:
        here.shelf.find(adapter)
    except Missing:
        return False
    return True


def _data(here: Server, request: Start) -> tuple[str, bytes, str]:
    """(name, rows, what was made of them)."""
    if (request.dataset_name is None) == (request.train_texts is None):
        raise Refused("expected either dataset_name or train_texts", 422, code="invalid_value",
                      param="dataset_name")  # fmt: skip
    if request.dataset_name is not None:
        name = names.checked(request.dataset_name, "dataset_name")
        said = str(here.store.about("datasets", name).get("said", ""))
        return name, here.store.read("datasets", name, rows.ROWS), said
    content, said = rows.of_texts(request.train_texts or [])
    rows.look(here.store, content, "train_texts")
    return "train_texts", content, said


def _adapter(request: Start, dataset: str, content: bytes) -> str:
    """The adapter's name: the last part of `output_dir`, or else that of the data."""
    if request.output_dir is None:
        own = f"adapter-{rows.digest(content)[:8]}"  # the same for the same texts
        return own if request.dataset_name is None else dataset
    last = PurePosixPath(request.output_dir.replace("\\", "/")).name
    return names.checked(last, "output_dir")
