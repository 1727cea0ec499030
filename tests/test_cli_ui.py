"""`mlx-ft ui`: how the server begins and ends, with a small script in MLflow's place."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mlx_ft import cli, cli_ui
from mlx_ft.errors import MlxFtError

SERVER = """
import os, signal, subprocess, sys, time
worker = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
open("started", "w").write(f"{os.getpid()} {worker.pid}")
print("noise", flush=True)
time.sleep(60)
"""
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN)" + SERVER
WRAPPER = """
import os, sys
from mlx_ft import cli_ui
cli_ui.PATIENCE = 0.5
print("begun", flush=True)
address = ("127.0.0.1", int(sys.argv[2]))
sys.exit(cli_ui.serve([sys.executable, "-c", sys.argv[1]], os.environ, address, "it listens"))
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")
@pytest.mark.parametrize("server", [SERVER, STUBBORN])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 0), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_a_signal_ends_the_server_and_all_its_processes(server, number, code, tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", WRAPPER, server, "1"], cwd=tmp_path, start_new_session=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 30
    while not (tmp_path / "started").exists() or not (tmp_path / "started").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    pids = [int(pid) for pid in (tmp_path / "started").read_text().split()]
    assert len(pids) == 2
    os.killpg(process.pid, number)  # as a terminal does
    process.send_signal(number)  # and `timeout`, a second time
    out, _ = process.communicate(timeout=30)
    assert (process.returncode, out) == (code, "begun\n")
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert [pid for pid in pids if alive(pid)] == []


def test_that_it_listens_is_said_once_it_does():
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    listens = f"""
import socket, time
time.sleep(0.5)
server = socket.create_server(("127.0.0.1", {port}))
time.sleep(60)
"""
    with subprocess.Popen(
        [sys.executable, "-c", WRAPPER, listens, str(port)], start_new_session=True,
        stdout=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        assert process.stdout.readline() == "begun\n"
        begun = time.monotonic()
        assert process.stdout.readline() == "it listens\n"
        assert time.monotonic() - begun > 0.3
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 0


def test_a_server_that_ends_by_itself_says_why():
    before = signal.getsignal(signal.SIGTERM)
    code = "print('first'); print('port in use'); raise SystemExit(3)"
    with pytest.raises(MlxFtError, match=r"exit code 3") as error:
        cli_ui.serve([sys.executable, "-c", code], os.environ, ("127.0.0.1", 1), "")
    assert error.value.faults == ("first", "port in use")
    assert error.value.exit_code == 1
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_file_that_is_no_database(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_ui, "serve", lambda *_: pytest.fail("started a server"))
    (tmp_path / "notes.db").write_text("these are my notes, not runs")
    assert cli.main(["ui", f"tracking.uri=sqlite:///{tmp_path}/notes.db"]) == 2
    assert "notes.db is not an SQLite database" in capsys.readouterr().err


def test_a_port_that_is_in_use(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(cli_ui, "serve", lambda *_: pytest.fail("started a server"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlruns").mkdir()
    (tmp_path / "mlruns" / "mlflow.db").touch()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        assert cli.main(["ui", f"--port={port}"]) == 2
    assert f"--port {port}: Address already in use. Choose another" in capsys.readouterr().err
    monkeypatch.setattr(cli_ui, "serve", lambda *_: 0)
    assert cli.main(["ui", f"--port={port}"]) == 0
