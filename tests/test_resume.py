"""Going on: after kill -9 the run is, bit for bit, the one that was never stopped."""

import hashlib
import json
import random
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest

from mlx_ft import judgement
from mlx_ft.main import main
from mlx_ft.runfolder import RunFolder
from proofs.kills import SCENARIOS, Place, arguments, faults, remains, torture
from tests.jobs import job, summary


@pytest.fixture(scope="module")
def killing_grounds(tmp_path_factory):
    """One for each of two processes at a time."""
    places = [Place(tmp_path_factory.mktemp("kills")) for _ in range(2)]
    yield places
    for place in places:
        place.close()


@pytest.mark.parametrize(
    "kills", [pytest.param(1, marks=pytest.mark.slow), pytest.param(30, marks=pytest.mark.long)]
)
def test_kills_change_nothing(killing_grounds, kills):
    """1: one for each scenario."""
    names = [name for name in SCENARIOS if name != "compiled steps"]  # g++ takes its time
    each = -(-kills // len(names))

    def share(number):
        chance = random.Random(20 + number)
        place, mine = killing_grounds[number], names[number :: len(killing_grounds)]
        return [(name, *torture(place, name, each, chance)) for name in mine]

    with ThreadPoolExecutor(len(killing_grounds)) as pool:
        found = [row for rows in pool.map(share, range(len(killing_grounds))) for row in rows]
    assert [(name, wrong) for name, _, wrong in found if wrong] == []
    assert sum(done for _, done, _ in found) >= kills


@pytest.mark.slow
def test_the_comparison_finds_a_run_that_differs(killing_grounds):
    """What the kills are judged by is not blind: another seed is another run."""
    place = killing_grounds[0]
    for run, seed in (("one", 1), ("two", 2)):
        ended = place.start(arguments("adamw, cosine", run, f"seed={seed}", "train.max_steps=4"))
        assert ended["code"] == 0, place.output()
    found = faults(place, "one", "two")
    assert {"adapter differs", "optimizer differs", "metrics differs"} <= set(found)


def resumable(*overrides: str) -> list[str]:
    return job("checkpoint.every=2", *overrides)


def test_a_finished_run_has_nothing_left_to_do(place, capsys):
    assert main(resumable()) == 0
    before = remains(place / "run")
    assert main(resumable("train.resume=auto")) == 0
    out = capsys.readouterr().out
    assert "run is finished: 6 steps. Nothing was done." in out
    assert "mlx-ft resume run train.max_steps=12" in out
    assert remains(place / "run") == before


def test_auto_begins_where_nothing_is(place):
    assert main(resumable("train.resume=auto")) == 0
    assert summary(place / "run")["resumes"] == 0


def test_auto_without_a_folder_is_refused(place, capsys):
    arguments = [text for text in resumable("train.resume=auto") if "run.dir" not in text]
    assert main(arguments) == 2
    assert "Add hydra.run.dir=FOLDER" in capsys.readouterr().err
    assert not (place / "outputs").exists()


def test_more_steps_need_no_flag_and_the_schedule_is_told(place, capsys):
    assert main(resumable()) == 0
    assert main(resumable("train.resume=auto", "train.max_steps=10")) == 0
    err = capsys.readouterr().err
    assert "10 steps instead of 6: the cosine schedule now ends at step 10" in err
    assert "Step 7 is taken with a learning rate of" in err
    found = summary(place / "run")
    assert (found["steps"], found["resumes"], found["status"]) == (10, 1, "FINISHED")
    rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "train/loss" in row] == [*range(1, 11)]


@pytest.mark.slow
def test_more_steps_of_a_constant_schedule_equal_the_long_run(place):
    flat = ("optimizer.schedule=constant", "optimizer.warmup_steps=0", "eval.every=2")
    assert main(resumable(*flat)) == 0
    assert main(resumable(*flat, "train.resume=auto", "train.max_steps=10")) == 0
    assert main(resumable(*flat, "train.max_steps=10", "hydra.run.dir=long")) == 0
    weights = "checkpoints/step-000010/adapters.safetensors"
    assert (place / "run" / weights).read_bytes() == (place / "long" / weights).read_bytes()


