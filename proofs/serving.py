"""A server of tiny models in a process of its own, and what each of its adapters answers alone.

For the proofs of `mlx-ft serve`.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ft import runtime

runtime.prepare(threads=1)

from mlx_ft.serve.store import Store  # noqa: E402
from tests.engine.adapters import greedy, with_adapter  # noqa: E402
from tests.serve.process import Process  # noqa: E402
from tests.serve.served import make_models  # noqa: E402

BASE = "base"
ADAPTERS = ("small", "large", "attention", "other")
MODELS = (BASE, *ADAPTERS)
LETTERS = "abcdefghijklmnopqrstuvwxyz"
END = 257


@dataclass
class Alone:
    """Greedy answers of one model with one adapter and nobody else, by the whole text each time."""

    folders: dict[str, Path]
    _models: dict[str, Any] = field(default_factory=dict)
    _known: dict[tuple[str, str, int], str] = field(default_factory=dict)

    def answer(self, model: str, prompt: str, count: int) -> str:
        """What goes on from a prompt, of `count` tokens at most. model: BASE or an adapter."""
        key = model, prompt, count
        if key not in self._known:
            if model not in self._models:
                folder = None if model == BASE else self.folders[model]
                self._models[model] = with_adapter(None, folder)
            tokenizer = self._tokenizer()
            tokens = tokenizer.encode(prompt, add_special_tokens=False)
            found = greedy(self._models[model], tokens, count)
            found = found[: found.index(END)] if END in found else found
            # mlx-lm's streaming detokenizer, which the server has, shows the byte 0 so.
            self._known[key] = tokenizer.decode(found).replace("\0", "\u0100")
        return self._known[key]

    def _tokenizer(self) -> Any:
        if "" not in self._models:
            from transformers import AutoTokenizer

            self._models[""] = AutoTokenizer.from_pretrained(self.folders["tiny"])
        return self._models[""]


@contextmanager
def served(
    folder: Path, *arguments: str, kept: int = 0, **environment: str
) -> Iterator[tuple[Process, Alone]]:
    """A server with the tiny model and its adapters, by their folders; kept: so many more of them
    in its store, called `kept-ADAPTER-NUMBER`.
    """
    folders = make_models(folder)
    keep(folder / "home", folders, kept)
    more = [f"--adapter={name}={folders[name]}" for name in ADAPTERS]
    server = Process(
        folder, str(folders["tiny"]), "--no-tracking", *more, *arguments, **environment
    )
    try:
        yield server, Alone(folders)
    finally:
        server.close()


def keep(home: Path, folders: dict[str, Path], count: int) -> None:
    """Put so many adapters into a store whose server does not run."""
    store = Store(home)
    for number in range(count):
        adapter = ADAPTERS[number % len(ADAPTERS)]
        files = {path.name: path.read_bytes() for path in folders[adapter].iterdir()}
        about = {"base": "tiny", "digest": None, "stamp": f"{number:016x}"}
        store.put("adapters", f"kept-{adapter}-{number}", files, about)
    store.close()


def prompts(count: int, chance: random.Random, length: int = 3) -> list[str]:
    """So many texts of a few letters."""
    return ["".join(chance.choices(LETTERS, k=length)) for _ in range(count)]


def asked(model: str, prompt: str, count: int, **more: Any) -> dict[str, Any]:
    """The body of POST /v1/completions."""
    return {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": count, **more}
