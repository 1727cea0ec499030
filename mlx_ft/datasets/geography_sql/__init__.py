"""The default data set: questions about world geography and the SQL that answers them."""

from mlx_ft.datasets.geography_sql.database import build_database

__all__ = ["build_database"]
