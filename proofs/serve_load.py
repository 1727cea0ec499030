"""Many clients of `mlx-ft serve` at once: nobody is lost, mixed up or kept waiting for nothing.

python proofs/serve_load.py [clients=100] [requests=10000] [leavers=200] [changes=500] [seed=0]

A server of a tiny model with four adapters, in a process of its own. Every answer is compared with
that of the model alone with that adapter, computed here without a cache.

crowd     so many clients at once against a queue of 32: each gets 200 or 429 with Retry-After, and
          200 when it comes back
requests  so many, one after another by 16 clients: the server's memory over time, and its slope
leavers   so many clients that leave in mid-stream: tokens that are computed until the place is free
changes   so many loads, unloads and deletions of adapters while others ask
drain     SIGTERM while 30 answers are streamed: all come to their end, nothing new is taken

0 leaves a part out. Ends with 1 when anything was wrong.
"""

from __future__ import annotations

import asyncio
import json
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from proofs.serve_changes import changes  # noqa: E402
from proofs.serve_leavers import leavers  # noqa: E402
from proofs.serving import BASE, MODELS, Alone, asked, prompts, served  # noqa: E402
from tests.serve.process import Process  # noqa: E402

PATH = "/v1/completions"
QUEUE = 32
LONG = 100  # tokens of an answer in a crowd, so that the queue fills
SHORT = 8
STREAMS = 30  # what the queue holds, even when they come before anybody is answered
TOGETHER = 16
EVERY = 100  # requests between two looks at the memory
FLAT = 64.0  # KB more for 1,000 requests, at most: a leak of 64 bytes each


