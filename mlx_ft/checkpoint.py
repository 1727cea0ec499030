"""Checkpoints: all that a run needs to go on, in a folder that is whole or not there.

`step-000050/` holds the adapter as mlx-lm loads it, `optimizer.safetensors`, `best.safetensors`
where the best adapter is another one, `state.json`, and `manifest.json` with the SHA-256 and size
of each. It is written under another name, synced and renamed; every byte is checked when it is
read. Safetensors and JSON only: nothing that is read can run.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shlex
import shutil
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from errno import ENOENT
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors import SafetensorError
from safetensors.numpy import load as read_arrays

from mlx_ft import durable, lora_files
from mlx_ft.errors import CheckpointError
from mlx_ft.runfolder import checkpoint_folders, step_of

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
BEST = "best.safetensors"
ADAPTER = lora_files.WEIGHTS
OLD = "old"
SCRATCH = ".tmp-"
SET_ASIDE = "set-aside"
FORMAT = 1
STATE_KEYS = {"progress": dict, "fingerprint": dict, "memory": dict, "plan_steps": int}
MANIFEST_BYTES = 1 << 20

Arrays = dict[str, mx.array]


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was read whole. state: the content of `state.json`."""

    folder: Path
    adapter: Arrays
    optimizer: Arrays
    best: Arrays | None
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Optimizer steps taken."""
        return step_of(self.folder)


def save(parent: Path, step: int, files: Mapping[str, bytes], *, replace: bool = False) -> Path:
    """Write `files` and their manifest as the checkpoint of `step`; returns its folder.

    replace: whether a whole checkpoint of that step gives way, or stays. Raises OSError; what was
    there before is then untouched, and nothing of this one is left under its name, unless all of
    it is.
    """
    if not parent.exists():
        parent.mkdir(parents=True)
        durable.sync_folder(parent.parent)
    target = parent / f"step-{step:06d}"
    if target.exists():
        faults = damage(target)
        if faults:
            set_aside(target, faults)
        elif not replace:
            return target
    scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{target.name}-", dir=parent))
    try:
        durable.write_files(scratch / "new", {**files, MANIFEST: _manifest(files)})
        if target.exists():
            target.rename(scratch / OLD)  # `sweep` puts it back after a crash between the two
        (scratch / "new").rename(target)
    finally:
        _put_back(scratch, target)
        _remove(scratch)
    durable.sync_folder(parent)
    return target


def _manifest(files: Mapping[str, bytes]) -> bytes:
    described = {
        name: {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
        for name, content in sorted(files.items())
    }
    return _canonical({"format": FORMAT, "files": described})


def _canonical(content: Any) -> bytes:
    return (json.dumps(content, indent=1) + "\n").encode()


def damage(folder: Path) -> list[str]:
    """What is wrong with a checkpoint, one line each; empty when every byte is as written."""
    return _verified(folder)[1]


def _verified(folder: Path) -> tuple[dict[str, bytes], list[str]]:
    """The files, and what is wrong with them."""
    contents: dict[str, bytes] = {}
    faults = list(_read(folder, contents))
    missing = [name for name in (ADAPTER, OPTIMIZER, STATE) if name not in contents]
    return contents, faults or [f"{name} is not part of it" for name in missing]


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError that names every damaged file."""
    contents, faults = _verified(folder)
    if faults:
        raise CheckpointError(f"{folder} is damaged{_other(folder)}", faults)
    parts = [name for name in (ADAPTER, OPTIMIZER, BEST) if name in contents]
    arrays = {name: _arrays(name, contents[name], faults) for name in parts}
    state = _state(contents[STATE], step_of(folder), faults)
    if faults:  # as it was written, but not by this program
        raise CheckpointError(f"{folder} cannot be used", faults)
    return Checkpoint(folder, arrays[ADAPTER], arrays[OPTIMIZER], arrays.get(BEST), state)


def _other(folder: Path) -> str:
    """Where to go on from instead."""
    if folder.parent.name != "checkpoints":
        return ""
    return f". mlx-ft resume {shlex.quote(str(folder.parent.parent))} takes the newest whole one"


def _arrays(name: str, content: bytes, faults: list[str]) -> Arrays:
    try:
        return {key: mx.array(array) for key, array in read_arrays(content).items()}
    except (SafetensorError, ValueError, TypeError, KeyError, OverflowError, MemoryError) as error:
        faults.append(f"{name} is no file of arrays: {error}")
        return {}


