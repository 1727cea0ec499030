"""Tiny configurations of mlx-lm's families, with the projections that each layer has."""

from dataclasses import dataclass
from typing import Any

from tests.models import tiny

Projection = tuple[int, int, int]  # out, in, experts


@dataclass(frozen=True)
class Family:
    """attention, mlp: the projections of one layer; the mlp's may differ by layer."""

    config: dict[str, Any]
    attention: tuple[Projection, ...]
    mlp: tuple[tuple[Projection, ...], ...]


# Width 64, 4 heads of 16, 2 of them with keys and values, MLP 96.
GQA = ((64, 64, 1), (32, 64, 1), (32, 64, 1), (64, 64, 1))
GATED = ((96, 64, 1), (96, 64, 1), (64, 96, 1))
ROUTED = ((4, 64, 1), (32, 64, 4), (32, 64, 4), (64, 32, 4))  # the router, then 4 experts of 32
COMMON = {**tiny.LLAMA, "head_dim": 16}

FAMILIES = {
    "llama": Family(tiny.LLAMA, GQA, (GATED, GATED)),
    "mistral": Family(
        {**tiny.LLAMA, "model_type": "mistral", "tie_word_embeddings": False}, GQA, (GATED, GATED)
    ),
    "qwen3": Family({**COMMON, "model_type": "qwen3"}, GQA, (GATED, GATED)),
    "gemma3_text": Family(
        {
            **COMMON,
            "model_type": "gemma3_text",
            "num_key_value_heads": 1,
            "query_pre_attn_scalar": 16,
            "sliding_window": 8,
            "sliding_window_pattern": 2,
        },
        ((64, 64, 1), (16, 64, 1), (16, 64, 1), (64, 64, 1)),
        (GATED, GATED),
    ),
    "phi": Family(
        {
            **tiny.LLAMA,
            "model_type": "phi",
            "num_key_value_heads": 4,
            "partial_rotary_factor": 0.5,
        },
        ((64, 64, 1),) * 4,
        (((96, 64, 1), (64, 96, 1)),) * 2,
    ),
    "phi3": Family(
        {**tiny.LLAMA, "model_type": "phi3"},
        ((128, 64, 1), (64, 64, 1)),
        (((192, 64, 1), (64, 96, 1)),) * 2,
    ),
    "gpt2": Family(
        {
            "model_type": "gpt2",
            "n_ctx": 128,
            "n_embd": 64,
            "n_head": 4,
            "n_layer": 2,
            "n_positions": 128,
            "layer_norm_epsilon": 1e-5,
            "vocab_size": 260,
        },
        ((192, 64, 1), (64, 64, 1)),
        (((256, 64, 1), (64, 256, 1)),) * 2,
    ),
    "qwen3_moe": Family(
        {
            **COMMON,
            "model_type": "qwen3_moe",
            "num_experts": 4,
            "num_experts_per_tok": 2,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [0],
            "moe_intermediate_size": 32,
            "norm_topk_prob": True,
        },
        GQA,
        (GATED, ROUTED),
    ),
    "mixtral": Family(
        {
            **tiny.LLAMA,
            "model_type": "mixtral",
            "intermediate_size": 32,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
        },
        GQA,
        (ROUTED, ROUTED),
    ),
}


def trainable(projections: tuple[Projection, ...], rank: int) -> int:
    """LoRA parameters: A has rank * in numbers, B out * rank, for each expert."""
    return sum(experts * rank * (wide + deep) for wide, deep, experts in projections)
