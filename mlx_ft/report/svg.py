"""Figures as SVG inside a page: they take its fonts and its colours, light, dark or printed.

matplotlib's own objects, no pyplot: so no global state and no window.
"""

from __future__ import annotations

import html
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_ft import plots
from mlx_ft.plots import BLUE, GREEN, GREY, INK, ORANGE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GRID, PAPER = "#E4E4E4", "#FEFEFE"
WIDTH, HEIGHT = 5.6, 3.7  # inches; 11 points are 6.5 on paper at half a page's width
STYLE = {
    **plots.STYLE,
    "font.size": 11,
    "axes.labelsize": 11,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "text.color": INK,
    "text.parse_math": False,  # a setting's value may have dollars in it
    "axes.formatter.use_mathtext": False,
    "svg.fonttype": "none",
    "svg.hashsalt": "mlx-ft",  # the same data gives the same bytes
}
# What the page's style sheet gives other values in the dark.
VARIABLES = {INK: "ink", GREY: "muted", GRID: "grid", PAPER: "paper", BLUE: "first",
             ORANGE: "second", GREEN: "third"}  # fmt: skip
# The best three are the same everywhere; told apart by line and marker, too.
TOP = ((BLUE, "-", "o"), (ORANGE, "--", "s"), (GREEN, "-.", "^"))


@dataclass(frozen=True)
class Panel:
    """A figure of the report. svg: None where the caption says why there is none."""

    name: str
    title: str
    caption: str
    svg: str | None = None


def drawn(name: str, label: str, draw: Callable[[Figure], None], height: float = HEIGHT) -> str:
    """An SVG element made by `draw`. label: what it shows, for those who cannot see it."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.BytesIO()
    with mpl.rc_context(STYLE):  # until it is saved: ticks are made only then
        figure = Figure(figsize=(WIDTH, height), layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return inline(buffer.getvalue().decode(), name, label)


def inline(document: str, name: str, label: str) -> str:
    """matplotlib's SVG document as an element of a page.

    Its ids begin with `name`, as two figures have the same; its colours are the page's.
    """
    text = document[document.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>", "", text, flags=re.DOTALL)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = text.replace("<svg", f'<svg role="img" aria-label="{html.escape(label)}"', 1)
    text = re.sub(r'( id="|url\(#|href="#)', rf"\g<1>{name}-", text)
    for color, variable in VARIABLES.items():
        text = re.sub(rf"{color}\b", f"var(--{variable},{color})", text, flags=re.IGNORECASE)
    return text
