"""A training step, a save, a load, a generation on a tiny random model of each family."""

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest

from mlx_ft import generation, lora, lora_files
from mlx_ft.config.schema import LoraConfig, OptimizerConfig
from mlx_ft.models import segments
from mlx_ft.models.quantize import quantize
from mlx_ft.models.read import import_mlx_lm, read_tokenizer
from tests.fakes import batches, logits, randomize, rows, same, snapshot, state, train
from tests.families import FAMILIES, Family, trainable
from tests.models import tiny

import_mlx_lm()
from mlx_lm.tokenizer_utils import TokenizerWrapper  # noqa: E402

RANK = 3
QUANTIZED = ("llama", "qwen3_moe")
BASES = [(name, False) for name in FAMILIES] + [(name, True) for name in QUANTIZED]


def base(family: Family, quantized: bool) -> nn.Module:
    model = tiny.build(family.config)
    if quantized:
        quantize(model, {"bits": 4, "group_size": 32})
    segments.install(model)  # as loading does
    model.eval()
    return model


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> TokenizerWrapper:
    folder = tmp_path_factory.mktemp("tokenizer")
    tiny.save_tokenizer(folder)
    return read_tokenizer(folder, tiny.LLAMA["eos_token_id"])


@pytest.mark.parametrize("name", FAMILIES)
def test_trainable_counts(name: str) -> None:
    family = FAMILIES[name]
    attention = len(family.mlp) * trainable(family.attention, RANK)
    mlp = sum(trainable(layer, RANK) for layer in family.mlp)
    last = trainable(family.attention, RANK) + trainable(family.mlp[-1], RANK)
    expected = {
        ("attention", "all"): attention,
        ("mlp", "all"): mlp,
        ("all-linear", "all"): attention + mlp,
        ("all-linear", 1): last,
    }
    for (targets, layers), count in expected.items():
        model = tiny.build(family.config)
        lora.attach(model, LoraConfig(rank=RANK, target_modules=targets, num_layers=layers))
        assert lora.count(model) == count, (targets, layers)


@pytest.mark.parametrize(("name", "quantized"), BASES)
def test_step_save_load_detach(name: str, quantized: bool, tmp_path: Path) -> None:
    family = FAMILIES[name]
    bare = base(family, quantized)
    base_logits = logits(bare)
    run = state(adapter=LoraConfig(rank=RANK), model=bare)
    adapter = lora_files.Adapter(RANK, 32 / RANK, 0.0, 2, _keys(bare))
    assert np.array_equal(logits(run.model), base_logits)  # B = 0
    frozen = base_arrays(run.model)
    start = snapshot(run.adapter())

    train(run, batches(rows(4)), 2, optimizer=OptimizerConfig(learning_rate=1e-2))

    assert same(base_arrays(run.model), frozen)
    moved = snapshot(run.adapter())
    assert all((moved[n] != start[n]).any() for n in moved if n.endswith("lora_b"))
    trained = logits(run.model)
    assert np.abs(trained - base_logits).max() > 1e-3

    lora_files.save(run.adapter(), adapter, tmp_path / "adapter", {"run": name})
    copy = base(family, quantized)
    assert lora.load(copy, tmp_path / "adapter") == adapter
    assert np.array_equal(logits(copy), trained)

    lora.detach(copy)
    assert np.array_equal(logits(copy), base_logits)
    assert same(snapshot(copy.parameters()), snapshot(base(family, quantized).parameters()))
    assert lora.count(copy) == 0


def base_arrays(model: nn.Module) -> dict[str, np.ndarray]:
    return {n: a for n, a in snapshot(model.parameters()).items() if "lora_" not in n}


def _keys(model: nn.Module) -> tuple[str, ...]:
    """Paths within a layer of everything adapted, read off the parameters' names."""
    named = {
        path.removesuffix(".lora_a")
        for layer in model.layers
        for path in snapshot(layer.trainable_parameters())
        if path.endswith(".lora_a")
    }
    return tuple(sorted(named))


def greedy(model: nn.Module, prompt: list[int], count: int, ends: set[int]) -> list[int]:
    """The most likely continuation, every token from a full pass without a cache."""
    tokens = list(prompt)
    while len(tokens) < len(prompt) + count:
        token = int(model(mx.array([tokens]))[0, -1].argmax().item())
        if token in ends:
            break
        tokens.append(token)
    return tokens[len(prompt) :]


@pytest.mark.parametrize("name", FAMILIES)
def test_generates_alone_and_in_a_batch(name: str, tokenizer: TokenizerWrapper) -> None:
    """As a full pass for each token does; rows of unequal lengths, beyond a sliding window."""
    model = tiny.build(FAMILIES[name].config, seed=1)
    lora.attach(model, LoraConfig(rank=RANK))
    randomize(model)
    model.eval()
    prompts = [tokenizer.encode(text) for text in ("Hello", "Hi", "A longer question?")]
    ends = set(tokenizer.eos_token_ids)
    expected = [tokenizer.decode(greedy(model, prompt, 6, ends)).strip() for prompt in prompts]
    assert any(expected)
    for prompt, answer in zip(prompts, expected, strict=True):
        pieces = list(generation.stream(model, tokenizer, prompt, max_tokens=6))
        assert "".join(pieces).strip() == answer
    assert list(generation.batch(model, tokenizer, prompts, max_tokens=6, batch_size=2)) == expected
