"""A folder in our cache: written beside its place, renamed into it, checked by a manifest."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)

MANIFEST = "mlx_ft_manifest.json"
SCRATCH = ".tmp-"
STALE_SECONDS = 24 * 3600


def publish(target: Path, write: Callable[[Path], None], about: dict[str, Any]) -> Path:
    """Make the folder `target` appear at once and complete; returns it.

    write: fills the scratch folder it is given. about: kept in the manifest. Processes that
    publish the same target at the same time each write their own scratch folder; one wins.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target.parent)
    scratch = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}{target.name}-", dir=target.parent))
    try:
        write(scratch)
        scratch.chmod(0o755)  # mkdtemp makes it private
        files = {path.name: _describe(path) for path in sorted(scratch.iterdir())}
        (scratch / MANIFEST).write_text(json.dumps({**about, "files": files}, indent=1))
        for path in (*scratch.iterdir(), scratch):
            _fsync(path)
        _rename(scratch, target)
        _fsync(target.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def damage(folder: Path, *, hashes: bool = False) -> list[str]:
    """What is wrong with a published folder, one line each; empty when it is whole.

    Sizes are always compared; hashes=True also reads every byte.
    """
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
        faults = [_fault(folder / name, entry, hashes) for name, entry in files.items()]
    except (OSError, ValueError, KeyError, TypeError) as error:
        return [f"{MANIFEST} cannot be read ({type(error).__name__})"]
    return [fault for fault in faults if fault]


def manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest of a published folder, or None when there is none that can be read."""
    try:
        content = json.loads((folder / MANIFEST).read_text())
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def _fault(path: Path, entry: dict[str, Any], hashes: bool) -> str:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != entry["size"]:
        return f"{path.name} has {path.stat().st_size} bytes, expected {entry['size']}"
    if hashes and sha256(path) != entry["sha256"]:
        return f"{path.name} has other content than was written"
    return ""


def sha256(path: Path) -> str:
    """Hex digest of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _describe(path: Path) -> dict[str, Any]:
    return {"size": path.stat().st_size, "sha256": sha256(path)}


def _rename(scratch: Path, target: Path) -> None:
    """Put scratch in target's place, unless another process has put a whole one there."""
    for _ in range(10):
        try:
            scratch.rename(target)
            return
        except OSError:  # a folder is there: another process's, or a damaged one
            if not target.exists():
                raise
        if not damage(target, hashes=True):  # other bytes of the same number, too
            return
        aside = Path(tempfile.mkdtemp(prefix=f"{SCRATCH}damaged-", dir=target.parent))
        try:
            target.rename(aside / "was")
        except FileNotFoundError:
            pass  # another process moved it first
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    raise OSError(f"{target}: other processes kept replacing this folder")


def _sweep(parent: Path) -> None:
    """Remove scratch folders that a killed process left behind."""
    for path in parent.glob(f"{SCRATCH}*"):
        try:
            old = time.time() - path.stat().st_mtime > STALE_SECONDS
        except OSError:
            continue  # gone meanwhile
        if old:
            logger.info("removing the unfinished folder %s", path)
            shutil.rmtree(path, ignore_errors=True)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