def client(server: Process, timeout: float = 120) -> httpx.AsyncClient:
    """One with as many connections as it takes."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    return httpx.AsyncClient(base_url=server.url, timeout=timeout, limits=limits)


async def crowd(server: Process, alone: Alone, clients: int, chance: random.Random) -> list[str]:
    """What is wrong when so many ask at once."""
    texts = prompts(clients, chance)
    wanted = [(MODELS[at % len(MODELS)], text) for at, text in enumerate(texts)]
    expected = {one: alone.answer(*one, LONG) for one in wanted}
    first, wrong = Counter[int](), []

    async def ask(http: httpx.AsyncClient, one: tuple[str, str]) -> None:
        for turn in range(1000):
            response = await http.post(PATH, json=asked(*one, LONG))
            if turn == 0:
                first[response.status_code] += 1
            if response.status_code == 429:
                wait = response.headers.get("retry-after", "")
                if not wait.isdecimal():
                    wrong.append(f"429 with Retry-After {wait!r}")
                await asyncio.sleep(float(wait or 1) * random.random())  # noqa: S311
                continue
            if response.status_code != 200:
                wrong.append(f"{response.status_code}: {response.text[:200]}")
            elif response.json()["choices"][0]["text"] != expected[one]:
                wrong.append(f"{one}: another answer than alone")
            return
        wrong.append(f"{one}: never answered")

    async with client(server) as http:
        await asyncio.gather(*(ask(http, one) for one in wanted))
    told = ", ".join(f"{count} got {status}" for status, count in sorted(first.items()))
    print(f"crowd: of {clients} at once {told}; in the end all were answered")
    if clients > QUEUE + TOGETHER and first[429] == 0:
        wrong.append("the queue was never full: nothing was shown")
    return wrong


async def many(server: Process, alone: Alone, requests: int, chance: random.Random) -> list[str]:
    """What is wrong with so many requests, and the memory meanwhile."""
    process = psutil.Process(server.process.pid)
    wanted = [(model, text) for text in prompts(40, chance) for model in MODELS]
    expected = {one: alone.answer(*one, SHORT) for one in wanted}
    wrong: list[str] = []
    memory: list[tuple[int, float]] = []  # (requests so far, KB)
    numbers = iter(range(requests))
    started = time.monotonic()

    async def work(http: httpx.AsyncClient) -> None:
        for number in numbers:
            one = wanted[number % len(wanted)]
            if number % 4 == 3:  # a prompt that nobody has asked yet
                text = "".join(chance.choices("0123456789", k=20))
                response = await http.post(PATH, json=asked(one[0], text, SHORT))
            else:
                response = await http.post(PATH, json=asked(*one, SHORT, stream=number % 4 == 2))
                if response.status_code == 200 and said(response) != expected[one]:
                    wrong.append(f"request {number}: {one}: another answer than alone")
            if response.status_code != 200:
                wrong.append(f"request {number}: {response.status_code}: {response.text[:200]}")
            if number % EVERY == 0:
                memory.append((number, process.memory_info().rss / 1024))

    async with client(server) as http:
        await asyncio.gather(*(work(http) for _ in range(TOGETHER)))
    seconds = time.monotonic() - started
    print(f"requests: {requests:,} in {seconds:.0f} s ({requests / seconds:.0f} a second)")
    tenth = max(1, len(memory) // 10)
    print("  memory, MB: " + ", ".join(f"{kb / 1024:.1f} ({at:,})" for at, kb in memory[::tenth]))
    second = memory[len(memory) // 2 :]
    if len(second) > 2:
        rise = slope(second)
        print(f"  slope of the second half: {rise:+.1f} KB for 1,000 requests")
        if requests >= 5000 and rise > FLAT:
            wrong.append(f"memory is not flat: {rise:.1f} KB for 1,000 requests")
    return wrong


def slope(points: list[tuple[int, float]]) -> float:
    """Of the straight line through them by least squares, for 1,000."""
    x = [at / 1000 for at, _ in points]
    y = [kb for _, kb in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    both = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return both / sum((a - mean_x) ** 2 for a in x)


def said(response: httpx.Response) -> str:
    """The text of an answer, streamed or not."""
    if not response.headers["content-type"].startswith("text/event-stream"):
        return str(response.json()["choices"][0]["text"])
    lines = [line[6:] for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return "".join(json.loads(line)["choices"][0]["text"] for line in lines[:-1])


async def drain(server: Process, alone: Alone, chance: random.Random) -> list[str]:
    """What is wrong when the server is told to end while it answers."""
    texts = prompts(STREAMS, chance)
    wanted = [(MODELS[at % len(MODELS)], text) for at, text in enumerate(texts)]
    expected = {one: alone.answer(*one, LONG) for one in wanted}
    wrong: list[str] = []
    begun = asyncio.Barrier(len(wanted) + 1)

    async def ask(http: httpx.AsyncClient, one: tuple[str, str]) -> None:
        content = asked(*one, LONG, stream=True)
        async with http.stream("POST", PATH, json=content) as response:
            await begun.wait()
            await response.aread()
        if response.status_code != 200 or said(response) != expected[one]:
            wrong.append(f"{one}: {response.status_code}, cut off or another answer than alone")

    async with client(server) as http:
        asking = [asyncio.ensure_future(ask(http, one)) for one in wanted]
        await begun.wait()
        server.process.send_signal(signal.SIGTERM)
        await asyncio.gather(*asking)
        try:
            status = (await http.post(PATH, json=asked(BASE, "abc", 1))).status_code
        except httpx.HTTPError:
            status = 503  # nobody listens any more
        if status != 503:
            wrong.append(f"a request after SIGTERM got {status}")
    code = server.process.wait(60)
    print(f"drain: {len(wanted)} streams came to their end after SIGTERM; exit code {code}")
    return wrong + ([] if code == 143 else [f"the exit code is {code}; expected 143"])


def main(
    clients: int = 100, requests: int = 10_000, leaving: int = 200, changing: int = 500,
    seed: int = 0,
) -> int:  # fmt: skip
    """0 when nothing was wrong."""
    started, chance, wrong = time.monotonic(), random.Random(seed), []  # noqa: S311
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = ("--queue", str(QUEUE), "--rows", str(TOGETHER), "--allow-lora-routes")
        with served(folder, *options, kept=changing // 5) as (server, alone):
            parts: list[tuple[int, Callable[[], Awaitable[list[str]]]]] = [
                (clients, lambda: crowd(server, alone, clients, chance)),
                (requests, lambda: many(server, alone, requests, chance)),
                (changing, lambda: changes(server, alone, changing, chance)),
                (1, lambda: drain(server, alone, chance)),
            ]
            for size, part in parts:
                wrong += asyncio.run(_awaited(part)) if size else []
        if leaving:
            wrong += leavers(folder / "leavers", leaving, chance)
    for fault in wrong[:20]:
        print(f"    {fault}")
    print(f"{len(wrong)} faults, {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


async def _awaited(part: Callable[[], Awaitable[list[str]]]) -> list[str]:
    return await part()


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
