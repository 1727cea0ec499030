"""Adapters of the embedded model with random numbers, as folders.

python benchmarks/speed/adapters.py FOLDER NAME...
"""

from __future__ import annotations

import sys
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402

from mlx_ft import lora, lora_files  # noqa: E402
from mlx_ft.config.schema import LoraConfig, ModelConfig  # noqa: E402
from mlx_ft.models.load import load, locate  # noqa: E402


def main(folder: Path, names: list[str]) -> None:
    located = locate(ModelConfig(), runtime.default_cache_dir())
    model = load(located, ModelConfig(), compute_dtype="float32", dequantize=True).model
    for seed, name in enumerate(names):
        mx.random.seed(seed)
        adapter = lora.attach(model, LoraConfig(rank=8, alpha=16, num_layers="all"))
        moved = {
            name: array + 0.01 * mx.random.normal(array.shape)
            for name, array in lora.parameters(model).items()
        }
        lora_files.save(moved, adapter, folder / name, {})
        lora.detach(model)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
