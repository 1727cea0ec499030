"""A disk that fails at a chosen moment: the n-th call that changes files under a folder raises.

Seen are the calls of Python code: opening for writing, write, fsync, rename, mkdir, unlink, rmdir
and truncate. A write that fails has written half of its bytes, as a disk does that fills up.
"""

from __future__ import annotations

import builtins
import errno
import fcntl
import io
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

GROWING = ("open", "write", "mkdir")  # what a full disk refuses; the rest still works
WATCHED = ("rename", "replace", "mkdir", "unlink", "remove", "rmdir", "ftruncate", "fsync", "write")


class FaultyDisk(AbstractContextManager["FaultyDisk"]):
    """While entered, the `call`-th change (from 1) of files under `under` fails; 0: none does.

    error: ENOSPC, EIO... stays: every later call fails, too, that such a disk would refuse.
    `calls`: what was called, as [kind, path below `under`].
    """

    def __init__(self, under: Path, call: int, error: str = "ENOSPC", stays: bool = False) -> None:
        self.under = os.path.realpath(under)
        self.call, self.stays = call, stays
        self.number = getattr(errno, error)
        self.calls: list[list[str]] = []
        self._real: list[tuple[Any, str, Any]] = []
        self._open = io.open

    def __enter__(self) -> FaultyDisk:
        for name in WATCHED:
            self._replace(os, name, self._wrapped(name))
        self._replace(os, "open", self._wrapped_os_open())
        for module in (io, builtins):
            self._replace(module, "open", self._opened)
        return self

    def __exit__(self, *_: object) -> None:
        for module, name, real in reversed(self._real):
            setattr(module, name, real)

    def changes(self, kind: str, path: Any) -> bool:
        """Count a call; raises OSError when it is one that fails. False: not under the folder."""
        name = os.path.normpath(os.path.join(os.getcwd(), os.fsdecode(path)))  # noqa: PTH109, PTH118
        if name != self.under and not name.startswith(self.under + os.sep):
            return False
        self.calls.append([kind, os.path.relpath(name, self.under)])
        now = len(self.calls)
        refused = kind in GROWING or self.number not in (errno.ENOSPC, errno.EDQUOT)
        if self.call and (now == self.call or (self.stays and now > self.call and refused)):
            raise OSError(self.number, os.strerror(self.number), os.fspath(path))
        return True

    def _replace(self, module: Any, name: str, function: Any) -> None:
        self._real.append((module, name, getattr(module, name)))
        setattr(module, name, function)

    def _wrapped(self, name: str) -> Callable[..., Any]:
        real = getattr(os, name)
        kind = {"replace": "rename", "remove": "unlink", "ftruncate": "truncate"}.get(name, name)

        def call(target: Any, *arguments: Any, **named: Any) -> Any:
            place = path_of(target, named.get("dir_fd") or named.get("src_dir_fd"))
            try:
                self.changes(kind, place)
            except OSError:
                if kind == "write":
                    real(target, arguments[0][: len(arguments[0]) // 2])
                raise
            return real(target, *arguments, **named)

        return call

    def _wrapped_os_open(self) -> Callable[..., int]:
        real = os.open

        def call(path: Any, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:
            if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
                self.changes("open", path_of(path, dir_fd))
            return real(path, flags, mode, dir_fd=dir_fd)

        return call

    def _opened(
        self,
        file: Any,
        mode: str = "r",
        buffering: int = -1,
        encoding: str | None = None,
        errors: str | None = None,
        newline: str | None = None,
        closefd: bool = True,
        opener: Any = None,
    ) -> Any:
        writes = not isinstance(file, int) and set(mode) & set("wax+")
        if not (writes and self.changes("open", file)):
            return self._open(file, mode, buffering, encoding, errors, newline, closefd, opener)
        raw = _File(self, file, mode.replace("b", "").replace("t", ""))
        if buffering == 0:
            return raw
        buffered: Any = io.BufferedRandom(raw) if "+" in mode else io.BufferedWriter(raw)
        if "b" in mode:
            return buffered
        return io.TextIOWrapper(buffered, encoding, errors, newline, line_buffering=buffering == 1)


class _File(io.FileIO):
    def __init__(self, disk: FaultyDisk, path: Any, mode: str) -> None:
        super().__init__(path, mode)
        self.disk = disk

    def write(self, content: Any) -> int:
        try:
            self.disk.changes("write", self.name)
        except OSError:
            super().write(memoryview(content)[: len(content) // 2])
            raise
        return super().write(content)


def path_of(target: Any, folder: int | None = None) -> str:
    """The path of a path, of a descriptor, or of a name in a folder's descriptor."""
    if folder is not None:
        return f"{path_of(folder)}/{os.fsdecode(target)}"
    if not isinstance(target, int):
        return os.fsdecode(target)
    try:
        if sys.platform == "darwin":
            return os.fsdecode(fcntl.fcntl(target, fcntl.F_GETPATH, bytes(1024)).rstrip(b"\0"))
        return os.readlink(f"/proc/self/fd/{target}")  # noqa: PTH115
    except OSError:
        return "/"
