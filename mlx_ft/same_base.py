"""Whether two configurations name one base model."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft.config.schema import ModelConfig

if TYPE_CHECKING:
    from mlx_ft.saved import SavedRun

logger = logging.getLogger(__name__)


def is_same(one: ModelConfig, other: ModelConfig) -> bool:
    """Whether two name one base model; nothing is downloaded to find out."""
    if one.quantize != other.quantize:
        return False
    if one.path == other.path:
        return one.revision == other.revision or None in (one.revision, other.revision)
    try:
        return Path(one.path).expanduser().samefile(Path(other.path).expanduser())
    except (OSError, RuntimeError):  # one is not there, or no folder at all
        return False


def said(model: ModelConfig) -> str:
    """A base as a person reads it."""
    return f"{model.path}, quantized" if model.quantize else model.path


def warn_of_two(first: SavedRun, second: SavedRun) -> None:
    """Say so where two that are compared have different bases."""
    one, other = first.config.model, second.config.model
    if not is_same(one, other):
        logger.warning(
            "two base models: %s is on %s, %s on %s. What they differ in is not the training's "
            "alone",
            first.name, said(one), second.name, said(other),
        )  # fmt: skip
