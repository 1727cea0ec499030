"""Data sets that come with the package."""

from __future__ import annotations

import importlib
import pkgutil
import sqlite3
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from mlx_ft.errors import DataError

BUILTIN = "builtin:"


@dataclass(frozen=True)
class Description:
    """What a built-in data set is. rows: split -> number of rows, as in its files."""

    title: str
    rows: Mapping[str, int]
    source: str
    licence: str


def descriptions() -> dict[str, Description]:
    """The `DESCRIPTION` of every package here, by the package's name."""
    packages = sorted(module.name for module in pkgutil.iter_modules(__path__) if module.ispkg)
    return {
        name: importlib.import_module(f"{__name__}.{name}").DESCRIPTION
        for name in packages
        if (Path(__file__).parent / name / "train.jsonl").is_file()
    }


def open_database(name: str) -> sqlite3.Connection:
    """The database of `data.database`: `builtin:NAME`, or an SQLite file, opened read-only.

    Raises DataError when there is none.
    """
    if name.startswith(BUILTIN):
        dataset = name.removeprefix(BUILTIN)
        if dataset != "geography_sql":
            raise DataError(
                f"data.database: {name!r} is not built in. There is: builtin:geography_sql"
            )
        from mlx_ft.datasets.geography_sql.database import build_database

        return build_database()
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"data.database: {path.absolute()} does not exist; give an SQLite file")
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)
