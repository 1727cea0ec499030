"""Whether the server lives and answers, its figures, its paths, and models to be had."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import HTMLResponse, Response, StreamingResponse

from mlx_ft.serve import errors, openapi_page
from mlx_ft.serve.downloads import lines, size_here
from mlx_ft.serve.metrics import TYPE
from mlx_ft.serve.models import Named
from mlx_ft.serve.server import Here

router = APIRouter()
READY: dict[int | str, dict[str, Any]] = {503: {"description": "Not now; try again."}}
PROGRESS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "One JSON object a line until it has ended",
        "content": {"application/x-ndjson": {}},
    }
}
PAGE: dict[int | str, dict[str, Any]] = {200: {"description": "HTML", "content": {"text/html": {}}}}
FIGURES: dict[int | str, dict[str, Any]] = {
    200: {"description": "Prometheus' text format", "content": {"text/plain": {}}}
}


@router.get("/health", tags=["system"], summary="Whether the server lives")
async def health() -> dict[str, str]:
    """Asked without a key."""
    return {"status": "ok"}


@router.get("/ready", tags=["system"], responses=READY, summary="Whether it answers now")
def ready(here: Here) -> Response:
    """503 while a model is loaded, a job needs the memory, or the server ends."""
    fine = here.state.is_ready
    told = {"status": "ready" if fine else "not ready", "model": here.state.base.name}
    return errors.answer(200 if fine else 503, told, {} if fine else {"retry-after": "5"})


@router.get("/metrics", tags=["system"], responses=FIGURES, response_class=Response,
            summary="Figures for Prometheus")  # fmt: skip
def metrics(here: Here) -> Response:
    """By adapter: requests, tokens, seconds; and what is so now."""
    try:
        waiting, answering = here.state.current.engine.load_now
    except errors.Away:
        waiting, answering = 0, 0
    jobs = Counter(job.status for job in here.jobs.all())
    loaded = sum(here.state.loaded(one.name) for one in here.shelf)
    text = here.state.metrics.text({
        "mlx_ft_ready": ("Whether the model answers.", [((), float(here.state.is_ready))]),
        "mlx_ft_requests_waiting": ("Requests in the queue.", [((), waiting)]),
        "mlx_ft_requests_answering": ("Requests that are being answered.", [((), answering)]),
        "mlx_ft_adapters_loaded": ("Adapters that answer at once.", [((), loaded)]),
        "mlx_ft_jobs": ("Training jobs by status.",
                        [((("status", name),), count) for name, count in sorted(jobs.items())]),
    })  # fmt: skip
    return Response(text, media_type=TYPE)


@router.get("/docs", tags=["system"], responses=PAGE, response_class=Response, summary="This page")
def docs(request: Request) -> HTMLResponse:
    """All paths, made from /openapi.json; needs nothing from elsewhere."""
    page = openapi_page.page(request.app.openapi())
    return HTMLResponse(page, headers={"content-security-policy": openapi_page.POLICY})


@router.get("/api/models", tags=["models"], summary="Base models, here and to be had")
def list_models(here: Here) -> dict[str, Any]:
    """Names of `conf/model`, and what the command line named."""
    found = [
        {
            "id": base.name,
            "path": base.path,
            "downloaded": here.bases.is_here(base),
            "size": size_here(base),
            "in_use": base == here.state.base,
        }
        for base in here.bases
    ]
    return {"models": found}


@router.post("/api/download-model/{model_id:path}", tags=["models"], responses=PROGRESS,
             response_class=StreamingResponse, summary="Bring a base model here")  # fmt: skip
def download(model_id: Named, here: Here) -> StreamingResponse:
    """Progress line by line. It goes on when nobody watches, and where it stopped when broken."""
    found = here.downloads.start(model_id)
    return StreamingResponse(lines(found, here.state.closing), media_type="application/x-ndjson")
