"""Where the trials of a sweep write when the user says so: `hydra.sweep.subdir`."""

import pytest

from mlx_ft.errors import OutputError, TrainingError
from mlx_ft.main import main
from mlx_ft.sweeper import trial
from tests.test_sweeper import statuses, world

pytestmark = pytest.mark.usefixtures("no_estimate")

__all__ = ["world"]


@pytest.mark.parametrize("subdir", ["one", "./one", "${seed}", "${hydra:job.name}", "${now:%Y}"])
def test_one_folder_for_several_trials_is_refused(world, subdir, tmp_path, capsys):
    assert main(["-m", "lora.rank=8,16,32", f"hydra.sweep.subdir={subdir}", "seed=7"]) == 2
    err = capsys.readouterr().err
    assert "hydra.sweep.subdir: " in err
    assert "is the folder of rank=8 and of rank=16" in err
    assert "hydra.sweep.subdir=\\${hydra.job.num}, or leave it out" in err
    assert "is the folder of rank=8 and of rank=32" in err
    assert list(tmp_path.iterdir()) == []
    assert (world.parents, world.calls) == ([], [])


@pytest.mark.parametrize(
    ("subdir", "names"),
    [
        ("${hydra.job.num}", ["0", "1"]),
        ("r${lora.rank}", ["r8", "r16"]),
        ("${hydra:job.num}/x", ["0/x", "1/x"]),
    ],
)
@pytest.mark.parametrize("given", ["argument", "file"])
@pytest.mark.slow
def test_folders_that_differ_are_the_users(world, subdir, names, given, tmp_path):
    """The table, and a second sweep, know where the trials are, too."""
    argv = ["-m", "lora.rank=8,16", "hydra.sweep.dir=o"]
    if given == "argument":
        argv.append(f"hydra.sweep.subdir={subdir}")
    else:
        text = f"defaults: [main, _self_]\nhydra: {{sweep: {{subdir: '{subdir}'}}}}\n"
        (tmp_path / "mine.yaml").write_text(text)
        argv = ["--config-dir", ".", "--config-name", "mine", *argv]
        if names == ["0", "1"]:  # what Hydra says by itself: nobody has chosen it
            names = ["rank=8", "rank=16"]
    world.outcomes = {16: KeyboardInterrupt()}
    assert main(argv) == 130
    assert [call[2] for call in world.calls] == [tmp_path / "o" / name for name in names]
    assert statuses(world) == ("KILLED", {"rank=8": "FINISHED", "rank=16": "KILLED"})
    world.outcomes = {}
    assert main(argv) == 0  # goes on, and with the second trial only
    assert [call[2] for call in world.calls[2:]] == [tmp_path / "o" / names[1]]
    assert statuses(world, 1) == ("FINISHED", {"rank=8": "FINISHED", "rank=16": "FINISHED"})


@pytest.mark.slow
def test_a_single_trial_may_have_a_name(world, tmp_path):
    assert main(["-m", "lora.rank=8", "hydra.sweep.dir=o", "hydra.sweep.subdir=mine"]) == 0
    assert world.calls[0][2] == tmp_path / "o" / "mine"


def test_a_folder_that_is_none_is_refused(world, capsys):
    assert main(["-m", "lora.rank=8,16", "hydra.sweep.subdir=${oc.env:MLX_FT_NONE}"]) == 2
    err = capsys.readouterr().err
    assert "hydra.sweep.subdir: " in err
    assert "MLX_FT_NONE" in err
    assert world.calls == []


def test_what_is_said_of_a_trial_fits_one_screen_and_moves_no_cursor(capsys):
    error = OutputError("too \x1b[2Jmuch", [f"fault {number}" for number in range(3000)])
    trial._say("rank=8", error)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "Trial rank=8 failed: too \\x1b[2Jmuch"
    assert lines[-1].endswith("more lines")
    assert len(lines) < 40
    failed = TrainingError("diverged")
    failed.add_note("go on       mlx-ft resume x")
    trial._say("rank=8", failed)
    assert capsys.readouterr().err.splitlines() == [
        "Trial rank=8 failed: diverged",
        "go on       mlx-ft resume x",
    ]
