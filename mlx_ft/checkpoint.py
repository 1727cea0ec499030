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
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
from safetensors.numpy import load as read_arrays

from mlx_ft import durable, lora
from mlx_ft.errors import CheckpointError
from mlx_ft.runfolder import checkpoint_folders, step_of

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
STATE = "state.json"
OPTIMIZER = "optimizer.safetensors"
BEST = "best.safetensors"
ADAPTER = lora.WEIGHTS
SCRATCH = ".tmp-"
SET_ASIDE = "set-aside"
FORMAT = 1

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


def save(parent: Path, step: int, files: Mapping[str, bytes]) -> Path:
    """Write `files` and their manifest as the checkpoint of `step`; returns its folder.

    A whole checkpoint of that step which is there already stays. Raises OSError; what was there
    before is then untouched, and nothing of this one is left.
    """
    parent.mkdir(parents=True, exist_ok=True)
    target = parent / f"step-{step:06d}"
    if target.exists():
        faults = damage(target)
        if not faults:
            return target
        set_aside(target, faults)
    scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{target.name}-", dir=parent))
    try:
        durable.write_files(scratch / "new", {**files, MANIFEST: _manifest(files)})
        (scratch / "new").rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
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
    return [fault for _, fault in _read(folder, {}) if fault]


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint. Raises CheckpointError that names every damaged file."""
    contents: dict[str, bytes] = {}
    faults = [fault for _, fault in _read(folder, contents) if fault]
    missing = [name for name in (ADAPTER, OPTIMIZER, STATE) if name not in contents]
    if faults or missing:
        faults = faults or [f"{name} is not part of it" for name in missing]
        raise CheckpointError(f"{folder} is damaged", faults)
    best = _arrays(contents[BEST]) if BEST in contents else None
    state = json.loads(contents[STATE])
    return Checkpoint(folder, _arrays(contents[ADAPTER]), _arrays(contents[OPTIMIZER]), best, state)


def _arrays(content: bytes) -> Arrays:
    return {name: mx.array(array) for name, array in read_arrays(content).items()}


def _read(folder: Path, contents: dict[str, bytes]) -> Iterator[tuple[str, str]]:
    """(file, what is wrong with it or "") for every file of the manifest; fills `contents`."""
    try:
        text = (folder / MANIFEST).read_bytes()
        manifest = json.loads(text)
        files = manifest["files"].items()
        # Byte for byte: a flipped bit in white space or in a name's case counts, too.
        if text != _canonical(manifest) or manifest["format"] != FORMAT:
            raise ValueError
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        yield MANIFEST, f"{MANIFEST} is missing or not as written"
        return
    for name, entry in files:
        try:
            content = (folder / Path(name).name).read_bytes()
            size, digest = entry["size"], entry["sha256"]
        except (OSError, KeyError, TypeError):
            yield name, f"{name} is missing"
            continue
        contents[name] = content
        if len(content) != size:
            yield name, f"{name} has {len(content):,} bytes, expected {size:,}"
        elif hashlib.sha256(content).hexdigest() != digest:
            yield name, f"{name} has other content than was written"


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
            shutil.rmtree(doomed, ignore_errors=True)


def sweep(parent: Path) -> None:
    """Remove what a writer that died left behind; the caller holds the run's lock."""
    for path in parent.glob(f"{SCRATCH}*"):
        logger.info("removing %s, which a killed run left unfinished", path)
        shutil.rmtree(path, ignore_errors=True)
