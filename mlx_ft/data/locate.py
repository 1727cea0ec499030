"""One entry of `data.path` to files: a file, a pattern, a folder, a built-in or a hub dataset."""

from __future__ import annotations

import difflib
import glob
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import hub
from mlx_ft.data.read.kind import SUFFIXES, suffix

BUILTIN = "builtin:"
BUILTIN_FOLDER = Path(__file__).resolve().parent.parent / "datasets"
# What a file's name begins with -> its split. Of several names, the first one that is there counts.
NAMES = {
    "train": "train",
    "training": "train",
    "valid": "valid",
    "validation": "valid",
    "val": "valid",
    "dev": "valid",
    "test": "test",
}
SHARD = re.compile(rf"({'|'.join(sorted(NAMES, key=len, reverse=True))})(?:[-_.]\d.*|\..*)", re.I)
SHOWN = 10


@dataclass
class Found:
    """The files of an entry, by split. name: what to call them, when it is not their path.

    faults: sentences, to follow the configuration's key.
    """

    files: dict[str, list[Path]] = field(default_factory=dict)
    unused: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    name: str | None = None


def locate(given: str, config: DataConfig) -> Found:
    """The files of one entry of `data.path`."""
    if given.startswith(BUILTIN):
        return _builtin(given)
    if given.startswith(hub.PREFIX):
        return _hub(given, given.removeprefix(hub.PREFIX), config)
    try:
        path = Path(given).expanduser()
        if path.is_dir():
            return _folder(path, given)
        if path.exists():
            return _file(path, given, "train")
        if glob.has_magic(given):
            return _pattern(path, given)
        if _hub_like(path, given):
            return _hub(given, given, config)
    except (OSError, RuntimeError, ValueError) as error:  # too long, no such user, a NUL in it
        return _refused(given, error)
    return _missing(path, given)


def locate_files(given: str, split: str) -> Found:
    """The files of `data.valid_path` or `data.test_path`: one, or those of a pattern."""
    try:
        path = Path(given).expanduser()
        if path.is_dir():
            fault = f"{given!r} is a folder; expected a file or a pattern such as {given}/*.jsonl"
            return Found(faults=[fault])
        if not path.exists() and glob.has_magic(given):
            files = _matches(path)
            return Found({split: files}) if files else _empty_pattern(path, given)
        return _file(path, given, split) if path.exists() else _missing(path, given)
    except (OSError, RuntimeError, ValueError) as error:
        return _refused(given, error)


def _file(path: Path, given: str, split: str) -> Found:
    if not path.is_file():
        return Found(faults=[f"{given!r} is neither a file nor a folder"])
    return Found({split: [path]})


def _builtin(given: str) -> Found:
    folder = BUILTIN_FOLDER / given.removeprefix(BUILTIN)
    if not (folder / "train.jsonl").is_file():
        known = sorted(file.parent.name for file in BUILTIN_FOLDER.glob("*/train.jsonl"))
        names = ", ".join(BUILTIN + name for name in known) or "none"
        return Found(faults=[f"no built-in dataset {given!r}; there are: {names}"])
    files = {split: [folder / f"{split}.jsonl"] for split in ("train", "valid", "test")}
    return Found({key: paths for key, paths in files.items() if paths[0].is_file()}, name=given)


def _folder(folder: Path, given: str) -> Found:
    files = _with_rows(folder.iterdir())
    for inner in sorted(folder.iterdir()):  # train/, validation/, test/
        if inner.is_dir() and inner.name.lower() in NAMES:
            files += _with_rows(inner.iterdir())
    found = _by_split(files)
    if not files:
        names = sorted(entry.name for entry in folder.iterdir())[:SHOWN]
        fault = (
            f"the folder {_shown(folder, given)} has no rows; expected files that end with "
            f"{', '.join(SUFFIXES)}; it holds: {', '.join(names) or 'nothing'}"
        )
        found.faults.append(fault)
    elif not found.files.get("train") and not found.faults:
        names = [path.name for path in files][:SHOWN]
        fault = f"the folder {_shown(folder, given)} has no training file; it holds: "
        found.faults.append(fault + ", ".join(names))
    return found


def _pattern(path: Path, given: str) -> Found:
    files = _matches(path)
    if not files:
        return _empty_pattern(path, given)
    found = _by_split(files)
    if not found.files.get("train") and not found.faults:  # `valid*.jsonl` says what it wants
        return Found({"train": files}, notes=[f"All files of {given} are training files."])
    others = [path for split in ("valid", "test") for path in found.files.get(split, ())]
    if others:
        names = ", ".join(path.name for path in others)
        found.notes.append(f"{given}: not for training, by their names: {names}.")
    return found


