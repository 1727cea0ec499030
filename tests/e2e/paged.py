"""What the tests do with the page."""

from __future__ import annotations

from typing import Any

VIEWS = ("Chat", "Jobs", "Adapters", "Datasets", "Models")
TEXTS = [f"### Instruction:\nsay {at % 5}\n\n### Response:\n{'abc' * 2}" for at in range(20)]


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
    if not page.get_by_label("Temperature").is_visible():
        page.get_by_text("How answers are drawn").click()
    for name, value in values.items():
        page.get_by_label(names[name]).fill(value)
