"""Health, figures, the page of paths, downloads; and what a connection cannot do to the server."""

import asyncio
import json
import re
import socket
import threading
import time
from types import SimpleNamespace

import pytest

from mlx_ft.errors import ConfigError, UserError
from mlx_ft.models import catalog
from mlx_ft.serve import downloads, protocol, run
from mlx_ft.serve.limits import Pace
from mlx_ft.serve.security import Rules
from mlx_ft.serve.server import Server
from mlx_ft.serve.state import Settings
from tests.serve.served import fine, refused, until

KEY = "0123456789abcdef"


def test_health_and_readiness(served):
    assert served.get("/health") == {"status": "ok"}
    served.chat("tiny")
    assert served.get("/ready")["status"] == "ready"


def test_figures_are_those_of_what_was_done(serve):
    served = serve()
    for _ in range(3):
        served.chat("tiny")
    text = served.get("/metrics")
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    label = 'adapter="tiny"'
    path = 'path="/v1/chat/completions"'
    assert values[f'mlx_ft_requests_total{{{label},{path},status="200"}}'] == "3"
    assert values[f"mlx_ft_prompt_tokens_total{{{label}}}"] == "24"  # u:abc</s>a: three times
    assert int(values[f"mlx_ft_cached_tokens_total{{{label}}}"]) > 0
    assert values[f"mlx_ft_request_seconds_count{{{label}}}"] == "3"
    assert values[f'mlx_ft_request_seconds_bucket{{{label},le="+Inf"}}'] == "3"
    assert values["mlx_ft_ready"] == "1"
    names = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert len(names) == len(set(names))


def test_the_page_of_paths_needs_nothing_from_elsewhere(served):
    document = served.get("/openapi.json")
    response = served.client.get("/docs")
    assert "default-src 'none'" in response.headers["content-security-policy"]
    page = fine(response)
    for path in document["paths"]:
        assert path.replace("{", "{") in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)='?\"?https?:", page)


def test_every_path_says_that_it_may_refuse(served):
    for path, methods in served.get("/openapi.json")["paths"].items():
        for method, about in methods.items():
            assert [*about["responses"]["4XX"]["content"]] == ["application/json"], (method, path)


def test_downloads_are_told_line_by_line(serve, monkeypatch, tmp_path):
    served = serve()
    here = tmp_path / "hub"
    here.mkdir()
    calls = []

    def download(name, cache_dir, conf_dir, *, progress, told):
        calls.append(name)
        told(1000)
        (here / "blob").write_bytes(b"x" * 400)
        time.sleep(0.3)
        (here / "blob").write_bytes(b"x" * 1000)

    monkeypatch.setattr(downloads, "EVERY", 0.05)
    monkeypatch.setattr(catalog, "download", download)
    monkeypatch.setattr(downloads, "size_here", lambda base: catalog.disk_usage(here))
    with served.client.stream("POST", "/api/download-model/tinyllama") as response:
        assert response.headers["content-type"].startswith("application/x-ndjson")
        told = [json.loads(line) for line in response.iter_lines()]
    assert calls == ["TinyLlama/TinyLlama-1.1B-Chat-v1.0"]
    assert {line["progress"] for line in told} >= {40.0, 100.0}
    assert told[-1]["status"] == "completed"
    assert {line["model"] for line in told} == {"tinyllama"}


def test_a_download_that_fails_says_why_and_can_be_asked_for_again(serve, monkeypatch):
    served = serve()
    wrong = [ConfigError("the hub is not there")]

    def download(*_, **__):
        if wrong:
            raise wrong.pop()

    monkeypatch.setattr(catalog, "download", download)
    path = "/api/download-model/tinyllama"
    *_, last = [json.loads(line) for line in served.post(path).splitlines()]
    assert last["status"] == "failed"
    assert "not there" in last["error"]["message"]
    *_, last = [json.loads(line) for line in served.post(path).splitlines()]
    assert last["status"] == "completed"
    refused(served.client.post("/api/download-model/gpt-9"), 404, "model_not_found")
    refused(served.client.post("/api/download-model/evil/model"), 404, "model_not_found")


def test_who_watches_a_download_does_not_keep_the_server(monkeypatch):
    monkeypatch.setattr(downloads, "size_here", lambda base: 0)
    found, closing = downloads.Download(SimpleNamespace(name="x")), threading.Event()
    watched = downloads.lines(found, closing)

    async def watch():
        first = await anext(watched)
        closing.set()
        return [first, *[line async for line in watched]]

    monkeypatch.setattr(downloads, "EVERY", 0)
    told = asyncio.run(asyncio.wait_for(watch(), 10))
    assert [json.loads(line)["status"] for line in told] == ["downloading"]


def test_base_models_to_be_had(served):
    found = {one["id"]: one for one in served.get("/api/models")["models"]}
    assert found["tiny"]["downloaded"] is True
    assert found["tiny"]["in_use"] is True
    assert found["tinyllama"]["downloaded"] is False


