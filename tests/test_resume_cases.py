"""Going on where something is not as usual: what is refused, kept, judged again, permitted."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import yaml

from mlx_ft import data_report, trainer
from mlx_ft.checkpoint import Checkpoint
from mlx_ft.cli import main as cli
from mlx_ft.config.schema import Config, TrainConfig
from mlx_ft.judge import Judge
from mlx_ft.main import main
from mlx_ft.resume import Resumed, check_done, is_finished
from mlx_ft.target import Target, target
from proofs.kills import remains
from tests.jobs import job, summary

AUTO = "train.resume=auto"


def resumable(*overrides):
    return job("checkpoint.every=2", *overrides)


def contents(folder):
    """Every file of a folder with its bytes."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def progress(run, step):
    state = run / "checkpoints" / f"step-{step:06d}" / "state.json"
    return json.loads(state.read_text())["progress"]


def broken(*_, **__):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_auto_knows_the_home_folder(place, monkeypatch, capsys):
    assert main(resumable("hydra.run.dir=home/x", "train.max_steps=2")) == 0
    before = contents(place / "home" / "x")
    monkeypatch.setenv("HOME", str(place / "home"))
    assert main(resumable("hydra.run.dir='~/x'", "train.max_steps=2", AUTO)) == 0
    assert "home/x is finished: 2 steps" in capsys.readouterr().out
    assert contents(place / "home" / "x") == before
    assert not (place / "~").exists()
    config = Config()
    config.train.resume = str(place / "home" / "x")
    assert target(config, Path("~/x")) == Target(place / "home" / "x")  # no other folder


def test_a_finished_run_without_checkpoints_is_refused_and_kept(place, capsys):
    assert main(resumable("train.max_steps=2")) == 0
    shutil.rmtree(place / "run" / "checkpoints")
    before = contents(place / "run")
    for steps in (2, 4):
        assert main(resumable(AUTO, f"train.max_steps={steps}")) == 2
        err = capsys.readouterr().err
        assert "is finished and has no checkpoint to go on from. Nothing was changed" in err
    assert contents(place / "run") == before


def test_a_beginning_that_fails_keeps_what_is_recorded(place, monkeypatch, capsys):
    assert main(resumable()) == 0
    reference, before = remains(place / "run"), contents(place / "run")
    with monkeypatch.context() as patch:
        patch.setattr(data_report, "write_texts", broken)
        assert main(resumable(AUTO, "train.max_steps=8")) == 1
    err = capsys.readouterr().err
    assert "6 of 8 steps were done" in err
    assert "go on       mlx-ft resume run" in err
    after = contents(place / "run")
    changed = {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}
    assert changed <= {"config.yaml", "origin.json", "summary.json", "train.log"}
    assert (summary(place / "run")["status"], summary(place / "run")["steps"]) == ("FAILED", 6)
    assert remains(place / "run") == reference
    assert main(resumable(AUTO, "train.max_steps=8")) == 0
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [*range(1, 9)]


def test_what_lies_in_a_new_runs_folder_is_no_earlier_run(place):
    (place / "run").mkdir()
    (place / "run" / "metrics.jsonl").write_text('{"step": 1, "train/loss": 9.0}\n')
    assert main(resumable("train.max_steps=2")) == 0
    assert {"samples.jsonl", "loss.png"} <= contents(place / "run").keys()


@pytest.mark.slow
def test_other_evaluation_rows_judge_the_base_again(place, capsys):
    few, all_rows = "eval.max_rows=1", "eval.max_rows=null"
    assert main(resumable(few)) == 0
    longer = ("train.max_steps=8", all_rows)
    assert main(resumable(AUTO, *longer)) == 0
    assert "other evaluation settings: the base model is judged again" in capsys.readouterr().err
    assert main(resumable(*longer, "eval.every=0", "hydra.run.dir=whole")) == 0
    found, expected = summary(place / "run"), summary(place / "whole")
    assert found["val_loss_before"] == expected["val_loss_before"]
    assert main(resumable(AUTO, "train.max_steps=9", all_rows)) == 0  # and now it is known
    assert "judged again" not in capsys.readouterr().err
    assert summary(place / "run")["val_loss_before"] == expected["val_loss_before"]


