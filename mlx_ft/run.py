"""The story of a run: configuration -> model, data, adapter -> training -> what was learned."""

from __future__ import annotations

import errno
import gc
import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft import runtime, together
from mlx_ft.config.schema import Config
from mlx_ft.errors import Interrupted, MlxFtError, OutputError, StorageError
from mlx_ft.interrupt import StopSignal

if TYPE_CHECKING:
    from mlx_ft.follower import Follower
    from mlx_ft.runfolder import LogFile
    from mlx_ft.session import RunResult, Session
    from mlx_ft.stopping import Prune
    from mlx_ft.team import Team

logger = logging.getLogger(__name__)

DISK_ERRORS = frozenset({
    errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.ESTALE,
})  # fmt: skip
# Of a file of the run; elsewhere they are somebody's mistake, to be seen with its traceback.
PLACE_ERRORS = frozenset({errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR})


def run(
    config: Config,
    *,
    public: Mapping[str, Any],
    run_dir: Path | None = None,
    parent_run_id: str | None = None,
    overrides: Sequence[str] = (),
    choices: Mapping[str, str] | None = None,
    share: bool = False,
    prune: Prune | None = None,
) -> RunResult:
    """Train one adapter and return how it went.

    public: the composed configuration without secrets, saved and tracked. run_dir: None makes
    a new folder named by the time. share: the base model, with other runs of this process.
    prune: asked at each validation; a reason ends the training there, as early stopping does.
    Raises UserError kinds before anything is written; after that the run's status is recorded
    whatever happens, and then the error is raised, with notes that say what the run left behind.
    """
    seat = together.seat()
    with seat.stop if seat else StopSignal() as stop, ExitStack() as stack:
        with stop.at_once(), _no_collection():
            team = _team(config)
            if team is not None and team.rank:
                follower = _follower(config, public, team, stack)
            else:
                session, log, finished = _accept(
                    config,
                    public,
                    run_dir,
                    parent_run_id,
                    stop,
                    stack,
                    team,
                    share=share,
                    prune=prune,
                )
        if team is not None and team.rank:
            return follower.run()  # no signal ends it before its leader does
        if team is not None:
            stack.enter_context(team.led())
        if finished:
            return session.already_finished()
        try:
            log.open(session.folder.log_handler())
            session.begin(overrides, choices or {})
            session.train()
            return session.end("FINISHED")
        except BaseException as error:
            raise _ended(session, error) from error.__cause__


@contextmanager
def _no_collection() -> Iterator[None]:
    """Imports and a model's layers are many objects and no garbage: to look costs 0.1 s."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _team(config: Config) -> Team | None:
    """The processes that this one trains with, if `mlx.launch` has started several."""
    runtime.prepare(config.threads, Path(config.paths.cache_dir).expanduser())
    # MLX may be imported from here on, and only from here on.
    from mlx_ft.team import join

    return join()


def _follower(config: Config, public: Mapping[str, Any], team: Team, stack: ExitStack) -> Follower:
    from mlx_ft.follower import Follower

    return Follower(config, public, team, stack)


def _accept(
    config: Config,
    public: Mapping[str, Any],
    run_dir: Path | None,
    parent_run_id: str | None,
    stop: StopSignal,
    stack: ExitStack,
    team: Team | None,
    *,
    share: bool,
    prune: Prune | None,
) -> tuple[Session, LogFile, bool]:
    """The run in its folder, ready to begin, and its log; True: it has nothing left to do.

    stack: lets go of the folder and the log.
    """
    started = time.monotonic()
    from mlx_ft.accept import accept
    from mlx_ft.console import configure_logging
    from mlx_ft.resume import fingerprint
    from mlx_ft.runfolder import LogFile, RunFolder
    from mlx_ft.session import Session
    from mlx_ft.shared import of_this_process
    from mlx_ft.target import target as find_target

    console = configure_logging(config.log_level)
    target = find_target(config, run_dir)
    run_dir = target.folder if target else run_dir
    _check_output(config, run_dir)
    log = stack.enter_context(LogFile())
    shared = of_this_process() if share else None
    if shared is not None:
        stack.push(shared.leave)
    accepted = accept(config, public, shared)
    if accepted.forward.frozen is not None:
        stack.callback(accepted.forward.frozen.close)
    if team is not None:
        team.agree(fingerprint(accepted))
    if accepted.device == "cpu" and config.threads is None:
        _say_if_busy()
    output_dir = Path(config.paths.output_dir)
    folder = RunFolder.create(run_dir, output_dir, resume=target is not None)
    stack.callback(folder.release)
    session = Session(accepted, folder, console, started, parent_run_id, stop, prune, team)
    return session, log, target is not None and not session.find_checkpoint(target)


def _ended(session: Session, error: BaseException) -> BaseException:
    """Record the end of a run that did not finish; returns the error to raise, with its notes."""
    from mlx_ft.outcome import left_behind

    error = as_storage_error(error, session.folder.path)
    status = "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"
    if status == "FAILED" and not isinstance(error, MlxFtError):
        logger.exception("the run failed")
        error.add_note(f"The traceback is in {session.folder.path / 'train.log'}.")
    reason = str(error) or type(error).__name__
    try:
        session.end(status, reason)
    except Exception as second:  # the first error is the one to tell
        told = as_storage_error(second, session.folder.path)
        unexpected = not isinstance(told, MlxFtError)
        why = told if str(told) != reason else "for the reason below"
        logger.error("the end of the run is not written whole: %s", why, exc_info=unexpected)
        with suppress(OSError, StorageError):  # it is small: there may be room for it
            session.folder.write_summary(session.summary(status, reason))
        session.record.tracker.end(status, reason)
        session.record.notify(session.summary(status, reason))
    summary = session.summary(status, None)
    best = session.config.checkpoint.best
    error.add_note(left_behind(summary, session.folder, session.plan.steps, best=best))
    return error


def as_storage_error(error: BaseException, folder: Path) -> BaseException:
    """A disk that is full, read-only or gone, in words; any other error as it is."""
    if not isinstance(error, OSError):
        return error
    own = str(error.filename or "").startswith(str(folder))
    if error.errno not in DISK_ERRORS and not (own and error.errno in PLACE_ERRORS):
        return error
    logger.debug("the file that could not be written", exc_info=error)
    where = f" {error.filename}" if error.filename else ""
    return StorageError(
        f"a file of the run could not be written: {error.strerror}{where}. What was saved before "
        "is intact. Make room, or make the place writable, and go on with the run"
    )


def _say_if_busy() -> None:
    """Threads of a BLAS wait for one another: beside other work, one is often faster than all."""
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        logger.warning(
            "the machine is busy (load %.1f on %d cores): training may be many times slower; "
            "threads=1 is then often faster",
            load,
            cores,
        )


def _check_output(config: Config, run_dir: Path | None) -> None:
    from mlx_ft.runfolder import writable

    output_dir = Path(config.paths.output_dir)
    reason = writable(run_dir, output_dir)
    if reason is not None:
        key = "paths.output_dir" if run_dir is None else "hydra.run.dir"
        raise OutputError(
            f"{key}: cannot write to {run_dir or output_dir}: {reason}. "
            f"Choose a writable folder with {key}=FOLDER"
        )
