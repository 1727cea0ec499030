"""MLflow's UI in a real browser shows what the tracker wrote. Not in the default tests:

    uv run --with playwright==1.64.0 pytest -m e2e tests/e2e

Screenshots go to $MLX_FT_SCREENSHOTS, where set.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import runs as made_up
import screenshot

from mlx_ft.config.schema import Config

# MLflow's and the browser driver's own libraries warn.
pytestmark = [pytest.mark.e2e, pytest.mark.filterwarnings("default")]

RUN, SWEEP = "smollm2_135m geography_sql rank=8", "ranks and rates"
CHILDREN = [f"rank={rank} learning_rate={rate}" for rank in (8, 16) for rate in ("1e-4", "3e-4")]

# How many different curves are drawn on the page: MLflow draws each twice.
LINES = (
    "new Set([...document.querySelectorAll('.scatterlayer .trace path.js-line')]"
    ".map(line => line.getAttribute('d'))).size"
)


class Served(NamedTuple):
    """The address of the runs, and (id, name) of the single run and of the sweep."""

    runs: str
    run: tuple[str, str]
    sweep: tuple[str, str]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("ui")
    config = Config()
    config.paths.tracking_dir = str(folder / "mlruns")
    run_id = made_up.make_run(config, folder, RUN, None, 0.3)
    sweep_id = made_up.make_sweep(config, folder)
    with screenshot.served(config) as runs:
        yield Served(runs, (run_id, RUN), (sweep_id, SWEEP))


@pytest.fixture
def page(request: pytest.FixtureRequest) -> Iterator[Any]:
    with screenshot.browser() as page:
        yield page
        if folder := os.environ.get("MLX_FT_SCREENSHOTS"):
            Path(folder).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(folder) / f"{request.node.name.removeprefix('test_')}.png")


def wait_for(page: Any, condition: str) -> None:
    """Wait until a JavaScript expression about the page holds; fails after 30 seconds."""
    page.wait_for_function(condition)


def header(page: Any, name: str) -> Any:
    return page.get_by_role("columnheader", name=name)


def link(page: Any, name: str) -> Any:
    return page.get_by_role("link", name=name, exact=True)


def test_runs(page: Any, served: Served) -> None:
    """The run and the sweep are listed; the sweep unfolds into its named trials."""
    screenshot.choose_columns(page, served.runs)
    page.goto(served.runs)
    link(page, RUN).wait_for()
    link(page, SWEEP).wait_for()
    assert [link(page, child).count() for child in CHILDREN] == [0, 0, 0, 0]
    screenshot.show(page, served.runs, "runs", served.sweep)
    for child in CHILDREN:
        link(page, child).wait_for()


def test_metrics(page: Any, served: Served) -> None:
    """Charts are grouped by what stands before the slash, and each has a line in it."""
    screenshot.show(page, served.runs, "metrics", served.run, metrics="train/|val/|task/")
    for group, charts in (("task", 1), ("train", 5), ("val", 2)):
        wait_for(page, rf"/\b{group}\s*\({charts}\)/.test(document.body.innerText)")
    page.get_by_placeholder("Search metric charts").fill("train/loss|val/loss")
    wait_for(page, "document.querySelectorAll('.js-plotly-plot').length == 2")
    wait_for(page, f"{LINES} == 2")


def test_overview(page: Any, served: Served) -> None:
    """Description, last values, parameters, dataset and commit are on the first page."""
    screenshot.show(page, served.runs, "overview", served.run)
    for text in ("LoRA rank 8 of", "task/accuracy", "0.84", "lora.rank", "geography_sql ("):
        page.get_by_text(text).first.wait_for()
    page.get_by_text("Finished", exact=True).first.wait_for()


def test_figure(page: Any, served: Served) -> None:
    """The loss curve is shown as a picture of its true size."""
    screenshot.show(page, served.runs, "figure", served.run)
    wait_for(page, "[...document.images].some(image => image.naturalWidth == 1200)")
    page.get_by_text("adapter", exact=True).click()
    page.get_by_text("adapters.safetensors", exact=True).wait_for()


def test_samples(page: Any, served: Served) -> None:
    """The samples are a table: its header and the rows."""
    screenshot.show(page, served.runs, "samples", served.run)
    for column in ("question", "expected", "before", "after", "correct"):
        header(page, column).wait_for()
    page.get_by_role("cell", name="The capital of Peru is Lima.").wait_for()


def test_charts(page: Any, served: Served) -> None:
    """The trials' losses are drawn together."""
    screenshot.show(page, served.runs, "charts", served.sweep, metrics="val/loss")
    wait_for(page, f"{LINES} == 5")  # four trials and the single run


def test_compare(page: Any, served: Served) -> None:
    """The compare view lines the trials up: their names, what differs, and where they ended."""
    screenshot.show(page, served.runs, "compare", served.sweep)
    for child in CHILDREN:
        page.get_by_text(child).first.wait_for()
    for text in ("lora.rank", "optimizer.learning_rate", "val/loss", "task/accuracy"):
        page.get_by_text(text, exact=True).first.wait_for()


def test_sweep_table(page: Any, served: Served) -> None:
    """The parent carries the table of trials."""
    runs = served.runs.partition("?")[0]
    page.goto(f"{runs}/{served.sweep[0]}/artifacts")
    page.get_by_text("trials.json", exact=True).click()
    header(page, "objective").wait_for()
    page.get_by_role("cell", name=CHILDREN[0]).wait_for()
