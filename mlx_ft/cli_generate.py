"""`mlx-ft generate`: one answer of a run's model."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from mlx_ft import cli_help, cli_run

if TYPE_CHECKING:
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
    for text in api.generate(
        question,
        cli_run.found(args),
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
