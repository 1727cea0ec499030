"""One thread that computes the answers of a base model and its adapters, for many at once.

Continuous batching (Orca, OSDI 2022): answers begin and end at any step. A prompt is read in
pieces between steps, so that a long one does not keep the others waiting.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn

from mlx_ft.engine.batch import Batch, Filling, Row, choose
from mlx_ft.engine.prefixes import Prefixes
from mlx_ft.engine.request import Busy, Closed, End, Failed, Replaced, Request, Unknown
from mlx_ft.engine.residents import Adapter, Residents
from mlx_ft.engine.slots import Slots
from mlx_ft.errors import ConfigError

logger = logging.getLogger(__name__)

T = TypeVar("T")
PIECE = 512  # tokens of a prompt that are read between two steps
IDLE = 0.2  # seconds


@dataclass(frozen=True)
class Limits:
    """waiting: requests in the queue. rows: answered at once. tokens: of all these prompts and
    answers together; a single one may have more. adapters, prefixes: bytes of each.
    """

    waiting: int = 32
    rows: int = 16
    tokens: int = 65_536
    adapters: int = 1 << 30
    prefixes: int = 1 << 29


class Engine:
    """Answers requests until it is closed. All of its methods may be called from any thread.

    make: gives the bare, frozen model and its tokenizer; called on the engine's own thread.
    """

    def __init__(
        self, make: Callable[[], tuple[nn.Module, Any]], limits: Limits | None = None
    ) -> None:
        self.limits = limits or Limits()
        self._make = make
        self._changed = threading.Condition()
        self._waiting: deque[tuple[Request, Adapter | None]] = deque()
        self._calls: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._adapters: dict[str, Adapter] = {}
        self._serial = itertools.count()
        self._closing = False
        self._ready: Future[None] = Future()
        self._filling: Filling | None = None
        self._owner: dict[Row, Adapter | None] = {}
        self.steps = 0
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def ready(self, timeout: float | None = None) -> None:
        """Wait for the model. Raises what loading it raised."""
        self._ready.result(timeout)

    def submit(self, *requests: Request) -> None:
        """Queue requests, all or none. Raises Busy, Closed, Unknown (the adapter), ConfigError."""
        faults = [fault for request in requests for fault in request.sampling.faults()]
        if not all(request.prompt for request in requests):
            faults.append("prompt: found nothing; expected at least one token")
        if len(requests) > self.limits.waiting:
            faults.append(
                f"found {len(requests)} answers that are wanted at once; expected at most "
                f"{self.limits.waiting}, which is what the queue holds"
            )
        if faults:
            raise ConfigError("No answer can be generated:", [*dict.fromkeys(faults)])
        with self._changed:
            if self._closing:
                raise Closed("the engine is being closed")
            found = [(request, self._adapter(request.adapter)) for request in requests]
            waiting = sum(not request.cancelled for request, _ in self._waiting)
            if waiting + len(requests) > self.limits.waiting:
                raise Busy(f"{waiting} requests are waiting already")
            for request, adapter in found:
                if adapter is not None:
                    adapter.users += 1
                self._waiting.append((request, adapter))
            self._changed.notify_all()

    def _adapter(self, name: str | None) -> Adapter | None:
        if name is None:
            return None
        if name not in self._adapters:
            names = ", ".join(self._adapters) or "none"
            raise Unknown(f"there is no adapter {name!r}. Loaded: {names}")
        return self._adapters[name]

    def load(self, name: str, folder: Path) -> None:
        """Have an adapter under a name, in place of another one. Raises AdapterError."""
        adapter = Adapter(name, f"{name}#{next(self._serial)}", folder)

        def install() -> None:
            self._residents.bring(adapter, self.limits.adapters)
            with self._changed:
                self._adapters[name] = adapter

        self.call(install)

    def unload(self, name: str) -> None:
        """Take no more requests for it; those that there are get their answers. Raises Unknown."""
        with self._changed:
            if self._adapters.pop(name, None) is None:
                raise Unknown(f"there is no adapter {name!r}")
            self._changed.notify_all()

    @property
    def adapters(self) -> dict[str, Path]:
        """Names and folders of what can be asked."""
        with self._changed:
            return {name: adapter.folder for name, adapter in self._adapters.items()}

    @property
    def load_now(self) -> tuple[int, int]:
        """(requests in the queue, requests that are being answered)."""
        with self._changed:
            return len(self._waiting), len(self._owner)

    def call(self, action: Callable[[], T]) -> T:
        """What `action` gives, done on the engine's thread between two steps."""
        future: Future[T] = Future()
        with self._changed:
            if self._closing:
                raise Closed("the engine is being closed")
            self._calls.append((action, future))
            self._changed.notify_all()
        return future.result()

    def close(self, *, drain: bool = True, timeout: float | None = None) -> None:
        """Take nothing more, and end; drain: once all that was taken is answered."""
        with self._changed:
            self._closing = True
            if not drain:
                for request, _ in self._waiting:
                    request.cancelled = True
                for row in self._owner:
                    row.request.cancelled = True
            self._changed.notify_all()
        self._thread.join(timeout)

    # What follows runs on the engine's thread.

    def _run(self) -> None:
        try:
            model, self._tokenizer = self._make()
            self._ends = tuple(self._tokenizer.eos_token_ids)
            self._slots = Slots(model)
            self._residents = Residents(self._slots)
            self._model = model
            self._batch = Batch(model, self._slots)
            self._prefixes = Prefixes(self.limits.prefixes)
        except BaseException as error:
            self._closing = True
            self._ready.set_exception(error)
            mx.clear_streams()
            return
        self._ready.set_result(None)
        try:
            while self._turn():
                pass
        except BaseException as error:
            self._give_up(error)
        mx.synchronize()
        mx.clear_streams()  # MLX aborts the process now and then over a thread that ends with some

    def _give_up(self, error: BaseException) -> None:
        """Nobody waits for an engine that works no more."""
        logger.critical("the engine has failed: %s", error, exc_info=error)
        ended = Closed(f"the engine has failed: {type(error).__name__}: {error}")
        with self._changed:
            self._closing = True
            self._ready = Future()
            self._ready.set_exception(ended)
            requests = [*(row.request for row in self._owner), *(one for one, _ in self._waiting)]
            calls = [*self._calls]
            self._owner, self._waiting, self._calls = {}, deque(), deque()
        for request in requests:
            request.say(Failed(ended))
        for _, future in calls:
            future.set_exception(ended)

    def _turn(self) -> bool:
        """One step of whatever there is to do; False when all is done for good."""
        with self._changed:
            idle = not (self._waiting or self._calls or self._owner)
            if idle and self._closing:
                return False
            if idle:
                self._changed.wait(IDLE)
            calls, self._calls = self._calls, deque()
        for action, future in calls:
            _answer(action, future)
        self._drop_cancelled()
        with self._changed:
            wanted = {adapter.key for adapter in self._adapters.values()}
        if gone := self._residents.forget_all_but(wanted):
            self._prefixes.forget(gone)
        self._admit()
        self._read()
        self._step()
        return True

    def _drop_cancelled(self) -> None:
        with self._changed:
            left = [entry for entry in self._waiting if entry[0].cancelled]
            for entry in left:
                self._waiting.remove(entry)
        for request, adapter in left:
            self._left(adapter)
            request.say(End("cancelled", len(request.prompt), 0, 0))
        gone = [row for row in self._owner if row.request.cancelled]
        for row in gone:
            if self._filling is not None and self._filling.row is row:
                self._filling = None
            row.reason = "cancelled"
        self._finish(gone)

    def _admit(self) -> None:
        """Begin the next prompt, if there is room for its answer."""
        while self._filling is None:
            with self._changed:
                if not self._waiting or not self._has_room(self._waiting[0][0]):
                    return
                request, adapter = self._waiting.popleft()
            self._begin(request, adapter)

    def _forget(self, adapter: Adapter | None) -> None:
        """Take no more requests for it, unless its name is another one's already."""
        with self._changed:
            if adapter is not None and self._adapters.get(adapter.name) is adapter:
                del self._adapters[adapter.name]

    def _begin(self, request: Request, adapter: Adapter | None) -> None:
        try:
            if adapter is not None:
                self._residents.bring(adapter, self.limits.adapters)
            key = None if adapter is None else adapter.key
            row = Row.of(request, key, self._tokenizer)
            known, cached = self._prefixes.find(key or "", request.prompt)
            filling = Filling(row, self._model, known, cached)
        except Exception as error:
            if isinstance(error, Replaced):
                self._forget(adapter)
            self._left(adapter)
            request.say(Failed(error))
            return
        self._filling = filling
        with self._changed:
            self._owner[row] = adapter

    def _has_room(self, request: Request) -> bool:
        if not self._owner:
            return True
        taken = sum(
            len(row.request.prompt) + row.request.sampling.max_tokens for row in self._owner
        )
        wanted = len(request.prompt) + request.sampling.max_tokens
        return len(self._owner) < self.limits.rows and taken + wanted <= self.limits.tokens

    def _read(self) -> None:
        """A piece of the prompt that was begun."""
        filling = self._filling
        if filling is None:
            return
        row = filling.row
        try:
            logits = filling.read(self._slots, PIECE)
            if logits is None:
                return
            choose([row], logits[None], self._ends)
            if row.reason is None:
                self._advance(self._batch.settle)
                self._batch.join(row, filling.cache)
            elif row.reason != "failed":
                self._prefixes.keep(row.owner or "", row.tokens[:-1], filling.cache)
        except Exception as error:
            row.fail(error)
        self._filling = None
        if row.reason is not None:
            self._finish([row])

    def _step(self) -> None:
        """The next token of every answer."""
        if self._batch.rows:
            self._advance(self._batch.step)
            self.steps += 1

    def _advance(self, move: Callable[[Sequence[int]], list[Row]]) -> None:
        try:
            done = move(self._ends)
            for row in done:
                if row.reason != "failed":
                    self._prefixes.keep(row.owner or "", *self._batch.read_of(row))
        except Exception as error:  # such as memory that runs out: nobody's row is whole
            done = [*self._batch.rows]
            self._batch.clear()
            for row in done:
                row.fail(error)
        self._finish(done)

    def _finish(self, rows: list[Row]) -> None:
        if not rows:
            return
        self._batch.leave(rows)
        for row in rows:
            with self._changed:
                adapter = self._owner.pop(row)
            self._left(adapter)
            if row.reason != "failed":
                row.end()

    def _left(self, adapter: Adapter | None) -> None:
        if adapter is not None:
            with self._changed:
                adapter.users -= 1


def _answer(action: Callable[[], T], future: Future[T]) -> None:
    try:
        future.set_result(action())
    except Exception as error:
        future.set_exception(error)
