"""Disks that fail: the small form of `python proofs/write_faults.py`, in this process."""

import io
import random
import resource
import shutil
from contextlib import redirect_stderr, redirect_stdout

import pytest

from mlx_ft.main import main
from proofs.faulty_disk import FaultyDisk
from proofs.write_faults import (
    arguments,
    enlarge,
    every_call,
    judge,
    later,
    remove,
    saves,
    small_disk,
    told_wrongly,
)
from tests.jobs import write_rows
from tests.models import tiny

SEED = 4


class Here:
    """As proofs.kills.Place, but the trainings run in this process."""

    def __init__(self, folder):
        self.folder = folder
        self.printed = io.StringIO()

    def start(self, given, disk=None, file_size=None):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        try:
            if file_size is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_size, limits[1]))
            out, err = redirect_stdout(self.printed), redirect_stderr(self.printed)
            with out, err, FaultyDisk(**(disk or {"under": self.folder, "call": 0})) as failing:
                code = main(given)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        return {"code": code, "signal": None, "calls": failing.calls}

    def output(self):
        text = self.printed.getvalue()
        self.printed = io.StringIO()
        return text


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    folder = tmp_path_factory.mktemp("disks")
    tiny.save(folder / "model")
    write_rows(folder / "rows.jsonl")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("MLX_FT_CACHE", str(folder / "cache"))
        yield Here(folder)


@pytest.fixture(scope="module")
def whole(here):
    """A run whose disk is well, and its calls."""
    ended = here.start(arguments("whole"), disk={"under": here.folder / "whole", "call": 0})
    assert ended["code"] == 0, here.output()
    here.output()
    return here.folder / "whole", ended["calls"]


def test_every_call_of_a_save_may_fail(tmp_path):
    count, wrong = saves(tmp_path / "saves", ("ENOSPC", "EIO"))
    assert wrong == []
    assert count > 80


def one_of_each_kind(calls):
    """The numbers of some calls that stand for the others: of a save, of the end, of a line."""
    places = (
        ("write", "origin.json"), ("write", "metrics.jsonl"), ("write", "new/optimizer"),
        ("rename", "/new"), ("rename", "adapter"), ("write", "figures"), ("rename", "summary"),
    )  # fmt: skip
    found = []
    for kind, name in places:
        numbers = [n for n, (k, path) in enumerate(calls, 1) if k == kind and name in path]
        assert numbers, (kind, name)
        found.append(numbers[len(numbers) // 2])
    return found


@pytest.mark.slow
def test_a_run_whose_disk_fails_says_so_and_goes_on_to_the_same_end(here, whole):
    folder, calls = whole
    errors = ("ENOSPC", "EIO", "EDQUOT", "EROFS")
    chosen = [(n, errors[i % 4], i % 3 == 1) for i, n in enumerate(one_of_each_kind(calls))]
    for what, wrong in every_call(here, folder, chosen):
        assert wrong == [], what


@pytest.mark.slow
def test_files_of_limited_size(here, whole):
    folder, _ = whole
    size = (folder / "adapter" / "adapters.safetensors").stat().st_size - 1
    ended = here.start(arguments("limited"), file_size=size)
    assert ended["code"] == 1
    assert judge(here, folder, "limited", ended) == []


def test_a_disk_that_the_run_fills(here, whole):
    folder, _ = whole
    try:
        with small_disk(here.folder / "disk", 120_000):
            ended = here.start(arguments("disk/run"))
            assert ended["code"] == 1
            enlarge(here.folder / "disk")
            assert judge(here, folder, "disk/run", ended) == []
    except RuntimeError as error:
        pytest.skip(str(error))


def test_a_run_folder_that_is_removed(here, whole):
    folder, _ = whole
    timer = later(random.Random(SEED).uniform(0.3, 0.6), remove, here.folder / "removed")
    ended = here.start(arguments("removed"))
    timer.join()
    assert judge(here, folder, "removed", ended) == []


def test_what_is_judged_by_is_not_blind(here, whole):
    folder, _ = whole
    ended = {"code": 1, "signal": None, "calls": []}
    assert told_wrongly(ended, "Traceback: KeyError") != []
    half = here.folder / "half"
    shutil.copytree(folder, half)
    (half / "checkpoints" / "step-000006" / "optimizer.safetensors").write_text("")
    (half / ".summary.json.partial").write_text("")
    (half / "samples.jsonl").write_text("")
    wrong = "\n".join(judge(here, folder, "half", {**ended, "code": 0}))
    assert "step-000006 is half" in wrong
    assert "samples differs" in wrong


def test_a_disk_fails_at_the_call_that_was_asked_for(tmp_path):
    with FaultyDisk(tmp_path, 2) as disk, pytest.raises(OSError, match="No space left"):
        (tmp_path / "a").write_bytes(b"x" * 100)
    assert disk.calls[:2] == [["open", "a"], ["write", "a"]]
    assert (tmp_path / "a").stat().st_size >= 50
    (tmp_path / "a").write_bytes(b"y" * 100)
    assert (tmp_path / "a").read_bytes() == b"y" * 100
