"""What the objective hangs on, what luck does to it, and what it costs in time and memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlx_ft.plots import BLUE, GREY, INK
from mlx_ft.plural import counted
from mlx_ft.report.analyse import Analysis, Point
from mlx_ft.report.axes import is_wide, scaled
from mlx_ft.report.importance import Importance, Share
from mlx_ft.report.labels import (
    figure_label,
    is_share,
    name_of,
    p_text,
    percent_text,
    short_keys,
)
from mlx_ft.report.lines import LONGEST_LABEL, look, top_legend
from mlx_ft.report.read import Row
from mlx_ft.report.svg import Panel, drawn

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_POINTS = 10
ROW = 0.36  # inches
UNITS = ((3 * 3600, 3600, "hours"), (300, 60, "minutes"), (0, 1, "seconds"))


def importance_panel(analysis: Analysis) -> Panel:
    """The share of the variance that each parameter explains, with its uncertainty."""
    found, metric = analysis.importance, figure_label(analysis.goal.metric)
    title = f"What the {metric} hangs on"
    if found is None or not found.shares:
        return Panel("importance", title, f"{_why_none(analysis)}: nothing can be said of how "
                                          "important each setting is.")  # fmt: skip
    bars = _bars(found, short_keys(analysis.collection.keys))

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for place, (name, value, color) in enumerate(bars):
            axes.barh(place, value, 0.6, color=color)
            axes.text(-0.015, place, name, ha="right", va="center")
        for place, share in enumerate(found.shares):
            if share.interval is not None:
                axes.plot(
                    share.interval,
                    [place, place],
                    color=INK,
                    linewidth=1.6,
                    zorder=4,
                    marker="|",
                    markersize=9,
                    label="95% interval" if not place else None,
                )
            axes.plot(
                [share.by_chance] * 2,
                [place - 0.38, place + 0.38],
                ":",
                color=INK,
                linewidth=1.8,
                zorder=5,
                label="by chance alone" if not place else None,
            )
        axes.set_xlim(0, 1)
        axes.set_ylim(len(bars) - 0.4, -0.6)
        axes.set_xticks([0, 0.25, 0.5, 0.75, 1], ["0%", "25%", "50%", "75%", "100%"])
        axes.set_yticks([])
        axes.set_xlabel(f"share of the variance of the {metric}")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside lower left", ncols=2, borderpad=0.7)

    caption = _told(found, analysis)
    svg = drawn("importance", f"{title}. {caption}", draw, 1.5 + ROW * len(bars))
    return Panel("importance", title, caption, svg)


def _why_none(analysis: Analysis) -> str:
    if not analysis.collection.keys:
        return "No setting varies"
    if len(analysis.collection.keys) == 1 and not analysis.repeated:
        return "One setting varies, and each of its values was run once"
    return "There are too few results, or they are all alike"


def _bars(found: Importance, short: dict[str, str]) -> list[tuple[str, float, str]]:
    """(name, share, colour): the parameters, then what is left, in grey."""
    bars = [(_clipped(short[share.name]), share.share, BLUE) for share in found.shares]
    if found.together is not None:
        bars.append(("combinations", found.together, GREY))
    return bars + ([("seeds", found.seeds, GREY)] if found.seeds is not None else [])


def _told(found: Importance, analysis: Analysis) -> str:
    short = short_keys(analysis.collection.keys)
    first = found.shares[0]
    interval = ""
    if first.interval is not None:
        low, high = map(percent_text, first.interval)
        interval = f" (95% interval {low} to {high}%)"
    explained = f"{short[first.name]} explains {percent_text(first.share)}%{interval}"
    parts = [f"{explained} of what differs between {counted(found.trials, 'run')}."]
    if weak := [short[share.name] for share in found.shares if _may_be_nothing(share)]:
        parts.append(f"May have no effect at all: {', '.join(weak)}.")
    if found.together is None:
        parts.append("The runs are no full grid, so shares may overlap.")
    if cut := [f"{short[share.name]} ({share.bins})" for share in found.shares if share.bins]:
        parts.append(f"Cut into ranges of equally many runs: {', '.join(cut)}.")
    known = {share.name for share in found.shares}
    if left := [short[key] for key in analysis.collection.keys if key not in known]:
        parts.append(f"Left out, with one result for each value or one value: {', '.join(left)}.")
    return " ".join(parts)


def _may_be_nothing(share: Share) -> bool:
    return share.share <= share.by_chance if share.interval is None else share.interval[0] < 0.01


def repeats_panel(analysis: Analysis) -> Panel | None:
    """Each setting with its seeds, mean and interval; None when no setting was repeated."""
    if not analysis.repeated:
        return None
    metric, points = analysis.goal.metric, analysis.points[:MOST_POINTS]
    label = figure_label(metric)
    title = f"{label.capitalize()} over seeds"
    values = [value for point in points for value in point.values.values()]
    beyond = [point for point in points if _leaves(point, values)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        said = scaled(axes, "x", values, percent=is_share(metric))
        ends = axes.get_xlim()
        for place, point in enumerate(points):
            told = point.estimate
            if told.interval is not None:
                axes.plot(
                    told.interval,
                    [place, place],
                    color=BLUE,
                    linewidth=5,
                    alpha=0.35,
                    solid_capstyle="butt",
                    label="95% interval" if not place else None,
                )
            axes.plot([*point.values.values()], [place] * told.n, "o", color=GREY, markersize=5,
                      label="one seed" if not place else None)  # fmt: skip
            axes.plot([told.mean], [place], "D", color=BLUE, markersize=7, zorder=5,
                      label="mean" if not place else None)  # fmt: skip
        axes.set_xlim(ends)
        axes.set_ylim(len(points) - 0.5, -0.5)
        axes.set_yticks(range(len(points)), [_clipped(point.name) for point in points])
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(f"{label}{said}")
        figure.legend(loc="outside lower left", ncols=3, borderpad=0.7)

    caption = "The bar is Student's 95% interval of the mean; settings with one seed have none."
    if analysis.gap is not None:
        told = "told apart" if analysis.gap.is_real else "not told apart"
        caption += f" The best two are {told} ({p_text(analysis.gap.p)})."
    if more := len(analysis.points) - len(points):
        caption += f" {counted(more, 'worse setting')} not drawn."
    if beyond:
        caption += " Intervals that reach beyond the axis are cut."
    svg = drawn("repeats", f"{title}. {caption}", draw, 1.5 + ROW * len(points))
    return Panel("repeats", title, caption, svg)


def _leaves(point: Point, values: Sequence[float]) -> bool:
    """Whether a mean's interval is wider than what the axis shows."""
    room = 0.08 * (max(values) - min(values))
    low, high = point.estimate.interval or (max(values), min(values))
    return low < min(values) - room or high > max(values) + room


