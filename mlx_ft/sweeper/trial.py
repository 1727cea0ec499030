"""One trial: what the launcher calls, in this process or in another one."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from mlx_ft.config.compose import explain, group_choices, public_dict, resolve
from mlx_ft.config.screen import fit
from mlx_ft.errors import Interrupted, MlxFtError

# How a trial learns of its parent. Set through `hydra.job.env_set`, one of the trial's own
# overrides: these reach a worker of every launcher (joblib, submitit, ray), whose environment
# may be older or another machine's; and config.yaml does not record them.
PARENT_RUN = "MLX_FT_PARENT_RUN"
TRIAL_NAME = "MLX_FT_TRIAL"


def run_trial(cfg: DictConfig) -> dict[str, Any]:
    """Run one trial and return its row; a failure is said at once and is a row as well.

    Raises KeyboardInterrupt when it was interrupted, which ends the sweep.
    """
    started = time.monotonic()
    hydra = HydraConfig.get()
    row: dict[str, Any] = {
        "trial": os.environ.get(TRIAL_NAME, hydra.job.name),
        "status": "FAILED",
        "run_dir": str(hydra.runtime.output_dir),
    }
    try:
        row |= _run(cfg, hydra)
    except Interrupted as error:
        raise KeyboardInterrupt from error
    except Exception as error:
        row["error"] = explain(error)
        _say(row["trial"], error)
    row.setdefault("seconds", time.monotonic() - started)
    return row


def _run(cfg: DictConfig, hydra: DictConfig) -> dict[str, Any]:
    from mlx_ft.run import run

    task = OmegaConf.to_container(hydra.overrides.task)
    assert isinstance(task, list)
    result = run(
        resolve(cfg),
        public=public_dict(cfg),
        run_dir=Path(hydra.runtime.output_dir),
        parent_run_id=os.environ.get(PARENT_RUN) or None,
        overrides=[str(text).lstrip("+") for text in task],
        choices=group_choices(HydraConfig.instance().cfg),
        share=True,
    )
    if result.status == "KILLED":
        raise KeyboardInterrupt
    return {
        "status": result.status,
        "objective": result.objective,
        "run_id": result.run_id,
        **figures(result.summary),
    }


def figures(summary: dict[str, Any]) -> dict[str, Any]:
    """What the sweep's table shows of a run's summary."""
    row = {name: summary.get(name) for name in ("val_loss_after", "accuracy_after")}
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
