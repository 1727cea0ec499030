"""Values of a typed table (Parquet, a hub dataset) as JSON would have them."""

from __future__ import annotations

import datetime
import decimal
import math
from typing import Any

from mlx_ft.data.read.json_row import character_fault
from mlx_ft.data.rows import Fault, RowError


def row_fields(row: dict[str, Any]) -> dict[str, Any]:
    """A row in JSON's types, checked. Raises RowError with one fault.

    Dates and times become ISO 8601 texts, decimals texts, binary values the UTF-8 text that they
    are, maps objects. Columns and members without a value (null, NaN) are left out: a table has no
    other way to say that a row lacks them.
    """
    try:
        fields = plain(row)
    except RecursionError:
        raise RowError(Fault("nesting", "the row is nested too deeply; flatten it")) from None
    if fault := character_fault(fields):
        raise RowError(fault)
    return dict(fields)


def plain(value: Any) -> Any:
    """One value in JSON's types; see `row_fields`."""
    if value is None or isinstance(value, (str, bool, int)):
        return value
    if isinstance(value, dict):
        return _members(value.items())
    if isinstance(value, (list, tuple)):
        if value and all(isinstance(item, tuple) and len(item) == 2 for item in value):
            return _members(value)  # a map
        return [plain(item) for item in value]
    if isinstance(value, float):
        if math.isinf(value):
            raise RowError(Fault("nan_literal", "a number is infinite; write a number or null"))
        return None if math.isnan(value) else value
    if isinstance(value, bytes):
        return _text(value)
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (datetime.timedelta, decimal.Decimal)):
        return str(value)
    if hasattr(value, "tolist"):  # an array or a scalar of NumPy
        return plain(value.tolist())
    kind = type(value).__name__
    raise RowError(Fault("wrong_type", f"a value is of type {kind}; expected text, number or list"))


def _members(items: Any) -> dict[str, Any]:
    members = {str(key): plain(item) for key, item in items}
    return {key: item for key, item in members.items() if item is not None}


def _text(value: bytes) -> str:
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise RowError(
            Fault("encoding", f"a binary value is not UTF-8 (byte {error.start + 1}); decode it")
        ) from None
