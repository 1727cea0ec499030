"""Checkpoints: damage of any kind is found, hostile ones are refused, only whole ones have a name.

The long forms are `python proofs/damage.py` and `python proofs/write_faults.py`.
"""

import json
import random
import shutil
import time
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_ft import checkpoint, lora_files
from mlx_ft.errors import CheckpointError
from mlx_ft.main import main
from mlx_ft.runfolder import checkpoint_folders
from proofs.damage import cut, flip, harmed, told, unnoticed
from proofs.hostile_checkpoints import hostile, odd_folders, sealed
from tests.jobs import job


def contents(step, value=0.5):
    arrays = {"layers.0.lora_a": mx.full((3, 2), value), "layers.0.lora_b": mx.zeros((2, 3))}
    state = {
        "progress": {"step": step, "micro_step": step, "best_step": 1},
        "fingerprint": {"settings": {"seed": 0}},
        "plan_steps": 9,
        "memory": {"factor": 1.5},
    }
    return {
        "adapters.safetensors": lora_files.to_bytes(arrays),
        "optimizer.safetensors": lora_files.to_bytes({"step": mx.array(step)}),
        "best.safetensors": lora_files.to_bytes(arrays),
        "adapter_config.json": b"{}\n",
        "state.json": json.dumps(state, indent=1).encode(),
    }


@pytest.fixture
def saved(tmp_path):
    """The folder of two checkpoints, of the steps 3 and 6."""
    for step in (3, 6):
        checkpoint.save(tmp_path, step, contents(step))
    return tmp_path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(saved):
    found = checkpoint.load(saved / "step-000006")
    assert found.step == 6
    assert found.state["progress"]["micro_step"] == 6
    assert mx.array_equal(found.adapter["layers.0.lora_a"], mx.full((3, 2), 0.5))
    assert found.optimizer["step"].item() == 6
    assert found.best.keys() == found.adapter.keys()
    assert names(saved) == ["step-000003", "step-000006"]


def test_flipped_bits_and_cut_files_are_found_and_the_one_before_is_taken(saved):
    chance = random.Random(5)
    newest = saved / "step-000006"
    for how in [flip] * 300 + [cut] * 60:
        with harmed(newest, chance, how) as done:
            assert unnoticed(newest) == [], done
    assert checkpoint.damage(newest) == []


@pytest.mark.parametrize("name", sorted(contents(6)))
def test_a_missing_file_is_named(saved, name):
    (saved / "step-000006" / name).unlink()
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(saved / "step-000006")
    assert error.value.faults == (f"{name} is missing",)


def test_every_damaged_file_is_named(saved):
    for name in ("state.json", "optimizer.safetensors"):
        (saved / "step-000006" / name).write_bytes(b"")
    with pytest.raises(CheckpointError) as error:
        checkpoint.load(saved / "step-000006")
    assert [fault.split()[0] for fault in error.value.faults] == [
        "optimizer.safetensors", "state.json",
    ]  # fmt: skip


def test_a_checkpoint_by_another_steps_name_is_refused(saved):
    (saved / "step-000006").rename(saved / "step-000009")
    with pytest.raises(CheckpointError, match="cannot be used") as error:
        checkpoint.load(saved / "step-000009")
    assert error.value.faults == ("state.json is of step 6",)


# What only the run itself can tell: it knows its counters and its arrays.
OF_THE_RUN = (
    "another version", "a counter is", "a loss is", "a fingerprint of", "other tensors",
    "no tensors",
)  # fmt: skip


def test_hostile_checkpoints_are_refused_without_much_time(saved):
    newest, started = saved / "step-000009", time.monotonic()
    for name, files in hostile(contents(9)).items():
        sealed(newest, files)
        assert checkpoint.damage(newest) == [], name  # the manifest is right
        if not any(text in name for text in OF_THE_RUN):
            with pytest.raises(CheckpointError):
                checkpoint.load(newest)
    for make in odd_folders(saved, contents(9)).values():
        if newest.is_symlink() or newest.is_file():
            newest.unlink()
        shutil.rmtree(newest, ignore_errors=True)
        make()
        assert checkpoint.damage(newest) != []
        found, _ = checkpoint.newest(saved)
        assert found is not None
        assert found.step == 6
    assert time.monotonic() - started < 20


