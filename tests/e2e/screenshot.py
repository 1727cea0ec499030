"""Pictures of MLflow's UI: serves a database on a free port, drives headless Chromium.

    uv run --with playwright==1.64.0 python tests/e2e/screenshot.py \
        --db mlruns/mlflow.db --view metrics --out docs/images/mlflow.png

Needs Debian's chromium (or $CHROMIUM); playwright comes from an environment of its own.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))  # run as a script, `mlx_ft` may not be installed

from mlx_ft.config.schema import Config  # noqa: E402
from mlx_ft.tracking import ui_command, ui_environment, ui_page  # noqa: E402

VIEWS = ("metrics", "overview", "figure", "samples", "runs", "charts", "compare")
METRICS = "train/(loss|learning_rate|grad_norm)|val/loss|task/accuracy"  # charts shown, a regex
COLUMNS = ["metrics.`val/loss`", "metrics.`task/accuracy`", "params.`lora.rank`"]
START_SECONDS = 120
# Chromium looks up its maker's hosts at every start without these.
FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
# MLflow greets a new browser with an assistant that covers a quarter of the page.
QUIET = (
    "localStorage.setItem('mlflow.assistant.fab.autoOpenedOnFirstLoad_v1', 'true');"
    "localStorage.setItem('mlflow.assistant.panelOpen_v1', 'false');"
    "localStorage.setItem('mlflow.workflowType_v1', '\"machine_learning\"');"
)


@contextmanager
def served(config: Config) -> Iterator[str]:
    """MLflow's UI on a free loopback port while the block runs; gives the runs' address."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with tempfile.TemporaryFile() as log:
        server = subprocess.Popen(
            ui_command(config, "127.0.0.1", port),
            env=ui_environment(),
            stdout=log,
            stderr=log,
            start_new_session=True,  # the server starts a worker, which has to end with it
        )
        try:
            _wait_for(f"http://127.0.0.1:{port}/health", server, log)
            yield ui_page(config, "127.0.0.1", port)
        finally:
            os.killpg(server.pid, signal.SIGTERM)
            server.wait(30)


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Any) -> None:
    give_up = time.monotonic() + START_SECONDS
    while time.monotonic() < give_up and server.poll() is None:
        try:
            urllib.request.urlopen(address, timeout=5).close()
        except (urllib.error.URLError, OSError):
            time.sleep(0.2)
        else:
            return
    log.seek(0)
    raise RuntimeError(f"MLflow's UI did not start:\n{log.read().decode()[-2000:]}")


@contextmanager
def browser(width: int = 1440, height: int = 900) -> Iterator[Any]:
    """A page in headless Chromium while the block runs."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(
            executable_path=os.environ.get("CHROMIUM", "/usr/bin/chromium"), args=FLAGS
        )
        page = chromium.new_page(viewport={"width": width, "height": height})
        page.add_init_script(QUIET)
        yield page
        chromium.close()


def show(page: Any, runs: str, view: str, run: tuple[str, str], metrics: str = METRICS) -> None:
    """Open one view of a run and wait until it is drawn.

    runs: the address of all runs. run: (id, name). metrics: which charts, a regular expression.
    """
    run_id, name = run
    if view == "compare":
        compare(page, runs, run_id)
    elif view in ("runs", "charts"):
        choose_columns(page, runs)
        page.goto(runs + ("&compareRunsMode=CHART" if view == "charts" else ""))
        page.get_by_role("link", name=name, exact=True).wait_for()
        expand(page, name)
    else:
        tab = {"metrics": "model-metrics", "overview": ""}.get(view, "artifacts")
        page.goto(f"{runs.partition('?')[0]}/{run_id}/{tab}")
        page.get_by_role("heading", name=name).first.wait_for()
    if view in ("metrics", "charts"):
        page.get_by_placeholder("Search metric charts").fill(metrics)
        page.locator(".js-plotly-plot .scatterlayer .trace").first.wait_for()
    if view == "runs":
        widen_names(page)
    if view == "figure":
        page.get_by_text("figures", exact=True).click()
        page.get_by_text("loss.png", exact=True).click()
        page.locator("img[src^='blob:'], img[src*='loss.png']").first.wait_for()
    if view == "samples":
        page.get_by_text("samples.json", exact=True).click()
        page.get_by_role("table").first.wait_for()
    page.wait_for_timeout(1500)  # charts and images fade in


def compare(page: Any, runs: str, sweep_id: str) -> None:
    """Open the page that compares a sweep's runs: what `Compare` does when they are ticked."""
    host, _, rest = runs.partition("/#/")
    experiment = rest.partition("experiments/")[2].partition("/")[0]
    found = page.request.post(
        f"{host}/ajax-api/2.0/mlflow/runs/search",
        data={
            "experiment_ids": [experiment],
            "filter": f"tags.`mlflow.parentRunId` = '{sweep_id}'",
            "order_by": ["attributes.start_time ASC"],
        },
    ).json()
    ids = json.dumps([run["info"]["run_id"] for run in found["runs"]])
    asked = urllib.parse.urlencode({"runs": ids, "experiments": json.dumps([experiment])})
    page.goto(f"{host}/#/compare-runs?{asked}")
    page.get_by_text("Parallel Coordinates Plot").first.wait_for()