@pytest.mark.parametrize(
    ("longer", "steps", "windows"),
    [("train.epochs=2", 4, [4, 1, 4, 1]), ("train.max_steps=4", 4, [4, 1, 4, 4])],
)
def test_a_run_is_made_longer_after_a_partial_last_window(place, longer, steps, windows):
    """The window that was cut short stays short; what follows is counted from there."""
    whole = ("memory_profile.grad_accumulation_steps=4", "memory_profile.micro_batch_size=4",
             "data.valid_fraction=0.2", "checkpoint.every=1", "checkpoint.keep_last=9")  # fmt: skip
    assert main(job("train.max_steps=null", "train.epochs=1", *whole)) == 0
    run = place / "run"
    assert (summary(run)["steps"], summary(run)["epochs"]) == (2, 1.0)
    epochs = ["train.max_steps=null"] if "epochs" in longer else []
    assert main(job(AUTO, longer, *epochs, *whole)) == 0
    assert (summary(run)["steps"], summary(run)["status"]) == (steps, "FINISHED")
    cursors = [progress(run, step)["micro_step"] for step in range(1, steps + 1)]
    assert [b - a for a, b in zip([0, *cursors], cursors, strict=False)] == windows


def test_a_change_that_was_permitted_once_needs_no_second_permission(place, monkeypatch, capsys):
    changed = (AUTO, "train.max_steps=8", "optimizer.weight_decay=0.1")
    assert main(resumable()) == 0
    with monkeypatch.context() as patch:  # it fails before there is a checkpoint of it
        patch.setattr(trainer, "train", broken)
        assert main(resumable(*changed, "train.resume_allow=[optimizer.weight_decay]")) == 1
    assert main(resumable(*changed)) == 0
    assert "resumed with changes, from step 7: optimizer.weight_decay" in capsys.readouterr().err
    assert main(resumable(AUTO, "train.max_steps=10")) == 2  # as it was: now that is the change
    assert "optimizer.weight_decay: was 0.1, is 0.0" in capsys.readouterr().err


@pytest.mark.parametrize("longer", [False, True])
def test_a_validation_that_was_stopped_is_in_the_last_checkpoint(place, monkeypatch, longer):
    """The checkpoint of that step, which the stop wrote, did not know it."""
    assert main(resumable("eval.every=2", "hydra.run.dir=whole")) == 0
    if longer:
        assert (
            main(resumable("eval.every=2", "hydra.run.dir=whole", AUTO, "train.max_steps=8")) == 0
        )
    validate = Judge.validate

    def stopped(self, display, step):
        if step == 6:
            raise KeyboardInterrupt
        return validate(self, display, step)

    with monkeypatch.context() as patch:
        patch.setattr(Judge, "validate", stopped)
        assert main(resumable("eval.every=2")) == 130
    assert progress(place / "run", 6)["validated_step"] == 4
    assert main(resumable("eval.every=2", AUTO)) == 0
    assert progress(place / "run", 6)["validated_step"] == 6
    if longer:
        assert main(resumable("eval.every=2", AUTO, "train.max_steps=8")) == 0
    assert remains(place / "run") == remains(place / "whole")


def test_where_a_spike_rewinds_to_is_part_of_the_run(place, capsys):
    rewinding = ("train.spike_factor=3", "train.on_spike=rewind")
    for name, settings in (("run", rewinding), ("plain", ())):
        folder = f"hydra.run.dir={name}"
        assert main(resumable(folder, *settings, "train.max_steps=2")) == 0
        other = ("checkpoint.every=3", "train.max_steps=3", AUTO)
        assert main(job(folder, *settings, *other)) == (2 if settings else 0)
    err = capsys.readouterr().err
    assert "checkpoint.every: was 2, is 3" in err
    assert "train.resume_allow=[checkpoint.every]" in err


def test_a_run_that_stopped_early_goes_on_as_it_says(place, capsys):
    still = ("optimizer.learning_rate=1e-9", "train.early_stopping_min_delta=0.01", "eval.every=2")
    patient = (*still, "train.max_steps=12", "train.early_stopping_patience=1")
    assert main(resumable(*patient)) == 0
    stopped = summary(place / "run")["steps"]
    assert stopped < 12
    assert main(resumable(*patient, AUTO)) == 0
    out = capsys.readouterr().out
    assert f"run is finished: {stopped} steps. Nothing was done." in out
    command = out[out.index("mlx-ft resume") :].splitlines()[0].split()
    assert command == ["mlx-ft", "resume", "run", "train.early_stopping_patience=null"]
    assert cli(command[1:]) == 0
    assert summary(place / "run")["steps"] == 12


