"""What is asked of the engine, and what it says on the way."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

from mlx_ft.errors import AdapterError, UserError


class Busy(UserError):
    """There is no room in the queue. Ask again later."""


class Closed(Busy):
    """The engine takes nothing more."""


class Unknown(UserError):
    """There is no adapter of that name."""


class Replaced(AdapterError):
    """The adapter that was asked for is gone: its folder has another one. Ask again."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. temperature: 0 is greedy. top_k: 0 for all words.

    top_p, min_p: nucleus (arXiv:1904.09751), and least share of the likeliest word's probability
    (arXiv:2407.01082). presence, frequency: subtracted from the logits of words that the answer has
    already, once or each time. seed: what is drawn follows from it alone, whoever else is answered
    at the same time. stop: texts that end the answer and are not part of it. alternatives: how many
    of the likeliest words are told with each token; None for no log probabilities at all.
    """

    max_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    presence: float = 0.0
    frequency: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    alternatives: int | None = None

    def faults(self) -> list[str]:
        """What cannot be used, each with its name."""
        found = (
            ("max_tokens", self.max_tokens, self.max_tokens >= 1, "at least 1"),
            (
                "temperature",
                self.temperature,
                0 <= self.temperature < math.inf,
                "a number, at least 0",
            ),
            ("top_p", self.top_p, 0 < self.top_p <= 1, "above 0, at most 1"),
            ("top_k", self.top_k, self.top_k >= 0, "0 or more"),
            ("min_p", self.min_p, 0 <= self.min_p <= 1, "0 to 1"),
            ("presence_penalty", self.presence, -2 <= self.presence <= 2, "-2 to 2"),
            ("frequency_penalty", self.frequency, -2 <= self.frequency <= 2, "-2 to 2"),
            (
                "seed",
                self.seed,
                self.seed is None or 0 <= self.seed < 2**64,
                "at least 0, below 2**64",
            ),
            ("stop", self.stop, all(self.stop), "texts that are not empty"),
        )
        return [f"{name}: found {value!r}; expected {text}" for name, value, good, text in found
                if not good]  # fmt: skip


@dataclass(frozen=True)
class Piece:
    """More of an answer. text: what is sure to be in it by now, perhaps nothing yet.

    token, logprob: of the word that was chosen; None for text without one, at the end.
    alternatives: (token, log probability) of the likeliest words.
    """

    text: str
    token: int | None = None
    logprob: float | None = None
    alternatives: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class End:
    """Of an answer. reason: `stop`, `length` or `cancelled`.

    cached: tokens of the prompt that were known before.
    """

    reason: str
    prompt_tokens: int
    completion_tokens: int
    cached: int


@dataclass(frozen=True)
class Failed:
    """There is no answer, or no more of it."""

    error: Exception


Event = Piece | End | Failed


@dataclass(eq=False)
class Request:
    """A prompt (token ids) for the base or an adapter. tell: called on the engine's own thread, in
    order, the last time with End or Failed; it must not wait. ends: tokens that end the answer,
    beside those of the tokenizer. continues: the answer goes on with the prompt's text, of which
    a space may be the next character.

    cancelled: set by whoever does not want it any more.
    """

    prompt: tuple[int, ...]
    tell: Callable[[Event], None]
    adapter: str | None = None
    sampling: Sampling = field(default_factory=Sampling)
    cancelled: bool = False
    ends: tuple[int, ...] = ()
    continues: bool = False

    def say(self, event: Event) -> None:
        """Tell it; whoever cannot listen any more is not answered any further."""
        try:
            self.tell(event)
        except Exception:
            self.cancelled = True
