"""Memory that runs out where it is harder to go on: beside the watch, and in the update."""

import mlx.core as mx
import pytest

from mlx_ft.config.schema import OptimizerConfig
from mlx_ft.errors import TrainingError
from mlx_ft.main import main
from mlx_ft.memory_watch import MemoryWatch
from tests.fakes import batches, rows, same, snapshot, state, train
from tests.jobs import job, summary

OUT = RuntimeError("[malloc] Unable to allocate 123 bytes.")
FLAT = OptimizerConfig(schedule="constant", warmup_steps=0)  # however far a training goes


def test_the_parts_that_are_doubled_are_those_that_were_taken(place, monkeypatch, capsys):
    """Foreseen: two parts. When these do not fit either it is four, not the two once more."""
    genuine, tried = MemoryWatch.observing, []
    split = MemoryWatch.split

    def observing(self, mask):
        tried.append(len(mask))
        if len(mask) > 1:
            raise OUT
        return genuine(self, mask)

    monkeypatch.setattr(
        MemoryWatch, "split", lambda self, mask, at_least=1: split(self, mask, max(2, at_least))
    )
    monkeypatch.setattr(MemoryWatch, "observing", observing)
    assert main(job("train.max_steps=2")) == 0
    before, after = tried[: tried.index(2)], tried[tried.index(2) + 1 :]
    assert {*before, *after} == {1}
    assert len(after) >= 4
    assert summary(place / "run")["out_of_memory"] == 1
    assert "every micro-batch is taken in 4 parts from now on" in capsys.readouterr().err


@pytest.mark.parametrize("moment", ["at once", "when it is evaluated"])
def test_an_update_without_memory_leaves_the_state_as_it_was(moment, monkeypatch):
    run, data = state(), batches(rows(8))
    train(run, data, 2, optimizer=FLAT)
    arrays = snapshot(run.adapter()), snapshot(run.optimizer.state)
    counters = run.progress.step, run.progress.micro_step
    genuine, evaluate = run.optimizer.apply_gradients, mx.eval
    updated = []

    def update(gradients, parameters):
        result = genuine(gradients, parameters)
        updated.append(1)
        if moment == "at once":
            raise OUT
        return result

    def no_room(*trees):
        if updated:
            raise OUT
        evaluate(*trees)

    with monkeypatch.context() as patch:
        patch.setattr(run.optimizer, "apply_gradients", update)
        patch.setattr(mx, "eval", no_room)
        with pytest.raises(TrainingError, match="memory ran out in the optimizer's update") as e:
            train(run, data, 3, optimizer=FLAT)
    assert updated == [1]
    assert "Unable to allocate" in str(e.value)
    assert any("optimizer=sgd or lion" in fault for fault in e.value.faults)
    assert same(arrays[0], snapshot(run.adapter()))
    assert same(arrays[1], snapshot(run.optimizer.state))
    assert (run.progress.step, run.progress.micro_step) == counters
    whole = state()
    train(whole, batches(rows(8)), 3, optimizer=FLAT)
    train(run, data, 3, optimizer=FLAT)  # with room again: as if nothing had been
    assert same(snapshot(whole.adapter()), snapshot(run.adapter()))


def test_a_run_whose_update_has_no_memory_ends_with_what_saves_some(place, monkeypatch, capsys):
    import mlx.optimizers as optimizers

    genuine, calls = optimizers.AdamW.apply_gradients, []

    def update(self, gradients, parameters):
        calls.append(1)
        if len(calls) == 3:
            raise OUT
        return genuine(self, gradients, parameters)

    monkeypatch.setattr(optimizers.AdamW, "apply_gradients", update)
    assert main(job("checkpoint.every=1", "eval.every=0", "checkpoint.best=false")) == 1
    err = capsys.readouterr().err
    assert "memory ran out in the optimizer's update" in err
    assert "2 of 6 steps were done. The adapter of step 2 is saved" in err
    assert "Traceback" not in err
    found = summary(place / "run")
    assert (found["status"], found["steps"]) == ("FAILED", 2)
    last = place / "run" / "checkpoints" / "step-000002" / "adapters.safetensors"
    saved = mx.load(str(place / "run" / "adapter" / "adapters.safetensors"))
    kept = mx.load(str(last))
    assert all(mx.array_equal(saved[name], kept[name]).item() for name in kept)


def test_a_limit_below_a_single_row_is_told_once_with_what_to_do(place, capsys):
    limited = "memory_profile.memory_limit_gb=0.05"
    assert main(job("train.max_steps=2", "memory_profile.micro_batch_size=auto", limited)) == 0
    said = capsys.readouterr().err
    assert said.count("not even one row of") == 1
    assert "Set memory_profile.memory_limit_gb=0.4" in said
    assert "cannot be split" not in said
    assert "tokens fit into" not in said
