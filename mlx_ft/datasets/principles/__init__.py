"""Principles of coding: what each says, why, an example, and when not to follow it."""

from mlx_ft.datasets import Description

DESCRIPTION = Description(
    title="Principles of coding, explained with bad and good code",
    rows={"train": 80, "valid": 10, "test": 10},
    source="written for this project",
    licence="MIT",
)

__all__ = ["DESCRIPTION"]
