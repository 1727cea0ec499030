"""`mlx-ft serve` in a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import openai


class Process:
    """A server with its home, cache and log in a folder. model: a recipe, folder or file."""

    def __init__(self, folder: Path, model: str, *arguments: str, **environment: str) -> None:
        self.folder = folder
        self.clients: list[Any] = []
        self.log = (folder / "stderr").open("w+")
        command = [sys.executable, "-m", "mlx_ft", "serve", "--model", model, "--port", "0",
                   "--home", str(folder / "home"), *arguments]  # fmt: skip
        environment = {"MLX_FT_CACHE": str(folder / "cache"), "OPENBLAS_NUM_THREADS": "1",
                       **environment}  # fmt: skip
        self.process = subprocess.Popen(
            command, cwd=folder, env={**os.environ, **environment}, text=True,
            stdout=subprocess.PIPE, stderr=self.log,
        )  # fmt: skip
        assert self.process.stdout is not None
        self.ready = self.process.stdout.readline()
        assert "answers at http://127.0.0.1:" in self.ready, self.said()
        self.url = self.ready.partition(" at ")[2].split()[0]

    def said(self) -> str:
        """What it has written to its log."""
        self.log.seek(0)
        return self.log.read()

    def end(self, number: int = signal.SIGTERM, timeout: float = 60) -> int:
        """Its exit code, once a signal has ended it."""
        self.process.send_signal(number)
        return self.process.wait(timeout)

    def client(self, key: str = "none") -> openai.OpenAI:
        """OpenAI's, without second tries."""
        self.clients.append(openai.OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0))
        return self.clients[-1]

    def http(self, timeout: float = 60) -> httpx.Client:
        """A client of its paths."""
        self.clients.append(httpx.Client(base_url=self.url, timeout=timeout))
        return self.clients[-1]

    def close(self) -> None:
        """End it, whatever it does."""
        for client in self.clients:
            client.close()
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()
