"""The embedded model as a float32 Llama folder that mlx-lm, mlx-ft and transformers all load.

    python benchmarks/speed/model.py FOLDER

The same weights for everybody: 4 bits are expanded, and the rows of q and k, which GGUF keeps
permuted for interleaved rotary embedding, are put back. `probe.npz` holds tokens with the logits
that mlx-ft computes from the embedded model itself; every peer has to reproduce them.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402

from mlx_ft.config.schema import ModelConfig  # noqa: E402
from mlx_ft.models.load import load, locate  # noqa: E402

TEXT = "SELECT capital FROM country WHERE name = 'Chad'; The capital of Chad is N'Djamena."


def unpermuted(weight: mx.array, heads: int) -> mx.array:
    """(heads * d, in), rows of each head from interleaved pairs to halves."""
    width = weight.shape[1]
    pairs = weight.reshape(heads, -1, 2, width)
    return pairs.swapaxes(1, 2).reshape(-1, width)


def make(folder: Path) -> None:
    """Write the folder."""
    located = locate(ModelConfig(), runtime.default_cache_dir())
    loaded = load(located, ModelConfig(), compute_dtype="float32", dequantize=True)
    config = {
        key: value for key, value in located.config.items() if not key.startswith("quantization")
    }
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    weights: dict[str, mx.array] = {}
    parameters: dict[str, mx.array] = dict(tree_flatten(loaded.model.parameters()))
    for name, array in parameters.items():
        count = heads.get(name.split(".")[-2])
        weights[name] = mx.contiguous(unpermuted(array, count)) if count else array
    folder.mkdir(parents=True, exist_ok=True)
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "pt"})
    config |= {"rope_traditional": False, "dtype": "float32"}
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": config["rope_theta"]}
    (folder / "config.json").write_text(json.dumps(config, indent=1))
    for path in located.path.iterdir():
        if path.name.startswith(("tokenizer", "generation_config", "chat_template")):
            shutil.copy(path, folder)
    tokens = loaded.tokenizer.encode(TEXT)
    logits = np.array(loaded.model(mx.array([tokens]))[0])
    np.savez(folder / "probe.npz", tokens=np.array(tokens), logits=logits)


if __name__ == "__main__":
    make(Path(sys.argv[1]))
