"""A sweep of this process: what is to be run, with which arguments, and what came of it."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.utils import JobStatus
from omegaconf import DictConfig

from mlx_ft.runfolder import held_files, read_json
from mlx_ft.sweeper import report
from mlx_ft.sweeper.accept import Accepted
from mlx_ft.sweeper.ahead import said_of_work
from mlx_ft.sweeper.book import GOOD, TRIAL
from mlx_ft.sweeper.grid import Trial
from mlx_ft.sweeper.points import Search
from mlx_ft.sweeper.prune import said_of_saved
from mlx_ft.sweeper.table import table
from mlx_ft.sweeper.trial import DEADLINE, PARENT_RUN, TRIAL_NAME, figures

HOUR = 3600


class Running:
    """A sweep of this process: what is to be done, and what came of it.

    todo: the trials that were known before and are run, in order. search: where more come from.
    """

    def __init__(self, accepted: Accepted, cfg: DictConfig, search: Search | None) -> None:
        self.accepted = accepted
        self.cfg = cfg
        self.search = search
        self._returned: dict[Trial, Mapping[str, Any]] = {}
        self._said: set[Trial] = set()
        self._unended, self._deadline = "NOT RUN", ""
        self.todo = self._to_run(accepted.trials)

    @property
    def count(self) -> int:
        """Trials in all, those that are still to be thought of included."""
        return len(self.accepted.trials) if self.search is None else self.search.count

    @property
    def is_whole(self) -> bool:
        """Whether all of its trials are known."""
        return self.search is None or self.search.is_whole

    def beginning(self) -> str:
        """What is said before the first trial."""
        count, book = len(self.accepted.trials), self.accepted.book
        lines = [f"Sweep of {count} trial{'s' * (count > 1)} in {book.folder}"]
        if self.search is not None:
            lines = [self.search.said()]
        started = sum(book.status(trial) == "STARTED" for trial in self.todo)
        done = count - len(self.todo) - len(self.accepted.refused)
        if done or started:
            lines.append(f"{done} done before, {started} to go on from their last checkpoint")
        lines.append(self.ahead())
        return "\n".join(line for line in lines if line)

    def ahead(self) -> str:
        """What the trials that are left will take; those of a search as its first one."""
        accepted = self.accepted
        left = [accepted.configs.get(trial, accepted.first) for trial in self.todo]
        if self.search is not None:
            left += [accepted.first] * (self.count - len(accepted.trials))
        return said_of_work(left, accepted.first.sweep.together) if left else ""

    def _to_run(self, trials: Sequence[Trial]) -> list[Trial]:
        """Those that can be run and are not done."""
        accepted = self.accepted
        wanted = {"NEW", "STARTED", *(["FAILED"] if accepted.first.sweep.retry else [])}
        good = [trial for trial in trials if trial not in accepted.refused]
        return [trial for trial in good if accepted.book.status(trial) in wanted]

    def batches(self) -> Iterator[list[Trial]]:
        """The trials to run, as many at a time as are launched together."""
        yield self.todo
        if self.search is not None:
            yield from map(self._to_run, self.search.batches(self.row))

    def note_refused(self) -> None:
        """Say why a trial is not run, and leave it in the folder."""
        from mlx_ft.sweeper.trial import keep_row

        for trial, fault in self.accepted.refused.items():
            if trial not in self._said:
                self._said.add(trial)
                print(f"Trial {trial.name} cannot be run: {fault}", flush=True)
                row = {"status": "FAILED", "error": fault}
                keep_row(self.accepted.book.place(trial), row, refused=True)

    def set_deadline(self) -> None:
        """The hours begin now."""
        hours = self.accepted.first.sweep.max_hours
        self._deadline = "" if hours is None else str(time.time() + hours * HOUR)

    def arguments(self, batch: Sequence[Trial], parent_run: str) -> list[list[str]]:
        """Of trials to run, for the launcher. parent_run: MLflow's id, empty without tracking."""
        return [self._arguments(trial, parent_run) for trial in batch]

    def note(self, batch: Sequence[Trial], jobs: Sequence[Any]) -> None:
        """Take over what the launcher returned for trials."""
        for trial, job in zip(batch, jobs, strict=False):
            if job.status == JobStatus.COMPLETED:
                self._returned[trial] = job.return_value

    def _arguments(self, trial: Trial, parent_run: str) -> list[str]:
        settings = {
            f"++hydra.job.env_set.{TRIAL_NAME}": trial.name,
            f"++hydra.job.env_set.{PARENT_RUN}": parent_run,
            f"++hydra.job.env_set.{DEADLINE}": self._deadline,
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
        """One row for each trial."""
        return [self.row(trial) for trial in self.accepted.trials]

    def row(self, trial: Trial) -> dict[str, Any]:
        """What came of a trial: what it returned, or else what its folder says."""
        return {**(self._returned.get(trial) or self._left_behind(trial)), "trial": trial.name}

    def _left_behind(self, trial: Trial) -> dict[str, Any]:
        """The row of a trial that returned nothing to this process."""
        folder = self.accepted.book.place(trial)
        kept, summary = read_json(folder / TRIAL), read_json(folder / "summary.json")
        if not kept and not summary:
            return {"status": self._unended if folder.exists() else "NOT RUN",
                    "run_dir": str(folder)}  # fmt: skip
        ended = "PRUNED" if summary.get("pruned") else summary.get("status", "FAILED")
        status = kept.get("status") or ended
        return {
            "status": status,
            "run_id": summary.get("run_id"),
            "run_dir": str(folder),
            "error": kept.get("error") or summary.get("reason") if status == "FAILED" else None,
            **figures(summary, self.accepted.first.sweep.metric),
        }

    def exit_code(self) -> int:
        """0 when every trial has finished, or was pruned."""
        return int(not self.is_whole or any(row["status"] not in GOOD for row in self.rows()))

    def write_report(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Into the folder; what cannot be written does not undo the trials."""
        accepted = self.accepted
        try:
            report.write(accepted.book.folder, accepted.trials, rows, accepted.first.sweep)
        except OSError as error:
            print(f"The report could not be written: {error}", file=sys.stderr)

    def report(self) -> str:
        """The table, what pruning has saved, and where the page is."""
        rows = self.rows()
        page = self.accepted.book.folder / report.PAGE
        told = [table(rows, self.accepted.first.sweep), said_of_saved(rows),
                f"Report: {page}" if page.is_file() else ""]  # fmt: skip
        return "\n".join(line for line in told if line)


def _gives(trial: Trial, key: str) -> bool:
    return any(text.lstrip("+").startswith(f"{key}=") for text in trial.overrides)


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())
