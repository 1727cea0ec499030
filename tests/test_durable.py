"""Files and folders that appear whole or not at all, whichever call fails."""

import errno
import os
from contextlib import suppress

import pytest

from mlx_ft import durable
from proofs.faulty_disk import FaultyDisk

OLD, NEW = b"old" * 5000, b"new" * 7000
ERRORS = ("ENOSPC", "EIO", "EROFS")


def failures(folder, work):
    """Let each call of `work` fail in its turn, for once and from there on; after each: yield."""
    for error in ERRORS:
        for stays in (False, True):
            for number in range(1, 100):
                with FaultyDisk(folder, number, error, stays) as disk, suppress(OSError):
                    work()
                if len(disk.calls) < number:
                    assert number > 3  # it did fail somewhere
                    break
                yield


def test_a_file_is_the_old_or_the_new_one(tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(OLD)
    for _ in failures(tmp_path, lambda: durable.write(path, NEW)):
        assert path.read_bytes() in (OLD, NEW)
        path.write_bytes(OLD)
    durable.write(path, NEW)
    assert path.read_bytes() == NEW
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_failed_write_raises_and_leaves_the_old_file(tmp_path):
    path = tmp_path / "summary.json"
    path.write_bytes(OLD)
    with FaultyDisk(tmp_path, 2), pytest.raises(OSError, match="No space left") as error:
        durable.write(path, NEW)
    assert error.value.errno == errno.ENOSPC
    assert path.read_bytes() == OLD
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_folder_is_the_old_or_the_new_one(tmp_path):
    folder, new = tmp_path / "adapter", {"a": NEW, "c": NEW}
    old = {"a": OLD, "b": OLD}
    durable.replace_folder(folder, old)
    for _ in failures(tmp_path, lambda: durable.replace_folder(folder, new)):
        kept = folder if folder.exists() else tmp_path / ".adapter.old"
        assert content(kept) in (old, new)
        durable.replace_folder(folder, old)
    durable.replace_folder(folder, new)
    assert content(folder) == new
    assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


def test_a_rename_that_fails_puts_the_old_folder_back(tmp_path):
    folder = tmp_path / "adapter"
    durable.replace_folder(folder, {"a": OLD})
    with FaultyDisk(tmp_path, 0) as disk:
        durable.replace_folder(folder, {"a": OLD})
    renames = [n for n, (kind, _) in enumerate(disk.calls, 1) if kind == "rename"]
    assert len(renames) == 2
    for number in renames:
        with FaultyDisk(tmp_path, number, "EIO"), pytest.raises(OSError, match="Input/output"):
            durable.replace_folder(folder, {"a": NEW})
        assert content(folder) == {"a": OLD}
        assert [p.name for p in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.parametrize(("number", "raised"), [(errno.EINVAL, False), (errno.EIO, True)])
def test_a_folder_that_cannot_be_synced_passes_and_a_broken_disk_does_not(
    tmp_path, monkeypatch, number, raised
):
    def fsync(_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fsync)
    if raised:
        with pytest.raises(OSError, match="Input/output"):
            durable.sync_folder(tmp_path)
    else:
        durable.sync_folder(tmp_path)


@pytest.mark.parametrize("number", [1, 2])
def test_what_fails_names_the_file(tmp_path, number):
    with FaultyDisk(tmp_path, number), pytest.raises(OSError, match="No space left") as caught:
        durable.write(tmp_path / "file", NEW)
    assert caught.value.filename == str(tmp_path / f".file{durable.PARTIAL}")
