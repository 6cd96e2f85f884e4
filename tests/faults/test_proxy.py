"""The fault proxy, in front of a real server, used by a client that knows nothing but bytes."""

from __future__ import annotations

import socket
import threading
import time
from typing import TYPE_CHECKING

import pytest
from faults.proxy import Proxy, request_end

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import servers


def packed(*words: str) -> bytes:
    """A request."""
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word.encode()) for word in words)


INCR = packed("INCR", "n")


class Raw:
    """One connection."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 10)

    def send(self, *requests: bytes) -> None:
        self.socket.sendall(b"".join(requests))

    def line(self) -> bytes:
        """The next line of an answer; nothing when the other side has hung up."""
        line = b""
        while not line.endswith(b"\r\n"):
            try:
                byte = self.socket.recv(1)
            except ConnectionError:
                byte = b""
            if not byte:
                return line
            line += byte
        return line[:-2]

    def do(self, request: bytes) -> bytes:
        self.send(request)
        return self.line()


@pytest.fixture
def proxy(valkey: servers.ServerStore) -> Iterator[Proxy]:
    with Proxy(int(valkey.client.connection_pool.connection_kwargs["port"])) as proxy:
        yield proxy


@pytest.fixture
def connect(proxy: Proxy) -> Iterator[Callable[[], Raw]]:
    """Makes connections through the proxy."""
    made: list[Raw] = []

    def connect() -> Raw:
        made.append(Raw(proxy.port))
        return made[-1]

    yield connect
    for raw in made:
        raw.socket.close()


def count(store: servers.ServerStore) -> int:
    """How often INCR was carried out."""
    return int(store.client.get("n") or 0)


@pytest.mark.parametrize("request_", [INCR, b"PING\r\n", packed("SET", "x", "*1\r\n$4\r\n"), packed("ECHO", "")])
def test_request_end(request_: bytes) -> None:
    """A request ends where it ends, whatever it contains and follows, and not before."""
    assert len(request_) == request_end(request_)
    assert 3 + len(request_) == request_end(b"abc" + request_ + INCR, 3)
    assert {0} == {request_end(request_[:length]) for length in range(len(request_))}


def test_forwards(valkey: servers.ServerStore, connect: Callable[[], Raw]) -> None:
    """Without a fault it is as if it were not there: in pieces, in heaps, and for long values."""
    raw = connect()
    for byte in INCR:
        raw.send(bytes([byte]))
    assert b":1" == raw.line()
    raw.send(INCR, INCR, packed("SET", "long", "x" * 300_000), packed("STRLEN", "long"))
    assert [b":2", b":3", b"+OK", b":300000"] == [raw.line() for _ in range(4)]
    assert 3 == count(valkey)


def test_the_server_hangs_up(connect: Callable[[], Raw]) -> None:
    """An end of the server's connection is passed on."""
    raw = connect()
    assert b"+OK" == raw.do(packed("QUIT"))
    assert b"" == raw.line()


def test_no_server() -> None:
    """With nobody to connect to, the client's connection ends."""
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        with Proxy(nobody.getsockname()[1]) as proxy:
            raw = Raw(proxy.port)
            assert b"" == raw.line()
            raw.socket.close()


def test_drop_reply(valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """The request was carried out, its reply and its connection are lost; nobody else's are, and it happens once."""
    raw, other = connect(), connect()
    assert b":1" == raw.do(INCR)
    dropped = proxy.drop_reply(b"INCR")
    assert b"+PONG" == raw.do(b"PING\r\n")
    assert b"" == raw.do(INCR)
    assert INCR in dropped.wait()
    assert 2 == count(valkey)
    assert b":3" == other.do(INCR)


def test_drop_reply_behind_others(valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """What was sent before it is carried out, what was sent after it is not."""
    proxy.drop_reply(b"INCR")
    raw = connect()
    raw.send(packed("SET", "a", "1"), INCR, packed("SET", "b", "1"))
    while raw.line():
        pass
    assert (b"1", 1, None) == (valkey.client.get("a"), count(valkey), valkey.client.get("b"))


def test_hold(valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """What is held arrives when it is delivered, long after its connection has gone; nothing passes it."""
    held = proxy.hold(b"INCR")
    raw = connect()
    raw.send(INCR, packed("SET", "b", "1"))
    assert INCR == held.wait()
    raw.socket.close()
    assert b":1" == connect().do(INCR)
    assert b":2\r\n" == held.deliver()
    assert (2, None) == (count(valkey), valkey.client.get("b"))


def test_copy(valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """What is copied is answered as ever, and can be sent again as often as one likes."""
    copied = proxy.copy(b"INCR")
    assert b":1" == connect().do(INCR)
    assert [b":2\r\n", b":3\r\n"] == [copied.deliver(), copied.deliver()]
    assert 3 == count(valkey)


def test_cut_and_refuse(valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """Old connections end with the cut, new ones are refused until it is healed."""
    raw = connect()
    assert b":1" == raw.do(INCR)
    proxy.cut_off()
    assert b"" == raw.do(INCR)
    assert b"" == connect().line()
    proxy.heal()
    assert b":2" == connect().do(INCR)


@pytest.mark.parametrize(("direction", "carried_out"), [("up", 0), ("down", 1)])
def test_stall(
    valkey: servers.ServerStore, proxy: Proxy, connect: Callable[[], Raw], direction: str, carried_out: int
) -> None:
    """What is stalled is held back in its direction alone, and lost in none."""
    raw = connect()
    assert b"+PONG" == raw.do(b"PING\r\n")
    proxy.stall(direction)  # type: ignore[arg-type]
    raw.send(INCR)
    raw.socket.settimeout(0.2)
    with pytest.raises(TimeoutError):
        raw.line()
    assert carried_out == count(valkey)
    proxy.heal()
    raw.socket.settimeout(10)
    assert b":1" == raw.line()


def test_slow(proxy: Proxy, connect: Callable[[], Raw]) -> None:
    """Each direction takes so much longer."""
    raw = connect()
    assert b"+PONG" == raw.do(b"PING\r\n")
    proxy.slow(0.05)
    began = time.monotonic()
    assert b"+PONG" == raw.do(b"PING\r\n")
    assert 0.1 <= time.monotonic() - began < 5


def test_nothing_caught(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fault that never came about fails the test that waits for it."""
    monkeypatch.setattr("faults.proxy.PATIENCE", 0.01)
    with pytest.raises(TimeoutError, match=r"no request with .*INCR.* came within"):
        proxy.drop_reply(b"INCR").wait()


def test_close(valkey: servers.ServerStore) -> None:
    """Nothing is left of it: no thread, no connection; closing it twice does nothing."""
    proxy = Proxy(int(valkey.client.connection_pool.connection_kwargs["port"]))
    raw = Raw(proxy.port)
    assert b":1" == raw.do(INCR)
    proxy.close()
    proxy.close()
    assert b"" == raw.line()
    raw.socket.close()
    assert "fault proxy" not in {thread.name for thread in threading.enumerate()}
    with pytest.raises(ConnectionRefusedError):
        Raw(proxy.port)
