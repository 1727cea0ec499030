"""Names that are meant to be more than names, put wherever a name goes."""

from __future__ import annotations

import random
import string
import urllib.parse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx

from tests.serve.test_names import HOSTILE

TEXTS = [name for name in HOSTILE if isinstance(name, str)]
PATHS = (
    ("POST", "/api/adapters/{}/load"), ("DELETE", "/api/adapters/{}"),
    ("PUT", "/api/adapters/{}/defaults"), ("GET", "/v1/models/{}"),
    ("DELETE", "/v1/models/{}"), ("GET", "/api/datasets/{}"),
    ("GET", "/api/datasets/{}/report"), ("DELETE", "/api/datasets/{}"),
    ("GET", "/v1/files/{}"), ("GET", "/v1/files/{}/content"), ("DELETE", "/v1/files/{}"),
    ("GET", "/api/training/status/{}"), ("POST", "/api/training/stop/{}"),
    ("POST", "/api/training/cancel/{}"),
    ("POST", "/api/training/resume/{}"), ("GET", "/api/training/logs/{}"),
    ("GET", "/api/training/events/{}"), ("GET", "/api/training/metrics/{}"),
    ("GET", "/v1/fine_tuning/jobs/{}"), ("POST", "/v1/fine_tuning/jobs/{}/cancel"),
    ("POST", "/v1/fine_tuning/jobs/{}/pause"), ("POST", "/v1/fine_tuning/jobs/{}/resume"),
    ("GET", "/v1/fine_tuning/jobs/{}/events"),
    ("GET", "/v1/fine_tuning/jobs/{}/checkpoints"), ("POST", "/api/download-model/{}"),
)  # fmt: skip
ROWS = ["### Instruction:\na\n\n### Response:\nb"]
# Pieces that lead elsewhere where something takes them for more than letters.
PIECES = (
    "..", "/", "\\", "%2e%2e", "%2f", "%5c", "%252e", "\0", "%00", "~", "$HOME", "${HOME}", "`id`",
    "$(id)", ";", "|", "&", "\n", "\r\n", "\t", "*", "?", "#", ":", "C:", "file://", "outside",
    "secret", "etc", "passwd", "adapters", "jobs", ".lock", "about.json", "\u2215", "\uff0f",
    "\uff0e\uff0e", "\u202e", "\ufeff", "\u0130", "e\u0301", "CON", "nul", "{{7*7}}", "${7*7}",
    "<%= 1 %>", "-rf", "--help", "+", "=", "'", '"', " ", "a", "b", "x" * 90,
)  # fmt: skip


def names(count: int, chance: random.Random) -> list[str]:
    """The known ones, then as many made of their pieces as are missing; none of letters alone."""
    harmless = set(string.ascii_letters + string.digits + "._-")
    found = dict.fromkeys(TEXTS)
    while len(found) < count:
        made = "".join(chance.choices(PIECES, k=chance.randint(1, 6)))
        if not set(made) <= harmless:
            found[made] = None
    return [*found][:count]


def attack(client: httpx.Client, name: str, adapter: Path) -> Iterator[str]:
    """What is wrong after a name was put into every place. adapter: a folder to load as it.

    Every answer has to be a refusal, and none may hold the word `secret` unless the name has it.
    """
    quoted = urllib.parse.quote(name, safe="")
    for method, path in PATHS:
        for place in {quoted, name if name.isascii() and name.isprintable() else quoted}:
            if "?" in place or "#" in place or place in ("", ".", ".."):
                continue  # httpx makes another path of these
            content: Any = {"json": {}} if method == "PUT" else {}
            response = client.request(method, path.format(place), **content)
            yield from _faults(name, f"{method} {path}", response)
    for path, content in bodies(name, adapter):
        yield from _faults(name, path, client.post(path, json=content))
    data, file = {"dataset_name": name}, {"file": ("rows.jsonl", b'{"text": "a b c"}\n')}
    response = client.post("/api/training/data/upload", data=data, files=file)
    yield from _faults(name, "upload", response)


def bodies(name: str, adapter: Path) -> Sequence[tuple[str, dict[str, Any]]]:
    """(path, body) with the name in each field that takes one."""
    chat = [{"role": "user", "content": "a"}]
    return (
        ("/api/training/data/upload", {"dataset_name": name, "train_texts": ROWS}),
        ("/api/training/start", {"model_name": name, "train_texts": ROWS}),
        ("/api/training/start", {"model_name": "tiny", "dataset_name": name}),
        ("/v1/fine_tuning/jobs", {"model": "tiny", "training_file": name}),
        ("/v1/fine_tuning/jobs", {"model": name, "training_file": "file-0"}),
        ("/v1/chat/completions", {"model": name, "messages": chat}),
        ("/v1/completions", {"model": name, "prompt": "a"}),
        ("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(adapter)}),
        ("/v1/unload_lora_adapter", {"lora_name": name}),
    )


def _faults(name: str, where: str, response: httpx.Response) -> Iterator[str]:
    if not 400 <= response.status_code < 500:
        yield f"{where}: {name!r} got {response.status_code}: {response.text[:200]}"
    if "secret" in response.text and "secret" not in name:
        yield f"{where}: {name!r} was told a secret: {response.text[:200]}"
