"""Validation loss of adapters, all by one judge: plain padded rows, none of the shortcuts.

    python benchmarks/speed/judge.py MODEL VALID.jsonl RANK SCALE LAYERS ADAPTER_FOLDER...

Prints JSON: folder -> mean over the answers' tokens up to their end-of-turn token, in nats;
"base" is the model without an adapter.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import mlx.nn as nn  # noqa: E402
import numpy as np  # noqa: E402

from mlx_ft import lora  # noqa: E402
from mlx_ft.config.schema import LoraConfig, ModelConfig  # noqa: E402
from mlx_ft.models.load import load, locate  # noqa: E402

ROWS = 16  # at once


def encode(path: Path, tokenizer: Any) -> list[tuple[list[int], int]]:
    """(tokens up to the end of the answer, how many of them are prompt), the shortest first."""
    rows = []
    for line in path.read_text().splitlines():
        turns = json.loads(line)["messages"]
        prompt = tokenizer.apply_chat_template(
            turns[:-1], add_generation_prompt=True, return_dict=False
        )
        whole = tokenizer.apply_chat_template(turns, return_dict=False)
        end = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        rows.append((whole[:end], len(prompt)))
    return sorted(rows, key=lambda row: len(row[0]))


def loss(model: Any, rows: list[tuple[list[int], int]]) -> float:
    """Mean over all answer tokens."""
    total, count = 0.0, 0
    for start in range(0, len(rows), ROWS):
        part = rows[start : start + ROWS]
        ids = np.zeros((len(part), max(len(tokens) for tokens, _ in part)), np.int32)
        mask = np.zeros_like(ids)
        for b, (tokens, prompt) in enumerate(part):
            ids[b, : len(tokens)] = tokens
            mask[b, prompt : len(tokens)] = 1
        array = mx.array(ids)
        hidden = model.model(array[:, :-1])
        places = mx.array(np.flatnonzero(mask[:, 1:]))
        answers = hidden.reshape(-1, hidden.shape[-1])[places]
        logits = model.model.embed_tokens.as_linear(answers)
        labels = array[:, 1:].reshape(-1)[places]
        total += float(nn.losses.cross_entropy(logits, labels, reduction="sum"))
        count += len(places)
    return total / count


def main(model: str, valid: str, rank: str, scale: str, layers: str, *adapters: str) -> None:
    config = ModelConfig(path=model)
    located = locate(config, runtime.default_cache_dir())
    loaded = load(located, config, compute_dtype="float32", dequantize=True)
    rows = encode(Path(valid), loaded.tokenizer)
    found = {"base": loss(loaded.model, rows)}
    shape = LoraConfig(rank=int(rank), alpha=float(scale) * int(rank), num_layers=int(layers))
    lora.attach(loaded.model, shape)
    expected = {name: array.shape for name, array in lora.parameters(loaded.model).items()}
    for folder in adapters:
        weights: Any = mx.load(str(Path(folder) / "adapters.safetensors"))
        if {name: array.shape for name, array in weights.items()} != expected:
            sys.exit(f"{folder}: its adapter is not of the shape that all should have")
        loaded.model.load_weights(list(weights.items()), strict=False)
        loaded.model.eval()
        found[folder] = loss(loaded.model, rows)
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
