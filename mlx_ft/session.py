"""One run in progress: what was accepted, the training between evaluations, the records."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_ft import memory, memory_guard, optim, resume, summary, tracking, trainer
from mlx_ft.accept import Accepted
from mlx_ft.console import Display
from mlx_ft.crash import CrashLog, last_crash
from mlx_ft.data import batch as batching
from mlx_ft.data.arrays import pad_id
from mlx_ft.errors import CheckpointError, TeamError, TrainingError
from mlx_ft.evaluation import Validation
from mlx_ft.interrupt import StopSignal
from mlx_ft.judge import Judge
from mlx_ft.keeper import Keeper
from mlx_ft.outcome import finished_already, show_result, shown
from mlx_ft.record import Record
from mlx_ft.resume import Resumed
from mlx_ft.runfolder import RunFolder
from mlx_ft.state import TrainState, progress_of
from mlx_ft.step import Compute
from mlx_ft.stopping import Prune, Stopping
from mlx_ft.target import Target
from mlx_ft.team import Team
from mlx_ft.trainer import StepResult

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunResult:
    """How a run ended. status: FINISHED, FAILED or KILLED; objective: what a sweep minimises."""

    status: str
    objective: float | None
    run_dir: Path
    run_id: str | None
    summary: dict[str, Any] = field(default_factory=dict)


class Session:
    """The part of a run that writes: from the accepted run to its recorded end."""

    def __init__(
        self,
        accepted: Accepted,
        folder: RunFolder,
        console: Console,
        started: float,
        parent_run_id: str | None,
        stop: StopSignal,
        prune: Prune | None = None,
        team: Team | None = None,
    ) -> None:
        """started: `time.monotonic()` when the process began with the run. stop: entered.

        team: of the processes that compute its gradients with this one.
        """
        self.accepted = accepted
        self.config = accepted.config
        self.folder = folder
        self.console = console
        self.stop = stop
        self.team = team
        self.stopping = Stopping(self.config, prune)
        profile = self.config.memory_profile
        filling = pad_id(accepted.dataset.known, accepted.vocabulary)
        self.batches = batching.Batches(
            accepted.dataset.train,
            profile.micro_batch_size,
            self.config.seed,
            pad_id=filling,
            weights=accepted.dataset.weights,
        )
        optimizer = optim.build_optimizer(self.config.optimizer)
        self.state = TrainState(accepted.loaded.model, optimizer)
        self.plan = self._plan()
        self.record = Record(accepted.config, accepted.public, folder, parent_run_id)
        self.fingerprint = resume.fingerprint(accepted)
        self.guard = memory_guard.build(
            self.config, accepted.loaded, accepted.adapter, accepted.device, accepted.forward,
            short=accepted.short,
        )  # fmt: skip
        self.crash = last_crash(folder.path)
        self.resumed: Resumed | None = None
        self.training = False  # whether the model holds the adapter that is being trained
        self.judge = Judge(accepted, self.record, self.stop, filling)
        self.kept: Validation | None = None
        self.keeper = Keeper(
            accepted,
            self.record,
            self.state,
            self.guard,
            self.plan.steps,
            self.fingerprint,
            started,
        )

    def find_checkpoint(self, target: Target) -> bool:
        """Look up what the run has to go on from; False when it is finished. Changes nothing.

        Raises CheckpointError.
        """
        self.resumed = resume.read(target, self.fingerprint, self.config.train.resume_allow)
        saved, summary = self.resumed.saved, self.resumed.summary
        if saved is None:
            if summary.get("status") == "FINISHED":
                raise CheckpointError(
                    f"{target.folder} is finished and has no checkpoint to go on from. Nothing "
                    "was changed; train in a new folder"
                )
            return True
        self.state.check(saved)
        resume.check_done(saved, self.config.train, len(self.batches))
        self.state.progress = progress_of(saved)  # whatever fails now, so much is done
        self.plan = self._plan()
        self.keeper.plan_steps = self.plan.steps
        self.judge.recall()
        resume.check_length(saved, self.plan, self.config.optimizer)
        if self.stopping.prune is not None and summary.get("pruned"):
            return False
        return not resume.is_finished(
            self.resumed, self.plan, self.config.train.early_stopping_patience
        )

    def _plan(self) -> trainer.Plan:
        """How far to go, counted from where the run stands."""
        progress, config = self.state.progress, self.config
        done = progress.step, progress.micro_step
        accumulation = config.memory_profile.grad_accumulation_steps
        return trainer.plan(config.train, len(self.batches), accumulation, done)

    def already_finished(self) -> RunResult:
        """The result of a run that has nothing left to do; lets go of its folder."""
        assert self.resumed is not None
        summary, folder = self.resumed.summary, self.folder.path
        self.folder.release()
        if self.config.tracking.backend != "none":  # it may have been killed just then
            synced = tracking.sync_run(folder, self.config)
            if not synced.ok:
                logger.warning("the tracker lacks %d things: %s", synced.left, synced.problem)
        saved = self.resumed.saved
        stopped_early = saved is not None and saved.step < saved.state["plan_steps"]
        print(finished_already(summary, folder, stopped_early=stopped_early))
        loss, run_id = summary.get("val_loss_after"), summary.get("run_id")
        return RunResult("FINISHED", loss, folder, run_id, summary)

    def begin(self, overrides: Sequence[str], choices: Mapping[str, str]) -> None:
        """Open the records: config, tracker, dataset."""
        self.record.begin(
            self.accepted,
            self.plan,
            overrides,
            choices,
            self.fingerprint,
            resumed=self.resumed is not None,
        )

    def train(self) -> None:
        """Judge the base, train, keep the best adapter, judge it."""
        if self.resumed is not None:
            self.keeper.tidy(self.resumed, self.crash)
        progress = self.state.progress
        with (
            Display(self.console, self.plan.steps, self.config.train.log_every) as display,
            CrashLog(self.folder.path, progress.parts) as crash_log,
        ):
            self.guard.set_log(crash_log)
            restart = self.resumed is not None and self.resumed.saved is None
            self.judge.base(display, again=self.resumed is not None, restart=restart)
            if self.resumed is not None:
                self.keeper.restore(self.resumed)
            self.training = True
            display.training(progress.step)
            try:
                self._train_steps(display)
            except TeamError:
                self.keeper.save()  # the others are gone, and what was learned is all here
                raise
            if self.keeper.has_news():
                self.keeper.save()  # a longer run can go on from here
            self._keep_adapter()
            if self.stopping.pruned is None:  # nobody is to wait for answers of a hopeless one
                self.judge.answers_after = self.judge.answers(display, progress.step)

    def _train_steps(self, display: Display) -> None:
        config = self.config
        if self._between_steps(display):  # what is still to be done where a stopped run stands
            return
        for result in trainer.train(
            self.state,
            self.batches,
            self.plan,
            config.optimizer,
            config.train,
            seed=config.seed,
            compute=Compute.of(config),
            forward=self.accepted.forward,
            guard=self.guard,
            team=self.team,
        ):
            self._note(result, display)
            if self._between_steps(display):
                return

    def _note(self, result: StepResult, display: Display) -> None:
        usage, progress = memory.usage(), self.state.progress
        if self.guard.peak is not None:  # which forgets MLX's own peak at each batch
            usage = replace(usage, peak=self.guard.peak / memory.GIB)
        progress.peak_memory_gb = max(progress.peak_memory_gb, usage.peak)
        display.step(result, usage)
        self.record.step(result, usage, progress)
        if result.spike and self.config.train.on_spike == "rewind":
            self.keeper.rewind()
        if (notice := self.guard.check()) is not None:
            logger.warning("memory: %s", notice.message)
            if notice.stop:
                self.keeper.save()
                raise TrainingError(f"{notice.message}. Close other programs, then go on")
        self.stop.check()

    def _between_steps(self, display: Display) -> bool:
        """Validate and save where it is due; True when the training is to stop early."""
        progress, every = self.state.progress, self.stopping.interval(self.plan.steps)
        step, last = progress.step, progress.micro_step >= self.plan.micro_steps
        if step == 0:
            return False
        due = last or (every and step % every == 0)
        if due and progress.validated_step != step:  # else done before the run was stopped
            result = self.judge.validate(display, step)
            if result is not None:
                min_delta = self.config.train.early_stopping_min_delta
                self.state.record_validation(result.loss, min_delta)
            display.training(step)
        if progress.validated_step == step and self.stopping.stops(progress, last=last):
            return True
        every = self.config.checkpoint.every
        if not last and every and step % every == 0 and self.keeper.has_news():
            self.keeper.save()
        return False

    def _keep_adapter(self) -> None:
        """Write the adapter that the run ends with; `kept` is its validation, if it had one."""
        progress = self.state.progress
        self.training = False
        if self.config.checkpoint.best and progress.best_loss is not None:
            self.state.restore_best()
            self.kept = Validation(progress.best_loss, 0)
        elif progress.validated_step == progress.step and progress.last_loss is not None:
            self.kept = Validation(progress.last_loss, 0)
        before, after = self.judge.before, self.kept
        if before is not None and after is not None and after.loss > before.loss:
            logger.warning(
                "the validation loss of this adapter is %.4f, above the %.4f of the base model: "
                "the training did harm. Lower optimizer.learning_rate, and look at the rows",
                after.loss,
                before.loss,
            )
        self.record.adapter(self.state, self.accepted)

    def end(self, status: str, reason: str | None = None) -> RunResult:
        """Write what there is, whatever happened, and close the records."""
        if self.training and self.state.progress.step:  # the run ended early
            if status == "KILLED" and self.keeper.has_news():
                self.keeper.save()
            self._keep_adapter()
        summary = self.summary(status, reason)
        self.record.end(summary, self.judge.answers_before, self.judge.answers_after)
        self.record.notify(summary)
        if status == "FINISHED" and self.stopping.pruned is None:
            try:
                place = shown(self.folder.path)
                show_result(summary, self.judge.samples(), place, self.config)
                sys.stdout.flush()
            except (OSError, UnicodeError) as error:  # a full or closed stdout is no failed run
                logger.warning("the result could not be shown: %s", error)
                sys.stdout = sys.stderr
        return RunResult(
            status, summary["val_loss_after"], self.folder.path, summary["run_id"], summary
        )

    def summary(self, status: str, reason: str | None) -> dict[str, Any]:
        """The contract of `summary.json`; see docs/runs.md."""
        self.keeper.count_seconds()
        adapter, pruned = self.folder.adapter, self.stopping.pruned
        return {
            "status": status,
            "reason": reason or pruned,
            "pruned": status == "FINISHED" and pruned is not None,
            "planned_steps": self.plan.steps,
            "run_id": self.record.tracker.run_id,
            **summary.build(
                self.accepted,
                self.state,
                self.state.progress.micro_step / len(self.batches),
                self.judge.before,
                self.kept,
                (self.judge.answers_before, self.judge.answers_after),
            ),
            "adapter_path": str(adapter) if adapter.exists() else None,
        }
