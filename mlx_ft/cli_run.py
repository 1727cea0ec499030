"""What the commands that use a model share: which run, which base, how words are drawn."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlx_ft.saved import SavedRun


def add_run(parser: argparse.ArgumentParser) -> None:
    """Add `--run`, `--model` and `--base`."""
    parser.add_argument(
        "--run", metavar="RUN",
        help="run folder, run id, models:/NAME/VERSION, or an adapter's folder; default: the "
        "newest run in outputs",
    )  # fmt: skip
    parser.add_argument(
        "--model", metavar="MODEL",
        help="the base model, where run or adapter do not say which: hub name, folder, .gguf file, "
        "recipe, or embedded",
    )  # fmt: skip
    parser.add_argument("--base", action="store_true", help="the base model, without the adapter")


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """Add the options of how an answer is drawn."""
    parser.add_argument("--system", help="system message; default: the one of the training rows")
    parser.add_argument(
        "--max-tokens", type=int, default=256, help="length of an answer (default: %(default)s)"
    )
    parser.add_argument("--temperature", type=float, default=0.0, help="0 is greedy (the default)")
    parser.add_argument(
        "--top-p", type=float, default=1.0,
        help="draw from the likeliest tokens that together have this probability (default: all)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, help="the same answer again, where it is drawn")


def found(args: argparse.Namespace) -> SavedRun:
    """The run, with what is said about it going to stderr."""
    from mlx_ft import runtime, saved

    if args.base and args.model and args.run is None:
        run = saved.base_alone(args.model)
    else:
        run = saved.find_run(args.run, model=args.model)
    runtime.prepare(run.config.threads, Path(run.config.paths.cache_dir).expanduser())
    from mlx_ft.console import configure_logging  # imports MLX

    configure_logging("info")
    return run
