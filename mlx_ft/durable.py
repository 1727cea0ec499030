"""Files that are on the disk when a call returns: written beside their place, synced, renamed.

Everything goes through Python's own file calls, which raise when a disk is full. MLX's writer
does not promise that.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Mapping
from pathlib import Path

PARTIAL = ".partial"


def write(path: Path, content: bytes) -> None:
    """Replace the file `path`: a reader, after any crash too, finds the old or the new content.

    Raises OSError; the old content is then untouched.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        _write_synced(partial, content)
        partial.replace(path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Fill a new folder with `files` and sync them and it. Raises OSError."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        _write_synced(folder / name, content)
    sync_folder(folder)


def replace_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Make `folder` hold just `files`: it appears whole. Raises OSError; an earlier one then stays.

    Two renames: a crash between them leaves the new content as `.<name>.partial`.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    old = folder.with_name(f".{folder.name}.old")
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write_files(partial, files)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())


def sync(descriptor: int) -> None:
    """Wait until a file's content is on the disk itself; fsync alone stops short of it on macOS."""
    full = getattr(fcntl, "F_FULLFSYNC", None)
    if full is not None:
        try:
            fcntl.fcntl(descriptor, full)
            return
        except OSError:  # a file system that does not know it
            pass
    os.fsync(descriptor)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # network file systems that cannot sync a folder
        pass
    finally:
        os.close(descriptor)