def choose_columns(page: Any, runs: str) -> None:
    """Have the list of runs show the columns that one would choose in its menu."""
    experiment = runs.partition("/experiments/")[2].partition("/")[0]
    key = f'MLflowLocalStorage-1.1-ExperimentPage-["{experiment}"]-ReactComponentState'
    value = json.dumps({"selectedColumns": COLUMNS, "runsExpanded": {}, "columnWidths": {}})
    page.add_init_script(
        f"if (!localStorage.getItem({key!r})) localStorage.setItem({key!r}, {value!r})"
    )


def widen_names(page: Any) -> None:
    """Drag the border of the names' column, so that they can be read."""
    box = page.locator(".ag-header-cell").filter(has_text="Run Name").first.bounding_box()
    edge, middle = box["x"] + box["width"] - 2, box["y"] + box["height"] / 2
    page.mouse.move(edge, middle)
    page.mouse.down()
    page.mouse.move(edge + 150, middle, steps=5)
    page.mouse.up()


def expand(page: Any, name: str) -> None:
    """Unfold a parent's children in a fresh browser's list of runs; nothing without children."""
    row = page.get_by_role("row").filter(has=page.get_by_role("link", name=name, exact=True))
    button = row.first.get_by_role("button")
    if button.count():
        button.first.click()


def newest_run(database: Path, name: str | None) -> tuple[str, str]:
    """(id, name) of the newest run, or of the newest with this name."""
    query = (
        "select run_uuid, name from runs where lifecycle_stage = 'active' and ? in (name, '') "
        "order by start_time desc"
    )
    with closing(sqlite3.connect(database)) as connection:
        row = connection.execute(query, (name or "",)).fetchone()
    if row is None:
        raise SystemExit(f"No run {name or ''} in {database}.")
    return str(row[0]), str(row[1])


def main() -> None:
    """The command line."""
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    parser.add_argument("--db", type=Path, required=True, help="MLflow's database")
    parser.add_argument("--out", type=Path, required=True, help="PNG to write")
    parser.add_argument("--run", help="a run's or a sweep's name; default: the newest run")
    parser.add_argument("--view", choices=VIEWS, default="metrics")
    parser.add_argument("--metrics", default=METRICS, help="charts to show, a regular expression")
    parser.add_argument("--experiment", default="mlx-ft")
    parser.add_argument("--size", type=int, nargs=2, default=(1440, 900), metavar=("W", "H"))
    given = parser.parse_args()
    config = Config()
    config.tracking.uri = f"sqlite:///{given.db.resolve()}"
    config.tracking.experiment_name = given.experiment
    run = newest_run(given.db, given.run)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with served(config) as runs, browser(*given.size) as page:
        show(page, runs, given.view, run, given.metrics)
        page.screenshot(path=given.out)
    print(f"{given.view} of {run[1]}: {given.out}")


if __name__ == "__main__":
    main()
