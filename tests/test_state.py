"""What a run remembers: its counters, the best adapter, how long nothing was gained."""

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from mlx_ft.checkpoint import Checkpoint
from mlx_ft.errors import CheckpointError
from mlx_ft.state import Progress, progress_of
from tests.fakes import batches, logits, randomize, rows, same, snapshot, state, train


def record(losses: list[float], min_delta: float = 0.0) -> list[tuple[bool, int]]:
    """(best so far, validations without gain) after each loss."""
    run = state()
    results = []
    for step, loss in enumerate(losses, start=1):
        run.progress.step = step
        best = run.record_validation(loss, min_delta)
        results.append((best, run.progress.evaluations_without_gain))
    return results


def test_a_lower_loss_is_best_and_resets_the_wait() -> None:
    found = record([3.0, 2.0, 2.0, 2.5, 1.9])
    assert found == [(True, 0), (True, 0), (False, 1), (False, 2), (True, 0)]


def test_a_small_gain_is_kept_but_does_not_reset_the_wait() -> None:
    assert record([3.0, 2.95, 2.5], min_delta=0.1) == [(True, 0), (True, 1), (True, 0)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_never_the_best(bad: float) -> None:
    run = state()
    assert not run.record_validation(bad, 0.0)
    assert run.best_adapter is None
    assert run.record_validation(3.0, 0.0)
    assert not run.record_validation(bad, 0.0)
    assert run.progress.best_loss == 3.0


def test_the_best_adapter_is_a_copy_and_comes_back() -> None:
    run = state()
    randomize(run.model)
    run.progress.step = 4
    run.record_validation(1.0, 0.0)
    best, best_logits = snapshot(run.adapter()), logits(run.model)
    train(run, batches(rows(4)), run.progress.step + 2)
    assert not same(best, snapshot(run.adapter()))
    run.record_validation(1.5, 0.0)
    run.restore_best()
    assert same(best, snapshot(run.adapter()))
    assert np.array_equal(logits(run.model), best_logits)
    assert (run.progress.best_loss, run.progress.best_step) == (1.0, 4)


def test_without_a_best_adapter_the_present_one_stays() -> None:
    run = state()
    before = snapshot(run.adapter())
    run.restore_best()
    assert same(before, snapshot(run.adapter()))


def test_progress_goes_through_json_unchanged() -> None:
    run = state()
    train(run, batches(rows(4)), 2)
    run.record_validation(2.25, 0.0)
    text = json.dumps(asdict(run.progress), allow_nan=False)
    assert Progress(**json.loads(text)) == run.progress
    assert run.progress.step == 2


def test_optimizer_state_by_flat_names() -> None:
    run = state()
    train(run, batches(rows(4)), 2)
    arrays = run.optimizer_state()
    adapter = run.adapter()
    assert set(arrays) == {"step", "learning_rate"} | {f"{n}.{k}" for n in adapter for k in "mv"}
    assert int(arrays["step"]) == 2


def saved(**changes):
    run = state()
    arrays = run.adapter()
    found = Checkpoint(Path("step-000000"), arrays, run.optimizer_state(), arrays,
                       {"progress": asdict(Progress())})  # fmt: skip
    return run, replace(found, **changes)


@pytest.mark.parametrize(
    ("name", "value"),
    [("micro_step", "7"), ("micro_step", True), ("metrics_rows", -1), ("parts", [2]), ("mood", 1),
     ("best_loss", {}), ("recent_losses", ["1"]), ("wall_seconds", None)],
)  # fmt: skip
def test_counters_of_another_version_or_kind_are_refused(name: str, value: object) -> None:
    _, found = saved()
    assert progress_of(found) == Progress()
    found.state["progress"][name] = value
    with pytest.raises(CheckpointError, match="another version") as error:
        progress_of(found)
    assert error.value.faults[0].startswith(f"{name}: ")


def test_a_best_adapter_of_another_shape_does_not_fit() -> None:
    run, found = saved()
    run.check(found)
    with pytest.raises(CheckpointError, match="does not fit") as error:
        run.check(replace(found, best={}))
    assert error.value.faults[0].startswith("best ")


def test_a_best_adapter_that_is_missing_is_noticed() -> None:
    """Its manifest may be consistent all the same: written without it."""
    run, found = saved(best=None)
    own = {"step": 4, "best_step": 4}  # the adapter itself is the best
    for counters in ({}, own):
        run.check(replace(found, state={"progress": asdict(Progress(**counters))}))
    with pytest.raises(CheckpointError, match="does not fit") as error:
        run.check(replace(found, state={"progress": asdict(Progress(step=4, best_step=2))}))
    assert error.value.faults == ("best: missing",)
