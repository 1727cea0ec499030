"""One run in progress: what was accepted, the training between evaluations, the records."""

from __future__ import annotations

import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console

from mlx_ft import evaluation, lora, memory, optim, trainer
from mlx_ft.accept import Accepted
from mlx_ft.console import Display
from mlx_ft.data import batch as batching
from mlx_ft.data.arrays import pad_id
from mlx_ft.errors import TrainingError
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.interrupt import StopSignal
from mlx_ft.models import load as models
from mlx_ft.outcome import show_result, shown
from mlx_ft.record import Record
from mlx_ft.runfolder import RunFolder
from mlx_ft.state import TrainState

logger = logging.getLogger(__name__)

FEW_STEPS = 6


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
    ) -> None:
        self.accepted = accepted
        self.config = accepted.config
        self.folder = folder
        self.console = console
        self.started = started
        self.stop = StopSignal()
        profile = self.config.memory_profile
        filling = pad_id(accepted.loaded.tokenizer, accepted.vocabulary)
        self.batches = batching.Batches(
            accepted.dataset.train,
            profile.micro_batch_size,
            self.config.seed,
            pad_id=filling,
            weights=accepted.dataset.weights,
        )
        self.valid = list(
            batching.sequential(
                accepted.dataset.valid[: self.config.eval.max_rows],
                self.config.eval.batch_size,
                pad_id=filling,
            )
        )
        self.plan = trainer.plan(
            self.config.train, len(self.batches), profile.grad_accumulation_steps
        )
        optimizer = optim.build_optimizer(self.config.optimizer)
        model = accepted.loaded.model
        optimizer.init(model.trainable_parameters())
        self.state = TrainState(model, optimizer)
        self.record = Record(accepted.config, accepted.public, folder, parent_run_id)
        self.before: Validation | None = None
        self.after: Validation | None = None
        self.after_step = 0
        self.kept: Validation | None = None
        self.answers_before: list[Answer] = []
        self.answers_after: list[Answer] = []

    def begin(self, overrides: Sequence[str], choices: Mapping[str, str]) -> None:
        """Open the records: config, tracker, dataset."""
        self.record.begin(self.accepted, self.plan, overrides, choices)

    def train(self) -> None:
        """Judge the base, train, keep the best adapter, judge it."""
        with Display(self.console, self.plan.steps, self.config.train.log_every) as display:
            if self.config.eval.before:
                self.before = self._validate(display)
                _check_base(self.before)
                self.answers_before = self._answer(display)
            display.training(0)
            self._train_steps(display)
            self._keep_adapter()
            self.answers_after = self._answer(display)

    def _train_steps(self, display: Display) -> None:
        config = self.config
        every = self._validation_interval()
        for result in trainer.train(
            self.state,
            self.batches,
            self.plan,
            config.optimizer,
            config.train,
            seed=config.seed,
            compiled=bool(config.train.compile),
        ):
            usage = memory.usage()
            display.step(result, usage)
            self.record.step(result, usage)
            self.stop.check()
            last = result.step == self.plan.steps
            if config.checkpoint.every and result.step % config.checkpoint.every == 0:
                self.record.checkpoint(self.state, self.accepted)
            if last or (every and result.step % every == 0):
                self.after, self.after_step = self._validate(display), result.step
                if self._finished_early():
                    return
                display.training(result.step)

    def _validation_interval(self) -> int:
        """Steps between validations; `auto`: two in all, or enough for the patience to run out."""
        if self.config.eval.every != "auto":
            return int(self.config.eval.every)
        patience = self.config.train.early_stopping_patience
        if patience is None and self.plan.steps < FEW_STEPS:
            return 0  # halfway would be next to the end
        count = 2 if patience is None else 3 * (patience + 1)
        return math.ceil(self.plan.steps / count)

    def _finished_early(self) -> bool:
        if self.after is None:
            return False
        train = self.config.train
        self.state.record_validation(self.after.loss, train.early_stopping_min_delta)
        waited = self.state.progress.evaluations_without_gain
        if train.early_stopping_patience is None or waited < train.early_stopping_patience:
            return False
        logger.info(
            "early stopping at step %d: no gain in %d validations (best %.4f at step %d)",
            self.state.progress.step,
            waited,
            self.state.progress.best_loss,
            self.state.progress.best_step,
        )
        return True

    def _validate(self, display: Display) -> Validation | None:
        if not self.valid:
            return None
        display.phase("validating", len(self.valid))

        def shown(batches: Sequence[batching.Batch]) -> Any:
            for batch in batches:
                yield batch
                display.advance()

        with self.stop.at_once():
            result = evaluation.validation_loss(self.state.model, shown(self.valid))
        self.record.validation(self.state.progress.step, result)
        return result

    def _answer(self, display: Display) -> list[Answer]:
        metric, rows = self.accepted.metric, self.accepted.dataset.test
        rows = rows[: self.config.eval.task_rows]
        if metric is None or not rows:
            return []
        display.phase("answering", len(rows))
        judged = []
        loaded = self.accepted.loaded
        with self.stop.at_once():
            for answer in evaluation.answers(
                loaded.model, loaded.tokenizer, rows, metric, self.config.eval
            ):
                judged.append(answer)
                display.advance()
        self.record.accuracy(self.state.progress.step, evaluation.accuracy(judged), len(judged))
        return judged

    def _keep_adapter(self) -> None:
        """Write the adapter that the run ends with; `kept` is its validation, if it had one."""
        best = self.state.progress.best_loss
        if self.config.checkpoint.best and best is not None:
            self.state.restore_best()
            self.kept = Validation(best, 0)
        elif self.after is not None and self.after_step == self.state.progress.step:
            self.kept = self.after
        self.record.adapter(self.state, self.accepted)

    def end(self, status: str, reason: str | None = None) -> RunResult:
        """Write what there is, whatever happened, and close the records."""
        if self.state.progress.step and not self.folder.adapter.exists():
            self._keep_adapter()  # the run ended early
        summary = self.summary(status, reason)
        self.record.end(summary, self.answers_before, self.answers_after)
        if status == "FINISHED":
            try:
                self._show(summary)
                sys.stdout.flush()
            except (OSError, UnicodeError) as error:  # a full or closed stdout is no failed run
                logger.warning("the result could not be shown: %s", error)
                sys.stdout = sys.stderr
        return RunResult(
            status, summary["val_loss_after"], self.folder.path, summary["run_id"], summary
        )

    def _show(self, summary: Mapping[str, Any]) -> None:
        befores: list[Answer | None] = list(self.answers_before) or [None] * len(self.answers_after)
        pairs = list(zip(befores, self.answers_after, strict=True))
        count = self.config.eval.samples
        # Spread over the rows: neighbours are often of one kind.
        stride = max(1, len(pairs) // count) if count else 1
        show_result(summary, pairs[::stride][:count], shown(self.folder.path), self.config)

    def summary(self, status: str, reason: str | None) -> dict[str, Any]:
        """The contract of `summary.json`; see docs/runs.md."""
        progress, accepted = self.state.progress, self.accepted
        final = self.kept
        seconds = progress.train_seconds
        return {
            "status": status,
            "reason": reason,
            "run_id": self.record.tracker.run_id,
            "seed": self.config.seed,
            "model": accepted.loaded.located.name,
            "device": accepted.device,
            "steps": progress.step,
            "epochs": round(progress.micro_step / len(self.batches), 4),
            "tokens": progress.tokens,
            "target_tokens": progress.target_tokens,
            "tokens_per_second": progress.tokens / seconds if seconds else 0.0,
            "wall_seconds": time.time() - self.started,
            "train_seconds": seconds,
            "peak_memory_gb": memory.usage().peak,
            "trainable_parameters": lora.count(self.state.model),
            "total_parameters": models.total_parameters(self.state.model),
            "val_loss_before": self.before.loss if self.before else None,
            "val_loss_after": final.loss if final else None,
            "perplexity_before": self.before.perplexity if self.before else None,
            "perplexity_after": final.perplexity if final else None,
            "accuracy_before": _accuracy(self.answers_before),
            "accuracy_after": _accuracy(self.answers_after),
            "system_prompt": accepted.dataset.report["system_prompt"],
            "working_dir": str(Path.cwd()),
            "best_step": progress.best_step or None,
            "skipped_steps": progress.skipped_steps,
            "adapter_path": str(self.folder.adapter) if self.folder.adapter.exists() else None,
        }


def _check_base(validation: Validation | None) -> None:
    if validation is not None and not math.isfinite(validation.loss):
        raise TrainingError(
            f"the base model's own validation loss is {validation.loss}: nothing can be learned "
            "from there. Set memory_profile.compute_dtype=float32, or check the model's weights"
        )


def _accuracy(judged: Sequence[Answer]) -> float | None:
    return evaluation.accuracy(judged) if judged else None
