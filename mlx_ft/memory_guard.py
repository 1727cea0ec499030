"""Between the trainer and the end of the memory: asked before a batch, told after it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext

import mlx.core as mx
import numpy as np

from mlx_ft import lora, lora_files, together
from mlx_ft.config.schema import Config
from mlx_ft.crash import CrashLog
from mlx_ft.errors import TrainingError
from mlx_ft.memory_estimate import Dimensions, Estimate, estimate
from mlx_ft.memory_knobs import advice
from mlx_ft.memory_reading import Reader
from mlx_ft.memory_watch import MemoryWatch, Notice
from mlx_ft.models.architecture import weight_bytes
from mlx_ft.models.forward import Forward
from mlx_ft.models.load import Loaded, total_parameters
from mlx_ft.state import Progress

logger = logging.getLogger(__name__)

Advise = Callable[[int, int], list[str]]  # (columns, targets of a row) -> what saves memory


def no_advice(_columns: int, _targets: int) -> list[str]:
    """For a trainer that knows no configuration."""
    return []


class MemoryGuard:
    """Watch, crash log and advice in one; each may be missing.

    A micro-batch is taken in `Progress.parts` parts, or more where the watch says so. The parts
    are doubled for good when memory did run out.
    """

    def __init__(
        self,
        watch: MemoryWatch | None = None,
        log: CrashLog | None = None,
        advise: Advise = no_advice,
    ) -> None:
        self._watch = watch
        self._log = log
        self._advise = advise

    @contextmanager
    def batch(self, mask: np.ndarray, at_least: int) -> Iterator[int]:
        """The number of parts in which to take a batch, marked while it is dangerous.

        mask: (B, T), its targets. Raises TrainingError for one that would end the process.
        """
        if self._watch is None:
            yield min(at_least, len(mask))
            return
        split = self._watch.split(mask, at_least)
        if split.why:
            logger.warning("memory: %s", split.why)
        if split.refused:
            raise self._too_large(mask, f"it would end the process: {split.why}")
        if self._log is not None and split.pressure:
            self._log.mark(split.parts)
        try:
            yield split.parts
        finally:  # a crash comes by here no more
            if self._log is not None and split.pressure:
                self._log.unmark()

    def part(self, mask: np.ndarray) -> AbstractContextManager[None]:
        """Around the work on one part: what it takes is learned."""
        return nullcontext() if self._watch is None else self._watch.observing(mask)

    def ran_out(self, reason: str, mask: np.ndarray, taken: int, progress: Progress) -> None:
        """Memory ran out on this batch, taken in so many parts: take smaller ones from now on.

        Raises TrainingError when a part was a single row.
        """
        mx.clear_cache()
        progress.out_of_memory += 1
        if taken >= len(mask):
            raise self._too_large(mask, reason)
        progress.parts = min(2 * taken, len(mask))
        if self._log is not None:
            self._log.set_parts(progress.parts)
        logger.warning(
            "memory ran out (%s): every micro-batch is taken in %d parts from now on; the "
            "effective batch stays as it is. memory_profile.micro_batch_size=%d does it from the "
            "start",
            reason.splitlines()[0][:200],
            progress.parts,
            max(1, len(mask) // progress.parts),
        )

    def no_update(self, reason: str) -> TrainingError:
        """Memory ran out in the optimizer's update, which no smaller batch changes."""
        return TrainingError(
            f"memory ran out in the optimizer's update ({reason}). What saves memory here:",
            [*self._advise(0, 0), "optimizer=sgd or lion keeps one array a weight, adamw two"],
        )

    def learned(self) -> dict[str, float]:
        """What the watch learned of the steps' needs, for a checkpoint."""
        return {} if self._watch is None else self._watch.learned()

    def resume(self, learned: Mapping[str, float]) -> None:
        """Go on from what an earlier process learned."""
        if self._watch is not None:
            self._watch.resume(learned)

    def set_log(self, log: CrashLog) -> None:
        """From now on leave marks in `log`."""
        self._log = log

    def advice(self, columns: int) -> list[str]:
        """What saves memory for a row of `columns` tokens, the best first."""
        return self._advise(columns, columns)

    def check(self) -> Notice | None:
        """What there is to say of the memory after a step."""
        return None if self._watch is None else self._watch.check()

    @property
    def peak(self) -> int | None:
        """MLX's peak of the whole run, bytes; None: ask MLX."""
        return None if self._watch is None else self._watch.peak

    def _too_large(self, mask: np.ndarray, reason: str) -> TrainingError:
        rows, columns = mask.shape
        return TrainingError(
            f"memory ran out on a single row of up to {columns} tokens ({reason}). What saves "
            "memory here, by what it saves:",
            self._advise(columns, int(mask.sum(axis=1).max())) if rows else [],
        )


def job(config: Config, loaded: Loaded, adapter: lora_files.Adapter, forward: Forward) -> Estimate:
    """The memory of a run whose model has its adapter on."""
    model, trainable = loaded.model, lora.count(loaded.model)
    parameters = total_parameters(model) - trainable
    return estimate(
        config,
        Dimensions.read(loaded.located.config, len(model.layers), parameters),
        parameters=parameters,
        weights=weight_bytes(model),
        trainable=trainable,
        adapted=adapter.num_layers,
        below=sum(map(total_parameters, model.layers[: -adapter.num_layers])),
        full_logits=not (forward.splits and config.train.targets_only),
    )


def build(
    config: Config,
    loaded: Loaded,
    adapter: lora_files.Adapter,
    device: str,
    forward: Forward,
    *,
    short: bool = False,
) -> MemoryGuard:
    """The guard of a run whose model has its adapter on.

    short: it was said that a single row does not fit.
    One that trains with others has none that measures: their memory is not told from its own.
    """
    if together.seat() is not None:
        return MemoryGuard()
    needed = job(config, loaded, adapter, forward)
    watch = MemoryWatch(
        needed,
        device=device,
        limit_gb=config.memory_profile.memory_limit_gb,
        read=Reader(device),
        reset_peak=mx.reset_peak_memory,
        short=short,
    )
    packed = "quantization" in loaded.located.config

    def advise(columns: int, targets: int) -> list[str]:
        return advice(needed, columns, targets, device=device, packed=packed)

    return MemoryGuard(watch, None, advise)
