"""What a person types, or the questions of a file, one a line."""

from __future__ import annotations

import sys
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from mlx_ft.errors import UserError

PROMPT, MORE = "> ", ". "
BLOCK = '"""'
KEPT = 1000  # lines of earlier chats


class Reader:
    """Reads one question or command at a time.

    On a terminal a line that ends in a backslash goes on in the next one, and a text between two
    lines of three quotes is taken as it is; the lines of earlier chats come back with the arrow
    keys. From a file or pipe every line is one question.
    """

    def __init__(
        self,
        source: TextIO | None = None,
        history: Path | None = None,
        *,
        interactive: bool | None = None,
    ) -> None:
        """source: None is standard input. history: where the lines are kept; None: nowhere.

        interactive: whether a person types; None: where standard input and output are terminals.
        """
        self._source = source or sys.stdin
        if interactive is None:
            interactive = self._source.isatty() and sys.stdout.isatty()
        self.interactive = interactive
        self._history = history if self.interactive else None
        if self.interactive:
            self._remember()

    def read(self) -> str | None:
        """The next question or command, stripped; None at the end. Raises KeyboardInterrupt."""
        if not self.interactive:
            return self._line_of_file()
        try:
            line = input(PROMPT)
            if line.strip().startswith(BLOCK):
                return self._block(line.strip().removeprefix(BLOCK))
            lines = [line]
            while lines[-1].endswith("\\"):
                lines[-1] = lines[-1][:-1]
                lines.append(input(MORE))
        except EOFError:
            print()
            return None
        return "\n".join(lines).strip()

    def _block(self, line: str) -> str:
        lines = []
        while not line.rstrip().endswith(BLOCK):
            lines.append(line)
            line = input(MORE)
        return "\n".join([*lines, line.rstrip().removesuffix(BLOCK)]).strip()

    def _line_of_file(self) -> str | None:
        try:
            line = self._source.readline()
        except UnicodeDecodeError as error:
            raise UserError(f"standard input is not {error.encoding}: {error.reason}") from error
        return line.strip() if line else None

    def _remember(self) -> None:
        """Give `input` editing and the lines of earlier chats."""
        try:
            import readline
        except ImportError:  # a Python without it
            return
        if self._history is not None:
            with suppress(OSError):
                readline.read_history_file(self._history)
        readline.set_history_length(KEPT)

    def close(self) -> None:
        """Keep the lines for the next chat, for this user's eyes only."""
        if self._history is None:
            return
        with suppress(ImportError, OSError):
            import readline

            self._history.parent.mkdir(parents=True, exist_ok=True)
            self._history.touch(mode=0o600)
            readline.write_history_file(self._history)
