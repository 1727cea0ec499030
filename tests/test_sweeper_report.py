"""What a sweep leaves behind when it ends: the page, and the best by the mean over its seeds."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mlx_ft import cli
from mlx_ft.main import main
from mlx_ft.sweeper.table import best_of
from tests.jobs import job
from tests.test_sweeper import world

__all__ = ["world"]


def row(trial, objective, status="FINISHED"):
    return {"trial": trial, "objective": objective, "status": status}


def test_the_best_point_is_that_of_the_best_mean():
    lucky = [row("rank=8 seed=1", 0.1), row("rank=8 seed=2", 0.9)]
    good = [row("rank=16 seed=1", 0.4), row("rank=16 seed=2", 0.3)]
    lost = [row("rank=32 seed=1", 0.0, "FAILED"), row("rank=32 seed=2", float("nan"))]
    assert best_of([*lucky, *good, *lost])["trial"] == "rank=16 seed=2"
    assert best_of([row("seed=1", 0.2), row("seed=2", 0.1)])["trial"] == "seed=2"
    assert best_of(lost) is None


def test_a_sweep_ends_with_its_page(world, capsys):
    world.outcomes = {13: RuntimeError("boom")}
    again = ["-m", "lora.rank=8,13,16", "hydra.sweep.dir=out", "sweep.metric=perplexity_after"]
    assert main(again) == 1
    text = Path("out/report.html").read_text()
    assert "Sweep out" in text
    assert "3 runs: 2 finished, 1 failed" in text
    assert "boom" in text
    out, err = capsys.readouterr()
    assert out.splitlines()[-1] == "Report: out/report.html"
    assert "could not be written" not in err


@pytest.mark.slow
def test_a_page_that_cannot_be_made_does_not_undo_the_sweep(world, capsys, monkeypatch):
    monkeypatch.setattr("mlx_ft.report.write.page_text", lambda *_: 1 / 0)
    assert main(["-m", "lora.rank=8,16", "hydra.sweep.dir=out"]) == 0
    out, err = capsys.readouterr()
    assert "out/report.html could not be written: ZeroDivisionError: division by zero" in err
    assert "*  rank=16" in out
    assert world.finished[0][0] == "FINISHED"


@pytest.mark.slow
@pytest.mark.usefixtures("world")
def test_the_command_reads_what_the_sweep_wrote(capsys):
    assert main(["-m", "lora.rank=8,16", "sweep.seeds=2", "sweep.name=mine"]) == 0
    capsys.readouterr()
    assert cli.main(["report", "mine"]) == 0
    out = capsys.readouterr().out
    assert out.count("FINISHED") == 4
    assert "*  16    43    FINISHED" in out or "*  16    42    FINISHED" in out
    assert "rank=16 (0.0625) is better than the next best, rank=8 (0.1250), by 0.0625" in out


@pytest.mark.slow
def test_a_sweep_of_what_a_real_run_leaves(place):
    """With the tiny model: curves and answers reach the page."""
    arguments = [text for text in job("lora.rank=2,4", "train.max_steps=2", "eval.task_rows=1")
                 if not text.startswith("hydra")]  # fmt: skip
    assert main(["-m", *arguments, "hydra.sweep.dir=out"]) == 0
    text = (place / "out/report.html").read_text()
    for part in ("Validation loss by step", "Answers of the best", "lora.rank</b> 2, 4", "mlx-lm"):
        assert part in text
    head = (place / "out/best.yaml").read_text().splitlines()[0]
    assert head.endswith("--config-name best")
    kept = json.loads((place / "out/sweep.json").read_text())
    assert kept["closed"]
    again = ["--config-dir", "out", "--config-name", "best", "hydra.run.dir=again"]
    assert main(again) == 0
