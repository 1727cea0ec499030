"""Adapters: what is adapted and how strongly; files that mlx-lm loads as they are."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import LoraConfig, ModelConfig, OptimizerConfig
from mlx_ft.errors import AdapterError, ConfigError
from mlx_ft.models.load import load, locate
from mlx_ft.models.quantize import cast, dequantize, quantize
from mlx_ft.models.read import import_mlx_lm
from mlx_ft.state import TrainState
from tests.fakes import batches, logits, randomize, rows, same, snapshot, state, train
from tests.families import FAMILIES
from tests.models import tiny

import_mlx_lm()
import mlx_lm  # noqa: E402

SMALL = LoraConfig(rank=4, alpha=8, target_modules=["q_proj", "down_proj"])


def adapted(config: LoraConfig = SMALL, **changes: Any) -> tuple[nn.Module, lora_files.Adapter]:
    model = tiny.build({**tiny.LLAMA, **changes})
    adapter = lora.attach(model, config)
    randomize(model)
    return model, adapter


def test_an_adapted_projection_is_w_x_plus_s_b_a_x() -> None:
    model, _ = adapted(replace(SMALL, alpha=6.0))
    layer = model.layers[0].self_attn.q_proj
    x = np.random.RandomState(0).standard_normal((5, 64)).astype(np.float32)
    w, a, b = (np.array(m, np.float64) for m in (layer.linear.weight, layer.lora_a, layer.lora_b))
    model.eval()
    expected = x @ w.T + 6.0 / 4 * (x @ a @ b)
    np.testing.assert_allclose(np.array(layer(mx.array(x))), expected, atol=1e-4)


def test_scale() -> None:
    assert lora.scale(LoraConfig(rank=16, alpha=32)) == 2.0
    assert lora.scale(LoraConfig(rank=16, alpha=32, scaling="rslora")) == 8.0
    assert lora.scale(LoraConfig(rank=10, alpha=3, scaling="rslora")) == 3 / math.sqrt(10)


@pytest.mark.parametrize(
    ("targets", "count", "expected"),
    [
        ("q_proj", "all", {(0, "self_attn.q_proj"), (1, "self_attn.q_proj")}),
        (["q_proj", "mlp.up_proj"], 1, {(1, "self_attn.q_proj"), (1, "mlp.up_proj")}),
        ("self_attn.o_proj", 1, {(1, "self_attn.o_proj")}),
        (
            ["attention", "up_proj"],
            1,
            {(1, f"self_attn.{p}_proj") for p in "qkvo"} | {(1, "mlp.up_proj")},
        ),
    ],
)
def test_targets_and_last_layers(
    targets: str | list[str], count: Any, expected: set[tuple[int, str]]
) -> None:
    model = tiny.build()
    adapter = lora.attach(model, LoraConfig(rank=2, target_modules=targets, num_layers=count))
    found = {name.removesuffix(".lora_a") for name in lora.parameters(model) if "lora_a" in name}
    assert found == {f"model.layers.{layer}.{path}" for layer, path in expected}
    assert set(adapter.keys) == {path for _, path in expected}
    assert adapter.num_layers == (2 if count == "all" else count)


def test_targets_that_match_nothing_are_all_named_with_what_there_is() -> None:
    model = tiny.build()
    config = LoraConfig(target_modules=["q_proj", "qproj", "c_attn"])
    with pytest.raises(ConfigError, match="'qproj', 'c_attn' matches no projection") as error:
        lora.attach(model, config)
    assert "down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj" in str(error.value)
    assert "lora.target_modules" in str(error.value)
    assert not any("lora" in name for name, _ in tree_flatten(model.parameters()))


def test_more_layers_than_there_are_means_all_and_is_said(caplog) -> None:
    adapter = lora.attach(tiny.build(), LoraConfig(num_layers=3))
    assert adapter.num_layers == 2
    assert "lora.num_layers is 3; this model has 2" in caplog.text


def test_a_layer_without_any_target_is_left_alone() -> None:
    """A mixture of experts whose first layer is dense."""
    model = tiny.build(FAMILIES["qwen3_moe"].config)
    lora.attach(model, LoraConfig(rank=2, target_modules=["switch_mlp.gate_proj"]))
    assert set(lora.parameters(model)) == {
        f"model.layers.1.mlp.switch_mlp.gate_proj.lora_{ab}" for ab in "ab"
    }
    lora.detach(model)
    assert lora.count(model) == 0


def test_attaching_twice_is_refused() -> None:
    """A second adapter would sit inside the first one, which stays frozen: a silent mix."""
    model, _ = adapted()
    before = snapshot(model.parameters())
    with pytest.raises(AdapterError, match="already"):
        lora.attach(model, SMALL)
    assert same(snapshot(model.parameters()), before)


def test_detaching_a_bare_model_does_nothing() -> None:
    model = tiny.build()
    before = snapshot(model.parameters())
    lora.detach(model)
    assert same(snapshot(model.parameters()), before)


def test_files_are_those_of_mlx_lm(tmp_path: Path) -> None:
    model, adapter = adapted(replace(SMALL, dropout=0.1, num_layers=1))
    lora_files.save(lora.parameters(model), adapter, tmp_path, {"seed": 7})
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        lora_files.SETTINGS,
        lora_files.WEIGHTS,
    ]
    settings = json.loads((tmp_path / lora_files.SETTINGS).read_text())
    assert settings == {
        "fine_tune_type": "lora",
        "num_layers": 1,
        "lora_parameters": {
            "rank": 4,
            "scale": 2.0,
            "dropout": 0.1,
            "keys": ["mlp.down_proj", "self_attn.q_proj"],
        },
        "mlx_ft": {"seed": 7},
    }
    assert lora_files.read_settings(tmp_path) == (adapter, settings)
    shapes = {
        name: array.shape for name, array in mx.load(str(tmp_path / lora_files.WEIGHTS)).items()
    }
    assert shapes == {
        "model.layers.1.self_attn.q_proj.lora_a": (64, 4),
        "model.layers.1.self_attn.q_proj.lora_b": (4, 64),
        "model.layers.1.mlp.down_proj.lora_a": (96, 4),
        "model.layers.1.mlp.down_proj.lora_b": (4, 64),
    }


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, np.ndarray]:
    """A 4-bit float16 model folder, an adapter trained on it, and our float32 logits."""
    folder = tmp_path_factory.mktemp("saved")
    model = tiny.build()
    settings = quantize(model, {"bits": 4, "group_size": 32})[0]
    cast(model, mx.float16)
    weights = dict(tree_flatten(model.parameters()))
    config = {**tiny.LLAMA, "quantization": settings, "torch_dtype": "float16"}
    path, adapter_path = folder / "model", folder / "adapter"
    path.mkdir()
    mx.save_safetensors(str(path / "model.safetensors"), weights, metadata={"format": "mlx"})
    (path / "config.json").write_text(json.dumps(config))
    tiny.save_tokenizer(path)

    loaded = load(
        locate(ModelConfig(path=str(path)), folder),
        ModelConfig(path=str(path)),
        compute_dtype="float32",
        dequantize=True,
    )
    adapter = lora_files.Adapter(4, 2.0, 0.0, 2, ("mlp.down_proj", "self_attn.q_proj"))
    run: TrainState = state(adapter=SMALL, model=loaded.model)
    train(run, batches(rows(4)), 2, optimizer=OptimizerConfig(learning_rate=1e-2))
    lora_files.save(run.adapter(), adapter, adapter_path, {})
    return path, adapter_path, logits(run.model)


def test_mlx_lm_gives_our_logits(trained: tuple[Path, Path, np.ndarray]) -> None:
    path, adapter_path, ours = trained
    model, _ = mlx_lm.load(str(path), adapter_path=str(adapter_path))
    dequantize(model)
    cast(model, mx.float32)
    assert np.abs(logits(model) - ours).max() < 1e-5
    without, _ = mlx_lm.load(str(path))
    assert np.abs(logits(without) - ours).max() > 0.05  # the adapter has its effect


def test_mlx_lm_as_it_comes_is_close(trained: tuple[Path, Path, np.ndarray]) -> None:
    """4 bits and float16: the same weights, rounded activations."""
    path, adapter_path, ours = trained
    model, _ = mlx_lm.load(str(path), adapter_path=str(adapter_path))
    difference = np.abs(logits(model) - ours).max()
    print(f"\nas mlx-lm loads it: largest difference {difference:.1e}, {np.abs(ours).max():.1f}")
    assert 0 < difference < 0.05


def test_an_adapter_by_mlx_lm_loads_here(tmp_path: Path) -> None:
    """Without `keys`, its default: every projection of the layers, `num_layers` 0 or less: all."""
    from mlx_lm.tuner.utils import linear_to_lora_layers

    model = tiny.build()
    model.freeze()
    parameters = {"rank": 2, "scale": 20.0, "dropout": 0.0}
    linear_to_lora_layers(model, 2, parameters)
    randomize(model)
    weights = dict(tree_flatten(model.trainable_parameters()))
    mx.save_safetensors(str(tmp_path / lora_files.WEIGHTS), weights)
    (tmp_path / lora_files.SETTINGS).write_text(
        json.dumps({"fine_tune_type": "lora", "num_layers": -1, "lora_parameters": parameters})
    )
    expected, copy = logits(model), tiny.build()
    lora.load(copy, tmp_path)
    assert np.array_equal(logits(copy), expected)


def test_every_misfit_is_listed_and_the_model_stays_bare(tmp_path: Path) -> None:
    model, adapter = adapted()
    weights = lora.parameters(model)
    names = sorted(weights)
    weights[names[0]] = mx.zeros((3, 3))
    weights[names[1]] = mx.full(weights[names[1]].shape, math.nan)
    del weights[names[2]]
    weights["model.layers.9.self_attn.q_proj.lora_a"] = mx.zeros((64, 4))
    lora_files.save(weights, adapter, tmp_path, {})
    bare = tiny.build()
    before = snapshot(bare.parameters())
    with pytest.raises(AdapterError, match="does not fit") as error:
        lora.load(bare, tmp_path)
    assert sorted(error.value.faults) == sorted(
        [
            f"{names[0]}: shape (3, 3), expected {lora.parameters(model)[names[0]].shape}",
            f"{names[1]}: holds NaN or infinity",
            f"{names[2]}: missing",
            "model.layers.9.self_attn.q_proj.lora_a: not part of this model",
        ]
    )
    assert same(snapshot(bare.parameters()), before)


def test_an_adapter_of_a_deeper_model_is_refused(tmp_path: Path) -> None:
    model, adapter = adapted(num_hidden_layers=4)
    lora_files.save(lora.parameters(model), adapter, tmp_path, {})
    bare = tiny.build()
    with pytest.raises(AdapterError, match="does not fit") as error:
        lora.load(bare, tmp_path)
    assert any("model.layers.3" in fault for fault in error.value.faults)
    assert lora.count(bare) == 0


@pytest.mark.parametrize(
    ("settings", "weights", "message"),
    [
        (None, b"", "adapter_config.json is missing"),
        ("{}", None, "adapters.safetensors is missing"),
        ("{", b"", "is not a LoRA description"),
        ("[]", b"", "is not a LoRA description"),
        ('{"num_layers": 1, "lora_parameters": {"rank": "x"}}', b"", "is not a LoRA description"),
    ],
)
def test_broken_folders(
    settings: str | None, weights: bytes | None, message: str, tmp_path: Path
) -> None:
    if settings is not None:
        (tmp_path / lora_files.SETTINGS).write_text(settings)
    if weights is not None:
        (tmp_path / lora_files.WEIGHTS).write_bytes(weights)
    with pytest.raises(AdapterError, match=message):
        lora.load(tiny.build(), tmp_path)


GOOD = {"rank": 4, "scale": 2.0, "dropout": 0.0}


@pytest.mark.parametrize(
    ("changes", "faults"),
    [
        ({"rank": math.inf}, ["rank: found inf; expected a whole number from 1 to 4096"]),
        ({"rank": -1}, ["rank: found -1"]),
        ({"rank": 0.5, "scale": math.nan}, ["rank: found 0.5", "scale: found nan"]),
        ({"rank": True, "scale": "2"}, ["rank: found True", "scale: found '2'"]),
        ({"scale": 10**400}, ["scale: found 1000"]),
        ({"dropout": 1.0}, ["dropout: found 1.0; expected at least 0 and less than 1"]),
        ({"dropout": -0.1, "rank": 4097}, ["rank: found 4097", "dropout: found -0.1"]),
    ],
)
def test_numbers_that_no_adapter_has_are_all_named(tmp_path: Path, changes, faults) -> None:
    (tmp_path / lora_files.WEIGHTS).write_bytes(b"")
    file = tmp_path / lora_files.SETTINGS
    file.write_text(json.dumps({"num_layers": 1, "lora_parameters": GOOD}))
    lora_files.read_settings(tmp_path)
    wrong = {"num_layers": math.inf, "lora_parameters": GOOD | changes}
    file.write_text(json.dumps(wrong))
    with pytest.raises(AdapterError, match="is not a LoRA description") as error:
        lora_files.read_settings(tmp_path)
    expected = [*faults, "num_layers: found inf"]
    assert [
        line[: len(start)] for line, start in zip(error.value.faults, expected, strict=True)
    ] == expected


def test_settings_nested_without_end(tmp_path: Path) -> None:
    (tmp_path / lora_files.WEIGHTS).write_bytes(b"")
    (tmp_path / lora_files.SETTINGS).write_text("[" * 200_000)
    with pytest.raises(AdapterError, match="RecursionError"):
        lora_files.read_settings(tmp_path)


def test_truncated_weights(tmp_path: Path) -> None:
    model, adapter = adapted()
    lora_files.save(lora.parameters(model), adapter, tmp_path, {})
    file = tmp_path / lora_files.WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(AdapterError, match="cannot be read"):
        lora.load(tiny.build(), tmp_path)


def test_a_view_is_saved_as_it_is_seen(tmp_path):
    """NumPy keeps an array's strides, and safetensors writes bytes in the order they lie."""
    array = mx.arange(6).reshape(2, 3).astype(mx.float32).T
    path = tmp_path / "a.safetensors"
    path.write_bytes(lora_files.to_bytes({"a": array}))
    assert mx.load(str(path))["a"].tolist() == array.tolist()
