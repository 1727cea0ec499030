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
from contextlib import suppress
from pathlib import Path
from typing import IO

import numpy as np

logger = logging.getLogger(__name__)

RECORD = struct.Struct("<16sQQ16s")  # key, offset, bytes, checksum
HELD = 2**28  # bytes in memory of what cannot be written


class Store:
    """Entries in `folder`; other processes may read them while one writes.

    limit: bytes that may lie in it and in the stores beside it, of which those that were not used
    for longest are removed to make room. A second writer, and one whose disk is full, keeps some
    of what is new in memory. What finds no room is a miss.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder = folder
        self.limit = limit
        self._known: dict[bytes, tuple[int, int, bytes]] = {}
        self._checked: set[bytes] = set()
        self._held: dict[bytes, bytes] = {}  # what could not be written
        self._held_size = 0
        self._size = 0  # of the data
        self._others = 0  # bytes of the stores beside it
        self._data: IO[bytes] | None = None
        self._index: IO[bytes] | None = None  # None: not to be written
        self._users = 1
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
        except BlockingIOError:
            logger.info(
                "%s: another process writes it; of what is new here up to %d MB are kept in memory",
                self.folder,
                HELD >> 20,
            )
            with index:
                self._read(index)
        except OSError:  # a file system without locks
            index.close()
            raise
        else:
            self._index = index
            index.truncate(self._read(index))
        os.utime(self.folder)

    def _read(self, index: IO[bytes]) -> int:
        """Take over the entries; returns the bytes of whole records."""
        assert self._data is not None
        index.seek(0)
        content = index.read()
        whole = len(content) - len(content) % RECORD.size
        self._size = self._data.seek(0, os.SEEK_END)
        with suppress(OSError):
            beside = (folder for folder in self.folder.parent.iterdir() if folder != self.folder)
            self._others = sum(_size(folder) for folder in beside if folder.is_dir())
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
        try:
            found = os.pread(self._data.fileno(), size, offset)
        except OSError:
            found = b""
        if (key not in self._checked or len(found) != size) and _checksum(found) != checksum:
            logger.warning("%s: an entry is damaged and is computed again", self.folder)
            del self._known[key]
            return None
        self._checked.add(key)
        return found

    def put(self, key: bytes, content: bytes) -> None:
        """Keep `content` under `key`, if there is room."""
        if self._index is None or self._data is None:
            if self._held_size + len(content) <= HELD:
                self._held[key] = content
                self._held_size += len(content)
            return
        needed = self._size + len(content) + RECORD.size * (len(self._known) + 1)
        if needed > self.limit or (
            needed + self._others > self.limit and not self._make_room(needed)
        ):
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

    def _make_room(self, needed: int) -> bool:
        """Remove stores beside this one until there are `needed` bytes under the limit."""
        beside = (folder for folder in self.folder.parent.iterdir() if folder != self.folder)
        stores = [folder for folder in beside if (folder / "index").is_file()]
        stores.sort(key=lambda folder: folder.stat().st_mtime)
        sizes = {folder: _size(folder) for folder in stores}
        for folder in stores:
            if needed + sum(sizes.values()) > self.limit and _removed(folder):
                sizes[folder] = 0
        self._others = sum(sizes.values())
        return needed + self._others <= self.limit

    def for_another(self) -> Store:
        """The same one, for somebody else who will close it too."""
        self._users += 1
        return self

    def close(self) -> None:
        """Let another process write, when nobody here uses it any more."""
        self._users -= 1
        if self._users <= 0:
            self._close()

    def _close(self) -> None:
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
        self._close()
        self._known.clear()


def key_of(tokens: np.ndarray) -> bytes:
    """16 bytes that tell one row of tokens from another."""
    return hashlib.blake2b(np.asarray(tokens, dtype="<i4").tobytes(), digest_size=16).digest()


def _checksum(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir() if path.is_file())


def _removed(folder: Path) -> bool:
    """Remove a store, unless another process holds it."""
    with suppress(OSError), (folder / "index").open("r+b") as index:
        fcntl.flock(index, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(folder)
        return True
    return False
