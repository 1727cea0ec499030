"""Sweeps: what is refused, the parent run, failures, interruption."""

import csv
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
from hydra.core.plugins import Plugins

import mlx_ft.report.page  # noqa: F401 - before the fakes take the place of what it imports
from mlx_ft import accept
from mlx_ft.errors import ConfigError, Interrupted
from mlx_ft.main import main
from mlx_ft.models import load as models
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.table import table
from tests.models import tiny

pytestmark = pytest.mark.usefixtures("no_estimate")


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
        "* best (lowest val_loss_after)",
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

    def run(config, *, public, run_dir, parent_run_id, overrides, choices, share, prune=None):
        assert share
        seen.calls.append((config, public, run_dir, parent_run_id, overrides, choices))
        outcome = seen.outcomes.get(config.lora.rank)
        summary = {"status": "FINISHED", "val_loss_after": 1 / config.lora.rank,
                   "accuracy_after": 0.5, "wall_seconds": 2.0, "run_id": "r"}  # fmt: skip
        if callable(outcome) and not isinstance(outcome, signal.Signals):
            outcome = outcome()
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

    def start_parent(config, name, n_trials, journal):
        seen.journal = journal
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
    monkeypatch.setattr("mlx_ft.report.page.panels", lambda _: [])  # drawing costs a second
    monkeypatch.setattr(models, "locate", locate)
    monkeypatch.setattr(accept, "deferred_tokenizer", lambda _: None)
    monkeypatch.setattr(
        accept, "prepare", lambda *_, **__: types.SimpleNamespace(test=[], digest="d")
    )
    monkeypatch.chdir(tmp_path)
    return seen


