"""Small Python functions asked for in words, judged by running hidden tests."""

from mlx_ft.datasets import Description

DESCRIPTION = Description(
    title="Python functions asked for in words, judged by hidden tests",
    rows={"train": 400, "valid": 50, "test": 50},
    source="made by a script from families of functions written for this project",
    licence="MIT",
)

__all__ = ["DESCRIPTION"]
