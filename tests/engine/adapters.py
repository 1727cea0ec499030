"""A tiny model with adapters of several shapes in folders, and what each answers alone."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import LoraConfig
from tests.fakes import randomize
from tests.models import tiny

SHAPES = {
    "small": LoraConfig(rank=2, alpha=4),
    "large": LoraConfig(rank=7, alpha=70, num_layers=1),
    "attention": LoraConfig(rank=3, alpha=3, target_modules="attention"),
    "other": LoraConfig(rank=2, alpha=4),
}


def save(config, folder: Path, names=SHAPES) -> dict[str, Path]:
    """An adapter of each shape in a folder of its name."""
    found = {}
    for seed, name in enumerate(names):
        model = tiny.build(config)
        adapter = lora.attach(model, SHAPES[name])
        randomize(model, seed=seed, scale=0.3)
        found[name] = folder / name
        lora_files.save(lora.parameters(model), adapter, found[name], {})
    return found


def with_adapter(config, folder: Path | None) -> nn.Module:
    """The model alone with one adapter, as mlx-lm computes it."""
    model = tiny.build(config)
    if folder is not None:
        lora.load(model, folder)
    model.eval()
    mx.eval(model.parameters())
    return model


def greedy(model: nn.Module, prompt, count: int) -> list[int]:
    """Words by the whole text each time, without any cache."""
    tokens = [*prompt]
    for _ in range(count):
        tokens.append(int(model(mx.array([tokens]))[0, -1].argmax().item()))
    return tokens[len(prompt) :]