def cost_panels(analysis: Analysis) -> list[Panel]:
    """The objective against time, and against memory, with the runs that no other one beats."""
    return [
        _cost(analysis, "wall_seconds", "time", "Time against quality"),
        _cost(analysis, "peak_memory_gb", "memory", "Memory against quality"),
    ]


def _cost(analysis: Analysis, cost: str, name: str, title: str) -> Panel:
    goal = analysis.goal
    rows = [row for row in analysis.collection.rows
            if goal.of(row) is not None and cost in row.figures]  # fmt: skip
    if len(rows) < 2:
        return Panel(name, title, f"Fewer than two runs have a result and their {name} noted.")
    unit, x_label = _unit(cost, max(row.figures[cost] for row in rows))
    front = sorted(analysis.front[cost], key=lambda row: row.figures[cost])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = {id(row): (row.figures[cost] / unit, row.figures[goal.metric]) for row in rows}
        x_said = scaled(axes, "x", [x for x, _ in places.values()])
        heights = [y for _, y in places.values()]
        percent = is_share(goal.metric)
        y_said = scaled(axes, "y", heights, log=is_wide(heights) and not percent, percent=percent)
        corners = [places[id(row)] for row in front]
        axes.plot([x for x, _ in corners], [y for _, y in corners], drawstyle="steps-post",
                  color=INK, linewidth=1.4, zorder=2)  # fmt: skip
        for row in rows:
            ring = any(row is one for one in front)
            _dot(axes, row, places[id(row)], analysis, ring=ring)
        axes.set_xlabel(f"{x_label}{x_said}")
        way = "lower" if goal.low else "higher"
        said = f"{figure_label(goal.metric)}, {way} is better{y_said}"
        axes.set_title(said, loc="left", fontsize=11)
        top_legend(figure, analysis, others=len(rows) > len(analysis.top), marks=True)

    caption = _of_front(front, analysis)
    if cost == "peak_memory_gb" and analysis.collection.folder is not None:
        caption += " Of trials in one process the first one also loads the model and judges it."
    svg = drawn(name, f"{title}. {caption}", draw, 3.6 + 0.22 * len(analysis.top))
    return Panel(name, title, caption, svg)


def _unit(cost: str, most: float) -> tuple[float, str]:
    """What a cost is divided by, and what its axis is called."""
    if cost == "peak_memory_gb":
        return 1, "peak memory, GB"
    unit, word = next((unit, word) for least, unit, word in UNITS if most >= least)
    return unit, f"wall time, {word}"


def _dot(
    axes: Axes, row: Row, place: tuple[float, float], analysis: Analysis, *, ring: bool
) -> None:
    color, _, mark = look(row, analysis)
    top = color != GREY
    axes.plot(*([value] for value in place), mark, color=color, zorder=5 if top else 3,
              markersize=10 if top else 7, alpha=1 if top else 0.7,
              markeredgecolor=INK if ring else color, markeredgewidth=1.8 * ring)  # fmt: skip


def _of_front(front: Sequence[Row], analysis: Analysis) -> str:
    names = [name_of(row, analysis.collection.keys) for row in front]
    named = "; ".join(dict.fromkeys(names)) if len(names) <= 4 else f"{len(names)} runs"
    return f"No run beats those on the line (the Pareto front) in both: {named}."


def _clipped(text: str) -> str:
    return text if len(text) <= LONGEST_LABEL else f"{text[:LONGEST_LABEL]}…"
