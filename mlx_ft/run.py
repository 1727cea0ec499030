"""The story of a run: configuration -> model, data, adapter -> training -> what was learned."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlx_ft import runtime
from mlx_ft.config.schema import Config
from mlx_ft.errors import Interrupted, MlxFtError, OutputError

if TYPE_CHECKING:
    from mlx_ft.session import RunResult

logger = logging.getLogger(__name__)


def run(
    config: Config,
    *,
    public: Mapping[str, Any],
    run_dir: Path | None = None,
    parent_run_id: str | None = None,
    overrides: Sequence[str] = (),
    choices: Mapping[str, str] | None = None,
) -> RunResult:
    """Train one adapter and return how it went.

    public: the composed configuration without secrets, saved and tracked. run_dir: None makes
    a new folder named by the time. Raises UserError kinds before anything is written; after
    that the run's status is recorded whatever happens, and then the error is raised, with
    notes that say what the run left behind.
    """
    started = time.time()
    runtime.prepare(config.threads, Path(config.paths.cache_dir).expanduser())
    # MLX may be imported from here on, and only from here on.
    from mlx_ft.accept import accept
    from mlx_ft.console import configure_logging
    from mlx_ft.outcome import left_behind
    from mlx_ft.runfolder import LogFile, RunFolder
    from mlx_ft.session import Session

    console = configure_logging(config.log_level)
    _check_output(config, run_dir)
    with ExitStack() as stack:
        log = stack.enter_context(LogFile())
        accepted = accept(config, public)
        if accepted.device == "cpu" and config.threads is None:
            _say_if_busy()
        folder = RunFolder.create(run_dir, Path(config.paths.output_dir))
        stack.callback(folder.release)
        log.open(folder.log_handler())
        session = Session(accepted, folder, console, started, parent_run_id)
        stack.enter_context(session.stop)
        try:
            session.begin(overrides, choices or {})
            session.train()
            return session.end("FINISHED")
        except BaseException as error:
            status = "KILLED" if isinstance(error, (Interrupted, KeyboardInterrupt)) else "FAILED"
            if status == "FAILED" and not isinstance(error, MlxFtError):
                logger.exception("the run failed")
                error.add_note(f"The traceback is in {folder.path / 'train.log'}.")
            try:
                session.end(status, str(error) or type(error).__name__)
            except Exception:  # the first error is the one to tell
                logger.exception("the end of the run could not be written")
                session.record.tracker.end(status, str(error))
            error.add_note(
                left_behind(
                    session.summary(status, None),
                    folder.path,
                    session.plan.steps,
                    best=config.checkpoint.best,
                )
            )
            raise


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
