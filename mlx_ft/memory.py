"""Memory: which profile suits this machine, and what the run uses while it runs."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from typing import Any

import mlx.core as mx
import psutil
import yaml

from mlx_ft.config import conf_dir
from mlx_ft.config.schema import Config, MemoryProfileConfig

logger = logging.getLogger(__name__)

GIB = 1024**3


@dataclass(frozen=True)
class Usage:
    """GiB. peak, active, cache: MLX's own; rss: of the process."""

    peak: float
    active: float
    cache: float
    rss: float


def usage() -> Usage:
    """What is used now, and MLX's peak since the process began or the peak was reset."""
    return Usage(
        mx.get_peak_memory() / GIB,
        mx.get_active_memory() / GIB,
        mx.get_cache_memory() / GIB,
        psutil.Process().memory_info().rss / GIB,
    )


def suitable_profile(device: str, total_memory: int) -> str:
    """Name of the profile for a device ("metal", "cuda", "cpu") with that many bytes of memory."""
    if device == "cpu":
        return "cpu"
    if device == "cuda":
        return "m1_max_32gb"
    if total_memory <= 18 * GIB:
        return "m4_16gb"
    return "m4_24gb" if total_memory <= 28 * GIB else "m1_max_32gb"


def resolve(config: Config, device: str) -> Config:
    """Replace every `auto` that depends on the machine, and say what was chosen."""
    name = suitable_profile(device, psutil.virtual_memory().total)
    path = conf_dir() / "memory_profile" / f"{name}.yaml"
    values: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    asked = config.memory_profile
    chosen = {
        field.name: values[field.name]
        for field in fields(MemoryProfileConfig)
        if getattr(asked, field.name) == "auto"
    }
    profile = replace(asked, **chosen)
    if chosen:
        figures = ", ".join(f"{key}={value}" for key, value in chosen.items() if key != "name")
        logger.info("memory_profile=%s: %s", name, figures)
    model = config.model
    if model.quantize == "auto":
        model = replace(model, quantize=profile.quantize)
    if model.dequantize == "auto":
        model = replace(model, dequantize=device == "cpu")
    compiled = device != "cpu" if config.train.compile == "auto" else config.train.compile
    return replace(
        config,
        memory_profile=profile,
        model=model,
        train=replace(config.train, compile=compiled),
    )
