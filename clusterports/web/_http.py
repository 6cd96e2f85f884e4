"""What a connection may take: time, room, and a place among the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ._app import HEALTH

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable

    from starlette.types import ASGIApp, Receive, Scope, Send

__all__ = ["IDLE", "LONGEST_HEADERS", "Protocol", "limited"]

LONGEST_HEADERS = 16_384

CONNECTIONS = 512

MOST_SKIPPED = 64 << 20
"""Bytes that are read, and not looked at, of a request that was refused or has its answer already."""

IDLE = 5
"""Seconds for which a connection is kept for another request, or until it has begun one to the end of its headers."""

SLOW = 20.0
"""Seconds in which somebody takes all that waits to be sent, or at least `LITTLE` of it."""

LITTLE = 16_384


class Protocol(H11Protocol):
    """Shows out those who take a connection and ask for nothing, or do not take their answer, and lets others read why
    they are refused.
    """

    _late: asyncio.TimerHandle | None = None
    _slow: asyncio.TimerHandle | None = None
    _to_skip = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        # Paused is then when anything waits to be sent, so also what is left when the connection is to be closed.
        transport.set_write_buffer_limits(0)
        self._wait()

    def data_received(self, data: bytes) -> None:
        if self._to_skip:
            self._to_skip -= len(data)
            if self._to_skip <= 0:
                self.transport.abort()
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        elif not self._to_skip:
            self._forget()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._forget()
        self._unwatch()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch()

    def resume_writing(self) -> None:
        super().resume_writing()
        self._unwatch()

    def send_400_response(self, msg: str) -> None:
        headers = [("content-type", "text/plain; charset=utf-8"), ("connection", "close")]
        try:
            for event in (
                h11.Response(status_code=400, headers=headers, reason="Bad Request"),
                h11.Data(data=f"{msg}\n".encode()),
                h11.EndOfMessage(),
            ):
                self.transport.write(self.conn.send(event) or b"")
        except h11.LocalProtocolError:  # in the middle of another answer
            self.transport.close()
        self._skip()

    def on_response_complete(self) -> None:
        if self.conn.their_state is h11.SEND_BODY:  # it asked, and is not done yet
            self.server_state.total_requests += 1
            self.flow.resume_reading()
            self._skip()
        else:
            super().on_response_complete()

    def _skip(self) -> None:
        """Answer no more. Closed while something is still to be read, the kernel would throw away what was answered."""
        self.transport.write_eof()
        self._to_skip = MOST_SKIPPED
        self._forget()
        self._wait()

    def _wait(self) -> None:
        if self._late is None:
            self._late = self.loop.call_later(IDLE, self.transport.abort)

    def _forget(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _watch(self) -> None:
        left = self.transport.get_write_buffer_size()

        def look() -> None:
            if left - LITTLE < self.transport.get_write_buffer_size() <= left:
                self.transport.abort()
            else:
                self._watch()

        self._slow = self.loop.call_later(SLOW, look)

    def _unwatch(self) -> None:
        if self._slow is not None:
            self._slow.cancel()
            self._slow = None


def limited(page: ASGIApp, connections: Callable[[], int]) -> ASGIApp:
    """The page, for so many connections at most. Whether it lives, and is ready, is told also to those beyond."""
    from uvicorn.protocols.http.flow_control import service_unavailable

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        full = scope["type"] == "http" and scope["path"] not in HEALTH and connections() > CONNECTIONS
        await (service_unavailable if full else page)(scope, receive, send)  # type: ignore[arg-type]

    return answer
