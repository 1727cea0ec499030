"""What the server keeps is whole, and nothing else is touched."""

import json
import shutil
import threading
from pathlib import Path

import pytest

from mlx_ft.errors import InUseError
from mlx_ft.serve.names import BadName
from mlx_ft.serve.store import Missing, Store, Taken
from tests.serve.test_names import HOSTILE


@pytest.fixture
def store(tmp_path):
    found = Store(tmp_path / "home")
    yield found
    found.close()


def tree(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_what_is_put_is_there_and_what_is_removed_is_not(store):
    store.put("datasets", "b", {"rows.jsonl": b"{}\n"}, {"rows": 1})
    store.put("datasets", "a", {"rows.jsonl": b""}, {})
    assert store.names("datasets") == ["b", "a"]
    assert store.about("datasets", "b")["rows"] == 1
    assert store.about("datasets", "b")["created"] > 0
    assert store.size("datasets", "b") > 3
    with pytest.raises(Taken):
        store.put("datasets", "b", {}, {})
    store.put("datasets", "b", {"rows.jsonl": b"{}\n{}\n"}, {"rows": 2}, replace=True)
    created = store.about("datasets", "b")["created"]
    store.add_about("datasets", "b", {"rows": 3, "more": "x"})
    assert store.about("datasets", "b") == {"rows": 3, "more": "x", "created": created}
    assert store.read("datasets", "b", "rows.jsonl") == b"{}\n{}\n"
    store.remove("datasets", "b")
    assert store.names("datasets") == ["a"]
    for ask in (
        store.place, store.about, store.remove, store.size,
        lambda kind, name: store.read(kind, name, "rows.jsonl"),
        lambda kind, name: store.add_about(kind, name, {}),
    ):  # fmt: skip
        with pytest.raises(Missing):
            ask("datasets", "b")


def test_it_is_one_servers(store):
    with pytest.raises(InUseError, match="--home"):
        Store(store.home)
    store.close()
    Store(store.home).close()


def test_a_removal_that_was_broken_off_is_finished(store):
    left = store.home / "adapters" / ".x-1.removed"
    left.mkdir()
    (left / "file").touch()
    assert store.names("adapters") == []
    store.close()
    Store(store.home).close()
    assert not left.exists()


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_touch_nothing(store, tmp_path, name):
    store.put("adapters", "good", {"x": b"1"}, {})
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "file").write_text("secret")
    before = tree(tmp_path)
    for kind in ("adapters", "jobs"):
        for ask in (
            store.place, store.about, store.remove, store.size,
            lambda kind, name: store.put(kind, name, {"x": b"2"}, {}, replace=True),
            lambda kind, name: store.add_about(kind, name, {}),
            lambda kind, name: store.read(kind, name, "file"),
        ):  # fmt: skip
            with pytest.raises((BadName, Missing)):
                ask(kind, name)
    assert tree(tmp_path) == before


def test_links_are_not_followed(store, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "about.json").write_text(json.dumps({"secret": 1}))
    (store.home / "adapters" / "link").symlink_to(outside)
    for ask in (store.about, store.remove, store.size):
        with pytest.raises((BadName, Missing)):
            ask("adapters", "link")
    assert outside.is_dir()


def test_what_is_being_replaced_is_never_missing(store, monkeypatch):
    """Each time a folder has its new name another thread asks for it."""
    store.put("adapters", "a", {"x": b"1"}, {"version": 1})
    genuine, asking, seen = Path.rename, [], []

    def ask():
        try:
            seen.append((store.about("adapters", "a")["version"], store.names("adapters")))
        except Missing:
            seen.append("missing")

    def rename(self, target):
        genuine(self, target)
        asking.append(threading.Thread(target=ask))
        asking[-1].start()
        asking[-1].join(0.1)  # it waits, but where nothing keeps it

    monkeypatch.setattr(Path, "rename", rename)
    store.put("adapters", "a", {"x": b"2"}, {"version": 2}, replace=True)
    for thread in asking:
        thread.join()
    assert seen == [(2, ["a"])] * 2
    assert store.read("adapters", "a", "x") == b"2"


def test_what_is_deleted_by_hand_is_not_listed(store, monkeypatch):
    for name in ("a", "b"):
        store.put("datasets", name, {}, {})
    genuine = Path.is_dir

    def is_dir(self, **more):
        found = genuine(self, **more)
        if self.name == "b":
            shutil.rmtree(self)
        return found

    monkeypatch.setattr(Path, "is_dir", is_dir)
    assert store.names("datasets") == ["a"]


def test_what_a_crash_has_left_is_put_right(store):
    for name in ("half", "whole"):
        store.put("adapters", name, {"x": b"1"}, {})
    kept, home = tree(store.home), store.home
    (home / "adapters" / "half").rename(home / "adapters" / ".half.old")
    for folder in (".half.partial", ".whole.old"):
        (home / "adapters" / folder).mkdir()
        (home / "adapters" / folder / "x").touch()
    for file in (".rows-1.jsonl", "..rows-2.jsonl.partial", "adapters/whole/.about.json.partial"):
        (home / file).touch()
    store.close()
    Store(home).close()
    assert tree(home) == kept
