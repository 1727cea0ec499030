"""The webhook: what is sent, when it is tried again, and that nothing of it reaches the run."""

import json
import logging
import socket
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from mlx_ft.tracking import webhook
from mlx_ft.tracking.webhook import notify, payload

SUMMARY = {
    "status": "FAILED",
    "reason": "the loss is NaN",
    "run_id": "abc",
    "steps": 12,
    "val_loss_after": 0.4321,
    "accuracy_after": None,
    "wall_seconds": 61.2,
    "system_prompt": "not for others",
}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(webhook, "PAUSE", 0.01)
    monkeypatch.setattr(webhook, "TIMEOUT", 0.3)


@pytest.fixture
def hook():
    """A server with the answers that it gives, one after the other, and what it was sent."""
    release = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            server.received.append((self.path, self.headers["Content-Type"], json.loads(content)))
            answer = server.answers.pop(0) if server.answers else 200
            if answer == "hang":
                release.wait(10)
            elif answer == "trickle":
                self.wfile.write(b"HTTP/1.0 200 OK\r\n")
                while not release.wait(0.1):
                    self.wfile.write(b"X: y\r\n")
            elif isinstance(answer, str):
                self.send_response(302)
                self.send_header("Location", answer)
                self.end_headers()
            else:
                self.send_response(answer)
                self.end_headers()

        def do_GET(self):
            server.received.append((self.path, "GET", None))

        def log_message(self, *_):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    server.received, server.answers = [], []
    server.handle_error = lambda *_: None
    server.url = f"http://127.0.0.1:{server.server_port}/services/SECRET?key=x"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    release.set()
    server.shutdown()
    thread.join()
    server.server_close()


def tell(url):
    return notify(url, SUMMARY, Path("/runs/one"), "one")


def test_one_post_with_what_is_known(hook, caplog):
    assert tell(hook.url)
    ((path, kind, content),) = hook.received
    assert (path, kind) == ("/services/SECRET?key=x", "application/json")
    text = content.pop("text")
    assert content.pop("host")
    assert content == {
        "event": "run_ended", "run": "one", "run_dir": "/runs/one", "run_id": "abc",
        "status": "FAILED", "reason": "the loss is NaN", "steps": 12, "val_loss_after": 0.4321,
        "accuracy_after": None, "wall_seconds": 61.2,
    }  # fmt: skip
    assert text.startswith("mlx-ft run one on ")
    assert text.endswith(
        ": FAILED after 12 steps and 61 s, validation loss 0.4321: the loss is NaN"
    )
    assert caplog.records == []


def test_nothing_known_but_the_status():
    content = payload({"status": "KILLED", "val_loss_after": float("nan")}, Path("x"), "one")
    assert content["text"].endswith(": KILLED")
    assert content["val_loss_after"] is None


@pytest.mark.parametrize("passing", [500, 503, 429])
def test_a_passing_failure_is_tried_again(hook, passing, caplog):
    hook.answers = [passing, passing]
    assert tell(hook.url)
    assert len(hook.received) == 3
    assert caplog.records == []


@pytest.mark.parametrize(
    ("answers", "tries", "reason"),
    [
        ([500, 502, 503], 3, "HTTP 503"),
        ([404], 1, "HTTP 404"),
        (["ftp://127.0.0.1/x"], 1, "HTTP 302"),
        (["file:///etc/passwd"], 1, "HTTP 302"),
        (["/elsewhere"], 1, "HTTP 302"),
    ],
)
def test_a_failure_is_one_warning_without_the_address(hook, caplog, answers, tries, reason):
    hook.answers = answers
    assert not tell(hook.url)
    assert len(hook.received) == tries
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert reason in record.getMessage()
    assert "SECRET" not in caplog.text
    assert "127.0.0.1" not in caplog.text


@pytest.mark.parametrize("answer", ["hang", "trickle"])
def test_a_server_that_does_not_come_to_an_end_is_left(hook, caplog, answer):
    hook.answers = [answer] * 3
    began = time.monotonic()
    assert not tell(hook.url)
    assert time.monotonic() - began < 20
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    "url",
    ["ftp://127.0.0.1/SECRET", "file:///etc/SECRET", "http://[SECRET", "http://a b/SECRET",
     "http://SECRET\n/", "http://SECRET:99999/x", "http://SECRET.invalid/x", ""],
)  # fmt: skip
def test_no_address_raises_or_is_named(url, caplog):
    assert not tell(url)
    assert len(caplog.records) == 1
    assert "SECRET" not in caplog.text


def test_refused(caplog):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert not tell(f"http://127.0.0.1:{free.getsockname()[1]}/SECRET")
    assert "Connection refused" in caplog.text
    assert "SECRET" not in caplog.text


def test_what_json_does_not_know(hook):
    assert notify(hook.url, {"status": "FINISHED", "steps": Path("x")}, Path("/r"), "one")
    assert hook.received[0][2]["steps"] == "x"
