"""Answers of the engine for one HTTP request: asked for, waited for, given up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, TypeVar

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from starlette.requests import Request as HttpRequest
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from mlx_ft.engine.request import Closed, End, Event, Failed, Piece, Request, Sampling, Unknown
from mlx_ft.errors import MlxFtError
from mlx_ft.serve.current import Target
from mlx_ft.serve.errors import Refused, answer, told
from mlx_ft.serve.metrics import Metrics
from mlx_ft.serve.schemas import Drawing

T = TypeVar("T")
GONE = 499  # what proxies note for a client that left; nobody sees it
TRIES = 5
THREADS = 32  # that wait for models
_waiting: RunVar[anyio.CapacityLimiter] = RunVar("threads that wait for models")
IGNORED = "x-mlx-ft-ignored"  # the header that names fields without effect
ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The answer; with `stream`, its events.",
        "content": {"application/json": {}, "text/event-stream": {}},
    }
}


@dataclass(frozen=True)
class Wanted:
    """One prompt, to be answered `count` times. continues: as `engine.request.Request` has it."""

    prompt: tuple[int, ...]
    sampling: Sampling
    count: int = 1
    continues: bool = False


class Asked:
    """Answers on their way, numbered in the order of what was wanted. Ends itself when left."""

    def __init__(
        self, target: Target, wanted: Sequence[Wanted], metrics: Metrics, path: str
    ) -> None:
        """Queue all of it, or nothing. Raises Busy, Unknown, ConfigError, Refused."""
        self.target, self._metrics, self._path = target, metrics, path
        self._events: asyncio.Queue[tuple[int, Event]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self._began = time.monotonic()
        self._first: float | None = None
        self.failed = False
        self._open = 0
        self.ends: dict[int, End] = {}
        self.requests: list[Request] = []
        self._wanted: list[int] = []  # which prompt each of them is an answer to
        for index, one in enumerate(wanted):
            target.check(len(one.prompt), one.sampling.max_tokens)
            for number in range(one.count):
                self.requests.append(self._request(len(self.requests), one, number))
                self._wanted.append(index)
        target.engine.submit(*self.requests)
        self._open = len(self.requests)

    def _request(self, at: int, wanted: Wanted, number: int) -> Request:
        def tell(event: Event) -> None:  # on the engine's thread
            self._loop.call_soon_threadsafe(self._events.put_nowait, (at, event))

        seed = wanted.sampling.seed
        own = None if seed is None else (seed + number) % 2**64
        stop = self.target.prompts.stop
        return Request(
            wanted.prompt, tell, self.target.adapter, replace(wanted.sampling, seed=own),
            ends=() if stop is None else (stop,), continues=wanted.continues,
        )  # fmt: skip

    async def pieces(self) -> AsyncIterator[tuple[int, Piece | End]]:
        """(number of the answer, more of it), until all have ended. Raises what failed."""
        while self._open:
            at, event = await self._events.get()
            if isinstance(event, End) and event.reason == "cancelled":  # not by its client: a drain
                event = Failed(Closed("the server did not wait for the end of this answer"))
            if isinstance(event, Failed):
                self.failed = True
                self.cancel()
                raise event.error
            if self._first is None:
                self._first = time.monotonic() - self._began
            if isinstance(event, End):
                self._open -= 1
                self.ends[at] = event
            yield at, event

    def cancel(self) -> None:
        """Let the engine forget what is not answered yet."""
        for request in self.requests:
            request.cancelled = True

    def usage(self) -> dict[str, Any]:
        """As OpenAI counts: a prompt once, however often it is answered."""
        prompts = {self._wanted[at]: end for at, end in sorted(self.ends.items(), reverse=True)}
        prompt = sum(end.prompt_tokens for end in prompts.values())
        completion = sum(end.completion_tokens for end in self.ends.values())
        return {
            "prompt_tokens": prompt,
            "completion_tokens": completion,
            "total_tokens": prompt + completion,
            "prompt_tokens_details": {
                "cached_tokens": sum(end.cached for end in prompts.values()),
            },
        }

    def note(self, status: int) -> None:
        """Count this request."""
        label = self.target.label
        count, observe = self._metrics.count, self._metrics.observe
        count("mlx_ft_requests_total", adapter=label, path=self._path, status=str(status))
        for end in self.ends.values():
            count("mlx_ft_prompt_tokens_total", end.prompt_tokens, adapter=label)
            count("mlx_ft_cached_tokens_total", end.cached, adapter=label)
            count("mlx_ft_completion_tokens_total", end.completion_tokens, adapter=label)
        if status == 200:
            seconds = time.monotonic() - self._began
            observe("mlx_ft_request_seconds", seconds, adapter=label)
            observe("mlx_ft_first_token_seconds", self._first or seconds, adapter=label)


class Reply(Protocol):
    """What the client gets of answers."""

    async def whole(self) -> dict[str, Any]:
        """All of them, once they have ended."""

    def events(self) -> AsyncIterator[str]:
        """Server-sent events."""


async def respond(request: Drawing, http: HttpRequest, asked: Asked, reply: Reply) -> Response:
    """A stream, or all at once, as the request says."""
    ignored = request.ignored()
    headers = {IGNORED: ", ".join(ignored)} if ignored else {}
    if request.stream:
        return Stream(asked, reply.events(), headers)
    return answer(200, await whole(http, asked, reply.whole()), headers)


async def ask(
    metrics: Metrics, path: str, wanted: Callable[[], tuple[Target, Sequence[Wanted]]]
) -> Asked:
    """Queue what is wanted. wanted: looks it up, on a thread of its own.

    Between the two an adapter may be unloaded, or another base take its turn: then once more.
    Raises Refused, Busy, ConfigError.
    """
    try:
        for _ in range(TRIES):
            target, found = await anyio.to_thread.run_sync(wanted, limiter=_threads())
            try:
                return Asked(target, found, metrics, path)
            except (Closed, Unknown):
                continue
        raise Closed("adapters and models change too quickly for this request")
    except MlxFtError as error:
        status = str(told(error)[0])
        metrics.count("mlx_ft_requests_total", adapter="-", path=path, status=status)
        raise


def _threads() -> anyio.CapacityLimiter:
    """Those that may wait for a model, beside the ones that answer everything else meanwhile."""
    try:
        return _waiting.get()
    except LookupError:
        _waiting.set(anyio.CapacityLimiter(THREADS))
        return _waiting.get()


class Stream(StreamingResponse):
    """Server-sent events of answers; given up when their client leaves."""

    media_type = "text/event-stream"

    def __init__(self, asked: Asked, content: AsyncIterator[str], headers: dict[str, str]) -> None:
        super().__init__(content, headers={"cache-control": "no-store", **headers})
        self._asked = asked

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """As ASGI says."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._asked.cancel()
            whole = len(self._asked.ends) == len(self._asked.requests)
            self._asked.note(200 if whole else 500 if self._asked.failed else GONE)


async def whole(http: HttpRequest, asked: Asked, work: Coroutine[Any, Any, T]) -> T:
    """What `work` gives, unless its client leaves before: then it is given up."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_left(http))
    status = GONE
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise Refused("the client has left", GONE, code="client_closed")
        try:
            found = working.result()
        except Exception:
            status = 500
            raise
        status = 200
        return found
    finally:
        asked.cancel()
        for task in (working, leaving):
            task.cancel()
        asked.note(status)


async def _left(http: HttpRequest) -> None:
    while (await http.receive())["type"] != "http.disconnect":
        pass
