"""A small model, an adapter on it with values, and a tokenizer that GGUF can hold."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_ft import lora, lora_files
from mlx_ft.config.schema import LoraConfig
from tests.fakes import randomize
from tests.models import tiny

CONTROLS = ["<s>", "</s>", "<pad>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "i n"]
TOKENS = [*tiny.byte_alphabet(), "th", "the", "in", *CONTROLS]
LLAMA = {
    **tiny.LLAMA,
    "num_hidden_layers": 3,
    "vocab_size": 272,  # more rows than tokens, as many models have
    "bos_token_id": TOKENS.index("<s>"),
    "eos_token_id": TOKENS.index("</s>"),
}
QWEN2 = {**LLAMA, "model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]}
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
PROMPT = [5, 77, 200, 31, 8, 256, 120, 3]


def save_tokenizer(folder: Path, template: str = CHATML) -> None:
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    merges = [tuple(merge.split()) for merge in MERGES]
    tokenizer = Tokenizer(models.BPE(vocab={t: i for i, t in enumerate(TOKENS)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False),
    ])  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in CONTROLS])
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "chat_template": template,
        "auto_map": {"AutoTokenizer": ["code.Tokenizer", None]},
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_model(folder: Path, config: dict[str, Any] = LLAMA, dtype: Any = mx.float32) -> nn.Module:
    """A random model with its tokenizer; returns it."""
    from mlx.utils import tree_flatten, tree_map

    model = tiny.build(config)
    model.update(tree_map(lambda array: array.astype(dtype), model.parameters()))
    folder.mkdir(parents=True)
    weights = dict(tree_flatten(model.parameters()))
    mx.save_safetensors(str(folder / "model.safetensors"), weights)
    (folder / "config.json").write_text(json.dumps(config))
    save_tokenizer(folder)
    return model


def save_adapter(folder: Path, model: nn.Module, base: Path | str, **about: Any) -> nn.Module:
    """Put an adapter with values on `model`, and save it; returns the model."""
    config = LoraConfig(rank=4, alpha=12, num_layers=2, target_modules="all-linear")
    adapter = lora.attach(model, config)
    randomize(model)
    lora_files.save(lora.parameters(model), adapter, folder, {"base_model": str(base), **about})
    return model


def logits(model: nn.Module) -> Any:
    import numpy as np

    model.eval()
    return np.array(model(mx.array([PROMPT]))[0].astype(mx.float32))
