"""The data that was uploaded by name, and what a training would make of it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from mlx_ft.config.schema import ModelConfig
from mlx_ft.config.schema_data import DataConfig
from mlx_ft.serve import rows
from mlx_ft.serve.models import Named
from mlx_ft.serve.server import Here, Server
from mlx_ft.serve.store import Missing

LENGTH = 512  # tokens of a row, for the report
SEED = 42  # of nothing but a split, of which there is none
router = APIRouter(prefix="/api/datasets", tags=["datasets"])


@router.get("", summary="All datasets")
def list_datasets(here: Here) -> dict[str, Any]:
    """With their numbers of rows."""
    found = []
    for name in here.store.names("datasets"):
        try:
            found.append(_shown(here, name))
        except Missing:
            continue
    return {"datasets": found}


@router.get("/{name}", summary="One dataset")
def get_dataset(name: Named, here: Here) -> dict[str, Any]:
    """Without its rows."""
    return _shown(here, name)


@router.get("/{name}/report", summary="What a training would make of it")
def report(name: Named, here: Here) -> dict[str, Any]:
    """Kept, cut and rejected rows, tokens, repeats; as `mlx-ft validate` says it."""
    from mlx_ft.data.prepare import prepare
    from mlx_ft.models.load import locate
    from mlx_ft.models.tokenizer import deferred_tokenizer

    path = here.store.place("datasets", name) / rows.ROWS
    config = DataConfig(path=str(path), valid_fraction=0, cache=False)
    model = ModelConfig(here.state.base.path)
    tokenizer = deferred_tokenizer(locate(model, here.settings.cache_dir))
    found = prepare(config, tokenizer, LENGTH, SEED, here.settings.cache_dir, accept_faults=True)
    return {"name": name, "model": here.state.base.name, "report": _apart(found.report, str(path))}


@router.delete("/{name}", summary="Delete a dataset")
def delete_dataset(name: Named, here: Here) -> dict[str, Any]:
    """Jobs that were made of it have their own copy."""
    here.store.remove("datasets", name)
    return {"status": "deleted", "name": name}


def _shown(here: Server, name: str) -> dict[str, Any]:
    about = here.store.about("datasets", name)
    return {
        "name": name,
        "rows": about.get("rows"),
        "bytes": about.get("bytes"),
        "created": about.get("created"),
        "message": about.get("said"),
    }


def _apart(content: Any, path: str) -> Any:
    """The report without this machine's folders."""
    if isinstance(content, dict):
        return {key: _apart(value, path) for key, value in content.items()}
    if isinstance(content, list):
        return [_apart(value, path) for value in content]
    return content.replace(path, rows.ROWS) if isinstance(content, str) else content
