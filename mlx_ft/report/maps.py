"""The objective over the parameters: a heatmap of two, a line for one, points for a search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlx_ft.plots import BLUE, GREY, INK
from mlx_ft.report.analyse import Analysis, Point
from mlx_ft.report.axes import axis_of, is_number, is_wide, place_ticks, position, scaled
from mlx_ft.report.labels import figure_label, figure_text, is_share, short_keys, value_text
from mlx_ft.report.read import told_apart
from mlx_ft.report.svg import GRID, PAPER, Panel, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_TEXTS = 9  # cells of a row or column with their number in them
SPARSE = 2.5  # cells for each one that was to be run, above which they are no grid
SHADES = 20
FRAME = "#D55E01"  # the same in the dark: it lies on a cell

Cell = tuple[int, int]


@dataclass(frozen=True)
class _Map:
    """keys: of the axes. points: those that have them all, the best first. title: of the figure."""

    analysis: Analysis
    keys: Sequence[str]
    points: Sequence[Point]
    title: str

    @property
    def metric(self) -> str:
        return self.analysis.goal.metric

    @property
    def best(self) -> str:
        """The best point and its figure."""
        best = self.points[0]
        return f"{best.name}, {figure_text(self.metric, best.estimate.mean)}"

    def label(self, key: str) -> str:
        """A key as the axis has it."""
        return short_keys(self.analysis.collection.keys)[key]

    def values(self, key: str) -> list[Any]:
        """Of a parameter, numbers in order; those of failed runs, too."""
        return _values(self.analysis, key)

    def panel(self, caption: str, svg: str) -> Panel:
        return Panel("map", self.title, caption, svg)

    def text(self, caption: str) -> str:
        """What the figure shows, in words."""
        return f"{self.title}. {caption}"


def map_panel(analysis: Analysis) -> Panel:
    """How the objective lies over the two parameters that matter most, or over the only one."""
    keys = analysis.collection.keys
    title = figure_label(analysis.goal.metric).capitalize()
    if not keys or not analysis.points:
        why = "Nothing varies but the seed" if not keys else "No run has a result"
        return Panel("map", f"{title} by setting", f"{why}: there is no map to draw.")
    chosen = keys if len(keys) == 1 else _two(analysis)
    points = [point for point in analysis.points if all(key in point.settings for key in chosen)]
    if not points:
        return Panel("map", f"{title} by setting", f"No result has both {' and '.join(chosen)}.")
    found = _Map(analysis, chosen, points, title)
    labels = [found.label(key) for key in reversed(chosen)]
    found = _Map(analysis, chosen, points, f"{title} by {' and '.join(labels)}")
    if len(chosen) == 1:
        return _line(found, chosen[0])
    return _scatter(found) if _is_sparse(found) else _heatmap(found)


def _two(analysis: Analysis) -> list[str]:
    """The keys of the columns and of the rows: the more values, the more room."""
    keys = [*analysis.collection.keys]
    if len(keys) > 2 and analysis.importance and len(analysis.importance.shares) > 1:
        keys = [share.name for share in analysis.importance.shares[:2]]
    elif len(keys) > 2:
        numeric = [key for key in keys if all(map(is_number, _values(analysis, key)))]
        keys = [*dict.fromkeys([*numeric, *keys])][:2]
    place = analysis.collection.keys.index
    return sorted(keys, key=lambda key: (-len(_values(analysis, key)), -place(key)))


def _values(analysis: Analysis, key: str) -> list[Any]:
    found = {told_apart(value): value for row in analysis.collection.rows
             if (value := row.settings.get(key)) is not None}  # fmt: skip
    values = [*found.values()]
    return sorted(values) if all(map(is_number, values)) else values


def _is_sparse(found: _Map) -> bool:
    """Whether the runs are no grid, but points here and there."""
    x, y = found.keys
    planned = {(told_apart(row.settings.get(x)), told_apart(row.settings.get(y)))
               for row in found.analysis.collection.rows}  # fmt: skip
    return len(found.values(x)) * len(found.values(y)) > SPARSE * len(planned)


def _heatmap(found: _Map) -> Panel:
    axes_values = [found.values(key) for key in found.keys]
    cells = {place: point for point in reversed(found.points)  # the best comes last, and stays
             if (place := _place(point.settings, found.keys, axes_values)) is not None}  # fmt: skip
    places = ((_place(row.settings, found.keys, axes_values), row.status.lower())
              for row in reversed(found.analysis.collection.rows))  # fmt: skip
    empty = {place: status for place, status in places if place is not None and place not in cells}

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        _fill(axes, cells, empty, found)
        for which, key, values in zip("xy", found.keys, axes_values, strict=True):
            place_ticks(axes, which, range(len(values)), [value_text(value) for value in values])
            (axes.set_xlabel if which == "x" else axes.set_ylabel)(found.label(key))
            (axes.set_xlim if which == "x" else axes.set_ylim)(-0.5, len(values) - 0.5)

    others = [found.label(key) for key in found.analysis.collection.keys if key not in found.keys]
    parts = [
        f"The brighter, the better; the frame marks the best: {found.best}"
        f"{' (mean over seeds)' if found.analysis.repeated else ''}.",
        f"A cell has the best over {', '.join(others)}." if others else "",
        "Hatched cells have no result." if empty else "",
        "" if all(map(_evenly, axes_values)) else "Values are spaced evenly, not to scale.",
    ]
    caption = " ".join(part for part in parts if part)
    height = min(5.5, max(3.4, 1.3 + 0.55 * len(axes_values[1])))
    return found.panel(caption, drawn("map", found.text(caption), draw, height))


def _evenly(values: Sequence[Any]) -> bool:
    """Whether equal cells are true to scale, linear or logarithmic."""
    if len(values) < 3 or not all(map(is_number, values)):
        return True
    scale = [float(value) for value in values]
    gaps = [b - a for a, b in pairwise(scale)]
    factors = [b / a for a, b in pairwise(scale)] if scale[0] > 0 else [1, 9]
    return max(gaps) < 1.1 * min(gaps) or max(factors) < 1.5 * min(factors)


def _place(
    settings: Mapping[str, Any], keys: Sequence[str], values: Sequence[Sequence[Any]]
) -> Cell | None:
    """The column and row of a run; None for one that does not have both settings."""
    wanted = [told_apart(settings.get(key)) for key in keys]
    column, row = (
        next((number for number, one in enumerate(axis) if told_apart(one) == value), None)
        for value, axis in zip(wanted, values, strict=True)
    )
    return None if column is None or row is None else (column, row)


def _fill(axes: Axes, cells: Mapping[Cell, Point], empty: Mapping[Cell, str], found: _Map) -> None:
    from matplotlib.patches import Rectangle

    means = [point.estimate.mean for point in cells.values()]
    shade, mappable = _shades(means, low=found.analysis.goal.low)
    wide = max(len({place[side] for place in (*cells, *empty)}) for side in (0, 1))
    for place, point in cells.items():
        corner, color = (place[0] - 0.5, place[1] - 0.5), shade(point.estimate.mean)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=color, edgecolor=PAPER, linewidth=2))
        best = point is found.points[0]
        if best:
            inside = (corner[0] + 0.035, corner[1] + 0.05)
            axes.add_patch(Rectangle(inside, 0.93, 0.9, fill=False, color=FRAME, linewidth=3))
        if wide <= MOST_TEXTS:
            axes.text(*place, figure_text(found.metric, point.estimate.mean), ha="center",
                      va="center", color=_readable_on(color), fontsize=11 if wide < 6 else 8.5,
                      fontweight="bold" if best else "normal")  # fmt: skip
    for place, status in empty.items():
        corner = (place[0] - 0.5, place[1] - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, fill=False, hatch="///", color=GRID, linewidth=0))
        if wide <= MOST_TEXTS:
            axes.text(
                *place, status, ha="center", va="center", fontsize=9 if wide < 6 else 7, color=INK
            )
    if wide > MOST_TEXTS:
        _color_bar(axes, mappable, found.metric)
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _readable_on(color: Sequence[float]) -> str:
    red, green, blue = color[:3]
    return "#FFFFFF" if 0.299 * red + 0.587 * green + 0.114 * blue < 0.55 else "#111111"


def _shades(values: Sequence[float], *, low: bool) -> tuple[Any, Any]:
    """A value's colour of viridis, the better the brighter, and what a colour bar needs."""
    from matplotlib import cm, colormaps
    from matplotlib.colors import LogNorm, Normalize

    # Fewer shades than a colour bar is drawn with as lines; more would become an image.
    palette = colormaps["viridis_r" if low else "viridis"].resampled(SHADES)
    wide, ends = is_wide(values), (min(values), max(values))
    if ends[0] == ends[1]:
        ends = (ends[0] - 0.5, ends[1] + 0.5)
        wide = False
    norm = LogNorm(*ends) if wide else Normalize(*ends)
    return lambda value: palette(norm(value)), cm.ScalarMappable(norm, palette)


