"""Sweeps: what is refused, the parent run, failures, interruption."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
import types
from contextlib import closing, suppress

import pytest

from mlx_ft import accept
from mlx_ft.errors import ConfigError, Interrupted
from mlx_ft.main import main
from mlx_ft.models import load as models
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.sweep import table


def test_the_table_is_aligned_and_marks_the_best():
    rows = [
        {"trial": "rank=8", "status": "FINISHED", "objective": 0.5, "val_loss_after": 0.5,
         "accuracy_after": 0.25, "seconds": 12.3, "run_dir": "out/a"},
        {"trial": "rank=16", "status": "FINISHED", "objective": 0.25, "val_loss_after": 0.25},
        {"trial": "rank=32", "status": "FAILED", "objective": 0.1},
        {"trial": "rank=64", "status": "FINISHED", "objective": float("nan")},
    ]  # fmt: skip
    assert table(rows).splitlines() == [
        "   trial    status    val loss  accuracy  seconds  folder",
        "   rank=8   FINISHED  0.5000    25.0%     12       out/a",
        "*  rank=16  FINISHED  0.2500    -         -        -",
        "   rank=32  FAILED    -         -         -        -",
        "   rank=64  FINISHED  -         -         -        -",
        "* best (lowest objective)",
    ]


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Fakes of mlx_ft.run and mlx_ft.tracking, in an empty folder."""
    seen = types.SimpleNamespace(calls=[], parents=[], finished=[], outcomes={}, run_id="parent-1",
                                 located=[], signal_at_start=None)  # fmt: skip
    find = models.locate

    def locate(config, cache_dir):
        seen.located.append(config.path)
        return None if config.path == "embedded" else find(config, cache_dir)

    def run(config, *, public, run_dir, parent_run_id, overrides, choices, share):
        assert share
        seen.calls.append((config, public, run_dir, parent_run_id, overrides, choices))
        outcome = seen.outcomes.get(config.lora.rank)
        summary = {"status": "FINISHED", "val_loss_after": 1 / config.lora.rank,
                   "accuracy_after": 0.5, "wall_seconds": 2.0, "run_id": "r"}  # fmt: skip
        if isinstance(outcome, BaseException):
            raise outcome
        if isinstance(outcome, signal.Signals):
            signal.raise_signal(outcome)
        (run_dir / "summary.json").write_text(json.dumps(summary))
        return types.SimpleNamespace(
            status="FINISHED",
            objective=summary["val_loss_after"],
            run_dir=run_dir,
            run_id="r",
            summary=summary,
        )

    class Parent:
        run_id = "parent-1"

        def finish(self, status, rows, best):
            seen.finished.append((status, rows))
            seen.best = best

    def start_parent(config, name, n_trials):
        seen.parents.append((config, name, n_trials))
        if seen.signal_at_start is not None:
            signal.raise_signal(seen.signal_at_start)
        parent = Parent()
        parent.run_id = seen.run_id
        return parent

    for name, attributes in (
        ("mlx_ft.run", {"run": run}),
        ("mlx_ft.tracking", {"start_parent": start_parent}),
    ):
        module = types.ModuleType(name)
        module.__dict__.update(attributes)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(models, "locate", locate)
    monkeypatch.setattr(accept, "deferred_tokenizer", lambda _: None)
    monkeypatch.setattr(accept, "prepare", lambda *_, **__: types.SimpleNamespace(test=[]))
    monkeypatch.chdir(tmp_path)
    return seen


def statuses(world):
    [(status, rows)] = world.finished
    return status, {row["trial"]: row["status"] for row in rows}


def test_a_sweep_runs_every_trial_under_one_parent(world, tmp_path, capsys):
    assert main(["-m", "lora.rank=8,16", "optimizer.learning_rate=1e-4,3e-4"]) == 0
    [(config, name, n_trials)] = world.parents
    assert (config.lora.rank, n_trials) == (8, 4)
    assert [call[0].tracking.run_name for call in world.calls] == [
        "rank=8 learning_rate=1e-4",
        "rank=8 learning_rate=3e-4",
        "rank=16 learning_rate=1e-4",
        "rank=16 learning_rate=3e-4",
    ]
    assert {call[3] for call in world.calls} == {"parent-1"}
    assert [call[2] for call in world.calls] == [
        tmp_path / "outputs" / "sweeps" / name / folder
        for folder in (
            "rank=8,learning_rate=1e-4",
            "rank=8,learning_rate=3e-4",
            "rank=16,learning_rate=1e-4",
            "rank=16,learning_rate=3e-4",
        )
    ]
    _, public, _, _, overrides, choices = world.calls[3]
    assert "lora.rank=16" in overrides
    assert (public["lora"]["rank"], choices["optimizer"]) == (16, "adamw")
    assert "MLX_FT" not in str(overrides)
    status, rows = world.finished[0]
    assert (status, [row["status"] for row in rows]) == ("FINISHED", ["FINISHED"] * 4)
    assert capsys.readouterr().out.count("\n*  rank=16 learning_rate=1e-4  FINISHED  0.0625") == 1


