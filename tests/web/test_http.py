"""What a connection may take."""

from __future__ import annotations

import asyncio
import socket
from contextlib import asynccontextmanager, suppress
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient
from uvicorn.server import ServerState
from web.conftest import PATIENCE

from clusterports.web import _http
from clusterports.web._http import LITTLE, Protocol, limited

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from starlette.types import ASGIApp

ROOM = 4096
"""Bytes, about, that the kernel keeps for those who do not read."""

ENDLESS = b"GET / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000000\r\n\r\n"
PLAIN = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"


def make(page: ASGIApp, kind: type[Protocol] = Protocol, **options: Any) -> Protocol:
    config = uvicorn.Config(page, http=kind, lifespan="off", log_config=None, timeout_keep_alive=1)
    config.load()
    return kind(config, ServerState(), {}, **options)


@asynccontextmanager
async def connected(page: ASGIApp) -> AsyncIterator[socket.socket]:
    """Somebody who is served the page, until he is shown out."""
    gone = asyncio.Event()

    class Noticed(Protocol):
        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            gone.set()

    ours, theirs = socket.socketpair()
    ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, ROOM)
    with theirs:
        theirs.setblocking(False)
        await asyncio.get_running_loop().connect_accepted_socket(lambda: make(page, Noticed), ours)
        async with asyncio.timeout(PATIENCE):
            yield theirs
            await gone.wait()


async def test_more_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who goes on sending a request that has its answer reads that, and is shown out soon."""
    monkeypatch.setattr(_http, "IDLE", 0.1)
    loop = asyncio.get_running_loop()
    async with connected(PlainTextResponse("ok\n")) as client:
        await loop.sock_sendall(client, ENDLESS)
        answer = b""
        while part := await loop.sock_recv(client, 65_536):
            answer += part
            with suppress(BrokenPipeError):
                await loop.sock_sendall(client, b"x")

    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert answer.endswith(b"\r\n\r\nok\n")


async def test_much_after_the_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is sent after the answer is not read for ever, however fast it comes."""
    monkeypatch.setattr(_http, "IDLE", 3600)
    monkeypatch.setattr(_http, "MOST_SKIPPED", 1_000_000)
    loop = asyncio.get_running_loop()
    async with connected(PlainTextResponse("ok\n")) as client:
        await loop.sock_sendall(client, ENDLESS)
        while await loop.sock_recv(client, 65_536):
            pass
        with suppress(BrokenPipeError, ConnectionResetError):
            while True:
                await loop.sock_sendall(client, 65_536 * b"x")


@pytest.mark.parametrize(("requests", "size"), [(1, 10 * ROOM), (1, 1000 * ROOM), (20, 10 * ROOM)])
async def test_answers_nobody_takes(requests: int, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks, once or again and again, and does not read what comes, is shown out."""
    monkeypatch.setattr(_http, "SLOW", 0.1)
    async with connected(PlainTextResponse(size * "x")) as client:
        await asyncio.get_running_loop().sock_sendall(client, requests * PLAIN)


class Transport:
    """A connection of which only is known how much waits to be sent."""

    def __init__(self) -> None:
        self.left = 0
        self.aborted = False

    def get_write_buffer_size(self) -> int:
        return self.left

    def abort(self) -> None:
        self.aborted = True

    def __getattr__(self, name: str) -> Any:
        return lambda *_: None


async def test_slow_is_not_standing_still() -> None:
    """Who takes little at a time is served to the end; who takes next to nothing is not."""
    timers: list[Callable[[], None]] = []

    def call_later(_: float, function: Callable[[], None]) -> Any:
        timers.append(function)
        return SimpleNamespace(cancel=timers.clear)

    protocol = make(PlainTextResponse("ok\n"), _loop=SimpleNamespace(call_later=call_later))
    protocol.transport = transport = Transport()  # type: ignore[assignment]
    protocol.flow = SimpleNamespace(pause_writing=lambda: None, resume_writing=lambda: None)  # type: ignore[assignment]
    seen = []
    protocol.pause_writing()
    for left in (1_000_000, 1_000_000 - LITTLE, 1_000_000 - 2 * LITTLE):  # the first: a page after its head
        transport.left = left
        timers.pop()()
        seen.append(transport.aborted)
    protocol.resume_writing()
    seen.append(bool(timers))
    protocol.pause_writing()
    transport.left -= LITTLE - 1
    timers.pop()()

    assert [False] * 4 == seen
    assert transport.aborted


def test_full() -> None:
    """Of too many connections those beyond are refused, but are told whether the page lives."""
    connections = _http.CONNECTIONS
    client = TestClient(limited(PlainTextResponse("page"), lambda: connections))
    within = client.get("/")
    connections += 1
    beyond, health = client.get("/"), client.get("/healthz")

    assert [200, 503, 200] == [one.status_code for one in (within, beyond, health)]
    assert "close" == beyond.headers["connection"]