def _state(content: bytes, step: int, faults: list[str]) -> dict[str, Any]:
    """The object in `state.json`; what it lacks goes into `faults`."""
    try:
        state = json.loads(content, parse_constant=_no_number)
        wrong = [key for key, kind in STATE_KEYS.items() if not isinstance(state.get(key), kind)]
    except (ValueError, AttributeError, RecursionError) as error:
        faults.append(f"{STATE} is no state of a run: {type(error).__name__}")
        return {}
    faults += [f"{STATE}: {key} is missing or of another type" for key in wrong]
    if wrong:
        return {}
    if (found := state["progress"].get("step")) != step:
        faults.append(f"{STATE} is of step {str(found)[:20]}")
    if not all(type(value) in (int, float) for value in state["memory"].values()):
        faults.append(f"{STATE}: memory holds what is no number")
    return dict(state)


def _no_number(name: str) -> None:
    raise ValueError(name)


def _read(folder: Path, contents: dict[str, bytes]) -> Iterator[str]:
    """What is wrong with the files of the manifest; fills `contents`."""
    try:
        files = _manifest_files(_file_content(folder / MANIFEST, MANIFEST_BYTES))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield f"{MANIFEST} is missing or not as written"
        return
    for name, (size, digest) in files.items():
        try:
            content = _file_content(folder / name, size)
        except OSError as error:
            yield f"{name} is missing" if error.errno == ENOENT else f"{name}: {error}"
            continue
        contents[name] = content
        if len(content) != size:
            found = (folder / name).stat().st_size
            yield f"{name} has {found:,} bytes, expected {size:,}"
        elif hashlib.sha256(content).hexdigest() != digest:
            yield f"{name} has other content than was written"


def _manifest_files(text: bytes) -> dict[str, tuple[int, str]]:
    """Size and digest by file name. Raises ValueError and what wrong types raise."""
    manifest = json.loads(text)
    # Byte for byte: a flipped bit in white space or in a name's case counts, too.
    if text != _canonical(manifest) or manifest["format"] != FORMAT:
        raise ValueError
    files = {name: (entry["size"], entry["sha256"]) for name, entry in manifest["files"].items()}
    for name, (size, _) in files.items():
        if type(size) is not int or size < 0 or name in ("", "..") or name != Path(name).name:
            raise ValueError
    return files


def _file_content(path: Path, most: int) -> bytes:
    """The content; its first `most` + 1 bytes are enough. Raises OSError; for a link, too."""
    found = path.lstat()
    if not stat.S_ISREG(found.st_mode):
        raise OSError("not a regular file")
    with path.open("rb") as file:
        return file.read(min(found.st_size, most) + 1)


def newest(parent: Path) -> tuple[Checkpoint | None, dict[Path, list[str]]]:
    """The newest whole checkpoint, and the damaged ones that are newer, with their faults."""
    damaged: dict[Path, list[str]] = {}
    for folder in reversed(checkpoint_folders(parent)):
        try:
            return load(folder), damaged
        except CheckpointError as error:
            damaged[folder] = list(error.faults)
    return None, damaged


def set_aside(folder: Path, faults: list[str]) -> None:
    """Move a checkpoint where no run takes it from, and say so; its bytes are kept."""
    place = folder.parent / SET_ASIDE
    place.mkdir(exist_ok=True)
    target = Path(tempfile.mkdtemp(prefix=f"{folder.name}-", dir=place))
    folder.rename(target / folder.name)
    durable.sync_folder(folder.parent)
    logger.warning(
        "the checkpoint of step %d is set aside in %s: %s",
        step_of(folder),
        target,
        "; ".join(faults),
    )


def prune(parent: Path, keep_last: int, every: int) -> None:
    """Remove old checkpoints: the newest `keep_last` stay, and the newest of a regular save.

    every: steps between regular saves; a run may have to go back to one.
    """
    found = checkpoint_folders(parent)
    regular = [folder for folder in found if every and step_of(folder) % every == 0]
    stay = {*found[-keep_last:], *regular[-1:]}
    for folder in found:
        if folder not in stay:
            # Renamed first: a deletion that is cut short must not leave a half one by that name.
            doomed = folder.with_name(f"{SCRATCH}{folder.name}-{os.getpid()}")
            folder.rename(doomed)
            _remove(doomed)


def sweep(parent: Path) -> None:
    """Remove what a writer that died left behind; the caller holds the run's lock."""
    for path in parent.glob(f"{SCRATCH}*"):
        if name := re.match(rf"{re.escape(SCRATCH)}(step-\d+)-", path.name):
            _put_back(path, parent / name[1])
        logger.info("removing %s, which a killed run left unfinished", path)
        _remove(path)


def _put_back(scratch: Path, target: Path) -> None:
    """A checkpoint that was to be replaced and was not."""
    if (scratch / OLD).is_dir() and not scratch.is_symlink() and not target.exists():
        (scratch / OLD).rename(target)
        durable.sync_folder(target.parent)


def _remove(path: Path) -> None:
    """Whatever it is; what cannot be removed stays, and is said to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()
    if os.path.lexists(path):
        logger.warning("%s could not be removed; nothing needs it", path)