def test_a_finished_run_whose_summary_tells_only_that(place, capsys):
    """The steps are those of its newest checkpoint."""
    from mlx_ft.outcome import finished_already

    (place / "run" / "checkpoints" / "step-000006").mkdir(parents=True)
    for lost in ({"status": "FINISHED"}, {"status": "FINISHED", "steps": "many"}):
        said = finished_already(lost, place / "run", stopped_early=False)
        assert said.splitlines()[0] == "run is finished: 6 steps. Nothing was done."
        assert said.splitlines()[2] == "go on       mlx-ft resume run train.max_steps=12"


def test_counters_that_a_checkpoint_lacks_are_as_at_the_beginning():
    """`progress_of` takes a checkpoint without them, so the rest has to do as well."""
    state = {"progress": {"step": 4}, "plan_steps": 8, "fingerprint": {}, "memory": {}}
    saved = Checkpoint(Path("step-000004"), {}, {}, None, state)
    found = Resumed(saved, {"status": "FINISHED"})
    assert not is_finished(found, trainer.Plan(8, 8, 1, 4), patience=1)
    check_done(saved, TrainConfig(epochs=1, max_steps=None), 4)


def test_the_folder_where_a_killed_run_was_started_is_found_and_missed(place, monkeypatch, capsys):
    """A killed run has no summary: the folder is in `origin.json`."""
    (place / "work").mkdir()
    monkeypatch.chdir(place / "work")
    data = ("model.path=../model", "data.path=../rows.jsonl", f"hydra.run.dir={place}/run")
    assert main(resumable(*data, "train.max_steps=2")) == 0
    (place / "run" / "summary.json").unlink()
    monkeypatch.chdir(place / "model")
    assert cli(["resume", str(place / "run")]) == 0
    assert f"in {place}/work, where the run was started" in capsys.readouterr().err
    assert Path.cwd() == place / "work"
    monkeypatch.chdir(place / "model")
    (place / "work").rename(place / "moved")
    assert cli(["resume", str(place / "run"), "train.max_steps=4"]) == 0  # `..` is the same there
    assert f"{place}/work, where the run was started, cannot be entered" in capsys.readouterr().err
    assert yaml.safe_load((place / "run" / "config.yaml").read_text())["train"]["max_steps"] == 4


def test_a_run_whose_summary_tells_only_that_it_finished_is_finished(place, capsys):
    assert main(resumable("train.max_steps=2")) == 0
    (place / "run" / "summary.json").write_text('{"status": "FINISHED"}')
    assert main(resumable("train.max_steps=2", AUTO)) == 0
    assert "run is finished: 2 steps. Nothing was done." in capsys.readouterr().out


def test_a_run_without_its_configuration_is_told_so(place, capsys):
    assert main(resumable("train.max_steps=2")) == 0
    (place / "run" / "config.yaml").unlink()
    assert cli(["resume", "run"]) == 2
    err = capsys.readouterr().err
    assert "run has no config.yaml" in err
    assert "--config-name" not in err


@pytest.mark.slow
def test_the_rate_that_was_planned_is_the_one_of_the_run_as_it_was(place, capsys):
    """Another learning rate and another length at once."""
    constant = ("optimizer.schedule=constant", "optimizer.warmup_ratio=0")
    assert main(resumable("optimizer.learning_rate=4e-4", *constant)) == 0
    capsys.readouterr()
    other = ("optimizer.learning_rate=2e-4", "train.resume_allow=[optimizer.learning_rate]")
    assert main(resumable(AUTO, "train.max_steps=8", *constant, *other)) == 0
    assert "Step 7 is taken with a learning rate of 0.0002 instead of 0.0004" in (
        capsys.readouterr().err
    )
    assert main(resumable(AUTO, "train.max_steps=9", *constant, other[0])) == 0
    assert "Step 9 is taken with a learning rate of 0.0002\n" in capsys.readouterr().err
