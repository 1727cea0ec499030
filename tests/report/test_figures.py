"""Figures: what they say, that they are honest about their axes, and that they fit in a page."""

from __future__ import annotations

import re
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from matplotlib.figure import Figure

from mlx_ft.report.analyse import Goal, analyse
from mlx_ft.report.axes import is_geometric, scaled
from mlx_ft.report.collect import Collection, of_rows, sweep
from mlx_ft.report.figures import panels
from mlx_ft.report.read import Row
from tests.report import fakes

pytestmark = pytest.mark.figures

LOSS = Goal("val_loss_after", low=True)


def drawn(folder, trials, goal=LOSS, **more):
    found = panels(analyse(sweep(fakes.sweep(folder, trials, **more)), goal))
    return {panel.name: panel for panel in found}


def texts(panel):
    """What stands in a figure. Raises when it is no well-formed XML."""
    return [text for element in ElementTree.fromstring(panel.svg).iter()
            if (text := (element.text or "").strip())]  # fmt: skip


def test_a_grid_has_all_figures(tmp_path):
    found = drawn(tmp_path, fakes.grid())
    assert [*found] == ["map", "validation", "training", "importance", "parallel", "time", "memory"]
    assert all(panel.svg and panel.caption.endswith(".") for panel in found.values())
    cells = texts(found["map"])
    for trial in fakes.grid():
        assert f"{trial['loss']:.4f}" in cells
    assert {"1e-4", "3e-4", "1e-3", "4", "8", "16", "rank", "learning_rate"} <= set(cells)
    assert "rank=16 learning_rate=3e-4, 0.3000" in found["map"].caption
    assert found["importance"].caption.startswith(
        "learning_rate explains 93% (95% interval 93 to 93%)"  # 0.0040 of 0.0043, no noise
    )
    assert "rank" in texts(found["importance"])
    assert "combinations" in texts(found["importance"])
    assert "Logarithmic: lora.rank, optimizer.learning_rate." in found["parallel"].caption


def test_ids_differ_between_figures_and_point_to_one_another(tmp_path):
    found = drawn(tmp_path, fakes.grid())
    ids = [i for panel in found.values() for i in re.findall(r'\bid="([^"]+)"', panel.svg)]
    assert len(ids) == len(set(ids))
    for panel in found.values():
        for target in re.findall(r'(?:url\(#|href="#)([^")]+)', panel.svg):
            assert target in ids


def test_figures_take_the_pages_colours_and_nothing_from_elsewhere(tmp_path):
    for panel in drawn(tmp_path, fakes.grid()).values():
        assert "var(--ink,#222222)" in panel.svg
        assert "<image" not in panel.svg
        assert "<script" not in panel.svg
        assert not re.search(r'(href|src)="(?!#)', panel.svg)
        assert panel.svg.startswith('<svg role="img" aria-label="')
        assert not re.search(r'<svg[^>]* (width|height)="', panel.svg)


def test_the_same_data_gives_the_same_bytes(tmp_path):
    first = drawn(tmp_path / "a", fakes.grid())
    again = drawn(tmp_path / "b", fakes.grid())
    assert [panel.svg for panel in first.values()] == [panel.svg for panel in again.values()]


def test_trials_without_a_result_are_seen(tmp_path):
    trials = fakes.grid()
    trials[0] |= {"loss": None, "status": "FAILED"}
    trials[8] |= {"loss": None, "status": "PRUNED"}
    found = drawn(tmp_path, trials, unrun=[{"rank": 32, "rate": 1e-4}])
    assert {"failed", "pruned", "not run"} <= set(texts(found["map"]))
    assert "Hatched cells have no result." in found["map"].caption
    assert "A cross is where a run ended without a result (2)." in found["validation"].caption
    assert "1 run without such a curve." in found["validation"].caption
    assert "3 runs without a result: not drawn." in found["parallel"].caption
    assert "no full grid" in found["importance"].caption


def test_one_setting_is_a_line(tmp_path):
    trials = [{"rate": rate, "loss": fakes.loss_at(16, rate)} for rate in (1e-5, 1e-4, 3e-4, 1e-3)]
    trials.append({"rate": 1e-2, "loss": None, "status": "FAILED"})
    found = drawn(tmp_path, trials)
    assert {"1e-5", "1e-4", "3e-4", "1e-3", "0.01"} <= set(texts(found["map"]))
    assert "Best: learning_rate=3e-4, 0.3000." in found["map"].caption
    assert "A cross at the bottom: no result." in found["map"].caption
    assert found["importance"].svg is None
    assert found["importance"].caption.startswith("One setting varies")
    assert found["parallel"].svg is None


def test_words_are_a_setting_too():
    losses = {("lion", 4): 0.4, ("adamw", 4): 0.3, ("lion", 8): 0.5, ("adamw", 8): 0.2}
    rows = [Row("FINISHED", {"optimizer.name": name, "lora.rank": rank}, {"val_loss_after": loss})
            for (name, rank), loss in losses.items()]  # fmt: skip
    found = {panel.name: panel for panel in panels(analyse(of_rows("t", rows), LOSS))}
    assert {"lion", "adamw"} <= set(texts(found["map"]))
    assert {"lion", "adamw", "4", "8"} <= set(texts(found["parallel"]))
    assert found["validation"].caption.startswith("No run has two values")
    assert found["time"].svg is None


