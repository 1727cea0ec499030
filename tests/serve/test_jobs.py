"""Jobs: one at a time, in processes of their own, and none is lost."""

import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace

import psutil
import pytest

from mlx_ft import durable
from mlx_ft.serve import jobs as module
from mlx_ft.serve.job import Job
from mlx_ft.serve.jobs import Conflict, Full, Jobs
from mlx_ft.serve.names import made
from mlx_ft.serve.progress import Tail, progress, rows
from mlx_ft.serve.store import Missing, Store

TIMEOUT = 60
# In the place of a training: says how often it has begun, and ends as it is told to.
FAKE = """
import json, os, pathlib, signal, sys, time
from mlx_ft.serve.child import follow_parent
follow_parent()
given = dict(text.partition("=")[::2] for text in sys.argv[1:])
run = pathlib.Path(given["hydra.run.dir"].strip("'"))
run.mkdir(exist_ok=True)
def stop(*_):
    (run / "saved").touch()
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
with (run / "begun").open("a") as file:
    file.write("x")
(run / "summary.json").write_text(json.dumps({"reason": "no good"}))
print("last words", flush=True)
until = time.time() + float(given.get("seconds", 0))
while time.time() < until:
    time.sleep(0.02)
sys.exit(int(given.get("code", 0)))
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    fake = tmp_path / "fake.py"
    fake.write_text(FAKE)
    monkeypatch.setattr(module, "COMMAND", (sys.executable, str(fake)))
    return tmp_path / "home"


class Around:
    """Notes what was done around jobs."""

    def __init__(self, seen):
        self.seen = seen

    @contextmanager
    def room(self, job):
        self.seen.append(("room", job.id))
        yield
        self.seen.append(("left", job.id))

    def keep(self, job):
        self.seen.append(("keep", job.id))

    def after(self, job):
        self.seen.append((job.status, job.id))


class Server:
    """A store with its jobs, and what was done around them."""

    def __init__(self, home):
        self.store, self.seen = Store(home), []
        self.jobs = Jobs(self.store, Around(self.seen))

    def close(self):
        self.jobs.close()
        self.store.close()


@pytest.fixture
def server(home):
    found = Server(home)
    yield found
    found.close()


def job(*overrides, **more):
    return Job(made("job"), "a", "m", "d", [*overrides], {"epochs": 1}, **more)


def wait(jobs, job_id, *states):
    until = time.monotonic() + TIMEOUT
    while jobs.get(job_id).status not in states:
        assert time.monotonic() < until, jobs.get(job_id)
        time.sleep(0.01)
    return jobs.get(job_id)


def until(true):
    end = time.monotonic() + TIMEOUT
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def running(jobs, one):
    """Wait until the job's own process is at it."""
    until((jobs.folder(one) / "begun").exists)
    time.sleep(0.05)


def test_they_are_done_in_order_one_at_a_time(server):
    added = [server.jobs.add(job("seconds=0.1")) for _ in range(3)]
    assert [one.status for one in server.jobs.all()] == ["queued"] * 3
    server.jobs.start()
    for one in added:
        wait(server.jobs, one.id, "succeeded")
    time.sleep(0.1)
    steps = ("room", "left", "keep", "succeeded")
    expected = [(what, one.id) for one in added for what in steps]
    assert server.seen == expected
    assert [one.id for one in server.jobs.all()] == [one.id for one in reversed(added)]
    assert all(one.ended > one.started > one.created for one in added)


def test_a_job_that_fails_says_why_and_the_next_one_runs(server):
    bad, good = server.jobs.add(job("code=1")), server.jobs.add(job())
    server.jobs.start()
    assert wait(server.jobs, bad.id, "failed").error == "no good"
    wait(server.jobs, good.id, "succeeded")
    assert b"last words" in server.jobs.log(bad).read_bytes()
    assert server.jobs.resume(bad.id).status in ("queued", "running")


