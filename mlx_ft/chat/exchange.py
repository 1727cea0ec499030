"""One question and its answers, which grow at once, one from each voice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from queue import SimpleQueue

from mlx_ft.chat.voices import Voice
from mlx_ft.data.chat import generation_prompt
from mlx_ft.data.rows import Message
from mlx_ft.engine.engine import Engine
from mlx_ft.engine.request import End, Event, Failed, Request, Sampling
from mlx_ft.errors import DataError, UserError


@dataclass(frozen=True)
class Prompt:
    """What a voice is asked. sampling: with no more tokens than the window has room for."""

    voice: Voice
    tokens: tuple[int, ...]
    sampling: Sampling
    window: int | None = None

    @classmethod
    def of(
        cls, voice: Voice, turns: Sequence[Message], sampling: Sampling, window: int | None
    ) -> Prompt:
        """Raises UserError when the turns leave no room for an answer, or cannot be rendered."""
        try:
            tokens = generation_prompt(turns, voice.tokenizer)
        except DataError as error:
            raise UserError(f"{voice.name}: its template does not take it: {error}") from error
        room = sampling.max_tokens if window is None else window - len(tokens)
        if room < 1:
            raise UserError(
                f"{voice.name}: the conversation has {len(tokens):,} tokens, the model was made "
                f"for {window:,}. Nothing is cut: /undo takes back turns, /new begins afresh"
            )
        stop = (*sampling.stop, *voice.stop)
        fitting = replace(sampling, max_tokens=min(room, sampling.max_tokens), stop=stop)
        return cls(voice, tuple(tokens), fitting, window)


@dataclass(eq=False)
class Answer:
    """One that grows. end: what the engine says at last; None before, and after a failure."""

    prompt: Prompt
    request: Request
    text: str = ""
    end: End | None = None
    error: Exception | None = None

    @property
    def name(self) -> str:
        """Of its voice."""
        return self.prompt.voice.name

    @property
    def done(self) -> bool:
        """Whether it has ended."""
        return self.end is not None or self.error is not None

    def take(self, event: Event) -> None:
        """What the engine says."""
        if isinstance(event, End):
            self.end = event
        elif isinstance(event, Failed):
            self.error = event.error
        else:
            self.text += event.text

    def remark(self, asked_for: int) -> str | None:
        """What a person has to know of its end. asked_for: `--max-tokens`."""
        limit, window = self.prompt.sampling.max_tokens, self.prompt.window
        if self.error is not None:
            return f"{self.name}: no answer: {type(self.error).__name__}: {self.error}"
        if self.end is None or self.end.reason != "length":
            return None
        if limit < asked_for:
            return (
                f"{self.name}: the answer ends here, as the model's window of {window:,} tokens is "
                "full. /undo takes back turns, /new begins afresh"
            )
        return f"{self.name}: cut at --max-tokens {limit}"


class Exchange:
    """Answers that were asked for and come through one queue, event by event."""

    def __init__(self, engine: Engine, prompts: Sequence[Prompt]) -> None:
        self._events: SimpleQueue[tuple[Answer, Event]] = SimpleQueue()
        self.answers: list[Answer] = []
        for prompt in prompts:
            self.answers.append(self._ask(engine, prompt))

    def _ask(self, engine: Engine, prompt: Prompt) -> Answer:
        events = self._events
        request = Request(prompt.tokens, lambda _: None, prompt.voice.key, prompt.sampling)
        answer = Answer(prompt, request)
        request.tell = partial(_tell, events, answer)
        engine.submit(request)
        return answer

    @property
    def done(self) -> bool:
        """Whether all have ended."""
        return all(answer.done for answer in self.answers)

    def step(self) -> None:
        """Wait for the next event, and let its answer take it. Only while not `done`."""
        answer, event = self._events.get()
        answer.take(event)

    def stop(self) -> None:
        """End what still grows, and wait until it has ended."""
        for answer in self.answers:
            answer.request.cancelled = True
        while not self.done:
            self.step()


def _tell(events: SimpleQueue[tuple[Answer, Event]], answer: Answer, event: Event) -> None:
    events.put((answer, event))
