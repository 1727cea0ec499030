"""How large a request may be, and how slowly it may come."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]

CLOSE = {"connection": "close"}  # the rest of the body is not read


@dataclass(frozen=True)
class Pace:
    """How fast a body has to come: within `grace` seconds, and one more for each `rate` bytes."""

    grace: float = 30.0
    rate: int = 16_384


class TooLarge(HTTPException):
    """The body is larger than any may be."""

    def __init__(self, limit: int) -> None:
        super().__init__(413, f"the body has more than {limit:,} bytes", CLOSE)


class TooSlow(HTTPException):
    """The body comes so slowly that it is not waited for."""

    def __init__(self) -> None:
        super().__init__(408, "the body came too slowly", CLOSE)


class Body:
    """A body that ends when it is too long or too slow, whatever its Content-Length said."""

    def __init__(self, receive: Receive, limit: int, pace: Pace) -> None:
        self._receive, self._limit, self._pace = receive, limit, pace
        self._taken = 0
        self._began: float | None = None
        self._whole = False

    async def receive(self) -> Message:
        """The next message. Raises TooLarge, TooSlow."""
        if self._whole:  # whoever asks waits for the client to leave
            return await self._receive()
        message = await self._next()
        self._taken += len(message.get("body", b""))
        if self._taken > self._limit:
            raise TooLarge(self._limit)
        self._whole = not message.get("more_body", False)
        return message

    async def _next(self) -> Message:
        self._began = self._began or time.monotonic()
        allowed = self._pace.grace + self._taken / self._pace.rate
        try:
            async with asyncio.timeout(self._began + allowed - time.monotonic()):
                return await self._receive()
        except TimeoutError:
            raise TooSlow from None
