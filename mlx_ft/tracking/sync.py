"""What a run's journal holds and MLflow does not, written later by another process."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import platform
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

from mlx_ft import durable
from mlx_ft.config.schema import Config
from mlx_ft.tracking.journal import NAME, Journal, first_record
from mlx_ft.tracking.records import End, Metrics, Start, describe
from mlx_ft.tracking.replay import find_or_create
from mlx_ft.tracking.store import UNWRITTEN_TAG, MlflowStore, is_refusal
from mlx_ft.tracking.uri import artifact_root, from_there, tracking_uri, without_password
from mlx_ft.tracking.writer import Batch, batches, in_words, write_batch

logger = logging.getLogger(__name__)

LOCK = ".lock"  # held by a run that is alive; see runfolder.py

Outcome = Literal["complete", "written", "alive", "deleted", "gone", "unreachable", "untracked"]


@dataclass(frozen=True)
class SyncResult:
    """What became of one run.

    outcome: complete (nothing was missing), written, alive (left alone), deleted (lies in MLflow's
    trash, left alone), gone (MLflow has no such run any more), unreachable (the rest stays in the
    journal), untracked (no journal). points, others: metric values and other things written now;
    left: records not written. given_up: what can never be written, and why. status: how the run
    ended. store: where, without password.
    """

    folder: Path
    outcome: Outcome
    run_id: str | None = None
    status: str | None = None
    points: int = 0
    others: int = 0
    left: int = 0
    given_up: tuple[str, ...] = ()
    damaged_lines: int = 0
    store: str = ""
    problem: str = ""

    @property
    def ok(self) -> bool:
        """Whether MLflow has all that there is for it."""
        return self.outcome not in ("gone", "unreachable") and not self.given_up


def located(folder: Path, config: Config) -> Config:
    """The configuration with relative places counted from where the run was started."""
    start = first_record(folder / NAME)
    if not isinstance(start, Start):
        return config
    tracking, paths = from_there(config.tracking, config.paths, Path(start.working_dir))
    return replace(config, tracking=tracking, paths=paths)


def sync_run(folder: Path, config: Config, *, down: Collection[str] = ()) -> SyncResult:
    """Write what the journal of a run folder holds and the store of `config` lacks, once.

    A run that ended without a word (kill -9) is closed as KILLED. down: stores (`SyncResult.store`)
    that are known not to answer. Raises OSError when the folder cannot be written to.
    """
    folder = folder.absolute()
    if not (folder / NAME).is_file():
        return SyncResult(folder, "untracked")
    with run_lock(folder) as free:
        if not free:
            return SyncResult(folder, "alive")
        there = located(folder, config)
        uri = tracking_uri(there)
        root = artifact_root(uri, there.paths)
        connect = partial(MlflowStore, uri, root, there.tracking.experiment_name)
        journal = Journal(folder / NAME)
        try:
            result = sync_journal(journal, connect, without_password(uri), down)
        finally:
            journal.close()
        _name_run(folder / "summary.json", result.run_id)
        return result


def _name_run(path: Path, run_id: str | None) -> None:
    """Put a run's id into its summary, if it had none when it ended."""
    try:
        summary = json.loads(path.read_text("utf-8"))
        if run_id and summary["run_id"] is None:
            summary["run_id"] = run_id
            durable.write(path, (json.dumps(summary, indent=2) + "\n").encode())
    except (OSError, ValueError, KeyError, TypeError) as error:
        logger.debug("%s is not given the run's id", path, exc_info=error)


@contextmanager
def run_lock(folder: Path) -> Iterator[bool]:
    """Hold a run folder's lock; False: its run is alive, or another process holds it."""
    descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        free = _locked(descriptor)
        if free:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {platform.node()}\n".encode())
        yield free
    finally:
        os.close(descriptor)


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sync_journal(
    journal: Journal, connect: Callable[[], MlflowStore], where: str, down: Collection[str] = ()
) -> SyncResult:
    """As sync_run, for a journal whose lock is held. connect: opens the store named `where`."""
    state, folder = journal.state, journal.folder
    if journal.is_new:
        return SyncResult(folder, "untracked", damaged_lines=state.damaged_lines)
    if state.end is None:
        journal.note(_silent_end(journal))
    status = state.end.status if state.end else None
    about = SyncResult(folder, "complete", state.run_id, status, store=where,
                       damaged_lines=state.damaged_lines)  # fmt: skip
    if not state.pending:
        return about
    unreachable = replace(about, outcome="unreachable", left=len(state.pending))
    if where in down:
        return replace(unreachable, problem="as before")
    try:
        store = connect()
        run_id = state.run_id or find_or_create(store, journal)
        lifecycle = store.lifecycle(run_id)
    except Exception as error:
        return replace(unreachable, problem=in_words(error))
    if lifecycle != "active":
        return replace(about, outcome="deleted" if lifecycle else "gone", left=len(state.pending))
    return _write_pending(store, run_id, journal, replace(about, run_id=run_id))


def _write_pending(
    store: MlflowStore, run_id: str, journal: Journal, about: SyncResult
) -> SyncResult:
    """Write batch after batch; what the store refuses for good is given up, an outage ends it."""
    points = others = 0
    problem, given_up = "", list[str]()
    journal.sync()
    try:
        for batch in batches(journal.pending()):
            refused, reason = _write(store, run_id, batch, journal)
            given_up += [f"{describe(record)} ({reason})" for _, record in refused]
            written = [entry[1] for entry in batch if entry not in refused]
            values = [len(record.values) for record in written if isinstance(record, Metrics)]
            points += sum(values)
            others += len(written) - len(values)
        store.untag(run_id, UNWRITTEN_TAG)
    except Exception as error:
        problem = in_words(error)
    journal.sync()
    return replace(
        about,
        outcome="unreachable" if problem else "written",
        problem=problem,
        points=points,
        others=others,
        left=len(journal.state.pending),
        given_up=tuple(given_up),
    )


def _write(store: MlflowStore, run_id: str, batch: Batch, journal: Journal) -> tuple[Batch, str]:
    """Write a batch; returns what the store refuses for good, and why. Raises other errors."""
    try:
        write_batch(store, run_id, batch, journal)
    except Exception as error:
        if not is_refusal(error):
            raise
        left = journal.state.pending.keys()
        refused = [entry for entry in batch if entry[0] in left]
        journal.give_up([number for number, _ in refused], in_words(error))
        return refused, in_words(error)
    return [], ""


def _silent_end(journal: Journal) -> End:
    """The end of a run whose process was killed before it could tell the tracker."""
    state = journal.state
    if (told := _summary(journal.folder, state.began)) is not None:
        return End(state.last_time, *told)
    step = state.last_step
    where = "before its first step" if step is None else f"at or after step {step}"
    return End(state.last_time, "KILLED", f"the process ended without a word {where}")


def _summary(folder: Path, began: int) -> tuple[str, str | None] | None:
    """Status and reason in `summary.json`, if the run's last process came to writing it."""
    path = folder / "summary.json"
    try:
        if path.stat().st_mtime_ns // 1_000_000 < began:
            return None
        summary = json.loads(path.read_text("utf-8"))
        return str(summary["status"]), summary["reason"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
