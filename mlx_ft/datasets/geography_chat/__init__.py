"""Questions about world geography as plain chat, answered in whole sentences."""

from mlx_ft.datasets import Description

DESCRIPTION = Description(
    title="Questions about world geography, answered in friendly sentences",
    rows={"train": 1000, "valid": 120, "test": 120},
    source="made by a script from the facts of geography_sql and phrasings written for it",
    licence="MIT",
)

__all__ = ["DESCRIPTION"]
