"""The examples of docs/serving.md, in their order, against a server; every path has one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_ft.serve import jobs as module
from mlx_ft.serve.plan import Plan
from tests.serve.test_training import FAKE
from tests.test_docs import blocks

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
MODEL = "smollm2_135m"
# What each request was, filled in by curl, and what came of it.
CURL = """
set -euo pipefail
told='%{stderr}%{http_code} %{method} %{url_effective}\\n'
curl() { command curl --show-error -w "$told" "$@" 2>>"$LOG"; }
"""
# Places of the reader's machine, and how long it waits.
PLACES = ("http://127.0.0.1:8080", "/home/me/outputs/runs/X/adapter", "sleep 1")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl"),
]


@pytest.fixture
def served(serve, models, tmp_path, monkeypatch):
    """A tiny model by the embedded one's name; jobs that take two seconds and train nothing."""
    fake = FAKE.replace("ADAPTER", repr(str(models["small"])))
    fake = fake.replace('"5"', '"40"').replace("sleep(0.01)", "sleep(0.05)")
    (tmp_path / "fake.py").write_text(fake)
    monkeypatch.setattr(module, "COMMAND", (sys.executable, str(tmp_path / "fake.py")))
    monkeypatch.setattr("mlx_ft.serve.around.plan", lambda config, limit: Plan(0, 1))
    return serve(base=MODEL, named={MODEL: str(models["tiny"])}, lora_routes=True)


def script(served, models) -> str:
    text = CURL + "".join(blocks(PAGE, "bash"))
    for place, here in zip(PLACES, (served.url, str(models["small"]), "sleep 0.1"), strict=True):
        assert place in text, place
        text = text.replace(place, here)
    return text


def test_the_examples_work_and_every_path_has_one(served, models, tmp_path):
    log = tmp_path / "log"
    done = subprocess.run(
        ["bash", "-c", script(served, models)], capture_output=True, text=True, cwd=tmp_path,
        env={"PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin", "LOG": str(log)}, timeout=120,
        check=False,
    )  # fmt: skip
    calls = [line.split(" ", 2) for line in log.read_text().splitlines()]
    assert [call for call in calls if call[0] != "200"] == [], done.stdout[-3000:]
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    asked = {(method, url.removeprefix(served.url).partition("?")[0]) for _, method, url in calls}
    for path, methods in served.get("/openapi.json")["paths"].items():
        pattern = re.compile(re.sub(r"\\{[^/]*\\}", "[^/]+", re.escape(path)))
        for method in methods:
            assert any(
                method.upper() == verb and pattern.fullmatch(found) for verb, found in asked
            ), f"docs/serving.md has no example of {method.upper()} {path}"
