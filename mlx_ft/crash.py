"""What a process leaves behind for the next one when it dies without a chance to say why.

`crash.log` in the run folder: its first line says in how many parts batches were taken; Python
appends a fatal signal and where it struck. `.pressure` exists while a step runs that hardly fits
into memory: the kernel's out-of-memory killer leaves nothing else.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

LOG = "crash.log"
MARK = ".pressure"


@dataclass(frozen=True)
class Crash:
    """How an earlier process of a run died. parts: in how many it then took its batches."""

    reason: str
    parts: int


def last_crash(folder: Path) -> Crash | None:
    """The crash that the last process of the run in `folder` ended with, if memory may be why.

    None after a clean end, an error, or a kill while there was room. Reads only.
    """
    written = _read(folder / LOG).splitlines()
    signal = next((line for line in written[1:] if line.strip()), None)
    if signal is not None:
        return Crash(signal, _parts(written[0]))
    if mark := _read(folder / MARK):
        return Crash("killed in a step that hardly fitted into memory", _parts(mark))
    return None


class CrashLog(AbstractContextManager["CrashLog"]):
    """While entered, a fatal signal (SIGSEGV, SIGBUS, SIGABRT...) is written to `crash.log`.

    parts: in how many batches are taken. Entering forgets an earlier crash: ask for it before.
    A folder that cannot be written to is warned of, and no error.
    """

    def __init__(self, folder: Path, parts: int) -> None:
        self._folder = folder
        self._parts = parts
        self._file: IO[str] | None = None

    def __enter__(self) -> CrashLog:
        try:
            (self._folder / MARK).unlink(missing_ok=True)
            self._file = (self._folder / LOG).open("w", encoding="utf-8")
        except OSError as error:
            logger.warning("a crash would leave no trace: %s", error)
            return self
        self.set_parts(self._parts)
        # All threads: MLX's own, where it struck, has no Python frames to show.
        faulthandler.enable(self._file, all_threads=True)
        return self

    def __exit__(self, *_: object) -> None:
        self.unmark()
        if self._file is None:
            return
        faulthandler.disable()
        if sys.__stderr__ is not None and os.environ.get("PYTHONFAULTHANDLER"):
            faulthandler.enable(sys.__stderr__)
        self._file.close()
        (self._folder / LOG).unlink(missing_ok=True)

    def set_parts(self, parts: int) -> None:
        """Note in how many parts batches are taken from now on."""
        self._parts = parts
        if self._file is None:
            return
        try:
            self._file.seek(0)
            self._file.truncate()
            self._file.write(json.dumps({"parts": parts}) + "\n")
            self._file.flush()  # the descriptor, which the handler writes to, stands behind it
        except OSError as error:
            logger.warning("a crash would leave no trace: %s", error)

    def mark(self, parts: int) -> None:
        """A step begins that hardly fits, in so many parts."""
        try:
            (self._folder / MARK).write_text(json.dumps({"parts": parts}) + "\n")
        except OSError as error:
            logger.warning("the memory mark could not be written: %s", error)

    def unmark(self) -> None:
        """That step is over."""
        try:
            (self._folder / MARK).unlink(missing_ok=True)
        except OSError as error:
            logger.warning("the memory mark could not be removed: %s", error)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _parts(line: str) -> int:
    try:
        return max(1, int(json.loads(line)["parts"]))
    except (ValueError, TypeError, KeyError, OverflowError):  # cut off by the crash
        return 1
