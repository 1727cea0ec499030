"""Faults planted into whole runs: a NaN, a spike, memory that runs out, a tracker that is down."""

import json
import socket
import sqlite3
from contextlib import closing

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft import step
from mlx_ft.main import main
from tests.jobs import job, summary

WEIGHTS = "adapter/adapters.safetensors"


@pytest.fixture
def plant(monkeypatch):
    """Change what the loss of a micro-batch is: `plant(change)`, change(call, rows, sum) -> sum."""
    genuine = step.causal_lm_loss

    def planted(change):
        calls = [0]

        def loss(forward, inputs, *rest, **options):
            calls[0] += 1
            total, count = genuine(forward, inputs, *rest, **options)
            return change(calls[0], len(inputs), total), count

        monkeypatch.setattr(step, "causal_lm_loss", loss)

    return planted


def metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def weights(run):
    return mx.load(str(run / WEIGHTS))


def test_a_nan_is_skipped_counted_and_never_saved(place, plant, capsys):
    plant(lambda call, _, total: total * mx.nan if call == 3 else total)
    assert main(job("tracking=mlflow", "checkpoint.every=1", "checkpoint.keep_last=9")) == 0
    found = summary(place / "run")
    assert (found["skipped_steps"], found["spikes"], found["status"]) == (1, 0, "FINISHED")
    assert "step 3 skipped: loss nan" in capsys.readouterr().err
    folders = sorted((place / "run" / "checkpoints").glob("step-*"))
    saved = [(folder / "adapters.safetensors").read_bytes() for folder in folders]
    assert saved[1] == saved[2]  # step 3 changed nothing
    assert saved[2] != saved[3]
    assert all(np.isfinite(np.array(array)).all() for array in weights(place / "run").values())
    with closing(sqlite3.connect(place / "mlruns" / "mlflow.db")) as database:
        points = dict(database.execute("select key, value from metrics where key like '%skipped%'"))
    assert points == {"train/skipped_steps": 1, "final/skipped_steps": 1}


LONG = ("train.max_steps=16", "train.spike_factor=3", "checkpoint.every=5", "eval.every=0")


def test_a_spike_is_skipped(place, plant, capsys):
    plant(lambda call, _, total: total * 100 if call == 13 else total)
    assert main(job(*LONG)) == 0
    found = summary(place / "run")
    assert (found["skipped_steps"], found["spikes"], found["rewinds"]) == (1, 1, 0)
    assert "step 13 skipped: loss" in capsys.readouterr().err
    # What it is: the run in which that step was not taken.
    plant(lambda call, _, total: total * mx.nan if call == 13 else total)
    assert main(job(*LONG, "hydra.run.dir=other")) == 0
    assert (place / "run" / WEIGHTS).read_bytes() == (place / "other" / WEIGHTS).read_bytes()


def test_a_spike_rewinds_to_the_last_checkpoint(place, plant, capsys):
    plant(lambda call, _, total: total * 100 if call == 13 else total)
    rewind = ("train.on_spike=rewind", "train.max_steps=13")
    assert main(job(*(text for text in LONG if "max_steps" not in text), *rewind)) == 0
    assert summary(place / "run")["rewinds"] == 1
    assert "rewound to the adapter of step 10 after the spike" in capsys.readouterr().err
    checkpoint = place / "run" / "checkpoints" / "step-000010" / "adapters.safetensors"
    last = mx.load(str(checkpoint))
    final = weights(place / "run")
    assert all(mx.array_equal(final[name], last[name]).item() for name in final)


def test_a_spike_before_any_checkpoint_is_only_skipped(place, plant, capsys):
    plant(lambda call, _, total: total * 100 if call == 13 else total)
    given = (text for text in LONG if "checkpoint" not in text)
    assert main(job(*given, "train.on_spike=rewind", "checkpoint.every=0")) == 0
    assert summary(place / "run")["rewinds"] == 0
    assert "no checkpoint to rewind to" in capsys.readouterr().err


