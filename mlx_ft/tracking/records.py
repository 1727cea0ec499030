"""What a tracker is told, as values that a line of the journal holds without loss."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class Start:
    """The run's beginning. time: milliseconds since 1970, as everywhere here.

    journal: an id of this journal, by which the run is found when its own id got lost.
    working_dir: where relative paths of the configuration count from. apart: parameters that the
    store would cut or refuse.
    """

    time: int
    name: str
    journal: str
    working_dir: str
    params: dict[str, str]
    apart: dict[str, str]


@dataclass(frozen=True)
class Resume:
    """Another process goes on with the run."""

    time: int


@dataclass(frozen=True)
class Metrics:
    """Values of one step; NaN and infinities too."""

    time: int
    step: int
    values: dict[str, float]


@dataclass(frozen=True)
class Tags:
    """Tags as they are from now on."""

    time: int
    tags: dict[str, str]


@dataclass(frozen=True)
class File:
    """A file or folder, relative to the run folder where it lies in it; goes into `folder`."""

    time: int
    path: str
    folder: str


@dataclass(frozen=True)
class Table:
    """Rows, as `name`.json."""

    time: int
    name: str
    columns: list[str]
    data: list[list[Any]]


@dataclass(frozen=True)
class Dataset:
    """What the run was trained on."""

    time: int
    name: str
    digest: str
    source: str
    profile: dict[str, Any]
    context: str


@dataclass(frozen=True)
class Register:
    """The adapter of a tracked run becomes a version of the registered model `name`.

    alias: of the version from now on.
    """

    time: int
    name: str
    run_id: str
    alias: str
    tags: dict[str, str]


@dataclass(frozen=True)
class End:
    """The run's end: FINISHED, FAILED or KILLED."""

    time: int
    status: str
    reason: str | None


Record = Start | Resume | Metrics | Tags | File | Table | Dataset | Register | End
KINDS: dict[str, type[Record]] = {
    kind.__name__.lower(): kind
    for kind in (Start, Resume, Metrics, Tags, File, Table, Dataset, Register, End)
}


def to_line(number: int, record: Record) -> str:
    """One line of JSON, without its end."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    return dump({"n": number, "kind": type(record).__name__.lower(), **values})


def from_values(values: Mapping[str, Any]) -> tuple[int, Record]:
    """The number and the record of a line. Raises ValueError, TypeError, KeyError on damage."""
    kind = KINDS[values["kind"]]
    given = {field.name: values[field.name] for field in fields(kind)}
    record = kind(**given)
    if isinstance(record, Metrics):  # "nan" and "inf" are texts in JSON
        numbers = {key: float(value) for key, value in record.values.items()}
        record = Metrics(int(record.time), int(record.step), numbers)
    return int(values["n"]), record


def describe(record: Record) -> str:
    """The record in words."""
    match record:
        case Start():
            return "parameters"
        case Tags():
            first = next(iter(record.tags), "")
            return f"tag {first}" if len(record.tags) == 1 else f"{len(record.tags)} tags"
        case File():
            return record.path.rpartition("/")[2]
        case Table():
            return f"{record.name}.json"
        case Dataset():
            return f"dataset {record.name}"
        case Register():
            return f"registered model {record.name}"
        case End():
            return f"status {record.status}"
    return "metrics" if isinstance(record, Metrics) else "status RUNNING"


def dump(values: Mapping[str, Any]) -> str:
    """JSON without NaN and infinities: they become texts that `float` reads."""
    return json.dumps(_plain(values), default=str)


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
