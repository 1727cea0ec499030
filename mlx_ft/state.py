"""All mutable progress of a run in one value: what is not in it cannot exist."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optimizers
from mlx.utils import tree_map_with_path

from mlx_ft import checkpoint, lora, lora_files
from mlx_ft.buckets import Buckets
from mlx_ft.checkpoint import Arrays, Checkpoint
from mlx_ft.errors import CheckpointError, TrainingError


@dataclass
class Progress:
    """The counters of a run: plain numbers, so that they go into JSON as they are."""

    step: int = 0  # optimizer steps taken, skipped ones included
    micro_step: int = 0  # micro-batches consumed: the data cursor
    tokens: int = 0  # tokens through the model, padding left out
    target_tokens: int = 0
    skipped_steps: int = 0
    skipped_in_a_row: int = 0
    spikes: int = 0  # steps skipped because of their loss alone
    rewinds: int = 0
    recent_losses: list[float] = field(default_factory=list)  # of the last steps not skipped
    parts: int = 1  # in how many parts a micro-batch is taken; doubled when memory runs out
    out_of_memory: int = 0
    resumes: int = 0
    metrics_rows: int = 0  # lines of metrics.jsonl when this was saved
    best_loss: float | None = None
    patience_loss: float | None = None  # validation loss of the last gain beyond min_delta
    best_step: int = 0
    evaluations_without_gain: int = 0
    validated_step: int = 0
    last_loss: float | None = None  # of the last validation; None when it was not finite
    train_seconds: float = 0.0
    wall_seconds: float = 0.0  # of all the processes that the run had
    peak_memory_gb: float = 0.0


@dataclass
class TrainState:
    """Everything that a training step changes.

    The model holds the adapter's arrays, the optimizer its moments. Random numbers need no
    state of their own: each micro-step is seeded from (seed, micro_step). optimizer: a new one.
    """

    model: nn.Module
    optimizer: optimizers.Optimizer
    progress: Progress = field(default_factory=Progress)
    best_adapter: dict[str, mx.array] | None = None
    buckets: Buckets = field(init=False)

    def __post_init__(self) -> None:
        parameters = self.model.trainable_parameters()
        self.buckets = Buckets(parameters, self.optimizer)
        self.optimizer.init(self.buckets.join(parameters))

    def adapter(self) -> dict[str, mx.array]:
        """The adapter's arrays as they are now."""
        return lora.parameters(self.model)

    def optimizer_state(self) -> dict[str, Any]:
        """The optimizer's arrays, each named by the adapter's that it belongs to."""
        return self.buckets.named(self.optimizer.state)

    def files(self, about: Mapping[str, Any]) -> dict[str, bytes]:
        """What a checkpoint holds of this state beside the adapter; `about` goes into `state.json`.

        Raises TrainingError when the adapter is not finite: such a one is never saved.
        """
        if bad := [name for name, array in self.adapter().items() if not mx.isfinite(array).all()]:
            raise TrainingError("the adapter holds NaN or infinity and is not saved", bad[:5])
        state = {"progress": asdict(self.progress), **about}
        found = {
            checkpoint.OPTIMIZER: lora_files.to_bytes(self.optimizer_state()),
            checkpoint.STATE: (json.dumps(state, indent=1, allow_nan=False) + "\n").encode(),
        }
        if self.best_adapter is not None and self.progress.best_step != self.progress.step:
            found[checkpoint.BEST] = lora_files.to_bytes(self.best_adapter)
        return found

    def check(self, saved: Checkpoint) -> None:
        """Raise CheckpointError when `saved` is of another shape than this state."""
        faults = _mismatches("adapter", self.adapter(), saved.adapter)
        faults += _mismatches("optimizer", self.optimizer_state(), saved.optimizer)
        progress = progress_of(saved)
        if saved.best is not None:
            faults += _mismatches("best", self.adapter(), saved.best)
        elif progress.best_step not in (0, progress.step):
            faults.append("best: missing")
        if faults:
            more = [f"and {len(faults) - 10} more"] if len(faults) > 10 else []
            raise CheckpointError(f"{saved.folder} does not fit this run", [*faults[:10], *more])

    def restore(self, saved: Checkpoint) -> None:
        """Take over the arrays that were saved; the counters in `progress` are the caller's."""
        self.restore_arrays(saved)
        progress = self.progress
        own = progress.best_step == progress.step > 0
        self.best_adapter = saved.adapter if own else saved.best

    def restore_arrays(self, saved: Checkpoint) -> None:
        """Take adapter and optimizer back, and nothing else."""
        self.model.load_weights(list(saved.adapter.items()), strict=False)
        # By the names of the tree as it is, which also has empty branches. In place: a compiled
        # step watches this very dictionary.
        arrays = self.buckets.unnamed(dict(saved.optimizer), self.optimizer.state)
        self.optimizer.state.update(
            tree_map_with_path(lambda name, _: arrays[name], self.optimizer.state)
        )
        mx.eval(self.model.trainable_parameters(), self.optimizer.state)

    def record_validation(self, loss: float, min_delta: float) -> bool:
        """Take note of a validation loss; True when it is the best so far.

        A gain smaller than `min_delta` keeps the better adapter but does not reset the patience;
        small gains count once they add up to it.
        """
        progress = self.progress
        before, last = progress.best_loss, progress.patience_loss
        finite = math.isfinite(loss)  # NaN as the best would never be beaten
        progress.validated_step, progress.last_loss = progress.step, loss if finite else None
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


def progress_of(saved: Checkpoint) -> Progress:
    """The counters in a checkpoint. Raises CheckpointError when another version wrote them."""
    given = saved.state["progress"]
    kinds = {field.name: str(field.type) for field in fields(Progress)}
    faults = [f"{name}: unknown" for name in sorted(given.keys() - kinds.keys())]
    faults += [
        f"{name}: {repr(given[name])[:60]}, expected {kind}"
        for name, kind in kinds.items()
        if name in given and not _is_a(kind, given[name])
    ]
    if faults:
        raise CheckpointError(f"{saved.folder} was written by another version", faults)
    return Progress(**given)


def _is_a(kind: str, value: Any) -> bool:
    """Whether a value of a JSON file is one of a counter: of its type, and no negative count."""
    if kind == "list[float]":
        return isinstance(value, list) and all(_is_a("float", item) for item in value)
    if kind == "int":
        return type(value) is int and value >= 0
    return type(value) in (int, float) or (value is None and kind.endswith("None"))


def _mismatches(what: str, expected: Arrays, found: Arrays) -> list[str]:
    faults = [f"{what} {name}: missing" for name in sorted(expected.keys() - found.keys())]
    faults += [f"{what} {name}: not of this run" for name in sorted(found.keys() - expected.keys())]
    return faults + [
        f"{what} {name}: {found[name].shape} {found[name].dtype}, expected "
        f"{expected[name].shape} {expected[name].dtype}"
        for name in sorted(expected.keys() & found.keys())
        if (found[name].shape, found[name].dtype) != (expected[name].shape, expected[name].dtype)
    ]
