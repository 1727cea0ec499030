"""A run's metrics -> figures. Pure: no files, no pyplot, so no global state and no window.

rows: the run's `metrics.jsonl`, each with `step` and any of the metrics. matplotlib costs a
second to import, so it is imported when the first figure is made.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Series: TypeAlias = Sequence[tuple[int, float]]

# Okabe and Ito's palette: told apart with any colour vision, and in grey by line style.
BLUE, ORANGE, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
INK, GREY = "#222222", "#8A8A8A"
STYLE = {
    "font.family": "DejaVu Sans",
    "font.size": 12,
    "axes.edgecolor": GREY,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.8,
    "xtick.color": INK,
    "ytick.color": INK,
}
SIZE = (8.0, 4.5)  # inches; text stays readable at half a page's width
DPI = 150
SMOOTHING = 0.1  # share of the curve that is averaged in one smoothed point
MEMORY = {
    "memory/mlx_peak_gb": ("MLX, peak so far", BLUE, "-"),
    "memory/mlx_active_gb": ("MLX, in use", GREEN, "--"),
    "memory/mlx_cache_gb": ("MLX, cached for reuse", PURPLE, ":"),
    "memory/rss_gb": ("whole process", ORANGE, "-."),
}


def loss_figure(train: Series, valid: Series) -> Figure:
    """Training and validation loss by step.

    The training loss of each step is thin, its moving average thick; the title gives the
    validation loss before and after (the training loss when there is no validation).
    """
    figure, axes = _figure("Loss (nats per token)")
    smooth = smoothed(train)
    if train:
        axes.plot(*_xy(train), color=BLUE, alpha=0.35, linewidth=1)
        axes.plot(*_xy(smooth), color=BLUE, linewidth=2.2, label="training (thin: each step)")
    if valid:
        axes.plot(*_xy(valid), "o-", color=ORANGE, linewidth=2.2, label="validation")
        _label_ends(axes, valid, ORANGE)
    if train or valid:
        axes.legend(loc="upper right", frameon=False)
    axes.margins(y=0.1)  # room for the numbers
    axes.set_ylim(bottom=0)
    name, points = ("Validation loss", valid) if valid else ("Training loss", smooth)
    _title(axes, from_to(name, points))
    return figure


def training_figures(rows: Sequence[Mapping[str, Any]]) -> dict[str, Figure]:
    """Figures by name: `loss`, `learning_rate`, `gradient_norm`, `memory`, those with data."""
    train, valid = series(rows, "train/loss"), series(rows, "val/loss")
    rate, norm = series(rows, "train/learning_rate"), series(rows, "train/grad_norm")
    memory = {key: values for key in MEMORY if (values := series(rows, key))}
    figures: dict[str, Figure] = {}
    if train or valid:
        figures["loss"] = loss_figure(train, valid)
    if rate:
        figures["learning_rate"] = _learning_rate_figure(rate)
    if norm:
        figures["gradient_norm"] = _gradient_norm_figure(norm)
    if memory:
        figures["memory"] = _memory_figure(memory)
    return figures


def png(figure: Figure) -> bytes:
    """The figure as a PNG image, 1200 x 675 pixels."""
    buffer = io.BytesIO()
    # Without a date and a version in it, the same data gives the same bytes.
    figure.savefig(buffer, format="png", dpi=DPI, metadata={"Software": None})
    return buffer.getvalue()


def series(rows: Sequence[Mapping[str, Any]], key: str) -> list[tuple[int, float]]:
    """(step, value) of the rows that have the metric, by step; NaN leaves a gap in the line.

    A step that is there twice (a resumed run) counts once, with its last value.
    """
    values = {int(row["step"]): float(row[key]) for row in rows if row.get(key) is not None}
    return sorted((step, v if math.isfinite(v) else math.nan) for step, v in values.items())


def smoothed(points: Series) -> list[tuple[int, float]]:
    """Mean over a window of a tenth of the curve around each point; skips NaN.

    The window is centred, so that the average does not lag, and narrower at the steep start; at
    the end it is cut on one side, so that one last noisy step does not bend the curve.
    """
    finite = [(step, value) for step, value in points if math.isfinite(value)]
    reach = int(SMOOTHING * len(finite) / 2)
    smooth = []
    for i, (step, _) in enumerate(finite):
        near = min(reach, i)
        window = [value for _, value in finite[i - near : i + near + 1]]
        smooth.append((step, math.fsum(window) / len(window)))
    return smooth


def from_to(name: str, points: Series) -> str:
    """`Validation loss 1.92 → 0.31`, from the first and last finite values."""
    finite = [value for _, value in points if math.isfinite(value)]
    if not finite:
        return f"{name}: no finite value"
    if len(finite) == 1:
        return f"{name} {_number(finite[0])}"
    return f"{name} {_number(finite[0])} → {_number(finite[-1])}"


def _learning_rate_figure(rate: Series) -> Figure:
    figure, axes = _figure("Learning rate")
    axes.plot(*_xy(rate), color=BLUE, linewidth=2.2)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    axes.set_ylim(bottom=0)
    peak_step, peak = max(rate, key=lambda point: point[1])
    _title(axes, f"Learning rate peaks at {peak:.3g} in step {peak_step}")
    return figure


def _gradient_norm_figure(norm: Series) -> Figure:
    figure, axes = _figure("Gradient's global L2 norm, before clipping")
    smooth = smoothed(norm)
    axes.plot(*_xy(norm), color=BLUE, alpha=0.35, linewidth=1)
    axes.plot(*_xy(smooth), color=BLUE, linewidth=2.2, label="moving average (thin: each step)")
    finite = [value for _, value in norm if value > 0]
    if finite and max(finite) > 30 * min(finite):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0)
    axes.legend(loc="upper right", frameon=False)
    _title(axes, from_to("Gradient norm", smooth))
    return figure


def _memory_figure(memory: Mapping[str, Series]) -> Figure:
    figure, axes = _figure("Memory (GB)")
    for key, values in memory.items():
        label, color, style = MEMORY[key]
        axes.plot(*_xy(values), color=color, linestyle=style, linewidth=2.2, label=label)
    axes.set_ylim(bottom=0)
    figure.legend(loc="outside lower center", ncols=len(memory), frameon=False, handlelength=2.5)
    peaks = {key: max(value for _, value in values) for key, values in memory.items()}
    peak_key = "memory/mlx_peak_gb"
    key = peak_key if peak_key in peaks else max(peaks, key=lambda name: peaks[name])
    _title(axes, f"Memory peaks at {peaks[key]:.3g} GB ({MEMORY[key][0].split(',')[0]})")
    return figure


def _figure(y_label: str) -> tuple[Figure, Axes]:
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=SIZE, layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
        axes = figure.subplots()
        axes.set_xlabel("Step")
        axes.set_ylabel(y_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    return figure, axes


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=14, fontweight="bold", color=INK, pad=12)


def _label_ends(axes: Axes, points: Series, color: str) -> None:
    finite = [point for point in points if math.isfinite(point[1])]
    for step, value in (finite[0], finite[-1]) if len(finite) > 1 else finite:
        axes.annotate(
            _number(value),
            (step, value),
            xytext=(0, 9),
            textcoords="offset points",
            ha="center",
            color=color,
            fontweight="bold",
        )


def _number(value: float) -> str:
    """Three significant digits, trailing zeros kept: 1.90, 0.302, 118."""
    return f"{value:#.3g}".rstrip(".")


def _xy(points: Series) -> tuple[list[int], list[float]]:
    return [step for step, _ in points], [value for _, value in points]
