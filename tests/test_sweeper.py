"""Sweeps: the grid, the names, the parent run, failures, interruption."""

import json
import sys
import types

import pytest

from mlx_ft.errors import ConfigError, Interrupted
from mlx_ft.main import main
from mlx_ft.sweeper.grid import expand
from mlx_ft.sweeper.sweep import table


def names(*arguments):
    return [trial.name for trial in expand(arguments)]


def test_the_last_argument_varies_fastest_and_values_are_named_as_written():
    trials = expand(["++lora.rank=8,16", "++seed=1", "++optimizer.learning_rate=1e-4,3e-4"])
    assert [trial.name for trial in trials] == [
        "rank=8 learning_rate=1e-4",
        "rank=8 learning_rate=3e-4",
        "rank=16 learning_rate=1e-4",
        "rank=16 learning_rate=3e-4",
    ]
    assert trials[1].overrides == (
        "++lora.rank=8",
        "++seed=1",
        "++optimizer.learning_rate=3e-4",
    )
    assert trials[1].folder == "rank=8,learning_rate=3e-4"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["seed=1"], ["trial"]),
        (["optimizer=adam,lion"], ["optimizer=adam", "optimizer=lion"]),
        (["seed=choice(1,2)"], ["seed=1", "seed=2"]),
        (["seed=range(1,3)"], ["seed=1", "seed=2"]),
        (["data.path='a b',c"], ["path=a b", "path=c"]),
        (["a.x=1,2", "b.x=3,4"], ["a.x=1 b.x=3", "a.x=1 b.x=4", "a.x=2 b.x=3", "a.x=2 b.x=4"]),
        (["a.x=1,2", "b.x=3"], ["x=1", "x=2"]),
        (["lora.target_modules=[q],[q,v]"], ["target_modules=[q]", "target_modules=[q,v]"]),
        (["p=${oc.env:A},b"], ["p={oc.env:A}", "p=b"]),
    ],
)
def test_names(arguments, expected):
    assert names(*arguments) == expected


def test_folders_are_safe_and_tell_the_trials_apart():
    trials = expand([f"data.path='a/b','a b',{'x' * 200}"])
    folders = [trial.folder for trial in trials]
    assert folders[:2] == ["path=a_b", "path=a,b"]
    assert folders[2].startswith("003_path=xxx")
    assert all("/" not in folder and len(folder) < 120 for folder in folders)
    assert len({t.folder for t in expand(["data.path='a/b','a:b'"])}) == 2


def test_too_many_trials_are_refused():
    with pytest.raises(ConfigError, match="1,010,000 trials"):
        expand(["seed=range(0,1010)", "lora.rank=range(0,1000)"])


def test_the_table_is_aligned_and_marks_the_best():
    rows = [
        {"trial": "rank=8", "status": "FINISHED", "objective": 0.5, "val_loss_after": 0.5,
         "accuracy_after": 0.25, "seconds": 12.3, "run_dir": "out/a"},
        {"trial": "rank=16", "status": "FINISHED", "objective": 0.25, "val_loss_after": 0.25},
        {"trial": "rank=32", "status": "FAILED", "objective": 0.1},
    ]  # fmt: skip
    assert table(rows).splitlines() == [
        "   trial    status    val loss  accuracy  seconds  folder",
        "   rank=8   FINISHED  0.5000    25.0%     12       out/a",
        "*  rank=16  FINISHED  0.2500    -         -        -",
        "   rank=32  FAILED    -         -         -        -",
        "* best (lowest objective)",
    ]


@pytest.fixture
def world(monkeypatch, tmp_path):
    """Fakes of mlx_ft.run and mlx_ft.tracking, in an empty folder."""
    seen = types.SimpleNamespace(calls=[], parents=[], finished=[], outcomes={}, run_id="parent-1")

    def run(config, *, public, run_dir, parent_run_id, overrides, choices):
        seen.calls.append((config, public, run_dir, parent_run_id, overrides, choices))
        outcome = seen.outcomes.get(config.lora.rank)
        summary = {"status": "FINISHED", "val_loss_after": 1 / config.lora.rank,
                   "accuracy_after": 0.5, "wall_seconds": 2.0, "run_id": "r"}  # fmt: skip
        if isinstance(outcome, BaseException):
            raise outcome
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

        def finish(self, status, rows):
            seen.finished.append((status, rows))

    def start_parent(config, name, n_trials):
        seen.parents.append((config, name, n_trials))
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
