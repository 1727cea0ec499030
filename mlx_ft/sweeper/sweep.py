"""The sweep: open its folder and its parent run, launch what is to be done, and sum up."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from hydra.core.plugins import Plugins
from omegaconf import DictConfig, read_write

from mlx_ft.config.schema import Config
from mlx_ft.runfolder import JOURNAL, read_json
from mlx_ft.sweeper import report
from mlx_ft.sweeper.accept import accept
from mlx_ft.sweeper.book import DONE
from mlx_ft.sweeper.grid import expand
from mlx_ft.sweeper.points import Search
from mlx_ft.sweeper.prune import Rule
from mlx_ft.sweeper.running import Running
from mlx_ft.sweeper.settings import choose_launcher, settings_of
from mlx_ft.sweeper.stop import Stop
from mlx_ft.sweeper.table import best_of


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

    0: every trial finished or was pruned; 1: some did not; 130 or 143: interrupted. Of a dry run 1
    says that some cannot be run. cfg: composed for multirun, with its `hydra` node. start_parent:
    the tracker's, unless a test gives another.
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
    running = Running(accepted, cfg, search)
    if settings.sweep.dry_run:
        print(_said_of_a_dry_run(running))
        return int(bool(accepted.refused))  # as the sweep would end, if all else went well
    if running.is_whole and not running.todo and accepted.book.is_closed:
        print(running.report(), _how_to_go_on(running), sep="\n")
        return running.exit_code()
    launcher = Plugins.instance().instantiate_launcher(hydra_context, task_function, cfg)
    accepted.book.open(running.count)
    return _run(running, launcher, start_parent)


def _run(running: Running, launcher: Any, start_parent: StartParent) -> int:
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
                    running.note(
                        batch, launcher.launch(running.arguments(batch, parent.run_id or ""), first)
                    )
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


def _said_of_a_dry_run(running: Running) -> str:
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


def _how_to_go_on(running: Running) -> str:
    retry = " sweep.retry=true runs the failed trials again." if running.exit_code() else ""
    more = " With more sweep.trials it goes on." if running.search is not None else ""
    return (
        f"This sweep has come to its end before; nothing was run.{retry}{more} For another one of "
        "the same trials: sweep.name=NAME"
    )
