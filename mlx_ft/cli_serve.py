"""`mlx-ft serve`: answers, adapters and training jobs over HTTP."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft import cli_help, runtime
from mlx_ft.config import quoted
from mlx_ft.errors import UserError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

MODEL = "smollm2_135m"
KEY, WEBHOOK = "MLX_FT_API_KEY", "MLX_FT_WEBHOOK"
GIB = 1024**3


def add_commands(commands: Commands) -> None:
    """Add `serve`."""
    text = "answer, train and switch adapters over HTTP, as OpenAI's clients know it"
    serve = cli_help.add(commands, "serve", text, cli_help.SERVE)
    add = serve.add_argument
    add("--model", default=MODEL, metavar="NAME",
        help="a recipe of conf/model, a folder or a .gguf file; default: %(default)s")  # fmt: skip
    add("--adapter", action="append", default=[], metavar="NAME=RUN",
        help="a run or an adapter's folder, to be asked as NAME; may be repeated")  # fmt: skip
    add("--host", default="127.0.0.1", help="any other than this machine's own needs a key")
    add("--port", type=_port, default=8080, help="0 takes a free one; default: %(default)s")
    add("--home", type=Path, metavar="FOLDER",
        help="data, adapters and jobs; default: serve in outputs")  # fmt: skip
    add("--api-key-file", type=Path, metavar="FILE", help=f"one key a line; or the variable {KEY}")
    add("--allow-host", action="append", default=[], metavar="NAME",
        help="another name that clients call this server by; may be repeated")  # fmt: skip
    add("--queue", type=_count, default=32, metavar="N",
        help="requests that wait; more get 429; default: %(default)s")  # fmt: skip
    add("--rows", type=_count, default=16, metavar="N",
        help="answers computed together; default: %(default)s")  # fmt: skip
    add("--context", type=_count, metavar="N", help="tokens of prompt and answer at most; default: "
        "as the model has it")  # fmt: skip
    add("--max-tokens", type=_count, default=1024, metavar="N",
        help="of a chat's answer, unless a request says; default: %(default)s")  # fmt: skip
    add("--memory-gb", type=_size, metavar="GB",
        help="for answering and training together; default: what the machine has")  # fmt: skip
    add("--drain", type=_count, default=60, metavar="SECONDS",
        help="for answers to end in when the server is stopped; default: %(default)s")  # fmt: skip
    add("--no-tracking", action="store_true", help="jobs are no MLflow runs")
    add("--webhook", metavar="URL", default=os.environ.get(WEBHOOK),
        help=f"told when a job ends; or the variable {WEBHOOK}")  # fmt: skip
    add("--allow-lora-routes", action="store_true",
        help="let clients load adapters from folders of this machine, as vLLM does")  # fmt: skip
    serve.set_defaults(command=_serve)


def _serve(args: argparse.Namespace) -> int:
    cache_dir = runtime.default_cache_dir()
    runtime.prepare(cache_dir=cache_dir)
    from mlx_ft.console import configure_logging  # imports MLX, as what follows does
    from mlx_ft.engine.engine import Limits
    from mlx_ft.serve import run
    from mlx_ft.serve.security import Rules
    from mlx_ft.serve.state import Settings

    configure_logging("info")
    found = run.keys(args.api_key_file, os.environ.get(KEY))
    rules = Rules(args.host, found, tuple(args.allow_host))
    name, named = _model(args.model)
    home = args.home or runtime.default_output_dir() / "serve"
    settings = Settings(
        home.expanduser().absolute(), name, cache_dir.absolute(), _tracking(args.no_tracking),
        named, Limits(waiting=args.queue, rows=args.rows), args.context, args.max_tokens,
        args.memory_gb,
        args.allow_lora_routes, args.webhook,
    )  # fmt: skip
    listen = run.Listen(args.host, args.port, args.drain, _adapters(args.adapter))
    return run.run(settings, rules, listen)


def _model(given: str) -> tuple[str, dict[str, str]]:
    """(name, what it names beside the recipes) of `--model`."""
    from mlx_ft.config import conf_dir
    from mlx_ft.models.catalog import recipes

    known = recipes(conf_dir())
    if given in known:
        return given, {}
    if found := next((name for name, path in known.items() if path == given), None):
        return found, {}
    path = Path(given).expanduser()
    if not path.exists():
        raise UserError(
            f"--model {given}: neither a recipe ({', '.join(known)}) nor a folder or .gguf file"
        )
    place = path.resolve()
    own = place.name if place.is_dir() else place.stem
    name = "".join(c if c.isalnum() or c in "._-" else "-" for c in own)
    return name, {name: str(path.absolute())}


def _tracking(without: bool) -> tuple[str, ...]:
    """What every job's command line says about tracking."""
    if without:
        return ("tracking=none",)
    folder = Path(os.environ.get("MLX_FT_MLRUNS", "mlruns")).absolute()
    return (f"paths.tracking_dir={quoted(str(folder))}",)


def _adapters(given: list[str]) -> dict[str, str]:
    pairs = [text.partition("=") for text in given]
    if wrong := [text for text, (name, _, run) in zip(given, pairs, strict=True)
                 if not (name and run)]:  # fmt: skip
        raise UserError(f"--adapter {wrong[0]}: expected NAME=RUN")
    names = [name for name, _, _ in pairs]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"--adapter: {', '.join(sorted(twice))} is given more than once")
    return {name: run for name, _, run in pairs}


def _port(text: str) -> int:
    if not text.isdecimal() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected 0 to 65535")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected 1 or more")
    return int(text)


def _size(text: str) -> int:
    """Bytes of a number of GB."""
    try:
        size = float(text)
    except ValueError:
        size = 0.0
    if not 0 < size < 1e6:
        raise argparse.ArgumentTypeError(f"found {text!r}; expected a number above 0")
    return round(size * GIB)
