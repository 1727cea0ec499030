import hashlib
import os
from pathlib import Path

import pytest

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import hub, locate
from mlx_ft.data.sources import Sources, digest, find
from mlx_ft.errors import DataError

ROW = {"text": "a"}


def names(found: Sources) -> dict[str, list[str]]:
    return {
        split: [source.path.name for source in getattr(found, split)]
        for split in ("train", "valid", "test")
    }


def faults(**keys: object) -> tuple[str, ...]:
    with pytest.raises(DataError) as error:
        find(DataConfig(**keys))
    return error.value.faults


def test_a_file_stands_alone(write):
    write("set/valid.jsonl", ROW)
    path = write("set/rows.jsonl", ROW)
    found = find(DataConfig(path=str(path)))
    [source] = found.all
    assert (source.path, source.weight, source.split, source.name) == (path, 1, "train", str(path))
    assert (found.unused, found.notes) == ((), ())


@pytest.mark.parametrize("word", ["valid", "validation", "val", "dev"])
def test_a_folder_gives_its_splits_whatever_their_kind(write, tmp_path, word):
    for name in ("train.jsonl.gz", f"{word}.csv", "test.parquet", "more.jsonl", "README.md"):
        write(f"set/{name}", ROW)
    found = find(DataConfig(path=str(tmp_path / "set")))
    assert names(found) == {
        "train": ["train.jsonl.gz"], "valid": [f"{word}.csv"], "test": ["test.parquet"],
    }  # fmt: skip
    assert [path.name for path in found.unused] == ["more.jsonl"]
    assert "more.jsonl is not used" in found.notes[0]


def test_of_two_names_for_validation_the_usual_one_counts(write, tmp_path):
    for name in ("train.jsonl", "valid.jsonl", "val.jsonl", "test.jsonl"):
        write(f"set/{name}", ROW)
    folder = tmp_path / "set"
    found = find(DataConfig(path=str(folder)))
    assert names(found)["valid"] == ["valid.jsonl"]
    assert found.unused == (folder / "val.jsonl",)
    own = find(DataConfig(path=str(folder), valid_path=str(folder / "val.jsonl")))
    assert names(own)["valid"] == ["val.jsonl"]
    assert names(own)["test"] == ["test.jsonl"]
    assert own.unused == (folder / "valid.jsonl",)


def test_shards_and_folders_of_splits_belong_together(write, tmp_path):
    for name in ("train-00000-of-00002.parquet", "train-00001-of-00002.parquet"):
        write(f"hf/{name}", ROW)
    assert len(find(DataConfig(path=str(tmp_path / "hf"))).train) == 2
    for name in ("train/a.jsonl", "train/b.jsonl", "validation/a.jsonl"):
        write(f"tree/{name}", ROW)
    found = find(DataConfig(path=str(tmp_path / "tree")))
    assert names(found) == {"train": ["a.jsonl", "b.jsonl"], "valid": ["a.jsonl"], "test": []}


def test_a_folder_without_names_is_training_files_and_says_so(write, tmp_path):
    write("set/one.jsonl", ROW)
    write("set/trainer.json", ROW)
    write("set/valid.jsonl", ROW)
    found = find(DataConfig(path=str(tmp_path / "set")))
    assert names(found) == {
        "train": ["one.jsonl", "trainer.json"], "valid": ["valid.jsonl"], "test": [],
    }  # fmt: skip
    assert found.notes == (
        "No file is named train: all are training files (one.jsonl, trainer.json).",
    )


def test_a_pattern_gives_files_in_order_and_keeps_validation_out(write, tmp_path):
    for name in ("b.jsonl", "a.jsonl", "valid.jsonl", "c.csv"):
        write(f"set/{name}", ROW)
    found = find(DataConfig(path=str(tmp_path / "set" / "*.jsonl")))
    assert names(found) == {"train": ["a.jsonl", "b.jsonl"], "valid": ["valid.jsonl"], "test": []}
    assert "not for training, by their names: valid.jsonl" in found.notes[1]
    only = find(DataConfig(path=str(tmp_path / "set" / "v*")))
    assert names(only)["train"] == ["valid.jsonl"]
    own = find(DataConfig(path=str(tmp_path / "**/c.csv"), valid_path=str(tmp_path / "set/[ab]*")))
    assert names(own) == {"train": ["c.csv"], "valid": ["a.jsonl", "b.jsonl"], "test": []}


def test_several_sources_with_weights(write, tmp_path):
    a, b = write("a.jsonl", ROW), write("set/train.jsonl", ROW)
    write("set/valid.jsonl", ROW)
    found = find(DataConfig(path=[str(a), {"path": str(tmp_path / "set"), "weight": 2.0}]))
    assert [(source.path, source.weight) for source in found.train] == [(a, 1), (b, 2)]
    assert [source.weight for source in found.valid] == [1]


def test_builtin_datasets_by_name(write, tmp_path, monkeypatch):
    train, test = write("animals/train.jsonl", ROW), write("animals/test.jsonl", ROW)
    monkeypatch.setattr(locate, "BUILTIN_FOLDER", tmp_path)
    found = find(DataConfig(path="builtin:animals"))
    assert [(source.path, source.name) for source in found.all] == [
        (train, "builtin:animals"), (test, "builtin:animals"),
    ]  # fmt: skip
    [fault] = faults(path="builtin:x")
    assert "no built-in dataset 'builtin:x'; there are: builtin:animals" in fault


