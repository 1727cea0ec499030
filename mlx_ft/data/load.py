"""Files to records: which files a configuration names, and their rows, each with its line."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mlx_ft.config.schema import DataConfig
from mlx_ft.errors import DataError

T = TypeVar("T")

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).resolve().parent.parent / "datasets"

# First bytes of files that are not UTF-8 text: said once rather than as a fault in every line.
SIGNATURES = {
    b"\xff\xfe": "UTF-16 text",
    b"\xfe\xff": "UTF-16 text",
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"\x28\xb5\x2f\xfd": "a Zstandard archive",
    b"PAR1": "a Parquet file",
    b"SQLite": "an SQLite database",
}


@dataclass(frozen=True)
class Record:
    """One row as it was read. line: counted from 1."""

    fields: dict[str, Any]
    path: Path
    line: int

    @property
    def where(self) -> str:
        """`path:line`, as editors understand it."""
        return f"{self.path}:{self.line}"


@dataclass
class Findings:
    """What reading and checking met. faults: `path:line: sentence`; notes: sentences."""

    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def fault(self, where: object, sentence: str) -> None:
        """Add a fault at a place: a path, `path:line` or a configuration key."""
        self.faults.append(f"{where}: {sentence}")


@dataclass(frozen=True)
class Sources:
    """The files of a dataset. unused: JSON Lines files beside them that no key names."""

    train: Path
    valid: Path | None
    test: Path | None
    unused: tuple[Path, ...] = ()


def sources(config: DataConfig) -> Sources:
    """The files that `data.path`, `data.valid_path` and `data.test_path` name.

    Raises DataError with every missing file at once.
    """
    findings = Findings()
    train, folder = _found(_train_file, "data.path", config.path, findings) or (Path(), None)
    beside = {path.name: path for path in sorted(folder.glob("*.jsonl"))} if folder else {}
    valid, test = (
        _found(_named_file, key, given, findings) if given is not None else beside.get(name)
        for key, given, name in (
            ("data.valid_path", config.valid_path, "valid.jsonl"),
            ("data.test_path", config.test_path, "test.jsonl"),
        )
    )
    if findings.faults:
        raise DataError("The data cannot be found.", findings.faults)
    resolved = {path.resolve() for path in (train, valid, test) if path}
    unused = tuple(
        path
        for path in beside.values()
        if path.resolve() not in resolved and path.name not in ("valid.jsonl", "test.jsonl")
    )
    return Sources(train, valid, test, unused)


def read_jsonl(path: Path, findings: Findings) -> Iterator[Record]:
    """The rows of a JSON Lines file, one at a time; what is wrong with others goes to `findings`.

    Tolerates a byte order mark; skips blank lines and counts them in a note. Raises nothing for
    the file's content.
    """
    blank = rows = 0
    try:
        with path.open("rb") as file:
            for number, raw in enumerate(file, start=1):
                if number == 1:
                    raw = raw.removeprefix(b"\xef\xbb\xbf")
                    if other := _not_json_lines(raw):
                        findings.fault(path, f"{other}; convert it to JSON Lines in UTF-8")
                        return
                if not raw.strip():
                    blank += 1
                    continue
                rows += 1
                try:
                    yield Record(_parse(raw.rstrip()), path, number)
                except _BadLine as bad:
                    findings.fault(f"{path}:{number}", str(bad))
    except OSError as error:
        findings.fault(path, f"cannot be read: {error.strerror}")
        return
    if rows == 0:
        findings.fault(path, "the file is empty; expected one JSON object per line")
    elif blank:
        findings.notes.append(f"{path}: {blank} blank line(s) skipped.")


def digest(path: Path) -> str:
    """SHA-256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _found(
    find: Callable[[str, str, Findings], T], key: str, given: str, findings: Findings
) -> T | None:
    """What `find` finds; None and a fault where the system does not let it look."""
    try:
        return find(key, given, findings)
    except (OSError, RuntimeError) as error:  # too long, not permitted, no such user
        reason = getattr(error, "strerror", None) or error
        findings.fault(key, f"{given!r} cannot be looked up: {reason}; change {key}")
        return None


def _train_file(key: str, given: str, findings: Findings) -> tuple[Path, Path | None]:
    """The training file, and the folder it stands for when a folder was given."""
    if given.startswith(BUILTIN):
        path = BUILTIN_FOLDER / given.removeprefix(BUILTIN)
        if not (path / "train.jsonl").is_file():
            known = sorted(file.parent.name for file in BUILTIN_FOLDER.glob("*/train.jsonl"))
            found = ", ".join(BUILTIN + name for name in known) or "none"
            findings.fault(key, f"no built-in dataset {given!r}; there are: {found}")
            return path, None
        return path / "train.jsonl", path
    path = Path(given).expanduser()
    if not path.is_dir():
        return _named_file(key, given, findings), None
    if not (path / "train.jsonl").is_file():
        found = ", ".join(sorted(file.name for file in path.iterdir())[:10]) or "nothing"
        findings.fault(
            key, f"the folder {given!r} ({path.absolute()}) has no train.jsonl; it holds: {found}"
        )
    return path / "train.jsonl", path


def _named_file(key: str, given: str, findings: Findings) -> Path:
    """A file given by name; a fault names what is there instead."""
    path = Path(given).expanduser()
    if path.is_dir():
        findings.fault(key, f"{given!r} is a folder; expected a JSON Lines file")
    elif not path.is_file():
        findings.fault(key, f"no file {given!r} ({path.absolute()}). {_near(path, key)}")
    return path


def _near(path: Path, key: str) -> str:
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"The folder {folder} does not exist; change {key}."
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3)
    if near:
        return f"Did you mean {' or '.join(near)}? Change {key}."
    rows = [name for name in names if name.endswith(".jsonl")][:5]
    return f"JSON Lines files in that folder: {', '.join(rows) or 'none'}; change {key}."


def _not_json_lines(head: bytes) -> str | None:
    """What the first line shows the file to be, when that is not JSON Lines."""
    for signature, kind in SIGNATURES.items():
        if head.startswith(signature):
            return f"this is {kind}"
    if head.lstrip().startswith(b"["):
        return "this is a JSON array; expected one JSON object per line"
    return None


class _BadLine(ValueError):
    """A line that is no row; the text says why."""


def _parse(raw: bytes) -> dict[str, Any]:
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant
        )
    except UnicodeDecodeError as error:
        raise _BadLine(
            f"byte {error.start + 1} (0x{raw[error.start]:02x}) is not UTF-8; convert the file"
        ) from error
    except json.JSONDecodeError as error:
        raise _BadLine(f"not JSON: {error.msg} at column {error.colno}") from error
    except _BadLine:
        raise
    except (RecursionError, ValueError) as error:
        raise _BadLine(f"not usable JSON: {error}") from error
    if not isinstance(value, dict):
        kind = {list: "an array", str: "a string", type(None): "null", bool: "true or false"}
        raise _BadLine(f"expected a JSON object, found {kind.get(type(value), 'a number')}")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _BadLine(f"the key {twice!r} appears twice in one object")
    return fields


def _no_constant(literal: str) -> Any:
    raise _BadLine(f"{literal} is not JSON; use a number or null")