def test_fewer_steps_than_are_done_are_refused(place, capsys):
    assert main(resumable()) == 0
    assert main(resumable("train.resume=auto", "train.max_steps=4")) == 2
    assert "6 steps are done, but train.max_steps=4 is asked for" in capsys.readouterr().err
    assert main(resumable("train.resume=run/checkpoints/step-000004", "train.max_steps=4")) == 0
    assert summary(place / "run")["steps"] == 4


def test_a_run_that_would_be_another_is_refused_with_every_difference(place, capsys):
    assert main(resumable()) == 0
    before = remains(place / "run")
    other = ("lora.dropout=0.1", "optimizer.learning_rate=3e-3", "train.max_steps=8")
    assert main(resumable("train.resume=auto", *other)) == 2
    err = capsys.readouterr().err
    assert "lora.dropout: was 0.0, is 0.1" in err
    assert "optimizer.learning_rate: was 0.001, is 0.003" in err
    assert "train.resume_allow=[lora.dropout,optimizer.learning_rate]" in err
    assert remains(place / "run") == before
    assert main(resumable("train.resume=auto", *other, "train.resume_allow=[optimizer]")) == 2
    allowed = "train.resume_allow=[optimizer.learning_rate,lora.dropout]"
    assert main(resumable("train.resume=auto", *other, allowed)) == 0
    assert summary(place / "run")["steps"] == 8


def test_an_adapter_of_another_shape_is_refused_whatever_is_allowed(place, capsys):
    assert main(resumable()) == 0
    assert main(resumable("train.resume=auto", "lora.rank=8", "train.resume_allow=all",
                          "train.max_steps=8")) == 2  # fmt: skip
    err = capsys.readouterr().err
    assert "does not fit this run" in err
    assert "(64, 4)" in err
    assert "(64, 8)" in err


def test_other_rows_and_another_model_are_differences(place, capsys):
    from tests.models import tiny

    assert main(resumable()) == 0
    rows = (place / "rows.jsonl").read_text()
    (place / "rows.jsonl").write_text(rows.replace("say 1", "say 9"))
    tiny.save(place / "model", seed=1)
    assert main(resumable("train.resume=auto", "train.max_steps=8")) == 2
    err = capsys.readouterr().err
    assert "data.digest: was '" in err
    assert "model.weights: was '" in err


@pytest.mark.slow
def test_changes_are_tagged_in_the_same_mlflow_run(place):
    tracked = ("tracking=mlflow",)
    assert main(resumable(*tracked)) == 0
    run_id = summary(place / "run")["run_id"]
    change = ("optimizer.weight_decay=0.1", "train.resume_allow=all", "train.max_steps=8")
    assert main(resumable(*tracked, f"train.resume={run_id}", *change)) != 0  # not in outputs
    assert main(resumable(*tracked, "train.resume=run", *change)) == 0
    assert summary(place / "run")["run_id"] == run_id
    with closing(sqlite3.connect(place / "mlruns" / "mlflow.db")) as database:
        tags = dict(database.execute("select key, value from tags").fetchall())
        runs = database.execute("select run_uuid, status from runs").fetchall()
    assert runs == [(run_id, "FINISHED")]
    assert tags["mlx_ft.resumed_with"] == ("from step 7: optimizer.weight_decay: was 0.0, is 0.1")
    assert tags["mlx_ft.resumes"] == "1"
    assert tags["mlx_ft.overrides"] == " ".join(resumable(*tracked))  # how it was begun
    assert "data=custom" in tags["mlx_ft.choices"].split()
    assert "train.resume=run optimizer.weight_decay=0.1" in tags["mlx_ft.resume_overrides"]


@pytest.mark.slow
def test_a_run_is_found_by_its_id_and_by_a_checkpoint(place):
    outputs = [text for text in resumable("tracking=mlflow") if "run.dir" not in text]
    assert main(outputs) == 0
    (run,) = (place / "outputs" / "runs").iterdir()
    run_id = summary(run)["run_id"]
    longer = [text for text in outputs if "max_steps" not in text] + ["train.max_steps=8"]
    assert main([*longer, f"train.resume={run_id}"]) == 0
    assert summary(run)["steps"] == 8