def test_a_search_is_points_and_ranges(tmp_path):
    import random

    rng = random.Random(1)
    trials = [{"rate": rate, "dropout": rng.random(), "loss": fakes.loss_at(16, rate)}
              for rate in (10 ** rng.uniform(-5, -3) for _ in range(20))]  # fmt: skip
    found = drawn(tmp_path, trials)
    assert found["map"].caption.startswith("Each point is a setting")
    assert "Cut into ranges of equally many runs" in found["importance"].caption
    assert {"1e-4", "3e-5"} <= set(texts(found["map"]))


def test_with_seeds_there_is_a_figure_of_them_first(tmp_path):
    trials = [{**trial, "seed": seed, "loss": trial["loss"] + seed / 1000}
              for trial in fakes.grid() for seed in (1, 2)]  # fmt: skip
    found = drawn(tmp_path, trials)
    assert next(iter(found)) == "repeats"
    assert "rank=16 learning_rate=3e-4" in texts(found["repeats"])
    assert "seeds" in texts(found["importance"])
    assert "(mean over seeds)" in found["map"].caption
    assert "0.3015" in texts(found["map"])


def test_a_single_run_is_its_curves():
    curves = {"val/loss": [(0, 2.0), (10, 0.5)]}
    row = Row("FINISHED", {"lora.rank": 4}, {"val_loss_after": 0.5, "wall_seconds": 3.0}, curves)
    found = panels(analyse(Collection("t", [row], []), LOSS))
    assert [panel.name for panel in found if panel.svg] == ["validation"]
    assert all(panel.caption for panel in found)


def test_nothing_to_show_is_said():
    found = panels(analyse(Collection("t", [Row("FAILED", {"a": 1})], ["a"]), LOSS))
    assert [panel.svg for panel in found] == [None] * len(found)
    assert found[0].caption == "No run has a result: there is no map to draw."


def test_hostile_values_stay_text():
    evil = ("<script>alert(1)</script>", "$\\frac{1}$ & \x00")
    rows = [Row("FINISHED", {"data.path": text, "lora.rank": rank}, {"val_loss_after": 0.1 * rank})
            for text in evil for rank in (1, 2)]  # fmt: skip
    for panel in panels(analyse(of_rows("t", rows), LOSS)):
        if panel.svg:
            assert "<script" not in panel.svg
            texts(panel)


@pytest.mark.parametrize(
    ("values", "said", "bottom"),
    [
        ([0.1, 1.0], "", 0),
        ([0.8, 1.0], " (axis does not start at 0)", 0.784),
        ([-1.0, 1.0], " (axis does not start at 0)", -1.16),
        ([0.5, 0.5], " (axis does not start at 0)", 0.475),
    ],
)
def test_an_axis_says_when_it_does_not_start_at_zero(values, said, bottom):
    axes = Figure().subplots()
    assert scaled(axes, "y", values) == said
    assert axes.get_ylim()[0] == pytest.approx(bottom)


def test_shares_are_in_per_cent(tmp_path):
    trials = [{"rate": rate, "loss": 0.5, "accuracy": right, "seed": seed}
              for rate, right in ((1e-4, 0.2), (1e-3, 0.9)) for seed in (1, 2)]  # fmt: skip
    found = drawn(tmp_path, trials, Goal("accuracy_after", low=False))
    for name in ("map", "repeats", "time"):
        assert any(re.fullmatch(r"[1-9]\d?%", text) for text in texts(found[name]))
    assert found["map"].caption.startswith("Best: learning_rate=1e-3, 90.0%.")


def test_an_axis_says_that_it_is_logarithmic():
    axes = Figure().subplots()
    assert scaled(axes, "y", [0.01, 10.0], log=True) == " (log axis)"
    assert axes.get_yscale() == "log"
    assert scaled(axes, "x", [0.0, 10.0], log=True) == ""  # 0 has no place on one
    assert axes.get_xscale() == "linear"


@pytest.mark.parametrize(
    ("values", "geometric"),
    [
        ([4, 8, 16], True), ([1e-4, 3e-4, 1e-3], True), ([1, 2, 3, 4], False), ([0.0, 0.1], False),
        ([0.1, 0.2], False), ([1e-4, 1e-3], True), ([10, 20, 30], False), ([1], False),
    ],
)  # fmt: skip
def test_which_values_are_spaced_by_factors(values, geometric):
    assert is_geometric(values) is geometric


def test_no_pyplot():
    code = (
        "import sys; from mlx_ft.report import figures;"
        "assert 'matplotlib' not in sys.modules;"
        "from mlx_ft.report.svg import drawn; drawn('a', 'b', lambda f: f.subplots());"
        "assert 'matplotlib.pyplot' not in sys.modules; assert 'mlflow' not in sys.modules;"
        "assert 'mlx.core' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
