"""`mlx-ft chat`: a conversation with a run's model."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_ft import cli_help, cli_run
from mlx_ft.errors import ConfigError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

HISTORY = "chat_history"  # in the cache


def add_commands(commands: Commands) -> None:
    """Add `chat`."""
    text = "a conversation with a run's model, beside the base if you like"
    parser = cli_help.add(commands, "chat", text, cli_help.CHAT)
    cli_run.add_run(parser)
    cli_run.add_sampling(parser)
    parser.set_defaults(command=_chat)


def _chat(args: argparse.Namespace) -> int:
    from mlx_ft.engine.request import Sampling

    sampling = Sampling(args.max_tokens, args.temperature, args.top_p, seed=args.seed)
    if faults := sampling.faults():
        raise ConfigError("No answer can be generated:", faults)
    run = cli_run.found(args)
    from rich.console import Console

    from mlx_ft.chat.loop import Chat
    from mlx_ft.chat.reader import Reader
    from mlx_ft.chat.screen import Screen
    from mlx_ft.chat.voices import Voices

    voices = Voices(run, args.model)
    reader = Reader(history=Path(run.config.paths.cache_dir).expanduser() / HISTORY)
    try:
        has_adapter = run.own_adapter is not None or not run.is_alone
        own = voices.adapter(None) if has_adapter else None
        notes = Console(file=sys.stdout if reader.interactive else sys.stderr, soft_wrap=True)
        chat = Chat(voices, reader, Screen(Console(), notes), sampling, own or voices.base)
        chat.system = args.system
        if args.base:
            chat.voice = voices.base
        if reader.interactive:
            chat.screen.note(f"{chat.voice.name} answers. /help lists the commands.")
        chat.run()
    finally:
        reader.close()
        voices.close()
    return 1 if chat.failed and not reader.interactive else 0
