"""Nothing heavy is imported or drawn before the first step; what waited is there at the end."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mlx_ft.errors import TrainingError
from mlx_ft.main import main
from mlx_ft.record import Record
from tests.jobs import job

HEAVY = {"mlflow", "transformers", "tokenizers", "matplotlib", "pandas", "pyarrow", "scipy",
         "sqlalchemy", "datasets", "httpx", "requests"}  # fmt: skip
AT_THE_FIRST_STEP = """
import json, os, sys
from mlx_ft import main, runtime
runtime.prepare()
from mlx_ft import record

def step(self, result, *_):
    drawn = (self.folder.path / "data" / "report.png").exists()
    print(json.dumps([result.step, drawn, sorted(sys.modules)]), flush=True)
    os._exit(0)

record.Record.step = step
main.main(sys.argv[1:])
"""


def at_the_first_step(*overrides):
    arguments = job("eval.before=false", "hydra.run.dir=other", *overrides)
    done = subprocess.run(
        [sys.executable, "-c", AT_THE_FIRST_STEP, *arguments],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    step, drawn, modules = json.loads(done.stdout.splitlines()[-1])
    assert step == 1
    return drawn, {name.partition(".")[0] for name in modules}


@pytest.mark.parametrize("quantized", [[], ["model.quantize={bits: 4, group_size: 32}"]])
def test_a_warm_start_imports_nothing_heavy_before_the_first_step(place, quantized):
    assert main(job("eval.before=false", "train.max_steps=1", *quantized)) == 0  # fills the caches
    drawn, modules = at_the_first_step("tracking=mlflow", "paths.tracking_dir=mlruns", *quantized)
    assert not drawn
    assert {"mlx", "mlx_lm", "numpy", "hydra"} <= modules
    assert not modules & HEAVY


def test_a_cold_start_reads_the_tokenizer_and_no_more(place, monkeypatch):
    monkeypatch.setenv("MLX_FT_CACHE", str(place / "cold"))
    _, modules = at_the_first_step("tracking=mlflow", "paths.tracking_dir=mlruns")
    assert modules & HEAVY - {"transformers", "tokenizers", "httpx", "requests"} == set()


def test_the_data_figure_is_drawn_once_the_first_step_is_noted(place, monkeypatch):
    figure, seen = place / "run" / "data" / "report.png", []
    own = Record.step

    def step(self, *arguments):
        before = figure.exists()
        own(self, *arguments)
        seen.append((before, figure.exists()))

    monkeypatch.setattr(Record, "step", step)
    assert main(job("eval.before=false", "train.max_steps=2", "eval.task_rows=1")) == 0
    assert seen == [(False, True), (True, True)]


def test_a_run_that_fails_in_its_first_step_has_the_data_figure(place, monkeypatch):
    def fails(*_, **__):
        raise TrainingError("no step")

    monkeypatch.setattr("mlx_ft.session.trainer.train", fails)
    assert main(job("eval.before=false")) == 1
    assert (place / "run" / "data" / "report.json").exists()
    assert (place / "run" / "data" / "report.png").exists()
