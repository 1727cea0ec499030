"""The estimate against MLX's own peaks, and the advice made from it.

`benchmarks/memory.py` measures it on models with real widths; docs/memory.md has its table.
"""

import gc
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_map

from mlx_ft import lora, optim, runtime
from mlx_ft.config.schema import Config, LoraConfig, MemoryProfileConfig, OptimizerConfig
from mlx_ft.data.arrays import packed, padded
from mlx_ft.data.batch import collate
from mlx_ft.losses import CHUNK
from mlx_ft.memory_estimate import Dimensions, Estimate, estimate
from mlx_ft.memory_knobs import advice
from mlx_ft.models.architecture import weight_bytes
from mlx_ft.models.checkpointing import checkpoint_layers, count
from mlx_ft.models.forward import forward_of
from mlx_ft.models.load import total_parameters
from mlx_ft.models.segments import Segments
from mlx_ft.runtime import GIB
from mlx_ft.step import summed_gradient
from tests.models import tiny

WIDE = {
    **tiny.LLAMA,
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
    "vocab_size": 4096,
    "max_position_embeddings": 1024,
}
MISTRAL = Estimate(
    Dimensions(layers=32, hidden=4096, intermediate=14336, heads=32, vocabulary=32768),
    parameters=7_248_000_000,
    weight_bits=16,
    trainable=42_000_000,
    adapted=32,
    rank=16,
    moments=2,
    float_bytes=2,
    checkpointed=0,
)


def resolved(dtype="float32", checkpointed=False, optimizer="adamw"):
    profile = MemoryProfileConfig(compute_dtype=dtype, grad_checkpoint=checkpointed)
    return Config(
        memory_profile=profile,
        optimizer=OptimizerConfig(name=optimizer),
        lora=LoraConfig(rank=8),
    )


class Row:
    """An example whose last `targets` tokens are to be predicted."""

    def __init__(self, length, targets):
        self.tokens = np.full(length + 1, 7, np.int32)
        self.targets = np.arange(length + 1) > length - targets


LENGTHS = [(128, 128, 128, 128), (512,), (300, 200, 100, 40)]


