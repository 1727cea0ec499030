"""The server's page in a real browser: the whole circle, with a real training of a tiny model.

    uv run --with playwright==1.64.0 pytest -m e2e tests/e2e/test_page.py

Screenshots go to $MLX_FT_SCREENSHOTS, where set.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import screenshot

from mlx_ft.engine.request import Busy
from mlx_ft.models import catalog
from mlx_ft.serve import downloads
from mlx_ft.serve.plan import Plan
from mlx_ft.serve.security import Rules
from tests.serve.served import Served, make_models, until

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

KEY = "0123456789abcdef"
VIEWS = ("Chat", "Jobs", "Adapters", "Datasets", "Models")
EVIL = '<img src=x onerror="window.taken = 1"><script>window.taken = 1</script>'
TEXTS = [f"### Instruction:\nsay {at % 5}\n\n### Response:\n{'abc' * 2}" for at in range(20)]
PATIENCE = 120_000  # milliseconds that a training may take
# What goes on in a page and must not; every violation of its policy is one.
WATCH = """
window.violations = [];
document.addEventListener("securitypolicyviolation", (event) =>
  window.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
"""
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


def view(page: Any, name: str) -> Any:
    page.get_by_role("link", name=name, exact=True).click()
    page.get_by_role("heading", name=name, exact=True).wait_for()
    return page.get_by_role("main")


def card(page: Any, name: str) -> Any:
    heading = page.get_by_role("heading", name=name, exact=True)
    return page.get_by_role("listitem").filter(has=heading)


def chosen(page: Any, name: str) -> Any:
    return page.get_by_role("combobox", name=name, exact=True)


def send(page: Any, text: str) -> list[str]:
    """Ask both sides; their last answers."""
    page.get_by_label("Message").fill(text)
    page.get_by_label("Message").press("Enter")
    page.get_by_text("Answered", exact=True).wait_for()
    return answers(page)


def answers(page: Any) -> list[str]:
    asked = page.get_by_role("log").filter(has=page.locator(".assistant")).all()
    return [log.locator(".assistant .text").last.text_content() for log in asked]


def settings(page: Any, **values: str) -> None:
    names = {"temperature": "Temperature", "tokens": "Tokens at most", "system": "System prompt"}
    page.get_by_text("How answers are drawn").click()
    for name, value in values.items():
        page.get_by_label(names[name]).fill(value)


def test_the_base_and_an_adapter_answer_side_by_side_and_are_switched(
    page: Any, serve: Callable[..., Served]
) -> None:
    served = serve("small", "large")
    expected = {name: served.chat(name) for name in ("base", "small", "large")}
    assert len(set(expected.values())) == 3
    page.goto(served.url)
    left, right = chosen(page, "Left"), chosen(page, "Right")
    assert left.input_value() == "base"
    assert right.input_value() in ("small", "large")
    right.select_option("small")
    settings(page, temperature="0", tokens="12")
    assert send(page, "abc") == [expected["base"], expected["small"]]
    view(page, "Adapters")
    card(page, "large").get_by_role("button", name="Load large").click()
    card(page, "large").get_by_text("Active", exact=True).wait_for()
    assert served.get("/api/adapters")["active"] == "large"
    view(page, "Chat")
    page.get_by_role("button", name="Clear").click()
    left.select_option("tiny")  # the base's name, in which the active adapter answers
    right.select_option("large")
    assert send(page, "abc") == [expected["large"]] * 2
    view(page, "Adapters")
    card(page, "large").get_by_role("button", name="Unload large").click()
    card(page, "large").get_by_role("button", name="Load large").wait_for()
    view(page, "Chat")
    page.get_by_role("button", name="Clear").click()
    assert send(page, "abc") == [expected["base"], expected["large"]]


def test_a_conversation_has_a_history_of_its_own_on_each_side(
    page: Any, serve: Callable[..., Served]
) -> None:
    served = serve("small")
    page.goto(served.url)
    settings(page, temperature="0", tokens="6", system="be brief")
    first = send(page, "abc")
    sent = list[Any]()
    page.on(
        "request", lambda one: sent.append(one.post_data_json) if one.method == "POST" else None
    )
    send(page, "def")
    for body, answer in zip(
        sorted(sent, key=lambda one: one["model"] != "base"), first, strict=True
    ):
        assert body["messages"] == [
            {"role": "system", "content": "be brief"}, {"role": "user", "content": "abc"},
            {"role": "assistant", "content": answer}, {"role": "user", "content": "def"},
        ]  # fmt: skip
        assert (body["temperature"], body["max_tokens"], body["stream"]) == (0, 6, True)


def test_an_answer_is_stopped(page: Any, serve: Callable[..., Served]) -> None:
    served = serve("small")
    page.goto(served.url)
    settings(page, temperature="1", tokens="100000")
    page.get_by_label("Message").fill("abc")
    page.get_by_role("button", name="Send").click()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("Answered", exact=True).wait_for()
    send_ = page.get_by_role("button", name="Send")
    assert send_.is_enabled()
    engine = served.server.state.current.engine
    assert engine.load_now == (0, 0)


def test_a_full_queue_is_waited_for_and_other_errors_are_said(
    page: Any, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    served = serve("small")
    refusals = [Busy("the queue is full"), Busy("the queue is full")]
    genuine = type(served.server.state).target

    def target(self: Any, name: str) -> Any:
        if refusals:
            raise refusals.pop()
        return genuine(self, name)

    monkeypatch.setattr(type(served.server.state), "target", target)
    page.goto(served.url)
    settings(page, temperature="0", tokens="6")
    assert all(send(page, "abc"))
    assert [text for text in page.said if "429" not in text] == []
    assert len(page.said) == 2
    page.said.clear()
    settings(page, tokens="100000")
    page.get_by_label("Message").fill("abc")
    page.get_by_role("button", name="Send").click()
    page.get_by_text("maximum context length").first.wait_for()
    page.get_by_label("Tokens at most").fill("6")
    page.get_by_role("button", name="Try again").first.click()
    page.get_by_text("maximum context length").nth(1).wait_for()
    assert {"400" in text for text in page.said} == {True}
    page.said.clear()
    assert all(send(page, "def"))


def test_data_a_job_watched_to_its_end_and_its_adapter(
    page: Any, serve: Callable[..., Served]
) -> None:
    served = serve()
    page.goto(f"{served.url}/#datasets")
    page.get_by_label("Dataset's name").fill("sayings")
    page.get_by_label("Or text").fill("\n\n".join(TEXTS))
    page.get_by_role("button", name="Upload").click()
    page.get_by_text("20 texts are trained as a question and its answer").first.wait_for()
    page.get_by_role("button", name="Report of sayings").click()
    card(page, "sayings").get_by_text("As tiny reads it").wait_for()
    card(page, "sayings").get_by_text("20 training rows are few").wait_for()
    page.get_by_role("button", name="Train on sayings").click()
    page.get_by_role("heading", name="Jobs", exact=True).wait_for()
    assert chosen(page, "Dataset").input_value() == "sayings"
    assert chosen(page, "Model").input_value() == "tiny"
    fields = {"Adapter's name": "mine", "Rank": "4", "Alpha": "8", "Learning rate": "0.01",
              "Batch size": "2", "Steps at most": "60"}  # fmt: skip
    for label, value in fields.items():
        page.get_by_label(label).fill(value)
    page.get_by_role("button", name="Start").click()
    job = card(page, "mine")
    job.get_by_text("of 60", exact=False).first.wait_for(timeout=PATIENCE)  # on its way
    job.get_by_text("completed").first.wait_for(timeout=PATIENCE)
    image = job.get_by_role("img", name="Losses of mine")
    image.and_(page.get_by_role("img", name="at step 60")).wait_for()
    drawn = {
        kind: image.locator(f"path.{kind}").get_attribute("d") or "" for kind in ("train", "valid")
    }
    assert drawn["train"].count("L") >= 58
    assert drawn["valid"].count("L") >= 1
    box, outer = image.bounding_box(), job.bounding_box()
    assert box["width"] <= outer["width"]
    job.get_by_text("Log", exact=True).click()
    job.get_by_label("Log of mine").get_by_text("step").first.wait_for()
    job.get_by_role("button", name="Chat with mine").click()
    settings(page, temperature="0.01", tokens="12")
    base, tuned = send(page, "say 1")
    assert tuned.startswith("abcabc")
    assert not base.startswith("abc")
    view(page, "Adapters")
    page.get_by_role("button", name="Delete mine").click()
    page.get_by_role("dialog").get_by_role("button", name="Back").click()
    assert served.get("/api/adapters")["adapters"]
    page.get_by_role("button", name="Delete mine").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    page.get_by_text("There is no adapter yet").wait_for()
    assert served.get("/api/adapters")["adapters"] == []


def test_a_job_is_stopped_resumed_and_ended_by_the_keyboard(
    page: Any, serve: Callable[..., Served]
) -> None:
    served = serve()
    served.post("/api/training/data/upload", {"dataset_name": "d", "train_texts": TEXTS})
    page.goto(f"{served.url}/#jobs")
    page.get_by_label("Adapter's name").fill("mine")
    page.get_by_label("Steps at most").fill("100000")
    page.get_by_label("Adapter's name").press("Enter")
    job = card(page, "mine")
    job.get_by_text("of 100,000").first.wait_for(timeout=PATIENCE)
    job.get_by_role("button", name="Stop mine").press("Enter")
    job.get_by_role("button", name="Resume mine").wait_for(timeout=PATIENCE)
    job.get_by_text("stopped").first.wait_for()
    job.get_by_role("button", name="Resume mine").press("Enter")
    job.get_by_text("running").first.wait_for(timeout=PATIENCE)
    job.get_by_role("button", name="Cancel mine").press("Enter")
    page.get_by_role("dialog").get_by_role("button", name="End it").press("Enter")
    job.get_by_text("cancelled").first.wait_for(timeout=PATIENCE)
    assert job.get_by_role("button", name="Resume mine").count() == 0


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
    send(page, "abc" * 60)
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