def test_one_that_cannot_be_begun_fails_alone(home, monkeypatch):
    server = Server(home)
    monkeypatch.setattr(server.jobs._around, "room", lambda job: 1 / 0)
    one = server.jobs.add(job())
    server.jobs.start()
    assert "ZeroDivisionError" in wait(server.jobs, one.id, "failed").error
    server.close()


@pytest.mark.parametrize("wanted", ["cancelled", "paused"])
def test_what_runs_is_stopped_and_what_waits_is_not_begun(server, wanted):
    first, second = server.jobs.add(job("seconds=60")), server.jobs.add(job())
    server.jobs.start()
    running(server.jobs, first)
    server.jobs.stop(second.id, wanted)
    server.jobs.stop(first.id, wanted)
    assert wait(server.jobs, first.id, wanted).error is None
    assert (server.jobs.folder(first) / "saved").exists()
    assert server.jobs.get(second.id).status == wanted
    assert not server.jobs.folder(second).exists()
    if wanted == "paused":
        server.jobs.resume(second.id)
        wait(server.jobs, second.id, "succeeded")
        with pytest.raises(Conflict, match="succeeded"):
            server.jobs.stop(second.id, "cancelled")
    else:
        with pytest.raises(Conflict, match="cannot be resumed"):
            server.jobs.resume(first.id)
        assert server.jobs.stop(first.id, "cancelled").status == "cancelled"  # twice is once


def test_a_killed_process_is_interrupted_and_goes_on(server):
    one = server.jobs.add(job("seconds=1"))
    server.jobs.start()
    running(server.jobs, one)
    server.jobs._process.kill()
    assert "signal 9" in wait(server.jobs, one.id, "interrupted").error
    server.jobs.resume(one.id)
    assert wait(server.jobs, one.id, "succeeded").attempts == 2
    assert (server.jobs.folder(one) / "begun").read_text() == "xx"


def test_a_key_makes_one_job(server):
    first = server.jobs.add(job(idempotency_key="k"))
    assert server.jobs.add(job(idempotency_key="k")) is first
    with pytest.raises(Conflict, match="another job"):
        server.jobs.add(replace(job(idempotency_key="k"), asked={"epochs": 2}))
    assert len(server.jobs.all()) == 1


def test_what_is_not_there_is_missing(server):
    for ask in (server.jobs.get, server.jobs.resume):
        with pytest.raises(Missing):
            ask("job-0")


def test_closing_saves_what_runs_and_keeps_the_queue(home):
    first = Server(home)
    one, two = first.jobs.add(job("seconds=60")), first.jobs.add(job())
    first.jobs.start()
    running(first.jobs, one)
    first.close()
    assert (first.jobs.folder(one) / "saved").exists()
    second = Server(home)
    assert second.jobs.get(one.id).status == "interrupted"
    assert second.jobs.get(two.id).status == "queued"
    second.jobs.start()
    wait(second.jobs, two.id, "succeeded")
    second.close()


SERVER = """
import sys, time, pathlib
from mlx_ft.serve import jobs as module
from mlx_ft.serve.job import Job
from mlx_ft.serve.jobs import Jobs
from mlx_ft.serve.store import Store
from tests.serve.test_jobs import Around
module.COMMAND = (sys.executable, sys.argv[2])
jobs = Jobs(Store(pathlib.Path(sys.argv[1])), Around([]))
jobs.add(Job("job-" + "0" * 24, "a", "m", "d", ["seconds=60"], {}))
jobs.start()
time.sleep(60)
"""


def test_no_process_outlives_a_server_that_is_killed(home, tmp_path):
    command = [sys.executable, "-c", SERVER, str(home), str(tmp_path / "fake.py")]
    server = subprocess.Popen(command)
    run = home / "jobs" / ("job-" + "0" * 24) / "run"
    until = time.monotonic() + TIMEOUT
    while not (run / "begun").exists():
        assert time.monotonic() < until
        time.sleep(0.01)
    children = psutil.Process(server.pid).children(recursive=True)
    time.sleep(0.1)
    os.kill(server.pid, signal.SIGKILL)
    server.wait()
    assert len(children) == 1
    psutil.wait_procs(children, timeout=TIMEOUT)
    assert not any(child.is_running() for child in children)
    assert (run / "saved").exists()
    after = Server(home)
    (one,) = after.jobs.all()
    assert one.status == "interrupted"
    assert "server ended" in one.error
    after.close()


