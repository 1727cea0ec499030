"""A sweep that finds one of its trials in another process's hands."""

import fcntl
import json

import pytest

from mlx_ft.main import main
from mlx_ft.runfolder import LOCK
from tests.jobs import job


@pytest.mark.slow
def test_a_trial_that_another_process_runs_is_left_to_it(place, capsys):
    job_ = job("lora.rank=2,4", "train.max_steps=2")
    single = [text for text in job_ if not text.startswith("hydra.run.dir")]
    arguments = ["-m", *single, "sweep.name=s"]
    taken = place / "outputs/sweeps/s/rank=2"
    taken.mkdir(parents=True)
    with (taken / LOCK).open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert main(arguments) == 1
        said = capsys.readouterr()
        assert "in use by another run" in said.err
        assert not (taken / "trial.json").exists()
        assert "NOT RUN" in said.out
    assert main(arguments) == 0  # it is free, and was not begun
    rows = [path.read_text() for path in place.glob("outputs/sweeps/s/*/trial.json")]
    assert [json.loads(text)["status"] for text in rows] == ["FINISHED", "FINISHED"]
