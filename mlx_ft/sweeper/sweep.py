"""The sweep: open its folder and its parent run, launch what is to be done, and sum up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, read_write

from mlx_ft.config.schema import Config
from mlx_ft.runfolder import JOURNAL, held_files, read_json
from mlx_ft.sweeper import report
from mlx_ft.sweeper.accept import Accepted, accept, settings_of
from mlx_ft.sweeper.book import TRIAL
from mlx_ft.sweeper.grid import Trial, expand
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.table import best_of, table
from mlx_ft.sweeper.trial import DEADLINE, PARENT_RUN, TRIAL_NAME, figures

INTERRUPTED = 130
HOUR = 3600


class Parent(Protocol):
    """The tracked run that the trials are children of."""

    run_id: str | None

    def finish(
        self, status: str, rows: list[dict[str, Any]], best: Mapping[str, Any] | None
    ) -> None:
        """Log the rows and the best of them, if there is one, and close the run."""


StartParent = Callable[[Config, str, int, Path], Parent]


def _tracked_parent(config: Config, name: str, n_trials: int, journal: Path) -> Parent:
    from mlx_ft.tracking import start_parent  # only once the sweep is accepted

    return start_parent(config, name, n_trials, journal)


def sweep(
    arguments: Sequence[str],
    cfg: DictConfig,
    hydra_context: Any,
    task_function: Any,
    start_parent: StartParent = _tracked_parent,
) -> int:
    """Run the grid of `arguments`, or what is left of it; returns the exit code.

    0: every trial finished; 1: some did not; 130 or 143: interrupted. cfg: composed for
    multirun, with its `hydra` node. start_parent: the tracker's, unless a test gives another.
    """
    loader = hydra_context.config_loader
    settings = settings_of(arguments, cfg, loader)
    accepted = accept(expand([*arguments, *settings.seeds], loader), cfg, loader)
    folder = accepted.book.folder
    with read_write(cfg.hydra):
        cfg.hydra.sweep.dir = str(folder)  # Hydra would make a folder named ~
    running = _Running(accepted, cfg)
    if settings.sweep.dry_run:
        print(_said_of_a_dry_run(running))
        return 0
    if not running.todo and accepted.book.is_closed:
        print(running.report(), _how_to_go_on(running), sep="\n")
        return running.exit_code()
    launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, cfg)
    accepted.book.open(len(accepted.trials))
    return _run(running, launcher, start_parent)


def _run(running: _Running, launcher: Any, start_parent: StartParent) -> int:
    accepted, folder = running.accepted, running.accepted.book.folder
    interrupted: int | None = None
    with Stop() as stop:
        with stop.later():  # a parent that is being opened could not be closed
            count = len(accepted.trials)
            parent = start_parent(accepted.first, folder.name, count, folder / JOURNAL)
        try:
            stop.check()
            print(running.beginning(), flush=True)
            running.note_refused()
            if running.todo:
                running.jobs = launcher.launch(running.arguments(parent), 0)
        except KeyboardInterrupt as error:
            interrupted = getattr(error.__cause__, "exit_code", INTERRUPTED)
        finally:
            with stop.later():
                running.ended("KILLED" if interrupted is not None else "FAILED")
                code = running.exit_code() if interrupted is None else interrupted
                status = "FINISHED" if code == 0 else "FAILED"
                status = status if interrupted is None else "KILLED"
                rows = running.rows()
                running.write_report(rows)
                points = report.varying(accepted.trials)
                told = [{**row, **point} for row, point in zip(rows, points, strict=True)]
                parent.finish(status, told, best=best_of(told, accepted.first.sweep))
                accepted.book.close(whole=all(r["status"] in ("FINISHED", "FAILED") for r in rows))
    print(running.report())
    return code


class _Running:
    """A sweep of this process: what is to be done, and what came of it.

    todo: the trials that are run, in order. jobs: what the launcher returned for them.
    """

    def __init__(self, accepted: Accepted, cfg: DictConfig) -> None:
        self.accepted = accepted
        self.cfg = cfg
        self.jobs: Sequence[Any] = ()
        self._unended = "NOT RUN"
        wanted = {"NEW", "STARTED", *(["FAILED"] if accepted.first.sweep.retry else [])}
        good = [trial for trial in accepted.trials if trial not in accepted.refused]
        self.todo = [trial for trial in good if accepted.book.status(trial) in wanted]

    def beginning(self) -> str:
        """What is said before the first trial."""
        count, book = len(self.accepted.trials), self.accepted.book
        lines = [f"Sweep of {count} trial{'s' * (count > 1)} in {book.folder}"]
        started = sum(book.status(trial) == "STARTED" for trial in self.todo)
        done = count - len(self.todo) - len(self.accepted.refused)
        if done or started:
            lines.append(f"{done} done before, {started} to go on from their last checkpoint")
        for trial, fault in self.accepted.refused.items():
            lines.append(f"Trial {trial.name} cannot be run: {fault}")
        return "\n".join(lines)

    def note_refused(self) -> None:
        """Leave in the folder why a trial was not run."""
        from mlx_ft.sweeper.trial import keep_row

        for trial, fault in self.accepted.refused.items():
            keep_row(
                self.accepted.book.place(trial), {"status": "FAILED", "error": fault}, refused=True
            )

    def arguments(self, parent: Parent) -> list[list[str]]:
        """Of the trials to run, for the launcher."""
        hours = self.accepted.first.sweep.max_hours
        deadline = "" if hours is None else str(time.time() + hours * HOUR)
        return [self._arguments(trial, parent, deadline) for trial in self.todo]

    def _arguments(self, trial: Trial, parent: Parent, deadline: str) -> list[str]:
        settings = {
            f"++hydra.job.env_set.{TRIAL_NAME}": trial.name,
            f"++hydra.job.env_set.{PARENT_RUN}": parent.run_id or "",
            f"++hydra.job.env_set.{DEADLINE}": deadline,
            "hydra.sweep.dir": str(self.cfg.hydra.sweep.dir),
            # Also where the user has named it: by its number among all trials, perhaps.
            "hydra.sweep.subdir": trial.folder,
        }
        if not _gives(trial, "tracking.run_name"):
            settings["++tracking.run_name"] = trial.name
        if held_files(self.accepted.book.place(trial)) and not _gives(trial, "train.resume"):
            settings["++train.resume"] = "auto"
        return [*trial.overrides, *(f"{key}={_quoted(value)}" for key, value in settings.items())]

    def ended(self, unended: str) -> None:
        """No more trials are run. unended: the status of one that left no word."""
        self._unended = unended

    def rows(self) -> list[dict[str, Any]]:
        """One row for each trial, from what it returned; else from its folder."""
        done = {
            trial: job.return_value
            for trial, job in zip(self.todo, self.jobs, strict=False)
            if job.status == JobStatus.COMPLETED
        }
        return [
            {**(done.get(trial) or self._left_behind(trial)), "trial": trial.name}
            for trial in self.accepted.trials
        ]

    def _left_behind(self, trial: Trial) -> dict[str, Any]:
        """The row of a trial that returned nothing to this process."""
        folder = self.accepted.book.place(trial)
        kept, summary = read_json(folder / TRIAL), read_json(folder / "summary.json")
        if not kept and not summary:
            return {"status": self._unended if folder.exists() else "NOT RUN",
                    "run_dir": str(folder)}  # fmt: skip
        status = kept.get("status") or summary.get("status", "FAILED")
        return {
            "status": status,
            "run_id": summary.get("run_id"),
            "run_dir": str(folder),
            "error": kept.get("error") or summary.get("reason") if status == "FAILED" else None,
            **figures(summary, self.accepted.first.sweep.metric),
        }

    def exit_code(self) -> int:
        """0 when every trial has finished."""
        return int(any(row["status"] != "FINISHED" for row in self.rows()))

    def write_report(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Into the folder; what cannot be written does not undo the trials."""
        accepted = self.accepted
        try:
            report.write(accepted.book.folder, accepted.trials, rows, accepted.first.sweep)
        except OSError as error:
            print(f"The report could not be written: {error}", file=sys.stderr)

    def report(self) -> str:
        """The table."""
        return table(self.rows(), self.accepted.first.sweep)


def _said_of_a_dry_run(running: _Running) -> str:
    book, trials = running.accepted.book, running.accepted.trials
    words = {"NEW": "to be run", "STARTED": "to go on", "FINISHED": "finished", "FAILED": "failed"}
    if running.accepted.first.sweep.retry:
        words["FAILED"] = "failed; to be tried again"
    width = max(len(trial.name) for trial in trials)
    lines = [f"{len(trials)} trials, {len(running.todo)} of them to run, in {book.folder}"]
    for trial in trials:
        fault = running.accepted.refused.get(trial)
        what = words[book.status(trial)] if fault is None else f"cannot be run: {fault}"
        lines.append(f"  {trial.name:<{width}}  {what}")
    return "\n".join([*lines, "Nothing was run: sweep.dry_run=true."])


def _how_to_go_on(running: _Running) -> str:
    retry = " sweep.retry=true runs the failed trials again." if running.exit_code() else ""
    return (
        f"This sweep has come to its end before; nothing was run.{retry} For another one of the "
        "same trials: sweep.name=NAME"
    )


def _gives(trial: Trial, key: str) -> bool:
    return any(text.lstrip("+").startswith(f"{key}=") for text in trial.overrides)


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())
