"""`summary.json`: how a run ended, in figures; docs/runs.md is its contract."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlx_ft import evaluation, lora
from mlx_ft.accept import Accepted
from mlx_ft.evaluation import Answer, Validation
from mlx_ft.models import load as models
from mlx_ft.state import TrainState


def build(
    accepted: Accepted,
    state: TrainState,
    epochs: float,
    before: Validation | None,
    after: Validation | None,
    answers: tuple[Sequence[Answer], Sequence[Answer]],
) -> dict[str, Any]:
    """The figures. after: of the adapter that was kept; answers: before and after."""
    progress = state.progress
    seconds = progress.train_seconds
    return {
        "seed": accepted.config.seed,
        "model": accepted.loaded.located.name,
        "device": accepted.device,
        "steps": progress.step,
        "epochs": round(epochs, 4),
        "tokens": progress.tokens,
        "target_tokens": progress.target_tokens,
        "tokens_per_second": progress.tokens / seconds if seconds else 0.0,
        "wall_seconds": progress.wall_seconds,
        "train_seconds": seconds,
        "peak_memory_gb": progress.peak_memory_gb,
        "trainable_parameters": lora.count(state.model),
        "total_parameters": models.total_parameters(state.model),
        "val_loss_before": before.loss if before else None,
        "val_loss_after": after.loss if after else None,
        "perplexity_before": before.perplexity if before else None,
        "perplexity_after": after.perplexity if after else None,
        "accuracy_before": _accuracy(answers[0]),
        "accuracy_after": _accuracy(answers[1]),
        "system_prompt": accepted.dataset.report["system_prompt"],
        "working_dir": str(Path.cwd()),
        "best_step": progress.best_step or None,
        "skipped_steps": progress.skipped_steps,
        "spikes": progress.spikes,
        "rewinds": progress.rewinds,
        "out_of_memory": progress.out_of_memory,
        "resumes": progress.resumes,
    }


def _accuracy(judged: Sequence[Answer]) -> float | None:
    return evaluation.accuracy(judged) if judged else None
