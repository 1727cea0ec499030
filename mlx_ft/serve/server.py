"""The parts of a server, put together."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Annotated

from fastapi import Depends, Request

from mlx_ft.errors import UserError
from mlx_ft.serve.around import Around
from mlx_ft.serve.bases import Bases
from mlx_ft.serve.downloads import Downloads
from mlx_ft.serve.jobs import Jobs
from mlx_ft.serve.shelf import Shelf
from mlx_ft.serve.state import Settings, State
from mlx_ft.serve.store import Store

UPLOADS = 2  # files that are held in memory at the same time


@dataclass(frozen=True)
class Server:
    """What the routes work with."""

    settings: Settings
    store: Store
    bases: Bases
    shelf: Shelf
    state: State
    jobs: Jobs
    downloads: Downloads
    uploads: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(UPLOADS))

    @classmethod
    def open(cls, settings: Settings) -> Server:
        """Look at everything, start nothing. Raises UserError kinds."""
        bases = Bases(settings.cache_dir, settings.named, settings.context)
        base = bases.find(settings.base)
        if base is None:
            known = ", ".join(base.name for base in bases)
            raise UserError(f"--model {settings.base}: no such recipe. There is: {known}")
        if not bases.is_here(base):
            raise UserError(
                f"--model {base.name}: {base.path} is not on this machine. "
                f"mlx-ft models download {base.name}"
            )
        store = Store(settings.home)
        try:
            shelf = Shelf(store, bases)
            state = State(settings, store, bases, shelf)
            jobs = Jobs(store, Around(state))
        except BaseException:
            store.close()
            raise
        return cls(settings, store, bases, shelf, state, jobs, Downloads(bases, settings))

    def start(self) -> None:
        """Load the model and go on with the queue."""
        self.state.start()
        self.jobs.start()

    def close(self) -> None:
        """Answer what was taken; a job that runs saves itself and can go on."""
        self.state.closing.set()
        self.jobs.close()
        self.state.close()
        self.store.close()


def _of(request: Request) -> Server:
    server: Server = request.app.state.server
    return server


Here = Annotated[Server, Depends(_of)]