@pytest.mark.parametrize(
    ("checkpointed", "segments"),
    [
        (False, False), (True, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [(False, True), (2, False), (2, True), (True, False)]
        ),
    ],
)  # fmt: skip
def test_the_estimate_is_near_mlxs_peak(checkpointed, segments, monkeypatch):
    # Our own exponentials take a few more MB, whatever the size of the model.
    monkeypatch.setattr(runtime, "scalar_exponentials", lambda: False)
    model = tiny.build(WIDE)
    model.freeze()
    parameters = total_parameters(model)
    adapter = lora.attach(model, LoraConfig(rank=8))
    checkpoint_layers(model, count(checkpointed, adapter.num_layers))
    gradient = summed_gradient(model, forward_of(model), 0.0)
    model.train()
    job = estimate(
        resolved(checkpointed=checkpointed),
        Dimensions.read(WIDE, 4, parameters),
        parameters=parameters,
        weights=weight_bytes(model),
        trainable=lora.count(model),
        adapted=adapter.num_layers,
    )
    for lengths in LENGTHS:
        rows = [Row(length, length // 2) for length in lengths]
        batch = collate(rows, np.arange(len(rows)), 0)
        arrays = packed(batch, share=False) if segments else padded(batch)
        cache = Segments(arrays.layout) if segments else None
        gc.collect()  # another test's arrays must not go while this one measures
        mx.eval(arrays.tensors, model.parameters())
        mx.reset_peak_memory()
        before = mx.get_active_memory()
        result = gradient(*arrays.tensors, cache=cache)
        mx.eval(result)
        need = mx.get_peak_memory() - before
        del result
        columns = lengths if segments else [batch.inputs.shape[1]] * len(rows)
        assert 0.85 < job.needs(columns, int(batch.mask.sum())).peak / need < 1.2


@pytest.mark.parametrize("name", ["adamw", "sgd", "lion"])
def test_what_is_held_and_what_the_update_takes(name):
    model = tiny.build(WIDE)
    model.freeze()
    parameters = total_parameters(model)
    lora.attach(model, LoraConfig(rank=64))
    config = resolved(optimizer=name)
    job = estimate(
        config,
        Dimensions.read(WIDE, 4, parameters),
        parameters=parameters,
        weights=weight_bytes(model),
        trainable=lora.count(model),
        adapted=4,
    )
    gc.collect()
    mx.eval(model.parameters())
    before = mx.get_active_memory()
    optimizer = optim.build_optimizer(config.optimizer)
    optimizer.init(model.trainable_parameters())
    sums = tree_map(lambda array: array + 1, model.trainable_parameters())
    optimizer.update(model, sums)  # until then the moments are one shared zero
    mx.eval(model.parameters(), optimizer.state, sums)
    adapter = 4 * lora.count(model)
    held = 4 * parameters + 2 * adapter + mx.get_active_memory() - before  # parameters, best copy
    assert job.held() == pytest.approx(held, rel=0.02)
    assert job.step(1, 8, 1) == adapter * (1.25 + job.moments + 3)  # one bucket


def test_dimensions_by_the_names_of_other_families():
    gpt2 = {"n_embd": 768, "n_head": 12, "vocab_size": 50257}
    assert Dimensions.read(gpt2, 12, 10**8) == Dimensions(12, 768, 3072, 12, 50257, 768, 768)
    nested = {"vocab_size": 5, "text_config": {"hidden_size": 64, "intermediate_size": 96}}
    assert Dimensions.read(nested, 2, 10**5) == Dimensions(2, 64, 96, 1, 5, 64, 64)
    experts = {
        "hidden_size": 2048,
        "intermediate_size": 6144,
        "moe_intermediate_size": 768,
        "num_experts_per_tok": 8,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "vocab_size": 151936,
    }
    assert Dimensions.read(experts, 48, 3 * 10**10) == Dimensions(
        48, 2048, 6144, 32, 151936, 4096, 512
    )


def test_dimensions_that_a_config_does_not_name_follow_from_the_size():
    found = Dimensions.read({}, 12, 12 * 12 * 768**2)
    assert found == Dimensions(12, 768, 3072, 12, 32_000, 768, 768)


def test_the_widths_of_keys_and_values_count():
    few = replace(MISTRAL, dimensions=replace(MISTRAL.dimensions, keys=1024))
    kept = [job.needs([1024], 64).kept for job in (MISTRAL, few)]
    assert kept[0] - kept[1] == 32 * 1024 * 2 * (4096 - 1024) * 2  # K and V in 16 bits


def test_checkpointed_layers_keep_their_input_alone():
    kept = replace(MISTRAL, checkpointed=32).needs([1024], 64).kept
    assert kept == 32 * 1024 * 4096 * 2


def test_rows_without_padding_need_less():
    padded = MISTRAL.needs([400, 400, 400], 300)
    assert MISTRAL.needs([400, 200, 50], 300).peak < 0.6 * padded.peak


def test_the_loss_stops_growing_with_its_chunks():
    losses = [
        MISTRAL.needs([1], targets).loss - MISTRAL.needs([1], 1).loss for targets in (512, 4096)
    ]
    assert losses[0] == 16 * 32768 * (512 - 1)  # 3 in float32, 2 in 16 bits
    more = MISTRAL.needs([1], 10**6).loss
    assert losses[1] < more == pytest.approx(16 * 2.35 * CHUNK, rel=0.01)


def test_logits_at_every_position_cost_what_they_are():
    sparse = MISTRAL.needs([256], 64).loss
    full = replace(MISTRAL, full_logits=True).needs([256], 64).loss
    assert full - sparse == 32768 * 4 * 256


def savings(lines):
    return {line.split(" ")[0].split("=")[0]: float(line.split()[-2]) for line in lines}


def test_advice_is_sorted_by_what_it_saves():
    lines = advice(MISTRAL, 2048, 500, device="metal")
    found = savings(lines)
    assert list(found.values()) == sorted(found.values(), reverse=True)
    assert {
        "memory_profile.grad_checkpoint",
        "memory_profile.max_seq_length",
        "lora.num_layers",
        "'model.quantize",
    } <= found.keys()
    assert "memory_profile.compute_dtype" not in found  # is bfloat16
    # 7.25e9 weights from 16 to 4.5 bits.
    assert found["'model.quantize"] == pytest.approx(7.248e9 * 11.5 / 8 / GIB, rel=0.05)
    assert "memory_profile.max_seq_length=1024" in "".join(lines)
    assert "lora.num_layers=16" in "".join(lines)


def test_advice_names_only_what_is_not_used_yet():
    small = replace(MISTRAL, checkpointed=1, weight_bits=4.5, adapted=1, rank=1, trainable=10**5)
    assert list(savings(advice(small, 2048, 500, device="metal"))) == [
        "memory_profile.max_seq_length"
    ]


def test_advice_on_the_cpu_says_what_is_slow():
    job = replace(MISTRAL, weight_bits=32, float_bytes=4)
    lines = advice(job, 512, 100, device="cpu")
    quantize = next(line for line in lines if "model.quantize" in line)
    assert "model.dequantize=false (tens of times slower on the CPU)" in quantize
    assert any("compute_dtype=bfloat16 (tens of times slower on the CPU)" in line for line in lines)
    lines = advice(job, 512, 100, device="cpu", packed=True)
    assert any(
        line.startswith("model.dequantize=false (tens of times slower on the CPU)")
        for line in lines
    )
    assert not any("model.quantize" in line for line in lines)


def test_advice_leaves_out_what_hardly_saves():
    def lines(trainable):
        job = replace(MISTRAL, checkpointed=32, weight_bits=4.5, trainable=trainable)
        return "".join(advice(job, 2048, 500, device="metal"))

    assert "lora.rank=8 (" in lines(42_000_000)
    assert "optimizer=lion (" in lines(42_000_000)
    assert "optimizer" not in lines(100_000)


def test_an_estimate_for_a_mac_counts_as_a_mac_does(monkeypatch):
    """Wherever it is made: the exponentials of Linux keep less."""
    monkeypatch.setattr(runtime, "scalar_exponentials", lambda: True)

    def peak(profile):
        config = resolved()
        config = replace(config, memory_profile=replace(config.memory_profile, name=profile))
        size = Dimensions.read(WIDE, 4, 1000)
        job = estimate(config, size, parameters=1000, weights=4000, trainable=100, adapted=4)
        return job.needs([512], 512).peak

    here = peak("cpu")
    assert peak("m4_24gb") > 1.1 * here
    monkeypatch.setattr(runtime, "scalar_exponentials", lambda: False)
    assert peak("cpu") == peak("m4_24gb") > here


def test_offloading_saves_no_more_than_a_new_row_leaves():
    """A new row needs all of the base at once, whatever a step does without."""
    job = replace(MISTRAL, weight_bits=4.5, checkpointed=1, adapted=1, rank=1, trainable=10**5,
                  below=int(0.9 * MISTRAL.parameters))  # fmt: skip
    row = job.needs([512], 256)
    after = replace(job, offloaded=True)
    told = savings(advice(job, 512, 250, device="metal"))["train.offload_frozen"]
    before, whole = job.peak(row, summed=True), job.held()
    assert after.peak(row, summed=True) == whole  # not the step, which has a tenth of the base
    assert told == pytest.approx((before - whole) / GIB, rel=0.1)
    # What the step takes does not matter any more: shorter rows save nothing.
    assert "max_seq_length" not in "".join(advice(after, 512, 250, device="metal"))
