"""The server's page in a real browser: data, downloads, hostile texts, the key, who can use it.

    uv run --with playwright==1.64.0 pytest -m e2e tests/e2e/test_page_safety.py

Screenshots go to $MLX_FT_SCREENSHOTS, where set.
"""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from paged import TEXTS, VIEWS, card, send, settings, view

from mlx_ft.models import catalog
from mlx_ft.serve import downloads
from mlx_ft.serve.security import Rules
from tests.serve.served import Served

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

KEY = "0123456789abcdef"
EVIL = '<img src=x onerror="window.taken = 1"><script>window.taken = 1</script>'
CONTRAST = """() => {
  const light = (color) => {
    const [r, g, b] = color.match(/[\\d.]+/g).map((part) => part / 255)
      .map((part) => part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = getComputedStyle(at).backgroundColor;
      if (!/, 0\\)$/.test(color)) return color;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("body *")].filter((element) =>
    element.offsetParent
    && [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  ).map((element) => {
    const [a, b] = [light(getComputedStyle(element).color), light(behind(element))];
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    return [ratio, element.textContent.slice(0, 40)];
  }).filter(([ratio]) => ratio < 4.5);
}"""
FIELDS = "input, select, textarea, button, progress"
UNNAMED = f"""() => [...document.querySelectorAll("{FIELDS}")].filter(
  (field) => !field.labels?.length && !field.getAttribute("aria-label") && !field.textContent.trim()
).map((field) => field.outerHTML)"""
WIDER = "document.documentElement.scrollWidth - document.documentElement.clientWidth"


def test_files_are_uploaded_as_rows_or_as_texts(page: Any, serve: Callable[..., Served]) -> None:
    served = serve()
    rows = '{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "d"}\n'
    page.goto(f"{served.url}/#datasets")
    for name, file, content, said in (
        ("rows", "rows.jsonl", rows, "2 rows are trained as they are"),
        (
            "story",
            "story.txt",
            "One.\r\n\r\nTwo.\n\n\nThree\nlines.",
            "3 texts are trained as they",
        ),
    ):
        page.get_by_label("Dataset's name").fill(name)
        page.get_by_label("File").set_input_files(
            {"name": file, "mimeType": "text/plain", "buffer": content.encode()}
        )
        page.get_by_role("button", name="Upload").click()
        card(page, name).get_by_text(said).wait_for()
    page.get_by_label("Dataset's name").fill("bad")
    page.get_by_label("Or text").fill('{"prompt": 1}')
    page.get_by_role("button", name="Upload").click()
    page.get_by_role("alert").filter(has_text="rows").wait_for()
    assert ["400" in text for text in page.said] == [True]
    page.said.clear()
    assert {one["name"] for one in served.get("/api/datasets")["datasets"]} == {"rows", "story"}


