"""`mlx-ft evaluate`: figures of a run's model, alone or beside another's, on its rows or others."""

from __future__ import annotations

import argparse
import json
import sys
from datetime import datetime
from pathlib import Path
from tempfile import gettempdir
from typing import TYPE_CHECKING, Any

from mlx_ft import cli_help, cli_run
from mlx_ft.config.schema_data import METRICS
from mlx_ft.errors import DataError, MlxFtError, OutputError, UserError
from mlx_ft.runfolder import writable
from mlx_ft.verdicts import Comparison, Evaluation, Unjudged, as_json, compared_rows, rows_of

if TYPE_CHECKING:
    from mlx_ft.saved import SavedRun

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add `evaluate`."""
    text = "a model's figures: loss, answers by metrics, against another's, standard tasks"
    parser = cli_help.add(commands, "evaluate", text, cli_help.EVALUATE)
    cli_run.add_run(parser)
    for name, (metavar, about) in cli_help.EVALUATE_OPTIONS.items():
        option = f"--{name.replace('_', '-')}"
        if metavar is None:
            parser.add_argument(option, action="store_true", help=about)
        elif name in ("metric", "metric_from"):
            parser.add_argument(option, action="append", metavar=metavar, help=about)
        else:
            kind = int if metavar == "N" else str
            parser.add_argument(option, type=kind, metavar=metavar, help=about)
    parser.set_defaults(command=_evaluate)


def _evaluate(args: argparse.Namespace) -> int:
    _check(args)
    if args.tasks:
        return _standard(args)
    run = cli_run.found(args)
    metrics = _metrics(args)  # the user's code may import MLX, so it comes after
    from mlx_ft import api

    options: dict[str, Any] = {
        "data": args.data, "metrics": metrics, "database": args.database, "limit": args.rows,
        "max_tokens": args.max_tokens,
    }  # fmt: skip
    result: Evaluation | Comparison
    try:
        if args.against:
            result = api.compare(run, _other(args) or "base", **options)
            rows = compared_rows(result)
        else:
            result = api.evaluate(run, base=args.base, **options)
            rows = rows_of(result)
    except Unjudged as error:
        raise _kept(error, args.csv) from error
    if args.json:
        print(json.dumps(as_json(result), ensure_ascii=False))
    else:
        from mlx_ft import evaluation_text

        print(evaluation_text.text(result))
        if isinstance(result, Comparison):
            evaluation_text.show_differing(result, 6 if args.show is None else args.show)
    if args.csv:
        _write_csv(args.csv, rows)
    if args.log:
        _log(run, result, rows, args)
    return 0


def _check(args: argparse.Namespace) -> None:
    """What cannot be together, all of it at once. Raises UserError."""
    faults = []
    if args.base and args.against:
        faults.append("--base judges the base alone, --against BASE|RUN two models: give one")
    if args.csv and Path(args.csv).suffix != ".csv":
        faults.append(f"--csv: found {args.csv!r}; expected a name that ends in .csv")
    if args.csv and (reason := writable(None, Path(args.csv).parent)):
        faults.append(f"--csv: {args.csv} cannot be written: {reason}")
    for name in args.metric or ():
        if name not in METRICS[1:]:
            known = ", ".join(METRICS[1:])
            faults.append(f"--metric: found {name!r}; expected one of {known}, or --metric-from")
    if args.tasks:
        idle = [f"--{name.replace('_', '-')}" for name in
                ("data", "metric", "metric_from", "database", "show", "csv", "log")
                if getattr(args, name)]  # fmt: skip
        faults += [f"{option} is of no use with --tasks" for option in idle]
    elif args.shots is not None:
        faults.append("--shots is of use with --tasks only")
    faults += [f"--{name}: found {value}; expected at least {least}"
               for name, least in (("rows", 1), ("show", 0), ("shots", 0))
               if (value := getattr(args, name)) is not None and value < least]  # fmt: skip
    if faults:
        raise UserError("mlx-ft evaluate cannot begin:", faults)


def _other(args: argparse.Namespace) -> SavedRun | None:
    """The run of `--against`, on the base of `--model` as `--run` is; None for none and `base`."""
    from mlx_ft import saved

    if args.against in (None, "base"):
        return None
    return saved.find_run(args.against, model=args.model)


def _metrics(args: argparse.Namespace) -> list[Any] | None:
    """Those that were named; None: the run's. Runs the user's own files, and says so."""
    from mlx_ft import own_metric

    named: list[Any] = list(args.metric or ())
    for given in args.metric_from or ():
        file = Path(given.rpartition(":")[0]).expanduser()
        print(f"--metric-from runs the code in {file.absolute()}", file=sys.stderr)
        named.append(own_metric.load(given))
    return named or None


def _standard(args: argparse.Namespace) -> int:
    run = cli_run.found(args)
    from mlx_ft import api, evaluation_text, same_base, standard_tasks

    standard_tasks.require()  # not after the model was loaded
    names = [name for name in args.tasks.split(",") if name]
    models = {"base" if args.base else run.name: (run, not args.base)}
    if other := _other(args):
        same_base.warn_of_two(other, run)
        models = {args.against: (other, True), **models}
    elif args.against:
        models = {"base": (run, False), **models}
    found = {}
    for name, (each, adapter) in models.items():
        tuned = api.load(each, adapter=adapter)
        found[name] = standard_tasks.run(
            tuned.model, tuned.tokenizer, names, shots=args.shots, limit=args.rows,
            max_tokens=args.max_tokens,
        )  # fmt: skip
        del tuned  # two might not fit into memory
    if args.json:
        print(json.dumps({name: [as_json(figure) for figure in each]
                          for name, each in found.items()}))  # fmt: skip
    else:
        print(evaluation_text.tasks_text(found))
    return 0


def _write_csv(name: str, rows: list[dict[str, Any]]) -> None:
    from mlx_ft.data.write import write_rows

    path = Path(name).expanduser()
    try:
        number = write_rows(path, rows)
    except OSError as error:
        raise OutputError(f"--csv: {path} cannot be written: {error.strerror or error}") from error
    print(f"{path}: {number} answers", file=sys.stderr)


def _kept(error: Unjudged, csv: str | None) -> MlxFtError:
    """The error with the name of a file that now holds the answers."""
    from mlx_ft.data.write import write_rows

    name = f"answers_{datetime.now():%Y-%m-%d_%H-%M-%S}.csv"
    places = [Path(csv).expanduser()] if csv else []
    for path in [*places, Path(name), Path(gettempdir(), name)]:
        try:
            number = write_rows(path, error.rows)
        except (OSError, DataError) as fault:
            reason = str(fault)
        else:
            return MlxFtError(
                f"{error}\n{path.absolute()} has the {number} rows with their answers"
            )
    return MlxFtError(f"{error}\nThe answers are lost: {reason}")


def _log(
    run: SavedRun, result: Evaluation | Comparison, rows: list[dict[str, Any]],
    args: argparse.Namespace,
) -> None:  # fmt: skip
    """To the run itself in MLflow, or to a new run where that was not tracked."""
    from dataclasses import replace

    from mlx_ft import evaluation_text
    from mlx_ft.tracking import later
    from mlx_ft.tracking.uri import from_there

    tracking, paths = from_there(run.config.tracking, run.config.paths, run.started_in)
    config = replace(run.config, tracking=tracking, paths=paths)
    found = evaluation_text.findings(result, rows, run, base=args.base, data=args.data)
    folder, run_id = (None if run.is_alone else run.folder), run.summary.get("run_id")
    if later.is_tracked(folder, run_id):
        where = f"the run {later.note(folder, run_id, config, found)}"
    else:
        tags = {"mlx_ft.run_dir": str(run.adapter.absolute())}
        new = later.note_apart(f"evaluate {run.name}", config, found, tags)
        where = f"a new run, {new}, as {run.name} was not tracked"
    print(f"logged to {where}", file=sys.stderr)
