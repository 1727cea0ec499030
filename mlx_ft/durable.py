"""Files that are on the disk when a call returns: written beside their place, synced, renamed.

Everything goes through Python's own file calls, which raise when a disk is full. MLX's writer
does not promise that.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO

PARTIAL = ".partial"
OLD = ".old"
# What file systems answer, over a network mostly, that cannot sync a folder.
CANNOT_SYNC = frozenset({
    errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF, errno.EACCES,
})  # fmt: skip
NO_LOCK = nullcontext()


def write(path: Path, content: bytes) -> None:
    """Replace the file `path`: a reader, after any crash too, finds the old or the new content.

    Raises OSError; the content is then the old one, or the new one if only the last sync failed.
    """
    partial = path.with_name(f".{path.name}{PARTIAL}")
    try:
        _write_synced(partial, content)
        partial.replace(path)
    except BaseException:
        with suppress(OSError):  # the first error is the one to tell
            partial.unlink()
        raise
    sync_folder(path.parent)


def write_files(folder: Path, files: Mapping[str, bytes]) -> None:
    """Fill a new folder with `files` and sync them and it. Raises OSError."""
    folder.mkdir(parents=True)
    for name, content in files.items():
        _write_synced(folder / name, content)
    sync_folder(folder)


def replace_folder(
    folder: Path, files: Mapping[str, bytes], swap: AbstractContextManager[object] = NO_LOCK
) -> None:
    """Make `folder` hold just `files`: it appears whole. Raises OSError; an earlier one then stays.

    Two renames: a crash between them leaves both contents, as `.<name>.old` and `.<name>.partial`;
    the next call puts the earlier one back before it writes.
    swap: entered around the renames, between which there is no folder of that name.
    """
    partial = folder.with_name(f".{folder.name}{PARTIAL}")
    old = folder.with_name(f".{folder.name}{OLD}")
    if old.exists() and not folder.exists():  # killed between the two renames
        old.rename(folder)
    for leftover in (partial, old):
        shutil.rmtree(leftover, ignore_errors=True)
    try:
        write_files(partial, files)
        with swap:
            _swap(partial, folder, old)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(folder.parent)
    shutil.rmtree(old, ignore_errors=True)


def _swap(partial: Path, folder: Path, old: Path) -> None:
    try:
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
    except BaseException:
        if old.exists() and not folder.exists():
            old.rename(folder)
        raise


def _write_synced(path: Path, content: bytes) -> None:
    with naming(path), path.open("wb") as file:
        file.write(content)
        file.flush()
        sync(file.fileno())


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """An OSError from within names the file: one of a write or a sync does not by itself."""
    try:
        yield
    except OSError as error:
        error.filename = error.filename or str(path)
        raise


def lock(path: Path) -> IO[str]:
    """The file `path`, locked until it is closed; made where it is missing.

    Raises BlockingIOError when another process has it. On a file system without locks nobody is
    kept out.
    """
    file = path.open("a")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise
    except OSError:
        pass
    return file


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
    """Wait until the names in a folder are on the disk. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in CANNOT_SYNC:
            raise
    finally:
        os.close(descriptor)