def statuses(world, which=0):
    status, rows = world.finished[which]
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
    assert files == [
        "out/.lock", "out/rank=16/summary.json", "out/rank=16/trial.json",
        "out/rank=8/summary.json", "out/rank=8/trial.json", "out/report.html", "out/sweep.json",
        "out/trials.csv", "out/trials.md",
    ]  # fmt: skip
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


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (None, 1)]
)
def test_what_interrupted_code_makes_of_a_signal_is_still_the_signal(
    world, monkeypatch, capsys, number, code
):
    def launch(*_):
        try:
            if number is not None:
                signal.raise_signal(number)
        finally:
            raise AttributeError("half of a list")  # such as OmegaConf, in a copy

    launcher = types.SimpleNamespace(launch=launch)
    monkeypatch.setattr(Plugins, "instantiate_launcher", lambda *_: launcher)
    assert main(["-m", "lora.rank=8,16"]) == code
    status = "FAILED" if number is None else "KILLED"
    assert statuses(world) == (status, {"rank=8": "NOT RUN", "rank=16": "NOT RUN"})
    assert ("half of a list" in capsys.readouterr().err) is (number is None)


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
accept.prepare_inputs = lambda _: types.SimpleNamespace(dataset=types.SimpleNamespace(digest=""))
fake = types.ModuleType("mlx_ft.run")
fake.run = lambda *_, **__: time.sleep(60)  # such as loading a model
sys.modules["mlx_ft.run"] = fake
from mlx_ft.main import main
sys.argv[0] = "train.py"
sys.exit(main(["-m", "lora.rank=8,16"]))
"""


@pytest.mark.slow
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
        (["model.path=nope,nor"], ["2 faults", "found 'nope'", "trial path=nope: "]),
        (["data.database=no.db", "seed=1,2"], ["1 fault", "no.db does not exist"]),
        (["hydra.sweep.dir=file/x", "seed=1,2"], ["1 fault", "hydra.sweep.dir", "not a folder"]),
        (["threads=1,2"], ["1 fault", "threads: cannot vary", "submitit_local"]),
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


def test_a_sweep_that_is_repeated_runs_what_is_left_of_it(world, capsys):
    world.outcomes = {16: KeyboardInterrupt(), 64: RuntimeError("boom")}
    again = ["-m", "lora.rank=8,16,32,64"]
    assert main(again) == 130
    world.outcomes.pop(16)
    assert main(again) == 1
    assert [call[0].lora.rank for call in world.calls] == [8, 16, 16, 32, 64]
    assert [call[0].train.resume for call in world.calls] == ["never"] * 5  # no files of a run
    assert statuses(world, 1) == (
        "FAILED",
        {"rank=8": "FINISHED", "rank=16": "FINISHED", "rank=32": "FINISHED", "rank=64": "FAILED"},
    )
    assert [parent[1] for parent in world.parents] == [world.parents[0][1]] * 2
    assert "rank=64: boom" in capsys.readouterr().out
    assert main(again) == 1  # nothing to do
    out = capsys.readouterr().out
    assert "has come to its end before" in out
    assert "sweep.retry=true runs the failed trials again" in out
    assert len(world.parents) == 2
    world.outcomes = {}
    assert main([*again, "sweep.retry=true"]) == 0
    assert [call[0].lora.rank for call in world.calls[5:]] == [64]


def test_a_trial_with_files_of_a_run_goes_on_with_it(world, tmp_path):
    world.outcomes = {16: KeyboardInterrupt()}
    assert main(["-m", "lora.rank=8,16", "sweep.name=mine"]) == 130
    folder = tmp_path / "outputs/sweeps/mine/rank=16"
    (folder / "config.yaml").write_text("")
    world.outcomes = {}
    assert main(["-m", "lora.rank=8,16", "sweep.name=mine"]) == 0
    config, _, run_dir, *_ = world.calls[-1]
    assert (config.train.resume, run_dir) == ("auto", folder)


def test_a_trial_that_was_killed_as_it_told_its_end_is_asked_again(world, tmp_path):
    again = ["-m", "lora.rank=8,16", "sweep.name=mine"]
    assert main(again) == 0
    (tmp_path / "outputs/sweeps/mine/rank=16/trial.json").unlink()
    content = json.loads((tmp_path / "outputs/sweeps/mine/sweep.json").read_text())
    (tmp_path / "outputs/sweeps/mine/sweep.json").write_text(
        json.dumps({**content, "closed": False})
    )
    assert main(again) == 0
    assert [call[0].train.resume for call in world.calls] == ["never", "never", "auto"]


@pytest.mark.slow
def test_a_named_sweep_grows_but_takes_no_other_settings(world, capsys):
    name = "sweep.name=mine"
    assert main(["-m", "lora.rank=8,16", name]) == 0
    assert main(["-m", "lora.rank=8,16,32", name]) == 0
    assert [call[0].lora.rank for call in world.calls] == [8, 16, 32]
    assert main(["-m", "lora.rank=8,16", name, "lora.alpha=64", "tracking=none"]) == 2
    err = capsys.readouterr().err
    assert "holds a sweep with other settings" in err
    assert "lora.alpha: 32.0 there, 64.0 now" in err
    assert "tracking" not in err
    assert main(["-m", "lora.rank=8,16", name, "hydra.sweep.dir=x"]) == 2
    assert len(world.calls) == 3


@pytest.mark.slow
def test_other_settings_are_another_sweep(world):
    for more in ([], ["lora.alpha=64"], ["log_level=error"]):
        main(["-m", "lora.rank=8,16", *more])
    first, second, third = (parent[1] for parent in [*world.parents, world.parents[0]])
    assert (first != second, first == third, len(world.calls)) == (True, True, 4)


def test_a_point_that_is_impossible_does_not_end_the_sweep(world, capsys):
    assert main(["-m", "lora.rank=0,8,16", "lora.dropout=0,2"]) == 1
    assert [call[0].lora.rank for call in world.calls] == [8, 16]
    out = capsys.readouterr().out
    assert out.index("Trial rank=0 dropout=0 cannot be run: lora.rank: found 0") < out.index("*")
    _, rows = world.finished[0]
    failed = {row["trial"]: row["error"] for row in rows if row["status"] == "FAILED"}
    assert sorted(failed) == ["rank=0 dropout=0", "rank=0 dropout=2", "rank=16 dropout=2",
                              "rank=8 dropout=2"]  # fmt: skip
    assert "lora.dropout: found 2" in failed["rank=8 dropout=2"]
    assert main(["-m", "lora.rank=0,-1"]) == 2


def test_a_point_that_has_become_possible_is_run(world, tmp_path):
    again = ["-m", "lora.rank=8", "model.path=embedded,./late", "sweep.name=mine"]
    assert main(again) == 1
    assert len(world.calls) == 1
    tiny.save(tmp_path / "late")
    assert main(again) == 0
    assert [call[0].model.path for call in world.calls] == ["embedded", "./late"]


@pytest.mark.slow
def test_each_point_may_be_run_with_several_seeds(world, capsys):
    assert main(["-m", "lora.rank=8,16", "sweep.seeds=2", "seed=5"]) == 0
    assert [(c[0].lora.rank, c[0].seed) for c in world.calls] == [(8, 5), (8, 6), (16, 5), (16, 6)]
    assert main(["-m", "lora.rank=8,16", "sweep.seeds=2", "seed=5,6"]) == 2
    assert "several values of seed" in capsys.readouterr().err


@pytest.mark.slow
def test_the_best_by_another_metric(world, capsys):
    assert main(["-m", "lora.rank=8,16", "sweep.direction=maximize"]) == 0
    assert world.best["trial"] == "rank=8"
    out = capsys.readouterr().out
    assert "* best (highest val_loss_after)" in out
    assert main(["-m", "lora.rank=8,16", "sweep.metric=accuracy_after", "sweep.name=x"]) == 0
    assert world.best["objective"] == 0.5


def test_a_dry_run_writes_and_runs_nothing(world, tmp_path, capsys):
    assert main(["-m", "lora.rank=8,0", "sweep.dry_run=true"]) == 1  # as without dry_run
    out = capsys.readouterr().out
    assert "2 trials, 1 of them to run, in outputs/sweeps/rank-" in out
    assert "rank=8  to be run" in out
    assert "rank=0  cannot be run: lora.rank: found 0" in out
    assert main(["-m", "lora.rank=8,16", "sweep.dry_run=true"]) == 0
    assert [*tmp_path.iterdir()] == []
    assert (world.parents, world.calls) == ([], [])


def clocked(patch, clock):
    """The sweep's time and its trials', not `time.time` itself: that is the logger's too."""
    for module in ("running", "trial"):
        told = types.SimpleNamespace(**{**vars(time), "time": lambda: next(clock)})
        patch.setattr(f"mlx_ft.sweeper.{module}.time", told)


