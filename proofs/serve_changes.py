"""Adapters are loaded, unloaded and deleted while others are asked: no answer is a wrong one.

Used by `python proofs/serve_load.py`.
"""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from itertools import count as numbers
from typing import Any

import httpx

from proofs.serving import ADAPTERS, BASE, MODELS, Alone, asked, prompts
from tests.serve.process import Process

PATH = "/v1/completions"
TOKENS = 8
ASKERS = 8
LENT = "lent"  # given by its folder, and taken back; sometimes one adapter, sometimes another


class Changes:
    """Changes of a server's adapters, each checked at once, while askers check their answers."""

    def __init__(
        self, http: httpx.AsyncClient, server: Process, alone: Alone, chance: random.Random
    ) -> None:
        self.http, self.server, self.alone, self.chance = http, server, alone, chance
        self.texts = prompts(10, chance)
        self.wrong: list[str] = []
        self.done: Counter[str] = Counter()
        self.asked: Counter[int] = Counter()
        self.lent: str | None = None
        self.ended = False

    async def run(self, count: int) -> None:
        """So many changes, under load."""
        askers = [asyncio.ensure_future(self.ask()) for _ in range(ASKERS)]
        try:
            while sum(self.done.values()) < count:
                await self.chance.choice((self.lend, self.activate, self.replace))()
        finally:
            self.ended = True
            await asyncio.gather(*askers)

    async def ask(self) -> None:
        """One client: always right, and only LENT may be away."""
        for number in numbers():
            if self.ended:
                return
            model = (*MODELS, LENT)[number % (len(MODELS) + 1)]
            text = self.chance.choice(self.texts)
            response = await self.answer(model, text)
            self.asked[response.status_code] += 1
            if model == LENT:
                fine = {self.alone.answer(name, text, TOKENS) for name in ADAPTERS}
                if response.status_code == 404:
                    continue
            else:
                fine = {self.alone.answer(model, text, TOKENS)}
            if response.status_code != 200 or _text(response) not in fine:
                self.wrong.append(f"{model}, {text}: {response.status_code}: {response.text[:200]}")

    async def lend(self) -> None:
        """Load an adapter from its folder, in place of another one, or take it back."""
        if self.lent is not None and self.chance.random() < 0.5:
            await self.post("unload", "/v1/unload_lora_adapter", {"lora_name": LENT})
            self.lent = None
            await self.check(LENT, None)
            return
        name = self.chance.choice(ADAPTERS)
        content = {"lora_name": LENT, "lora_path": str(self.alone.folders[name]),
                   "load_inplace": True}  # fmt: skip
        await self.post("load", "/v1/load_lora_adapter", content)
        self.lent = name
        await self.check(LENT, name)

    async def activate(self) -> None:
        """Let an adapter answer in the name of the base, and the base again."""
        name = self.chance.choice(ADAPTERS)
        await self.post("load", f"/api/adapters/{name}/load")
        await self.check("tiny", name)
        await self.post("unload", "/api/adapters/unload")
        await self.check("tiny", BASE)

    async def replace(self) -> None:
        """Delete an adapter that the server keeps; nobody knows it any more."""
        found = (await self.http.get("/api/adapters")).json()["adapters"]
        kept = [one["name"] for one in found if one["name"].startswith("kept-")]
        if not kept:
            return
        name = kept[0]
        await self.post("load", f"/api/adapters/{name}/load")
        await self.check(name, name.split("-")[1])
        response = await self.http.delete(f"/api/adapters/{name}")
        self.note("delete", response)
        await self.check(name, None)
        await self.check("tiny", BASE)

    async def check(self, model: str, adapter: str | None) -> None:
        """An answer now has to be that adapter's; None: there is none of that name."""
        text = self.chance.choice(self.texts)
        response = await self.answer(model, text)
        if adapter is None:
            right = response.status_code == 404
        else:
            right = response.status_code == 200 and (
                _text(response) == self.alone.answer(adapter, text, TOKENS)
            )
        if not right:
            self.wrong.append(
                f"{model} as {adapter}, {text}: {response.status_code}: {response.text[:200]}"
            )

    async def answer(self, model: str, text: str) -> httpx.Response:
        """What goes on from a text."""
        return await self.http.post(PATH, json=asked(model, text, TOKENS))

    async def post(self, what: str, path: str, content: Any = None) -> None:
        """Ask for a change."""
        self.note(what, await self.http.post(path, json=content))

    def note(self, what: str, response: httpx.Response) -> None:
        """Count a change."""
        self.done[what] += 1
        if response.status_code != 200:
            self.wrong.append(f"{what}: {response.status_code}: {response.text[:200]}")


async def changes(server: Process, alone: Alone, count: int, chance: random.Random) -> list[str]:
    """What is wrong after so many loads, unloads and deletions under load."""
    async with httpx.AsyncClient(base_url=server.url, timeout=120) as http:
        found = Changes(http, server, alone, chance)
        await found.run(count)
    what = ", ".join(f"{number} {kind}s" for kind, number in sorted(found.done.items()))
    statuses = ", ".join(f"{number} got {code}" for code, number in sorted(found.asked.items()))
    print(f"changes: {what}; meanwhile {statuses}")
    return found.wrong


def _text(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["text"])
