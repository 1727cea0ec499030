"""The answers that grow together: a row each, of one batch, with a cache of what they have read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_ft.engine.request import End, Piece, Request
from mlx_ft.engine.sampling import Chooser
from mlx_ft.engine.slots import Slots
from mlx_ft.engine.text import Text


@dataclass(eq=False)
class Row:
    """One answer on its way. owner: the adapter as the engine calls it, None for the base.

    tokens: of the prompt and the answer so far; the last one of the answer is not read yet.
    """

    request: Request
    owner: str | None
    tokens: list[int]
    text: Text
    chooser: Chooser
    cached: int = 0
    reason: str | None = None

    @classmethod
    def of(cls, request: Request, owner: str | None, tokenizer: Any) -> Row:
        """A row that has read nothing yet."""
        text = Text(tokenizer, request.sampling.stop, continues=request.continues)
        return cls(request, owner, [*request.prompt], text, Chooser(request.sampling))

    @property
    def answered(self) -> int:
        """Tokens of the answer."""
        return len(self.tokens) - len(self.request.prompt)

    def take(self, likeliest: int, logits: np.ndarray | None, ends: Sequence[int]) -> None:
        """The next token, told to whoever asked; sets the reason when it was the last."""
        logprob: float | None = None
        best: tuple[tuple[int, float], ...] = ()
        if logits is None:
            token = likeliest
            self.chooser.take(token)
        else:
            token, logprob, best = self.chooser.choose(logits)
        self.tokens.append(token)
        if token in ends or token in self.request.ends:
            self.reason = "stop"
            return
        shown = self.text.add(token)
        asked = self.request.sampling.alternatives is not None
        self.request.say(Piece(shown, token, logprob if asked else None, best))
        if self.text.stopped:
            self.reason = "stop"
        elif self.answered == self.request.sampling.max_tokens:
            self.reason = "length"

    def end(self) -> None:
        """Say what was held back, and that this was all."""
        if left := self.text.end():
            self.request.say(Piece(left))
        reason = "stop" if self.text.stopped else self.reason or "cancelled"  # it may be in there
        prompt = len(self.request.prompt)
        self.request.say(End(reason, prompt, self.answered, self.cached))


class Filling:
    """A prompt that is being read, some tokens at a time."""

    def __init__(self, row: Row, model: nn.Module, known: list[Any] | None, cached: int) -> None:
        self.row = row
        row.cached = cached
        self.cache = make_prompt_cache(model) if known is None else known
        self._model = model
        self._read = cached

    def read(self, slots: Slots, limit: int) -> mx.array | None:
        """Read on; the logits (V,) of the next token once the whole prompt is read."""
        prompt = self.row.request.prompt
        part = prompt[self._read : self._read + limit]
        slots.take([self.row.owner])
        logits = self._model(mx.array(part)[None], cache=self.cache)
        self._read += len(part)
        if self._read < len(prompt):
            mx.eval([one.state for one in self.cache])
            return None
        last: mx.array = logits[0, -1]
        mx.eval(last, [one.state for one in self.cache])
        return last


class Batch:
    """Rows that take their next token in one pass."""

    def __init__(self, model: nn.Module, slots: Slots) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._slots = slots
        self._cache: list[Any] = []

    def join(self, row: Row, cache: list[Any]) -> None:
        """Take in a row whose prompt was read into `cache`."""
        merged = [one.merge([one]) for one in cache]
        if self.rows:
            for ours, theirs in zip(self._cache, merged, strict=True):
                ours.extend(theirs)
        else:
            self._cache = merged
        self.rows.append(row)

    def logits(self) -> mx.array:
        """Of every row's next token: (rows, V)."""
        tokens = mx.array([[row.tokens[-1]] for row in self.rows])
        self._slots.take([row.owner for row in self.rows])
        found: mx.array = self._model(tokens, cache=self._cache)[:, -1]
        return found

    def cache_of(self, row: Row) -> list[Any]:
        """What was read of a row, alone."""
        at = self.rows.index(row)
        return [one.extract(at) for one in self._cache]

    def leave(self, gone: Sequence[Row]) -> None:
        """Let rows go."""
        kept = [at for at, row in enumerate(self.rows) if row not in gone]
        if len(kept) == len(self.rows):
            return  # those that go were still reading
        self.rows = [self.rows[at] for at in kept]
        if not kept:
            self._cache = []
        for one in self._cache:
            one.filter(mx.array(kept))

    def clear(self) -> None:
        """Let all of them go."""
        self.rows, self._cache = [], []


def choose(rows: Sequence[Row], logits: mx.array, ends: Sequence[int]) -> None:
    """Each row's next token. logits: (rows, V)."""
    best = mx.argmax(logits, axis=-1)
    mx.eval(best)
    likeliest: list[int] = best.tolist()  # type: ignore[assignment]
    for at, row in enumerate(rows):
        own = np.array(logits[at].astype(mx.float32)) if row.chooser.needs_logits else None
        row.take(likeliest[at], own, ends)
