"""Which files a configuration names, and what each is for."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import hub
from mlx_ft.data.locate import Found, locate, locate_files
from mlx_ft.errors import DataError

SPLITS = ("train", "valid", "test")
REPORTS = ("report.json", "quarantine.jsonl", "quarantine.reasons.jsonl")  # no rows: ours


@dataclass(frozen=True)
class Source:
    """A file of rows. split: `train`, `valid` or `test`. name: what a person calls it.

    path: for a hub dataset `hub:org/name/split`. weight: how often a training row is shown in an
    epoch.
    """

    path: Path
    weight: float
    split: str
    name: str


@dataclass(frozen=True)
class Sources:
    """The files of a dataset. unused: files of rows beside them that are not read.

    notes: sentences that a person should know.
    """

    train: tuple[Source, ...]
    valid: tuple[Source, ...] = ()
    test: tuple[Source, ...] = ()
    unused: tuple[Path, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def all(self) -> tuple[Source, ...]:
        """Training files first, then validation, then test."""
        return self.train + self.valid + self.test


@dataclass
class _Search:
    """What was found so far. faults: `key: sentence`."""

    splits: dict[str, list[Source]] = field(default_factory=lambda: {key: [] for key in SPLITS})
    unused: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def find(config: DataConfig) -> Sources:
    """The files that `data.path`, `data.valid_path` and `data.test_path` name.

    Raises DataError with every fault at once: files that are not there, not readable, named twice,
    or for training and validation at the same time.
    """
    search = _Search()
    for path, weight in _entries(config.path):
        found = locate(path, config)
        _add(search, "data.path", found, weight)
    for split, given in (("valid", config.valid_path), ("test", config.test_path)):
        if given is None:
            continue
        search.unused += [source.path for source in search.splits[split]]
        search.splits[split].clear()
        _add(search, f"data.{split}_path", locate_files(given, split), 1.0)
    _check_files(search)
    if search.faults:
        raise DataError("The data cannot be found.", search.faults)
    used = {_identity(source.path) for split in SPLITS for source in search.splits[split]}
    unused = [
        path
        for path in dict.fromkeys(search.unused)
        if _identity(path) not in used and path.name not in REPORTS
    ]
    notes = search.notes + [
        f"{path} is not used: of this folder the train, valid and test files are; name it with "
        "data.path, data.valid_path or data.test_path to use it."
        for path in unused
    ]
    train, valid, test = (tuple(search.splits[split]) for split in SPLITS)
    return Sources(train, valid, test, tuple(unused), tuple(notes))


def digest(paths: Iterable[Path]) -> str:
    """SHA-256, in hexadecimal: of a file's bytes; of several, over their digests in order.

    A hub dataset counts by its commit. Raises DataError for a file that cannot be read.
    """
    found = [_digest(path) for path in paths]
    return found[0] if len(found) == 1 else hashlib.sha256("\n".join(found).encode()).hexdigest()


def _digest(path: Path) -> str:
    if hub.is_hub(path):
        return hashlib.sha256(hub.identity(path).encode()).hexdigest()
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from error


def _entries(path: Any) -> Iterator[tuple[str, float]]:
    for entry in path if isinstance(path, (list, tuple)) else [path]:
        if isinstance(entry, str):
            yield entry, 1.0
        else:
            yield entry["path"], float(entry.get("weight", 1.0))


def _add(search: _Search, key: str, found: Found, weight: float) -> None:
    search.faults += [f"{key}: {fault}" for fault in found.faults]
    search.notes += found.notes
    search.unused += found.unused
    for split in SPLITS:
        for path in found.files.get(split, ()):
            name = found.name or str(path)
            share = weight if split == "train" else 1.0
            search.splits[split].append(Source(path, share, split, name))


def _check_files(search: _Search) -> None:
    """Faults of files that are there: not readable, twice, or judged by what they teach."""
    seen: dict[object, Source] = {}
    for split in SPLITS:
        for source in search.splits[split]:
            if (reason := _unreadable(source.path)) is not None:
                shown = str(source.path).encode("utf-8", "backslashreplace").decode()
                search.faults.append(f"data.path: {shown} cannot be read: {reason}")
                continue
            first = seen.setdefault(_identity(source.path), source)
            if first is source:
                continue
            if first.split == split:
                search.faults.append(
                    f"data.path: {source.path} is named twice (as {first.path}); name it once, "
                    "with {path: ..., weight: 2} to show its rows twice"
                )
            elif first.split == "train":
                search.faults.append(
                    f"data.path: {source.path} is a training file and a {split} file; the training "
                    "rows cannot judge the model. Name another file, or none"
                )


def _unreadable(path: Path) -> str | None:
    if hub.is_hub(path):
        return None
    try:
        str(path).encode()
    except UnicodeEncodeError:  # no report could name it
        return "its name is not UTF-8; rename it"
    try:
        with path.open("rb"):
            return None
    except OSError as error:
        return error.strerror or str(error)


def _identity(path: Path) -> object:
    """The same for two names of one file."""
    try:
        status = path.stat()
    except OSError:
        return path
    return status.st_dev, status.st_ino
