"""A server within the test's process, on a port of its own, with tiny models."""

import hashlib
import json
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from mlx_ft.engine.engine import Limits
from mlx_ft.serve.app import create_app
from mlx_ft.serve.job import CANCELLED, ENDED
from mlx_ft.serve.protocol import Patient
from mlx_ft.serve.run import bound
from mlx_ft.serve.security import Rules
from mlx_ft.serve.server import Server
from mlx_ft.serve.state import Settings
from tests.engine import adapters
from tests.models import tiny

TIMEOUT = 60
# With a generation prompt, as templates have it; the tools where there are any.
TEMPLATE = (
    "{% for t in tools or [] %}{{ t['function']['name'] }};{% endfor %}"
    "{% for m in messages %}{{ m['role'][0] }}:{{ m['content'] }}</s>{% endfor %}"
    "{% if add_generation_prompt %}a:{% endif %}"
)


def make_models(folder: Path) -> dict[str, Path]:
    """Two tiny models and the first one's adapters, each in a folder."""
    for seed, name in enumerate(("tiny", "second")):
        tiny.save(folder / name, seed=seed)
        config = json.loads((folder / name / "tokenizer_config.json").read_text())
        config["chat_template"] = TEMPLATE
        (folder / name / "tokenizer_config.json").write_text(json.dumps(config))
    return {"tiny": folder / "tiny", "second": folder / "second", **adapters.save(None, folder)}


class Served:
    """Begins at once; `close` ends it."""

    def __init__(
        self, folder: Path, models: dict[str, Path], rules: Rules | None = None, **settings: Any
    ) -> None:
        self.home = folder / "home"
        given = {
            "base": "tiny",
            "named": {name: str(models[name]) for name in ("tiny", "second")},
            "limits": Limits(rows=4, waiting=8),
            "tracking": ("tracking=none", "memory_profile=cpu", "device=cpu"),
            **settings,
        }
        self.server = Server.open(Settings(self.home, cache_dir=folder / "cache", **given))
        config = uvicorn.Config(
            create_app(self.server, rules or Rules("127.0.0.1")), http=Patient, ws="none",
            lifespan="on", log_config=None, access_log=False, timeout_graceful_shutdown=10,
        )  # fmt: skip
        self.loop = uvicorn.Server(config)
        sock = bound("127.0.0.1", 0)
        self.port = sock.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.loop.run, kwargs={"sockets": [sock]})
        self._thread.start()
        until(lambda: self.loop.started)
        self.client = httpx.Client(base_url=self.url, timeout=TIMEOUT)

    def close(self) -> None:
        self.client.close()
        self.server.state.closing.set()
        self.loop.should_exit = True
        self._thread.join(TIMEOUT)
        assert not self._thread.is_alive()

    def clean(self) -> None:
        """As it was when it began, but for the jobs that have ended."""
        server = self.server
        for job in server.jobs.all():
            if job.status not in ENDED:
                server.jobs.stop(job.id, CANCELLED)
        until(lambda: all(job.status in ENDED for job in server.jobs.all()))
        server.state.deactivate()
        if server.state.base.name != "tiny":
            server.state.target("tiny")
        for kind in ("files", "datasets", "adapters"):
            for name in server.store.names(kind):
                server.store.remove(kind, name)
                server.state.drop(name)

    def get(self, path: str, **more: Any) -> Any:
        """The content of an answer that is fine."""
        return fine(self.client.get(path, **more))

    def post(self, path: str, content: Any = None, **more: Any) -> Any:
        return fine(self.client.post(path, json=content, **more))

    def chat(self, model: str, text: str = "abc", **more: Any) -> str:
        """The greedy answer to a question."""
        messages = [{"role": "user", "content": text}]
        asked = {"model": model, "messages": messages, "temperature": 0, "max_tokens": 12, **more}
        return self.post("/v1/chat/completions", asked)["choices"][0]["message"]["content"]


def fine(response: httpx.Response) -> Any:
    assert response.status_code == 200, response.text
    kind = response.headers["content-type"]
    return response.json() if kind == "application/json" else response.text


def refused(response: httpx.Response, status: int, code: str | None = None) -> str:
    """The message of an error, which has to be of OpenAI's shape."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert code in (None, error["code"]), error
    return error["message"]


def until(true: Any, timeout: float = TIMEOUT) -> None:
    """Wait for something."""
    end = time.monotonic() + timeout
    while not true():
        assert time.monotonic() < end
        time.sleep(0.04)


def events(text: str) -> list[Any]:
    """The data of server-sent events; the last of OpenAI's is `[DONE]`."""
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    data = [block.partition("data: ")[2] for block in blocks]
    return [one if one == "[DONE]" else json.loads(one) for one in data]


def tree(folder: Path) -> str:
    """A digest of everything in a folder."""
    found = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        found.update(str(path.relative_to(folder)).encode())
        if path.is_file() and not path.is_symlink():
            found.update(path.read_bytes())
    return found.hexdigest()
