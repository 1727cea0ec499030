"""The command line: what it prints, its exit codes, and that nothing is written."""

import os
import subprocess
import sys
import types
from pathlib import Path

import pytest

from mlx_ft.errors import DataError, Interrupted, TrainingError
from mlx_ft.main import main

TRAIN = Path(__file__).parents[1] / "train.py"


def train(*argv, cwd, **env):
    return subprocess.run(
        [sys.executable, str(TRAIN), *argv],
        cwd=cwd,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        timeout=60,
    )


def noted(error, note):
    error.add_note(note)
    return error


def tree(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.fixture
def runs(monkeypatch):
    """Stands in for mlx_ft.run: records the calls; `runs.result` is returned or raised."""
    fake = types.ModuleType("mlx_ft.run")
    fake.calls = []
    fake.result = "FINISHED"

    def run(config, **others):
        fake.calls.append(types.SimpleNamespace(config=config, **others))
        if isinstance(fake.result, BaseException):
            raise fake.result
        return types.SimpleNamespace(status=fake.result)

    fake.run = run
    monkeypatch.setitem(sys.modules, "mlx_ft.run", fake)
    return fake


@pytest.mark.parametrize(
    ("argv", "expected"),
    [
        (["lora.rnak=8"], ["1 fault", "Did you mean lora.rank?"]),
        (["lora.rank=x", "memory-profile=cpu"], ["2 faults", "memory_profile?", "whole number"]),
        (["-m", "lora.rank=0,-1", "optimizer=foo"], ["3 faults", "found -1", "no optimizer 'foo'"]),
        (["data=custom"], ["data.path: has no value yet"]),
        (["-m", "data=custom", "seed=1,2"], ["data.path: has no value yet"]),
        (
            ["-m", "train.max_steps=5,6", "optimizer.warmup_steps=9"],
            ["(trial max_steps=5)", "(trial max_steps=6)"],
        ),
        (["train.max_steps=5", "optimizer.warmup_steps=9"], ["fewer than train.max_steps (5)"]),
        (["--experimental-rerun", "x.pickle"], ["unpickles"]),
        (["--foo"], ["no such option"]),
        (["--lora.rank=8"], ["no dashes: lora.rank=8"]),
        (["--cfg", "nonsense"], ["invalid choice"]),
        (["--cfg", "job", "lora.rnak=8"], ["Did you mean lora.rank?"]),
        (["--cfg", "job", "--package", "nope"], ["nope"]),
        (["--resolve"], ["--resolve and --package go with --cfg"]),
        (["--config-name", "nope"], ["there is: main"]),
        (["--config-dir", "nope"], ["There is no folder nope"]),
        (["hydra/launcher=nope"], ["nope"]),
        (["-m", "--cfg", "job"], ["Only one of"]),
        (["+hydra.callbacks.x={_target_: os.mkdir, path: made}"], ["_target_"]),
    ],
)
def test_a_mistake_gives_one_message_and_writes_nothing(argv, expected, tmp_path, monkeypatch,
                                                        capsys):  # fmt: skip
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mlx_ft.run", raising=False)
    assert main(argv) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("\nNothing was written.\n")
    assert err.count("othing was written") == 1
    for text in expected:
        assert text in err
    assert tree(tmp_path) == []


@pytest.mark.parametrize("argv", [["lora.rnak=8"], ["-m", "lora.rank=0,-1"], ["data=custom"]])
def test_a_mistake_in_a_process_of_its_own(argv, tmp_path):
    done = train(*argv, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "Traceback" not in done.stderr
    assert tree(tmp_path) == []


def test_nothing_heavy_is_imported_before_the_configuration_is_accepted(tmp_path):
    code = """
import sys
sys.argv[0] = "train.py"
from mlx_ft.main import main
assert main(["lora.rnak=8"]) == 2
assert main(["data=custom"]) == 2
assert main(["-m", "data=custom"]) == 2
assert main(["--cfg", "job"]) == 0
heavy = {"mlx", "mlx_lm", "transformers", "mlflow", "numpy", "torch", "matplotlib", "rich"}
print(sorted(heavy & set(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"


def test_cfg_job(tmp_path):
    done = train("--cfg", "job", "lora.rank=7", cwd=tmp_path)
    assert done.returncode == 0
    assert "  rank: 7\n" in done.stdout
    assert "hydra" not in done.stdout
    assert tree(tmp_path) == []


def test_help_names_the_groups_examples_and_exit_codes(capsys):
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    for part in ("lora.rank=32", "optimizer: adafactor, adam", "Examples", "Exit codes", "docs/",
                 "the built-in rows set 130"):  # fmt: skip
        assert part in text
    assert "seed: 42" not in text
    assert all(len(line) <= 110 for line in text.splitlines())


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--version"], "mlx-ft "),
        (["--hydra-help"], "--multirun"),
        (["--cfg", "job", "--package", "lora"], "rank: 16"),
        (["--cfg", "job", "--resolve", "lora.rank=${seed}"], "rank: 42"),
        (["--cfg", "hydra", "--package", "hydra.sweeper"], "MlxFtSweeper"),
        (["--shell-completion", "install=bash"], "COMP_LINE"),
    ],
)
def test_what_only_prints(argv, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(argv) == 0
    assert text in capsys.readouterr().out
    assert tree(tmp_path) == []


@pytest.mark.parametrize(
    ("line", "expected"),
    [("python train.py lora.ra", "lora.rank="), ("python train.py optimizer=li", "optimizer=lion")],
)
def test_shell_completion(line, expected, tmp_path):
    done = train("-sc", "query=bash", cwd=tmp_path, COMP_LINE=line, COMP_POINT=str(len(line)))
    assert (done.returncode, done.stdout.split()) == (0, [expected])
    assert tree(tmp_path) == []


def test_a_run_gets_the_accepted_configuration(runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["lora.rank=8", "optimizer=lion", "hydra.run.dir=my run"]) == 0
    [call] = runs.calls
    assert call.config.lora.rank == 8
    assert call.public["optimizer"]["name"] == "lion"
    assert call.run_dir == Path("my run")
    assert call.overrides == ("lora.rank=8", "optimizer=lion", "hydra.run.dir=my run")
    assert call.choices["optimizer"] == "lion"
    assert tree(tmp_path) == []  # the folder is the run's own business


def test_the_run_chooses_its_folder_unless_told(runs):
    assert main([]) == 0
    assert runs.calls[0].run_dir is None


@pytest.mark.parametrize(
    ("result", "code", "text"),
    [
        ("FINISHED", 0, ""),
        ("FAILED", 1, ""),
        ("KILLED", 130, ""),
        (
            DataError("no rows", ["a.jsonl:1: empty"]), 2,
            "no rows\n  - a.jsonl:1: empty\nNothing was written.\n",
        ),
        (TrainingError("diverged"), 1, "diverged\n"),
        (noted(TrainingError("diverged"), "it is in run/"), 1, "diverged\nit is in run/\n"),
        (noted(DataError("too late"), "it is in run/"), 2, "too late\nit is in run/\n"),
        (Interrupted("stopped", 15), 143, "stopped\n"),
        (KeyboardInterrupt(), 130, "Interrupted.\nNothing was trained.\n"),
        (noted(KeyboardInterrupt(), "it is in run/"), 130, "Interrupted.\nit is in run/\n"),
    ],
)  # fmt: skip
def test_exit_codes(runs, result, code, text, capsys):
    runs.result = result
    assert main([]) == code
    assert capsys.readouterr().err == text


def test_a_surprise_shows_its_traceback_unless_the_log_has_it(runs, capsys):
    runs.result = RuntimeError("boom")
    assert main([]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert err.endswith("The run failed. RuntimeError: boom.\n")
    runs.result = RuntimeError("boom\x1b[2J")
    runs.result.add_note("The traceback is in some/train.log.")
    assert main([]) == 1
    assert capsys.readouterr().err == (
        "The run failed. RuntimeError: boom\\x1b[2J.\nThe traceback is in some/train.log.\n"
    )


def test_help_into_a_closed_pipe_says_nothing():
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-u", "-c", "from mlx_ft.main import main; main(['--help'])"],
        stdout=writer, stderr=subprocess.PIPE, text=True, timeout=60, check=False,
    )  # fmt: skip
    os.close(writer)
    assert (done.stderr, done.returncode) == ("", 0)
