"""The server with tiny models, and a page of it that has to stay without errors."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import screenshot

from mlx_ft.serve.plan import Plan
from tests.serve.served import Served, make_models, until

# What goes on in a page and must not; every violation of its policy is one.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return make_models(tmp_path_factory.mktemp("models"))


@pytest.fixture
def serve(
    models: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Served]]:
    monkeypatch.setattr("mlx_ft.serve.around.plan", lambda config, limit: Plan(0, 1))
    made = []

    def one(*adapters: str, **settings: Any) -> Served:
        served = Served(tmp_path, models, **settings)
        made.append(served)
        until(lambda: served.server.state.is_ready)
        for name in adapters:
            served.server.shelf.put(name, models[name], {"base": "tiny", "digest": None})
        return served

    yield one
    for served in made:
        served.close()


@pytest.fixture
def page(request: pytest.FixtureRequest, serve: Callable[..., Served]) -> Iterator[Any]:
    """A page that has to stay without errors, unless a test takes them out of `said`."""
    with screenshot.browser(1280, 900) as page:
        page.said, page.asked = list[str](), set[str]()
        page.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
        page.on("pageerror", lambda error: page.said.append(str(error)))
        page.on("request", lambda one: page.asked.add(one.url.split("/")[2]))
        page.add_init_script(WATCH)
        page.set_default_timeout(30_000)
        yield page
        if folder := os.environ.get("MLX_FT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"page_{request.node.name}.png")
        assert page.evaluate("window.violations") == []
        assert page.evaluate("window.taken") is None
        assert page.said == []
        assert len(page.asked) == 1  # nobody else
