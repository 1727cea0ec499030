"""The `mlx-ft` command: train, and use what was trained."""

from __future__ import annotations

import argparse
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft import __version__
from mlx_ft.errors import MlxFtError, UserError

if TYPE_CHECKING:
    from mlx_ft.saved import SavedRun

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

SQLITE_HEADER = b"SQLite format 3\0"  # https://www.sqlite.org/fileformat.html
DESCRIPTION = "Fine-tune language models with MLX as experiments."
EPILOG = """\
examples:
  mlx-ft train lora.rank=32              train; the same as python train.py lora.rank=32
  mlx-ft quick org/model my_rows.jsonl   the shortest way to a run on your own model and data
  mlx-ft generate "How big is Chad?"     ask the newest run's model
  mlx-ft evaluate --run outputs/runs/X   its figures again, from the saved adapter alone
  mlx-ft ui                              look at all runs in MLflow

exit codes: 0 done, 1 failed while running, 2 a mistake in what was given (nothing was written),
130 and 143 interrupted.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `mlx-ft` command line; returns the exit code."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if arguments[:1] == ["train"]:  # everything after it is Hydra's, options too
        from mlx_ft.main import main as train

        return train(arguments[1:])
    args = _parser().parse_args(arguments)
    command: Callable[[argparse.Namespace], int] | None = getattr(args, "command", None)
    if command is None:
        _parser().print_help()
        return 2
    try:
        return command(args)
    except MlxFtError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mlx-ft ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        traceback.print_exception(error)
        print(f"mlx-ft {arguments[0]} failed. {type(error).__name__}: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-ft",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlx-ft {__version__}")
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    commands.add_parser("train", help="train an adapter; key=value arguments, see train --help")
    _add_quick(commands)
    _add_generate(commands)
    _add_evaluate(commands)
    _add_models(commands)
    doctor = commands.add_parser("doctor", help="what this machine can do")
    doctor.set_defaults(command=_doctor)
    ui = commands.add_parser("ui", help="show all runs in MLflow")
    ui.add_argument("--host", default="127.0.0.1")
    ui.add_argument("--port", type=_port, default=5000)
    ui.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. tracking.uri=URI")
    ui.set_defaults(command=_ui)
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected 1 to 65535")
    return int(text)


def _add_quick(commands: Commands) -> None:
    quick = commands.add_parser("quick", help="a first short run on your own model and data")
    quick.add_argument("model", help="hub name, folder, .gguf file, or `embedded`")
    quick.add_argument("data", nargs="?", help="JSONL file or folder; default: the built-in rows")
    quick.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    quick.set_defaults(command=_quick)


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--run", metavar="RUN", help="run folder or run id; default: the newest in outputs"
    )
    parser.add_argument("--base", action="store_true", help="the base model, without the adapter")


def _add_generate(commands: Commands) -> None:
    parser = commands.add_parser("generate", help="answer a question with a run's model")
    _add_run(parser)
    parser.add_argument("question", help="`-` reads it from standard input")
    parser.add_argument("--system", help="system message; default: the one of the training rows")
    parser.add_argument("--max-tokens", type=int, default=256)
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--seed", type=int)
    parser.set_defaults(command=_generate)


def _add_evaluate(commands: Commands) -> None:
    parser = commands.add_parser("evaluate", help="a run's figures from its saved adapter alone")
    _add_run(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object with answers")
    parser.set_defaults(command=_evaluate)


def _add_models(commands: Commands) -> None:
    parser = commands.add_parser("models", help="what is on disk, and what can be had")
    actions = parser.add_subparsers(metavar="ACTION", required=True)
    actions.add_parser("list", help="recipes and downloaded models").set_defaults(
        command=_models, action="list"
    )
    for action, text in (
        ("show", "one model in detail"),
        ("download", "fetch a model, with progress; continues where it stopped"),
        ("remove", "delete a downloaded or converted model"),
    ):
        sub = actions.add_parser(action, help=text)
        sub.add_argument("name", help="a recipe's name, hub name or folder")
        sub.set_defaults(command=_models, action=action)


def _quick(args: argparse.Namespace) -> int:
    from mlx_ft.main import main as train

    overrides = ["experiment=quick", f"model.path={_quoted(args.model)}"]
    given = [args.data, *args.overrides] if args.data else list(args.overrides)
    if args.data and "=" not in args.data:
        overrides += ["data=custom", f"data.path={_quoted(args.data)}"]
        given = args.overrides
    return train([*overrides, *given])


def _quoted(text: str) -> str:
    """A value for Hydra's grammar, whatever characters it has."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"


def _found(args: argparse.Namespace) -> SavedRun:
    """The run, with what is said about it going to stderr."""
    from mlx_ft import runtime, saved

    run = saved.find_run(args.run)
    runtime.prepare(run.config.threads, Path(run.config.paths.cache_dir).expanduser())
    from mlx_ft.console import configure_logging  # imports MLX

    configure_logging("info")
    return run


def _generate(args: argparse.Namespace) -> int:
    from mlx_ft import api

    question = sys.stdin.read().strip() if args.question == "-" else args.question
    for text in api.generate(
        question,
        _found(args),
        base=args.base,
        system=args.system,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    ):
        print(text, end="", flush=True)
    print()
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from mlx_ft import api

    result = api.evaluate(_found(args), base=args.base)
    if args.json:
        print(json.dumps(asdict(result), ensure_ascii=False))
        return 0
    for name, value, form in (
        ("validation loss", result.loss, "{:.4f}"),
        ("perplexity", result.perplexity, "{:.3f}"),
        ("task accuracy", result.accuracy, "{:.1%}"),
    ):
        print(f"{name:<16} {'-' if value is None else form.format(value)}")
    if result.answers:
        right = sum(answer.correct for answer in result.answers)
        print(f"{'right answers':<16} {right} of {len(result.answers)}")
    return 0


def _models(args: argparse.Namespace) -> int:
    from mlx_ft import cli_models, runtime

    return cli_models.run(args.action, getattr(args, "name", ""), runtime.default_cache_dir())


def _doctor(_: argparse.Namespace) -> int:
    from mlx_ft import doctor, runtime

    return doctor.main(runtime.default_cache_dir())


def _ui(args: argparse.Namespace) -> int:
    from mlx_ft.config import compose
    from mlx_ft.tracking import ui_command, ui_environment, ui_page
    from mlx_ft.tracking.uri import database_file, tracking_uri

    command = compose.CommandLine(tuple(args.overrides))
    compose.check(command)
    config = compose.resolve(compose.compose(compose.open_hydra(command), command))
    line = ui_command(config, args.host, args.port)
    _check_database(database_file(tracking_uri(config)))
    print(f"MLflow: {ui_page(config, args.host, args.port)} (Ctrl-C ends it)", flush=True)
    os.execvpe(line[0], line, ui_environment())  # noqa: S606  (our own command, no shell)


def _check_database(path: Path | None) -> None:
    """Raise UserError for a file that MLflow's server could not open as its database."""
    if path is None:
        return
    try:
        with path.open("rb") as file:
            head = file.read(len(SQLITE_HEADER))
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    if head not in (b"", SQLITE_HEADER):
        raise UserError(
            f"{path} is not an SQLite database. Name MLflow's with paths.tracking_dir=FOLDER or "
            "tracking.uri=sqlite:///FILE"
        )


if __name__ == "__main__":
    sys.exit(main())
