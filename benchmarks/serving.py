"""What the benchmark of `mlx-ft serve` asks with: clients, the server, and its peers."""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import measuring
from measuring import ROOT

sys.path.insert(0, str(ROOT))
from mlx_ft import runtime
from tests.serve.process import Process

SPEED = ROOT / "benchmarks/speed"
MODEL = "smollm2_135m"
BASE = "mlx-ft serve, base"
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
ADAPTERS = [f"a{number}" for number in range(8)]
STORY = "Write a very long story about a fisherman, the sea and a storm."
QUESTIONS = (
    "Tell me about the sea.", "What is a mountain?", "Why is the sky blue?", "How is bread made?",
    "Who was Ada Lovelace?", "What do bees do all day?", "Describe a winter morning.",
    "What is a good breakfast?",
)  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is measured. long, short: tokens of an answer; rounds: answers of each client."""

    long: int = 200
    short: int = 64
    answers: int = 20
    switches: int = 20
    clients: tuple[int, ...] = (1, 4, 16, 64)
    rounds: int = 4
    asked: int = 32


QUICK = Size(long=12, short=8, answers=2, switches=3, clients=(1, 2), rounds=1, asked=4)


@dataclass(frozen=True)
class Answer:
    """Of one request. Seconds from its sending to the first token, and to the last."""

    text: str
    tokens: int
    first: float
    whole: float

    @property
    def rate(self) -> float:
        """Tokens/s from the first token to the last."""
        return (self.tokens - 1) / (self.whole - self.first)


class Client:
    """Asks a server."""

    def __init__(self, url: str) -> None:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
        self.http = httpx.AsyncClient(base_url=url, timeout=3600, limits=limits)

    async def ask(self, model: str, question: str, tokens: int) -> Answer:
        """A greedy answer, as a stream."""
        content = {
            "model": model, "temperature": 0, "max_tokens": tokens, "stream": True,
            "stream_options": {"include_usage": True},
            "messages": [{"role": "user", "content": question}],
        }  # fmt: skip
        began, times, text, count = time.perf_counter(), [], "", 0
        async with self.http.stream("POST", "/v1/chat/completions", json=content) as response:
            assert response.status_code == 200, await response.aread()
            async for line in response.aiter_lines():
                if not line.startswith("data: {"):
                    continue
                event = json.loads(line[6:])
                count = (event["usage"] or {}).get("completion_tokens", count)
                said = event["choices"][0]["delta"].get("content") if event["choices"] else None
                if said:
                    times.append(time.perf_counter() - began)
                    text += said
        times = times or [time.perf_counter() - began]
        return Answer(text, count, times[0], times[-1])

    async def post(self, path: str) -> float:
        """Seconds until it is done."""
        began = time.perf_counter()
        response = await self.http.post(path)
        assert response.status_code == 200, response.text
        return time.perf_counter() - began


def start(folder: Path, *more: str) -> tuple[Process, float]:
    """A server, and the seconds until it is ready."""
    began = time.perf_counter()
    server = Process(
        folder, MODEL, "--no-tracking", "--queue", "128", *more,
        MLX_FT_CACHE=str(runtime.default_cache_dir()), OPENBLAS_NUM_THREADS=str(CORES),
    )  # fmt: skip
    with httpx.Client(base_url=server.url) as http:
        assert http.get("/ready").status_code == 200
    return server, time.perf_counter() - began


def mlx_lm(model: Path, size: Size, folder: Path) -> list[dict[str, Any]]:
    """mlx-lm's answers: the first one warms up."""
    job = {"model": str(model), "question": STORY, "tokens": size.long, "repeats": 2,
           "tolerance": 1e-3}  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    command = [sys.executable, str(SPEED / "mlx_lm_generate.py"), str(folder / "job.json")]
    found: list[dict[str, Any]] = json.loads(measuring.run(command).output.splitlines()[-1])
    return found


def llama_cpp(gguf: Path, size: Size, folder: Path) -> list[dict[str, Any]]:
    """llama.cpp's answers: the first one warms up."""
    home = Path(os.environ.get("MLX_FT_PEERS_ENV", "~/.cache/mlx-ft-peers")).expanduser() / "llama"
    if not (home / "node_modules").is_dir():
        sys.exit(f"{home} has no node-llama-cpp: run .ci/peers.sh once, or leave --llama out")
    shutil.copy(SPEED / "llama_cpp.js", home)
    prompt = folder / "prompt.txt"
    prompt.write_text(f"<|im_start|>user\n{STORY}<|im_end|>\n<|im_start|>assistant\n")
    command = ["node", str(home / "llama_cpp.js"), str(gguf), str(prompt), str(size.long), "2",
               str(CORES)]  # fmt: skip
    found: list[dict[str, Any]] = json.loads(measuring.run(command).output.splitlines()[-1])
    return found


def exported(folder: Path) -> list[Path]:
    """GGUF files of the model with an adapter in it."""
    command = [sys.executable, "-m", "mlx_ft", "export", str(folder / ADAPTERS[0]), "--to", "gguf",
               "--model", "embedded", "--force"]  # fmt: skip
    files = []
    for dtype in ("float32", "q8_0"):
        files.append(folder / f"{dtype}.gguf")
        measuring.run([*command, "--dtype", dtype, "--out", str(files[-1])])
    return files
