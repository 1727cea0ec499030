"""All mutable progress of a run in one value: what is not in it cannot exist."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_flatten

from mlx_ft import lora


@dataclass
class Progress:
    """The counters of a run: plain numbers, so that they go into JSON as they are."""

    step: int = 0  # optimizer steps taken, skipped ones included
    micro_step: int = 0  # micro-batches consumed: the data cursor
    tokens: int = 0  # tokens through the model, padding left out
    target_tokens: int = 0
    skipped_steps: int = 0
    nonfinite_in_a_row: int = 0
    best_loss: float | None = None
    patience_loss: float | None = None  # validation loss of the last gain beyond min_delta
    best_step: int = 0
    evaluations_without_gain: int = 0
    train_seconds: float = 0.0


@dataclass
class TrainState:
    """Everything that a training step changes.

    The model holds the adapter's arrays, the optimizer its moments. Random numbers need no
    state of their own: each micro-step is seeded from (seed, micro_step).
    """

    model: nn.Module
    optimizer: optimizers.Optimizer
    progress: Progress = field(default_factory=Progress)
    best_adapter: dict[str, mx.array] | None = None

    def adapter(self) -> dict[str, mx.array]:
        """The adapter's arrays as they are now."""
        return lora.parameters(self.model)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's arrays by flattened names."""
        return dict(tree_flatten(self.optimizer.state))

    def record_validation(self, loss: float, min_delta: float) -> bool:
        """Take note of a validation loss; True when it is the best so far.

        A gain smaller than `min_delta` keeps the better adapter but does not reset the patience;
        small gains count once they add up to it.
        """
        progress = self.progress
        before, last = progress.best_loss, progress.patience_loss
        finite = math.isfinite(loss)  # NaN as the best would never be beaten
        if finite and (last is None or loss < last - min_delta):
            progress.patience_loss, progress.evaluations_without_gain = loss, 0
        else:
            progress.evaluations_without_gain += 1
        if not finite or (before is not None and not loss < before):
            return False
        progress.best_loss, progress.best_step = loss, progress.step
        self.best_adapter = {name: mx.array(array) for name, array in self.adapter().items()}
        mx.eval(self.best_adapter)
        return True

    def restore_best(self) -> None:
        """Put the adapter of the lowest validation loss back into the model."""
        if self.best_adapter is not None:
            self.model.load_weights(list(self.best_adapter.items()), strict=False)
