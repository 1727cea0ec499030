"""A sweep's page in a real browser: it asks for nothing, fits, is readable, and sorts."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import screenshot

from mlx_ft.report.write import write_page
from tests.report import fakes

pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

EVIL = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title = 'taken'\">"
SMALLEST = 9.5  # pixels of text in a figure, where the page is half as wide as a screen

# What sticks out of the window, and what texts of figures stick out of their figure.
STICKING_OUT = """() => [
  document.documentElement.scrollWidth - document.documentElement.clientWidth,
  [...document.querySelectorAll('figure svg')].flatMap(svg => {
    const box = svg.getBoundingClientRect();
    return [...svg.querySelectorAll('text')].filter(text => {
      const own = text.getBoundingClientRect();
      return own.left < box.left - 1 || own.right > box.right + 1
        || own.top < box.top - 1 || own.bottom > box.bottom + 1;
    }).map(text => text.textContent);
  }),
  Math.min(...[...document.querySelectorAll('figure svg text')].map(text => {
    const {a, b} = text.getScreenCTM();  // slanted and upright texts, too
    return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(a, b);
  })),
]"""


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    rng, folder = random.Random(0), tmp_path_factory.mktemp("sweep")
    trials = [
        {**trial, "seed": seed, "loss": trial["loss"] + rng.gauss(0, 0.01),
         "answers": [("Which countries border Chad?" + EVIL, EVIL, rng.random() < 0.5)]}
        for trial in fakes.grid() for seed in (42, 43, 44)
    ]  # fmt: skip
    trials[-1] |= {"loss": None, "status": "FAILED", "error": "memory ran out"}
    fakes.sweep(folder, trials)
    write_page(folder, "val_loss_after", low=True)
    return folder / "report.html"


@pytest.fixture
def page() -> Iterator[Any]:
    with screenshot.browser() as page:
        yield page


def test_it_asks_for_nothing_and_runs_nothing_of_an_answer(page: Any, report: Path) -> None:
    asked, said = list[str](), list[str]()
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.goto(report.as_uri())
    page.get_by_text("Answers of the best").wait_for()
    assert asked == [report.as_uri()]
    assert said == []
    assert page.title().startswith("Sweep ")
    assert page.get_by_text(EVIL).count() > 1


@pytest.mark.parametrize("width", [1440, 960, 600, 390])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_and_can_be_read(page: Any, report: Path, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 900})
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    wider, outside, smallest = page.evaluate(STICKING_OUT)
    assert wider <= 0
    assert outside == []
    assert smallest >= (SMALLEST if width >= 600 else 7)


def test_a_column_sorts(page: Any, report: Path) -> None:
    page.goto(report.as_uri())
    button = page.get_by_role("button", name="validation loss").last
    table = page.locator("table.sortable").last
    column = table.locator("thead th").all_inner_texts().index("validation loss")
    for reverse in (False, True):
        button.click()
        cells = table.locator(f"tbody td:nth-child({column + 1})").all_inner_texts()
        values = [float(text) for text in cells if text != "-"]
        assert values == sorted(values, reverse=reverse)
        assert cells[-1] == "-"  # what has no figure is last either way
        assert len(values) == 26
