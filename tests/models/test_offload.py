"""Layers whose arrays lie in a file: the same numbers, less memory, and nothing is left behind."""

import gc
import json
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from mlx_ft.main import main
from mlx_ft.models.offload import Offload
from tests.fakes import same, snapshot
from tests.jobs import job
from tests.models import tiny

TOKENS = mx.array([[1, 2, 3, 5, 8]])
WIDE = {**tiny.LLAMA, "num_hidden_layers": 4, "hidden_size": 256, "intermediate_size": 1024}


def test_resting_layers_give_their_memory_back_and_compute_what_they_did(tmp_path):
    model = tiny.build(WIDE)
    mx.eval(model.parameters())
    before, expected = snapshot(model.parameters()), np.array(model(TOKENS))
    lower = sum(array.nbytes for array in snapshot(model.layers[0].parameters()).values()) * 3
    offload = Offload(model.layers[:3], tmp_path)
    gc.collect()
    awake = mx.get_active_memory()
    offload.rest()
    gc.collect()
    assert awake - mx.get_active_memory() >= 0.99 * lower
    assert np.array_equal(np.array(model(TOKENS)), expected)  # they are read again
    assert awake - mx.get_active_memory() < 0.1 * lower
    offload.rest()
    offload.close()
    assert [*tmp_path.iterdir()] == []
    assert same(snapshot(model.parameters()), before)


def test_quantized_layers_too(tmp_path):
    import mlx.nn as nn

    model = tiny.build(WIDE)
    nn.quantize(model, 32, 4)
    before = snapshot(model.parameters())
    offload = Offload(model.layers[:2], tmp_path)
    offload.rest()
    assert same(snapshot(model.parameters()), before)
    offload.close()


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_has_is_not(tmp_path):
    code = (
        "import os, sys; from mlx_ft import runtime; runtime.prepare()\n"
        "from mlx_ft.models.offload import Offload; from tests.models import tiny\n"
        "Offload(tiny.build().layers[:1], __import__('pathlib').Path(sys.argv[1]))\n"
        "os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert len([*tmp_path.iterdir()]) == 2  # the arrays and their lock
    left = {path.name for path in tmp_path.iterdir()}
    first = Offload(tiny.build().layers[:1], tmp_path)
    held = {path.name for path in tmp_path.iterdir()}
    assert not held & left
    second = Offload(tiny.build().layers[:1], tmp_path)
    assert held < {path.name for path in tmp_path.iterdir()}
    first.close()
    second.close()
    assert [*tmp_path.iterdir()] == []


def test_reading_layers_again_is_not_taken_for_a_need_of_the_step(place, caplog):
    """What the guard learns is what it learns without it, and answers come from all layers."""
    learned = []
    for value in ("false", "true"):
        cache = f"paths.cache_dir={place / value}"
        upper = ["lora.num_layers=1", "train.frozen_cache=true", "checkpoint.every=2", cache]
        assert main(job(*upper, f"train.offload_frozen={value}", f"hydra.run.dir=r-{value}")) == 0
        newest = max(Path(f"r-{value}", "checkpoints").glob("*/state.json"))
        learned.append(json.loads(newest.read_text())["memory"]["factor"])
    assert learned[1] == pytest.approx(learned[0], rel=0.1)


def test_a_run_is_the_same_and_leaves_no_file(place, monkeypatch):
    monkeypatch.setenv("MLX_FT_CACHE", str(place / "cache"))
    upper = ["lora.num_layers=1", "train.frozen_cache=true", "train.max_steps=8", "eval.every=3"]
    adapters = []
    for value in ("false", "true"):
        cache = f"paths.cache_dir={place / value}"  # each computes its rows anew
        arguments = job(
            *upper, f"train.offload_frozen={value}", f"hydra.run.dir={value}-run", cache
        )
        assert main(arguments) == 0
        adapters.append(Path(f"{value}-run/adapter/adapters.safetensors").read_bytes())
        answers = Path(f"{value}-run/samples.jsonl").read_text()
    assert adapters[0] == adapters[1]
    assert answers == Path("false-run/samples.jsonl").read_text()
    assert [*(place / "true/offloaded").iterdir()] == []


def test_it_is_refused_where_all_layers_are_used(place, capsys):
    assert main(job("lora.num_layers=all", "train.offload_frozen=true")) == 2
    assert "train.offload_frozen: found true with lora.num_layers=all" in capsys.readouterr().err
    assert not (place / "run").exists()


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="file"):
        Offload(tiny.build().layers[:1], tmp_path / "file" / "x")
