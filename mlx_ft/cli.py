"""The `mlx-ft` command: train, and use what was trained."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft import (
    __version__,
    cli_chat,
    cli_data,
    cli_estimate,
    cli_evaluate,
    cli_export,
    cli_generate,
    cli_help,
    cli_report,
    cli_runs,
    cli_serve,
    cli_tracking,
)
from mlx_ft.config import quoted
from mlx_ft.config.screen import fit
from mlx_ft.errors import MlxFtError, UserError
from mlx_ft.interrupt import die_quietly
from mlx_ft.runtime import default_output_dir

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one `mlx-ft` command line; returns the exit code."""
    arguments = [*(sys.argv[1:] if argv is None else argv)]
    if argv is None and arguments[:1] in (["train"], ["quick"], ["resume"]):
        die_quietly()  # as train.py does; a process that only calls this keeps its handlers
    if arguments[:1] == ["train"]:  # everything after it is Hydra's, options too
        from mlx_ft.main import main as train

        return train(arguments[1:])
    try:
        parser = _parser(arguments)
        _check_names(parser, arguments)
        args = _parse(parser, arguments)
        command: Callable[[argparse.Namespace], int] = args.command
        return command(args)
    except MlxFtError as error:
        print(fit(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("Interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `mlx-ft ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        traceback.print_exception(error)
        failure = f"mlx-ft {arguments[0]} failed. {type(error).__name__}: {error}"
        print(fit(failure), file=sys.stderr)
        return 1


def _parse(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> argparse.Namespace:
    """As `parse_args`, but settings may stand on both sides of an option."""
    args, rest = parser.parse_known_args(arguments)
    wrong = [word for word in rest if word.startswith("-") or "=" not in word]
    if wrong or (rest and "overrides" not in args):
        parser.error(f"unrecognized arguments: {' '.join(wrong or rest)}")
    if rest:
        args.overrides = [*args.overrides, *rest]
    return args


def _parser(given: Sequence[str] = ()) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="mlx-ft",
        description=cli_help.DESCRIPTION,
        epilog=cli_help.EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"mlx-ft {__version__}")
    parser.set_defaults(command=_helper(parser))
    commands = parser.add_subparsers(metavar="COMMAND", title="commands")
    commands.add_parser("train", help="train an adapter; key=value arguments, see train --help")
    _add_quick(commands)
    _add_resume(commands)
    cli_generate.add_commands(commands)
    cli_chat.add_commands(commands)
    cli_evaluate.add_commands(commands)
    cli_data.add_commands(commands, given)
    cli_estimate.add_commands(commands)
    _add_models(commands)
    doctor = cli_help.add(
        commands, "doctor", "what this machine can do: device, BLAS, memory, disk"
    )
    doctor.set_defaults(command=_doctor)
    _add_ui(commands)
    for part in (cli_tracking, cli_runs, cli_report, cli_export, cli_serve):
        part.add_commands(commands)
    return parser


def _helper(parser: argparse.ArgumentParser) -> Callable[[argparse.Namespace], int]:
    """What is done when a command or action is missing: its help, and exit code 2."""

    def show(_: argparse.Namespace) -> int:
        parser.print_help()
        return 2

    return show


def _check_names(parser: argparse.ArgumentParser, arguments: Sequence[str]) -> None:
    """Raise UserError for a command, or an action of one, that does not exist."""
    for name in arguments:
        known = _names(parser)
        if not known or name.startswith("-"):
            return
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            meant = f" Did you mean {parser.prog} {close[0]}?" if close else ""
            names = ", ".join(known)
            raise UserError(f"{parser.prog} {name}: no such command.{meant} There is: {names}")
        parser = known[name]


def _names(parser: argparse.ArgumentParser) -> dict[str, argparse.ArgumentParser]:
    """The commands of a parser, or the actions of a command."""
    kinds = (action.choices for action in parser._actions
             if isinstance(action, argparse._SubParsersAction))  # fmt: skip
    return next(kinds, {})


def _add_ui(commands: Commands) -> None:
    ui = cli_help.add(commands, "ui", "show all runs in MLflow", cli_help.UI)
    ui.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on (default: %(default)s, for this machine alone)",
    )  # fmt: skip
    ui.add_argument("--port", type=_port, default=5000, help="(default: %(default)s)")
    ui.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="e.g. tracking.uri=URI")
    ui.set_defaults(command=_ui)


def _port(text: str) -> int:
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected 1 to 65535")
    return int(text)


def _add_quick(commands: Commands) -> None:
    text = "a first short run on your own model and data"
    quick = cli_help.add(commands, "quick", text, cli_help.QUICK)
    quick.add_argument("model", help="hub name, folder, .gguf file, or `embedded`")
    quick.add_argument("data", nargs="?", help="JSONL file or folder; default: the built-in rows")
    quick.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE")
    quick.set_defaults(command=_quick)


def _add_resume(commands: Commands) -> None:
    parser = cli_help.add(commands, "resume", "go on with a run that was stopped", cli_help.RESUME)
    parser.add_argument(
        "run", nargs="?", metavar="RUN",
        help="run folder, a checkpoint in one, or a run id; default: the newest in outputs",
    )  # fmt: skip
    parser.add_argument("overrides", nargs="*", default=[], metavar="KEY=VALUE")
    parser.set_defaults(command=_resume)


def _add_models(commands: Commands) -> None:
    text = f"what is on disk, and what can be had: {' | '.join(cli_help.MODEL_ACTIONS)}"
    parser = cli_help.add(commands, "models", text, cli_help.MODELS)
    parser.set_defaults(command=_helper(parser))
    actions = parser.add_subparsers(metavar="ACTION", title="actions")
    for action, text in cli_help.MODEL_ACTIONS.items():
        sub = cli_help.add(actions, action, text)
        if action != "list":
            sub.add_argument("name", help="a recipe's name, hub name, folder or name in the list")
        sub.set_defaults(command=_models, action=action)


def _quick(args: argparse.Namespace) -> int:
    from mlx_ft.main import main as train

    overrides = ["experiment=quick", f"model.path={quoted(args.model)}"]
    given = [args.data, *args.overrides] if args.data else list(args.overrides)
    if args.data and "=" not in args.data:
        overrides += ["data=custom", f"data.path={quoted(args.data)}"]
        given = args.overrides
    return train([*overrides, *given])


def _resume(args: argparse.Namespace) -> int:
    from mlx_ft import target
    from mlx_ft.main import main as train

    overrides = list(args.overrides)
    if args.run and "=" in args.run and not Path(args.run).exists():
        overrides.insert(0, args.run)
        args.run = None
    outputs = default_output_dir()
    found = target.named(args.run, outputs) if args.run else target.newest(outputs)
    arguments = target.command_line(found)
    if said := target.go_where_it_began(found):
        print(said, file=sys.stderr)
    return train([*arguments, *overrides])


def _models(args: argparse.Namespace) -> int:
    from mlx_ft import cli_models, runtime

    return cli_models.run(args.action, getattr(args, "name", ""), runtime.default_cache_dir())


def _doctor(_: argparse.Namespace) -> int:
    from mlx_ft import doctor, runtime

    return doctor.main(runtime.default_cache_dir())


def _ui(args: argparse.Namespace) -> int:
    from mlx_ft import cli_ui

    return cli_ui.run(args)


if __name__ == "__main__":
    sys.exit(main())
