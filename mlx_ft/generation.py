"""Text from a model: one answer as a stream, or many at once."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from typing import Any, Literal

import mlx.core as mx
import mlx.nn as nn

Cut = Literal["max_tokens", "window"]  # what ended an answer before the model did


def stream(
    model: nn.Module,
    tokenizer: Any,
    prompt: Sequence[int],
    *,
    max_tokens: int = 256,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int | None = None,
    window: int | None = None,
) -> Generator[str, None, Cut | None]:
    """Yield pieces of the answer to `prompt` (token ids) as they are decoded.

    temperature: 0 is greedy. seed: of MLX's global generator; None leaves that alone. window:
    tokens of prompt and answer together, more than the prompt's. Stops at the tokenizer's end
    tokens, after `max_tokens` or where the window is full; returns what cut the answer.
    """
    from mlx_lm import stream_generate
    from mlx_lm.sample_utils import make_sampler

    if seed is not None:
        mx.random.seed(seed)
    model.eval()
    sampler = make_sampler(temp=temperature, top_p=top_p)
    room = max_tokens if window is None else window - len(prompt)
    reason = None
    for response in stream_generate(
        model, tokenizer, list(prompt), max_tokens=min(max_tokens, room), sampler=sampler
    ):
        reason = response.finish_reason
        yield response.text
    if reason != "length":
        return None
    return "window" if room < max_tokens else "max_tokens"


def batch(
    model: nn.Module,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    batch_size: int,
) -> Iterator[str]:
    """Yield the greedy answer to each prompt, stripped, in their order, `batch_size` at a time."""
    from mlx_lm import batch_generate

    model.eval()
    for start in range(0, len(prompts), batch_size):
        chunk = [list(prompt) for prompt in prompts[start : start + batch_size]]
        response = batch_generate(
            model,
            tokenizer,
            chunk,
            max_tokens=max_tokens,
            prefill_batch_size=len(chunk),
            completion_batch_size=len(chunk),
        )
        yield from (text.strip() for text in response.texts)
