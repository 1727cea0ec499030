"""The default data set: questions about world geography and the SQL that answers them."""

from mlx_ft.datasets import Description
from mlx_ft.datasets.geography_sql.database import build_database

DESCRIPTION = Description(
    title="Questions about world geography, answered in SQL",
    rows={"train": 1200, "valid": 150, "test": 150},
    source="written for this project from general knowledge, cross-checked; made by a script",
    licence="MIT",
)

__all__ = ["DESCRIPTION", "build_database"]
