"""The grid of a sweep: its order, the names and folders of the trials."""

import re

import pytest

from mlx_ft.errors import ConfigError
from mlx_ft.sweeper.grid import expand


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
    assert re.fullmatch(r"path=x{95}-[0-9a-f]{8}", folders[2])
    larger = expand([f"data.path=c,'a/b','a b',{'x' * 200}"])
    assert [trial.folder for trial in larger[1:]] == folders
    assert all("/" not in folder and len(folder) < 120 for folder in folders)
    assert len({t.folder for t in expand(["data.path='a/b','a:b'"])}) == 2


def test_too_many_trials_are_refused():
    with pytest.raises(ConfigError, match="1,010,000 trials"):
        expand(["seed=range(0,1010)", "lora.rank=range(0,1000)"])
