"""Folders that appear whole or not at all."""

import os
import time
from pathlib import Path

import pytest

from mlx_ft import store


def fill(folder: Path) -> None:
    (folder / "a.txt").write_text("aaaa")


def test_published_with_a_manifest(tmp_path: Path) -> None:
    folder = store.publish(tmp_path / "deep" / "x", fill, {"source": "s"})
    assert sorted(path.name for path in folder.iterdir()) == ["a.txt", store.MANIFEST]
    assert store.manifest(folder)["source"] == "s"
    assert store.damage(folder, hashes=True) == []
    assert list(folder.parent.iterdir()) == [folder]


def test_a_failing_writer_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> None:
        fill(folder)
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.publish(tmp_path / "x", fail, {})
    assert list(tmp_path.iterdir()) == []


def test_damage_is_found(tmp_path: Path) -> None:
    folder = store.publish(tmp_path / "x", fill, {})
    (folder / "a.txt").write_text("bbbb")
    assert store.damage(folder) == []  # the size is right
    assert store.damage(folder, hashes=True) == ["a.txt has other content than was written"]
    (folder / "a.txt").write_text("b")
    assert store.damage(folder) == ["a.txt has 1 bytes, expected 4"]
    (folder / "a.txt").unlink()
    assert store.damage(folder) == ["a.txt is missing"]
    (folder / store.MANIFEST).write_text("[")
    assert store.damage(folder) == [f"{store.MANIFEST} cannot be read (JSONDecodeError)"]
    assert store.manifest(folder) is None


def test_a_whole_folder_is_kept_and_a_damaged_one_replaced(tmp_path: Path) -> None:
    folder = store.publish(tmp_path / "x", fill, {"by": 1})
    store.publish(folder, fill, {"by": 2})
    assert store.manifest(folder)["by"] == 1
    (folder / "a.txt").unlink()
    store.publish(folder, fill, {"by": 3})
    assert store.manifest(folder)["by"] == 3
    assert list(tmp_path.iterdir()) == [folder]


def test_old_scratch_folders_are_swept(tmp_path: Path) -> None:
    old, new = tmp_path / ".tmp-old", tmp_path / ".tmp-new"
    for folder in (old, new):
        folder.mkdir()
    os.utime(old, (time.time() - 2 * store.STALE_SECONDS,) * 2)
    store.publish(tmp_path / "x", fill, {})
    assert (old.exists(), new.exists()) == (False, True)
