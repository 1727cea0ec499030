"""Findings about a run that has ended go to that run, and leave the rest of it as it was."""

import fcntl
from dataclasses import replace

import pytest

from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.tracking import later, sync_run
from mlx_ft.tracking.journal import NAME, Journal
from mlx_ft.tracking.sync import LOCK
from tests.tracking.test_sync import begun

pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy")
FOUND = later.Findings(
    {"evaluation/loss": 0.5, "evaluation/a[b]": 1.0}, 3, "evaluation_now",
    [{"question": "q", "answer": "a"}], ("rows.jsonl", "0123456789abcdef"),
)  # fmt: skip


@pytest.fixture
def ended(tmp_path, database):
    folder = tmp_path / "run"
    tracker = begun(folder, database.config(), ended=("FINISHED", None))
    return folder, tracker.run_id


def test_they_go_to_the_run_with_the_journal(ended, database):
    folder, run_id = ended
    before = database.run(run_id)
    assert later.note(folder, None, database.config(), FOUND) == run_id
    told = {key: (value, step) for key, step, value, _ in database.points(run_id)}
    assert told["evaluation/loss"] == (0.5, 3)
    assert told["evaluation/a_b_"] == (1.0, 3)
    assert database.run(run_id) == before  # name, status, end
    assert Journal(folder / NAME).pending() == []
    later.note(folder, None, database.config(), replace(FOUND, figures={"evaluation/loss": 0.25}))
    values = [value for key, _, value, _ in database.points(run_id) if key == "evaluation/loss"]
    assert sorted(values) == [0.25, 0.5]
    assert len(list(database.folder.rglob("evaluation_now.json"))) >= 1


def test_they_go_to_a_run_by_its_id_alone(ended, database):
    _, run_id = ended
    before = database.run(run_id)
    assert later.note(None, run_id, database.config(), FOUND) == run_id
    assert ("evaluation/loss", 3, 0.5, 0) in database.points(run_id)
    assert database.run(run_id) == before


def test_a_run_that_is_not_there_is_told(database, tmp_path):
    with pytest.raises(MlxFtError, match="has no run 0000"):
        later.note(None, "0" * 32, database.config(), FOUND)
    config = database.config()
    config.paths.tracking_dir = str(tmp_path / "nowhere")
    with pytest.raises(MlxFtError, match="has no run"):
        later.note(None, "0" * 32, config, FOUND)
    assert not (tmp_path / "nowhere").exists()


def test_a_run_that_goes_on_is_left_alone(ended, database):
    folder, run_id = ended
    before = database.points(run_id)
    with (folder / LOCK).open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(UserError, match="still goes on"):
            later.note(folder, None, database.config(), FOUND)
    assert database.points(run_id) == before


def test_what_is_not_taken_now_is_kept(ended, database, monkeypatch):
    folder, run_id = ended

    def down(*_, **__):
        raise ConnectionError("down")

    with monkeypatch.context() as patch:
        patch.setattr("mlx_ft.tracking.sync.MlflowStore", down)
        with pytest.raises(MlxFtError, match=r"down.*mlx-ft sync"):
            later.note(folder, None, database.config(), FOUND)
    assert sync_run(folder, database.config()).outcome == "written"
    assert ("evaluation/loss", 3, 0.5, 0) in database.points(run_id)


def test_a_run_that_was_not_tracked_gets_one(database):
    config = database.config()
    config.tracking.backend = "none"
    run_id = later.note_apart("evaluate this", config, FOUND, {"mlx_ft.run_dir": "x"})
    assert database.run(run_id)[:2] == ("evaluate this", "FINISHED")
    assert database.pairs("tags", run_id)["mlx_ft.kind"] == "evaluation"
    assert ("evaluation/loss", 3, 0.5, 0) in database.points(run_id)


def test_what_counts_as_tracked(ended, tmp_path):
    folder, _ = ended
    assert later.is_tracked(folder, None)
    assert later.is_tracked(None, "abc")
    assert not later.is_tracked(tmp_path, None)
