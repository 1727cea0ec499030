import json
import signal
import subprocess
import sys

import pytest

from mlx_ft.crash import Crash, CrashLog, last_crash


def child(folder, body):
    """Run `body` within a CrashLog in a process of its own; its return code."""
    code = f"""
import os, signal
from pathlib import Path
from mlx_ft.crash import CrashLog
with CrashLog(Path({str(folder)!r}), 1) as log:
    {body}
"""
    return subprocess.run([sys.executable, "-c", code], capture_output=True).returncode


def die(number):
    return f"os.kill(os.getpid(), signal.{signal.Signals(number).name})"


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (signal.SIGSEGV, "Segmentation fault"),
        (signal.SIGBUS, "Bus error"),
        (signal.SIGABRT, "Aborted"),
    ],
)
def test_a_fatal_signal_is_told_with_the_parts_of_then(tmp_path, number, reason):
    assert child(tmp_path, f"log.set_parts(1000); log.set_parts(4); {die(number)}") == -number
    crash = last_crash(tmp_path)
    assert crash is not None
    assert reason in crash.reason
    assert crash.parts == 4


def test_a_kill_leaves_no_crash(tmp_path):
    body = f"log.set_parts(1000); log.set_parts(4); {die(signal.SIGKILL)}"
    assert child(tmp_path, body) == -signal.SIGKILL
    assert last_crash(tmp_path) is None


def test_a_kill_in_a_step_that_hardly_fits_is_put_down_to_memory(tmp_path):
    assert child(tmp_path, f"log.mark(2); {die(signal.SIGKILL)}") == -signal.SIGKILL
    assert last_crash(tmp_path) == Crash("killed in a step that hardly fitted into memory", 2)


def test_a_kill_after_such_a_step_is_not(tmp_path):
    assert child(tmp_path, f"log.mark(2); log.unmark(); {die(signal.SIGKILL)}") == -signal.SIGKILL
    assert last_crash(tmp_path) is None


@pytest.mark.parametrize("body", ["log.mark(2)", "log.mark(2); raise ValueError"])
def test_an_end_that_python_sees_leaves_nothing(tmp_path, body):
    child(tmp_path, body)
    assert last_crash(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


def test_the_next_process_forgets_the_crash(tmp_path):
    child(tmp_path, f"log.mark(2); {die(signal.SIGSEGV)}")
    assert last_crash(tmp_path) is not None
    assert last_crash(tmp_path) is not None  # asking changes nothing
    child(tmp_path, die(signal.SIGKILL))
    assert last_crash(tmp_path) is None


def test_a_second_crash_tells_the_doubled_parts(tmp_path):
    child(tmp_path, die(signal.SIGSEGV))
    first = last_crash(tmp_path)
    child(tmp_path, f"log.set_parts({2 * first.parts}); {die(signal.SIGSEGV)}")
    assert (first.parts, last_crash(tmp_path).parts) == (1, 2)


@pytest.mark.parametrize("line", ["", "{", '{"parts": "x"}', "[]", '{"parts": -3}'])
def test_a_line_cut_off_by_the_crash_counts_as_one_part(tmp_path, line):
    (tmp_path / "crash.log").write_text(f"{line}\nFatal Python error: Segmentation fault\n")
    assert last_crash(tmp_path) == Crash("Fatal Python error: Segmentation fault", 1)


def test_a_folder_that_cannot_be_written_to_is_warned_of(tmp_path, caplog):
    (tmp_path / "file").touch()
    log = CrashLog(tmp_path / "file" / "run", 1)
    with log:
        log.set_parts(2)
        log.mark(2)
    assert "a crash would leave no trace" in caplog.text
    assert "the memory mark could not be written" in caplog.text


def test_no_run_no_crash(tmp_path):
    assert last_crash(tmp_path / "nowhere") is None
    (tmp_path / "crash.log").write_text(json.dumps({"parts": 1}) + "\n")
    assert last_crash(tmp_path) is None


@pytest.mark.skipif(sys.platform != "linux", reason="only there is a failed allocation fatal")
def test_mlx_out_of_memory_on_the_cpu_is_a_crash_that_is_told(tmp_path):
    body = """
    from mlx_ft import runtime; runtime.prepare()
    import mlx.core as mx, psutil, resource
    mx.set_default_device(mx.cpu)
    mx.eval(mx.zeros(4) + 1)
    limit = psutil.Process().memory_info().vms + 100 * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, -1))
    mx.eval(mx.zeros((1024, 1024, 1024)) + 1)
"""
    assert child(tmp_path, body) == -signal.SIGSEGV
    crash = last_crash(tmp_path)
    assert crash == Crash("Fatal Python error: Segmentation fault", 1)
    where = (tmp_path / "crash.log").read_text()
    assert "most recent call first" in where
