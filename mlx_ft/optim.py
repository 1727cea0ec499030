"""Optimizers and learning-rate schedules."""

from __future__ import annotations

import math

import mlx.optimizers as optimizers

from mlx_ft.config.schema import OptimizerConfig


def build_optimizer(config: OptimizerConfig) -> optimizers.Optimizer:
    """The configured update rule; the trainer sets its learning rate before each step."""
    rate, decay = config.learning_rate, config.weight_decay
    betas = [config.beta1, config.beta2]
    match config.name:
        case "adamw":
            return optimizers.AdamW(rate, betas, config.eps, decay, bias_correction=True)
        case "adam":
            return optimizers.Adam(rate, betas, config.eps, bias_correction=True)
        case "adafactor":
            return optimizers.Adafactor(
                rate, weight_decay=decay, scale_parameter=False, relative_step=False
            )
        case "lion":
            return optimizers.Lion(rate, betas, decay)
        case "muon":
            return optimizers.Muon(rate, momentum=config.momentum, weight_decay=decay)
        case "sgd":
            return optimizers.SGD(rate, momentum=config.momentum, weight_decay=decay)
    raise AssertionError(f"unchecked optimizer {config.name!r}")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate of optimizer step `step`, counted from 0, of `total_steps`.

    Linear warm-up that reaches the peak after its last step, then the configured shape down to
    min_lr_ratio of the peak at the last step.
    """
    warmup = warmup_steps(config, total_steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / (warmup + 1)
    # 0 at the first step after the warm-up, 1 at the last one.
    progress = min(1.0, (step - warmup) / max(1, total_steps - 1 - warmup))
    return config.learning_rate * _shape(config, progress, step, total_steps)


def warmup_steps(config: OptimizerConfig, total_steps: int) -> int:
    """Steps of warm-up; never all of them, so that the peak is reached."""
    if config.warmup_steps is not None:
        return min(config.warmup_steps, total_steps - 1)
    return min(round(config.warmup_ratio * total_steps), total_steps - 1)


def _shape(config: OptimizerConfig, progress: float, step: int, total_steps: int) -> float:
    floor = config.min_lr_ratio
    match config.schedule:
        case "constant":
            return 1.0
        case "linear":
            return 1.0 - (1.0 - floor) * progress
        case "cosine":
            return floor + (1.0 - floor) * 0.5 * (1.0 + math.cos(math.pi * progress))
        case "wsd":
            last = total_steps - 1
            decay_steps = max(1, round(config.decay_ratio * total_steps))
            # Not before the peak: a short run would never reach it.
            start = max(warmup_steps(config, total_steps), last - decay_steps)
            return 1.0 - (1.0 - floor) * max(0, step - start) / max(1, last - start)
    raise AssertionError(f"unchecked schedule {config.schedule!r}")
