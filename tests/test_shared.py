"""Trials of one process share the base model: each equals the same run alone, to the bit."""

from __future__ import annotations

import json
from pathlib import Path

import mlx.core as mx
import pytest

from mlx_ft import judge, shared
from mlx_ft.main import main
from mlx_ft.models import load as models
from mlx_ft.shared import Shared, of_this_process
from tests.jobs import job, summary, write_rows
from tests.models import tiny

TIMES = ("wall_seconds", "train_seconds", "tokens_per_second", "peak_memory_gb", "adapter_path",
         "run_id")  # fmt: skip


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with a model and rows, where this process has shared nothing yet."""
    monkeypatch.chdir(tmp_path)
    tiny.save(Path("model"))
    write_rows(Path("rows.jsonl"))
    of_this_process.cache_clear()
    yield tmp_path
    of_this_process.cache_clear()


def trial_of(*overrides):
    """The tiny job as arguments of a sweep."""
    return [text for text in job(*overrides) if not text.startswith("hydra.run.dir")]


def what_came(folder):
    """Everything that a run leaves but its times and places."""
    figures = {k: v for k, v in summary(folder).items() if k not in TIMES}
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    kept = [
        {k: v for k, v in row.items() if "memory" not in k and "second" not in k} for row in rows
    ]
    answers = (folder / "samples.jsonl").read_text() if (folder / "samples.jsonl").exists() else ""
    return figures, kept, (folder / "adapter/adapters.safetensors").read_bytes(), answers


@pytest.mark.parametrize(
    ("swept", "values"),
    [
        ("lora.rank", ["2", "4"]),
        *(
            pytest.param(key, values, marks=pytest.mark.slow)
            for key, values in [
                ("lora.num_layers", ["1", "all"]),
                ("memory_profile.grad_checkpoint", ["true", "false"]),
                ("seed", ["1", "2"]),
                ("lora.dropout", ["0.3", "0.0"]),
                ("data.packing", ["none", "segments"]),
                ("memory_profile.max_seq_length", ["16", "64"]),
            ]
        ),
        pytest.param("train.offload_frozen", ["true", "false"], marks=pytest.mark.long),
    ],
)
def test_a_trial_is_the_run_that_it_would_be_alone(place, swept, values):
    more = ["lora.num_layers=1"] if swept == "train.offload_frozen" else []
    swept_over = trial_of(f"{swept}={','.join(values)}", *more)
    assert main(["-m", *swept_over, "hydra.sweep.dir=s"]) == 0
    for value in reversed(values):
        alone = Path(f"alone-{value}")
        assert main(job(f"{swept}={value}", f"hydra.run.dir={alone}", *more)) == 0
        name = f"{swept.rpartition('.')[2]}={value}"
        assert what_came(Path("s") / name) == what_came(alone)


@pytest.mark.slow
def test_the_base_is_loaded_and_judged_once(place, monkeypatch):
    loads, judged = [], []
    load, validate = models.load, judge.Judge.validate

    def counted(*args, **more):
        loads.append(1)
        return load(*args, **more)

    def noted(self, display, step):
        judged.append(step)
        return validate(self, display, step)

    monkeypatch.setattr(models, "load", counted)
    monkeypatch.setattr(judge.Judge, "validate", noted)
    assert main(["-m", *trial_of("lora.rank=2,3,4"), "hydra.sweep.dir=s"]) == 0
    assert (len(loads), judged.count(0)) == (1, 1)
    before = {summary(Path("s") / f"rank={rank}")["val_loss_before"] for rank in (2, 3, 4)}
    assert len(before) == 1
    assert None not in before
    assert main(["-m", *trial_of("seed=1,2"), "hydra.sweep.dir=t"]) == 0
    assert (len(loads), judged.count(0)) == (1, 3)  # other validation rows


@pytest.mark.usefixtures("no_estimate")
@pytest.mark.slow
def test_a_trial_that_fails_leaves_nothing_to_the_next_one(place, monkeypatch):
    entered = shared.lora.attach
    failing = []

    def attach(model, config):
        adapter = entered(model, config)
        if config.rank == 3:
            failing.append(1)
            raise RuntimeError("boom")
        return adapter

    monkeypatch.setattr("mlx_ft.accept.lora.attach", attach)
    assert main(["-m", *trial_of("lora.rank=3,4"), "hydra.sweep.dir=s"]) == 1
    monkeypatch.undo()
    monkeypatch.chdir(place)
    assert failing == [1]
    assert main(job("lora.rank=4", "hydra.run.dir=alone")) == 0
    assert what_came(Path("s/rank=4")) == what_came(Path("alone"))


@pytest.mark.slow
def test_another_model_or_precision_is_loaded(place):
    tiny.save(Path("other"), seed=1)
    keeper = Shared()

    def load(path="model", dtype="float32"):
        config = models.ModelConfig(path=f"./{path}")
        located = models.locate(config, place / "cache")
        found = keeper.load(located, config, compute_dtype=dtype, dequantize=False)
        keeper.leave(None)
        return found.model

    first = load()
    assert load() is first
    assert load(dtype="bfloat16") is not first
    assert load("other") is not first
    again = load()
    settings = json.loads(Path("model/config.json").read_text())
    Path("model/config.json").write_text(json.dumps({**settings, "rope_theta": 7.0}))
    assert load() is not again
    assert mx.array_equal(load().model.norm.weight, again.model.norm.weight)
