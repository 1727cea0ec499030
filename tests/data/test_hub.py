"""Hub datasets, with a module in place of the `datasets` library."""

import datetime
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mlx_ft.config.schema import DataConfig
from mlx_ft.data import hub
from mlx_ft.data.read import ReadStats, read
from mlx_ft.data.rows import BadRow, Record
from mlx_ft.data.sources import digest, find
from mlx_ft.errors import DataError

ROWS = [
    {"text": "a", "when": datetime.date(2024, 2, 1), "none": None},
    {"text": "\0"},
    {"text": "b"},
]


@pytest.fixture
def library(monkeypatch):
    """What `load_dataset` was asked, and what it answers."""
    fake = SimpleNamespace(asked=[], splits={"train": ROWS, "dev": ROWS[:1], "extra": []})

    def load_dataset(name, subset=None, *, revision=None, streaming=False):
        fake.asked.append((name, subset, revision, streaming))
        if isinstance(fake.splits, Exception):
            raise fake.splits
        return fake.splits

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    for key in hub.OFFLINE:
        monkeypatch.delenv(key, raising=False)
    return fake


def test_splits_become_sources_and_their_rows_records(library):
    found = find(DataConfig(path="hub:org/name", revision="refs/pr/1", subset="en/us"))
    train, valid = found.all
    base = "hub:org/name@refs%2Fpr%2F1:en%2Fus"
    assert (str(train.path), train.split) == (f"{base}/train", "train")
    assert (str(valid.path), valid.split) == (f"{base}/dev", "valid")
    assert [str(path) for path in found.unused] == [f"{base}/extra"]
    stats = ReadStats()
    one, two, three = read(train.path, stats)
    assert one == Record({"text": "a", "when": "2024-02-01"}, train.path, 1)
    assert isinstance(two, BadRow)
    assert (two.line, two.code) == (2, "control_character")
    assert (three.line, three.fields) == (3, {"text": "b"})
    assert (stats.rows, stats.bad) == (2, 1)
    assert set(library.asked) == {("org/name", "en/us", "refs/pr/1", True)}


@pytest.mark.parametrize(
    ("name", "subset", "revision"),
    [("org/name", None, None), ("squad", None, None), ("squad", "plain", None), ("a/b", "c", "d"),
     ("a/b", "c d", None), ("a", None, "x/y")],
)  # fmt: skip
def test_a_path_says_what_to_load(library, name, subset, revision):
    path = hub.split_paths(name, subset, revision)["train"]
    assert len(list(read(path, ReadStats()))) == 3
    assert library.asked == [(name, subset, revision, True)] * 2


def test_the_library_is_an_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r'pip install "mlx-ft\[hub\]"'):
        find(DataConfig(path="hub:org/name"))
    [row] = read(Path("hub:org/name/train"), ReadStats())
    assert "pip install" in row.sentence


def test_offline_only_what_is_in_the_librarys_cache(library, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    find(DataConfig(path="hub:org/name"))
    assert library.asked == [("org/name", None, None, False)]
    library.splits = ConnectionError("no network\nat all")
    with pytest.raises(DataError, match="HF_HUB_OFFLINE is set and it is not in the cache"):
        find(DataConfig(path="hub:org/name"))


def test_failures_are_faults(library):
    library.splits = ValueError("Config name is missing")
    with pytest.raises(DataError, match=r"Config name is missing; check .*data\.subset"):
        find(DataConfig(path="hub:org/name"))
    library.splits = {"all": ROWS}
    with pytest.raises(DataError, match="no split named train; it has: all"):
        find(DataConfig(path="hub:org/name"))
    with pytest.raises(DataError, match="expected hub:ORG/NAME"):
        find(DataConfig(path="hub:a/b/c"))


def test_a_stream_that_breaks_off_is_a_bad_row_behind_the_good_ones(library):
    def rows():
        yield {"text": "a"}
        raise TimeoutError("slow")

    library.splits = {"train": rows()}
    good, bad = read(Path("hub:org/name/train"), ReadStats())
    assert (good.line, bad.line, bad.code) == (1, 2, "file_unreadable")
    assert "TimeoutError: slow" in bad.sentence


def test_the_digest_is_that_of_the_commit(library, monkeypatch):
    commits = iter(["one", "one", "two"])

    class HfApi:
        def dataset_info(self, name, *, revision, timeout):
            assert (name, revision) == ("org/name", None)
            return SimpleNamespace(sha=next(commits))

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=HfApi))
    path = Path("hub:org/name/train")
    first, second, third = (digest([path]) for _ in range(3))
    assert first == second != third
    assert len(digest([path])) == 64  # the hub does not answer: the name has to do
