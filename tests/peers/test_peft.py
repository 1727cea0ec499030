"""Loss, LoRA gradients and optimizer steps against transformers + PEFT on torch.

The vectors are what peft_gradients.py wrote (versions.json says with what); `.ci/peers.sh` points
MLX_FT_PEER_VECTORS at vectors that torch computes on the spot.
"""

import os
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten

from mlx_ft import lora, optim, trainer
from mlx_ft.config.schema import LoraConfig, OptimizerConfig, TrainConfig
from mlx_ft.data.arrays import padded
from mlx_ft.data.batch import Batches, collate
from mlx_ft.models.forward import forward_of
from mlx_ft.state import TrainState
from mlx_ft.step import Compute, summed_gradient
from tests.fakes import example, relative
from tests.models.tiny import build
from tests.peers import tiny_llama as peer

VECTORS = Path(os.environ.get("MLX_FT_PEER_VECTORS", Path(__file__).parent / "vectors"))
TOLERANCE = 1e-4
EXAMPLES = [example(tokens, targets) for tokens, targets in peer.rows()]
OPTIMIZER = OptimizerConfig(
    learning_rate=peer.LEARNING_RATE,
    weight_decay=peer.WEIGHT_DECAY,
    warmup_steps=0,
    min_lr_ratio=peer.MIN_LR_RATIO,
    max_grad_norm=peer.MAX_GRAD_NORM,
)


def adapted(case: peer.Case) -> nn.Module:
    config = {**peer.LLAMA, "model_type": "llama", "rope_theta": peer.ROPE_THETA}
    model = build({**config, "tie_word_embeddings": case.tied})
    base = {name: mx.array(array) for name, array in peer.weights(case.tied).items()}
    model.load_weights(list(base.items()))  # strict: exactly these
    lora.attach(
        model,
        LoraConfig(
            rank=peer.RANK,
            alpha=peer.ALPHA,
            scaling="rslora" if case.rslora else "standard",
            target_modules=list(case.modules),
            num_layers=case.layers,
        ),
    )
    start = {_ours(name): mx.array(array.T) for name, array in peer.adapter(case).items()}
    assert start.keys() == lora.parameters(model).keys()
    model.load_weights(list(start.items()), strict=False)
    return model


def _ours(name: str) -> str:
    """PEFT's lora_A.weight (r, in) and lora_B.weight (out, r) are mlx-lm's, transposed."""
    return name.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")


def vectors(case: peer.Case, kind: str) -> dict[str, np.ndarray]:
    """The arrays `kind`/name, with our names and layout, and those without a slash."""
    with np.load(VECTORS / f"{case.name}.npz") as file:
        return {
            _ours(name.removeprefix(f"{kind}/")): file[name].T
            for name in file.files
            if name.startswith(f"{kind}/") or "/" not in name
        }


def state(model: nn.Module) -> TrainState:
    rule = optim.build_optimizer(OPTIMIZER)
    return TrainState(model, rule)


@pytest.mark.parametrize("case", peer.CASES, ids=lambda case: case.name)
def test_loss_and_every_gradient(case: peer.Case) -> None:
    model = adapted(case)
    forward = forward_of(model)
    arrays = padded(collate(EXAMPLES, np.arange(4), pad_id=7))
    gradient = summed_gradient(model, forward, 0.0)
    (total, count), gradients = gradient(*arrays.tensors)
    expected = vectors(case, "grad")
    found = {name: np.array(array / count) for name, array in tree_flatten(gradients)}
    assert forward.splits
    differences = {name: relative(found[name], expected[name]) for name in found}
    differences["loss"] = relative(float(total) / float(count), expected["loss"])
    print(f"\n{case.name}: largest relative difference {max(differences.values()):.1e}")
    assert found.keys() == expected.keys() - {"loss", "losses", "norms"}
    assert max(differences.values()) < TOLERANCE, differences


@pytest.mark.parametrize("compiled", [False, True], ids=["plain", "compiled"])
@pytest.mark.parametrize("case", peer.CASES, ids=lambda case: case.name)
def test_five_steps_of_training(case: peer.Case, compiled: bool) -> None:
    """AdamW, weight decay, clipping, cosine, label smoothing, windows of unequal token counts."""
    run = state(adapted(case))
    data = Batches(EXAMPLES, peer.ROWS_PER_BATCH, 0, shuffle=False, pad_id=7)
    config = TrainConfig(max_steps=peer.STEPS, label_smoothing=peer.LABEL_SMOOTHING)
    plan = trainer.plan(config, len(data), peer.ACCUMULATION)
    results = list(
        trainer.train(
            run, data, plan, OPTIMIZER, config, seed=0, compute=Compute(compiled=compiled)
        )
    )
    expected = vectors(case, "after")
    after = {name: np.array(array) for name, array in run.adapter().items()}
    differences = {name: relative(after[name], expected[name]) for name in after}
    differences["losses"] = relative([r.loss for r in results], expected["losses"])
    differences["norms"] = relative([r.grad_norm for r in results], expected["norms"])
    print(f"\n{case.name}: largest relative difference {max(differences.values()):.1e}")
    assert max(differences.values()) < TOLERANCE, differences


def test_vectors_are_small_and_say_where_they_come_from() -> None:
    assert sum(file.stat().st_size for file in VECTORS.iterdir()) < 200_000
    assert '"peft"' in (VECTORS / "versions.json").read_text()
