"""Reviews of short Python code: the faulty line, what is wrong, why, and the mended code."""

from mlx_ft.datasets import Description

DESCRIPTION = Description(
    title="Code reviews: a fault, its line, its reason and the mended code",
    rows={"train": 160, "valid": 20, "test": 20},
    source="made by a script from families of faults written for this project, checked by running",
    licence="MIT",
)

__all__ = ["DESCRIPTION"]
