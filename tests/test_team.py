"""Several processes train what one trains: the same adapter, and the run survives any of them."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_ft.team import HEADER, Order, Team
from tests.fakes import furthest
from tests.jobs import job, summary, write_rows

ROOT = Path(__file__).resolve().parent.parent
TIMEOUT = 120
# One row less than a multiple of 4: a process may be left without a row.
SHAPE = ["memory_profile.grad_accumulation_steps=2", "optimizer.learning_rate=1e-3"]


@pytest.fixture(autouse=True)
def _rows(place):
    write_rows(place / "rows.jsonl", 31)


class Started:
    """The processes of a team, as `mlx.launch` starts them on one machine."""

    def __init__(self, place: Path, size: int, *arguments: str, other: tuple[str, ...] = ()):
        with ExitStack() as stack:
            taken = [stack.enter_context(closing(socket.socket())) for _ in range(size)]
            for one in taken:
                one.bind(("127.0.0.1", 0))
            hosts = [[f"127.0.0.1:{one.getsockname()[1]}"] for one in taken]
        hostfile = place / "hosts.json"
        hostfile.write_text(json.dumps(hosts))
        self.processes = []
        for rank in range(size):
            more = other if rank == size - 1 else ()
            command = [sys.executable, str(ROOT / "train.py"), *arguments, *more]
            env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
            if size > 1:
                env |= {"MLX_RANK": str(rank), "MLX_HOSTFILE": str(hostfile)}
            self.processes.append(
                subprocess.Popen(
                    command, cwd=place, env=env, text=True,
                    stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                )
            )  # fmt: skip

    def end(self) -> tuple[list[int], list[str]]:
        """Exit codes and what was said."""
        try:
            said = [process.communicate(timeout=TIMEOUT)[0] for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
                process.wait()
        return [process.returncode for process in self.processes], said


def trained(place: Path, size: int, *more: str) -> dict[str, np.ndarray]:
    folder = f"run{size}"
    codes, said = Started(place, size, *job(f"hydra.run.dir={folder}", *SHAPE, *more)).end()
    assert codes == [0] * size, said
    assert (place / folder / "summary.json").exists()
    return load_file(place / folder / "adapter/adapters.safetensors")


@pytest.mark.parametrize(
    "packing",
    [
        pytest.param("segments", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.long),
    ],
)
def test_two_and_four_processes_train_what_one_does(place, packing):
    more = [f"data.packing={packing}"]
    alone = trained(place, 1, *more)
    losses = metrics(place / "run1")
    for size in (2, 4) if packing == "segments" else (2,):
        assert furthest(alone, trained(place, size, *more)) < 1e-3
        assert metrics(place / f"run{size}") == pytest.approx(losses, rel=1e-5)
        assert summary(place / f"run{size}")["tokens"] == summary(place / "run1")["tokens"]
    assert sorted(path.name for path in place.glob("run*")) == (
        ["run1", "run2", "run4"] if packing == "segments" else ["run1", "run2"]
    )


@pytest.mark.parametrize(
    "more",
    [
        pytest.param(
            ["lora.num_layers=1", "train.frozen_cache=true", "train.epochs=2",
             "train.max_steps=null"],
            marks=pytest.mark.slow, id="frozen cache",
        ),
        pytest.param(
            ["lora.num_layers=1", "train.offload_frozen=true"],
            marks=pytest.mark.long, id="offloaded",
        ),
        pytest.param(
            ["memory_profile.grad_checkpoint=true", "data.share_prefixes=false"],
            marks=pytest.mark.long, id="checkpointed",
        ),
    ],
)  # fmt: skip
def test_what_saves_work_or_memory_changes_nothing_for_two(place, more):
    alone = trained(place, 1, *more)
    assert furthest(alone, trained(place, 2, *more)) < 1e-3
    assert metrics(place / "run2") == pytest.approx(metrics(place / "run1"), rel=1e-5)


@pytest.mark.slow
def test_dropout_of_each_process_is_its_own_and_follows_from_the_seed(place):
    more = ["lora.dropout=0.3", "data.share_prefixes=false"]
    first = trained(place, 2, *more)
    (place / "run2").rename(place / "first")
    again = trained(place, 2, *more)
    assert furthest(first, again) == 0
    assert furthest(first, trained(place, 1, *more)) > 1e-3  # other masks
    losses, alone = metrics(place / "run2"), metrics(place / "run1")
    assert losses == pytest.approx(alone, rel=0.1)  # of the same distribution


@pytest.mark.slow
def test_two_that_were_stopped_go_on_as_two_and_learn_what_one_does(place):
    steps = [*LONG[1:], "train.max_steps=60"]
    alone = trained(place, 1, *steps)
    interrupt(place, *steps)
    assert 3 <= summary(place / "run")["steps"] < 60
    codes, said = Started(place, 2, *job(*SHAPE, *steps, "train.resume=auto")).end()
    assert codes == [0, 0], said
    assert metrics(place / "run") == pytest.approx(metrics(place / "run1"), rel=1e-4)
    assert furthest(alone, load_file(place / "run/adapter/adapters.safetensors")) < 1e-2


@pytest.mark.slow
def test_mlx_launch_starts_them(place):
    launch = [str(Path(sys.executable).with_name("mlx.launch")), "-n", "2", "--backend", "ring"]
    command = [sys.executable, str(ROOT / "train.py"), *job(*SHAPE)]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, "--", *command], cwd=place, env=env, text=True, timeout=TIMEOUT,
        capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert summary(place / "run")["status"] == "FINISHED"
    found = load_file(place / "run/adapter/adapters.safetensors")
    assert furthest(trained(place, 1), found) < 1e-3


def metrics(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row["train/loss"] for row in rows if "train/loss" in row]


def wait_for_step(folder: Path, step: int) -> None:
    until = time.monotonic() + TIMEOUT
    while time.monotonic() < until:
        path = folder / "metrics.jsonl"
        if path.exists() and len(metrics(folder)) >= step:
            return
        time.sleep(0.02)
    raise AssertionError("it does not get on")


def interrupt(place: Path, *more: str) -> None:
    """Begin with two processes and stop both after a few steps, as Ctrl-C does."""
    team = Started(place, 2, *job(*SHAPE, *more))
    wait_for_step(place / "run", 3)
    for process in team.processes:
        process.send_signal(signal.SIGINT)
    codes, said = team.end()
    assert codes == [130, 0], said


LONG = ["train.max_steps=400", "eval.every=0", "eval.before=false", "checkpoint.every=0"]


@pytest.mark.slow
def test_a_killed_process_ends_the_run_cleanly_and_it_goes_on_alone(place):
    long = job(*SHAPE, *LONG)
    team = Started(place, 2, *long)
    wait_for_step(place / "run", 3)
    team.processes[1].kill()
    codes, said = team.end()
    assert codes == [1, -signal.SIGKILL]
    assert "another process of this run is gone" in said[0]
    assert "Traceback" not in said[0]
    assert summary(place / "run")["status"] == "FAILED"
    done = summary(place / "run")["steps"]
    assert 3 <= done < 400
    assert [*(place / "run/checkpoints").iterdir()]
    more = [f"train.max_steps={done + 2}", "train.resume=auto"]
    codes, said = Started(place, 1, *job(*SHAPE, *LONG[1:], *more)).end()
    assert codes == [0], said
    assert summary(place / "run")["steps"] == done + 2


@pytest.mark.slow
def test_ctrl_c_saves_and_ends_all_of_them(place):
    interrupt(place, *LONG)
    assert summary(place / "run")["status"] == "KILLED"
    assert [*(place / "run/checkpoints").iterdir()]


@pytest.mark.slow
def test_the_leaders_death_ends_the_others(place):
    team = Started(place, 2, *job(*SHAPE, *LONG))
    wait_for_step(place / "run", 2)
    team.processes[0].kill()
    codes, said = team.end()
    assert codes == [-signal.SIGKILL, 1]
    assert "another process of this run is gone" in said[1]


@pytest.mark.slow
def test_processes_that_differ_are_refused(place):
    codes, said = Started(place, 2, *job(), other=("seed=1",)).end()
    assert codes == [2, 2]
    assert all("differ in configuration, data or model" in text for text in said)


def test_a_sweep_is_not_started_by_several(place):
    codes, said = Started(place, 2, "-m", *job("lora.rank=2,4")).end()
    assert codes == [2, 2]
    assert "hydra/launcher=joblib" in said[0]


class Group:
    """Two processes, of which only this one is there."""

    def rank(self) -> int:
        return 0

    def size(self) -> int:
        return 2


def test_a_leader_that_fails_within_a_step_says_nothing_that_would_be_taken_for_sums(monkeypatch):
    sent = []
    monkeypatch.setattr(Team, "_sum", lambda self, array: sent.append(array.size) or array)
    adapter = {"a": mx.zeros((3, 4))}
    with Team(Group()).led():
        pass
    assert sent == [HEADER]  # no more steps
    sent.clear()

    def fails(team):
        with team.led():
            team.call(Order(0, 1), adapter)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails(Team(Group()))
    assert sent == [HEADER, 12]
    sent.clear()
    team = Team(Group())
    with team.led():
        team.call(Order(0, 1), adapter)
        team.total((adapter, mx.array(1.0), mx.array(2.0)))
    assert sent == [HEADER, 12, 14, HEADER]
