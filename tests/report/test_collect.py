"""What is compared: sweeps as they are, as they were left, and moved; run folders and ids."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from mlx_ft.errors import UserError
from mlx_ft.report.collect import collect, newest_sweep, of_rows, sweep, value_of
from mlx_ft.report.read import Row, row_of
from tests.report import fakes

OUTPUTS = Path("outputs")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def statuses(rows):
    return [row.status for row in rows]


def test_the_trials_of_a_sweep_with_what_varies():
    fakes.sweep(OUTPUTS / "sweeps/s", fakes.grid(ranks=(4, 8), rates=(1e-4, 3e-4)))
    found = collect(["s"], OUTPUTS)
    assert (found.title, found.keys) == ("Sweep s", ["lora.rank", "optimizer.learning_rate"])
    assert [[row.settings[key] for key in found.keys] for row in found.rows] == [
        [4, 1e-4], [4, 3e-4], [8, 1e-4], [8, 3e-4],
    ]  # fmt: skip
    row = found.rows[0]
    assert row.figures["val_loss_after"] == fakes.loss_at(4, 1e-4)
    assert row.curves["val/loss"][0] == (0, 2.0)
    assert len(row.curves["train/loss"]) == 20
    assert found.notes == []
    assert found.folder == OUTPUTS / "sweeps/s"


def test_trials_that_came_to_nothing_are_rows_too():
    trials = [
        {"rank": 4, "loss": 0.5},
        {"rank": 8, "loss": None, "status": "FAILED", "error": "out of memory"},
        {"rank": 16, "loss": 0.6, "status": "PRUNED", "error": "worse than the median"},
    ]
    folder = fakes.sweep(Path("s"), trials, unrun=[{"rank": 32}])
    (folder / "rank=0").mkdir()
    (folder / "rank=0/trial.json").write_text('{"status": "FAILED", "error": "rank 0"}')
    found = sweep(folder)
    assert statuses(found.rows) == ["FINISHED", "FAILED", "PRUNED", "NOT RUN", "FAILED"]
    assert [row.error for row in found.rows] == [
        None, "out of memory", "worse than the median", "out of hours", "rank 0",
    ]  # fmt: skip
    assert found.rows[3].settings == {"lora.rank": 32}
    assert found.rows[3].folder is None


def test_a_sweep_without_its_table_is_read_from_its_folders():
    trials = [*fakes.grid(), {"rank": 32, "rate": 1e-4, "loss": None, "status": "UNFINISHED"}]
    fakes.sweep(Path("s"), trials, table=False, total=12)
    found = sweep(Path("s"))
    assert sorted(found.keys) == ["lora.rank", "optimizer.learning_rate"]
    assert statuses(found.rows).count("FINISHED") == 9
    assert statuses(found.rows).count("UNFINISHED") == 1
    assert found.notes == ["2 of the sweep's 12 trials were not begun yet"]


def test_what_has_ended_since_the_table_was_written_counts():
    folder = fakes.sweep(Path("s"), [{"rank": 4, "loss": 0.5}, {"rank": 8, "loss": 0.4}])
    table = folder / "trials.csv"
    table.write_text(table.read_text().replace("FINISHED", "KILLED"))
    fakes.run(folder / "rank=16", 0.3, rank=16)
    found = sweep(folder)
    assert statuses(found.rows) == ["FINISHED"] * 3
    assert found.keys == ["lora.rank"]
    assert [row.settings["lora.rank"] for row in found.rows] == [4, 8, 16]


def test_a_sweep_that_was_moved_finds_its_trials():
    fakes.sweep(Path("here"), fakes.grid())
    shutil.move("here", "there")
    found = sweep(Path("there"))
    assert statuses(found.rows) == ["FINISHED"] * 9
    assert all(row.folder.parent == Path("there") for row in found.rows)


def test_seeds_are_no_setting():
    trials = [{"rank": r, "seed": s, "loss": 0.5} for r in (4, 8) for s in (1, 2)]
    found = sweep(fakes.sweep(Path("s"), trials))
    assert found.keys == ["lora.rank"]
    assert [row.seed for row in found.rows] == ["1", "2", "1", "2"]


def test_damaged_files_are_told_and_the_rest_is_used():
    folder = fakes.sweep(Path("s"), fakes.grid(ranks=(4,), rates=(1e-4, 3e-4)))
    first, second = sorted(path for path in folder.iterdir() if path.is_dir())
    with (first / "metrics.jsonl").open("a") as file:
        file.write('{"step": 99\n[1]\nnot json\n')
    (second / "summary.json").write_bytes(b"\xff\xfe")
    (second / "config.yaml").write_text("a: [")
    (second / "samples.jsonl").write_text('{"question": "q\u2028r"}\n')
    (second / "trial.json").unlink()
    with (folder / "trials.csv").open("a") as file:
        file.write("1,2\n")
    found = sweep(folder)
    assert statuses(found.rows) == ["FINISHED", "UNFINISHED"]
    assert found.rows[1].samples == [{"question": "q\u2028r"}]
    assert found.rows[1].settings == {"lora.rank": 4, "optimizer.learning_rate": 3e-4}
    said = "\n".join(found.notes)
    for text in (
        "trials.csv: 1 damaged lines are left out",
        f"{first}/metrics.jsonl: 3 damaged lines are left out",
        f"{second}/summary.json cannot be read",
        f"{second}/config.yaml is damaged: its settings are left out",
    ):
        assert text in said
    assert len(found.notes) == 4


def test_a_row_has_no_figure_that_is_none():
    folder = fakes.run(Path("r"), None, status="FAILED", error="diverged")
    row = row_of(folder, [])
    assert "val_loss_after" not in row.figures
    assert (row.error, row.status) == ("diverged", "FAILED")
    assert row_of(Path("nothing"), []).status == "NOT RUN"


def test_runs_by_folder_name_and_id():
    for name, rank, run_id in (("a", 4, "1" * 32), ("b", 8, "12" + "3" * 30)):
        fakes.run(OUTPUTS / "runs" / name, 0.5, rank=rank, run_id=run_id)
    fakes.sweep(OUTPUTS / "sweeps/s", [{"rank": 16, "loss": 0.4}])
    places = ["a", "123333", "outputs/sweeps/s/rank=16", "outputs/runs/a"]
    found = collect(places, OUTPUTS)
    assert [row.settings["lora.rank"] for row in found.rows] == [4, 8, 16]
    assert (found.title, found.keys, found.folder) == ("3 runs", ["lora.rank"], None)
    assert len(collect(["outputs/runs"], OUTPUTS).rows) == 2
    assert len(collect(["s", "a"], OUTPUTS).rows) == 2
    assert collect(["1" * 32], OUTPUTS).rows[0].settings["lora.rank"] == 4


def test_all_that_is_not_found_is_told_at_once():
    fakes.run(OUTPUTS / "runs/2026-a", 0.5)
    fakes.run(OUTPUTS / "runs/2026-b", 0.5)
    with pytest.raises(UserError) as error:
        collect(["nowhere", "2026", "202"], OUTPUTS)
    assert "no sweep, run or id in" in error.value.faults[0]
    assert "2026: 2 runs begin so (2026-a, 2026-b, ...)" in error.value.faults[1]
    assert "202: no folder" in error.value.faults[2]  # too short to stand for one
    with pytest.raises(UserError, match="There is no sweep in"):
        newest_sweep(OUTPUTS)


def test_the_newest_sweep():
    for age, name in enumerate(("old", "new")):
        folder = fakes.sweep(OUTPUTS / "sweeps" / name, [{"rank": 4, "loss": 0.5}])
        os.utime(folder / "sweep.json", (age, age))
    assert newest_sweep(OUTPUTS).name == "new"


def row(**settings):
    return Row("FINISHED", {key.replace("__", "."): value for key, value in settings.items()})


def test_settings_that_vary_together_are_told():
    rows = [row(model__path="a", lora__rank=4, lora__alpha=8.0, seed=1, threads=1, x=None),
            row(model__path="a", lora__rank=8, lora__alpha=16.0, seed=2, threads=2, x=None),
            row(model__path="a", lora__rank=8, lora__alpha=16, seed=2, threads=2)]  # fmt: skip
    found = of_rows("t", rows)
    assert found.keys == ["lora.rank"]  # 16 and 16.0 are one; an absent key differs in nothing
    assert found.alike == {"lora.rank": ["lora.alpha"]}
    assert found.notes == ["lora.rank varies together with lora.alpha"]


def test_runs_on_different_data_are_told():
    fakes.run(OUTPUTS / "runs/a", 0.5, data="d1")
    fakes.run(OUTPUTS / "runs/b", 0.4, data="d2")
    [note] = collect(["outputs/runs"], OUTPUTS).notes
    assert note.startswith("the runs have 2 different data")


@pytest.mark.parametrize(
    ("text", "value"),
    [("8", 8), ("1e-4", 1e-4), ("0.5", 0.5), ("'a b'", "a b"), ("lion", "lion"), ("1.2.3", "1.2.3"),
     ("[q,k]", "[q,k]"), ("null", "null"), ("-3", -3)],
)  # fmt: skip
def test_values_of_the_table(text, value):
    assert value_of(text) == value
    assert type(value_of(text)) is type(value)


def test_null_is_a_value():
    for name, value in (("a", None), ("b", 5)):
        fakes.run(OUTPUTS / "runs" / name, 0.5, **{"optimizer.warmup_steps": value})
    found = collect(["outputs/runs"], OUTPUTS)
    assert found.keys == ["optimizer.warmup_steps"]
    assert [r.settings["optimizer.warmup_steps"] for r in found.rows] == ["null", 5]


def test_summaries_are_not_trusted_to_have_the_right_shape():
    folder = fakes.run(Path("r"), 0.5)
    (folder / "summary.json").write_text(json.dumps({"status": 3, "val_loss_after": "low",
                                                     "x": True, "run_id": []}))  # fmt: skip
    (folder / "trial.json").write_text("[]")
    (folder / "origin.json").write_text('{"fingerprint": [1]}')
    faults: list[str] = []
    found = row_of(folder, faults)
    assert (found.status, [*found.figures], found.run_id) == ("UNFINISHED", ["status"], None)
    assert faults == ["r/trial.json is damaged: it is left out"]
