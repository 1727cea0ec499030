"""The end of a run, told to an address of the user's: one JSON POST (`tracking.webhook`)."""

from __future__ import annotations

import json
import logging
import platform
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any
from urllib.parse import urlsplit

logger = logging.getLogger("mlx_ft.tracking")

TRIES = 3
TIMEOUT = 10.0  # seconds for each
PAUSE = 1.0  # seconds before the second try; twice that before the third
KEYS = ("run_id", "status", "reason", "steps", "val_loss_after", "accuracy_after", "wall_seconds")
TEXT_LENGTH = 1000  # of the reason in the sentence


def notify(url: str, summary: Mapping[str, Any], run_dir: Path, name: str) -> bool:
    """Tell `url` how the run `name` ended; True when it answered with success.

    summary: as in `summary.json`. Up to 3 tries of 10 seconds; a refusal (4xx) and a redirection
    end them. Never raises, and never names the address, which may be a secret: a failure is one
    warning.
    """
    answers: SimpleQueue[str] = SimpleQueue()
    # In a thread: looking up a name, or an answer byte by byte, knows no time limit.
    arguments = (url, summary, run_dir, name, answers)
    threading.Thread(target=_try, args=arguments, name="mlx-ft-webhook", daemon=True).start()
    try:
        problem = answers.get(timeout=TRIES * (TIMEOUT + PAUSE))
    except Empty:
        problem = "no answer"
    if problem:
        logger.warning("tracking.webhook was not told that the run ended (%s).", problem)
    return not problem


def _try(
    url: str, summary: Mapping[str, Any], run_dir: Path, name: str, answers: SimpleQueue[str]
) -> None:
    """Put the problem of the last try into `answers`; no problem is an empty text."""
    problem = ""
    try:
        data = json.dumps(payload(summary, run_dir, name), default=str).encode()
        for attempt in range(TRIES):
            time.sleep(PAUSE * attempt)
            problem, again = _post(url, data)
            if not again:
                break
    except Exception as error:  # its text may name the address
        problem = type(error).__name__
    answers.put(problem)


def payload(summary: Mapping[str, Any], run_dir: Path, name: str) -> dict[str, Any]:
    """What is sent. Figures that are not known or not finite are null."""
    known = {key: _finite(summary.get(key)) for key in KEYS}
    host = platform.node()
    return {
        "event": "run_ended",
        "run": name,
        "run_dir": str(run_dir),
        "host": host,
        **known,
        "text": _sentence(known, name, host),
    }


def _sentence(known: Mapping[str, Any], name: str, host: str) -> str:
    """What chat services show: they take a `text` and ignore the rest."""
    text = f"mlx-ft run {name} on {host}: {known['status']}"
    if known["steps"] is not None:
        text += f" after {known['steps']} steps"
    if isinstance(known["wall_seconds"], float):
        text += f" and {known['wall_seconds']:.0f} s"
    if known["val_loss_after"] is not None:
        text += f", validation loss {known['val_loss_after']:.4f}"
    if known["accuracy_after"] is not None:
        text += f", task accuracy {known['accuracy_after']:.1%}"
    return text + (f": {known['reason']}"[:TEXT_LENGTH] if known["reason"] else "")


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


class _NoRedirection(urllib.request.HTTPRedirectHandler):
    """A redirected POST would become a GET without its content, perhaps of another scheme."""

    def redirect_request(self, *_: Any) -> None:
        return None  # the answer 3xx is then an HTTPError


def _post(url: str, data: bytes) -> tuple[str, bool]:
    """One try: (problem, whether another try may help); no problem is an empty text."""
    if urlsplit(url).scheme not in ("http", "https"):
        return "not an http or https address", False
    headers = {"Content-Type": "application/json", "User-Agent": "mlx-ft"}
    request = urllib.request.Request(url, data, headers, method="POST")  # noqa: S310
    opener = urllib.request.build_opener(_NoRedirection)
    try:
        with opener.open(request, timeout=TIMEOUT):
            return "", False
    except urllib.error.HTTPError as error:
        error.close()
        return f"HTTP {error.code}", error.code >= 500 or error.code in (408, 429)
    except OSError as error:  # URLError holds another one
        cause = error.reason if isinstance(error, urllib.error.URLError) else error
        if isinstance(cause, ssl.SSLError):
            return cause.reason or "TLS", True  # its text names the host
        return getattr(cause, "strerror", None) or type(cause).__name__, True
