"""One signal, another one, and the same one sent twice."""

import signal
import subprocess
import sys

import pytest

from mlx_ft import interrupt
from mlx_ft.errors import Interrupted


@pytest.fixture
def ended(monkeypatch):
    """The exit codes with which the process would have ended at once."""
    codes: list[int] = []
    monkeypatch.setattr(interrupt.os, "_exit", codes.append)
    return codes


def test_a_signal_sent_twice_counts_once_and_a_later_one_ends_at_once(ended, monkeypatch, capfd):
    now = 100.0
    monkeypatch.setattr(interrupt.time, "monotonic", lambda: now)
    with interrupt.StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert ended == []
        assert capfd.readouterr().err.count("stopping") == 1
        now += 2
        signal.raise_signal(signal.SIGTERM)
        assert ended == [143]
        with pytest.raises(Interrupted, match="SIGINT"):
            stop.check()


CHILD = """
import signal, sys, threading
from mlx_ft import interrupt
from mlx_ft.serve.child import follow_parent
interrupt.TWICE = -1  # any later signal ends the process at once
with interrupt.StopSignal() as stop:
    if sys.argv[1] == "told":
        signal.raise_signal(signal.SIGTERM)
    follow_parent()
    for thread in threading.enumerate():
        if thread.name == "parent":
            thread.join()
print(stop.number)
"""


@pytest.mark.parametrize("before", ["told", "not told"])
def test_the_end_of_the_server_tells_a_job_to_stop_once(before):
    command = [sys.executable, "-c", CHILD, before]
    ended = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    assert (ended.returncode, ended.stdout) == (0, b"15\n"), ended.stderr