def test_spikes_in_a_row_end_the_run(place, plant, capsys):
    plant(lambda call, _, total: total * 100 if call > 12 else total)
    assert main(job(*LONG, "train.skip_patience=3")) == 1
    found = summary(place / "run")
    assert (found["steps"], found["spikes"], found["status"]) == (15, 3, "FAILED")
    assert "train.skip_patience=3" in found["reason"]
    assert "go on       mlx-ft resume run" in capsys.readouterr().err


@pytest.mark.parametrize("error", [
    RuntimeError("[malloc] Unable to allocate 123 bytes."),
    RuntimeError("[METAL] Command buffer execution failed: Insufficient Memory"),
    MemoryError("std::bad_alloc"),
])  # fmt: skip
def test_memory_that_runs_out_halves_the_micro_batch(place, plant, error, capsys):
    def tight(_, rows, total):
        if rows > 1:
            raise error
        return total

    padded = "data.packing=none"  # where the inputs have as many rows as the batch
    assert main(job("hydra.run.dir=roomy", padded)) == 0
    plant(tight)
    assert main(job(padded)) == 0
    found = summary(place / "run")
    assert (found["out_of_memory"], found["steps"]) == (2, 6)  # 4 rows, 2, 1; and then no more
    err = capsys.readouterr().err
    assert "every micro-batch is taken in 4 parts from now on" in err
    roomy, tight_ones = weights(place / "roomy"), weights(place / "run")
    for name, array in roomy.items():  # the effective batch is the same
        np.testing.assert_allclose(np.array(tight_ones[name]), np.array(array), atol=2e-5)
    assert found["target_tokens"] == summary(place / "roomy")["target_tokens"]


def test_the_smaller_parts_are_remembered_by_a_resumed_run(place, plant):
    calls = []

    def tight(_, rows, total):
        calls.append(rows)
        if rows > 2:
            raise MemoryError("std::bad_alloc")
        return total

    plant(tight)
    padded = "data.packing=none"
    assert main(job("train.max_steps=3", padded)) == 0
    calls.clear()
    assert main(job("train.resume=auto", padded)) == 0
    assert max(calls) == 2
    assert summary(place / "run")["out_of_memory"] == 1


def test_a_single_row_that_does_not_fit_ends_the_run_with_advice(place, plant, capsys):
    def tiny(*_):
        raise MemoryError("std::bad_alloc")

    plant(tiny)
    assert main(job()) == 1
    err = capsys.readouterr().err
    assert "memory ran out on a single row" in err
    assert "memory_profile.grad_checkpoint=true" in err
    assert "saves about" in err
    assert "Traceback" not in err
    assert summary(place / "run")["status"] == "FAILED"


def test_a_crash_halves_the_micro_batch_of_the_resumed_run(place, capsys):
    assert main(job("train.max_steps=3")) == 0
    crash = '{"parts": 1}\nFatal Python error: Segmentation fault\n'
    (place / "run" / "crash.log").write_text(crash)
    assert main(job("train.resume=auto")) == 0
    assert "every micro-batch is taken in 2 parts" in capsys.readouterr().err
    assert summary(place / "run")["out_of_memory"] == 1


@pytest.mark.slow
def test_a_tracker_that_is_down_changes_nothing(place, capsys):
    assert main(job("hydra.run.dir=plain")) == 0
    with closing(socket.create_server(("127.0.0.1", 0))) as server:
        port = server.getsockname()[1]  # where nobody listens from now on
    assert main(job("tracking=mlflow", f"tracking.uri=http://127.0.0.1:{port}")) == 0
    assert (place / "run" / WEIGHTS).read_bytes() == (place / "plain" / WEIGHTS).read_bytes()
    assert summary(place / "run")["run_id"] is None
    assert f"mlx-ft sync {place}/run" in capsys.readouterr().err
