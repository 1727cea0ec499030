"""Trials that train in one pass: each as it would alone, up to rounding."""

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_ft.main import main
from tests.jobs import job

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300


@pytest.fixture
def begin(place):
    """Starts `train.py` in the test's folder; nothing is left that runs on."""
    begun = []
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}

    def begin(*given: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "train.py"), *given], cwd=place, env=env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        begun.append(process)
        return process

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def sweep(name: str, *given: str) -> int:
    single = [text for text in job(*given) if not text.startswith("hydra.run.dir")]
    return main(["-m", *single, f"sweep.name={name}"])


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def trials(place: Path, name: str) -> dict[str, Path]:
    folder = place / "outputs/sweeps" / name
    with (folder / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["status"] for row in rows} == {"FINISHED"}, rows
    folders = [Path(row["run_dir"]) for row in rows]
    return {run.name: run for run in folders}


GRIDS = {
    "ranks, rates and lengths": [
        "train.max_steps=2,6,9", "lora.rank=2,4", "optimizer.learning_rate=1e-2"
    ],
    "seeds and what a step is": [
        "seed=1,2", "lora.dropout=0,0.2", "memory_profile.grad_accumulation_steps=2",
        "optimizer.max_grad_norm=0.1", "train.label_smoothing=0.1",
    ],
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(GRIDS))
def test_each_trial_is_the_one_alone(place, kind):
    grid = GRIDS[kind]
    assert sweep("alone", *grid) == 0
    assert sweep("together", *grid, "sweep.together=4") == 0
    alone, together = trials(place, "alone"), trials(place, "together")
    assert list(alone) == list(together)
    for name, folder in alone.items():
        np.testing.assert_allclose(losses(together[name]), losses(folder), rtol=2e-5)
        own = load_file(folder / "adapter/adapters.safetensors")
        theirs = load_file(together[name] / "adapter/adapters.safetensors")
        assert own.keys() == theirs.keys()
        for key, array in own.items():
            np.testing.assert_allclose(theirs[key], array, rtol=1e-3, atol=2e-5, err_msg=key)


@pytest.mark.slow
def test_they_are_computed_in_one_pass_and_each_log_is_its_own(place, monkeypatch, capsys):
    from mlx_ft import joint  # not before the fixture has prepared the process

    passes, genuine = [], joint.summed
    monkeypatch.setattr(joint, "summed", lambda all_: passes.append(len(all_)) or genuine(all_))
    grid = ["lora.rank=2,3,4,5,6", "train.max_steps=3", "eval.every=0"]
    assert sweep("s", *grid, "sweep.together=4") == 0
    assert passes.count(4) == 3  # the fifth trains when there is room
    out = capsys.readouterr().out
    assert out.count(" of 5)") == 5
    for number, rank in enumerate((2, 3, 4, 5, 6)):
        said = (place / "outputs/sweeps/s/workers" / f"{number}.log").read_text()
        assert f"rank={rank}" in said
        log = (place / f"outputs/sweeps/s/rank={rank}/train.log").read_text()
        assert log.count("step 3/3") == 1
    assert statuses(place, "s") == ["FINISHED"] * 5


def statuses(place: Path, name: str) -> list[str]:
    with (place / "outputs/sweeps" / name / "trials.csv").open() as file:
        return [row["status"] for row in csv.DictReader(file)]


@pytest.mark.slow
def test_one_that_fails_leaves_the_others_as_they_are(place, monkeypatch, capsys):
    from mlx_ft import optim

    genuine = optim.learning_rate

    def rate(config, *at):
        return math.nan if config.learning_rate == 5e-3 else genuine(config, *at)

    monkeypatch.setattr(optim, "learning_rate", rate)
    grid = ["optimizer.learning_rate=1e-2,5e-3,1e-3", "lora.rank=2"]
    assert sweep("alone", *grid) == 1
    assert sweep("together", *grid, "sweep.together=3") == 1
    assert statuses(place, "together") == ["FINISHED", "FAILED", "FINISHED"]
    for value in ("1e-2", "1e-3"):
        own, theirs = (place / f"outputs/sweeps/{name}/learning_rate={value}"
                       for name in ("alone", "together"))  # fmt: skip
        np.testing.assert_allclose(losses(theirs), losses(own), rtol=2e-5)
    assert "steps in a row" in capsys.readouterr().out


@pytest.mark.slow
def test_memory_that_runs_out_makes_smaller_batches_of_all(place, monkeypatch):
    from mlx_ft import joint

    genuine, calls = joint.summed, []

    def summed(requests):
        calls.append(len(requests))
        if len(calls) == 2:
            raise RuntimeError("[malloc] Unable to allocate 1 bytes.")
        return genuine(requests)

    grid = ["lora.rank=2,4", "train.max_steps=4"]
    assert sweep("alone", *grid) == 0
    monkeypatch.setattr(joint, "summed", summed)
    assert sweep("together", *grid, "sweep.together=2") == 0
    for rank in (2, 4):
        own, theirs = (place / f"outputs/sweeps/{name}/rank={rank}"
                       for name in ("alone", "together"))  # fmt: skip
        np.testing.assert_allclose(losses(theirs), losses(own), rtol=2e-5)
        assert "every micro-batch is taken in 2 parts" in (theirs / "train.log").read_text()


def test_a_launcher_of_processes_does_not_go_with_it(place, capsys):
    single = [text for text in job("lora.rank=2,4") if not text.startswith("hydra.run.dir")]
    assert main(["-m", *single, "sweep.together=2", "hydra/launcher=joblib"]) == 2
    assert "found hydra/launcher=joblib" in capsys.readouterr().err
    assert sweep("s", "lora.rank=2,4", "lora.num_layers=1", "train.offload_frozen=true",
                 "sweep.together=2") == 2  # fmt: skip
    assert "found true with sweep.together=2" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_what_is_stopped_goes_on(place, begin, number):
    long = [text for text in job("lora.rank=2,4,6", "train.max_steps=160", "checkpoint.every=5",
                                 "eval.every=0", "eval.before=false")
            if not text.startswith("hydra.run.dir")]  # fmt: skip
    arguments = ["-m", *long, "sweep.name=s", "sweep.together=2"]
    running = begin(*arguments)
    folder = place / "outputs/sweeps/s"
    until = time.monotonic() + TIMEOUT
    while sum(len(losses(run.parent)) > 20 for run in folder.glob("*/metrics.jsonl")) < 2:
        assert running.poll() is None, running.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    running.send_signal(number)
    said = running.communicate(timeout=TIMEOUT)[0]
    if number == signal.SIGINT:
        assert running.returncode == 130, said
        assert "Traceback" not in said
        assert statuses(place, "s") == ["KILLED", "KILLED", "NOT RUN"]
    again = begin(*arguments)
    said = again.communicate(timeout=TIMEOUT)[0]
    assert again.returncode == 0, said
    assert statuses(place, "s") == ["FINISHED"] * 3
    logs = [(folder / f"rank={rank}/train.log").read_text() for rank in (2, 4)]
    assert all("goes on from" in log for log in logs)
    assert [len(losses(folder / f"rank={rank}")) for rank in (2, 4, 6)] == [160] * 3