@pytest.mark.slow
def test_no_trial_begins_after_its_hours(world, monkeypatch, capsys):
    again = ["-m", "lora.rank=8,16,32", "sweep.max_hours=1"]
    with monkeypatch.context() as patch:
        clock = iter([0.0, 100.0, 3700.0, 3800.0])  # the sweep's, then each trial's
        clocked(patch, clock)
        assert main(again) == 1
    assert len(world.calls) == 1
    assert "rank=16: sweep.max_hours is over" in capsys.readouterr().out
    assert main(again) == 0
    assert [call[0].lora.rank for call in world.calls] == [8, 16, 32]


def test_two_processes_do_not_run_one_sweep(world, capsys):
    outcome = []

    class Other(Exception):
        pass

    def again(*_):
        outcome.append(main(["-m", "lora.rank=8,16", "sweep.name=mine"]))
        return Other()

    world.outcomes = {8: again}
    main(["-m", "lora.rank=8,16", "sweep.name=mine"])
    assert outcome == [2]
    assert "another process runs this sweep" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_leaves_its_trials_as_tables_and_the_best_configuration(world, tmp_path):
    world.outcomes = {13: RuntimeError("a | b")}
    again = ["-m", "lora.rank=8,13,16", "lora.alpha=1,2", "hydra.sweep.dir=out"]
    assert main(again) == 1
    with (tmp_path / "out/trials.csv").open() as file:
        rows = [*csv.DictReader(file)]
    assert [(row["lora.rank"], row["lora.alpha"], row["status"]) for row in rows] == [
        ("8", "1", "FINISHED"), ("8", "2", "FINISHED"), ("13", "1", "FAILED"),
        ("13", "2", "FAILED"), ("16", "1", "FINISHED"), ("16", "2", "FINISHED"),
    ]  # fmt: skip
    assert (rows[4]["objective"], rows[2]["error"]) == ("0.0625", "a | b")
    text = (tmp_path / "out/trials.md").read_text()
    assert "Best (lowest val_loss_after): rank=16 alpha=1" in text
    assert "| a \\| b |" in text
    assert text.count("**0.0625**") == 2
    assert not (tmp_path / "out/best.yaml").exists()  # the fake run leaves no configuration
    (tmp_path / "out/rank=16,alpha=1/config.yaml").write_text("seed: 1\n")
    world.outcomes = {}
    assert main([*again, "sweep.retry=true"]) == 0
    assert (tmp_path / "out/best.yaml").read_text() == "seed: 1\n"


def test_keys_of_the_sweep_are_not_swept_and_want_a_sweep(world, capsys):
    assert main(["-m", "sweep.retry=true,false"]) == 2
    assert "cannot be swept" in capsys.readouterr().err
    assert main(["sweep.name=x"]) == 2
    assert "has no effect on a single run" in capsys.readouterr().err


@pytest.mark.slow
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


@pytest.mark.slow
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
