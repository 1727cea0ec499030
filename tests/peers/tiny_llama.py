"""A tiny random Llama, LoRA weights and rows, the same to the bit in every environment.

NumPy only: torch's environment and ours both import this file. The legacy RandomState is used
because its stream is frozen across versions of NumPy.
"""

from dataclasses import dataclass

import numpy as np

LLAMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 100,
    "max_position_embeddings": 64,
}
ROPE_THETA = 10000.0
ATTENTION = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
MLP = ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
RANK, ALPHA = 4, 6.0

STEPS, ACCUMULATION, ROWS_PER_BATCH = 5, 2, 2
LEARNING_RATE, MIN_LR_RATIO, WEIGHT_DECAY, LABEL_SMOOTHING = 3e-3, 0.1, 0.05, 0.1
MAX_GRAD_NORM = 1.7  # the second case has steps above it and steps below


@dataclass(frozen=True)
class Case:
    """One comparison. layers: how many, counted from the last."""

    name: str
    tied: bool
    rslora: bool
    modules: tuple[str, ...]
    layers: int


CASES = (
    Case("tied", True, False, ATTENTION + MLP, LLAMA["num_hidden_layers"]),
    Case("untied", False, True, ("self_attn.q_proj", "self_attn.v_proj", "mlp.down_proj"), 2),
)


def _widths(module: str) -> tuple[int, int]:
    """(out, in) of a projection."""
    hidden, inner = LLAMA["hidden_size"], LLAMA["intermediate_size"]
    keys = hidden // LLAMA["num_attention_heads"] * LLAMA["num_key_value_heads"]
    special = {
        "self_attn.k_proj": (keys, hidden),
        "self_attn.v_proj": (keys, hidden),
        "mlp.gate_proj": (inner, hidden),
        "mlp.up_proj": (inner, hidden),
        "mlp.down_proj": (hidden, inner),
    }
    return special.get(module, (hidden, hidden))


def weights(tied: bool) -> dict[str, np.ndarray]:
    """The base weights by the names that transformers and mlx-lm share."""
    random = np.random.RandomState(1)

    def normal(*shape: int, around: float = 0.0) -> np.ndarray:
        return (around + 0.2 * random.standard_normal(shape)).astype(np.float32)

    hidden, vocab = LLAMA["hidden_size"], LLAMA["vocab_size"]
    arrays = {"model.embed_tokens.weight": normal(vocab, hidden)}
    for layer in range(LLAMA["num_hidden_layers"]):
        for module in ATTENTION + MLP:
            arrays[f"model.layers.{layer}.{module}.weight"] = normal(*_widths(module))
        for norm in ("input_layernorm", "post_attention_layernorm"):
            arrays[f"model.layers.{layer}.{norm}.weight"] = normal(hidden, around=1.0)
    arrays["model.norm.weight"] = normal(hidden, around=1.0)
    if not tied:
        arrays["lm_head.weight"] = normal(vocab, hidden)
    return arrays


def adapter(case: Case) -> dict[str, np.ndarray]:
    """PEFT's names and layout: lora_A (r, in), lora_B (out, r); B is not zero."""
    random = np.random.RandomState(2)
    arrays = {}
    for layer in range(LLAMA["num_hidden_layers"]):
        for module in ATTENTION + MLP:
            width_out, width_in = _widths(module)
            a = 0.3 * random.standard_normal((RANK, width_in)).astype(np.float32)
            b = 0.3 * random.standard_normal((width_out, RANK)).astype(np.float32)
            if layer >= LLAMA["num_hidden_layers"] - case.layers and module in case.modules:
                arrays[f"model.layers.{layer}.{module}.lora_A.weight"] = a
                arrays[f"model.layers.{layer}.{module}.lora_B.weight"] = b
    return arrays


def rows() -> list[tuple[np.ndarray, np.ndarray]]:
    """(tokens, targets): targets[i] says that token i is to be predicted. Unequal lengths and
    target counts; the second row has two answers with a turn between them."""
    random = np.random.RandomState(3)
    made = []
    answers = [[(5, 9)], [(3, 6), (10, 17)], [(1, 12)], [(6, 7)], [(2, 21)], [(8, 13)]]
    for spans in answers:
        length = spans[-1][1] + (2 if len(made) == 3 else 0)
        tokens = random.randint(0, LLAMA["vocab_size"], length).astype(np.int32)
        targets = np.zeros(length, dtype=bool)
        for start, end in spans:
            targets[start:end] = True
        made.append((tokens, targets))
    return made
