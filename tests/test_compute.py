"""Where frozen layers are remembered without being asked: where that was measured to pay."""

from types import SimpleNamespace

import numpy as np
import pytest

from mlx_ft.accept import accept
from mlx_ft.compute import pays
from mlx_ft.config import compose
from mlx_ft.config.schema import Config, MemoryProfileConfig, TrainConfig
from mlx_ft.shared import Shared
from tests.jobs import job, write_rows
from tests.models import tiny

SHORT, LONG = 48, 109  # tokens of the rows that were measured
ROWS = 64


def paying(length, below=15, trial=False, **train):
    profile = MemoryProfileConfig(micro_batch_size=4, grad_accumulation_steps=2)
    dataset = SimpleNamespace(
        train=SimpleNamespace(lengths=np.full(ROWS, length)), weights=np.ones(ROWS)
    )
    config = Config(memory_profile=profile, train=TrainConfig(**train))
    return pays(config, below, dataset, trial=trial)


@pytest.mark.parametrize(
    ("length", "train", "expected"),
    [
        (LONG, {"epochs": 3.0}, True),  # measured: 1.22x
        (SHORT, {"epochs": 3.0}, False),  # measured: 193 tokens/s against 222 without
        (SHORT, {"epochs": 7.0}, True),
        (LONG, {"epochs": 1.0}, False),
        (SHORT, {"max_steps": 55}, False),  # 6.9 epochs
        (SHORT, {"max_steps": 56}, True),
        (LONG, {"epochs": 3.0, "max_steps": 8}, False),  # max_steps wins
        (SHORT, {"epochs": 1.0, "offload_frozen": True}, True),  # which cannot do without
    ],
)
def test_it_follows_what_was_measured(length, train, expected):
    assert paying(length, **train) == expected


def test_trials_of_a_sweep_see_one_anothers_rows():
    assert paying(SHORT, epochs=1.0, trial=True)
    assert not paying(SHORT, epochs=1.0)
    assert not paying(SHORT, epochs=1.0, trial=True, below=1)


def test_a_layer_or_none_is_not_worth_it():
    assert paying(LONG, epochs=3.0, below=2)
    assert not paying(LONG, epochs=3.0, below=1)
    assert not paying(LONG, epochs=3.0, below=0, offload_frozen=True)


def test_a_run_is_accepted_with_what_pays(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.save(tmp_path / "model", {**tiny.LLAMA, "num_hidden_layers": 3})
    write_rows(tmp_path / "rows.jsonl")

    def chosen(shared, *overrides):
        command = compose.accept(compose.CommandLine(tuple(job("lora.num_layers=1", *overrides))))
        accepted = accept(command.config, command.public, shared)
        if accepted.forward.frozen is not None:
            accepted.forward.frozen.close()
        frozen = accepted.config.train.frozen_cache
        assert frozen == (accepted.forward.frozen is not None)
        return frozen

    assert not chosen(None, "train.max_steps=6")
    assert chosen(None, "train.max_steps=600")
    assert chosen(None, "train.max_steps=6", "train.frozen_cache=true")
    assert chosen(Shared(), "train.max_steps=6")
