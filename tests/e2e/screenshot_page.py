"""Pictures of the server's page, from a server that runs.

    uv run --with playwright==1.64.0 python tests/e2e/screenshot_page.py \\
        --url http://127.0.0.1:8080 --view chat --right vestri \\
        --ask "What is the colour of the Vestri flag?" --out docs/images/page_chat.png
    ... --view jobs --watch vestri --out docs/images/page_jobs.png

Where the server asks for a key, it is taken from MLX_FT_API_KEY. Needs Debian's chromium (or
$CHROMIUM).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import screenshot
from paged import VIEWS, chosen

PATIENCE = 300_000  # milliseconds that an answer may take


def show(page: Any, given: argparse.Namespace) -> None:
    """Open a view and wait until everything asked for is drawn."""
    page.emulate_media(color_scheme="dark" if given.dark else "light")
    if key := os.environ.get("MLX_FT_API_KEY"):
        page.add_init_script(f"sessionStorage.setItem('mlx-ft key', {json.dumps(key)})")
    page.goto(f"{given.url}/#{given.view}")
    page.get_by_text(" answers").first.wait_for()
    page.wait_for_load_state("networkidle")
    if given.view == "chat":
        ask(page, given)
    if given.watch:
        page.get_by_role("button", name=f"Watch {given.watch}").first.click()
        page.get_by_role("img", name=f"Losses of {given.watch}").first.wait_for()
        page.get_by_text("New job").click()  # folds the form
    if given.report:
        page.get_by_role("button", name=f"Report of {given.report}").click()
        page.get_by_text(" reads it").wait_for()
    page.wait_for_timeout(500)


def ask(page: Any, given: argparse.Namespace) -> None:
    """The questions, one after another."""
    for side in ("left", "right"):
        if name := getattr(given, side):
            chosen(page, side.title()).select_option(name)
    page.get_by_text("How answers are drawn").click()
    page.get_by_label("Temperature").fill(str(given.temperature))
    page.get_by_label("Tokens at most").fill(str(given.tokens))
    page.get_by_text("How answers are drawn").click()
    for question in given.ask:
        page.get_by_label("Message").fill(question)
        page.get_by_label("Message").press("Enter")
        page.get_by_text("Answered", exact=True).wait_for(timeout=PATIENCE)


def main() -> None:
    """The command line."""
    plain = argparse.RawTextHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=plain)
    add = parser.add_argument
    add("--url", default="http://127.0.0.1:8080", help="the server; default: %(default)s")
    add("--out", type=Path, required=True, help="PNG to write")
    add("--view", choices=[view.lower() for view in VIEWS], default="chat")
    add("--left", help="model of the chat's left side")
    add("--right", help="model of the chat's right side")
    add("--ask", action="append", default=[], metavar="TEXT", help="may be repeated")
    add("--temperature", type=float, default=0.01)
    add("--tokens", type=int, default=64)
    add("--watch", metavar="ADAPTER", help="the job to unfold")
    add("--report", metavar="DATASET", help="the dataset whose report is shown")
    add("--dark", action="store_true")
    add("--size", type=int, nargs=2, default=(1280, 800), metavar=("W", "H"))
    given = parser.parse_args()
    given.out.parent.mkdir(parents=True, exist_ok=True)
    with screenshot.browser(*given.size) as page:
        show(page, given)
        page.screenshot(path=given.out)
    print(f"{given.view} of {given.url}: {given.out}")


if __name__ == "__main__":
    main()
