"""Figures: what is drawn, read back from the axes, and what the titles claim."""

from __future__ import annotations

import math
import struct
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from mlx_ft import plots

pytestmark = pytest.mark.figures


def rows_of_a_run() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = [{"step": 0, "val/loss": 1.92}]
    for step in range(1, 61):
        row = {"step": step, "train/loss": 2 * math.exp(-step / 9) + 0.3}
        row |= {"train/learning_rate": 1e-3 * (1 - step / 60), "train/grad_norm": 1 + 1 / step}
        row |= {"memory/mlx_peak_gb": 3.1, "memory/rss_gb": 2.0}
        rows.append(row)
    return [*rows, {"step": 60, "val/loss": 0.31}]


def test_figures_of_a_run() -> None:
    figures = plots.training_figures(rows_of_a_run())
    titles = {name: figure.axes[0].get_title(loc="left") for name, figure in figures.items()}
    assert titles == {
        "loss": "Validation loss 1.92 → 0.310",
        "learning_rate": "Learning rate peaks at 0.000983 in step 1",
        "gradient_norm": "Gradient norm 2.00 → 1.02",
        "memory": "Memory peaks at 3.1 GB (MLX)",
    }
    for figure in figures.values():
        axes = figure.axes[0]
        assert axes.get_xlabel() == "Step"
        assert axes.get_ylim()[0] == 0


def test_loss_figure_draws_what_it_is_given() -> None:
    train = [(step, float(100 - step)) for step in range(1, 41)]
    axes = plots.loss_figure(train, [(0, 5.0), (40, 2.0)]).axes[0]
    raw, smooth, valid = axes.get_lines()
    assert list(zip(raw.get_xdata(), raw.get_ydata(), strict=True)) == train
    assert raw.get_linewidth() < smooth.get_linewidth()
    assert list(valid.get_ydata()) == [5.0, 2.0]
    assert [text.get_text() for text in axes.texts] == ["5.00", "2.00"]


def test_figures_without_data_are_not_made() -> None:
    assert plots.training_figures([]) == {}
    assert set(plots.training_figures([{"step": 1, "val/loss": 0.5}])) == {"loss"}
    assert plots.loss_figure([], []).axes[0].get_title(loc="left").endswith("no finite value")


@pytest.mark.parametrize("length", [1, 2, 9, 60, 400])
def test_smoothed_is_a_centred_mean(length: int) -> None:
    values = np.random.default_rng(0).normal(size=length)
    smooth = plots.smoothed(list(enumerate(values.tolist())))
    reach = int(0.1 * length / 2)
    for i, (step, value) in enumerate(smooth):
        near = min(reach, i)
        assert step == i
        assert value == pytest.approx(np.mean(values[i - near : i + near + 1]))
    line = [(step, 3.0 - 0.1 * step) for step in range(length)]
    inner = slice(0, length - reach)
    assert plots.smoothed(line)[inner] == [(s, pytest.approx(v)) for s, v in line[inner]]  # no lag


def test_not_a_number_is_a_gap() -> None:
    rows = [{"step": s, "train/loss": v} for s, v in ((1, 2.0), (2, math.nan), (3, math.inf))]
    rows += [{"step": 4, "train/loss": 1.0}, {"step": 5, "val/loss": None}]
    points = plots.series(rows, "train/loss")
    assert [step for step, _ in points] == [1, 2, 3, 4]
    assert np.isnan([value for _, value in points]).tolist() == [False, True, True, False]
    assert plots.smoothed(points) == [(1, 2.0), (4, 1.0)]
    assert plots.from_to("Training loss", points) == "Training loss 2.00 → 1.00"
    broken = [{"step": 1, "train/grad_norm": math.nan, "memory/rss_gb": math.nan}]
    for figure in plots.training_figures(broken).values():
        assert plots.png(figure)


def test_resumed_steps_count_once() -> None:
    rows = [{"step": 1, "train/loss": 3.0}, {"step": 2, "train/loss": 2.0}]
    again = [{"step": 2, "train/loss": 1.5}, {"step": 1, "val/loss": 9.0}]
    assert plots.series(rows + again, "train/loss") == [(1, 3.0), (2, 1.5)]


def test_png_is_repeatable_and_of_the_stated_size() -> None:
    first, second = (plots.png(plots.training_figures(rows_of_a_run())["loss"]) for _ in range(2))
    assert first == second
    assert first.startswith(b"\x89PNG")
    assert struct.unpack(">II", first[16:24]) == (1200, 675)


def test_no_pyplot_and_nothing_imported_early() -> None:
    code = (
        "import sys; from mlx_ft import plots; assert 'matplotlib' not in sys.modules;"
        "plots.png(plots.loss_figure([(1, 2.0)], []));"
        "assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
