"""A run that is stopped as hopeless: what it leaves, how it goes on, and a sweep of real runs."""

import json
import math
import sqlite3
from contextlib import closing

import pytest

from mlx_ft.config.compose import CommandLine, accept
from mlx_ft.main import main
from mlx_ft.run import run
from tests.jobs import job, summary


def start(prune, *overrides):
    command = CommandLine(tuple(job(*overrides)))
    accepted = accept(command)
    return run(accepted.config, public=accepted.public, run_dir=accepted.run_dir, prune=prune)


def adapter(folder):
    return (folder / "adapter" / "adapters.safetensors").read_bytes()


def validations(folder):
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [(row["step"], row["val/loss"]) for row in rows if "val/loss" in row and row["step"]]


def test_a_pruned_run_ends_like_one_that_stopped_early(place, capsys):
    asked = []

    def hopeless(step, loss):
        asked.append((step, loss))
        return "too slow" if step == 4 else None

    result = start(hopeless, "train.max_steps=10", "eval.every=2")
    folder, found = place / "run", summary(place / "run")
    assert asked == validations(folder)
    assert [step for step, _ in asked] == [2, 4]
    assert (result.status, found["status"]) == ("FINISHED", "FINISHED")
    told = {key: found[key] for key in ("pruned", "reason", "steps", "planned_steps")}
    assert told == {"pruned": True, "reason": "too slow", "steps": 4, "planned_steps": 10}
    assert found["val_loss_after"] == min(loss for _, loss in asked)
    assert found["accuracy_after"] is None  # nobody waits for its answers
    assert found["accuracy_before"] is not None
    assert (folder / "adapter" / "adapters.safetensors").is_file()
    assert "pruned at step 4: too slow" in (folder / "train.log").read_text()
    assert "validation loss" not in capsys.readouterr().out  # no table of a result


def test_a_pruned_run_is_done_for_its_sweep_and_can_be_trained_to_its_end(place, capsys):
    start(lambda step, loss: "no" if step == 4 else None, "train.max_steps=10", "eval.every=2")
    again = ("train.max_steps=10", "eval.every=2", "train.resume=auto")

    def never(step, loss):
        raise AssertionError

    result = start(never, *again)
    assert (result.status, result.summary["pruned"]) == ("FINISHED", True)
    assert "run is pruned: 4 steps. Nothing was done." in capsys.readouterr().out
    assert main(job(*again)) == 0  # on its own it is gone on with
    found = summary(place / "run")
    assert (found["pruned"], found["reason"], found["steps"]) == (False, None, 10)
    whole = ("train.max_steps=10", "eval.every=2", "hydra.run.dir=whole")
    assert main(job(*whole)) == 0
    assert adapter(place / "run") == adapter(place / "whole")
    assert validations(place / "run") == validations(place / "whole")


def test_a_run_that_was_killed_as_it_was_pruned_is_asked_again(place, monkeypatch):
    from mlx_ft import session

    given = ("train.max_steps=10", "eval.every=2")
    keep = session.Session._keep_adapter

    def killed(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(session.Session, "_keep_adapter", killed)
    with pytest.raises(KeyboardInterrupt):
        start(lambda step, loss: "no" if step == 4 else None, *given)
    monkeypatch.setattr(session.Session, "_keep_adapter", keep)
    asked = []

    def hopeless(step, loss):
        asked.append(step)
        return "no"

    start(hopeless, *given, "train.resume=auto")
    assert asked == [4]
    assert summary(place / "run")["steps"] == 4


@pytest.mark.slow
def test_a_sweep_of_real_runs_prunes_and_goes_on(place, capsys):
    """Learning rates from good to none: the hopeless ones end at their first validation."""
    given = [text for text in job("train.max_steps=16", "tracking=mlflow", "eval.before=false")
             if not text.startswith("hydra.run.dir")]  # fmt: skip
    sweep = ["-m", *given, "optimizer.learning_rate=1e-2,1e-9,1e-10", "sweep.pruner=asha",
             "hydra.sweep.dir=s"]  # fmt: skip
    assert main(sweep) == 0
    out = capsys.readouterr().out
    assert "2 of 3 trials were pruned: 28 of 48 steps not taken" in out
    found = {
        path.parent.name: json.loads(path.read_text()) for path in place.glob("s/*/summary.json")
    }
    assert {name: one["steps"] for name, one in found.items()} == {
        "learning_rate=1e-2": 16, "learning_rate=1e-9": 2, "learning_rate=1e-10": 2,
    }  # fmt: skip
    assert [step for step, _ in validations(place / "s/learning_rate=1e-2")] == [*range(2, 17, 2)]
    assert all(math.isfinite(one["val_loss_after"]) for one in found.values())
    with closing(sqlite3.connect(place / "mlruns/mlflow.db")) as connection:
        statuses = connection.execute("select status from runs").fetchall()
        reasons = connection.execute(
            "select value from tags where key = 'mlx_ft.end_reason'"
        ).fetchall()
    assert statuses == [("FINISHED",)] * 4
    assert len(reasons) == 2
    assert all("of which 1 went on" in text for (text,) in reasons)
    assert main(sweep) == 0
    assert "has come to its end before" in capsys.readouterr().out