def _color_bar(axes: Axes, mappable: Any, metric: str) -> None:
    from matplotlib.ticker import FuncFormatter

    bar = axes.figure.colorbar(mappable, ax=axes, pad=0.02)
    bar.set_label(figure_label(metric))
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: figure_text(metric, value)))
    bar.ax.yaxis.set_minor_formatter("")
    bar.outline.set_visible(False)


def _scatter(found: _Map) -> Panel:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        means = [point.estimate.mean for point in found.points]
        shade, mappable = _shades(means, low=found.analysis.goal.low)
        for which, key in zip("xy", found.keys, strict=True):
            axis_of(axes, which, found.values(key))
            (axes.set_xlabel if which == "x" else axes.set_ylabel)(found.label(key))
        for point in reversed(found.points):
            at = [position(point.settings[key], found.values(key)) for key in found.keys]
            axes.plot(at[:1], at[1:], "o", color=shade(point.estimate.mean), markersize=8,
                      markeredgecolor=INK, zorder=3,
                      markeredgewidth=2.5 if point is found.points[0] else 0.5)  # fmt: skip
        _color_bar(axes, mappable, found.metric)

    caption = (f"Each point is a setting, the brighter the better; the thick ring marks the best: "
               f"{found.best}.")  # fmt: skip
    return found.panel(caption, drawn("map", found.text(caption), draw))


