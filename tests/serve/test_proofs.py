"""The small forms of `proofs/serve_*.py`, each the whole program as by hand."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("script", "sizes", "said"),
    [
        pytest.param(
            "serve_load",
            (60, 200, 5, 30),
            ("got 429", "memory, MB", "5 left", "loads", "exit code 143"),
            marks=pytest.mark.long,
        ),
        pytest.param(
            "serve_kills", (1, 1, 3), ("server: killed", "job: killed"), marks=pytest.mark.long
        ),
        pytest.param("serve_fuzz", (100, 12), ("names: 12", "generated"), marks=pytest.mark.slow),
    ],
)
def test_the_proof_in_small(script, sizes, said):
    done = subprocess.run(
        [sys.executable, f"proofs/{script}.py", *map(str, sizes)],
        cwd=ROOT, capture_output=True, text=True, timeout=1200, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    assert "\n0 faults" in done.stdout or ", 0 faults" in done.stdout
    for words in said:
        assert words in done.stdout
