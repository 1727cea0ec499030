"""Every row of a batch goes through its own adapter."""

import json

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import lora, lora_files
from mlx_ft.engine.slots import Routed, Slots
from mlx_ft.errors import AdapterError
from tests.engine.adapters import SHAPES, save, with_adapter
from tests.fakes import relative
from tests.families import FAMILIES
from tests.models import tiny

TOKENS = [3, 1, 4, 1, 5, 9, 2, 6]


def answers(slots, names):
    slots.take(names)
    return np.array(slots.model(mx.array([TOKENS] * len(names))))


@pytest.fixture
def slots():
    model = tiny.build()
    model.eval()
    return Slots(model)


@pytest.mark.parametrize("family", ["llama", "mistral", "qwen3", "gemma3_text", "phi3", "gpt2"])
def test_rows_of_one_batch_are_those_of_each_adapter_alone(family, tmp_path):
    config = FAMILIES[family].config
    folders = save(config, tmp_path, ["small", "large", "other"])
    model = tiny.build(config)
    model.eval()
    slots = Slots(model)
    names = [None, "large", "small", "large", "other"]
    for name in {name for name in names if name}:
        slots.load(name, folders[name])
    found = answers(slots, names)
    for row, name in zip(found, names, strict=True):
        alone = with_adapter(config, name and folders[name])
        expected = np.array(alone(mx.array([TOKENS])))[0]
        assert relative(row, expected) < 1e-5
        assert relative(answers(slots, [name])[0], expected) < 1e-5
    distinct = {row.tobytes() for row in found}
    assert len(distinct) == 4


def test_what_is_taken_off_leaves_the_others_and_the_base_as_they_were(slots, tmp_path):
    folders = save(None, tmp_path)
    base = answers(slots, [None])
    for name in SHAPES:
        slots.load(name, folders[name])
    before = answers(slots, ["small", "attention", None])
    for name in ("large", "other"):
        slots.unload(name)
        slots.unload(name)  # nothing
    assert relative(answers(slots, ["small", "attention", None]), before) < 1e-6
    slots.load("again", folders["other"])  # in a slot that was free
    expected = np.array(with_adapter(None, folders["other"])(mx.array([TOKENS])))[0]
    assert relative(answers(slots, ["again", "small"])[0], expected) < 1e-5
    for name in slots.names:
        slots.unload(name)
    assert slots.nbytes == 0
    assert np.array_equal(answers(slots, [None]), base)  # to the bit
    assert np.array_equal(answers(slots, [None]), np.array(tiny.build()(mx.array([TOKENS]))))


def test_a_name_gets_another_adapter(slots, tmp_path):
    folders = save(None, tmp_path)
    slots.load("x", folders["small"])
    slots.load("x", folders["large"])
    expected = np.array(with_adapter(None, folders["large"])(mx.array([TOKENS])))[0]
    assert relative(answers(slots, ["x"])[0], expected) < 1e-5
    assert slots.names == ("x",)


def test_what_does_not_fit_leaves_everything_as_it_was(slots, tmp_path):
    folders = save(None, tmp_path)
    slots.load("x", folders["small"])
    before = answers(slots, ["x", None])
    wrong = save(FAMILIES["phi3"].config, tmp_path / "phi", ["small"])["small"]
    for folder in (wrong, tmp_path / "nowhere"):
        for name in ("x", "y"):
            with pytest.raises(AdapterError):
                slots.load(name, folder)
    assert slots.names == ("x",)
    assert np.array_equal(answers(slots, ["x", None]), before)


def test_a_load_that_fails_late_leaves_nothing(slots, tmp_path, monkeypatch):
    folders = save(None, tmp_path)
    slots.load("x", folders["small"])
    before, nbytes = answers(slots, ["x", None]), slots.nbytes
    with monkeypatch.context() as patch:
        patch.setattr(Routed, "grow", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            slots.load("y", folders["large"])
    assert slots.names == ("x",)
    assert slots.nbytes == nbytes
    assert np.array_equal(answers(slots, ["x", None]), before)


def test_adapters_of_experts_are_refused(tmp_path):
    config = FAMILIES["qwen3_moe"].config
    folder = save(config, tmp_path, ["small"])["small"]
    model = tiny.build(config)
    slots = Slots(model)
    with pytest.raises(AdapterError, match="experts"):
        slots.load("x", folder)
    assert slots.names == ()


def test_a_base_in_four_bits(tmp_path):
    folder = save(None, tmp_path, ["small"])["small"]
    ours, alone = tiny.build(), tiny.build()
    for model in (ours, alone):
        model.eval()
        nn.quantize(model, group_size=32, bits=4)
    slots = Slots(ours)
    slots.load("x", folder)
    lora.load(alone, folder)
    expected = np.array(alone(mx.array([TOKENS])))[0]
    assert relative(answers(slots, ["x", None])[0], expected) < 1e-5


def test_mlx_lms_ways_of_saying_all(slots, tmp_path):
    folder = save(None, tmp_path, ["other"])["other"]
    slots.load("x", folder)
    expected = answers(slots, ["x"])
    settings = json.loads((folder / lora_files.SETTINGS).read_text())
    settings["num_layers"] = -1
    del settings["lora_parameters"]["keys"]
    (folder / lora_files.SETTINGS).write_text(json.dumps(settings))
    slots.load("y", folder)
    assert np.array_equal(answers(slots, ["y"]), expected)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_none_are_refused_by_name(slots, tmp_path, value):
    folder = save(None, tmp_path, ["small"])["small"]
    arrays = mx.load(str(folder / lora_files.WEIGHTS))
    name = sorted(arrays)[-1]
    arrays[name][-1, -1] = value
    mx.save_safetensors(str(folder / lora_files.WEIGHTS), arrays)
    with pytest.raises(AdapterError, match="does not fit this model") as error:
        slots.load("x", folder)
    assert f"{name}: holds NaN or infinity" in str(error.value)
