"""How a conversation looks: answers as they grow, one below or beside the other."""

from __future__ import annotations

import re

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from mlx_ft.chat.exchange import Answer, Exchange

BESIDE = 100  # columns of a terminal from which on two answers stand beside one another
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


class Screen:
    """Answers go to `out`, what is said about them to `notes`; a file gets the same, plainly."""

    def __init__(self, out: Console, notes: Console) -> None:
        self.out = out
        self.notes = notes

    def note(self, text: str) -> None:
        """Something that is no answer."""
        style = "dim" if self.notes.is_terminal else None
        self.notes.print(plain(text), style=style, markup=False, highlight=False, soft_wrap=True)

    def say(self, text: str, end: str = "\n") -> None:
        """A part of the conversation, as it is."""
        file = self.out.file  # rich would look at white space
        file.write(plain(text) + end)
        file.flush()

    def show(self, exchange: Exchange) -> None:
        """The answers, until all have ended; when interrupted, what is shown of them stays."""
        wide = self.out.is_terminal and self.out.width >= BESIDE
        if len(exchange.answers) > 1 and wide:
            self._beside(exchange)
        else:
            self._below(exchange)

    def _below(self, exchange: Exchange) -> None:
        """One after the other; the later ones grow meanwhile."""
        several = len(exchange.answers) > 1
        for answer in exchange.answers:
            if several:
                self.say(f"[{answer.name}]")
            shown = 0
            try:
                while True:
                    self.say(answer.text[shown:], end="")
                    shown = len(answer.text)
                    if answer.done:
                        break
                    exchange.step()
            finally:
                self.say("")

    def _beside(self, exchange: Exchange) -> None:
        growing = Live(
            console=self.out, transient=True, refresh_per_second=8, vertical_overflow="ellipsis"
        )
        try:
            with growing:
                while not exchange.done:
                    exchange.step()
                    growing.update(_columns(exchange.answers))
        finally:
            self.out.print(_columns(exchange.answers))


def _columns(answers: list[Answer]) -> Table:
    table = Table(box=None, pad_edge=False, expand=True, header_style="bold")
    for answer in answers:
        table.add_column(Text(plain(answer.name)), ratio=1, overflow="fold")
    table.add_row(*(Text(plain(answer.text.strip())) for answer in answers))
    return table


def plain(text: str) -> str:
    """The text without what could move the cursor or colour the terminal."""
    return _CONTROL.sub("", text)