def _line(found: _Map, key: str) -> Panel:
    goal, values = found.analysis.goal, found.values(key)
    points = sorted(found.points, key=lambda point: position(point.settings[key], values))
    lost = [row for row in found.analysis.collection.rows
            if goal.of(row) is None and row.settings.get(key) is not None]  # fmt: skip
    heights = [value for point in points for value in point.values.values()]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axis_of(axes, "x", values)
        at = [position(point.settings[key], values) for point in points]
        for x, point in zip(at, points, strict=True):
            if len(point.values) > 1:
                axes.plot([x] * len(point.values), [*point.values.values()], "o", color=GREY,
                          markersize=4, zorder=3)  # fmt: skip
        style = "o-" if all(map(is_number, values)) else "o"
        axes.plot(at, [p.estimate.mean for p in points], style, color=BLUE, linewidth=2.2)
        percent = is_share(goal.metric)
        said = scaled(axes, "y", heights, log=is_wide(heights) and not percent, percent=percent)
        for row in lost:
            x = position(row.settings[key], values)
            axes.plot([x], [0.02], "x", color=INK, transform=axes.get_xaxis_transform())
        axes.set_title(f"{figure_label(goal.metric)}{said}", loc="left", fontsize=11)
        axes.set_xlabel(found.label(key))

    seeds = " Grey: each seed; the line goes through the means." if found.analysis.repeated else ""
    crosses = " A cross at the bottom: no result." if lost else ""
    caption = f"Best: {found.best}.{seeds}{crosses}"
    return found.panel(caption, drawn("map", found.text(caption), draw))
