"""What the server keeps: datasets, adapters and jobs, each in a folder of its own.

home/
  files/<id>/          content, about.json: as uploaded
  datasets/<name>/     rows.jsonl, about.json
  adapters/<name>/     mlx-lm's two files, chat_template.jinja, about.json
  jobs/<id>/           job.json, log.txt, run/ (a run folder), events.jsonl
A folder is made whole beside its place and then renamed; one that is removed is renamed first.
What a crash has left of either is put right when the next server begins.
"""

from __future__ import annotations

import json
import shutil
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlx_ft import durable
from mlx_ft.errors import InUseError, UserError
from mlx_ft.runfolder import read_json
from mlx_ft.serve import names

ABOUT = "about.json"
KINDS = ("files", "datasets", "adapters", "jobs")
REMOVED = ".removed"


class Missing(UserError):
    """There is nothing of that name."""


class Taken(UserError):
    """There is something of that name already."""


class Store:
    """The folders under `home`. Raises InUseError when another server has them."""

    def __init__(self, home: Path) -> None:
        self.home = home.absolute()
        for kind in KINDS:
            (self.home / kind).mkdir(parents=True, exist_ok=True)
        try:
            self._lock = durable.lock(self.home / ".lock")
        except BlockingIOError:
            raise InUseError(
                f"another server keeps its files in {self.home}. Give --home FOLDER"
            ) from None
        self._putting = {kind: threading.Lock() for kind in KINDS}
        self._moving = threading.RLock()  # held while a folder is looked for, or is between names
        self._tidy()

    def place(self, kind: str, name: str) -> Path:
        """Where something is. Raises BadName, Missing."""
        path = self._path(kind, name)
        with self._moving:
            if not path.is_dir() or path.is_symlink():
                raise Missing(f"there is no {kind.removesuffix('s')} {name!r}")
        return path

    def names(self, kind: str) -> list[str]:
        """Of everything there is, oldest first."""
        found = []
        with self._moving:
            for path in (self.home / kind).iterdir():
                if path.is_dir() and not path.name.startswith("."):
                    with suppress(FileNotFoundError):  # somebody has just deleted it by hand
                        found.append((path.stat().st_ctime, path.name))
        return [name for _, name in sorted(found)]

    def about(self, kind: str, name: str) -> dict[str, Any]:
        """What is known of it. Raises Missing."""
        with self._moving:
            return read_json(self.place(kind, name) / ABOUT)

    def read(self, kind: str, name: str, file: str) -> bytes:
        """The content of one of its files. Raises Missing, OSError."""
        with self._moving:
            opened = (self.place(kind, name) / file).open("rb")
        with opened:  # whatever becomes of the name now
            return opened.read()

    def put(
        self, kind: str, name: str, files: Mapping[str, bytes], about: Mapping[str, Any],
        *, replace: bool = False,
    ) -> Path:  # fmt: skip
        """Keep files under a name. Raises Taken, OSError."""
        path = self._path(kind, name)
        told = {"created": int(time.time()), **about}
        content = (json.dumps(told, indent=1) + "\n").encode()
        with self._putting[kind]:
            if path.exists() and not replace:
                raise Taken(f"there is a {kind.removesuffix('s')} {name!r} already")
            durable.replace_folder(path, {**files, ABOUT: content}, self._moving)
        return path

    def add_about(self, kind: str, name: str, more: Mapping[str, Any]) -> None:
        """Say something more of it, or something else. Raises Missing, OSError."""
        with self._moving:
            about = {**self.about(kind, name), **more}
            content = (json.dumps(about, indent=1) + "\n").encode()
            durable.write(self.place(kind, name) / ABOUT, content)

    def remove(self, kind: str, name: str) -> None:
        """Take it away. Raises Missing."""
        with self._moving:
            path = self.place(kind, name)
            gone = path.with_name(f".{path.name}-{time.monotonic_ns()}{REMOVED}")
            path.rename(gone)
        shutil.rmtree(gone, ignore_errors=True)

    def size(self, kind: str, name: str) -> int:
        """Bytes of its files."""
        with self._moving:
            return sum(path.stat().st_size for path in _files(self.place(kind, name)))

    def close(self) -> None:
        """Let another server have them."""
        self._lock.close()

    def _tidy(self) -> None:
        """Finish or take back what a crash has broken off."""
        left = [*self.home.glob(".rows-*.jsonl"),  # rows that were looked at, of serve/rows.py
                *self.home.glob(f"..rows-*{durable.PARTIAL}")]  # fmt: skip
        for kind in KINDS:
            folder = self.home / kind
            for old in folder.glob(f".*{durable.OLD}"):
                before = folder / old.name[1 : -len(durable.OLD)]
                if not before.exists():  # killed between the two renames of `put`
                    old.rename(before)
            for ending in (REMOVED, durable.OLD, durable.PARTIAL):
                left += folder.glob(f".*{ending}")
            left += folder.glob(f"*/.*{durable.PARTIAL}")
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                with suppress(OSError):
                    path.unlink()

    def _path(self, kind: str, name: str) -> Path:
        return names.inside(self.home / kind, names.checked(name, kind.removesuffix("s")))


def _files(folder: Path) -> Iterator[Path]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            yield path
