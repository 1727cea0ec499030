"""Run folders and sweeps as trials leave them, made without a training."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path

import yaml

KEYS = {"rank": "lora.rank", "rate": "optimizer.learning_rate", "seed": "seed",
        "alpha": "lora.alpha", "dropout": "lora.dropout"}  # fmt: skip


def run(
    folder: Path, loss: float | None, *, status="FINISHED", seed=42, accuracy=0.5, seconds=60.0,
    memory=1.5, error=None, answers=(), steps=20, data="d1", run_id=None, metric="val_loss_after",
    **settings,
) -> Path:  # fmt: skip
    """One run folder; `loss` is its validation loss at the end, reached from 2.0."""
    folder.mkdir(parents=True)
    config: dict = {"model": {"path": "embedded"}, "seed": seed,
                    "sweep": {"metric": metric, "direction": "auto"}}  # fmt: skip
    for name, value in settings.items():
        section, _, key = KEYS.get(name, name).partition(".")
        config.setdefault(section, {})[key] = value
    head = "# Run again: python train.py --config-dir THIS_FOLDER --config-name config\n"
    (folder / "config.yaml").write_text(head + yaml.safe_dump(config, sort_keys=False))
    rows: list[dict] = [{"step": 0, "val/loss": 2.0}]
    end = 1.0 if loss is None else loss
    for step in range(1, steps + 1):
        rows.append({"step": step, "train/loss": end + (2 - end) * math.exp(-step / 5)})
        if step % 5 == 0:
            rows.append({"step": step, "val/loss": end + (2 - end) * math.exp(-step / 4)})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    summary = {
        "status": status, "reason": error, "run_id": run_id, "val_loss_before": 2.0,
        "val_loss_after": loss, "perplexity_after": None if loss is None else math.exp(loss),
        "accuracy_after": accuracy, "accuracy_before": 0.0, "wall_seconds": seconds,
        "peak_memory_gb": memory,
    }  # fmt: skip
    if status != "UNFINISHED":
        (folder / "summary.json").write_text(json.dumps(summary))
        trial = {"status": status, "error": error, "refused": False}
        (folder / "trial.json").write_text(json.dumps(trial))
    origin = {"fingerprint": {"versions": {"mlx": "0.32.4"}, "data": {"digest": data}}}
    (folder / "origin.json").write_text(json.dumps(origin))
    lines = [{"question": q, "expected": "x", "before": "?", "correct_before": False,
              "after": text, "correct_after": right} for q, text, right in answers]  # fmt: skip
    if lines:
        (folder / "samples.jsonl").write_text(
            "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
        )
    return folder


def sweep(folder: Path, trials: list[dict], *, table=True, unrun=(), total=None) -> Path:
    """A sweep's folder. trials: arguments of `run`; unrun: settings of trials without a folder."""
    names = [name for name in KEYS if any(name in trial for trial in trials)]
    lines = []
    for trial in trials:
        text = ",".join(f"{name}={trial[name]}" for name in names)
        place = run(folder / text, **trial)
        lines.append([*(str(trial[name]) for name in names), trial.get("status", "FINISHED"),
                      str(place), trial.get("error") or ""])  # fmt: skip
    for settings in unrun:
        lines.append([*(str(settings[name]) for name in names), "NOT RUN", "", "out of hours"])
    count = len(lines) if total is None else total
    (folder / "sweep.json").write_text(json.dumps({"settings": {}, "trials": count}))
    if table:
        with (folder / "trials.csv").open("w", newline="") as file:
            head = [*(KEYS[name] for name in names), "status", "run_dir", "error"]
            csv.writer(file).writerows([head, *lines])
    return folder


def loss_at(rank: int, rate: float) -> float:
    """A made-up landscape with its best point at rank 16, learning rate 3e-4."""
    return 0.3 + 0.1 * math.log(rate / 3e-4) ** 2 + 0.01 * math.log2(rank / 16) ** 2


def grid(ranks=(4, 8, 16), rates=(1e-4, 3e-4, 1e-3), **more) -> list[dict]:
    """Trials of a full grid on the made-up landscape."""
    return [
        {"loss": loss_at(rank, rate), "rank": rank, "rate": rate, "seconds": 60.0 + rank,
         "memory": 1.5 + rank / 100, **more}
        for rank in ranks for rate in rates
    ]  # fmt: skip
