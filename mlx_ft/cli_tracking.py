"""`mlx-ft sync`: what MLflow missed of runs, written from their journals."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.plural import counted
from mlx_ft.runtime import default_output_dir

if TYPE_CHECKING:
    from mlx_ft.config.schema import Config
    from mlx_ft.tracking.sync import SyncResult

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

TEXT = "write to MLflow what it missed while it was down"
HELP = """\
Write to MLflow what it missed of runs: metrics, files and the status that are in the run
folder's journal (tracking.jsonl) and that MLflow did not take. Each is written once, however
often this is called. A run whose process was killed is closed as KILLED; one that is alive is
left alone.

exit codes: 0 MLflow has everything, 1 something is left, 2 a folder that is no run or in use.
"""
EXAMPLES = """\
examples:
  mlx-ft sync                              all runs in outputs
  mlx-ft sync outputs/runs/X
"""


def add_commands(commands: Commands) -> None:
    """Add `sync`."""
    sync = commands.add_parser(
        "sync", help=TEXT, description=HELP, epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    sync.add_argument("folders", nargs="*", type=Path, metavar="RUN_FOLDER")
    sync.set_defaults(command=_sync)


def sync(folder: Path) -> SyncResult:
    """Write what MLflow missed of one run. Raises UserError when its configuration is unusable."""
    from mlx_ft.tracking.sync import sync_run

    return sync_run(folder, _config(folder))


def _sync(args: argparse.Namespace) -> int:
    configs, faults = _configs(args.folders or _tracked())
    if faults and args.folders:
        raise UserError("mlx-ft sync takes run folders:", faults)
    for fault in faults:
        print(fault, file=sys.stderr)
    if not (configs or faults):
        print(f"No tracked runs in {default_output_dir()}.")
    return max([bool(faults), *_sync_all(configs, given=bool(args.folders))])


def _sync_all(configs: Mapping[Path, Config], *, given: bool) -> Iterator[int]:
    """One run after the other, a line each; yields exit codes. given: the user named them."""
    from mlx_ft.tracking import reap, tracking_uri
    from mlx_ft.tracking.sync import located, sync_run

    down = set[str]()
    stores: dict[str, Config] = {}
    for folder, config in configs.items():
        try:
            result = sync_run(folder, config, down=down)
        except OSError as error:
            print(f"{folder}: {error}", file=sys.stderr)
            yield 1
            continue
        print(f"{folder}: {in_words(result)}", flush=True)
        yield 2 if result.outcome == "alive" and given else 1 - result.ok
        if result.outcome == "unreachable":
            down.add(result.store)
        elif result.outcome in ("complete", "written"):
            there = located(folder, config)
            stores[f"{tracking_uri(there)} {there.tracking.experiment_name}"] = there
    for config in stores.values():
        for run_id, closed in reap(config).items():
            print(f"{closed}: its process is gone; run {run_id} is closed")


def in_words(result: SyncResult) -> str:
    """What became of a run, in one line."""
    things = f"{counted(result.points, 'metric value')} and "
    things += counted(result.others, "other thing")
    run = f"(run {result.run_id}, {result.status})"
    line = {
        "complete": f"nothing was missing {run}",
        "written": f"{things} written {run}",
        "alive": "is in use by a run, so it is left alone",
        "deleted": f"the run was deleted in MLflow, so it is left alone {run}",
        "gone": f"{result.store} has no such run; {result.left} records stay here {run}",
        "unreachable": f"{result.store} does not take it ({result.problem}); {result.left} "
        f"records stay for the next time, {things} written",
        "untracked": "has no journal: it was not tracked",
    }[result.outcome]
    if result.given_up:
        line += f"; can never be written: {'; '.join(result.given_up)}"
    if result.damaged_lines:
        line += f"; {result.damaged_lines} damaged lines of the journal are lost"
    return line


def _configs(folders: Sequence[Path]) -> tuple[dict[Path, Config], list[str]]:
    """Where the runs of these folders are tracked, and what is wrong with the others."""
    found: dict[Path, Config] = {}
    faults = list[str]()
    for folder in folders:
        try:
            found[folder] = _config(folder)
        except UserError as error:
            faults.append(str(error))
    return found, faults


def _tracked() -> list[Path]:
    """Every folder in the outputs with a journal."""
    patterns = ("runs/*/tracking.jsonl", "sweeps/**/tracking.jsonl")
    return [
        found.parent for pattern in patterns for found in sorted(default_output_dir().glob(pattern))
    ]


def _config(folder: Path) -> Config:
    """Where a run is tracked. Nothing else of its `config.yaml` is needed, nor its webhook."""
    import yaml

    from mlx_ft.config.compose import config_from_dict

    path = folder / "config.yaml"
    try:
        values = yaml.safe_load(path.read_text("utf-8"))
        tracking = {**values["tracking"], "webhook": None}
        return config_from_dict({"tracking": tracking, "paths": values["paths"]})
    except FileNotFoundError:
        raise UserError(f"{folder} is no run folder: it has no config.yaml") from None
    except (OSError, ValueError, KeyError, TypeError, MlxFtError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be used: {type(error).__name__}: {error}") from error
