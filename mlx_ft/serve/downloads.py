"""Models brought here from the hub, a few at a time, whoever watches."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

from mlx_ft.config import conf_dir
from mlx_ft.serve import errors
from mlx_ft.serve.bases import Base, Bases
from mlx_ft.serve.errors import Refused
from mlx_ft.serve.state import Settings

logger = logging.getLogger(__name__)

EVERY = 0.5  # seconds between two lines
AT_ONCE = 2
RUNNING, DONE, FAILED = "downloading", "completed", "failed"


@dataclass
class Download:
    """One under way, or how it has ended. total: bytes, None as long as the hub has not said."""

    base: Base
    status: str = RUNNING
    total: int | None = None
    error: BaseException | None = None
    began: float = field(default_factory=time.time)

    def line(self) -> dict[str, Any]:
        """For its watchers."""
        here = size_here(self.base)
        share = min(1.0, here / self.total) if self.total else None
        if self.status == DONE:
            share = 1.0
        told: dict[str, Any] = {
            "model": self.base.name,
            "status": self.status,
            "downloaded_bytes": here,
            "total_bytes": self.total,
            "progress": None if share is None else round(100 * share, 1),
        }
        if self.error is not None:
            told["error"] = errors.told(self.error)[1]["error"]
        return told


class Downloads:
    """Those of a server. One that was broken off goes on where it stopped when asked for again."""

    def __init__(self, bases: Bases, settings: Settings) -> None:
        self._bases, self._cache_dir = bases, settings.cache_dir
        self._lock = threading.Lock()
        self._running: dict[str, Download] = {}

    def start(self, name: str) -> Download:
        """Fetch a model; the download that there is, if there is one. Raises Refused."""
        base = self._bases.find(name)
        if base is None:
            known = ", ".join(base.name for base in self._bases)
            raise Refused(
                f"The model {name[:100]!r} does not exist. There is: {known}", 404,
                code="model_not_found", param="model_id",
            )  # fmt: skip
        with self._lock:
            found = self._running.get(base.name)
            if found is not None and found.status == RUNNING:
                return found
            if sum(one.status == RUNNING for one in self._running.values()) >= AT_ONCE:
                raise Refused(
                    f"{AT_ONCE} models are being downloaded already", 429,
                    code="queue_full", wait=30,
                )  # fmt: skip
            found = self._running[base.name] = Download(base)
        threading.Thread(target=self._fetch, args=(found,), name="download", daemon=True).start()
        return found

    def _fetch(self, download: Download) -> None:
        from mlx_ft.models import catalog

        base = download.base
        try:
            if self._bases.is_here(base):
                logger.info("%s is here already", base.name)
            else:

                def told(total: int) -> None:
                    download.total = total

                catalog.download(base.path, self._cache_dir, conf_dir(), progress=False, told=told)
            download.status = DONE
        except Exception as error:
            logger.warning("%s: %s", base.name, error)
            download.error, download.status = error, FAILED


def size_here(base: Base) -> int:
    """Bytes of a hub model that are on this machine."""
    from mlx_ft.errors import ModelError
    from mlx_ft.models import catalog, hub

    try:
        kind, path = hub.classify(base.path)
    except ModelError:  # the embedded one
        return 0
    return catalog.disk_usage(hub.cache_folder(base.path) if kind == "hub" else path)


async def lines(download: Download, closing: threading.Event) -> AsyncIterator[str]:
    """One JSON object a line, until it has ended, or the server ends."""
    while True:
        running = download.status == RUNNING
        told = await asyncio.to_thread(download.line)
        yield json.dumps(told) + "\n"
        if not running or closing.is_set():
            return
        await asyncio.sleep(EVERY)
