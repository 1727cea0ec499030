"""`mlx-ft generate`: one answer of a run's model."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator
from typing import TYPE_CHECKING

from mlx_ft import cli_help, cli_run

if TYPE_CHECKING:
    from mlx_ft.generation import Cut

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_commands(commands: Commands) -> None:
    """Add `generate`."""
    text = "answer a question with a run's model"
    parser = cli_help.add(commands, "generate", text, cli_help.GENERATE)
    cli_run.add_run(parser)
    parser.add_argument("question", help="`-` reads it from standard input")
    cli_run.add_sampling(parser)
    parser.set_defaults(command=_generate)


def _generate(args: argparse.Namespace) -> int:
    from mlx_ft import api

    question = sys.stdin.read().strip() if args.question == "-" else args.question
    pieces = api.generate(
        question,
        cli_run.found(args),
        base=args.base,
        system=args.system,
        max_tokens=args.max_tokens,
        temperature=args.temperature,
        top_p=args.top_p,
        seed=args.seed,
    )
    cut = _show(pieces)
    if cut == "max_tokens":
        print(f"cut at --max-tokens {args.max_tokens}", file=sys.stderr)
    elif cut == "window":
        print("the answer ends here, as the model's window is full", file=sys.stderr)
    return 0


def _show(pieces: Generator[str, None, Cut | None]) -> Cut | None:
    """Print them, to a terminal without what could move its cursor; what cut the answer."""
    from mlx_ft.chat.screen import plain

    shown = plain if sys.stdout.isatty() else str
    while True:
        try:
            text = next(pieces)
        except StopIteration as end:
            print()
            cut: Cut | None = end.value
            return cut
        print(shown(text), end="", flush=True)