def test_the_key_opens_everything_but_health(serve):
    served = serve(rules=Rules("127.0.0.1", (KEY,)))
    served.get("/health")
    for path in ("/v1/models", "/metrics", "/docs", "/openapi.json", "/ready", "/nowhere"):
        response = served.client.get(path)
        refused(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert served.get("/v1/models", headers={"authorization": f"Bearer {KEY}"})
    refused(served.client.get("/v1/models", headers={"authorization": "Bearer x" * 9}), 401)


def test_no_path_of_the_document_goes_without_the_key(serve):
    served = serve(rules=Rules("127.0.0.1", (KEY,)), lora_routes=True)
    paths = served.get("/openapi.json", headers={"authorization": f"Bearer {KEY}"})["paths"]
    asked = [(method, path) for path, methods in paths.items() for method in methods]
    assert len(asked) > 40
    for method, path in asked:
        if path != "/health":
            refused(served.client.request(method, path), 401, "invalid_api_key")


def test_only_its_own_names_and_pages(served):
    refused(served.client.get("/v1/models", headers={"host": "evil.example"}), 421)
    refused(served.client.get("/v1/models", headers={"origin": "http://evil.example"}), 403)
    response = served.client.options("/v1/models", headers={
        "origin": "http://evil.example", "access-control-request-method": "POST",
    })  # fmt: skip
    assert response.status_code == 403
    assert not [name for name in response.headers if name.startswith("access-control")]
    response = served.client.get("/v1/models", headers={"origin": served.url})
    assert fine(response)
    assert response.headers["x-content-type-options"] == "nosniff"


class Raw:
    """A connection by its bytes."""

    def __init__(self, served):
        self.socket = socket.create_connection(("127.0.0.1", served.port), timeout=20)

    def send(self, *lines, body=b""):
        head = "".join(f"{line}\r\n" for line in ("POST /v1/chat/completions HTTP/1.1",
                                                  "Host: localhost", *lines))  # fmt: skip
        self.socket.sendall(head.encode() + b"\r\n" + body)

    def trickle(self, seconds):
        """Headers without an end."""
        until = time.monotonic() + seconds
        with self.socket:
            while time.monotonic() < until:
                self.socket.sendall(b"x: y\r\n")
                time.sleep(0.05)

    def all(self):
        """What comes until the other side hangs up."""
        found = b""
        with self.socket:
            while part := self.socket.recv(1 << 16):
                found += part
        return found


def test_a_body_that_is_too_large_is_not_read(serve):
    served = serve(rules=Rules("127.0.0.1", body=1000))
    raw = Raw(served)
    raw.send("Content-Type: application/json", "Content-Length: 100000000000")
    assert b" 413 " in raw.all()
    raw = Raw(served)
    raw.send("Content-Type: application/json", "Transfer-Encoding: chunked",
             body=b"400\r\n" + b"x" * 1024 + b"\r\n")  # fmt: skip
    assert b" 413 " in raw.all()
    for length in ("-1", "abc", "1e3", "5, 6"):
        raw = Raw(served)
        raw.send("Content-Type: application/json", f"Content-Length: {length}", body=b"{}")
        assert b" 400 " in raw.all()
    raw = Raw(served)
    raw.send("Content-Length: 2", "Transfer-Encoding: chunked", body=b"2\r\n{}\r\n0\r\n\r\n")
    raw.socket.shutdown(socket.SHUT_WR)
    assert b" 200 " not in raw.all()
    served.get("/health")


def test_who_trickles_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(protocol, "HEADERS", 0.5)
    served = serve(rules=Rules("127.0.0.1", pace=Pace(grace=0.5, rate=1000)))
    raw = Raw(served)  # says nothing
    assert raw.all() == b""
    raw = Raw(served)  # headers without an end
    started = time.monotonic()
    raw.socket.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n")
    with pytest.raises(OSError):
        raw.trickle(10)
    assert time.monotonic() - started < 5
    raw = Raw(served)  # a body a byte at a time
    raw.send("Content-Type: application/json", "Content-Length: 1000")
    for _ in range(10):
        raw.socket.sendall(b"x")
        time.sleep(0.02)
    answer = raw.all()
    assert b" 408 " in answer
    assert b"too_slow" in answer
    until(lambda: not served.loop.server_state.connections)
    served.get("/health")


def test_who_does_not_read_is_cut_off(serve, monkeypatch):
    monkeypatch.setattr(protocol, "READING", 0.3)
    served = serve()
    state = served.server.state
    state.metrics.count("mlx_ft_requests_total", adapter="x" * 4_000_000)  # a long answer
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.connect(("127.0.0.1", served.port))
    sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
    until(lambda: served.loop.server_state.connections, 5)
    until(lambda: not served.loop.server_state.connections, 10)
    sock.close()
    served.get("/health")


def test_a_server_that_cannot_begin_says_why(tmp_path, models):
    def settings(**more):
        given = {"base": "tiny", "named": {"tiny": str(models["tiny"])}, **more}
        return Settings(tmp_path / "home", cache_dir=tmp_path, **given)

    with pytest.raises(UserError, match="no such recipe"):
        Server.open(settings(base="nothing"))
    with pytest.raises(UserError, match="mlx-ft models download"):
        Server.open(settings(base="tinyllama"))
    with pytest.raises(UserError, match="whichever model is in use"):
        Server.open(settings(named={"base": "x"}))
    server = Server.open(settings())
    with pytest.raises(UserError, match="--home"):
        Server.open(settings())
    with pytest.raises(UserError, match="--adapter") as error:
        run.give(server, {"x": str(tmp_path / "none"), "base": str(models["small"])})
    assert len(error.value.faults) >= 2
    run.give(server, {"mine": str(models["small"])})
    assert server.shelf.find("mine").kept is False
    server.store.close()


def test_keys_are_read_from_a_file(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"# of the team\n{KEY}\n\n{KEY[::-1]}\n")
    assert run.keys(file, None) == (KEY, KEY[::-1])
    assert run.keys(None, f" {KEY}\n") == (KEY,)
    assert run.keys(None, None) == ()
    file.write_text("# nothing\n")
    with pytest.raises(UserError, match="found no key"):
        run.keys(file, None)
    with pytest.raises(UserError, match="cannot be read"):
        run.keys(tmp_path / "none", None)
