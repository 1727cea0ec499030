"""Logits only where they are wanted: the language-model head is the widest product of a step.

Half of a small model's time goes into logits for prompt tokens that carry no loss. Where the
model is `head(backbone(tokens))`, the head runs on the chosen positions only.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

LogitsAt = Callable[[mx.array, mx.array], mx.array]


def logits_at(model: nn.Module) -> tuple[LogitsAt, bool]:
    """A function (tokens (B, T), positions (N,)) -> logits (N, V), and whether it saves work.

    positions index the flattened B * T. The split into backbone and head is used only if it
    reproduces the model's own logits on a probe; models that scale or cap their logits keep
    their own path. Leaves the model in evaluation mode.
    """

    def full(tokens: mx.array, positions: mx.array) -> mx.array:
        logits: mx.array = model(tokens)
        return logits.reshape(-1, logits.shape[-1])[positions]

    parts = _split(model)
    if parts is None:
        return full, False
    backbone, head = parts

    def at_positions(tokens: mx.array, positions: mx.array) -> mx.array:
        hidden_states = backbone(tokens, cache=None)  # Phi's has no default
        return head(hidden_states.reshape(-1, hidden_states.shape[-1])[positions])

    model.eval()  # dropout would make the probe's two answers differ
    return (at_positions, True) if _same(full, at_positions) else (full, False)


def _split(model: Any) -> tuple[Any, Callable[[mx.array], mx.array]] | None:
    owner = getattr(model, "language_model", model)
    backbone = getattr(owner, "model", None) or getattr(owner, "transformer", None)
    if not isinstance(backbone, nn.Module):
        return None
    if isinstance(head := getattr(owner, "lm_head", None), nn.Module):
        return backbone, head
    for name in ("embed_tokens", "wte"):
        embedding: Any = getattr(backbone, name, None)
        if hasattr(embedding, "as_linear"):
            return backbone, embedding.as_linear
    return None


def _same(full: LogitsAt, split: LogitsAt) -> bool:
    tokens, positions = mx.array([[1, 2, 3, 5]]), mx.array([0, 1, 2, 3])
    try:
        expected, found = full(tokens, positions), split(tokens, positions)
    except (TypeError, ValueError, AttributeError, IndexError):
        return False
    if expected.shape != found.shape:
        return False
    # Tight, and relative: a soft cap bends small logits by very little.
    difference = mx.abs(expected - found).max() / mx.abs(expected).max()
    return bool((difference <= 1e-5).item())
