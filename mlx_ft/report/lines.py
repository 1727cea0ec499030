"""All runs as lines: their losses by step, and their settings as parallel coordinates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from mlx_ft.plots import GREY, INK, smoothed
from mlx_ft.plural import counted
from mlx_ft.report.analyse import FINISHED, Analysis
from mlx_ft.report.axes import is_geometric, is_number, is_wide, position, scaled
from mlx_ft.report.labels import figure_label, figure_text, short_keys, value_text
from mlx_ft.report.read import Row, Series, told_apart
from mlx_ft.report.svg import PAPER, TOP, Panel, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Points of a line, and of all lines: more are not seen, and make the page heavy.
FEWEST, MOST_POINTS, MOST_IN_ALL = 20, 300, 20_000
MOST_AXES = 6
MOST_TICKS = 7
LONGEST_LABEL = 46
WIDE = 4  # losses that fall by more get a logarithmic axis, where their ends are told apart


def curve_panels(analysis: Analysis) -> list[Panel]:
    """Validation losses, and training losses as moving averages, of all runs."""
    rows = analysis.collection.rows
    valid = [row.curves.get("val/loss", ()) for row in rows]
    valid = [_thinned(points, len(rows)) for points in valid]
    train = [_thinned(smoothed(row.curves.get("train/loss", ())), len(rows)) for row in rows]
    return [
        _curves(analysis, valid, "validation", "Validation loss by step", "validation loss"),
        _curves(analysis, train, "training", "Training loss by step",
                "moving average of the training loss"),
    ]  # fmt: skip


def _thinned(points: Series, lines: int) -> Series:
    """Fewer points of each line, the more lines there are; the last one stays."""
    every = -(-len(points) // max(FEWEST, min(MOST_POINTS, MOST_IN_ALL // lines)))
    return [*points[:-1:every], points[-1]] if every > 1 else points


def _curves(
    analysis: Analysis, curves: Sequence[Series], name: str, title: str, label: str
) -> Panel:
    lines = [(row, points) for row, points in zip(analysis.collection.rows, curves, strict=True)
             if len(points) > 1]  # fmt: skip
    if not lines:
        return Panel(name, title, f"No run has two values of its {name} loss: there is no curve.")
    stopped = [row for row, _ in lines if row.status != FINISHED]

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        for row, points in lines:
            _curve(axes, row, points, analysis, faint=_faint(len(lines)))
        heights = [value for _, points in lines for _, value in points]
        said = scaled(axes, "y", heights, log=is_wide(heights, WIDE))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True, steps=[1, 2, 5, 10]))
        axes.set_title(f"{label}, nats per token{said}", loc="left", fontsize=11)
        axes.set_xlabel("step")
        top_legend(figure, analysis, others=len(lines) > len(analysis.top), stopped=bool(stopped))

    without = len(curves) - len(lines)
    best = f"the best {len(analysis.top)}" if len(analysis.top) > 1 else "the best"
    caption = f"{counted(len(lines), 'run')}, {best if analysis.top else 'none'} in colour."
    if stopped:
        caption += f" A cross is where a run ended without a result ({len(stopped)})."
    if without:
        caption += f" {counted(without, 'run')} without such a curve."
    svg = drawn(name, f"{title}. {caption}", draw, 3.5 + 0.22 * len(analysis.top))
    return Panel(name, title, caption, svg)


def _faint(lines: int) -> float:
    """How opaque each of many lines is, so that where they crowd is seen."""
    return max(0.15, min(0.6, 20 / lines))


def _curve(axes: Axes, row: Row, points: Series, analysis: Analysis, *, faint: float) -> None:
    color, style, _ = look(row, analysis)
    top = row in analysis.top
    steps, values = [step for step, _ in points], [value for _, value in points]
    axes.plot(steps, values, style, color=color, linewidth=2.2 if top else 1.0,
              alpha=1 if top else faint, zorder=4 if top else 2)  # fmt: skip
    if row.status != FINISHED:
        axes.plot(steps[-1:], values[-1:], "x", color=INK, markersize=7, zorder=5)


def look(row: Row, analysis: Analysis) -> tuple[str, str, str]:
    """Colour, line and marker of a run: the same in every figure."""
    for best, found in zip(analysis.top, TOP, strict=False):
        if row is best:
            return found
    return GREY, "-", "o"


def top_legend(
    figure: Figure, analysis: Analysis, *, others: bool, stopped: bool = False, marks: bool = False
) -> None:
    """The best three by name, below the figure. marks: it has points, not lines."""
    from matplotlib.lines import Line2D

    def handle(color: str, style: str, mark: str, label: str, width: float) -> Line2D:
        line = Line2D([], [], color=color, linewidth=width, linestyle=style, label=label)
        if marks:
            line.set(linestyle="none", marker=mark)
        return line

    found = []
    for place, row in enumerate(analysis.top):
        name = analysis.name(row)
        name = name if len(name) <= LONGEST_LABEL else f"{name[:LONGEST_LABEL]}…"
        found.append(handle(*TOP[place], f"{place + 1}. {name}", 2.2))
    if others:
        found.append(handle(GREY, "-", "o", "others", 1.0))
    if stopped:
        found.append(Line2D([], [], color=INK, linestyle="none", marker="x", label="no result"))
    figure.legend(
        handles=found,
        loc="outside lower left",
        handlelength=2.6,
        borderpad=0.7,
        ncols=2 if max(len(str(one.get_label())) for one in found) < 24 else 1,
    )


def parallel_panel(analysis: Analysis) -> Panel:
    """Each run as a line through its settings to its result."""
    title = "Settings and result of every run"
    keys = _chosen(analysis)
    judged = [row for row in analysis.collection.rows if analysis.goal.of(row) is not None]
    if len(keys) < 2 or len(judged) < 2:
        why = "Parallel coordinates need two settings that vary and two runs with a result."
        return Panel("parallel", title, why)
    scales = {key: _Scale([row.settings.get(key) for row in analysis.collection.rows])
              for key in keys}  # fmt: skip
    goal = analysis.goal
    results = _Scale([goal.of(row) for row in judged], geometric=is_wide(
        [value for row in judged if (value := goal.of(row)) is not None]))  # fmt: skip

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        order = {id(row): -analysis.goal.cost(goal.of(row) or 0) for row in judged}
        for row in sorted(judged, key=lambda row: order[id(row)]):
            places = [scales[key].at(row.settings.get(key)) for key in keys]
            places.append(_upwards(results.at(goal.of(row)), low=goal.low))
            _line(axes, row, places, analysis, faint=_faint(len(judged)))
        short = short_keys(analysis.collection.keys)
        for number, key in enumerate(keys):
            _axis(axes, number, short[key], scales[key].ticks())
        ticks = [(_upwards(place, low=goal.low), text) for place, text in
                 results.ticks(lambda value: figure_text(goal.metric, value))]  # fmt: skip
        _axis(axes, len(keys), figure_label(goal.metric), ticks)
        axes.set_xlim(-0.4, len(keys) + 0.45)
        axes.set_axis_off()
        top_legend(figure, analysis, others=len(judged) > len(analysis.top))

    left_out = len(analysis.collection.keys) - len(keys)
    lost = len(analysis.collection.rows) - len(judged)
    logs = [key for key in keys if scales[key].geometric]
    caption = "Each line is a run; the best result is at the top of the last axis."
    caption += f" Logarithmic: {', '.join(logs)}." if logs else ""
    caption += f" {counted(lost, 'run')} without a result: not drawn." if lost else ""
    if left_out:
        caption += f" The {MOST_AXES} most important of {MOST_AXES + left_out} settings."
    svg = drawn("parallel", f"{title}. {caption}", draw, 3.5 + 0.22 * len(analysis.top))
    return Panel("parallel", title, caption, svg)


def _chosen(analysis: Analysis) -> list[str]:
    """The keys that get an axis, the most important ones if there are too many."""
    keys = analysis.collection.keys
    if len(keys) <= MOST_AXES:
        return [*keys]
    shares = analysis.importance.shares if analysis.importance else []
    return [*dict.fromkeys([*(share.name for share in shares), *keys])][:MOST_AXES]


class _Scale:
    """Values of one setting on an axis from 0 to 1; words at equal distances."""

    def __init__(self, values: Sequence[Any], *, geometric: bool | None = None) -> None:
        known = {told_apart(value): value for value in values if value is not None}
        self._values = [*known.values()]
        self._numeric = all(map(is_number, self._values))
        if self._numeric:
            self._values.sort()
        found = self._numeric and is_geometric(self._values) if geometric is None else geometric
        self.geometric = found
        self._low, self._high = self._raw(self._values[0]), self._raw(self._values[-1])

    def _raw(self, value: Any) -> float:
        place = position(value, self._values)
        return math.log(place) if self.geometric else place

    def at(self, value: Any) -> float | None:
        """From 0 to 1; None for a run that does not have the setting."""
        if value is None:
            return None
        if self._high == self._low:
            return 0.5
        return (self._raw(value) - self._low) / (self._high - self._low)

    def ticks(self, text: Any = value_text) -> list[tuple[float, str]]:
        """(place, text): of every value, or of some if these are many."""
        chosen = self._values
        if len(chosen) > MOST_TICKS:
            chosen = [chosen[round(i * (len(chosen) - 1) / 4)] for i in range(5)]
        places = [(self.at(value) or 0.0, text(value)) for value in chosen]
        apart: list[tuple[float, str]] = []
        for place, told in places:
            if not apart or abs(place - apart[-1][0]) > 0.06:
                apart.append((place, told))
        return apart


def _upwards(place: float | None, *, low: bool) -> float:
    """On the axis of results the best is at the top."""
    found = 0.5 if place is None else place
    return 1 - found if low else found


def _line(
    axes: Axes, row: Row, places: Sequence[float | None], analysis: Analysis, *, faint: float
) -> None:
    """places: on each axis, the result's last."""
    color, style, mark = look(row, analysis)
    top = row in analysis.top
    points = [(x, y) for x, y in enumerate(places) if y is not None]
    axes.plot([x for x, _ in points], [y for _, y in points], style, color=color,
              linewidth=2.4 if top else 1.0, alpha=1 if top else faint, zorder=4 if top else 2,
              marker=mark if top else None, markersize=5)  # fmt: skip


def _axis(axes: Axes, number: int, name: str, ticks: Sequence[tuple[float, str]]) -> None:
    axes.plot([number, number], [0, 1], color=INK, linewidth=1.1, zorder=3)
    axes.text(number, 1.07, name, ha="center", va="bottom", fontweight="bold")
    for place, text in ticks:
        axes.plot([number, number + 0.03], [place, place], color=INK, linewidth=1.1, zorder=3)
        # Those of the first axis on its left: there are no lines.
        side = -1 if number == 0 else 1
        axes.text(number + 0.07 * side, place, text, ha="right" if side < 0 else "left",
                  va="center", fontsize=9.5, zorder=6,
                  bbox={"facecolor": PAPER, "linewidth": 0, "alpha": 0.8, "pad": 1})  # fmt: skip
