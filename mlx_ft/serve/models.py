"""What can be asked, and the adapters: /v1/models, /api/adapters, and vLLM's two paths."""

from __future__ import annotations

from pathlib import Path as Folder
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import Field
from starlette.responses import PlainTextResponse, Response

from mlx_ft.engine.request import Sampling, Unknown
from mlx_ft.errors import AdapterError, ConfigError
from mlx_ft.serve.bases import BASE
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.names import BadName
from mlx_ft.serve.schemas import LONGEST_NAME, Closed, Name
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.shelf import Adapter
from mlx_ft.serve.store import Missing

router = APIRouter()
Named = Annotated[str, Path(max_length=LONGEST_NAME)]


def model(here: Server, name: str, base: str | None, created: int, **more: Any) -> dict[str, Any]:
    """As OpenAI shows one. base: the model that it is an adapter of."""
    return {
        "id": name,
        "object": "model",
        "created": created,
        "owned_by": "mlx-ft",
        "root": base or here.state.base.name,
        "parent": base,
        **more,
    }


def shown(here: Server, adapter: Adapter) -> dict[str, Any]:
    """An adapter as the reference system shows one, and what else is known of it."""
    return {
        "name": adapter.name,
        "base_model": adapter.base or here.state.base.name,
        "size": adapter.size,
        "created": adapter.created,
        "loaded": here.state.loaded(adapter.name),
        "active": here.state.active == adapter.name,
        "job_id": adapter.about.get("job"),
        "defaults": dict(adapter.defaults),
    }


@router.get("/v1/models", tags=["models"], summary="What can be asked")
def list_models(here: Here) -> dict[str, Any]:
    """`base`, every base model that is on this machine, and the adapters."""
    began, state = here.state.began, here.state
    found = [model(here, BASE, None, began)]
    for base in here.bases:
        if base == state.base or here.bases.is_here(base):
            found.append(model(here, base.name, None, began, root=base.name))
    found += [model(here, one.name, one.base or state.base.name, one.created) for one in here.shelf]
    return {"object": "list", "data": found}


@router.get("/v1/models/{model_id}", tags=["models"], summary="One of them")
def get_model(model_id: Named, here: Here) -> dict[str, Any]:
    """As in the list."""
    began, base = here.state.began, here.bases.find(model_id)
    if model_id == BASE:
        return model(here, BASE, None, began)
    if base is not None and here.bases.is_here(base):
        return model(here, base.name, None, began, root=base.name)
    try:
        adapter = here.shelf.find(model_id)
    except (Missing, BadName):
        raise Unknown(f"The model {model_id[:100]!r} does not exist") from None
    return model(here, adapter.name, adapter.base or here.state.base.name, adapter.created)


@router.delete("/v1/models/{model_id}", tags=["models"], summary="Delete an adapter")
def delete_model(model_id: Named, here: Here) -> dict[str, Any]:
    """Base models cannot be deleted."""
    if model_id == BASE or here.bases.find(model_id) is not None:
        raise Refused(f"{model_id} is a base model, and stays", 403, code="not_an_adapter")
    _remove(here, model_id)
    return {"id": model_id, "object": "model", "deleted": True}


@router.get("/api/adapters", tags=["adapters"], summary="All adapters")
def list_adapters(here: Here) -> dict[str, Any]:
    """`active` answers in the name of its base model."""
    return {"adapters": [shown(here, one) for one in here.shelf], "active": here.state.active}


@router.post("/api/adapters/unload", tags=["adapters"], summary="Let the base answer again")
def unload(here: Here) -> dict[str, Any]:
    """Nothing happens when no adapter is active."""
    return {"status": "unloaded", "unloaded": here.state.deactivate(), "active": None}


@router.post("/api/adapters/{name}/load", tags=["adapters"], summary="Make an adapter active")
def load(name: Named, here: Here) -> dict[str, Any]:
    """It answers in the name of its base model until it is unloaded."""
    adapter = here.state.activate(name)
    return {"status": "loaded", "active": adapter.name, "adapter": shown(here, adapter)}


@router.delete("/api/adapters/{name}", tags=["adapters"], summary="Delete an adapter")
def delete_adapter(name: Named, here: Here) -> dict[str, Any]:
    """Answers that have begun come to their end."""
    _remove(here, name)
    return {"status": "deleted", "name": name, "active": here.state.active}


class Defaults(Closed):
    """How an adapter's answers are drawn where a request does not say so."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0, le=1 << 20)
    min_p: float | None = Field(None, ge=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=1 << 24)


@router.put("/api/adapters/{name}/defaults", tags=["adapters"], summary="Set its sampling")
def set_defaults(name: Named, defaults: Defaults, here: Here) -> dict[str, Any]:
    """What is left out is as OpenAI has it."""
    adapter = here.shelf.find(name)
    if not adapter.kept:
        raise AdapterError(f"the adapter {name!r} is not in the store, and keeps no defaults")
    values = defaults.model_dump(exclude_none=True)
    if faults := Sampling(**values).faults():
        raise ConfigError("These cannot be used:", faults)
    return shown(here, here.shelf.say(adapter, {"defaults": values}))


def _remove(here: Server, name: str) -> None:
    here.shelf.remove(name)
    here.state.drop(name)


lora_router = APIRouter(tags=["lora"])
# The class of a route's response would also be that of its errors, which are JSON.
DONE: dict[int | str, dict[str, Any]] = {
    200: {"description": "It is done.", "content": {"text/plain": {}}}
}


class LoadLora(Closed):
    """As vLLM has it."""

    lora_name: Name
    lora_path: Annotated[str, Field(max_length=4096)]
    lora_int_id: int | None = None
    load_inplace: bool | None = None


class UnloadLora(Closed):
    """As vLLM has it."""

    lora_name: Name
    lora_int_id: int | None = None


@lora_router.post("/v1/load_lora_adapter", responses=DONE, response_class=Response,
                  summary="As vLLM's")  # fmt: skip
def load_lora(request: LoadLora, here: Here) -> PlainTextResponse:
    """An adapter in a folder of this machine; gone again when the server ends."""
    folder = _folder(request.lora_path)
    try:
        here.shelf.find(request.lora_name)
    except Missing:
        pass
    else:
        if not request.load_inplace:
            raise AdapterError(f"the adapter {request.lora_name!r} is there already")
        unload_lora(UnloadLora(lora_name=request.lora_name), here)
    adapter = here.shelf.give(request.lora_name, folder, None, None)
    try:
        here.state.target(adapter.name)
    except BaseException:
        here.shelf.take_back(adapter.name)
        raise
    return PlainTextResponse(f"Success: LoRA adapter '{adapter.name}' added successfully.")


def _folder(path: str) -> Folder:
    try:
        folder = Folder(path).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, not permitted, too long, no path
        folder = None
    if folder is None or not folder.is_dir():
        raise AdapterError("lora_path: there is no such folder on this machine")
    return folder


@lora_router.post("/v1/unload_lora_adapter", responses=DONE, response_class=Response,
                  summary="As vLLM's")  # fmt: skip
def unload_lora(request: UnloadLora, here: Here) -> PlainTextResponse:
    """Only one that was given by its folder; those in the store are deleted by other paths."""
    here.shelf.take_back(request.lora_name)
    here.state.drop(request.lora_name)
    name = request.lora_name
    return PlainTextResponse(f"Success: LoRA adapter '{name}' removed successfully.")
