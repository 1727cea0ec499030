"""Sweeps with several workers: the same trials and the same best one as one after another."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from omegaconf import DictConfig

from mlx_ft.main import main
from mlx_ft.sweeper.engines import engine_of
from mlx_ft.sweeper.worker import STOP, Job, attempt
from tests.jobs import job

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 300
GRID = ["lora.rank=2,4", "optimizer.learning_rate=1e-3,1e-2"]


def arguments(launcher: str, *more: str) -> list[str]:
    single = [text for text in job(*GRID, *more) if not text.startswith("hydra.run.dir")]
    return ["-m", *single, f"hydra/launcher={launcher}", f"sweep.name={launcher}"]


def start(place: Path, *given: str) -> subprocess.Popen[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), *given], cwd=place, env=env, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.fixture
def begin(place):
    """`start` in the test's folder; nothing is left that runs on."""
    begun = []

    def begin(*given: str) -> subprocess.Popen[str]:
        begun.append(start(place, *given))
        return begun[-1]

    yield begin
    for process in begun:
        process.kill()
        process.communicate()


def trials(place: Path, name: str) -> dict[tuple[str, str], tuple[str, str]]:
    """(rank, learning rate) -> (status, validation loss)."""
    with (place / "outputs/sweeps" / name / "trials.csv").open() as file:
        return {
            (row["lora.rank"], row["optimizer.learning_rate"]): (row["status"], row["objective"])
            for row in csv.DictReader(file)
        }


@pytest.fixture(scope="module")
def serial(tmp_path_factory):
    """The sweep one trial after the other."""
    from tests.jobs import write_rows
    from tests.models import tiny

    place = tmp_path_factory.mktemp("serial")
    tiny.save(place / "model")
    write_rows(place / "rows.jsonl")
    done = start(place, *arguments("basic"))
    said = done.communicate(timeout=TIMEOUT)[0]
    assert done.returncode == 0, said
    return trials(place, "basic")


@pytest.mark.parametrize(
    "launcher",
    [
        pytest.param("joblib", marks=pytest.mark.slow),
        pytest.param("submitit_local", marks=pytest.mark.slow),
        pytest.param("ray", marks=pytest.mark.long),  # its start alone is a minute
    ],
)
def test_each_launcher_runs_the_same_sweep(place, begin, serial, launcher):
    done = begin(*arguments(launcher))
    said = done.communicate(timeout=TIMEOUT)[0]
    assert done.returncode == 0, said
    assert trials(place, launcher) == serial
    assert len({objective for _, objective in serial.values()}) == 4
    assert said.count("of 4)") == 4  # each is told when it has ended
    assert "Traceback" not in said
    best = (place / "outputs/sweeps" / launcher / "best.yaml").read_text()
    rank, _ = min(serial, key=lambda point: float(serial[point][1]))
    assert f"rank: {rank}\n" in best
    again = begin(*arguments(launcher))
    assert "nothing was run" in again.communicate(timeout=TIMEOUT)[0]


LONG = ["train.max_steps=150", "checkpoint.every=5", "eval.every=0", "eval.before=false"]


def steps_of(place: Path, name: str) -> list[int]:
    """Of the trials that have begun."""
    found = []
    for path in (place / "outputs/sweeps" / name).glob("*/metrics.jsonl"):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        found.append(sum("train/loss" in row for row in rows))
    return found


def wait_until_two_train(sweep: subprocess.Popen[str], place: Path, name: str) -> None:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        assert sweep.poll() is None, sweep.communicate()[0]
        if sum(steps > 6 for steps in steps_of(place, name)) >= 2:
            return
        time.sleep(0.05)
    raise AssertionError("they do not get on")


