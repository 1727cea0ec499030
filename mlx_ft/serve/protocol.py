"""uvicorn's HTTP/1.1 with deadlines: a slow client holds no connection for long.

uvicorn itself limits only how long a connection may be idle between two requests.
"""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADERS = 15.0  # seconds until the headers of a request are there
READING = 60.0  # seconds in which a client takes nothing of its answer


class Patient(H11Protocol):
    """One connection."""

    _waiting: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """The first headers are waited for."""
        super().connection_made(transport)
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Headers that are begun have to come to their end."""
        super().data_received(data)
        if self.transport.is_closing() or self._in_request():
            if self._waiting is not None:
                self._waiting.cancel()
                self._waiting = None
        else:
            self._wait()

    def pause_writing(self) -> None:
        """The client takes nothing of what is sent."""
        super().pause_writing()
        if self._stuck is None:
            self._stuck = self.loop.call_later(READING, self.transport.abort)

    def resume_writing(self) -> None:
        """It does again."""
        super().resume_writing()
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def _in_request(self) -> bool:
        """Whether something is answered, or its body is being read by whoever answers it."""
        if self.conn.their_state is h11.IDLE:
            return False
        # The answer is done, but its body still comes: it is thrown away, for a while.
        return not (self.conn.our_state is h11.DONE and self.conn.their_state is h11.SEND_BODY)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(HEADERS, self._give_up)

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.abort()

    def _cancel(self) -> None:
        for timer in (self._waiting, self._stuck):
            if timer is not None:
                timer.cancel()
        self._waiting = self._stuck = None
