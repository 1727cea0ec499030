"""mlx-lm's own trainer, as `mlx_lm.lora` sets it up, with the end of every step written down.

    python benchmarks/speed/mlx_lm_lora.py JOB.json

The job's `blas` loads the BLAS of mlx-ft first; without it nothing of mlx-ft is imported.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

JOB = json.loads(Path(sys.argv[1]).read_text())
if JOB["blas"]:
    from mlx_ft import runtime

    runtime.prepare()
import mlx.core as mx  # noqa: E402
import mlx.optimizers as optimizers  # noqa: E402
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm import load  # noqa: E402
from mlx_lm.tuner.callbacks import TrainingCallback  # noqa: E402
from mlx_lm.tuner.datasets import CacheDataset, load_local_dataset  # noqa: E402
from mlx_lm.tuner.trainer import TrainingArgs, iterate_batches, train  # noqa: E402
from mlx_lm.tuner.utils import linear_to_lora_layers  # noqa: E402


class Steps(TrainingCallback):  # type: ignore[misc]
    """Writes a line per step. tokens: of the rows of the batch that was handed out last."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.tokens = 0

    def batches(self, **settings: Any) -> Iterator[tuple[mx.array, mx.array]]:
        """mlx-lm's own batches."""
        for batch, spans in iterate_batches(**settings):
            self.tokens = int(spans[:, 1].sum())
            yield batch, spans

    def on_train_loss_report(self, train_info: dict[str, Any]) -> None:  # noqa: ARG002
        with self.path.open("a") as file:
            file.write(json.dumps({"tokens": self.tokens, "at": time.perf_counter()}) + "\n")


def check(model: Any) -> None:
    """The logits are those of the embedded model."""
    probe = np.load(Path(JOB["model"]) / "probe.npz")
    found = np.array(model(mx.array(probe["tokens"])[None])[0])
    if (difference := float(np.abs(found - probe["logits"]).max())) > JOB["tolerance"]:
        sys.exit(f"mlx-lm's logits differ by {difference:.1e}")


def main() -> None:
    model, tokenizer = load(JOB["model"])
    check(model)
    rows, _, _ = load_local_dataset(Path(JOB["data"]), tokenizer, SimpleNamespace(mask_prompt=True))
    np.random.seed(JOB["seed"])
    mx.random.seed(JOB["seed"])
    model.freeze()
    lora = {"rank": JOB["rank"], "scale": JOB["scale"], "dropout": 0.0}
    linear_to_lora_layers(model, JOB["layers"], lora)
    rule = optimizers.AdamW(JOB["learning_rate"], weight_decay=0.0, bias_correction=True)
    folder = Path(JOB["adapter"])
    folder.mkdir(parents=True, exist_ok=True)
    steps = Steps(Path(JOB["steps_file"]))
    settings = TrainingArgs(
        batch_size=JOB["batch"],
        iters=JOB["steps"],
        steps_per_report=1,
        steps_per_save=10**9,
        adapter_file=str(folder / "adapters.safetensors"),
    )
    train(
        model, rule, CacheDataset(rows), None, settings,
        iterate_batches=steps.batches, training_callback=steps,
    )  # fmt: skip
    adapter: dict[str, mx.array] = dict(tree_flatten(model.trainable_parameters()))
    print(json.dumps({"trainable": sum(array.size for array in adapter.values())}))


if __name__ == "__main__":
    main()