@pytest.mark.long
def test_a_worker_that_dies_loses_nothing(place, begin):
    sweep = begin(*arguments("joblib", *LONG))
    wait_until_two_train(sweep, place, "joblib")
    workers = [
        child for child in psutil.Process(sweep.pid).children(recursive=True)
        if "loky" in " ".join(child.cmdline())
    ]  # fmt: skip
    max(workers, key=lambda child: child.memory_info().rss).kill()  # not one that only watches
    said = sweep.communicate(timeout=TIMEOUT)[0]
    assert sweep.returncode == 0, said
    assert [status for status, _ in trials(place, "joblib").values()] == ["FINISHED"] * 4
    logs = [path.read_text() for path in place.glob("outputs/sweeps/joblib/*/train.log")]
    assert sum("goes on from" in log or "begins again" in log for log in logs) >= 1


@pytest.mark.slow
def test_ctrl_c_saves_the_trials_that_run_and_the_sweep_goes_on(place, begin):
    sweep = begin(*arguments("joblib", *LONG))
    wait_until_two_train(sweep, place, "joblib")
    sweep.send_signal(signal.SIGINT)
    said = sweep.communicate(timeout=TIMEOUT)[0]
    assert sweep.returncode == 130, said
    assert "Traceback" not in said
    found = sorted(status for status, _ in trials(place, "joblib").values())
    assert found == ["KILLED", "KILLED", "NOT RUN", "NOT RUN"]
    summaries = [*place.glob("outputs/sweeps/joblib/*/summary.json")]
    assert [json.loads(path.read_text())["status"] for path in summaries] == ["KILLED"] * 2
    done = begin(*arguments("joblib", *LONG))
    said = done.communicate(timeout=TIMEOUT)[0]
    assert done.returncode == 0, said
    assert "2 to go on from their last checkpoint" in said


def test_a_library_that_is_not_there_is_named(place, monkeypatch, capsys):
    monkeypatch.setattr("mlx_ft.sweeper.engines.find_spec", lambda _: None)
    assert main(arguments("ray")) == 2
    assert "needs the package ray" in capsys.readouterr().err
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        (["hydra.launcher.n_jobs=0"], "hydra.launcher.n_jobs: found 0"),
        (["+hydra.launcher.walltime=3"], "walltime"),
        (["threads=1,2"], "submitit_local"),
    ],
)
def test_settings_that_are_wrong_are_told_before_anything_is_written(place, more, fault, capsys):
    assert main(arguments("joblib", *more)) == 2
    assert fault in capsys.readouterr().err
    assert not (place / "outputs").exists()


@pytest.mark.parametrize(
    ("launcher", "more", "fault"),
    [
        ("submitit_slurm", [], "on a machine of the cluster"),
        ("submitit_local", ["+hydra.launcher.walltime=3"], "walltime"),
    ],
)
def test_what_submitit_refuses_is_told_before_anything_is_written(
    place, monkeypatch, launcher, more, fault, capsys
):
    monkeypatch.setenv("PATH", str(place))  # without srun
    assert main(arguments(launcher, *more)) == 2
    assert fault in capsys.readouterr().err
    assert not (place / "outputs").exists()


def test_slurm_gets_the_settings_that_are_given(tmp_path, monkeypatch):
    srun = tmp_path / "srun"
    srun.write_text("")
    srun.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    given = {"slurm_partition": "gpu", "mem_gb": None, "timeout_min": 5}
    engine = engine_of("submitit_slurm", 3, given, str(tmp_path / "x"))
    assert engine._executor._executor.parameters == {"partition": "gpu", "time": 5}
    assert not (tmp_path / "x").exists()


def test_an_error_of_hydra_in_a_worker_is_the_trials_own(place, monkeypatch):
    """Such as of OmegaConf, when a signal comes in the middle of a copy."""

    def fails(job):
        raise AttributeError("half of a list")

    monkeypatch.setattr("mlx_ft.sweeper.worker.run_here", fails)
    one = job_of(place)
    assert attempt(one) == {"status": "FAILED", "error": "AttributeError: half of a list"}
    (place / STOP).touch()
    assert attempt(one) == {"status": "KILLED"}


def job_of(folder: Path) -> Job:
    return Job(0, (), folder, DictConfig({}), None, None, None)
