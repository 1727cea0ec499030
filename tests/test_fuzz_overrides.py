"""The small form of `proofs/fuzz_overrides.py`, and that its rules see what they forbid."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

PLANT = """
import os, shutil, signal, sys, time
from pathlib import Path
from proofs import override_process
from proofs.fuzz_overrides import faults
from proofs.override_cases import Case

override_process.SECONDS = 1
root = Path(sys.argv[1]).resolve()
scratch = override_process.prepare_process(root)

def refuse(args):
    print("1 fault in the arguments", "Nothing was written.", sep="\\n", file=sys.stderr)
    return 2

def planted(args):
    {body}
    return refuse(args)

case = Case("planted", ["a=1"], ["named"])
print(*faults(case, override_process.run(case, scratch, planted), scratch), sep="\\n")
"""


def broken_rules(body, root):
    root.mkdir()
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PLANT.format(body=body), str(root)],
        cwd=ROOT, capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("import canary; canary.fire()", "canary called, imported"),
        ("os.system('true')", "runs ['os.system'"),
        ("__import__('subprocess').run(['true'])", "runs ['subprocess.Popen'"),
        ("Path('../escaped').touch()", "/escaped"),
        ("Path('OUTSIDE/made').touch()", "writes to OUTSIDE/made"),
        ("os.utime('OUTSIDE')", "writes to OUTSIDE"),
        ("os.truncate('OUTSIDE/file', 0)", "writes to OUTSIDE/file"),
        ("os.symlink('x', 'OUTSIDE/link')", "writes to OUTSIDE/link"),
        ("Path('made').mkdir()", "left ['cwd/made']"),
        ("Path('../rows.jsonl').write_text('x')", "changes ['rows.jsonl']"),
        ("print('x' * 5000)", "fills 52 lines"),
        ("print('\\x1b[2J')", "shows control characters"),
        ("{}['x']", "shows a traceback"),
        ("time.sleep(60)", "hangs"),
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ends with -11"),
        ("return 3", "ends with 3"),
        ("return 0", "0 run folders"),
        ("return 1", "says nothing"),
        ("return 2", "does not say that nothing was written"),
        ("print('The run failed. KeyError: x', file=sys.stderr); return 1", "fails by surprise"),
        ("__import__('socket').getaddrinfo('0.0.0.0', 1)", "asks the network for '0.0.0.0'"),
    ],
)
def test_a_broken_rule_is_seen(body, expected, tmp_path):
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("x")
    outside = str((tmp_path / "outside").resolve())
    found = broken_rules(body.replace("OUTSIDE", outside), tmp_path / "root")
    assert expected.replace("OUTSIDE", outside) in found


def test_what_is_allowed_breaks_no_rule(tmp_path):
    assert broken_rules("pass", tmp_path / "root") == ""


@pytest.mark.slow
def test_command_lines_at_random_break_no_rule():
    """The whole program, as by hand: `python proofs/fuzz_overrides.py 2000`."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "proofs/fuzz_overrides.py", "24", "3"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "24 cases, seed 3: 0 broke a rule" in done.stdout
