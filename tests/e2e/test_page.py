"""The server's page in a real browser: chats, and a real training watched to its end.

    uv run --with playwright==1.64.0 pytest -m e2e tests/e2e/test_page.py

Screenshots go to $MLX_FT_SCREENSHOTS, where set.
"""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from paged import TEXTS, answers, card, chosen, send, settings, view

from mlx_ft.engine.request import Busy
from mlx_ft.serve import chat
from tests.serve.served import Served, until

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

PATIENCE = 120_000  # milliseconds that a training may take


def test_the_base_and_an_adapter_answer_side_by_side_and_are_switched(
    page: Any, serve: Callable[..., Served]
) -> None:
    served = serve("small", "large")
    expected = {name: served.chat(name) for name in ("base", "small", "large")}
    assert len(set(expected.values())) == 3
    page.goto(served.url)
    left, right = chosen(page, "Left"), chosen(page, "Right")
    until(lambda: left.input_value() == "base")  # once the page has its list
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


def test_an_answer_is_stopped(
    page: Any, serve: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = chat.Reply.events

    async def slowly(self: chat.Reply) -> AsyncIterator[str]:
        async for event in genuine(self):
            yield event
            await asyncio.sleep(0.2)

    monkeypatch.setattr(chat.Reply, "events", slowly)
    served = serve("small")
    page.goto(served.url)
    settings(page, temperature="0", tokens="80")
    page.get_by_label("Message").fill("abc")
    page.get_by_role("button", name="Send").click()
    page.locator(".assistant .text").filter(has_text=re.compile(".")).first.wait_for()
    page.get_by_role("button", name="Stop").click()
    page.get_by_text("stopped", exact=True).nth(1).wait_for()
    assert all(answers(page))
    until(lambda: served.server.state.current.engine.load_now == (0, 0))
    page.get_by_role("button", name="Clear").click()
    assert page.locator(".turn").count() == 0


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
    for label, value in {"Dataset": "sayings", "Model": "tiny"}.items():  # once lists have come
        wanted = chosen(page, label).locator(f"option[value={value}]:checked")
        wanted.wait_for(state="attached")
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
