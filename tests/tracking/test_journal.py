"""The journal: nothing that was told is lost or read wrongly, whatever happens to the file."""

import logging
import math
import random
import subprocess
import sys

import pytest

from mlx_ft.tracking.journal import NAME, Journal, first_record, read
from mlx_ft.tracking.lines import from_ranges, to_ranges
from mlx_ft.tracking.records import Dataset, End, File, Metrics, Resume, Start, Table, Tags

RECORDS = [
    Start(1, "näme\ud800", "id", "/somewhere", {"lora.rank": "8"}, {"long": "x" * 7000}),
    Tags(2, {"a": "1"}),
    Metrics(3, 1, {"loss": 0.1 + 0.2, "nan": math.nan, "up": math.inf, "down": -math.inf}),
    File(4, "figures/loss.png", "figures"),
    Table(5, "samples", ["q", "a"], [["é?", 1], [None, "\n"]]),
    Dataset(6, "rows", "sha256:ab", "rows.jsonl", {"rows": 2}, "training"),
    Resume(7),
    End(8, "FINISHED", None),
]


@pytest.fixture
def path(tmp_path):
    """A journal with one of each kind."""
    journal = Journal(tmp_path / NAME)
    for record in RECORDS:
        journal.note(record)
    journal.close()
    return tmp_path / NAME


def test_what_is_told_is_read_again(path):
    state = read(path)
    assert repr([*state.pending.values()]) == repr(RECORDS)  # NaN equals itself as text only
    assert [*state.pending] == [1, 2, 3, 4, 5, 6, 7, 8]
    assert (state.next_number, state.last_step, state.damaged_lines) == (9, 1, 0)
    assert first_record(path) == RECORDS[0]
    assert b"NaN" not in path.read_bytes()
    assert b"Infinity" not in path.read_bytes()


def test_what_is_taken_is_not_told_again(path):
    journal = Journal(path)
    journal.acknowledge("run", [1, 2, 3, 6])
    journal.give_up([4], "gone")
    assert [number for number, _ in journal.pending()] == [5, 7, 8]
    journal.close()
    state = read(path)
    assert (state.run_id, [*state.pending]) == ("run", [5, 7, 8])


def test_another_run_begins_with_nothing(path):
    journal = Journal(path)
    journal.acknowledge("first", range(1, 9))
    journal.note(Metrics(9, 2, {"loss": 1.0}))
    journal.start_over()
    assert [number for number, _ in journal.pending()] == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    journal.acknowledge("second", [1])
    journal.close()
    assert [*read(path).pending] == [2, 3, 4, 5, 6, 7, 8, 9]


def test_an_end_before_a_resume_is_not_written(tmp_path):
    journal = Journal(tmp_path / NAME)
    for record in (RECORDS[0], End(2, "KILLED", "Ctrl-C"), Resume(3)):
        journal.note(record)
    assert [type(record).__name__ for _, record in journal.pending()] == ["Start", "Resume"]
    assert journal.state.end is None
    journal.close()
    assert [*read(tmp_path / NAME).pending] == [1, 3]


def test_a_torn_last_line_is_as_if_never_written(path, caplog):
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last + 1):
        path.write_bytes(whole[: len(whole) - cut])
        journal = Journal(path)
        expected = 8 if cut == 1 else 7  # only the line's end is missing
        assert journal.state.next_number == expected + 1
        journal.note(End(9, "KILLED", None))
        journal.close()
        state = read(path)
        assert (state.damaged_lines, state.end) == (0, End(9, "KILLED", None))
    assert caplog.records == []


def test_every_flipped_bit_is_noticed(path, caplog):
    whole = path.read_bytes()
    expected = [repr(record) for record in RECORDS]
    for _ in range(500):
        damaged, at = bytearray(whole), random.Random(_).randrange(len(whole) - 1)
        damaged[at] ^= 1 << random.Random(_).randrange(8)
        path.write_bytes(damaged)
        state = read(path)
        assert state.damaged_lines >= 1
        found = [repr(record) for record in state.pending.values()]
        assert set(found) < set(expected)  # less, and nothing else
    assert "1 damaged lines" in caplog.text


def test_a_number_that_was_taken_is_not_given_again(path):
    journal = Journal(path)
    journal.acknowledge("run", range(1, 9))
    journal.close()
    lines = path.read_bytes().splitlines(keepends=True)
    lines[7] = b"garbage\n"
    path.write_bytes(b"".join(lines))
    journal = Journal(path)
    journal.note(Metrics(9, 2, {"loss": 1.0}))
    journal.close()
    assert [*read(path).pending.values()] == [Metrics(9, 2, {"loss": 1.0})]


FULL = """
import resource, signal, sys
from pathlib import Path
from mlx_ft.tracking.journal import Journal, read
from mlx_ft.tracking.records import Metrics
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
journal = Journal(path)
hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
for step in range(50):
    journal.note(Metrics(step, step, {"train/loss": 1.0}))
assert len(journal.pending()) == 50
assert path.stat().st_size <= 1000
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
journal.note(Metrics(50, 50, {"train/loss": 1.0}))
state = read(path)
assert state.damaged_lines == 0, "a half line"
assert state.last_step == 50
assert 1 < len(state.pending) < 50
"""


def test_a_full_disk_leaves_whole_lines_and_one_warning(tmp_path):
    command = [sys.executable, "-c", FULL, str(tmp_path / NAME)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("cannot be written (File too large)") == 1


def test_a_folder_that_is_gone_is_a_warning(tmp_path, caplog):
    journal = Journal(tmp_path / "gone" / NAME)
    journal.note(RECORDS[0])
    journal.sync()
    assert len(journal.pending()) == 1
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "No such file or directory" in record.getMessage()


def test_ranges():
    assert to_ranges([1, 2, 3, 7, 9, 10]) == [[1, 3], [7, 7], [9, 10]]
    assert from_ranges([[1, 3], [7, 7]]) == {1, 2, 3, 7}
    assert to_ranges([]) == []
