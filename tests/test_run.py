"""Whole runs on a tiny random model: what is left behind, what is refused, how they end."""

import json
import os
import re
import subprocess
import sys

import pytest
import yaml

from mlx_ft.main import main
from tests.jobs import job, summary

SUMMARY_KEYS = {
    "status", "run_id", "seed", "model", "device", "steps", "epochs", "tokens", "target_tokens",
    "tokens_per_second", "wall_seconds", "peak_memory_gb", "trainable_parameters",
    "total_parameters", "val_loss_before", "val_loss_after", "perplexity_after",
    "accuracy_before", "accuracy_after", "adapter_path",
}  # fmt: skip


def test_a_run_leaves_everything_behind(place, capsys):
    assert main(job("checkpoint.every=2", "checkpoint.keep_last=2")) == 0
    run = place / "run"
    found = summary(run)
    assert found.keys() >= SUMMARY_KEYS
    assert (found["status"], found["steps"], found["device"]) == ("FINISHED", 6, "cpu")
    assert found["val_loss_after"] < found["val_loss_before"]
    assert found["skipped_steps"] == 0
    names = {path.name for path in run.iterdir()}
    assert names >= {
        "config.yaml", "summary.json", "metrics.jsonl", "train.log", "loss.png",
        "samples.jsonl", "adapter", "checkpoints",
    }  # fmt: skip
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"step-000004", "step-000006"}
    assert (run / "loss.png").read_bytes().startswith(b"\x89PNG")
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in metrics if "train/loss" in row]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert (
        sum(row["train/target_tokens"] for row in metrics if "train/loss" in row)
        == (found["target_tokens"])
    )
    out, err = capsys.readouterr()
    assert "validation loss" in out
    assert "mlx-ft generate --run run" in out
    assert "mlx-ft ui" not in out  # tracking=none: there is nothing to look at
    assert re.search(r"^6 steps, .* of [\d,]+ parameters$", out, re.MULTILINE)  # one line
    assert "Traceback" not in err
    assert "step 6/6" in (run / "train.log").read_text()


def test_a_runs_config_runs_again_to_the_same_adapter(place):
    assert main(job("lora.dropout=0.1", "memory_profile.grad_accumulation_steps=2")) == 0
    again = ["--config-dir", "run", "--config-name", "config", "hydra.run.dir=again"]
    assert main(again) == 0
    weights = "adapter/adapters.safetensors"
    assert (place / "run" / weights).read_bytes() == (place / "again" / weights).read_bytes()
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    assert config["memory_profile"]["grad_checkpoint"] is False


def test_auto_is_resolved_and_recorded(place):
    assert main(job("memory_profile=auto")) == 0
    config = yaml.safe_load((place / "run" / "config.yaml").read_text())
    left = [key for key, value in config["memory_profile"].items() if value == "auto"]
    assert left == []
    assert config["train"]["compile"] is False
    assert config["memory_profile"]["max_seq_length"] == 512


def test_a_folder_with_a_run_is_refused_and_kept(place, capsys):
    assert main(job()) == 0
    before = {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}
    assert main(job("seed=7")) == 2
    assert "already holds a run" in capsys.readouterr().err
    assert before == {p: p.read_bytes() for p in (place / "run").rglob("*") if p.is_file()}


