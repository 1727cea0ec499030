"""The report as files in a folder."""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_ft import durable
from mlx_ft.report.analyse import Analysis, Goal, analyse
from mlx_ft.report.collect import sweep
from mlx_ft.report.read import best_config

PAGE, CSV, MARKDOWN, BEST = "report.html", "trials.csv", "trials.md", "best.yaml"


def write(analysis: Analysis, folder: Path) -> list[Path]:
    """Write tables, page and the best configuration; returns the files. Raises OSError."""
    from mlx_ft.report import table

    folder.mkdir(parents=True, exist_ok=True)
    texts = {CSV: table.csv_text(analysis), MARKDOWN: table.markdown(analysis)}
    best = analysis.best
    if best is not None and best.config is not None:
        texts[BEST] = best_config(best.config)
    else:
        (folder / BEST).unlink(missing_ok=True)  # of an earlier report
    texts[PAGE] = page_text(analysis, folder)
    for name, text in texts.items():
        durable.write(folder / name, text.encode("utf-8", errors="backslashreplace"))
    return [folder / name for name in texts]


def page_text(analysis: Analysis, folder: Path) -> str:
    """The page of a report in a folder."""
    from mlx_ft.report.page import page

    best = analysis.best
    named = best is not None and best.config is not None
    return page(analysis, str(folder / BEST) if named else None)


def write_page(folder: Path, metric: str, *, low: bool) -> None:
    """`report.html` of a sweep that has come to its end; what goes wrong is said, not raised.

    low: whether the lowest figure is the best.
    """
    try:
        text = page_text(analyse(sweep(folder), Goal(metric, low)), folder)
        durable.write(folder / PAGE, text.encode("utf-8", errors="backslashreplace"))
    except Exception as error:  # the trials are what counts, and mlx-ft report can try again
        why = f"{type(error).__name__}: {error}"
        print(f"{folder / PAGE} could not be written: {why}", file=sys.stderr)