def test_progress_is_read_from_a_file_that_grows(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert (progress(tmp_path).step, progress(tmp_path).total) == (0, None)
    path.write_text(
        '{"step": 0, "val/loss": 3.0}\n{"step": 1, "train/loss": 2.0}\nnot json\n'
        '{"step": 2, "train/loss": 1.5, "val/loss": 1.25}\n{"step": 3, "train/lo'
    )
    (tmp_path / "origin.json").write_text('{"steps": 8}')
    found = progress(tmp_path)
    assert (found.step, found.loss, found.metrics["val/loss"]) == (2, 1.5, 1.25)
    assert (found.total, found.percent) == (8, 25.0)
    assert [row["step"] for row in rows(tmp_path, after=1)] == [1, 2]


def test_a_tail_reads_each_line_once_and_begins_again_with_the_file(tmp_path):
    path = tmp_path / "rows"
    tail = Tail(path)
    assert tail.more() == []
    path.write_text('{"a": 1}\n{"a": 2')
    assert tail.more() == [{"a": 1}]
    assert tail.more() == []
    with path.open("a") as file:
        file.write('}\n{"a": 3}\n')
    assert tail.more() == [{"a": 2}, {"a": 3}]
    path.write_text('{"a": 1}\n')
    assert tail.more() == [{"a": 1}]


def test_what_cannot_be_kept_is_no_success(server, monkeypatch):
    monkeypatch.setattr(server.jobs._around, "keep", lambda job: 1 / 0)
    one = server.jobs.add(job())
    server.jobs.start()
    assert "ZeroDivisionError" in wait(server.jobs, one.id, "failed").error


def test_its_data_lies_with_the_job(server):
    one = server.jobs.add(job(), {"rows.jsonl": b"{}\n"})
    assert (server.store.place("jobs", one.id) / "rows.jsonl").read_bytes() == b"{}\n"


def test_the_queue_has_an_end(server, monkeypatch):
    monkeypatch.setattr(module, "LONGEST_QUEUE", 2)
    for _ in range(2):
        server.jobs.add(job())
    with pytest.raises(Full, match="2 jobs"):
        server.jobs.add(job())


def test_stopping_twice_lets_it_save(server):
    one = server.jobs.add(job("seconds=60"))
    server.jobs.start()
    running(server.jobs, one)
    sent = []
    genuine = server.jobs._process.send_signal
    server.jobs._process.send_signal = lambda number: (sent.append(number), genuine(number))
    server.jobs.stop(one.id, "paused")
    server.jobs.stop(one.id, "paused")
    wait(server.jobs, one.id, "paused")
    assert sent == [signal.SIGTERM]


def test_a_run_that_another_process_still_saves_is_waited_for(server):
    one = server.jobs.add(job())
    run = server.jobs.folder(one)
    run.mkdir()
    held = durable.lock(run / ".lock")
    server.jobs.start()
    time.sleep(0.5)
    assert server.jobs.get(one.id).status == "running"
    assert not (run / "begun").exists()
    held.close()
    wait(server.jobs, one.id, "succeeded")


def test_what_has_not_changed_is_not_read_again(tmp_path, monkeypatch):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    first = progress(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("mlx_ft.serve.progress.rows", None)
        assert progress(tmp_path) is first
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "train/loss": 1.0}\n')
    assert (progress(tmp_path).step, progress(tmp_path).loss) == (2, 1.0)
    (tmp_path / "origin.json").write_text('{"steps": 4}')
    assert progress(tmp_path).percent == 50
