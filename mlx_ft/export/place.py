"""Where something is written to: a place that is free, and that gets it whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlx_ft import durable
from mlx_ft.errors import OutputError, StorageError


def check_free(target: Path, *, file: bool = False) -> None:
    """Raise OutputError when something is there; an empty folder is nothing, except to a file."""
    try:
        taken = target.is_symlink() or target.exists()
        if taken and target.is_dir() and not file:
            taken = any(target.iterdir())
    except OSError as error:
        raise OutputError(f"--out: {target} cannot be used: {error.strerror or error}") from None
    if taken:
        raise OutputError(f"--out: {target} is there already and is left alone. Name another place")


@contextmanager
def appearing(target: Path, *, file: bool = False) -> Iterator[Path]:
    """A new folder to fill, which takes the place of `target` when the block ends without error.

    file: `target` is the file of that name in it, and the rest is only for the work. Raises
    OutputError for a place that is taken or cannot be written to, StorageError for a write that
    fails; nothing is left then.
    """
    target = target.expanduser().absolute()
    check_free(target, file=file)
    scratch = target.with_name(f".{target.name}{durable.PARTIAL}")
    shutil.rmtree(scratch, ignore_errors=True)  # of a process that was killed
    try:
        scratch.mkdir(parents=True)
    except OSError as error:
        raise OutputError(
            f"--out: cannot write to {target.parent}: {error.strerror or error}. Name another place"
        ) from None
    try:
        yield scratch
        _publish(scratch / target.name if file else scratch, target)
    except OSError as error:
        raise StorageError(
            f"{target} could not be written: {error.strerror or error}. Nothing is left there"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _publish(made: Path, target: Path) -> None:
    for path in made.rglob("*") if made.is_dir() else [made]:
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            try:
                durable.sync(descriptor)
            finally:
                os.close(descriptor)
    check_free(target, file=made.is_file())  # it may have been taken meanwhile
    made.rename(target)
    durable.sync_folder(target.parent)
