"""The sweep: open its folder and its parent run, launch what is to be done, and sum up."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.core.utils import JobStatus
from omegaconf import DictConfig, read_write

from mlx_ft.config.schema import Config
from mlx_ft.runfolder import JOURNAL, held_files, read_json
from mlx_ft.sweeper import report
from mlx_ft.sweeper.accept import Accepted, accept, choose_launcher, settings_of
from mlx_ft.sweeper.ahead import said_of_work
from mlx_ft.sweeper.book import DONE, GOOD, TRIAL
from mlx_ft.sweeper.grid import Trial, expand
from mlx_ft.sweeper.points import Search
from mlx_ft.sweeper.prune import Rule, said_of_saved
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.table import best_of, table
from mlx_ft.sweeper.trial import DEADLINE, PARENT_RUN, TRIAL_NAME, figures

HOUR = 3600


class Parent(Protocol):
    """The tracked run that the trials are children of."""

    run_id: str | None

    def finish(
        self, status: str, rows: list[dict[str, Any]], best: Mapping[str, Any] | None
    ) -> None:
        """Log the rows and the best of them, if there is one, and close the run."""


Row = Mapping[str, Any]
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
    """Run the grid of `arguments`, or a search in them, or what is left; returns the exit code.

    0: every trial finished or was pruned; 1: some did not; 130 or 143: interrupted. cfg: composed
    for multirun, with its `hydra` node. start_parent: the tracker's, unless a test gives another.
    """
    loader = hydra_context.config_loader
    settings = settings_of(arguments, cfg, loader)
    choose_launcher(cfg, settings.sweep)
    if settings.sweep.sampler == "grid":
        search, identity = None, Rule.of(settings.sweep).identity()
        accepted = accept(expand([*arguments, *settings.seeds], loader), cfg, loader, identity)
    else:
        search = Search(arguments, settings, cfg, loader)
        accepted = search.accepted
    folder = accepted.book.folder
    with read_write(cfg.hydra):
        cfg.hydra.sweep.dir = str(folder)  # Hydra would make a folder named ~
    running = _Running(accepted, cfg, search)
    if settings.sweep.dry_run:
        print(_said_of_a_dry_run(running))
        return 0
    if running.is_whole and not running.todo and accepted.book.is_closed:
        print(running.report(), _how_to_go_on(running), sep="\n")
        return running.exit_code()
    launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, cfg)
    accepted.book.open(running.count)
    return _run(running, launcher, start_parent)


def _run(running: _Running, launcher: Any, start_parent: StartParent) -> int:
    accepted, folder = running.accepted, running.accepted.book.folder
    interrupted: int | None = None
    with Stop() as stop:
        with stop.later():  # a parent that is being opened could not be closed
            parent = start_parent(accepted.first, folder.name, running.count, folder / JOURNAL)
        try:
            stop.check()
            print(running.beginning(), flush=True)
            running.set_deadline()
            for batch in running.batches():
                running.note_refused()
                if batch:
                    first = accepted.trials.index(batch[0])  # of its own: workers' logs have it
                    running.note(batch, launcher.launch(running.arguments(batch, parent), first))
        except (Exception, KeyboardInterrupt) as error:
            interrupted = stop.exit_code(error)
            if interrupted is None:
                raise
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
                parent.finish(status, told, best=_with_base(best_of(told, accepted.first.sweep)))
                whole = running.is_whole and all(row["status"] in DONE for row in rows)
                accepted.book.close(whole=whole)
    print(running.report())
    return code


def _with_base(best: Row | None) -> Row | None:
    """The best trial with the name of its base model, by which its adapter is registered."""
    if best is None:
        return None
    settings = read_json(Path(str(best.get("run_dir"))) / "adapter" / "adapter_config.json")
    return {**best, "base_name": (settings.get("mlx_ft") or {}).get("base_name")}


class _Running:
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

    def arguments(self, batch: Sequence[Trial], parent: Parent) -> list[list[str]]:
        """Of trials to run, for the launcher."""
        return [self._arguments(trial, parent) for trial in batch]

    def note(self, batch: Sequence[Trial], jobs: Sequence[Any]) -> None:
        """Take over what the launcher returned for trials."""
        for trial, job in zip(batch, jobs, strict=False):
            if job.status == JobStatus.COMPLETED:
                self._returned[trial] = job.return_value

    def _arguments(self, trial: Trial, parent: Parent) -> list[str]:
        settings = {
            f"++hydra.job.env_set.{TRIAL_NAME}": trial.name,
            f"++hydra.job.env_set.{PARENT_RUN}": parent.run_id or "",
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


def _said_of_a_dry_run(running: _Running) -> str:
    book, trials = running.accepted.book, running.accepted.trials
    words = {"NEW": "to be run", "STARTED": "to go on", "FINISHED": "finished", "FAILED": "failed",
             "PRUNED": "pruned"}  # fmt: skip
    if running.accepted.first.sweep.retry:
        words["FAILED"] = "failed; to be tried again"
    width = max((len(trial.name) for trial in trials), default=0)
    lines = [f"{len(trials)} trials, {len(running.todo)} of them to run, in {book.folder}"]
    if running.search is not None:
        lines = [running.search.said()]
    for trial in trials:
        fault = running.accepted.refused.get(trial)
        what = words[book.status(trial)] if fault is None else f"cannot be run: {fault}"
        lines.append(f"  {trial.name:<{width}}  {what}")
    lines += [ahead] if (ahead := running.ahead()) else []
    return "\n".join([*lines, "Nothing was run: sweep.dry_run=true."])


def _how_to_go_on(running: _Running) -> str:
    retry = " sweep.retry=true runs the failed trials again." if running.exit_code() else ""
    more = " With more sweep.trials it goes on." if running.search is not None else ""
    return (
        f"This sweep has come to its end before; nothing was run.{retry}{more} For another one of "
        "the same trials: sweep.name=NAME"
    )


def _gives(trial: Trial, key: str) -> bool:
    return any(text.lstrip("+").startswith(f"{key}=") for text in trial.overrides)


def _quoted(text: str) -> str:
    return str(QuotedString(text, Quote.single).with_quotes())