def test_saving_twice_keeps_a_whole_one_and_replaces_a_damaged_one(saved, caplog):
    before = told(saved)
    checkpoint.save(saved, 6, contents(6, 0.75))
    assert told(saved) == before
    flip(saved / "step-000006" / "state.json", random.Random(1))
    checkpoint.save(saved, 6, contents(6, 0.75))
    assert checkpoint.load(saved / "step-000006").adapter["layers.0.lora_a"][0, 0].item() == 0.75
    assert "the checkpoint of step 6 is set aside" in caplog.text
    assert "state.json" in caplog.text


def test_one_that_knew_less_gives_way_and_comes_back_when_that_fails(saved, monkeypatch):
    before = told(saved)
    rename = Path.rename

    def failing(path, target):
        if path.name == "new":
            raise OSError("no")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(OSError, match="no"):
        checkpoint.save(saved, 6, contents(6, 0.75), replace=True)
    monkeypatch.undo()
    assert told(saved) == before
    checkpoint.save(saved, 6, contents(6, 0.75), replace=True)
    assert checkpoint.load(saved / "step-000006").adapter["layers.0.lora_a"][0, 0].item() == 0.75
    assert names(saved) == ["step-000003", "step-000006"]


def test_one_that_a_crash_left_replaced_by_nothing_is_put_back(saved):
    before = told(saved)
    (saved / ".tmp-step-000006-x").mkdir()
    (saved / "step-000006").rename(saved / ".tmp-step-000006-x" / "old")
    checkpoint.sweep(saved)
    assert told(saved) == before


@pytest.mark.parametrize(
    ("keep_last", "every", "left"),
    [(1, 2, [6, 9]), (2, 0, [8, 9]), (3, 3, [6, 8, 9]), (1, 3, [9])],
)
def test_pruning_keeps_the_last_ones_and_the_newest_regular_one(tmp_path, keep_last, every, left):
    for step in (2, 3, 6, 8, 9):
        if every != 2 or step != 8:
            checkpoint.save(tmp_path, step, contents(step))
    checkpoint.prune(tmp_path, keep_last, every)
    assert [int(path.name[5:]) for path in checkpoint_folders(tmp_path)] == left


def test_what_dead_writers_left_is_swept_whatever_it_is(saved):
    (saved / ".tmp-step-000009-x" / "new").mkdir(parents=True)
    (saved / ".tmp-step-000009-y").write_text("x")
    (saved / ".tmp-step-000009-z").symlink_to(saved / "step-000006")
    checkpoint.sweep(saved)
    assert names(saved) == ["step-000003", "step-000006"]
    assert checkpoint.damage(saved / "step-000006") == []


RESUMABLE = job("checkpoint.every=2", "train.resume=auto", "eval.before=false")


def test_a_run_none_of_whose_checkpoints_is_whole_is_refused_and_kept(place, capsys):
    assert main(RESUMABLE) == 0
    run = place / "run"
    (run / "summary.json").unlink()
    for folder in checkpoint_folders(run / "checkpoints"):
        (folder / "manifest.json").write_text("{}")
    before = told(run)
    capsys.readouterr()
    assert main(RESUMABLE) == 2
    err = capsys.readouterr().err
    assert "no checkpoint of this run is whole. Nothing was changed" in err
    assert "step-000006: manifest.json is missing or not as written" in err
    assert "Traceback" not in err
    assert told(run) == before


def test_an_empty_folder_of_checkpoints_is_a_beginning_and_a_file_is_none(place, capsys):
    assert main(RESUMABLE) == 0
    run = place / "run"
    weights = (run / "adapter" / "adapters.safetensors").read_bytes()
    shutil.rmtree(run / "checkpoints")
    (run / "summary.json").unlink()
    (run / "checkpoints").write_text("x")
    assert main(RESUMABLE) == 2
    assert "checkpoints is not a folder. Nothing was changed" in capsys.readouterr().err
    (run / "checkpoints").unlink()
    (run / "checkpoints").mkdir()
    assert main(RESUMABLE) == 0
    assert (run / "adapter" / "adapters.safetensors").read_bytes() == weights


def test_checkpoints_without_a_configuration_are_a_run_too(place, capsys):
    assert main(RESUMABLE) == 0
    run = place / "run"
    for name in ("config.yaml", "summary.json"):
        (run / name).unlink()
    before = told(run)
    assert main(job("seed=7")) == 2
    assert "already holds a run (checkpoints)" in capsys.readouterr().err
    assert told(run) == before
    assert main(RESUMABLE) == 0
