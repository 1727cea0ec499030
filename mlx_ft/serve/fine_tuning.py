"""OpenAI's /v1/fine_tuning/jobs, method `supervised`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query
from pydantic import Field

from mlx_ft.runfolder import checkpoint_folders, step_of
from mlx_ft.serve import names, rows
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.files import content, page
from mlx_ft.serve.job import CANCELLED, FAILED, INTERRUPTED, PAUSED, QUEUED, SUCCEEDED, Job
from mlx_ft.serve.parameters import EPOCHS, Order, Training
from mlx_ft.serve.progress import progress
from mlx_ft.serve.progress import rows as figures
from mlx_ft.serve.schemas import LONGEST_NAME, Closed, Name, Text
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.store import Missing
from mlx_ft.serve.training import Key
from mlx_ft.serve.watching import JobId

RATE = 1e-3  # of the optimizer's recipe: what `learning_rate_multiplier` multiplies
EVENTS = 1000
router = APIRouter(prefix="/v1/fine_tuning/jobs", tags=["fine-tuning"])
Auto = Literal["auto"]
Limit = Annotated[int, Query(ge=1, le=EVENTS)]
After = Annotated[str | None, Query(max_length=LONGEST_NAME)]


class Hyperparameters(Closed):
    """auto: 3 epochs; the batch that suits the machine; the recipe's rate, 0.001."""

    n_epochs: Auto | Annotated[int, Field(ge=1, le=1000)] = "auto"
    batch_size: Auto | Annotated[int, Field(ge=1, le=1024)] = "auto"
    learning_rate_multiplier: Auto | Annotated[float, Field(gt=0, le=1000)] = "auto"


class Supervised(Closed):
    """The method that there is."""

    hyperparameters: Hyperparameters | None = None


class Method(Closed):
    """Others are refused."""

    type: Literal["supervised"]
    supervised: Supervised | None = None


class CreateJob(Closed):
    """POST /v1/fine_tuning/jobs."""

    model: Name
    training_file: Name
    validation_file: Name | None = None
    hyperparameters: Hyperparameters | None = None
    method: Method | None = None
    suffix: Annotated[str, Field(min_length=1, max_length=64)] | None = None
    seed: int | None = Field(None, ge=0, le=2**31 - 1)
    integrations: Annotated[list[Any], Field(max_length=0)] | None = None
    metadata: dict[Annotated[str, Field(max_length=64)], Text] | None = Field(None, max_length=16)

    @property
    def chosen(self) -> Hyperparameters:
        """Those of the method, or the older place for them."""
        own = self.method.supervised if self.method is not None else None
        found = own.hyperparameters if own is not None else None
        return found or self.hyperparameters or Hyperparameters()


@router.post("", summary="Start a fine-tuning job")
def create(request: CreateJob, here: Here, key: Key = None) -> dict[str, Any]:
    """Queued; one job runs at a time. `suffix` becomes the adapter's name."""
    base = here.bases.find(request.model)
    if base is None:
        raise Refused(f"The model {request.model!r} does not exist, or is no base model", 404,
                      code="model_not_found", param="model")  # fmt: skip
    given = request.chosen
    training = Training(
        num_epochs=EPOCHS if given.n_epochs == "auto" else float(given.n_epochs),
        batch_size=None if given.batch_size == "auto" else given.batch_size,
        learning_rate=None if given.learning_rate_multiplier == "auto"
        else min(10.0, RATE * given.learning_rate_multiplier),
        seed=42 if request.seed is None else request.seed,
    )  # fmt: skip
    valid = None
    if request.validation_file is not None:
        valid = _file(here, request.validation_file, "validation_file")
    lines = _file(here, request.training_file, "training_file")
    with here.jobs.naming:
        order = Order(base, _name(here, request, key), request.training_file, lines, valid,
                      training=training, asked=request.model_dump(), key=key)  # fmt: skip
        job, fresh = order.place(here)
    return {**shown(job), "status": QUEUED} if fresh else shown(job)


@router.get("", summary="All jobs")
def list_jobs(here: Here, limit: Limit = 20, after: After = None) -> dict[str, Any]:
    """The newest first; also those of the other paths."""
    return page([shown(job) for job in here.jobs.all()], limit, after)


@router.get("/{job_id}", summary="One job")
def get_job(job_id: JobId, here: Here) -> dict[str, Any]:
    """`fine_tuned_model` is what to ask for, once it has succeeded."""
    return shown(here.jobs.get(job_id))


@router.post("/{job_id}/cancel", summary="Cancel a job")
def cancel(job_id: JobId, here: Here) -> dict[str, Any]:
    """For good."""
    return shown(here.jobs.stop(job_id, CANCELLED))


@router.post("/{job_id}/pause", summary="Pause a job")
def pause(job_id: JobId, here: Here) -> dict[str, Any]:
    """It saves a checkpoint first."""
    return shown(here.jobs.stop(job_id, PAUSED))


@router.post("/{job_id}/resume", summary="Go on with a job")
def resume(job_id: JobId, here: Here) -> dict[str, Any]:
    """One that was paused or interrupted, or has failed."""
    return shown(here.jobs.resume(job_id))