def test_hydra_writes_no_files_of_its_own(world, tmp_path):
    assert main(["-m", "lora.rank=8,16", "hydra.sweep.dir=out"]) == 0
    files = sorted(
        str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()
    )
    assert files == ["out/rank=16/summary.json", "out/rank=8/summary.json"]
    assert world.parents[0][1] == "out"


@pytest.mark.parametrize("key", ["hydra.sweep.dir", "paths.output_dir"])
def test_a_tilde_is_the_home_folder(world, key, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert main(["-m", "lora.rank=8", f"{key}='~/out'"]) == 0
    assert world.calls[0][2].is_relative_to(tmp_path / "home" / "out")
    assert not (tmp_path / "~").exists()


def test_the_folder_and_the_run_name_of_the_user_win(world, tmp_path):
    argv = ["-m", "lora.rank=8,16", "tracking.run_name=mine", "hydra.sweep.dir=o"]
    assert main([*argv, "hydra.sweep.subdir=${hydra.job.num}"]) == 0
    assert [call[2] for call in world.calls] == [tmp_path / "o" / "0", tmp_path / "o" / "1"]
    assert {call[0].tracking.run_name for call in world.calls} == {"mine"}


def test_a_failed_trial_is_said_at_once_and_does_not_end_the_sweep(world, capsys):
    world.outcomes = {8: ConfigError("this rank is unlucky"), 13: RuntimeError("boom")}
    assert main(["-m", "lora.rank=8,13,16"]) == 1
    assert statuses(world) == (
        "FAILED",
        {"rank=8": "FAILED", "rank=13": "FAILED", "rank=16": "FINISHED"},
    )
    out, err = capsys.readouterr()
    assert "Trial rank=8 failed: this rank is unlucky" in err
    assert "Trial rank=13 failed: RuntimeError: boom" in err
    assert "*  rank=16" in out


@pytest.mark.parametrize(
    ("stop", "code"),
    [(KeyboardInterrupt(), 130), (Interrupted("stop", 2), 130), (Interrupted("term", 15), 143)],
)
def test_an_interruption_ends_the_sweep_and_marks_the_parent(world, stop, code, capsys):
    world.outcomes = {13: stop}
    assert main(["-m", "lora.rank=8,13,16"]) == code
    assert statuses(world) == (
        "KILLED",
        {"rank=8": "FINISHED", "rank=13": "KILLED", "rank=16": "NOT RUN"},
    )
    assert len(world.calls) == 2
    assert "NOT RUN" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_outside_a_trials_own_loop_ends_the_sweep(world, number, code, capsys):
    before = signal.getsignal(number)
    world.outcomes = {13: number}
    assert main(["-m", "lora.rank=8,13,16"]) == code
    assert signal.getsignal(number) is before
    assert statuses(world) == (
        "KILLED",
        {"rank=8": "FINISHED", "rank=13": "KILLED", "rank=16": "NOT RUN"},
    )
    assert "*  rank=8 " in capsys.readouterr().out


def test_a_signal_while_the_parent_is_opened_waits_for_it(world):
    world.signal_at_start = signal.SIGTERM
    assert main(["-m", "lora.rank=8,16"]) == 143
    assert statuses(world) == ("KILLED", {"rank=8": "NOT RUN", "rank=16": "NOT RUN"})
    assert world.calls == []


def test_an_ignored_signal_stays_ignored():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Stop():
            signal.raise_signal(signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


SWEEP = """
import sys, time, types
from mlx_ft import runtime
runtime.prepare()
from mlx_ft import accept
accept.prepare_inputs = lambda _: None
fake = types.ModuleType("mlx_ft.run")
fake.run = lambda *_, **__: time.sleep(60)  # such as loading a model
sys.modules["mlx_ft.run"] = fake
from mlx_ft.main import main
sys.argv[0] = "train.py"
sys.exit(main(["-m", "lora.rank=8,16"]))
"""


def test_sigterm_between_two_trials_leaves_no_running_parent_in_mlflow(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", SWEEP], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline().startswith("Sweep of 2 trials")
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "NOT RUN" in out
    with closing(sqlite3.connect(tmp_path / "mlruns" / "mlflow.db")) as connection:
        assert connection.execute("select status from runs").fetchall() == [("KILLED",)]


@pytest.mark.parametrize(
    ("arguments", "texts"),
    [
        (
            ["data=custom", "data.path=a.jsonl,b.jsonl"],
            ["2 faults in the sweep:", "Nothing was written.", "no file or folder 'a.jsonl'",
             "trial path=a.jsonl: ", "no file or folder 'b.jsonl'", "trial path=b.jsonl: "],
        ),
        (["model.path=nope,embedded"], ["1 fault", "found 'nope'", "trial path=nope: "]),
        (["data.database=no.db", "seed=1,2"], ["1 fault", "no.db does not exist"]),
        (["hydra.sweep.dir=file/x", "seed=1,2"], ["1 fault", "hydra.sweep.dir", "not a folder"]),
        (["threads=1,2"], ["1 fault", "threads: cannot vary", "basic launcher"]),
        (
            ["train.epochs=1,2", "train.max_steps=5"], None,
        ),
        (
            ["train.epochs=1,2"],
            ["2 faults", "train.epochs=2 has no effect while train.max_steps is",
             "(from data=geography_sql)", "(trial epochs=2)"],
        ),
    ],
)  # fmt: skip
def test_whatever_is_wrong_with_a_trial_is_said_before_anything_is_written(
    world, arguments, texts, tmp_path, capsys
):
    (tmp_path / "file").touch()
    assert main(["-m", *arguments]) == (0 if texts is None else 2)
    if texts is not None:
        err = capsys.readouterr().err
        assert [text for text in texts if text not in err] == []
        assert [path.name for path in tmp_path.iterdir()] == ["file"]
        assert (world.parents, world.calls) == ([], [])


def test_what_trials_share_is_checked_once(world):
    assert main(["-m", "lora.rank=8,16,32"]) == 0
    assert world.located == ["embedded"]


def test_a_sweep_into_the_folder_of_an_earlier_one_is_refused(world, capsys):
    assert main(["-m", "lora.rank=8,16", "hydra.sweep.dir=out"]) == 0
    assert main(["-m", "lora.rank=16,32", "hydra.sweep.dir=out"]) == 2
    assert "out holds such trials already" in capsys.readouterr().err
    assert main(["-m", "lora.rank=64,128", "hydra.sweep.dir=out"]) == 0


def test_the_best_of_the_table_is_the_best_of_the_parent(world, capsys):
    world.outcomes = {13: RuntimeError("boom")}
    assert main(["-m", "lora.rank=8,13,16"]) == 1
    assert world.best["trial"] == "rank=16"
    assert "*  rank=16" in capsys.readouterr().out
    world.outcomes = {8: RuntimeError("boom"), 13: RuntimeError("boom")}
    assert main(["-m", "lora.rank=8,13", "hydra.sweep.dir=other"]) == 1
    assert world.best is None


def test_without_a_tracker_the_trials_have_no_parent(world, monkeypatch):
    monkeypatch.setenv("MLX_FT_PARENT_RUN", "left over from elsewhere")
    world.run_id = None
    assert main(["-m", "lora.rank=8,16", "tracking=none"]) == 0
    assert {call[3] for call in world.calls} == {None}


def test_a_runs_config_can_be_swept(world, tmp_path):
    assert main(["-m", "lora.rank=8,16", "hydra.sweep.dir=out"]) == 0
    import yaml

    (tmp_path / "config.yaml").write_text(yaml.safe_dump(world.calls[0][1]))
    argv = ["--config-dir", ".", "--config-name", "config", "-m", "optimizer=lion,adam"]
    assert main([*argv, "hydra.sweep.dir=again"]) == 0
    assert [call[0].optimizer.name for call in world.calls[2:]] == ["lion", "adam"]
    assert not list(tmp_path.rglob("*.log")) + list(tmp_path.rglob(".hydra"))


def test_a_signal_that_a_finalizer_swallows_comes_again():
    class Swallows:
        def __del__(self):
            with suppress(BaseException):  # as Python does with finalizers
                signal.raise_signal(signal.SIGTERM)

    with Stop():
        Swallows()
        with pytest.raises(KeyboardInterrupt, match="SIGTERM"):
            time.sleep(5)
    with Stop() as stop, stop.later():  # and none is left over
        time.sleep(0.6)
        stop.check()