def _matches(path: Path) -> list[Path]:
    found = sorted(Path(name) for name in glob.glob(str(path), recursive=True))  # noqa: PTH207 (absolute, too)
    return [path for path in found if path.is_file()]


def _empty_pattern(path: Path, given: str) -> Found:
    found = _missing(path, given)
    return Found(
        faults=[fault.replace("no file or folder", "no file fits", 1) for fault in found.faults]
    )


def _with_rows(paths: Iterable[Path]) -> list[Path]:
    return sorted(
        path
        for path in paths
        if suffix(path) in SUFFIXES and not path.name.startswith(".") and path.is_file()
    )


def _by_split(files: list[Path]) -> Found:
    """Files by their names; those without a split's name are training files if none has train's."""
    groups: dict[str, list[Path]] = {}
    plain = []
    for path in files:
        word = _word(path)
        if word is None:
            plain.append(path)
        else:
            groups.setdefault(word, []).append(path)
    found = Found()
    for word, split in NAMES.items():
        if word not in groups:
            continue
        if split in found.files:
            found.unused += groups[word]
            continue
        found.files[split] = groups[word]
        kinds = sorted({"".join(path.suffixes) for path in groups[word]})
        if len(kinds) > 1 and len({path.parent for path in groups[word]}) == 1:
            names = ", ".join(path.name for path in groups[word])
            found.faults.append(
                f"several files for {split}: {names}; name the right ones in data.path"
            )
    if "train" in found.files:
        found.unused += plain
    elif plain:
        found.files["train"] = plain
        names = ", ".join(path.name for path in plain[:SHOWN])
        more = f" and {len(plain) - SHOWN} more" if len(plain) > SHOWN else ""
        found.notes.append(f"No file is named train: all are training files ({names}{more}).")
    return found


def _word(path: Path) -> str | None:
    """`train` for `train.jsonl`, `train-00001-of-00002.parquet` and `train/part1.json`."""
    if named := SHARD.fullmatch(path.name):
        return named[1].lower()
    parent = path.parent.name.lower()
    return parent if parent in NAMES else None


def _hub_like(path: Path, given: str) -> bool:
    """Whether a path that is not there may name a dataset of the hub: org/name."""
    return (
        re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", given) is not None
        and suffix(path) not in SUFFIXES
        and not path.parent.exists()
    )


def _hub(given: str, name: str, config: DataConfig) -> Found:
    try:
        paths = hub.split_paths(name, config.subset, config.revision)
    except hub.HubError as error:
        what = repr(given)
        if not given.startswith(hub.PREFIX):
            what = f"no file or folder {_shown(Path(given), given)}, and it"
        fault = f"{what} cannot be had from the hub: {error}"
        return Found(faults=[fault])
    found = Found(notes=[f"{hub.PREFIX}{name} is read from the hub."])
    for split, path in paths.items():
        meant = NAMES.get(split.lower())
        if meant is None or meant in found.files:
            found.unused.append(path)
        else:
            found.files[meant] = [path]
    if "train" not in found.files:
        fault = f"{given!r} has no split named train; it has: {', '.join(paths) or 'none'}"
        found.faults.append(fault)
    return found


def _missing(path: Path, given: str) -> Found:
    return Found(faults=[f"no file or folder {_shown(path, given)}. {_near(path)}"])


def _shown(path: Path, given: str) -> str:
    """A path with the place it was looked up from, which an absolute one has in itself."""
    return repr(str(path)) if path.is_absolute() else f"{given!r} in {Path.cwd()}"


def _near(path: Path) -> str:
    """What is there instead."""
    folder = path.absolute().parent
    if not folder.is_dir():
        return f"There is no folder {path.parent}"
    names = sorted(entry.name for entry in folder.iterdir())
    near = difflib.get_close_matches(path.name, names, n=3)
    if near:
        return f"Did you mean {' or '.join(near)}?"
    rows = [name for name in names if suffix(Path(name)) in SUFFIXES][:5]
    return f"Files of rows in that folder: {', '.join(rows) or 'none'}"


def _refused(given: str, error: Exception) -> Found:
    reason = getattr(error, "strerror", None) or error
    return Found(faults=[f"{given!r} cannot be looked up: {reason}; give another path"])
