"""The sweep: open the parent run, launch the accepted trials, and sum up."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, read_write

from mlx_ft.config.schema import Config
from mlx_ft.sweeper.accept import accept, own_folders
from mlx_ft.sweeper.grid import Trial, expand
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.trial import PARENT_RUN, TRIAL_NAME, figures

INTERRUPTED = 130


class Parent(Protocol):
    """The tracked run that the trials are children of."""

    run_id: str | None

    def finish(
        self, status: str, rows: list[dict[str, Any]], best: Mapping[str, Any] | None
    ) -> None:
        """Log the rows and the best of them, if there is one, and close the run."""


StartParent = Callable[[Config, str, int], Parent]


def _tracked_parent(config: Config, name: str, n_trials: int) -> Parent:
    from mlx_ft.tracking import start_parent  # only once the sweep is accepted

    return start_parent(config, name, n_trials)


def sweep(
    arguments: Sequence[str],
    cfg: DictConfig,
    hydra_context: Any,
    task_function: Any,
    start_parent: StartParent = _tracked_parent,
) -> int:
    """Run the grid of `arguments`; returns the exit code.

    0: every trial finished; 1: some failed; 130 or 143: interrupted. cfg: composed for
    multirun, with its `hydra` node. start_parent: the tracker's, unless a test gives another.
    """
    loader = hydra_context.config_loader
    first, trials = accept(expand(arguments, loader), cfg, loader)
    folder = Path(str(cfg.hydra.sweep.dir)).expanduser()
    with read_write(cfg.hydra):
        cfg.hydra.sweep.dir = str(folder)  # Hydra would make a folder named ~
    launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, cfg)
    jobs: Sequence[Any] = ()
    exit_code, status = 1, "FAILED"
    with Stop() as stop:
        with stop.later():  # a parent that is being opened could not be closed
            parent = start_parent(first, folder.name, len(trials))
        try:
            stop.check()
            print(f"Sweep of {len(trials)} trials in {folder}", flush=True)
            jobs = launcher.launch([_arguments(trial, cfg, parent) for trial in trials], 0)
        except KeyboardInterrupt as error:
            exit_code, status = getattr(error.__cause__, "exit_code", INTERRUPTED), "KILLED"
        finally:
            with stop.later():
                rows = _rows(trials, jobs, cfg, "KILLED" if status == "KILLED" else "FAILED")
                if jobs and all(row["status"] == "FINISHED" for row in rows):
                    exit_code, status = 0, "FINISHED"
                parent.finish(status, rows, best=_best(rows))
    print(table(rows))
    return exit_code


def _arguments(trial: Trial, cfg: DictConfig, parent: Parent) -> list[str]:
    """The arguments of a trial for the launcher."""
    settings = {
        f"++hydra.job.env_set.{TRIAL_NAME}": trial.name,
        f"++hydra.job.env_set.{PARENT_RUN}": parent.run_id or "",
        "hydra.sweep.dir": str(cfg.hydra.sweep.dir),
    }
    if not own_folders(cfg):
        settings["hydra.sweep.subdir"] = trial.folder
    if not any(text.lstrip("+").startswith("tracking.run_name=") for text in trial.overrides):
        settings["++tracking.run_name"] = trial.name
    return [*trial.overrides, *(f"{key}={_quoted(value)}" for key, value in settings.items())]


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())


def _rows(
    trials: Sequence[Trial], jobs: Sequence[Any], cfg: DictConfig, started: str
) -> list[dict[str, Any]]:
    """One row per trial, from what it returned; after an interruption from its folder.

    started: the status of a trial that left a folder but no summary.
    """
    rows = []
    for number, trial in enumerate(trials):
        job = jobs[number] if number < len(jobs) else None
        if job is not None and job.status == JobStatus.COMPLETED:
            row = job.return_value
        else:
            row = _left_behind(Path(str(cfg.hydra.sweep.dir)) / trial.folder, started)
        rows.append({**row, "trial": trial.name})
    return rows


def _left_behind(folder: Path, started: str) -> dict[str, Any]:
    """The row of a trial that returned nothing: its summary, if it got that far."""
    try:
        summary = json.loads((folder / "summary.json").read_text("utf-8"))
    except (OSError, ValueError):
        return {"status": started if folder.exists() else "NOT RUN", "run_dir": str(folder)}
    return {
        "status": summary.get("status", "FAILED"),
        "objective": summary.get("val_loss_after"),
        "run_id": summary.get("run_id"),
        "run_dir": str(folder),
        **figures(summary),
    }


COLUMNS = (
    ("trial", "trial", "{}"),
    ("status", "status", "{}"),
    ("val_loss_after", "val loss", "{:.4f}"),
    ("accuracy_after", "accuracy", "{:.1%}"),
    ("seconds", "seconds", "{:.0f}"),
    ("run_dir", "folder", "{}"),
)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The trials as aligned text; `*` marks the finished one with the lowest finite objective."""
    best = _best(rows)
    lines = [["", *(title for _, title, _ in COLUMNS)]]
    for row in rows:
        cells = [_cell(row.get(name), form) for name, _, form in COLUMNS]
        lines.append(["*" if row is best else " ", *cells])
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join([*text, "* best (lowest objective)"] if best is not None else text)


def _best(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    done = [row for row in rows if row["status"] == "FINISHED"]
    judged = [row for row in done if isinstance(row.get("objective"), (int, float))]
    finite = [row for row in judged if math.isfinite(row["objective"])]
    return min(finite, key=lambda row: float(row["objective"]), default=None)


def _cell(value: Any, form: str) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        path = Path(value)
        return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else value
    return form.format(value)
