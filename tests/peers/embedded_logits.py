"""An adapter trained here on the embedded model, as mlx-lm loads it: the same logits?

python tests/peers/embedded_logits.py
"""

import sys
import tempfile
from pathlib import Path

from mlx_ft import runtime

runtime.prepare()
import mlx.core as mx  # noqa: E402
import numpy as np  # noqa: E402

from mlx_ft import lora, lora_files, optim, trainer  # noqa: E402
from mlx_ft.config.schema import LoraConfig, ModelConfig, OptimizerConfig, TrainConfig  # noqa: E402
from mlx_ft.data.batch import Batches  # noqa: E402
from mlx_ft.data.chat import Example  # noqa: E402
from mlx_ft.data.rows import Record  # noqa: E402
from mlx_ft.models.load import load, locate  # noqa: E402
from mlx_ft.models.quantize import cast, dequantize  # noqa: E402
from mlx_ft.state import TrainState  # noqa: E402
from mlx_ft.step import Compute  # noqa: E402

TOLERANCE = 1e-5
TEXT = "The capital of Chad is N'Djamena. SELECT capital FROM country WHERE name = 'Chad';"


def logits(model, tokens: list[int]) -> np.ndarray:
    model.eval()
    return np.array(model(mx.array([tokens]))[0].astype(mx.float32))


def report(name: str, found: np.ndarray, ours: np.ndarray) -> float:
    difference = float(np.abs(found - ours).max())
    agree = float((found.argmax(-1) == ours.argmax(-1)).mean())
    largest = float(np.abs(ours).max())
    print(
        f"{name}: largest difference {difference:.1e} of {largest:.1f}; same top token {agree:.0%}"
    )
    return difference


def main() -> None:
    from mlx_ft.models.read import import_mlx_lm

    import_mlx_lm()
    import mlx_lm

    located = locate(ModelConfig(), runtime.default_cache_dir())
    loaded = load(located, ModelConfig(), compute_dtype="float32", dequantize=True)
    tokens = loaded.tokenizer.encode(TEXT)
    base = logits(loaded.model, tokens)
    adapter = lora.attach(loaded.model, LoraConfig())
    optimizer = OptimizerConfig(learning_rate=1e-3, warmup_steps=0)
    rule = optim.build_optimizer(optimizer)
    state = TrainState(loaded.model, rule)
    row = np.array(tokens, np.int32)
    example = Example(row, row >= 0, 0, 0, None, Record({}, Path("row"), 1))
    data = Batches([example, example], 2, 0, pad_id=0)
    config = TrainConfig(max_steps=2)
    plan = trainer.plan(config, len(data), 1)
    for result in trainer.train(state, data, plan, optimizer, config, seed=0, compute=Compute()):
        print(f"step {result.step}: loss {result.loss:.3f}")
    ours = logits(loaded.model, tokens)
    report("the base, without the adapter", base, ours)
    with tempfile.TemporaryDirectory() as folder:
        lora_files.save(state.adapter(), adapter, Path(folder), {})
        model, _ = mlx_lm.load(str(located.path), adapter_path=folder)
    report("mlx-lm as it comes (4 bits)", logits(model, tokens), ours)
    dequantize(model)
    cast(model, mx.float32)
    if report("mlx-lm dequantized, float32", logits(model, tokens), ours) > TOLERANCE:
        sys.exit(f"more than {TOLERANCE}")


if __name__ == "__main__":
    main()