def test_missing_files_are_named_all_at_once_with_what_is_there(write, tmp_path):
    write("train.jsonl", ROW)
    first, second, third, fourth = faults(
        path=[str(tmp_path / "tran.jsonl"), str(tmp_path / "x*.csv")],
        valid_path=str(tmp_path / "zzz"),
        test_path=str(tmp_path / "nowhere" / "x.jsonl"),
    )
    missing = tmp_path / "tran.jsonl"
    assert first == f"data.path: no file or folder '{missing}'. Did you mean train.jsonl?"
    assert second.startswith(f"data.path: no file fits '{tmp_path}/x*.csv'")
    assert third.startswith("data.valid_path: ")
    assert third.endswith("Files of rows in that folder: train.jsonl")
    assert fourth.endswith(f"There is no folder {tmp_path / 'nowhere'}")


@pytest.mark.parametrize("given", ["a.jsonl", "a*.jsonl", "none/a.jsonl", "org/name", "empty"])
def test_a_relative_path_is_shown_once_with_the_folder_it_was_looked_up_in(
    tmp_path, monkeypatch, given
):
    def split_paths(*_: object) -> dict[str, Path]:
        raise hub.HubError("no network")

    monkeypatch.setattr(hub, "split_paths", split_paths)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    [fault] = faults(path=given)
    assert f"{given!r} in {tmp_path}" in fault
    assert fault.count(given) == fault.count(str(tmp_path)) == 1


@pytest.mark.parametrize("given", ["a\0b", "x" * 5000, "~nobody-of-that-name/x"])
def test_what_is_no_path_is_a_fault(given):
    [fault] = faults(path=given)
    assert fault.startswith("data.path: ")


def test_folders_that_do_not_serve(write, tmp_path):
    (tmp_path / "empty").mkdir()
    write("both/train.jsonl", ROW)
    write("both/train.csv", ROW)
    write("late/test.jsonl", ROW)
    one, two, three, four = faults(
        path=[str(tmp_path / name) for name in ("empty", "both", "late")],
        valid_path=str(tmp_path / "both"),
    )
    assert "has no rows" in one
    assert "it holds: nothing" in one
    assert "several files for train: train.csv, train.jsonl" in two
    assert "has no training file; it holds: test.jsonl" in three
    assert four.startswith(f"data.valid_path: '{tmp_path}/both' is a folder")


def test_a_file_twice_and_a_training_file_that_judges(write, tmp_path):
    path = write("a.jsonl", ROW)
    (tmp_path / "link.jsonl").symlink_to(path)
    (tmp_path / "hard.jsonl").hardlink_to(path)
    link, hard = str(tmp_path / "link.jsonl"), str(tmp_path / "hard.jsonl")
    twice, judge = faults(path=[str(path), link], valid_path=hard)
    assert f"{link} is named twice (as {path})" in twice
    assert f"{hard} is a training file and a valid file" in judge


def test_what_cannot_be_opened_is_a_fault(tmp_path, write):
    below = write("a.jsonl", ROW) / "below.jsonl"
    [fault] = faults(path=str(below))
    assert "below.jsonl" in fault

    os.mkfifo(tmp_path / "pipe.jsonl")
    [fault] = faults(path=str(tmp_path / "pipe.jsonl"))
    assert "is neither a file nor a folder" in fault


def test_digests(write):
    a, b = write("a.jsonl", ROW), write("b.jsonl", ROW, ROW)
    assert digest([a]) == hashlib.sha256(a.read_bytes()).hexdigest()
    assert digest([a, b]) != digest([b, a])
    assert digest([a, b]) == digest(iter([a, b]))


def test_org_slash_name_is_the_hub_only_when_nothing_of_it_is_here(write, tmp_path, monkeypatch):
    asked = []

    def split_paths(name: str, subset: str | None, revision: str | None) -> dict[str, Path]:
        asked.append((name, subset, revision))
        return {split: Path(f"hub:{name}/{split}") for split in ("train", "validation", "extra")}

    monkeypatch.setattr(hub, "split_paths", split_paths)
    monkeypatch.chdir(tmp_path)
    found = find(DataConfig(path="org/name", revision="v1", subset="en"))
    assert asked == [("org/name", "en", "v1")]
    assert [str(source.path) for source in found.all] == [
        "hub:org/name/train", "hub:org/name/validation",
    ]  # fmt: skip
    assert [str(path) for path in found.unused] == ["hub:org/name/extra"]
    write("org/other.jsonl", ROW)
    [fault] = faults(path="org/name")
    assert "no file or folder 'org/name'" in fault
    [fault] = faults(path="nowhere/name.jsonl")
    assert "no file or folder" in fault
    assert len(asked) == 1
    find(DataConfig(path="hub:org/name"))
    assert len(asked) == 2


def test_what_the_hub_refuses_is_said_beside_the_place_that_was_tried(tmp_path, monkeypatch):
    def split_paths(*_: object) -> dict[str, Path]:
        raise hub.HubError("no network")

    monkeypatch.setattr(hub, "split_paths", split_paths)
    monkeypatch.chdir(tmp_path)
    [fault] = faults(path="org/name")
    assert fault == (
        f"data.path: no file or folder 'org/name' in {tmp_path}, and it cannot be had from the "
        "hub: no network"
    )
    [fault] = faults(path="hub:org/name")
    assert fault == "data.path: 'hub:org/name' cannot be had from the hub: no network"


def test_a_file_that_cannot_be_read_is_a_fault_of_the_data(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        digest([tmp_path])  # as /proc/self/mem: it is there, and reading it fails
