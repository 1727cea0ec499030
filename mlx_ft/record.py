"""What a run leaves behind: every figure goes to `metrics.jsonl` and to the tracker alike."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from itertools import zip_longest
from pathlib import Path
from typing import Any

from mlx_ft import data_report, lora
from mlx_ft.accept import Accepted
from mlx_ft.config.schema import Config, DataConfig
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.memory import Usage
from mlx_ft.runfolder import RunFolder
from mlx_ft.state import TrainState
from mlx_ft.tracking import build_tracker
from mlx_ft.trainer import Plan, StepResult

logger = logging.getLogger(__name__)


class Record:
    """The records of one run: its folder and its tracker."""

    def __init__(
        self,
        config: Config,
        public: Mapping[str, Any],
        folder: RunFolder,
        parent_run_id: str | None,
    ) -> None:
        self.config = config
        self.public = public
        self.folder = folder
        self.tracker = build_tracker(config, parent_run_id)
        self.rows: list[dict[str, Any]] = []

    def begin(
        self,
        accepted: Accepted,
        plan: Plan,
        overrides: Sequence[str],
        choices: Mapping[str, str],
    ) -> None:
        """Save the configuration, open the tracked run, say what is about to happen."""
        config, stats = self.config, accepted.dataset.stats
        self.folder.write_config(self.public)
        located = accepted.loaded.located
        tags = {
            "mlx_ft.run_dir": str(self.folder.path),
            "mlx_ft.overrides": " ".join(overrides),
            "mlx_ft.choices": " ".join(f"{key}={value}" for key, value in choices.items()),
            "mlx_ft.device": accepted.device,
            "mlx_ft.model": f"{located.name} ({located.source})",
            "mlx_ft.model_revision": located.revision or "none",
        }
        name = config.tracking.run_name or self.folder.path.name
        self.tracker.start(name, self.public, tags)
        self.tracker.log_dataset(
            _data_name(config.data),
            accepted.dataset.digest,
            ", ".join(file["path"] for file in accepted.dataset.report["files"])[:500],
            stats,
            "training",
        )
        self.tracker.log_file(self.folder.path / "config.yaml")
        self._data_report(accepted)
        trainable = lora.count(accepted.loaded.model)
        logger.info(
            "%s on %s: %s trainable parameters in %d layers; %d training rows, %d steps "
            "of %d x %d rows (%.2f epochs); run folder %s",
            located.name,
            accepted.device,
            f"{trainable:,}",
            accepted.adapter.num_layers,
            len(accepted.dataset.train),
            plan.steps,
            plan.accumulation,
            config.memory_profile.micro_batch_size,
            plan.epochs,
            self.folder.path,
        )

    def _data_report(self, accepted: Accepted) -> None:
        """The report on the data, and the rows that were left out."""
        folder = self.folder.path / "data"
        data_report.write(folder, accepted.dataset, None)
        self.tracker.log_file(folder)

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note figures of one step in both places."""
        row = {"step": step, **values}
        self.rows.append(row)
        self.folder.append_metrics(row)
        self.tracker.log_metrics(values, step)

    def step(self, result: StepResult, usage: Usage) -> None:
        """One optimizer step; a skipped one has no loss, but counts."""
        self.metrics(
            result.step,
            {
                "train/loss": result.loss,
                "train/learning_rate": result.learning_rate,
                "train/grad_norm": result.grad_norm,
                "train/tokens_per_second": result.tokens / result.seconds,
                "train/target_tokens": result.target_tokens,
                "memory/mlx_peak_gb": usage.peak,
                "memory/mlx_active_gb": usage.active,
                "memory/mlx_cache_gb": usage.cache,
                "memory/rss_gb": usage.rss,
            },
        )
        if result.step % self.config.train.log_every == 0:
            self.tracker.flush()

    def validation(self, step: int, result: Validation) -> None:
        """A validation: loss and perplexity."""
        logger.info(
            "validation at step %d: loss %.4f, perplexity %.3f",
            step,
            result.loss,
            result.perplexity,
        )
        self.metrics(step, {"val/loss": result.loss, "val/perplexity": result.perplexity})
        self.tracker.flush()

    def accuracy(self, step: int, value: float, count: int) -> None:
        """The task metric on generated answers."""
        logger.info("task accuracy at step %d: %.1f%% of %d", step, 100 * value, count)
        self.metrics(step, {"task/accuracy": value})
        self.tracker.flush()

    def adapter(self, state: TrainState, accepted: Accepted, folder: Path | None = None) -> None:
        """Write the adapter as it is now, with what it was made from."""
        located = accepted.loaded.located
        about = {
            "base_model": self.public["model"]["path"],
            "base_name": located.name,
            "base_revision": located.revision,
            "step": state.progress.step,
            "lora": asdict(self.config.lora),
            "run_id": self.tracker.run_id,
        }
        template = {"chat_template.jinja": accepted.dataset.template.text}
        lora.save(state.adapter(), accepted.adapter, folder or self.folder.adapter, about, template)

    def checkpoint(self, state: TrainState, accepted: Accepted) -> None:
        """Save the adapter on the way; keep the last `checkpoint.keep_last` of them."""
        step = state.progress.step
        self.adapter(state, accepted, self.folder.checkpoints / f"step-{step:06d}")
        saved = sorted(self.folder.checkpoints.glob("step-*"), key=_step)
        for old in saved[: -self.config.checkpoint.keep_last]:
            shutil.rmtree(old)
        self.tracker.flush()

    def end(
        self, summary: dict[str, Any], before: Sequence[Answer], after: Sequence[Answer]
    ) -> None:
        """Figures, samples, summary and adapter; then the tracked run's status."""
        try:
            self._write_end(summary, before, after)
        except BaseException as error:
            self.tracker.end("FAILED", f"the end of the run could not be written: {error}")
            raise
        self.tracker.end(summary["status"], summary["reason"])

    def _write_end(
        self, summary: dict[str, Any], before: Sequence[Answer], after: Sequence[Answer]
    ) -> None:
        rows = sample_rows(before, after)
        self.folder.write_rows("samples.jsonl", rows)
        if rows:
            self.tracker.log_table("samples", rows)
            self.tracker.log_file(self.folder.path / "samples.jsonl")
        self.folder.write_summary(summary)
        self.metrics(summary["steps"], _final(summary))
        self._figures()
        self.tracker.log_file(self.folder.path / "summary.json")
        if self.folder.adapter.exists():
            self.tracker.log_file(self.folder.adapter)
        for handler in logging.getLogger("mlx_ft").handlers:
            handler.flush()
        self.tracker.log_file(self.folder.path / "train.log")

    def _figures(self) -> None:
        if not self.rows:
            return
        from mlx_ft import plots

        figures = self.folder.path / "figures"
        for name, figure in plots.training_figures(self.rows).items():
            content = plots.png(figure)
            if name == "loss":
                self.folder.write_bytes("loss.png", content)
            figures.mkdir(exist_ok=True)
            (figures / f"{name}.png").write_bytes(content)
        if figures.exists():  # a run that ended before its first step has none
            self.tracker.log_file(figures)


def _final(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figures of the adapter that was kept, which need not be the last step's."""
    names = {
        "final/val_loss": "val_loss_after",
        "final/perplexity": "perplexity_after",
        "final/accuracy": "accuracy_after",
        "final/best_step": "best_step",
    }
    return {name: summary[key] for name, key in names.items() if summary[key] is not None}


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("step-"))


def _data_name(config: DataConfig) -> str:
    """`geography_sql` of `builtin:geography_sql`, `rows` of `my/rows.jsonl`."""
    if not isinstance(config.path, str):
        return "mixture"
    return Path(config.path.rpartition(":")[2]).name.split(".")[0]


def sample_rows(before: Sequence[Answer], after: Sequence[Answer]) -> list[dict[str, Any]]:
    """One row per question: the answers of the base model and of the tuned one."""
    rows = []
    for old, new in zip_longest(before, after):
        known = new or old
        rows.append(
            {
                "question": known.question,
                "expected": known.reference,
                "before": old.prediction if old else None,
                "correct_before": old.correct if old else None,
                "after": new.prediction if new else None,
                "correct_after": new.correct if new else None,
                "kind": known.kind,
            }
        )
    return rows
