"""Tiny models for tests: folders as mlx-lm has them, GGUF files written byte by byte."""

import json
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

LLAMA = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 260,
    "max_position_embeddings": 128,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "bos_token_id": 256,
    "eos_token_id": 257,
}


def byte_alphabet() -> list[str]:
    """GPT-2's printable stand-ins for the 256 bytes, in the order of the bytes."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(others)) for byte in range(256)]


TOKENS = [*byte_alphabet(), "<s>", "</s>", "<pad>", "<unk>"]
TEMPLATE = "{% for m in messages %}{{ m['content'] }}</s>{% endfor %}"


def build(config: dict[str, Any] | None = None, seed: int = 0) -> nn.Module:
    """A random model of the config's architecture."""
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    from mlx_lm.utils import _get_classes

    config = config or LLAMA
    mx.random.seed(seed)
    model_class, arguments = _get_classes(config)
    return model_class(arguments.from_dict(config))


def save(folder: Path, config: dict[str, Any] = LLAMA, seed: int = 0, **changes: Any) -> nn.Module:
    """Write a random model with tokenizer into `folder`; returns it. changes: of the config."""
    config = {**config, **changes}
    model = build(config, seed)
    folder.mkdir(parents=True, exist_ok=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return model


def save_tokenizer(folder: Path) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in TOKENS[256:]])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.license": "mit",
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.block_count": 2,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.context_length": 128,
    "llama.rope.freq_base": 10000.0,
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": [1] * 256 + [3] * 4,
    "tokenizer.ggml.merges": [],
    "tokenizer.ggml.bos_token_id": 256,
    "tokenizer.ggml.eos_token_id": 257,
    "tokenizer.chat_template": TEMPLATE,
}
F32, F16, Q4_0, Q4_1, Q8_0, Q4_K = 0, 1, 2, 3, 8, 12


def gguf_bytes(
    metadata: dict[str, Any], tensors: dict[str, tuple[int, tuple[int, ...], bytes]]
) -> bytes:
    """A GGUF file. tensors: name -> (type number, shape slowest first, data)."""
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    for key, value in metadata.items():
        head += _string(key) + _value(value)
    data = b""
    for name, (kind, shape, content) in tensors.items():
        head += _string(name) + struct.pack("<I", len(shape))
        head += struct.pack(f"<{len(shape)}Q", *reversed(shape))
        head += struct.pack("<IQ", kind, len(data))
        data += content + b"\0" * (-len(content) % 32)
    return head + b"\0" * (-len(head) % 32) + data


def _string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def _value(value: Any) -> bytes:
    if isinstance(value, bool):
        return struct.pack("<I?", 7, value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if isinstance(value, float):
        return struct.pack("<If", 6, value)
    if isinstance(value, str):
        return struct.pack("<I", 8) + _string(value)
    if value and isinstance(value[0], int):
        return struct.pack("<IIQ", 9, 5, len(value)) + struct.pack(f"<{len(value)}i", *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(map(_string, value))


GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "model.layers": "blk",
}


def gguf_tensors(
    model: nn.Module, *, permuted: bool = True
) -> dict[str, tuple[int, tuple[int, ...], bytes]]:
    """Weights in float32 as llama.cpp's converter writes them: a Llama's q and k permuted."""
    tensors = {}
    for name, array in tree_flatten(model.parameters()):
        weight = np.array(array.astype(mx.float32))
        if permuted and ("q_proj" in name or "k_proj" in name):
            heads = LLAMA["num_attention_heads" if "q_proj" in name else "num_key_value_heads"]
            rows, *rest = weight.shape
            weight = weight.reshape(heads, 2, rows // heads // 2, *rest).swapaxes(1, 2)
            weight = weight.reshape(rows, *rest)
        for ours, theirs in GGUF_NAMES.items():
            name = name.replace(ours, theirs)
        tensors[name] = (F32, weight.shape, np.ascontiguousarray(weight).tobytes())
    return tensors


def write_gguf(path: Path, seed: int = 0, **metadata: Any) -> nn.Module:
    """Write a tiny Llama as a GGUF file; returns the model whose weights it has."""
    model = build(seed=seed)
    path.write_bytes(gguf_bytes({**METADATA, **metadata}, gguf_tensors(model)))
    return model
