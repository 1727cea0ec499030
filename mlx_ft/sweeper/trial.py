"""One trial: what the launcher calls, in this process or in another one."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mlx_ft import durable
from mlx_ft.config.compose import explain, group_choices, resolve_both
from mlx_ft.config.screen import fit
from mlx_ft.errors import Interrupted, InUseError, MlxFtError
from mlx_ft.sweeper.book import TRIAL
from mlx_ft.sweeper.prune import pruner

# How a trial learns of its parent. Set through `hydra.job.env_set`, one of the trial's own
# overrides: these reach a worker of every launcher (joblib, submitit, ray), whose environment
# may be older or another machine's; and config.yaml does not record them.
PARENT_RUN = "MLX_FT_PARENT_RUN"
TRIAL_NAME = "MLX_FT_TRIAL"
FIGURES = ("val_loss_after", "accuracy_after", "peak_memory_gb", "steps", "planned_steps")
DEADLINE = "MLX_FT_DEADLINE"  # seconds since 1970 after which none begins; empty: no limit


def run_trial(cfg: DictConfig) -> dict[str, Any]:
    """Run one trial and return its row; a failure is said at once and is a row as well.

    Raises KeyboardInterrupt when it was interrupted, which ends the sweep.
    """
    started = time.monotonic()
    hydra = HydraConfig.get()
    folder = Path(hydra.runtime.output_dir)
    row: dict[str, Any] = {
        "trial": os.environ.get(TRIAL_NAME, hydra.job.name),
        "status": "FAILED",
        "run_dir": str(folder),
    }
    if time.time() > float(os.environ.get(DEADLINE) or "inf"):
        return {**row, "status": "NOT RUN", "error": "sweep.max_hours is over"}
    with suppress(FileNotFoundError):
        (folder / TRIAL).unlink()
    try:
        row |= _run(cfg, hydra)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    except InUseError as error:  # of a sweep that was killed, whose worker goes on: its words count
        _say(row["trial"], error)
        return {**row, "status": "NOT RUN", "error": explain(error)}
    except Exception as error:
        row["error"] = explain(error)
        _say(row["trial"], error)
    row.setdefault("seconds", time.monotonic() - started)
    keep_row(folder, row)
    return row


def keep_row(folder: Path, row: Mapping[str, Any], *, refused: bool = False) -> None:
    """Leave in a trial's folder how it ended, for a sweep that goes on later.

    refused: it was not begun, and will be once it can be.
    """
    kept = {"status": row["status"], "error": row.get("error"), "refused": refused}
    text = json.dumps(kept, indent=1)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        durable.write(folder / TRIAL, f"{text}\n".encode())
    except OSError as error:  # a full disk: the sweep goes on, and the trial is run again later
        print(f"{folder / TRIAL} could not be written: {error}", file=sys.stderr)


def _run(cfg: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    from mlx_ft.run import run

    task = OmegaConf.to_container(hydra.overrides.task)
    assert isinstance(task, list)
    (config, public), folder = resolve_both(cfg), Path(hydra.runtime.output_dir)
    result = run(
        config,
        public=public,
        run_dir=folder,
        parent_run_id=os.environ.get(PARENT_RUN) or None,
        overrides=[str(text).lstrip("+") for text in task],
        choices=group_choices(HydraConfig.instance().cfg),
        share=True,
        prune=pruner(config.sweep, folder, Path(hydra.sweep.dir)),
    )
    if result.status == "KILLED":
        raise KeyboardInterrupt
    return {
        "status": "PRUNED" if result.summary.get("pruned") else result.status,
        "run_id": result.run_id,
        **figures(result.summary, config.sweep.metric),
    }


def figures(summary: Mapping[str, Any], metric: str) -> dict[str, Any]:
    """What the sweep's table shows of a run's summary, and what it is compared by."""
    row = {name: summary.get(name) for name in FIGURES}
    row["objective"] = summary.get(metric)
    if summary.get("wall_seconds") is not None:
        row["seconds"] = summary["wall_seconds"]
    return row


def _say(trial: str, error: Exception) -> None:
    """The failure on stderr: a message for a known kind, the traceback for a surprise."""
    text = str(error)
    notes = getattr(error, "__notes__", [])
    if not isinstance(error, MlxFtError):
        text = f"{type(error).__name__}: {explain(error)}"
        if not notes:
            import traceback

            traceback.print_exception(error)
    said = fit(f"Trial {trial} failed: {text}")
    print(said, *notes, sep="\n", file=sys.stderr, flush=True)
