"""Jobs while the disk is full, and what is told of those that never ran."""

import errno
import signal
from types import SimpleNamespace

import pytest

from mlx_ft import durable
from mlx_ft.runfolder import read_json
from mlx_ft.serve.around import Around
from mlx_ft.serve.job import JOB
from tests.serve.test_jobs import Server, job, until, wait


@pytest.fixture
def home(tmp_path):
    return tmp_path / "home"


@pytest.fixture
def server(home, monkeypatch):
    """No process is begun: every job succeeds at once."""
    found = Server(home)
    monkeypatch.setattr(found.jobs, "_run", lambda job: 0)
    yield found
    found.close()


@pytest.fixture
def disk(monkeypatch):
    """`disk.full = True`: no file of a job can be written any more."""
    genuine = durable.write

    class Disk:
        full = False

    def write(path, content):
        if Disk.full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        genuine(path, content)

    monkeypatch.setattr(durable, "write", write)
    return Disk


def kept(home, one):
    return read_json(home / "jobs" / one.id / JOB)["status"]


def test_a_full_disk_ends_neither_the_queue_nor_a_success(server, home, disk, caplog):
    added = [server.jobs.add(job()) for _ in range(2)]
    disk.full = True
    server.jobs.start()
    for one in added:
        assert wait(server.jobs, one.id, "succeeded", "failed").error is None
        assert kept(home, one) == "queued"
    until(lambda: server.seen[-1] == ("succeeded", added[-1].id))
    assert [text.split()[1] for text in caplog.messages] == [one.id for one in added]
    assert "No space left" in caplog.text
    disk.full = False
    last = server.jobs.add(job())
    wait(server.jobs, last.id, "succeeded")
    assert [kept(home, one) for one in added] == ["succeeded"] * 2


def test_what_a_full_disk_refused_is_written_at_the_end(server, home, disk):
    one = server.jobs.add(job())
    disk.full = True
    server.jobs.start()
    wait(server.jobs, one.id, "succeeded", "failed")
    until(lambda: server.seen[-1] == ("succeeded", one.id))
    disk.full = False
    server.close()
    assert kept(home, one) == "succeeded"


def test_a_job_is_stopped_although_the_disk_is_full(server, disk):
    sent = []

    class Process:
        send_signal = sent.append

    one = server.jobs.add(job())
    one.status, server.jobs._current, server.jobs._process = "running", one.id, Process()
    disk.full = True
    assert server.jobs.stop(one.id, "cancelled").wanted == "cancelled"
    assert sent == [signal.SIGTERM]
    server.jobs._process = None


def test_a_stop_is_signalled_before_it_is_written(server, monkeypatch):
    done = []

    class Process:
        def send_signal(self, number):
            done.append("signal")

    one = server.jobs.add(job())
    one.status, server.jobs._current, server.jobs._process = "running", one.id, Process()
    monkeypatch.setattr(durable, "write", lambda path, content: done.append("write"))
    server.jobs.stop(one.id, "paused")
    assert done == ["signal", "write"]
    server.jobs._process = None


def test_it_is_told_that_a_job_was_cancelled_which_did_not_run(server, monkeypatch):
    one = server.jobs.add(job())
    server.jobs.stop(one.id, "paused")
    server.jobs.stop(one.id, "paused")  # twice is once
    server.jobs.stop(one.id, "cancelled")
    server.jobs.stop(one.id, "cancelled")
    assert server.seen == [("paused", one.id), ("cancelled", one.id)]
    other = server.jobs.add(job())
    monkeypatch.setattr(server.jobs._around, "after", lambda job: 1 / 0)
    assert server.jobs.stop(other.id, "cancelled").status == "cancelled"


def test_an_adapter_that_is_kept_and_cannot_be_loaded_is_a_success(server, tmp_path, caplog):
    one, put = server.jobs.add(job()), []
    state = SimpleNamespace(
        store=server.store, refresh=lambda name: 1 / 0,
        shelf=SimpleNamespace(put=lambda name, *_: put.append(name)),
    )  # fmt: skip
    Around(state).keep(one)
    assert put == [one.adapter]
    assert "cannot be loaded" in caplog.text
