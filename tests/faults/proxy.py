"""A TCP proxy in front of one server, that does to requests and replies what a bad network does.

It runs in a thread of its own; its methods may be called from any other. It knows of the protocol only where a
request ends. To see that a request was carried out it sends an ECHO of its own behind it, on the same connection.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine
    from types import TracebackType
    from typing import Self

__all__ = ["Caught", "Proxy", "request_end"]

HOST = "127.0.0.1"
CHUNK = 1 << 16
PATIENCE = 20.0
"""Seconds until a test that waits for a fault fails."""

Fate: TypeAlias = Literal["drop", "hold", "copy"]


def request_end(data: bytes, start: int = 0) -> int:
    """Where the request ends that begins at ``start``; 0 while it is not complete."""
    line = data.find(b"\r\n", start) + 2
    if line < 2:
        return 0
    if data[start : start + 1] != b"*":  # a command as a person types it
        return line
    for _ in range(int(data[start + 1 : line - 2])):
        end = data.find(b"\r\n", line) + 2
        if end < 2:
            return 0
        line = end + int(data[line + 1 : end - 2]) + 2
    return line if line <= len(data) else 0


class Caught:
    """A request that is being looked for, and once it came by, has met its fate."""

    def __init__(self, patterns: tuple[bytes, ...], fate: Fate, server: int) -> None:
        self.patterns = patterns
        self.fate = fate
        self.request = b""
        self._server = server
        self._happened = threading.Event()

    def happened(self, request: bytes) -> None:
        self.request = request
        self._happened.set()

    def wait(self) -> bytes:
        """Until it happened: the request."""
        if not self._happened.wait(PATIENCE):
            raise TimeoutError(f"no request with {self.patterns!r} came within {PATIENCE:g} s")
        return self.request

    def deliver(self) -> bytes:
        """Send it to the server, on a new connection: the reply, when it was carried out."""
        request, token = self.wait(), token_hex(16).encode()
        with socket.create_connection((HOST, self._server), PATIENCE) as connection:
            connection.sendall(request + _echo(token))
            reply = b""
            while (end := reply.find(b"$32\r\n" + token)) < 0:
                data = connection.recv(CHUNK)
                if not data:
                    raise ConnectionError(f"the server hung up after {reply!r}")
                reply += data
        return reply[:end]


class Proxy:
    """``port``: of the server, on the loopback. As a context manager it is closed at the end."""

    def __init__(self, port: int) -> None:
        self._server = port
        self._links: dict[asyncio.Task[Any], tuple[asyncio.StreamWriter, ...]] = {}
        self._looking: list[Caught] = []
        self._refusing = False
        self._slow = 0.0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="fault proxy", daemon=True)
        self._thread.start()
        self._flows = {"up": asyncio.Event(), "down": asyncio.Event()}
        self.heal()
        self._listener = self._do(asyncio.start_server(self._connected, HOST, 0))
        self.port: int = self._listener.sockets[0].getsockname()[1]

    @property
    def url(self) -> str:
        return f"redis://{HOST}:{self.port}/0"

    # ---------------------------------------------------------------- faults

    def drop_reply(self, *patterns: bytes) -> Caught:
        """The next request with all of these bytes is carried out; then its connection is cut instead of the reply."""
        return self._look(patterns, "drop")

    def hold(self, *patterns: bytes) -> Caught:
        """The next request with all of these bytes goes no further, nor what is behind it, until `Caught.deliver`."""
        return self._look(patterns, "hold")

    def copy(self, *patterns: bytes) -> Caught:
        """The next request with all of these bytes is forwarded as ever, and kept for `Caught.deliver` to repeat."""
        return self._look(patterns, "copy")

    def cut(self) -> None:
        """End all connections."""
        self._call(self._cut)

    def refuse(self) -> None:
        """End every new connection as soon as it is made."""
        self._call(lambda: setattr(self, "_refusing", True))

    def cut_off(self) -> None:
        """Nobody reaches the server any more, and everybody sees that at once."""
        self.refuse()
        self.cut()

    def stall(self, *directions: Literal["up", "down"]) -> None:
        """Forward nothing in these directions, or in both; ``up`` is to the server. Nothing is lost."""

        def stall() -> None:
            for direction in directions or ("up", "down"):
                self._flows[direction].clear()

        self._call(stall)

    def slow(self, seconds: float) -> None:
        """Hold everything that comes in one piece, in each direction, for so long."""
        self._call(lambda: setattr(self, "_slow", seconds))

    def heal(self) -> None:
        """A good network from now on; what was stalled goes on, and what is looked for still is."""

        def heal() -> None:
            self._refusing, self._slow = False, 0.0
            for flow in self._flows.values():
                flow.set()

        self._call(heal)

    # ---------------------------------------------------------------- life

    def close(self) -> None:
        if self._loop.is_closed():
            return
        self._do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _do(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def _call(self, function: Callable[[], object]) -> None:
        async def call() -> None:
            function()

        self._do(call())

    def _look(self, patterns: tuple[bytes, ...], fate: Fate) -> Caught:
        caught = Caught(patterns, fate, self._server)
        self._call(lambda: self._looking.append(caught))
        return caught

    def _cut(self) -> None:
        for writers in self._links.values():
            for writer in writers:
                writer.transport.abort()

    async def _close(self) -> None:
        self._listener.close()
        self._cut()
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    # ---------------------------------------------------------------- one connection

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        me = asyncio.current_task()
        assert me is not None
        self._links[me] = (writer,)
        token = token_hex(16).encode()
        dropped: list[Caught] = []
        ways: list[asyncio.Task[None]] = []
        try:
            if self._refusing:
                return
            server_reader, server_writer = await asyncio.open_connection(HOST, self._server)
            self._links[me] = (writer, server_writer)
            ways = [
                asyncio.create_task(self._up(reader, server_writer, token, dropped)),
                asyncio.create_task(self._down(server_reader, writer, token, dropped)),
            ]
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except OSError:  # the server is away
            pass
        finally:
            for way in ways:
                way.cancel()
            await asyncio.gather(*ways, return_exceptions=True)
            for end in self._links.pop(me):
                end.transport.abort()

    async def _up(
        self, client: asyncio.StreamReader, server: asyncio.StreamWriter, token: bytes, dropped: list[Caught]
    ) -> None:
        data = b""
        while piece := await client.read(CHUNK):
            await self._pass("up")
            data, start = data + piece, 0
            while end := request_end(data, start):
                request, start = data[start:end], end
                caught = next(
                    (one for one in self._looking if all(pattern in request for pattern in one.patterns)), None
                )
                if caught is not None:
                    self._looking.remove(caught)
                    if caught.fate == "drop":
                        dropped.append(caught)
                        request += _echo(token)
                    else:
                        caught.happened(request)
                    if caught.fate == "hold":
                        await _for_ever(client.read)
                        return
                if server.is_closing():  # it was cut meanwhile
                    return
                server.write(request)
                if dropped:
                    dropped[0].request = request
                    await _for_ever(client.read)
                    return
            data = data[start:]
            await server.drain()

    async def _down(
        self, server: asyncio.StreamReader, client: asyncio.StreamWriter, token: bytes, dropped: list[Caught]
    ) -> None:
        lost = b""
        while piece := await server.read(CHUNK):
            await self._pass("down")
            if client.is_closing():
                return
            if dropped:
                lost += piece
                if token in lost:
                    dropped[0].happened(dropped[0].request)
                    return
                continue
            client.write(piece)
            await client.drain()

    async def _pass(self, direction: str) -> None:
        if self._slow:
            await asyncio.sleep(self._slow)
        await self._flows[direction].wait()


def _echo(token: bytes) -> bytes:
    return b"*2\r\n$4\r\nECHO\r\n$%d\r\n%b\r\n" % (len(token), token)


async def _for_ever(read: Callable[[int], Awaitable[bytes]]) -> None:
    """Until the client hangs up; what it says is thrown away."""
    while await read(CHUNK):
        pass
