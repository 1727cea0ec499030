"""What the trainer's tests share: tiny models, made-up rows, a state to train."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlx_ft import lora, optim, trainer
from mlx_ft.config.schema import LoraConfig, OptimizerConfig, TrainConfig
from mlx_ft.data.batch import Batches
from mlx_ft.data.chat import Example
from mlx_ft.data.rows import Record
from mlx_ft.state import TrainState
from mlx_ft.step import Compute
from tests.models import tiny

VOCAB = tiny.LLAMA["vocab_size"]


def example(tokens: Iterable[int], targets: Iterable[bool]) -> Example:
    """A row; targets[i] says that token i is to be predicted."""
    return Example(
        np.array([*tokens], np.int32),
        np.array([*targets], bool),
        truncated=0,
        endless=0,
        label=None,
        record=Record({}, Path("rows.jsonl"), 1),
    )


def answer_row(tokens: Sequence[int], prompt: int) -> Example:
    """A row whose first `prompt` tokens carry no loss."""
    return example(tokens, [i >= prompt for i in range(len(tokens))])


def rows(count: int, seed: int = 0, longest: int = 20) -> list[Example]:
    """Random rows of unequal lengths and unequal numbers of targets."""
    random = np.random.RandomState(seed)
    made = []
    for _ in range(count):
        length = random.randint(6, longest + 1)
        made.append(answer_row(random.randint(0, VOCAB, length), random.randint(1, length - 2)))
    return made


def batches(examples: Sequence[Example], batch_size: int = 2, seed: int = 0) -> Batches:
    return Batches(examples, batch_size, seed, pad_id=258)


def state(
    optimizer: OptimizerConfig | None = None,
    adapter: LoraConfig | None = None,
    seed: int = 0,
    model: nn.Module | None = None,
) -> TrainState:
    """A tiny adapted model, ready to train."""
    model = tiny.build(seed=seed) if model is None else model
    lora.attach(model, adapter or LoraConfig(rank=4, alpha=8))
    rule = optim.build_optimizer(optimizer or OptimizerConfig())
    return TrainState(model, rule)


def train(
    run: TrainState,
    data: Batches,
    steps: int,
    *,
    accumulation: int = 1,
    optimizer: OptimizerConfig | None = None,
    config: TrainConfig | None = None,
    seed: int = 0,
    compiled: bool = False,
) -> list[trainer.StepResult]:
    """Train `run` for `steps` optimizer steps in all."""
    config = config or TrainConfig(max_steps=steps)
    plan = trainer.plan(config, len(data), accumulation)
    results = trainer.train(
        run,
        data,
        plan,
        optimizer or OptimizerConfig(),
        config,
        seed=seed,
        compute=Compute(compiled=compiled),
    )
    return list(results)


def snapshot(tree: Any) -> dict[str, np.ndarray]:
    """The arrays of a tree, copied."""
    return {name: np.array(array) for name, array in tree_flatten(tree)}


def same(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> bool:
    """Bitwise: the same names and the same arrays, NaN for NaN."""
    return left.keys() == right.keys() and all(
        left[name].tobytes() == right[name].tobytes() for name in left
    )


def furthest(left: dict[str, np.ndarray], right: dict[str, np.ndarray]) -> float:
    """Largest difference of two sets of arrays, relative to the largest value of its array."""
    assert left.keys() == right.keys()
    return max(relative(left[name], right[name]) for name in left)


def relative(found: Any, expected: Any) -> float:
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    assert found.shape == expected.shape
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def randomize(model: nn.Module, seed: int = 5, scale: float = 0.1) -> None:
    """Give the adapter values, B too, as training would."""
    random = np.random.RandomState(seed)
    model.load_weights(
        [
            (name, mx.array(scale * random.standard_normal(array.shape), mx.float32))
            for name, array in sorted(lora.parameters(model).items())
        ],
        strict=False,
    )


def logits(model: nn.Module, tokens: Sequence[int] = (3, 1, 4, 1, 5, 9, 2, 6)) -> np.ndarray:
    """(T, V) float32, without dropout."""
    model.eval()
    return np.array(model(mx.array([list(tokens)]))[0].astype(mx.float32))
