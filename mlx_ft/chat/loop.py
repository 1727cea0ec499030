"""The conversation: questions are asked, lines that begin with / are commands."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from mlx_ft.chat.exchange import Exchange, Prompt
from mlx_ft.chat.reader import Reader
from mlx_ft.chat.screen import Screen
from mlx_ft.chat.voices import BASE, Voice, Voices
from mlx_ft.data.rows import Message
from mlx_ft.data.write import line_of
from mlx_ft.engine.request import Sampling
from mlx_ft.errors import MlxFtError, OutputError, UserError

HELP: Mapping[str, tuple[str, str]] = {
    "adapter": ("RUN|base", "who answers from now on: another run's or adapter, or the base"),
    "compare": ("", "answers of the base and of the adapter side by side; again: no longer"),
    "system": ("TEXT", "set the system message; `-`: none; without a text: show it"),
    "undo": ("", "take back the last question and its answer"),
    "new": ("", "forget the conversation, not the system message"),
    "save": ("FILE", "add the conversation to a .jsonl file, as a row to train on"),
    "help": ("", "this list"),
    "quit": ("", "end; so does Ctrl-D"),
}
COMMAND = re.compile(r"/(\w+)(?:\s+(.*))?", re.DOTALL)
TYPING = (
    "Ctrl-C stops an answer. A line that ends in \\ goes on in the next one; longer texts stand "
    'between two lines of """. A question that begins with / and a word: put a blank before it.'
)


class Chat:
    """A conversation with the voices of one base model.

    voice: who answers. system: as given; None: the one that the voice was trained with. failed:
    whether any question or command of a file could not be done.
    """

    def __init__(
        self, voices: Voices, reader: Reader, screen: Screen, sampling: Sampling, voice: Voice
    ) -> None:
        self.voices = voices
        self.reader = reader
        self.screen = screen
        self.sampling = sampling
        self.voice = voice
        self.system: str | None = None
        self.turns: list[Message] = []
        self.failed = False
        self._partner = voice if voice.key is not None else None  # of the base, in a comparison
        self._comparing = False
        self._commands: dict[str, Callable[[str], object]] = {
            "adapter": self._adapter,
            "compare": self._compare,
            "system": self._system,
            "undo": self._undo,
            "new": self._new,
            "save": self._save,
            "help": self._help,
        }

    def run(self) -> None:
        """Until the end of what is read, or /quit."""
        while True:
            try:
                given = self.reader.read()
            except KeyboardInterrupt:
                if not self.reader.interactive:
                    raise
                self.screen.note("\nCtrl-D or /quit ends the chat.")
                continue
            if given is None or given == "/quit":
                return
            if not given:
                continue
            if not self.reader.interactive:
                self.screen.say(f"> {given}")
            try:
                self._take(given)
            except MlxFtError as error:
                self.failed = True
                self.screen.note(str(error))
            if not self.reader.interactive:
                self.screen.say("")

    def _take(self, given: str) -> None:
        command = COMMAND.fullmatch(given)
        if command is None:
            self.ask(given)
            return
        name, rest = command[1], (command[2] or "").strip()
        if name not in self._commands:
            near = difflib.get_close_matches(name, HELP, n=1)
            meant = f" Did you mean /{near[0]}?" if near else ""
            raise UserError(f"/{name}: no such command.{meant} /help lists them")
        usage = HELP[name][0]
        if rest and not usage:
            raise UserError(f"/{name} takes nothing after it; found {rest!r}")
        if not rest and usage and name != "system":
            raise UserError(f"/{name} needs {usage}")
        self._commands[name](rest)

    def messages(self) -> list[Message]:
        """The conversation so far, with its system message."""
        system = self.system if self.system is not None else self.voice.system
        return [*([Message("system", system)] if system else []), *self.turns]

    def ask(self, question: str) -> Exchange:
        """Answer a question; it and its answer become part of the conversation.

        In a comparison the adapter's answer does. One that was stopped counts as far as it came.
        Raises UserError when there is no room for it.
        """
        turns = [*self.messages(), Message("user", question)]
        answering = [self.voice]
        if self._comparing and self._partner is not None:
            answering = [self.voices.base, self._partner]
        window = self.voices.window
        prompts = [Prompt.of(voice, turns, self.sampling, window) for voice in answering]
        exchange = Exchange(self.voices.engine, prompts)
        try:
            self.screen.show(exchange)
        except KeyboardInterrupt:
            exchange.stop()
            if not self.reader.interactive:
                raise
            self.screen.note("(stopped)")
        except BaseException:
            exchange.stop()
            raise
        for answer in exchange.answers:
            if remark := answer.remark(self.sampling.max_tokens):
                self.screen.note(f"({remark})")
            self.failed |= answer.error is not None
        kept = exchange.answers[-1]
        if kept.text.strip() and kept.error is None:
            self.turns += [Message("user", question), Message("assistant", kept.text.strip())]
        elif kept.error is None:
            self.screen.note(f"({kept.name}: no text came; the question is not kept)")
        return exchange

    def _adapter(self, reference: str) -> None:
        if reference == BASE:
            self.voice = self.voices.base
        else:
            self.voice = self._partner = self.voices.adapter(reference)
        self.screen.note(f"({self.voice.name} answers)")

    def _compare(self, _: str) -> None:
        if self._partner is None:
            raise UserError("there is only the base so far: name an adapter first, /adapter RUN")
        self._comparing = not self._comparing
        both = f"{BASE} and {self._partner.name} answer side by side; {self._partner.name}'s count"
        self.screen.note(f"({both if self._comparing else f'{self.voice.name} answers alone'})")

    def _system(self, text: str) -> None:
        if text:
            self.system = "" if text == "-" else text
        shown = self.system if self.system is not None else self.voice.system
        self.screen.note(f"(system message: {shown or 'none'})")

    def _undo(self, _: str) -> None:
        if not self.turns:
            raise UserError("there is nothing to take back")
        question = self.turns[-2].content
        del self.turns[-2:]
        self.screen.note(f"(taken back: {question})")

    def _new(self, _: str) -> None:
        self.turns.clear()
        self.screen.note("(a new conversation)")

    def _save(self, name: str) -> None:
        if not self.turns:
            raise UserError("there is nothing to save yet")
        path = Path(name)
        if path.suffix != ".jsonl":
            raise UserError(f"/save: found {name!r}; expected a name that ends in .jsonl")
        messages = [{"role": turn.role, "content": turn.content} for turn in self.messages()]
        try:
            path = path.expanduser()
            with path.open("a+b") as file:
                if file.tell() and _last_byte(path) != b"\n":
                    file.write(b"\n")
                file.write(line_of({"messages": messages}).encode() + b"\n")
        except (OSError, RuntimeError) as error:
            raise OutputError(f"/save: {name} cannot be written: {error}") from error
        self.screen.note(f"({len(self.turns) // 2} answers added to {path} as a row)")

    def _help(self, _: str) -> None:
        width = max(len(f"/{name} {usage}") for name, (usage, _) in HELP.items())
        for name, (usage, about) in HELP.items():
            self.screen.note(f"{f'/{name} {usage}':<{width}}  {about}")
        self.screen.note(TYPING)


def _last_byte(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(-1, 2)
        return file.read(1)
