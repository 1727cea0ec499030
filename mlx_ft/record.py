"""What a run leaves behind: every figure goes to `metrics.jsonl` and to the tracker alike."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mlx_ft import checkpoint, data_report, lora, lora_files
from mlx_ft.accept import Accepted
from mlx_ft.config.schema import Config
from mlx_ft.data.prepare import Dataset
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.judgement import final_figures, sample_rows
from mlx_ft.memory import Usage
from mlx_ft.plural import counted
from mlx_ft.runfolder import JOURNAL, METRICS, ORIGIN, RunFolder
from mlx_ft.state import Progress, TrainState
from mlx_ft.tracking import build_tracker
from mlx_ft.tracking.webhook import notify
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
        self.tracker = build_tracker(config, parent_run_id, folder.path / JOURNAL)
        self.rows: list[dict[str, Any]] = []
        self.name = config.tracking.run_name or folder.path.name
        self._undrawn: Dataset | None = None
        self._base_weights: Any = None
        self._found = folder.read_metrics()  # of an earlier process of this run
        self._untouched = bool(self._found)  # until this one takes over from there

    def begin(
        self,
        accepted: Accepted,
        plan: Plan,
        overrides: Sequence[str],
        choices: Mapping[str, str],
        fingerprint: Mapping[str, Any],
        *,
        resumed: bool,
    ) -> None:
        """Save the configuration, open the tracked run, say what is about to happen."""
        self._untouched &= resumed
        self._base_weights = fingerprint["model"]["weights"]
        config, stats = self.config, accepted.dataset.stats
        origin = {"fingerprint": fingerprint, "steps": plan.steps, "working_dir": str(Path.cwd())}
        self.folder.write_text(ORIGIN, json.dumps(origin, indent=1) + "\n")
        self.folder.write_config(self._fresh_config())
        located = accepted.loaded.located
        tags = {
            "mlx_ft.run_dir": str(self.folder.path),
            **self._how(overrides, choices, resumed=resumed),
            "mlx_ft.device": accepted.device,
            "mlx_ft.model": f"{located.name} ({located.source})",
            "mlx_ft.model_revision": located.revision or "none",
        }
        self.tracker.start(self.name, self._fresh_config(), tags)
        self.tracker.log_dataset(
            data_report.name_of(config.data),
            accepted.dataset.digest,
            ", ".join(file["path"] for file in accepted.dataset.report["files"])[:500],
            stats,
            "training",
        )
        self.tracker.log_file(self.folder.path / "config.yaml")
        self._data_report(accepted.dataset)
        trainable = lora.count(accepted.loaded.model)
        logger.info(
            "%s on %s: %s trainable parameters in %s; %s, %s "
            "of %d x %d rows (%.2f epochs); run folder %s",
            located.name,
            accepted.device,
            f"{trainable:,}",
            counted(accepted.adapter.num_layers, "layer"),
            counted(len(accepted.dataset.train), "training row"),
            counted(plan.steps, "step"),
            plan.accumulation,
            config.memory_profile.micro_batch_size,
            plan.epochs,
            self.folder.path,
        )

    @staticmethod
    def _how(
        overrides: Sequence[str], choices: Mapping[str, str], *, resumed: bool
    ) -> dict[str, str]:
        """The command line as tags; how a run was begun stays when it goes on."""
        if resumed:
            return {"mlx_ft.resume_overrides": " ".join(overrides)}
        chosen = " ".join(f"{key}={value}" for key, value in choices.items())
        return {"mlx_ft.overrides": " ".join(overrides), "mlx_ft.choices": chosen}

    def _fresh_config(self) -> dict[str, Any]:
        """The configuration as it begins a run: what went on from where is not part of it."""
        train = {**self.public["train"], "resume": "never", "resume_allow": None}
        return {**self.public, "train": train}

    def keep_rows(self, count: int) -> None:
        """Keep the first `count` of the rows found in `metrics.jsonl`: the rest is done again."""
        if len(self._found) < count:
            logger.warning("metrics.jsonl has lost %d rows", count - len(self._found))
        self.rows, self._untouched = self._found[:count], False
        self.folder.write_rows(METRICS, self.rows)

    def note_resume(self, changes: Sequence[str], progress: Progress) -> None:
        """The run goes on: say so in the tracker; the summary of its last end holds no more."""
        (self.folder.path / "summary.json").unlink(missing_ok=True)
        tags = {"mlx_ft.resumes": str(progress.resumes)}
        if changes:
            tags["mlx_ft.resumed_with"] = f"from step {progress.step + 1}: {'; '.join(changes)}"
            logger.warning("resumed with changes, %s", tags["mlx_ft.resumed_with"])
        self.tracker.log_tags(tags)

    def _data_report(self, dataset: Dataset) -> None:
        """The report on the data, and the rows that were left out; its figure can wait."""
        folder = self.folder.path / "data"
        data_report.write_texts(folder, dataset, None)
        self.tracker.log_file(folder)
        self._undrawn = dataset

    def _draw_data(self) -> None:
        """The report's figure: once there are figures of the run, which nobody is to wait for."""
        if self._undrawn is not None:
            drawn, self._undrawn = self._undrawn, None
            path = data_report.draw(self.folder.path / "data", drawn)
            self.tracker.log_file(path, "data")

    def metrics(self, step: int, values: Mapping[str, float]) -> None:
        """Note figures of one step in both places."""
        row = {"step": step, **values}
        self.rows.append(row)
        self.folder.append_metrics(row)
        self.tracker.log_metrics(values, step)
        self._draw_data()

    def step(self, result: StepResult, usage: Usage, progress: Progress) -> None:
        """One optimizer step; a skipped one counts, too."""
        events = {"train/skipped_steps": progress.skipped_steps} if result.skipped else {}
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
                **events,
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

    def adapter(self, state: TrainState, accepted: Accepted) -> None:
        """Write the adapter as it is now, with what it was made from."""
        self.folder.check()
        about = {**self._about(state, accepted), "run_id": self.tracker.run_id}
        lora_files.save(
            state.adapter(), accepted.adapter, self.folder.adapter, about, _template(accepted)
        )

    def _about(self, state: TrainState, accepted: Accepted) -> dict[str, Any]:
        """What an adapter was made from."""
        located = accepted.loaded.located
        return {
            "base_model": self.public["model"]["path"],
            "base_name": located.name,
            "base_revision": located.revision,
            "base_weights": self._base_weights,
            "quantize": self.public["model"]["quantize"],
            "system_prompt": accepted.dataset.report["system_prompt"],
            "step": state.progress.step,
            "lora": asdict(self.config.lora),
        }

    def checkpoint(
        self, state: TrainState, accepted: Accepted, about: Mapping[str, Any], *, replace: bool
    ) -> None:
        """Save all that the run needs to go on from here; keep the last ones.

        replace: see `checkpoint.save`.
        """
        started = time.perf_counter()
        progress, config = state.progress, self.config.checkpoint
        progress.metrics_rows = len(self.rows)
        self.folder.sync_metrics()
        self.tracker.flush()  # before: what the checkpoint counts as noted must not be lost
        adapter = lora_files.saved_files(
            state.adapter(), accepted.adapter, self._about(state, accepted), _template(accepted)
        )
        files = {**adapter, **state.files(about)}
        checkpoint.save(self.folder.checkpoints, progress.step, files, replace=replace)
        checkpoint.prune(self.folder.checkpoints, config.keep_last, config.every)
        seconds = time.perf_counter() - started
        logger.info("checkpoint of step %d saved (%.2f s)", progress.step, seconds)

    def end(
        self, summary: dict[str, Any], before: Sequence[Answer], after: Sequence[Answer]
    ) -> None:
        """Figures, samples, summary and adapter; then the tracked run's status."""
        self._write_end(summary, before, after)
        self.tracker.end(summary["status"], summary["reason"])

    def notify(self, summary: Mapping[str, Any]) -> None:
        """Tell `tracking.webhook`, if there is one, how the run ended."""
        if self.config.tracking.webhook:
            notify(self.config.tracking.webhook, summary, self.folder.path, self.name)

    def _write_end(
        self, summary: dict[str, Any], before: Sequence[Answer], after: Sequence[Answer]
    ) -> None:
        # Of a run that failed before it went on, the earlier samples and figures are still true.
        rows = [] if self._untouched else sample_rows(before, after)
        if rows:
            self.folder.write_rows("samples.jsonl", rows)
            self.tracker.log_table("samples", rows)
            self.tracker.log_file(self.folder.path / "samples.jsonl")
        finished = summary["status"] == "FINISHED"
        self.tracker.log_file(self.folder.path / "summary.json")
        if finished:  # a stopped run may go on, and have its end later
            self.metrics(summary["steps"], final_figures(summary))
        else:
            self.folder.write_summary(summary)  # whatever else cannot be written
        self._draw_data()
        if not self._untouched:
            self._figures()
        if self.folder.adapter.exists():
            self.tracker.log_file(self.folder.adapter)
        for handler in logging.getLogger("mlx_ft").handlers:
            handler.flush()
        self.tracker.log_file(self.folder.path / "train.log")
        if finished:  # last: whoever finds it knows that everything else is there
            self.folder.write_summary(summary)

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


def _template(accepted: Accepted) -> dict[str, str]:
    text = accepted.dataset.template.text  # none where the tokenizer writes its chats in Python
    return {"chat_template.jinja": text} if text else {}
