"""Which setting is best, and what is said of it."""

from __future__ import annotations

import pytest

from mlx_ft.errors import UserError
from mlx_ft.report.analyse import Goal, analyse, goal_of
from mlx_ft.report.collect import Collection, of_rows
from mlx_ft.report.read import Row


def row(loss, rank=4, seed=1, status="FINISHED", **figures):
    known = {} if loss is None else {"val_loss_after": loss}
    return Row(status, {"lora.rank": rank, "seed": seed}, {**known, **figures})


def told(*rows, goal=None):
    return analyse(of_rows("t", rows), goal or Goal("val_loss_after", low=True))


def test_the_best_point_is_that_of_the_best_mean_not_of_the_luckiest_run():
    lucky = [row(loss, 8, seed) for seed, loss in enumerate((0.20, 0.50, 0.51))]
    good = [row(loss, 4, seed) for seed, loss in enumerate((0.30, 0.31, 0.32))]
    found = told(*lucky, *good)
    assert found.best is good[0]
    assert [point.name for point in found.points] == ["rank=4", "rank=8"]
    assert found.points[0].estimate.mean == pytest.approx(0.31)
    assert found.top == [good[0], lucky[0]]


def test_runs_that_did_not_finish_are_compared_with_nothing():
    found = told(row(0.1, status="PRUNED"), row(0.2, 8, status="FAILED"), row(0.3, 16))
    assert found.best.settings["lora.rank"] == 16
    assert found.verdict == "rank=16 is the only setting with a result."
    assert told(row(None)).verdict == "No run has finished with a validation loss."


def test_one_seed_tells_nothing():
    said = told(row(0.3), row(0.4, 8)).verdict
    assert "rank=4 (0.3000) is ahead of the next best, rank=8 (0.4000)" in said
    assert "from one seed nobody can tell" in said


def test_a_difference_that_is_real_and_one_that_is_not():
    noise = (0.00, 0.05, -0.04, 0.02)  # the seeds' own, the same for both settings
    real = told(*(row(0.3 + n, 4, s) for s, n in enumerate(noise)),
                *(row(0.32 + n * 1.01, 8, s) for s, n in enumerate(noise)))  # fmt: skip
    assert real.gap.is_real
    assert real.gap.paired
    assert "is better than the next best, rank=8 (0.3276), by 0.0201: the difference is real (" in (
        real.verdict
    )
    assert "paired by seed, 4 seeds, p < 0.001)" in real.verdict
    luck = told(*(row(0.3 + n, 4, s) for s, n in enumerate(noise)),
                *(row(0.32 + n, 8, s + 10) for s, n in enumerate(noise)))  # fmt: skip
    assert not luck.gap.is_real
    assert "are not told apart: their difference of 0.0200 may be luck (" in luck.verdict
    assert "Welch's test, 4 seeds, p = 0.48)" in luck.verdict  # t = 0.02 / 0.02669


def test_high_can_be_better():
    rows = [row(None, rank, seed, accuracy_after=0.1 * rank + 0.01 * seed)
            for rank in (4, 8) for seed in (0, 1)]  # fmt: skip
    found = told(*rows, goal=Goal("accuracy_after", low=False))
    assert found.best is rows[3]
    assert found.gap.mean == pytest.approx(0.4)


def test_a_seed_that_was_run_twice_is_one_witness():
    found = told(row(0.3, 4, 1), row(0.3, 4, 1), row(0.4, 8, 1))
    assert found.points[0].estimate.n == 1
    assert not found.repeated


def test_the_front_of_cost_and_quality():
    costs = ((0.5, 10.0), (0.4, 20.0), (0.45, 30.0), (0.3, 40.0))
    rows = [row(loss, rank, wall_seconds=cost) for rank, (loss, cost) in enumerate(costs)]
    rows.append(row(0.2, 5))
    found = told(*rows)
    assert found.front["wall_seconds"] == [rows[0], rows[1], rows[3]]
    assert found.front["peak_memory_gb"] == []


def test_what_to_compare_by():
    rows = [Row("FINISHED", {"sweep.metric": "accuracy_after", "sweep.direction": "auto"},
                {"val_loss_after": 0.5, "accuracy_after": 0.5, "mine": 3.0})]  # fmt: skip
    assert goal_of(rows) == Goal("accuracy_after", low=False)
    assert goal_of(rows, "val_loss_after") == Goal("val_loss_after", low=True)
    assert goal_of(rows, "val_loss_after", "maximize") == Goal("val_loss_after", low=False)
    assert goal_of(rows, "mine", "minimize") == Goal("mine", low=True)
    assert goal_of([]) == Goal("val_loss_after", low=True)
    with pytest.raises(UserError, match="is low or high better"):
        goal_of(rows, "mine")
    with pytest.raises(UserError, match="there are: accuracy_after, mine, val_loss_after"):
        goal_of(rows, "vall")
    turned = [Row("FINISHED", {"sweep.metric": "val_loss_after", "sweep.direction": "maximize"})]
    assert goal_of(turned) == Goal("val_loss_after", low=False)


def test_names_without_settings_are_folders():
    rows = [Row("FINISHED", {}, {"val_loss_after": 0.3}, run_id="abc")]
    assert analyse(Collection("t", rows, []), Goal("val_loss_after", low=True)).points[0].name == (
        "abc"
    )