def test_early_stopping_keeps_the_best_adapter(place):
    assert main(job(
        "train.max_steps=20", "eval.every=1", "train.early_stopping_patience=2",
        "optimizer.learning_rate=5", "optimizer.max_grad_norm=null", "optimizer.warmup_steps=0",
    )) == 0  # fmt: skip
    found = summary(place / "run")
    metrics = [json.loads(s) for s in (place / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = {row["step"]: row["val/loss"] for row in metrics if "val/loss" in row}
    assert found["steps"] < 20
    assert found["steps"] == found["best_step"] + 2
    assert found["val_loss_after"] == min(loss for step, loss in losses.items() if step > 0)


def test_an_adapter_evaluates_to_the_same_figures(place):
    import mlx_ft

    assert main(job()) == 0
    found = summary(place / "run")
    again = mlx_ft.evaluate("run")
    assert again.loss == pytest.approx(found["val_loss_after"], rel=1e-6)
    assert again.accuracy == found["accuracy_after"]
    base = mlx_ft.evaluate("run", base=True)
    assert base.loss == pytest.approx(found["val_loss_before"], rel=1e-6)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["lora.target_modules=[nope]"], ["lora.target_modules", "'nope'", "q_proj"]),
        (["data.path=missing.jsonl"], ["missing.jsonl", "data.path"]),
        (["data.path=empty.jsonl"], ["empty.jsonl", "empty"]),
        (["data.path=silent.jsonl"], ["silent.jsonl:1", "assistant"]),
        (["model.path=./hollow"], ["hollow", "weights"]),
        (["hydra.run.dir=rows.jsonl/run"], ["hydra.run.dir", "rows.jsonl"]),
        (["hydra.run.dir=/proc/nope/run"], ["hydra.run.dir", "/proc"]),
        (["paths.output_dir=rows.jsonl"], ["paths.output_dir", "rows.jsonl"]),
        (["memory_profile.max_seq_length=0"], ["memory_profile.max_seq_length", "at least 2"]),
        (["memory_profile.max_seq_length=3"], ["rows.jsonl:1", "max_seq_length"]),
        (["optimizer=nope"], ["optimizer", "adamw"]),
        (["optimizer.name=nope"], ["optimizer.name", "adamw"]),
        (["lora.rank=-1"], ["lora.rank", "-1"]),
        (["lora.rank=many"], ["lora.rank", "many"]),
        (["lora.rnak=8"], ["lora.rank?"]),
        (["data.metric=sql_execution", "data.database=builtin:geography_sql"], ["data=custom"]),
        (["device=gpu"], ["device"]),
    ],
)
def test_a_mistake_writes_nothing(place, overrides, expected, capsys):
    (place / "empty.jsonl").write_text("")
    (place / "silent.jsonl").write_text('{"messages": [{"role": "user", "content": "hi"}]}\n')
    (place / "hollow").mkdir()
    (place / "hollow" / "config.json").write_text('{"model_type": "llama"}')
    before = sorted(place.rglob("*"))
    arguments = job(*overrides)
    if overrides[0].startswith("paths."):
        arguments.remove("hydra.run.dir=run")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    for words in expected:
        assert words in err
    assert err.endswith("\nNothing was written.\n")
    assert "memory_profile=" not in err.splitlines()[0]
    assert "Traceback" not in out + err
    assert len(err.splitlines()) < 24
    assert sorted(place.rglob("*")) == before


def test_a_hub_model_while_offline_says_the_ways_out(place):
    arguments = job("model.path=someone/some-model")
    env = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(place / "hf")}
    before = sorted(place.rglob("*"))
    done = subprocess.run(
        [sys.executable, "-m", "mlx_ft.cli", "train", *arguments],
        cwd=place, env=env, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert "someone/some-model" in done.stderr
    assert "local folder" in done.stderr
    assert sorted(place.rglob("*")) == before


def test_a_tracked_run_is_finished_in_mlflow(place, capsys):
    import sqlite3

    assert main(job("tracking=mlflow")) == 0
    assert "look at it  mlx-ft ui\n" in capsys.readouterr().out
    found = summary(place / "run")
    with sqlite3.connect(place / "mlruns" / "mlflow.db") as database:
        status = database.execute("SELECT run_uuid, status FROM runs").fetchall()
        steps = database.execute("SELECT step FROM metrics WHERE key = 'train/loss'").fetchall()
        rank = database.execute("SELECT value FROM params WHERE key = 'lora.rank'").fetchone()
    assert status == [(found["run_id"], "FINISHED")]
    assert sorted(step for (step,) in steps) == [1, 2, 3, 4, 5, 6]
    assert rank == ("4",)
    artifacts = {path.name for path in (place / "mlruns").rglob("*") if path.is_file()}
    assert artifacts >= {"adapters.safetensors", "config.yaml", "loss.png", "samples.json"}
