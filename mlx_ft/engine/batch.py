"""The answers that grow together: a row each, of one batch, with a cache of what they have read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import make_prompt_cache

from mlx_ft.engine.request import End, Failed, Piece, Request
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

    def fail(self, error: Exception) -> None:
        """Say that there is no more of it."""
        self.reason = "failed"
        self.request.say(Failed(error))

    def end(self) -> None:
        """Say what was held back, and that this was all."""
        try:
            left = self.text.end()
        except Exception as error:
            self.fail(error)
            return
        if left:
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
    """Rows that take their next token in one pass.

    While the likeliest token is all that its rows want, the pass after the next one is begun before
    the next one's tokens are known here: the processor has work while they are told.
    """

    def __init__(self, model: nn.Module, slots: Slots) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._slots = slots
        self._cache: list[Any] = []  # of one row as its prompt was read: fewer operations
        self._ahead: mx.array | None = None  # (rows,): the next tokens, which are being computed

    def join(self, row: Row, cache: list[Any]) -> None:
        """Take in a row whose prompt was read into `cache`; the batch is settled."""
        assert self._ahead is None
        if len(self.rows) == 1:
            self._cache = [one.merge([one]) for one in self._cache]
        if self.rows:
            for ours, theirs in zip(self._cache, cache, strict=True):
                ours.extend(theirs.merge([theirs]))
        else:
            self._cache = cache
        self.rows.append(row)

    def step(self, ends: Sequence[int]) -> list[Row]:
        """Give every row its next token; those that it was the last one of."""
        if any(row.chooser.needs_logits for row in self.rows):
            choose(self.rows, self._logits(self._last()), ends)
            return self._done()
        best = self._ahead
        if best is None:
            best = mx.argmax(self._logits(self._last()), axis=-1)
        self._ahead = None
        if any(row.answered + 1 < row.request.sampling.max_tokens for row in self.rows):
            self._ahead = mx.argmax(self._logits(best[:, None]), axis=-1)
            mx.async_eval(best, self._ahead)
        return self._take(best, ends)

    def settle(self, ends: Sequence[int]) -> list[Row]:
        """Let rows join: nothing is begun before its time. Those that are at their end."""
        best, self._ahead = self._ahead, None
        return [] if best is None else self._take(best, ends)

    def read_of(self, row: Row) -> tuple[list[int], list[Any]]:
        """The tokens of a row that is to leave, as far as they were read, and what was read."""
        tokens = row.tokens if self._ahead is not None else row.tokens[:-1]
        if len(self.rows) == 1:
            return tokens, self._cache
        at = self.rows.index(row)
        found = [one.extract(at) for one in self._cache]
        mx.async_eval([one.state for one in found])  # else each would hold all rows' cache
        return tokens, found

    def leave(self, gone: Sequence[Row]) -> None:
        """Let rows go."""
        kept = [at for at, row in enumerate(self.rows) if row not in gone]
        if len(kept) == len(self.rows):
            return  # those that go were still reading
        if not kept:
            self.clear()
            return
        self.rows = [self.rows[at] for at in kept]
        if len(kept) == 1:
            self._cache = [one.extract(kept[0]) for one in self._cache]
        else:
            for one in self._cache:
                one.filter(mx.array(kept))
        if self._ahead is not None:
            self._ahead = self._ahead[mx.array(kept)]

    def clear(self) -> None:
        """Let all of them go."""
        self.rows, self._cache, self._ahead = [], [], None

    def _last(self) -> mx.array:
        return mx.array([[row.tokens[-1]] for row in self.rows])

    def _logits(self, tokens: mx.array) -> mx.array:
        """Of every row's token after these (rows, 1): (rows, V)."""
        self._slots.take([row.owner for row in self.rows])
        found: mx.array = self._model(tokens, cache=self._cache)[:, -1]
        return found

    def _take(self, best: mx.array, ends: Sequence[int]) -> list[Row]:
        likeliest: list[int] = best.tolist()  # type: ignore[assignment]
        for row, token in zip(self.rows, likeliest, strict=True):
            _give(row, token, None, ends)
        return self._done()

    def _done(self) -> list[Row]:
        return [row for row in self.rows if row.reason is not None]


def choose(rows: Sequence[Row], logits: mx.array, ends: Sequence[int]) -> None:
    """Each row's next token. logits: (rows, V)."""
    best = mx.argmax(logits, axis=-1)
    mx.eval(best)
    likeliest: list[int] = best.tolist()  # type: ignore[assignment]
    for at, row in enumerate(rows):
        own = np.array(logits[at].astype(mx.float32)) if row.chooser.needs_logits else None
        _give(row, likeliest[at], own, ends)


def _give(row: Row, likeliest: int, logits: np.ndarray | None, ends: Sequence[int]) -> None:
    """A row's next token; what fails there is that row's alone."""
    try:
        row.take(likeliest, logits, ends)
    except Exception as error:
        row.fail(error)
