"""A place that is taken is left alone; one that is free gets everything or nothing."""

import pytest

from mlx_ft.errors import OutputError, StorageError
from mlx_ft.export.place import appearing, check_free


def test_a_folder_appears_whole(tmp_path):
    target = tmp_path / "new" / "out"
    with appearing(target) as made:
        (made / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["out"]


def test_a_file_appears_alone(tmp_path):
    with appearing(tmp_path / "m.gguf", file=True) as made:
        (made / "m.gguf").write_text("1")
        (made / "work").write_text("2")
    assert [path.name for path in tmp_path.iterdir()] == ["m.gguf"]


@pytest.mark.parametrize("kind", ["file", "folder", "link"])
def test_what_is_there_is_left_alone(tmp_path, kind):
    target = tmp_path / "out"
    if kind == "file":
        target.write_text("mine")
    elif kind == "link":
        target.symlink_to(tmp_path / "nowhere")
    else:
        target.mkdir()
        (target / "mine").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(OutputError, match="left alone"), appearing(target):
        raise AssertionError
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_folder_is_free(tmp_path):
    (tmp_path / "out").mkdir()
    with appearing(tmp_path / "out") as made:
        (made / "a").write_text("1")
    assert (tmp_path / "out" / "a").exists()


def test_one_that_is_taken_meanwhile_is_left_alone(tmp_path):
    target = tmp_path / "out"
    with pytest.raises(OutputError), appearing(target):
        target.write_text("theirs")
    assert target.read_text() == "theirs"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_an_error_leaves_nothing(tmp_path):
    with pytest.raises(ZeroDivisionError), appearing(tmp_path / "out") as made:
        1 / (made / "a").write_text("")
    with pytest.raises(StorageError, match="No space"), appearing(tmp_path / "out"):
        raise OSError(28, "No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_a_place_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError), appearing(tmp_path / "file" / "out"):
        raise AssertionError


def test_what_a_killed_process_left_is_replaced(tmp_path):
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "old").write_text("old")
    with appearing(tmp_path / "out") as made:
        (made / "a").write_text("1")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a"]


def test_an_empty_folder_has_no_room_for_a_file(tmp_path):
    (tmp_path / "m.gguf").mkdir()
    check_free(tmp_path / "m.gguf")
    with (
        pytest.raises(OutputError, match="is there already"),
        appearing(tmp_path / "m.gguf", file=True),
    ):
        pytest.fail("nothing is to be computed")
    assert (tmp_path / "m.gguf").is_dir()
