"""Runs with made-up numbers, written through the tracker as a real run writes them."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

from mlx_ft import plots
from mlx_ft.config.schema import Config
from mlx_ft.tracking import NOTE, build_tracker, start_parent

STEPS = 60
SAMPLES = [
    {
        "question": "What is the capital of Peru?",
        "expected": "SELECT capital FROM country WHERE name = 'Peru'",
        "before": "The capital of Peru is Lima.",
        "after": "SELECT capital FROM country WHERE name = 'Peru'",
        "correct": True,
    },
    {
        "question": "How many countries border Austria?",
        "expected": "SELECT count(*) FROM border WHERE country = 'Austria'",
        "before": "Austria borders eight countries.",
        "after": "SELECT count(*) FROM border WHERE country = 'Austria'",
        "correct": True,
    },
]


def make_run(
    config: Config,
    folder: Path,
    name: str,
    parent: str | None,
    floor: float,
    rank: int = 8,
    rate: float = 1e-3,
) -> str:
    """One finished run with metrics, figures, a table, a dataset and an adapter; its id."""
    rows = metrics(floor)
    tracker = build_tracker(config, parent)
    params: dict[str, Any] = {
        "model": {"name": "smollm2_135m"},
        "lora": {"rank": rank},
        "optimizer": {"learning_rate": rate},
        "seed": 42,
    }
    tracker.start(name, params, {NOTE: f"LoRA rank {rank} of `smollm2_135m` on `geography_sql`."})
    for row in rows:
        tracker.log_metrics({k: v for k, v in row.items() if k != "step"}, row["step"])
    for title, figure in plots.training_figures(rows).items():
        (folder / f"{title}.png").write_bytes(plots.png(figure))
        tracker.log_file(folder / f"{title}.png", "figures")
    adapter = folder / "adapter"
    adapter.mkdir(exist_ok=True)
    (adapter / "adapter_config.json").write_text(json.dumps({"rank": rank}))
    (adapter / "adapters.safetensors").write_bytes(bytes(100))
    tracker.log_file(adapter)
    tracker.log_table("samples", SAMPLES)
    tracker.log_dataset("geography_sql", "ab" * 32, "builtin:geography_sql", {}, "training")
    tracker.end("FINISHED")
    assert tracker.run_id is not None
    return tracker.run_id


def make_sweep(config: Config, folder: Path) -> str:
    """A sweep of four runs under a parent; the parent's id."""
    parent = start_parent(config, "ranks and rates", 4, folder / "tracking.jsonl")
    rows: list[dict[str, Any]] = []
    for rank in (8, 16):
        for rate in ("1e-4", "3e-4"):
            name, floor = f"rank={rank} learning_rate={rate}", 2 / rank + float(rate) * 100
            run_id = make_run(config, folder, name, parent.run_id, floor, rank, float(rate))
            trial = {"trial": name, "lora.rank": rank, "optimizer.learning_rate": float(rate)}
            rows.append({**trial, "objective": floor, "status": "FINISHED", "run_id": run_id})
    parent.finish("FINISHED", rows, best=min(rows, key=lambda row: row["objective"]))
    assert parent.run_id is not None
    return parent.run_id


def metrics(floor: float) -> list[dict[str, Any]]:
    """Rows as in a run's metrics.jsonl."""
    noise = random.Random(0)
    rows: list[dict[str, Any]] = []
    for step in range(STEPS + 1):
        loss = floor + 1.6 * math.exp(-step / 9)
        row: dict[str, Any] = {"step": step}
        if step % 15 == 0:
            row |= {"val/loss": loss, "val/perplexity": math.exp(loss)}
        if step in (0, STEPS):
            row["task/accuracy"] = 0.02 if step == 0 else 0.84
        if step:
            row |= {
                "train/loss": loss + noise.gauss(0, 0.06),
                "train/learning_rate": 1e-3 * (1 + math.cos(math.pi * step / STEPS)) / 2,
                "train/grad_norm": 0.6 + 5 * math.exp(-step / 10) + noise.gauss(0, 0.1),
                "train/tokens_per_second": 190 + noise.gauss(0, 6),
                "train/target_tokens": 180.0 * step,
                "memory/mlx_peak_gb": 3.1,
                "memory/mlx_active_gb": 0.9 + 0.02 * noise.random(),
                "memory/mlx_cache_gb": 1.6 + 0.2 * noise.random(),
                "memory/rss_gb": 3.6,
            }
        rows.append(row)
    return rows
