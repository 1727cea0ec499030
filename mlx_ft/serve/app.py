"""The web application: every route, every error, and the guard before them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI, Request
from starlette.concurrency import run_in_threadpool

from mlx_ft import __version__
from mlx_ft.serve import (
    chat,
    completions,
    datasets,
    errors,
    files,
    fine_tuning,
    models,
    static,
    system,
    training,
    watching,
)
from mlx_ft.serve.errors import ERRORS, Refused
from mlx_ft.serve.security import Guard, Rules
from mlx_ft.serve.server import Server

ABOUT = (
    "A base model and its adapters, and the training of more of them. "
    "Answers and fine-tuning are as OpenAI's clients know them."
)


def create_app(server: Server, rules: Rules) -> FastAPI:
    """The application. Its lifespan starts and closes the server."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        server.start()
        yield
        await run_in_threadpool(server.close)

    app = FastAPI(
        title="mlx-ft", version=__version__, description=ABOUT, lifespan=lifespan,
        docs_url=None, redoc_url=None, redirect_slashes=False, responses=ERRORS,
        dependencies=[Depends(_characters)],
    )  # fmt: skip
    app.state.server = server
    errors.install(app)
    app.add_middleware(Guard, rules=rules)
    routers = [chat.router, completions.router, models.router, files.router, fine_tuning.router,
               training.router, watching.router, datasets.router, system.router,
               static.router]  # fmt: skip
    if server.settings.lora_routes:
        routers.append(models.lora_router)
    for router in routers:
        app.include_router(router)
    return app


async def _characters(request: Request) -> None:
    """Refuse halves of surrogate pairs, which JSON can hold and no tokenizer, file or log can."""
    kind = request.headers.get("content-type", "").lower()
    if "json" not in kind:
        return
    body = await request.body()
    if b"\\ud" not in body.lower():
        return
    try:
        content: Any = json.loads(body)
        json.dumps(content, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Refused(
            "the body holds half of a surrogate pair, which is no character", code="invalid_value"
        ) from None
    except (ValueError, RecursionError):
        return  # whoever reads it says what is wrong
