"""`mlx-ft report`: runs compared, as tables on the terminal and as a page."""

from __future__ import annotations

import argparse
import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft import cli_help
from mlx_ft.errors import OutputError, UserError
from mlx_ft.runtime import default_output_dir

if TYPE_CHECKING:
    from mlx_ft.report.collect import Collection

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add `report`."""
    text = "compare a sweep's trials, or runs: tables, figures, one page"
    report = cli_help.add(commands, "report", text, cli_help.REPORT)
    report.add_argument(
        "places", nargs="*", metavar="PLACE",
        help="sweep or run: folder, name or run id; default: the newest sweep in outputs",
    )  # fmt: skip
    report.add_argument("--query", metavar="QUERY", help="runs that MLflow finds by its filter")
    report.add_argument(
        "--output", type=Path, metavar="FOLDER",
        help="default: the sweep's own folder, or a new one in outputs/reports",
    )  # fmt: skip
    report.add_argument(
        "--metric", metavar="KEY", help="compare by this figure of summary.json; default: as the "
        "sweep was told, or val_loss_after",
    )  # fmt: skip
    report.add_argument(
        "--direction", choices=("auto", "minimize", "maximize"), default="auto",
        help="which figure is the best; default: as the metric means",
    )  # fmt: skip
    report.set_defaults(command=_report)


def _report(args: argparse.Namespace) -> int:
    collection = _collected(args)
    from mlx_ft.report.analyse import analyse, goal_of
    from mlx_ft.report.table import terminal
    from mlx_ft.report.write import write

    analysis = analyse(collection, goal_of(collection.rows, args.metric, args.direction))
    print(terminal(analysis), flush=True)
    folder = args.output or collection.folder or _new_folder()
    try:
        files = write(analysis, folder.expanduser())
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}: {error.strerror or error}. Choose another folder with "
            "--output FOLDER"
        ) from error
    print(f"\nWritten to {folder}: {', '.join(file.name for file in files)}")
    return 0


def _new_folder() -> Path:
    return default_output_dir() / "reports" / datetime.now().strftime("%Y-%m-%d_%H-%M-%S")


def _collected(args: argparse.Namespace) -> Collection:
    from mlx_ft.report import collect

    settings = [text for text in args.places if _is_setting(text)]
    places = [text for text in args.places if text not in settings]
    if args.query is None and settings:
        raise UserError(f"{' '.join(settings)}: says where MLflow is, and so needs --query QUERY")
    if args.query is None:
        outputs = default_output_dir()
        return collect.collect(places or [str(collect.newest_sweep(outputs))], outputs)
    if places:
        raise UserError(f"either --query or places ({', '.join(places)}), not both")
    from mlx_ft.config import compose

    command = compose.CommandLine(tuple(settings))
    compose.check(command)
    config = compose.resolve(compose.compose(compose.open_hydra(command), command))
    return collect.of_query(config, args.query)


def _is_setting(text: str) -> bool:
    """Whether an argument says where MLflow is; folders, too, have `=` in their names."""
    return bool(re.match(r"(tracking|paths)(\.\w+)?=", text)) and not Path(text).exists()
