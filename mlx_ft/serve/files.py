"""OpenAI's /v1/files: rows to train on, kept as they were uploaded."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Path, Query, UploadFile
from fastapi.responses import FileResponse
from starlette.concurrency import run_in_threadpool

from mlx_ft.serve import names, rows
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.schemas import LONGEST_NAME
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.store import Missing

CONTENT = "content"
PURPOSE = "fine-tune"
router = APIRouter(prefix="/v1/files", tags=["files"])
FileId = Annotated[str, Path(max_length=LONGEST_NAME)]


def shown(here: Server, file_id: str) -> dict[str, Any]:
    """A file as OpenAI shows one. Raises Missing."""
    about = here.store.about("files", checked(file_id))
    return {
        "id": file_id,
        "object": "file",
        "bytes": about.get("bytes", 0),
        "created_at": about.get("created", 0),
        "filename": about.get("filename", ""),
        "purpose": about.get("purpose", PURPOSE),
        "status": "processed",
        "rows": about.get("rows"),
    }


def checked(file_id: str) -> str:
    """`file_id`, if this server could have given it. Raises Missing."""
    if not names.is_id(file_id, "file"):
        raise Missing(f"there is no file {file_id[:40]!r}")
    return file_id


def content(here: Server, file_id: str) -> bytes:
    """What was uploaded. Raises Missing."""
    return here.store.read("files", checked(file_id), CONTENT)


@router.post("", summary="Upload rows to train on")
async def upload(
    here: Here, file: UploadFile, purpose: Annotated[str, Form(max_length=100)]
) -> dict[str, Any]:
    """JSON Lines: `messages`, `prompt` and `completion`, or any other format of docs/data.md."""
    if purpose != PURPOSE:
        raise Refused(f"purpose: found {purpose!r}; expected {PURPOSE!r}", param="purpose",
                      code="invalid_value")  # fmt: skip
    async with here.uploads:
        data = await file.read()
        return await run_in_threadpool(_keep, here, data, file.filename or "rows.jsonl")


@router.get("", summary="All files")
def list_files(
    here: Here,
    limit: Annotated[int, Query(ge=1, le=10_000)] = 10_000,
    after: Annotated[str | None, Query(max_length=LONGEST_NAME)] = None,
    order: Annotated[str, Query(pattern="^(asc|desc)$")] = "desc",
    purpose: Annotated[str | None, Query(max_length=100)] = None,
) -> dict[str, Any]:
    """The newest first, unless `order` is `asc`."""
    found = []
    for name in here.store.names("files"):
        try:
            found.append(shown(here, name))
        except Missing:
            continue
    if order == "desc":
        found.reverse()
    return page([one for one in found if purpose in (None, one["purpose"])], limit, after)


@router.get("/{file_id}", summary="One file")
def get_file(file_id: FileId, here: Here) -> dict[str, Any]:
    """Without its content."""
    return shown(here, file_id)


@router.get("/{file_id}/content", response_class=FileResponse, summary="What was uploaded")
def get_content(file_id: FileId, here: Here) -> FileResponse:
    """As a download."""
    place = here.store.place("files", checked(file_id)) / CONTENT
    return FileResponse(place, media_type="application/octet-stream", filename=f"{file_id}.jsonl")


@router.delete("/{file_id}", summary="Delete a file")
def delete_file(file_id: FileId, here: Here) -> dict[str, Any]:
    """Jobs that were made of it have their own copy."""
    here.store.remove("files", checked(file_id))
    return {"id": file_id, "object": "file", "deleted": True}


def page(found: list[dict[str, Any]], limit: int, after: str | None) -> dict[str, Any]:
    """A part of a list as OpenAI cuts it: `after` is the id of the last one before."""
    if after is not None:
        at = next((at for at, one in enumerate(found) if one["id"] == after), len(found))
        found = found[at + 1 :]
    part = found[:limit]
    return {
        "object": "list",
        "data": part,
        "has_more": len(found) > limit,
        "first_id": part[0]["id"] if part else None,
        "last_id": part[-1]["id"] if part else None,
    }


def _keep(here: Server, data: bytes, filename: str) -> dict[str, Any]:
    name = "".join(c for c in filename if c.isprintable())[-LONGEST_NAME:] or "rows.jsonl"
    count = len(rows.decoded(data, name))
    rows.look(here.store, data, name)
    file_id = names.made("file")
    about = {"filename": name, "bytes": len(data), "purpose": PURPOSE, "rows": count}
    here.store.put("files", file_id, {CONTENT: data}, about)
    return shown(here, file_id)
