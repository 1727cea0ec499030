"""What a sweep says that it will take."""

import re

import pytest

from mlx_ft import outlook
from mlx_ft.errors import ModelError
from mlx_ft.main import main
from mlx_ft.sweeper.ahead import _duration
from tests.jobs import job


def dry(*given: str) -> list[str]:
    single = [text for text in job(*given) if not text.startswith("hydra.run.dir")]
    return ["-m", *single, "sweep.dry_run=true"]


@pytest.fixture
def known(monkeypatch):
    """Each estimate takes an hour for each step, and a machine is as fast as it is."""
    asked = []
    genuine = outlook.outlook

    def counted(config):
        found = genuine(config)
        asked.append(config.train.max_steps)
        return found

    monkeypatch.setattr(outlook, "outlook", counted)
    monkeypatch.setattr(outlook.Outlook, "seconds", property(lambda self: 3600.0 * self.work.steps))
    return asked


def test_hours_and_memory_are_told_before_and_once_for_trials_alike(place, known, capsys):
    assert main(dry("train.max_steps=2,6", "optimizer.learning_rate=1e-3,1e-2", "seed=1,2")) == 0
    said = capsys.readouterr()
    looks = [line for line in said.err.splitlines() if line.startswith("data:")]
    assert len(looks) == len(set(looks))  # the sweep's own, one a seed; the estimate takes none
    line = said.out.splitlines()[-2]
    told = "Estimated: 32.0 h of training, one after another, 2.0 h to 6.0 h a trial, "
    assert line.startswith(told)
    assert re.search(r"up to \d+\.\d GB of \d+\.\d GB$", line)
    assert known == [2, 6]


def test_what_does_not_fit_is_told(place, known, capsys):
    assert main(dry("lora.rank=2,4", "memory_profile.memory_limit_gb=0.3")) == 0
    assert capsys.readouterr().out.splitlines()[-2].endswith("of 0.3 GB: TOO MUCH")


@pytest.mark.slow
def test_trials_together_need_more(place, known, capsys, monkeypatch):
    found = []
    for together in (1, 64):
        assert main(dry("lora.rank=256,255", f"sweep.together={together}",
                        "memory_profile.max_seq_length=4096")) == 0  # fmt: skip
        found.append(capsys.readouterr().out.splitlines()[-2])
    one, many = (float(re.search(r"up to ([\d.]+) GB", text)[1]) for text in found)
    assert many > 1.5 * one


@pytest.mark.parametrize("error", [ModelError("no numbers"), RuntimeError("no numbers")])
def test_what_cannot_be_estimated_is_no_obstacle(place, monkeypatch, capsys, error):
    def fails(_config):
        raise error

    monkeypatch.setattr(outlook, "outlook", fails)
    assert main(dry("lora.rank=2,4")) == 0
    out = capsys.readouterr().out
    assert re.search("How long it takes cannot be estimated: .*no numbers", out)


def test_durations():
    assert [_duration(s) for s in (5, 600, 7200)] == ["5 s", "10 min", "2.0 h"]
