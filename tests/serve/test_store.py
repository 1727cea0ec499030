"""What the server keeps is whole, and nothing else is touched."""

import json

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
    store.write_about("datasets", "b", {"rows": 3})
    assert store.about("datasets", "b") == {"rows": 3}
    store.remove("datasets", "b")
    assert store.names("datasets") == ["a"]
    for ask in (store.place, store.about, store.remove, store.size):
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
            lambda kind, name: store.write_about(kind, name, {}),
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