def test_an_earlier_checkpoint_sets_the_later_ones_aside(place):
    assert main(resumable("checkpoint.keep_last=3")) == 0
    reference = remains(place / "run")
    assert main(resumable("checkpoint.keep_last=3",
                          "train.resume=run/checkpoints/step-000002")) == 0  # fmt: skip
    assert remains(place / "run") == reference
    aside = place / "run" / "checkpoints" / "set-aside"
    assert sorted(p.parent.name[:11] for p in aside.glob("*/step-*")) == [
        "step-000004", "step-000006",
    ]  # fmt: skip


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_it_is_taken(place, capsys):
    assert main(resumable()) == 0
    reference = remains(place / "run")
    (place / "run" / "summary.json").unlink()  # as if it had been killed at its end
    weights = place / "run" / "checkpoints" / "step-000006" / "optimizer.safetensors"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 4
    weights.write_bytes(content)
    assert main(resumable("train.resume=auto")) == 0
    err = capsys.readouterr().err
    assert "the checkpoint of step 6 is set aside" in err
    assert "optimizer.safetensors has other content than was written" in err
    assert remains(place / "run") == reference


def test_a_damaged_judgement_of_the_base_is_made_again(place, capsys):
    assert main(resumable()) == 0
    reference = remains(place / "run")
    (place / "run" / "summary.json").unlink()
    (place / "run" / "base.json").write_text("{}")
    shutil.rmtree(place / "run" / "checkpoints" / "step-000006")
    assert main(resumable("train.resume=auto")) == 0
    assert "is damaged: the base model is judged again" in capsys.readouterr().err
    assert remains(place / "run") == reference


@pytest.mark.parametrize("text", ["[" * 100_000, '{"sha256": "", "content": 5}', "[]", "\\ud800"])
def test_a_hostile_judgement_of_the_base_is_none(tmp_path, text, caplog):
    folder = RunFolder(tmp_path)
    (tmp_path / "base.json").write_text(text)
    assert judgement.load(folder, {}) is None
    content = {"sha256": hashlib.sha256(text.encode()).hexdigest(), "content": text}
    (tmp_path / "base.json").write_text(json.dumps(content))  # deep within
    assert judgement.load(folder, {}) is None
    assert caplog.text.count("base.json is damaged: the base model is judged again") == 2


def test_the_command_resume_takes_the_runs_own_configuration(place, monkeypatch, capsys):
    from mlx_ft.cli import main as cli

    outputs = [text for text in resumable("lora.dropout=0.1") if "run.dir" not in text]
    assert main(outputs) == 0
    (run,) = (place / "outputs" / "runs").iterdir()
    assert cli(["resume", str(run), "train.max_steps=8"]) == 0
    assert summary(run)["steps"] == 8
    assert cli(["resume"]) == 0  # the newest
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    assert cli(["resume", str(run), "train.max_steps=9"]) == 0
    assert f"in {place}, where the run was started" in capsys.readouterr().err
    assert summary(run)["steps"] == 9
    assert list(elsewhere.iterdir()) == []


@pytest.mark.parametrize("name", ["nothing", "rows.jsonl", "run/checkpoints/step-000099", "/"])
def test_what_is_no_run_cannot_be_resumed(place, name, capsys):
    assert main(resumable()) == 0
    arguments = [text for text in resumable() if "run.dir" not in text]
    assert main([*arguments, f"train.resume={name}"]) == 2
    err = capsys.readouterr().err
    assert "train.resume" in err
    assert "Traceback" not in err


def test_a_run_in_use_is_not_resumed(place, capsys):
    assert main(resumable()) == 0
    held = RunFolder.create(place / "run", Path("unused"), resume=True)
    assert main(resumable("train.resume=auto")) == 2
    assert "is in use by another run (process" in capsys.readouterr().err
    held.release()