def test_a_download_tells_how_far_it_is(
    page: Any, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served, sizes, go_on = serve(), iter([400_000]), threading.Event()

    def download(*_: Any, told: Callable[[int], None], **__: Any) -> None:
        told(1_000_000)
        go_on.wait(30)
        raise ConnectionError("the hub is gone")

    monkeypatch.setattr(downloads, "EVERY", 0.05)
    monkeypatch.setattr(catalog, "download", download)
    monkeypatch.setattr(downloads, "size_here", lambda base: next(sizes, 400_000))
    page.goto(f"{served.url}/#models")
    assert page.get_by_role("button", name="Download tiny", exact=True).count() == 0
    page.get_by_role("button", name="Download tinyllama").click()
    card(page, "tinyllama").get_by_text("400.0 kB of 1.0 MB").wait_for()
    bar = card(page, "tinyllama").get_by_role("progressbar")
    assert bar.evaluate("bar => bar.value") == 40
    go_on.set()
    card(page, "tinyllama").get_by_text("goes on where it stopped").wait_for()


def test_hostile_texts_stay_texts(page: Any, serve: Callable[..., Served]) -> None:
    served = serve()
    job = {
        "job_id": "job-1", "status": "failed", "progress": 3, "current_step": 1, "total_steps": 9,
        "loss": 1.0, "metrics": {}, "error": EVIL, "adapter_name": EVIL, "model_name": EVIL,
        "dataset_name": EVIL, "created": 1, "started": 1, "ended": 1,
    }  # fmt: skip
    model = {"id": EVIL, "object": "model", "created": 1, "root": EVIL, "parent": EVIL}
    adapter = {"name": EVIL, "base_model": EVIL, "size": 1, "created": 1, "loaded": False,
               "active": False}  # fmt: skip
    data = {"name": EVIL, "rows": 1, "bytes": 1, "created": 1, "message": EVIL}
    fakes = {
        "/v1/models": {"data": [{**model, "id": "base", "parent": None}, model]},
        "/api/adapters": {"adapters": [adapter], "active": EVIL},
        "/api/datasets": {"datasets": [data]},
        "/api/models": {"models": [{"id": EVIL, "path": EVIL, "downloaded": False, "size": 1,
                                    "in_use": False}]},
        "/api/training/jobs?limit=20": {"jobs": [job], "total": 1},
        "/ready": {"model": EVIL},
        "/api/training/logs/job-1?offset=0": {"text": EVIL, "next_offset": 1, "size": 1},
    }  # fmt: skip
    for path, content in fakes.items():
        page.route(served.url + path, lambda route, _, body=content: route.fulfill(json=body))
    page.route(
        served.url + "/v1/chat/completions",
        lambda route: route.fulfill(
            content_type="text/event-stream",
            body="".join(f"data: {json.dumps(one)}\n\n" for one in (
                {"choices": [{"delta": {"content": EVIL}, "finish_reason": None}]},
                {"choices": [{"delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": {"completion_tokens": 3}},
            )) + "data: [DONE]\n\n",
        ),
    )  # fmt: skip
    page.goto(served.url)
    assert send(page, EVIL) == [EVIL, EVIL]
    for name in VIEWS[1:]:
        view(page, name).locator("li:visible").get_by_text(EVIL).first.wait_for()
    view(page, "Jobs")
    page.get_by_role("button", name="Watch").click()
    page.get_by_text("Log", exact=True).click()
    page.locator("details pre").get_by_text(EVIL).wait_for()
    assert page.locator("main img, main script").count() == 0
    page.said.clear()  # its events, of a job that there is not, are refused


def test_the_key_is_asked_for_and_kept_in_the_tab(page: Any, serve: Callable[..., Served]) -> None:
    served = serve(rules=Rules("127.0.0.1", (KEY,)))
    page.goto(served.url)
    dialog = page.get_by_role("dialog")
    dialog.get_by_label("API key").press("Escape")
    dialog.get_by_label("API key").fill("wrong-key-wrong-key")
    dialog.get_by_role("button", name="Go on").click()
    dialog.get_by_text("That key is wrong.").wait_for()
    dialog.get_by_label("API key").fill(KEY)
    dialog.get_by_label("API key").press("Enter")
    page.get_by_text("tiny answers").wait_for()
    dialog.wait_for(state="hidden")
    assert all("401" in text for text in page.said)
    page.said.clear()
    stored = page.evaluate(
        "[JSON.stringify(sessionStorage), JSON.stringify(localStorage), document.cookie]"
    )
    assert KEY in stored[0]
    assert KEY not in stored[1] + stored[2] + page.url
    page.reload()
    page.get_by_text("tiny answers").wait_for()
    settings(page, temperature="0", tokens="6")
    assert send(page, "abc")
    assert page.said == []
    page.get_by_role("button", name="Forget the key").click()
    dialog.get_by_label("API key").wait_for()
    assert page.evaluate("sessionStorage.length") == 0
    page.said.clear()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_can_be_read_and_every_field_has_a_name(
    page: Any, serve: Callable[..., Served], scheme: str
) -> None:
    served = serve("small")
    served.post("/api/training/data/upload", {"dataset_name": "d" * 60, "train_texts": TEXTS})
    served.server.shelf.put("a" * 90, served.server.shelf.find("small").folder, {"base": "tiny"})
    page.emulate_media(color_scheme=scheme)
    page.goto(served.url)
    settings(page, temperature="0", tokens="6")
    send(page, "abc" * 12)
    for width in (360, 768, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        for name in VIEWS:
            view(page, name)
            page.wait_for_load_state("networkidle")
            assert page.evaluate(WIDER) <= 0, (name, width)
            assert page.evaluate(CONTRAST) == [], (name, width)
            assert page.evaluate(UNNAMED) == [], name


def test_it_is_used_by_the_keyboard_alone(page: Any, serve: Callable[..., Served]) -> None:
    served = serve("small")
    page.goto(served.url)
    page.get_by_text("tiny answers").wait_for()
    reached = list[str]()
    for _ in range(20):
        page.keyboard.press("Tab")
        reached.append(
            page.evaluate("document.activeElement.name || document.activeElement.textContent")
        )
    order = ["Skip to the content", *VIEWS, "left", "right", "message"]
    assert [one for one in reached if one in order][: len(order)] == order
    page.get_by_role("link", name="Adapters").focus()
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Load small").focus()
    page.keyboard.press("Space")
    page.get_by_text("small is loaded").wait_for()
    assert served.get("/api/adapters")["active"] == "small"
