"""`lora.init_from`: a training that begins with an adapter, and what becomes of it on resume."""

import json
import shutil

import mlx.core as mx
import numpy as np
import pytest
from safetensors.numpy import load_file

from mlx_ft import initial, lora, lora_files
from mlx_ft.config.schema import LoraConfig
from mlx_ft.errors import AdapterError
from mlx_ft.main import main
from tests.fakes import randomize
from tests.jobs import job, summary
from tests.models import tiny

LORA = LoraConfig(rank=3, alpha=12, num_layers=1)


@pytest.fixture
def saved(tmp_path):
    model = tiny.build()
    adapter = lora.attach(model, LORA)
    randomize(model)
    lora_files.save(lora.parameters(model), adapter, tmp_path / "adapter", {})
    return tmp_path / "adapter"


def config(folder, **changes):
    return LoraConfig(
        **{"rank": 3, "alpha": 12, "num_layers": 1, "init_from": str(folder), **changes}
    )


def test_the_model_has_the_adapter_s_numbers(saved):
    model = tiny.build()
    lora.attach(model, LORA)
    initial.put(model, initial.find(config(saved)))
    expected = load_file(saved / "adapters.safetensors")
    found = lora.parameters(model)
    assert found.keys() == expected.keys()
    assert all((np.array(found[name]) == expected[name]).all() for name in expected)


def test_the_same_scale_may_be_said_otherwise(saved):
    assert initial.find(config(saved, alpha=4 * 3**0.5, scaling="rslora")).adapter.rank == 3
    assert initial.find(LoraConfig()) is None


def test_a_run_s_folder_stands_for_its_adapter(saved):
    assert initial.find(config(saved.parent)).folder == saved


def test_another_rank_and_scale_are_told_at_once(saved):
    with pytest.raises(AdapterError) as error:
        initial.find(config(saved, rank=8, alpha=8))
    assert error.value.faults[0] == "lora.rank: found 8; the adapter has 3"
    assert "lora.scaling=standard lora.alpha=12" in error.value.faults[1]


@pytest.mark.parametrize("changes", [{"num_layers": 2}, {"target_modules": ["q_proj"]}])
def test_other_projections_are_refused_with_its_own(saved, changes):
    model = tiny.build()
    lora.attach(model, config(saved, **changes))
    with pytest.raises(
        AdapterError, match=r"lora.num_layers=1 lora.target_modules=\[mlp.down"
    ) as e:
        initial.put(model, initial.find(config(saved)))
    assert e.value.faults


def test_the_digest_is_of_the_content(saved, tmp_path):
    first = initial.find(config(saved)).digest
    shutil.copytree(saved, tmp_path / "copy")
    assert initial.find(config(tmp_path / "copy")).digest == first
    arrays = {
        name: mx.array(array) for name, array in load_file(saved / "adapters.safetensors").items()
    }
    name = sorted(arrays)[0]
    lora_files.save(
        {**arrays, name: arrays[name] * 2},
        lora_files.read_settings(saved)[0],
        tmp_path / "copy",
        {},
    )
    assert initial.find(config(tmp_path / "copy")).digest != first


def test_one_that_is_not_there_is_a_mistake(tmp_path):
    with pytest.raises(AdapterError, match="not an adapter folder"):
        initial.find(config(tmp_path / "nowhere"))


BEGUN = ("lora.init_from=first/adapter", "hydra.run.dir=second")


@pytest.fixture
def trained(place):
    """A run in `first`, whose adapter others begin with."""
    assert main(job("hydra.run.dir=first")) == 0
    return place


def test_a_training_goes_on_from_where_another_one_ended(trained):
    """What it begins with is judged before it: that is where the first one ended."""
    assert main(job(*BEGUN)) == 0
    first, second = summary(trained / "first"), summary(trained / "second")
    assert second["val_loss_before"] == pytest.approx(first["val_loss_after"], rel=1e-5)
    assert second["val_loss_after"] < first["val_loss_after"]
    origin = json.loads((trained / "second" / "origin.json").read_text())["fingerprint"]
    assert (
        origin["model"]["adapter"]
        == initial.find(LoraConfig(rank=4, init_from=str(trained / "first"))).digest
    )
    assert "lora.init_from" not in origin["settings"]


def test_a_run_resumed_equals_the_one_never_stopped(trained):
    given = ("lora.init_from=first/adapter", "checkpoint.every=3", "optimizer.schedule=constant")
    assert main(job(*given, "hydra.run.dir=fourth")) == 0
    assert main(job(*given, "hydra.run.dir=third", "train.max_steps=3")) == 0
    assert main(job(*given, "hydra.run.dir=third", "train.resume=auto")) == 0
    third, fourth = (
        load_file(trained / name / "adapter" / "adapters.safetensors")
        for name in ("third", "fourth")
    )
    assert all((third[name] == fourth[name]).all() for name in fourth)


def test_a_resume_with_another_adapter_is_another_run(trained, capsys):
    assert main(job(*BEGUN, "train.max_steps=2", "checkpoint.every=1")) == 0
    shutil.copytree(trained / "first" / "adapter", trained / "elsewhere")
    more = ("hydra.run.dir=second", "train.resume=auto", "checkpoint.every=1")
    # The same content somewhere else is the same adapter.
    assert main(job("lora.init_from=elsewhere", "train.max_steps=3", *more)) == 0
    assert main(job("lora.init_from=second/adapter", "train.max_steps=4", *more)) == 2
    assert "model.adapter: was" in capsys.readouterr().err


def test_a_mistake_is_found_before_anything_is_written(trained, capsys):
    assert main(job("lora.init_from=first/adapter", "lora.rank=8", "hydra.run.dir=second")) == 2
    assert "lora.rank: found 8; the adapter has 4" in capsys.readouterr().err
    assert not (trained / "second").exists()
