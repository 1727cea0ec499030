"""Bytes on the disk, found again by what they were computed from.

A store is two files: `data`, the bytes one behind the other, and `index`, one record for each
entry, written after its bytes. Every entry is checked against its checksum when a process reads
it first, so that whatever a crash left is a miss and not a wrong number.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

logger = logging.getLogger(__name__)

RECORD = struct.Struct("<16sQQ16s")  # key, offset, bytes, checksum


class Store:
    """Entries in `folder`; other processes may read them while one writes.

    limit: bytes that may lie in it; stores beside it that were not used for longest are removed
    to make room. A second writer, and one whose disk is full, keeps what is new in memory.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._known: dict[bytes, tuple[int, int, bytes]] = {}
        self._checked: set[bytes] = set()
        self._held: dict[bytes, bytes] = {}  # what could not be written
        self._size = 0  # of everything, wherever it lies
        self._data: IO[bytes] | None = None
        self._index: IO[bytes] | None = None  # None: not to be written
        try:
            self._open()
        except OSError as error:
            self._give_up(error)

    def _open(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._data = (self.folder / "data").open("a+b")
        index = (self.folder / "index").open("a+b")
        try:
            fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # another process writes
            with index:
                self._read(index)
            return
        self._index = index
        _make_room(self.folder, self.limit)
        index.truncate(self._read(index))
        os.utime(self.folder)

    def _read(self, index: IO[bytes]) -> int:
        """Take over the entries; returns the bytes of whole records."""
        assert self._data is not None
        index.seek(0)
        content = index.read()
        whole = len(content) - len(content) % RECORD.size
        self._size = self._data.seek(0, os.SEEK_END)
        for key, offset, size, checksum in RECORD.iter_unpack(content[:whole]):
            if offset + size <= self._size:
                self._known[key] = offset, size, checksum
        return whole

    def get(self, key: bytes) -> bytes | None:
        """What was put under `key`; None when there is nothing, or nothing whole."""
        if key in self._held:
            return self._held[key]
        if key not in self._known or self._data is None:
            return None
        offset, size, checksum = self._known[key]
        found = os.pread(self._data.fileno(), size, offset)
        if key not in self._checked and _checksum(found) != checksum:
            logger.warning("%s: an entry is damaged and is computed again", self.folder)
            del self._known[key]
            return None
        self._checked.add(key)
        return found

    def put(self, key: bytes, content: bytes) -> None:
        """Keep `content` under `key`, if there is room."""
        if self._size + len(content) > self.limit:
            return
        if self._index is None or self._data is None:
            self._held[key] = content
            self._size += len(content)
            return
        entry = self._size, len(content), _checksum(content)
        try:
            self._data.write(content)
            self._data.flush()
            self._index.write(RECORD.pack(key, *entry))
            self._index.flush()
        except OSError as error:
            self._give_up(error)
            return
        self._known[key] = entry
        self._checked.add(key)
        self._size += len(content)

    def close(self) -> None:
        """Let another process write."""
        for file in (self._index, self._data):
            if file is not None:
                with suppress(OSError):  # what it still had to write was given up
                    file.close()
        self._index = self._data = None

    def _give_up(self, error: OSError) -> None:
        logger.warning(
            "%s cannot be written (%s): what frozen layers give is kept in memory from here on",
            self.folder,
            error.strerror or error,
        )
        self.close()
        self._known.clear()


def key_of(tokens: np.ndarray) -> bytes:
    """16 bytes that tell one row of tokens from another."""
    return hashlib.blake2b(np.asarray(tokens, dtype="<i4").tobytes(), digest_size=16).digest()


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _make_room(own: Path, limit: int) -> None:
    """Remove the stores beside `own` that were used longest ago, until all are under the limit."""
    others = sorted(
        (folder for folder in own.parent.iterdir() if folder.is_dir() and folder != own),
        key=lambda folder: folder.stat().st_mtime,
    )
    sizes = {folder: _size(folder) for folder in [*others, own]}
    for folder in others:
        if sum(sizes.values()) <= limit // 2:  # the other half is for this one
            return
        if _unlocked(folder, shutil.rmtree):
            sizes[folder] = 0


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _unlocked(folder: Path, act: Callable[[Path], object]) -> bool:
    """Do it unless another process holds the store."""
    with suppress(OSError), (folder / "index").open("ab") as index:
        fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        act(folder)
        return True
    return False
