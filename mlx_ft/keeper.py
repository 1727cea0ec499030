"""Keeps a run's state safe: checkpoints on the way, and the way back from them."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from typing import Any

from mlx_ft import checkpoint
from mlx_ft.accept import Accepted
from mlx_ft.crash import Crash
from mlx_ft.errors import CheckpointError
from mlx_ft.memory_guard import MemoryGuard
from mlx_ft.record import Record
from mlx_ft.resume import Resumed
from mlx_ft.runfolder import checkpoint_folders, step_of
from mlx_ft.state import TrainState, progress_of

logger = logging.getLogger(__name__)


class Keeper:
    """Saves and restores the state of one run.

    plan_steps: how far the run is to go; fingerprint: what makes it this run; started:
    `time.monotonic()` when this process began with it. saved_step: of the newest checkpoint;
    saved_validation: the step of the last validation that it knows.
    """

    def __init__(
        self,
        accepted: Accepted,
        record: Record,
        state: TrainState,
        guard: MemoryGuard,
        plan_steps: int,
        fingerprint: Mapping[str, Any],
        started: float,
    ) -> None:
        self.accepted = accepted
        self.config = accepted.config
        self.record = record
        self.checkpoints = record.folder.checkpoints
        self.state = state
        self.guard = guard
        self.plan_steps = plan_steps
        self.fingerprint = fingerprint
        self.started = started
        self.saved_step = 0
        self.saved_validation = 0
        self._earlier_seconds = 0.0

    def tidy(self, resumed: Resumed, crash: Crash | None) -> None:
        """Put out of the way what no run may take for a checkpoint; take over the counters.

        crash: what the run's last process ended with.
        """
        for folder, faults in resumed.damaged.items():
            checkpoint.set_aside(folder, faults)
        for folder in resumed.newer:
            checkpoint.set_aside(folder, ["an earlier checkpoint was asked for"])
        checkpoint.sweep(self.checkpoints)
        if resumed.saved is not None:
            self.state.progress = progress_of(resumed.saved)
            self._earlier_seconds = self.state.progress.wall_seconds
            self.guard.resume(resumed.saved.state["memory"])
        self.state.progress.resumes += 1
        if crash is not None:
            self._take_smaller_parts(crash)

    def _take_smaller_parts(self, crash: Crash) -> None:
        """Memory is taken to be why the last process died: half of it may do."""
        progress = self.state.progress
        progress.parts = max(progress.parts, 2 * crash.parts)
        progress.out_of_memory += 1
        logger.warning(
            "the last process of this run crashed (%s): every micro-batch is taken in %d parts "
            "from now on; the effective batch stays as it is",
            crash.reason,
            progress.parts,
        )
        profile = self.config.memory_profile
        if crash.parts >= profile.micro_batch_size:
            saves = "; ".join(self.guard.advice(profile.max_seq_length))
            logger.warning("it took single rows already. What saves memory here: %s", saves)

    def restore(self, resumed: Resumed) -> None:
        """Become the saved state: from here on the run is as if it had never stopped."""
        progress, saved = self.state.progress, resumed.saved
        self.record.note_resume(resumed.changes, progress)
        if saved is None:
            logger.info("the run begins again: it had not come to its first checkpoint")
            return
        self.state.restore(saved)
        self.saved_step, self.saved_validation = saved.step, progress.validated_step
        self.record.keep_rows(progress.metrics_rows)
        logger.info("the run goes on from %s, after step %d", saved.folder, progress.step)

    def rewind(self) -> None:
        """Take adapter and optimizer back to the last regular checkpoint; the data goes on."""
        progress, every = self.state.progress, self.config.checkpoint.every
        for folder in reversed(checkpoint_folders(self.checkpoints)):
            step = step_of(folder)
            if not every or step % every or step >= progress.step:
                continue  # one that a stop left is not there in a run that never stopped
            try:
                saved = checkpoint.load(folder)
            except CheckpointError as error:
                checkpoint.set_aside(folder, list(error.faults))
                continue
            self.state.restore_arrays(saved)
            progress.recent_losses = progress_of(saved).recent_losses
            progress.rewinds += 1
            logger.warning("rewound to the adapter of step %d after the spike", step)
            return
        logger.warning("there is no checkpoint to rewind to yet: the spike is only skipped")

    def has_news(self) -> bool:
        """Whether the state is further than the newest checkpoint: a step, or its validation."""
        progress = self.state.progress
        saved = self.saved_step, self.saved_validation
        return (progress.step, progress.validated_step) != saved

    def save(self) -> None:
        """Write a checkpoint of the state as it is; one of the same step knew less."""
        self.count_seconds()
        about = {
            "fingerprint": self.fingerprint,
            "plan_steps": self.plan_steps,
            "memory": self.guard.learned(),
        }
        progress = self.state.progress
        self.record.checkpoint(
            self.state, self.accepted, about, replace=progress.step == self.saved_step
        )
        self.saved_step, self.saved_validation = progress.step, progress.validated_step

    def count_seconds(self) -> None:
        """Bring the run's wall time up to now."""
        spent = time.monotonic() - self.started  # no clock change matters
        self.state.progress.wall_seconds = self._earlier_seconds + spent