@router.get("/{job_id}/events", summary="What has happened to a job")
def events(job_id: JobId, here: Here, limit: Limit = 20, after: After = None) -> dict[str, Any]:
    """The newest first. Figures have the time at which their run began; their order is true."""
    job = here.jobs.get(job_id)
    found = _events(here, job)
    return page(found[::-1], limit, after)


@router.get("/{job_id}/checkpoints", summary="A job's checkpoints")
def checkpoints(
    job_id: JobId, here: Here, limit: Limit = 10, after: After = None
) -> dict[str, Any]:
    """The newest first. They are for going on; the job's adapter is what can be asked."""
    job = here.jobs.get(job_id)
    folder = here.jobs.folder(job)
    noted = {row.get("step"): row for row in figures(folder) if "train/loss" in row}
    found = []
    for path in reversed(checkpoint_folders(folder / "checkpoints")):
        step = step_of(path)
        try:
            created = int(path.stat().st_mtime)
        except OSError:  # an older one, which has just gone
            continue
        found.append({
            "id": f"ckpt-{job.id[4:]}-{step}",
            "object": "fine_tuning.job.checkpoint",
            "created_at": created,
            "fine_tuning_job_id": job.id,
            "fine_tuned_model_checkpoint": None,
            "step_number": step,
            "metrics": {"step": step, "train_loss": noted.get(step, {}).get("train/loss")},
        })  # fmt: skip
    return page(found, limit, after)


def shown(job: Job) -> dict[str, Any]:
    """A job as OpenAI shows one."""
    asked = job.asked
    given = (asked.get("method") or {}).get("supervised") or {}
    chosen = given.get("hyperparameters") or asked.get("hyperparameters") or {}
    hyperparameters = {**Hyperparameters().model_dump(), **chosen}
    failed = None
    if job.error is not None:
        code = "interrupted" if job.status == INTERRUPTED else "job_failed"
        failed = {"code": code, "message": job.error, "param": None}
    return {
        "id": job.id,
        "object": "fine_tuning.job",
        "created_at": int(job.created),
        "finished_at": None if job.ended is None else int(job.ended),
        "model": job.model,
        "fine_tuned_model": job.adapter if job.status == SUCCEEDED else None,
        "organization_id": "local",
        # OpenAI knows no interruption; like a paused one, such a job can be resumed.
        "status": PAUSED if job.status == INTERRUPTED else job.status,
        "training_file": job.dataset,
        "validation_file": asked.get("validation_file"),
        "hyperparameters": hyperparameters,
        "method": {"type": "supervised", "supervised": {"hyperparameters": hyperparameters}},
        "result_files": [],
        "trained_tokens": None,
        "estimated_finish": None,
        "integrations": [],
        "metadata": asked.get("metadata"),
        "seed": asked.get("seed") if isinstance(asked.get("seed"), int) else 42,
        "user_provided_suffix": asked.get("suffix"),
        "error": failed,
    }


def _events(here: Server, job: Job) -> list[dict[str, Any]]:
    """The oldest first."""
    found: list[dict[str, Any]] = []

    def add(at: float | None, message: str, level: str = "info", **data: Any) -> None:
        found.append({
            "id": f"ftevent-{job.id[4:]}-{len(found)}",
            "object": "fine_tuning.job.event",
            "created_at": int(at or job.created),
            "level": level,
            "message": message,
            "type": "metrics" if data else "message",
            "data": data,
        })  # fmt: skip

    add(job.created, f"Created fine-tuning job: {job.id}")
    if job.started is not None:
        add(job.started, "Fine-tuning job started")
    run = here.jobs.folder(job)
    total = progress(run).total
    for row in figures(run):
        step, loss = row.get("step"), row.get("train/loss")
        if loss is not None:
            add(job.started, f"Step {step}/{total}: training loss={loss:.2f}", step=step,
                total_steps=total, train_loss=loss)  # fmt: skip
        elif row.get("val/loss") is not None:
            add(job.started, f"Step {step}/{total}: validation loss={row['val/loss']:.2f}",
                step=step, total_steps=total, full_valid_loss=row["val/loss"])  # fmt: skip
    if job.status == SUCCEEDED:
        add(job.ended, f"New fine-tuned model created: {job.adapter}")
        add(job.ended, "The job has successfully completed")
    elif job.status in (FAILED, INTERRUPTED):
        add(job.ended or job.started, f"The job has {job.status}: {job.error}", "error")
    elif job.status in (CANCELLED, PAUSED):
        add(job.ended or job.started, f"The job was {job.status}")
    return found


def _file(here: Server, file_id: str, param: str) -> bytes:
    try:
        return content(here, file_id)
    except Missing as error:
        raise Refused(str(error), 400, code="invalid_file", param=param) from None


def _name(here: Server, request: CreateJob, key: str | None) -> str:
    """The suffix; with a mark of the data where there is an adapter of that name already."""
    for job in here.jobs.all():
        if key is not None and job.idempotency_key == key:
            return job.adapter
    mark = rows.digest(request.training_file.encode())[:8]
    wanted = names.checked(request.suffix or f"{request.model.rpartition('/')[2]}-{mark}", "suffix")
    taken: Sequence[str] = [one.name for one in here.shelf]
    taken = [*taken, *(job.adapter for job in here.jobs.all() if job.status != CANCELLED)]
    if wanted not in taken:
        return wanted
    return names.checked(f"{wanted}-{names.made('a')[2:10]}", "suffix")
