"""Nested values -> MLflow's flat parameters; rows -> a table's columns and cells."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

MAX_KEY = 250  # MLflow's limits, in characters
MAX_VALUE = 6000


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """`{"lora": {"rank": 8}}` -> `{"lora.rank": "8"}`; values other than text as JSON."""
    flat: dict[str, str] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else json.dumps(value, default=str)
    return flat


def accepted_key(key: str) -> str:
    """The key with every character that MLflow refuses replaced by `_`."""
    return re.sub(r"[^\w\-./: ]", "_", key)


def split_oversized(params: Mapping[str, str], file: str) -> tuple[dict[str, str], dict[str, str]]:
    """(parameters as MLflow accepts them, those that it would cut or refuse, as they were).

    A value over 6,000 characters is replaced by a pointer to `file`; characters that MLflow
    refuses in a key become `_`. A key over 250 characters, or one that another key already
    became, is in `file` alone.
    """
    accepted: dict[str, str] = {}
    apart: dict[str, str] = {}
    for key, value in params.items():
        name = accepted_key(key)
        if len(name) > MAX_KEY or name in accepted:
            apart[key] = value
        elif len(value) > MAX_VALUE:
            apart[key] = value
            accepted[name] = f"{len(value):,} characters: see the artifact {file}"
        else:
            accepted[name] = value
    return accepted, apart


def columns_and_cells(rows: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[Any]]]:
    """A table of rows: columns in the order of first appearance, None where a row has none."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return columns, [[_cell(row.get(column)) for column in columns] for row in rows]


def _cell(value: Any) -> Any:
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    return json.dumps(value, ensure_ascii=False, default=str)
