"""The probe on real sockets: a table of what can be on a port, and what is said of it."""

from __future__ import annotations

import errno
import os
import random
import resource
import socket
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from socket import AF_INET, AF_INET6, SOCK_DGRAM, SOCK_STREAM
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest

from clusterports.errors import AllocationError, BindError, PortBusy
from clusterports.probe import (
    FREE,
    HeldSockets,
    Verdict,
    bound,
    check,
    ephemeral_overlap,
    is_local,
    probe,
    warn_ephemeral,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Literal

    from clusterports.abc import Protocol4

    Single = Literal["tcp", "udp"]

pytestmark = pytest.mark.skipif(not Path("/proc/net/tcp").exists(), reason="the table is that of Linux")

ADDRESSES = [
    pytest.param(AF_INET, "127.0.0.1", None, id="127.0.0.1"),
    pytest.param(AF_INET, "0.0.0.0", None, id="0.0.0.0"),
    pytest.param(AF_INET6, "::1", None, id="::1"),
    pytest.param(AF_INET6, "::", False, id="::"),
    pytest.param(AF_INET6, "::", True, id="::v6only"),
]
OPTIONS = [
    pytest.param((), id="plain"),
    pytest.param((socket.SO_REUSEADDR,), id="reuseaddr"),
    pytest.param((socket.SO_REUSEPORT,), id="reuseport"),
    pytest.param((socket.SO_REUSEADDR, socket.SO_REUSEPORT), id="reuseaddr-reuseport"),
]
REUSEADDR = [pytest.param((), id="plain"), pytest.param((socket.SO_REUSEADDR,), id="reuseaddr")]
ESTABLISHED, FIN_WAIT2, TIME_WAIT = "01", "05", "06"


def open_socket(
    address: str = "127.0.0.1",
    number: int = 0,
    *,
    family: int = AF_INET,
    kind: int = SOCK_STREAM,
    options: tuple[int, ...] = (),
    v6only: bool | None = None,
    protocol: int = 0,
) -> socket.socket:
    """A socket bound to exactly this, which is what a foreign process might have."""
    sock = socket.socket(family, kind, protocol)
    try:
        for option in options:
            sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if v6only is not None:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind((address, number))
    except OSError:
        sock.close()
        raise
    return sock


@pytest.fixture
def number() -> int:
    """A port on which there is nothing at all, and that the kernel does not give to others meanwhile."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for candidate in random.sample(range(max(1024, low - 16000), low), 100):
        try:
            for kind in (SOCK_STREAM, SOCK_DGRAM):
                open_socket("::", candidate, family=AF_INET6, kind=kind, v6only=False).close()
        except OSError:
            continue
        return candidate
    pytest.fail("no unused port")


class Pair(NamedTuple):
    """Both ends of a connection over loopback, and the listener."""

    listener: socket.socket
    client: socket.socket
    server: socket.socket

    def close(self) -> None:
        for sock in self:
            sock.close()


@contextmanager
def connection(number: int, *, listening: tuple[int, ...] = (), connecting: tuple[int, ...] = ()) -> Iterator[Pair]:
    with ExitStack() as opened:
        listener = opened.enter_context(open_socket(number=number, options=listening))
        listener.listen()
        while True:
            client = opened.enter_context(socket.socket())
            for option in connecting:
                client.setsockopt(socket.SOL_SOCKET, option, 1)
            client.connect(listener.getsockname())
            server = opened.enter_context(listener.accept()[0])
            if len(states(client.getsockname()[1])) == 1:
                break
            for end in (client, server):  # an earlier connection left its mark on this local port: another one
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                end.close()
        yield Pair(listener, client, server)


def states(number: int) -> list[str]:
    """Of all that the kernel's table shows with this local port."""
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return [row[3] for row in rows if int(row[1].split(":")[1], 16) == number]


def wait_for_state(number: int, *wanted: str) -> None:
    """Until the kernel's table shows the port as a local one in one of the states, and in no other."""
    deadline = time.monotonic() + 5
    while True:
        seen = set(states(number))
        if seen and seen <= set(wanted):
            return
        assert time.monotonic() < deadline, f"port {number} is in states {seen}, not {wanted}"
        time.sleep(0.001)


def said(number: int, protocol: Single = "tcp") -> str:
    """The probe's word, once it is seen that binding the port for good has the same outcome."""
    state = probe(number, protocol).state
    try:
        bound(number, protocol).close()
        outcome = "free"
    except BindError as error:
        outcome = error.verdict.state
    assert outcome == state
    return state


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_nothing(number: int, protocol: Single) -> None:
    """A port on which there is nothing is free, and stays so after it was probed."""
    assert ["free", "free"] == [said(number, protocol), said(number, protocol)]
    assert FREE == probe(number, "both")


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("family", "address", "v6only"), ADDRESSES)
def test_tcp_listener(number: int, family: int, address: str, v6only: bool | None, options: tuple[int, ...]) -> None:
    """A listener is found on whatever address and with whatever options it listens; its port stays free for UDP."""
    with open_socket(address, number, family=family, v6only=v6only, options=options) as foreign:
        foreign.listen()
        assert ("busy", "free", "busy") == (said(number), said(number, "udp"), probe(number, "both").state)


def test_tcp_listener_on_one_device(number: int) -> None:
    """A listener that is tied to one network device is found."""
    with socket.socket() as foreign:
        try:
            foreign.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        except PermissionError:
            pytest.skip("this kernel lets only root tie a socket to a device")
        foreign.bind(("0.0.0.0", number))
        foreign.listen()
        assert "busy" == said(number)


@pytest.mark.parametrize("options", REUSEADDR)
def test_multipath_tcp_listener(number: int, options: tuple[int, ...]) -> None:
    """A listener of Multipath TCP (the default of Go's servers) is found."""
    try:
        foreign = open_socket(number=number, options=options, protocol=262)  # IPPROTO_MPTCP, linux/in.h
    except OSError as error:
        pytest.skip(f"no Multipath TCP on this machine: {error.strerror}")
    with foreign:
        foreign.listen()
        assert "busy" == said(number)


@pytest.mark.parametrize(("family", "address", "v6only"), ADDRESSES)
def test_tcp_bound_without_reuse(number: int, family: int, address: str, v6only: bool | None) -> None:
    """A socket that is bound without SO_REUSEADDR has its port before it listens."""
    with open_socket(address, number, family=family, v6only=v6only):
        assert "busy" == said(number)


@pytest.mark.parametrize(("family", "address", "v6only"), ADDRESSES)
def test_tcp_bound_with_reuse(number: int, family: int, address: str, v6only: bool | None) -> None:
    """A socket bound with SO_REUSEADDR has its port only once it listens, and cannot when we were first."""
    options = (socket.SO_REUSEADDR,)
    with open_socket(address, number, family=family, v6only=v6only, options=options) as foreign:
        assert "free" == said(number)
        with bound(number), pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
            foreign.listen()
        with bound(number, listen=False) as late:
            foreign.listen()
            with pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
                late.listen()


@pytest.mark.parametrize(("options", "word"), [((), "busy"), ((socket.SO_REUSEADDR,), "free")])
def test_outgoing_connection(number: int, options: tuple[int, ...], word: str) -> None:
    """A connection's local port is busy, unless its socket was willing to share: then a server can listen there."""
    with connection(number, connecting=options) as pair:
        local = pair.client.getsockname()[1]
        wait_for_state(local, ESTABLISHED)
        assert word == said(local)
        pair.client.close()
        pair.server.close()
        wait_for_state(local, TIME_WAIT)
        assert word == said(local)


@pytest.mark.parametrize(("options", "word"), [((), "busy"), ((socket.SO_REUSEADDR,), "free")])
def test_what_a_server_leaves(number: int, options: tuple[int, ...], word: str) -> None:
    """A server's open connection, FIN_WAIT2 and TIME_WAIT leave the port free if the server had SO_REUSEADDR."""
    with connection(number, listening=options) as pair:
        pair.listener.close()
        wait_for_state(number, ESTABLISHED)
        assert word == said(number)
        pair.server.close()
        wait_for_state(number, FIN_WAIT2)
        assert word == said(number)
        pair.client.close()
        wait_for_state(number, TIME_WAIT)
        assert word == said(number)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("family", "address", "v6only"), ADDRESSES)
def test_udp(number: int, family: int, address: str, v6only: bool | None, options: tuple[int, ...]) -> None:
    """A UDP socket is found on whatever address and with whatever options; its port stays free for TCP."""
    with open_socket(address, number, family=family, kind=SOCK_DGRAM, v6only=v6only, options=options):
        assert ("free", "busy", "busy") == (said(number), said(number, "udp"), probe(number, "both").state)


def test_udp_connected(number: int) -> None:
    """The local port of a connected UDP socket is busy."""
    with socket.socket(AF_INET, SOCK_DGRAM) as foreign:
        foreign.connect(("127.0.0.1", number))
        assert "busy" == said(foreign.getsockname()[1], "udp")


def test_busy_reason(number: int) -> None:
    """Number, protocol, address and the kernel's word are in the reason, and in the error of a failed bind."""
    with open_socket("::", number, family=AF_INET6, v6only=True) as foreign:
        foreign.listen()
        reason = f"{number}/tcp on :: ({os.strerror(errno.EADDRINUSE)})"
        assert Verdict("busy", reason) == probe(number)
        with pytest.raises(PortBusy) as caught:
            bound(number)
    assert f"Unable to bind port {reason}" == str(caught.value)
    assert isinstance(caught.value, AllocationError)


@contextmanager
def unprivileged() -> Iterator[int]:
    """A user to whom a privileged port is refused, and such a port."""
    first = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
    if first < 2:
        pytest.skip("no port is privileged here")
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        yield first - 1
    finally:
        if before == 0:
            os.seteuid(before)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_privileged(protocol: Single) -> None:
    """A port that this user may not bind is an error with its text, which is neither free nor busy."""
    with unprivileged() as number:
        reason = f"{number}/{protocol} on 0.0.0.0 ({os.strerror(errno.EACCES)})"
        assert Verdict("error", reason, fatal=False) == probe(number, protocol)
        with pytest.raises(BindError, match=os.strerror(errno.EACCES)) as caught:
            bound(number, protocol)
    assert not isinstance(caught.value, PortBusy)
    assert "error" == caught.value.verdict.state


def refusing(code: int, *families: int, at: str) -> Callable[..., socket.socket]:
    """``socket.socket`` of a machine that lacks these families, and says so at this step."""
    real = socket.socket

    class Refusing(real):  # type: ignore[misc, valid-type]
        def __init__(self, family: int = AF_INET, *args: Any) -> None:
            if at == "socket" and family in families:
                raise OSError(code, os.strerror(code))
            super().__init__(family, *args)

        def bind(self, address: Any) -> None:
            if at == "bind" and self.family in families:
                raise OSError(code, os.strerror(code))
            super().bind(address)

    return Refusing


NO_IPV6 = [
    pytest.param(errno.EAFNOSUPPORT, "socket", id="EAFNOSUPPORT"),
    pytest.param(errno.EADDRNOTAVAIL, "bind", id="EADDRNOTAVAIL"),
    pytest.param(0, "", id="python-without-ipv6"),
]


@pytest.mark.parametrize(("code", "at"), NO_IPV6)
def test_without_ipv6(number: int, code: int, at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without IPv6 is judged by IPv4 alone, and its bound socket is on 0.0.0.0."""
    if code:
        monkeypatch.setattr(socket, "socket", refusing(code, AF_INET6, at=at))
    else:
        monkeypatch.setattr(socket, "has_ipv6", False)
    assert FREE == probe(number, "both")
    with bound(number) as ours:
        assert (AF_INET, ("0.0.0.0", number)) == (ours.family, ours.getsockname())
        assert "busy" == probe(number).state
    with bound(number, "udp") as ours:
        assert (AF_INET, ("0.0.0.0", number)) == (ours.family, ours.getsockname())


def test_without_any_family(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where neither IPv4 nor IPv6 can be used nothing is free, and the reason is said."""
    monkeypatch.setattr(socket, "socket", refusing(errno.EAFNOSUPPORT, AF_INET, AF_INET6, at="socket"))
    reason = f"{number}/tcp on 0.0.0.0 ({os.strerror(errno.EAFNOSUPPORT)})"
    assert Verdict("error", reason, fatal=True) == probe(number)
    with pytest.raises(BindError, match="neither IPv6 nor IPv4") as caught:
        bound(number)
    assert caught.value.verdict.fatal


@contextmanager
def no_descriptors() -> Iterator[None]:
    """This process may open no more files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with Path(os.devnull).open() as lowest:
        limit = lowest.fileno()
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_no_descriptors_left(number: int, protocol: Single) -> None:
    """What befalls every port alike says nothing of this one: an error by which a search has to stop."""
    reason = f"{number}/{protocol} on 0.0.0.0 ({os.strerror(errno.EMFILE)})"
    held = HeldSockets()
    with no_descriptors():
        assert Verdict("error", reason, fatal=True) == probe(number, protocol)
        with pytest.raises(BindError, match=os.strerror(errno.EMFILE)) as caught:
            bound(number, protocol)
        assert check(held, "localhost", number, protocol).fatal
    assert not isinstance(caught.value, PortBusy)
    assert isinstance(caught.value.__cause__, OSError)
    assert [] == held.take(number, protocol)


@pytest.mark.parametrize("number", [-1, 0, 65536])
def test_not_a_port(number: int) -> None:
    """A number that is none is refused: to bind 0 would be to get any port."""
    with pytest.raises(ValueError, match="1 to 65535"):
        probe(number)
    with pytest.raises(ValueError, match="1 to 65535"):
        bound(number)


@pytest.mark.parametrize("address", [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")])
def test_bound_tcp_is_served(number: int, address: tuple[int, str]) -> None:
    """A client of IPv4 or IPv6 connects at once and is there when the server gets to accept it."""
    with bound(number) as ours, socket.socket(address[0]) as client:
        client.connect((address[1], number))
        client.sendall(b"early")
        accepted, _ = ours.accept()
        with accepted:
            assert b"early" == accepted.recv(5)


@pytest.mark.parametrize("address", [(AF_INET, "127.0.0.1"), (AF_INET6, "::1")])
def test_bound_udp_is_served(number: int, address: tuple[int, str]) -> None:
    """A UDP socket gets the datagrams of both families."""
    with bound(number, "udp") as ours, socket.socket(address[0], SOCK_DGRAM) as client:
        client.sendto(b"datagram", (address[1], number))
        assert b"datagram" == ours.recv(8)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize(("family", "address", "v6only"), ADDRESSES)
def test_bound_cannot_be_stolen(
    number: int, family: int, address: str, v6only: bool | None, options: tuple[int, ...], protocol: Single
) -> None:
    """Once it is bound (TCP: listens) nobody else can bind the port, whatever the address and the options."""
    kind = SOCK_STREAM if protocol == "tcp" else SOCK_DGRAM
    with bound(number, protocol), pytest.raises(OSError, match=os.strerror(errno.EADDRINUSE)):
        open_socket(address, number, family=family, kind=kind, v6only=v6only, options=options).close()


def test_bound_is_not_inherited_and_blocks(number: int) -> None:
    """The socket stays in this process unless it is handed on, and is a blocking one whatever Python's default."""
    socket.setdefaulttimeout(1.0)
    try:
        with bound(number) as ours:
            assert (False, True) == (ours.get_inheritable(), os.get_blocking(ours.fileno()))
    finally:
        socket.setdefaulttimeout(None)


def test_bound_after_a_crash(number: int) -> None:
    """A port is bound again at once although connections of the one before linger in TIME_WAIT."""
    with bound(number) as ours, socket.create_connection(("127.0.0.1", number)) as client:
        ours.accept()[0].close()
        assert b"" == client.recv(1)
    bound(number).close()


@pytest.mark.parametrize(
    ("name", "host", "expected"),
    [
        ("kvm-07", "kvm-07", True),
        ("kvm-07", "KVM-07", True),
        ("kvm-07", "localhost", True),
        ("kvm-07", "kvm-070", False),
        ("kvm-07", "kvm-07.example.org", False),
        ("kvm-07", "127.0.0.1", False),
        ("kvm-07", "", False),
        ("kvm-07.example.org", "kvm-07.example.org", True),
        ("kvm-07.example.org", "kvm-07", True),
        ("kvm-07.example.org", "kvm-07.example", False),
        ("kvm-07.example.org", "example.org", False),
    ],
)
def test_is_local(name: str, host: str, expected: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host is this machine under its own name, that name's first label, or localhost; no resolver is asked."""
    monkeypatch.setattr(socket, "gethostname", lambda: name)
    monkeypatch.setattr(socket, "getaddrinfo", None)
    assert expected is is_local(host)


HERE = "localhost"
ELSEWHERE = "no-such-host.invalid"


def test_both(number: int) -> None:
    """For both protocols a port has to be free in both; the reason names the one that is not."""
    with bound(number, "udp"):
        verdict = probe(number, "both")
    assert Verdict("busy", f"{number}/udp on 0.0.0.0 ({os.strerror(errno.EADDRINUSE)})") == verdict
    with bound(number, "tcp"):
        verdict = probe(number, "both")
    assert Verdict("busy", f"{number}/tcp on 0.0.0.0 ({os.strerror(errno.EADDRINUSE)})") == verdict


@pytest.mark.parametrize("protocol", ["tcp", "udp", "both"])
def test_check(number: int, protocol: Protocol4) -> None:
    """`auto` asks the kernel of this machine's ports alone, False nobody, and a callable has the last word."""
    asked: list[tuple[str, int, str]] = []

    def says(answer: bool) -> Callable[[str, int, Protocol4], bool]:
        def say(host: str, port: int, kind: Protocol4) -> bool:
            asked.append((host, port, kind))
            return answer

        return say

    with bound(number), bound(number, "udp"):
        assert "busy" == check("auto", HERE, number, protocol).state
        assert FREE == check("auto", ELSEWHERE, number, protocol)
        assert FREE == check(False, HERE, number, protocol)
        assert FREE == check(says(True), HERE, number, protocol)
    assert FREE == check("auto", HERE, number, protocol)
    no = Verdict("busy", f"{number}/{protocol} on host '{ELSEWHERE}' (so says the probe)")
    assert no == check(says(False), ELSEWHERE, number, protocol)
    assert [(HERE, number, protocol), (ELSEWHERE, number, protocol)] == asked


def test_check_of_a_callable_that_fails(number: int) -> None:
    """A BindError is a verdict; any other exception of a caller's probe is the caller's."""
    verdict = Verdict("error", "no")

    def refuse(host: str, port: int, protocol: Protocol4) -> bool:
        raise BindError(verdict)

    def fail(host: str, port: int, protocol: Protocol4) -> bool:
        raise LookupError

    assert verdict == check(refuse, HERE, number, "tcp")
    with pytest.raises(LookupError):
        check(fail, HERE, number, "tcp")


@pytest.mark.parametrize(
    ("protocol", "kinds"), [("tcp", [SOCK_STREAM]), ("udp", [SOCK_DGRAM]), ("both", [SOCK_STREAM, SOCK_DGRAM])]
)
def test_held_sockets(number: int, protocol: Protocol4, kinds: list[int]) -> None:
    """What is said to be free is bound from then on, TCP listens, and it is handed over once."""
    with HeldSockets() as held:
        assert held(HERE, number, protocol)
        assert "busy" == probe(number, protocol).state
        sockets = held.take(number, protocol)
        assert [] == held.take(number, protocol)
    assert kinds == [sock.type for sock in sockets]
    assert [number] * len(kinds) == [sock.getsockname()[1] for sock in sockets]
    assert "busy" == probe(number, protocol).state
    for sock in sockets:
        assert (sock.type == SOCK_STREAM) is bool(sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
        sock.close()
    assert FREE == probe(number, protocol)


def test_held_sockets_one_by_one(number: int) -> None:
    """Of a port for both protocols each socket can be taken alone; the other stays."""
    with HeldSockets() as held:
        assert held(HERE, number, "both")
        [udp] = held.take(number, "both", "udp")
        assert [] == held.take(number, "both", "udp")
        udp.close()
        assert ("busy", "free") == (probe(number, "tcp").state, probe(number, "udp").state)
        [tcp] = held.take(number, "both")
        assert (SOCK_DGRAM, SOCK_STREAM) == (udp.type, tcp.type)
        tcp.close()
    assert FREE == probe(number, "both")


@pytest.mark.parametrize("taken", ["tcp", "udp"])
def test_held_sockets_of_a_busy_port(number: int, taken: Single) -> None:
    """A port that is busy for one protocol is busy for both, and nothing of it is kept."""
    other: Single = "udp" if taken == "tcp" else "tcp"
    with HeldSockets() as held:
        with bound(number, taken):
            assert not held(HERE, number, taken)
            assert not held(HERE, number, "both")
            assert FREE == probe(number, other)
        assert held(HERE, number, "both")


def test_held_sockets_are_closed(number: int) -> None:
    """Discarded ports and, in the end, all that were not taken are free again."""
    held = HeldSockets()
    assert held(HERE, number, "tcp")
    held.discard(number, "udp")
    held.discard(number, "tcp", ELSEWHERE)
    assert "busy" == probe(number).state
    held.discard(number, "tcp")
    assert FREE == probe(number)
    with held:
        assert held(HERE, number, "both")
    assert FREE == probe(number, "both")
    held.close()


def test_held_sockets_asked_again(number: int) -> None:
    """A port that it holds already is free to the host that it was bound for, and to no other."""
    with HeldSockets(any_host=True) as held:
        assert [True, True, False] == [held(host, number, "tcp") for host in (ELSEWHERE, ELSEWHERE, HERE)]
        for sock in held.take(number, "tcp"):
            assert not held(ELSEWHERE, number, "tcp")
            sock.close()


def test_held_sockets_of_another_host(number: int) -> None:
    """Nothing is bound here for another host, unless that is wanted."""
    with HeldSockets() as held, bound(number):
        assert held(ELSEWHERE, number, "tcp")
        assert [] == held.take(number, "tcp")
    with HeldSockets(any_host=True) as held:
        assert held(ELSEWHERE, number, "tcp")
        assert "busy" == probe(number).state


def test_held_sockets_and_a_privileged_port() -> None:
    """A port that may not be bound is an error, not a busy one."""
    with unprivileged() as number, HeldSockets() as held:
        with pytest.raises(BindError, match=os.strerror(errno.EACCES)) as caught:
            held(HERE, number, "tcp")
        assert caught.value.verdict == check(held, HERE, number, "tcp")
    assert ("error", False) == (caught.value.verdict.state, caught.value.verdict.fatal)


def test_held_sockets_of_many_threads(number: int) -> None:
    """Of many that take one port at once, one gets it."""
    with HeldSockets() as held, ThreadPoolExecutor(8) as pool:
        assert held(HERE, number, "tcp")
        taken = list(pool.map(lambda _: held.take(number, "tcp"), range(64)))
    [sock] = [sock for sockets in taken for sock in sockets]
    sock.close()


@pytest.fixture
def sysctl(tmp_path: Path) -> Callable[[str, str], Path]:
    def write(ephemeral: str, reserved: str) -> Path:
        (tmp_path / "ip_local_port_range").write_text(ephemeral)
        (tmp_path / "ip_local_reserved_ports").write_text(reserved)
        return tmp_path

    return write


CURE = "sysctl -w net.ipv4.ip_local_reserved_ports="


@pytest.mark.parametrize(
    ("first", "last", "reserved", "ports", "cured"),
    [
        (49152, 49215, "\n", "49152-49215", "49152-49215"),
        (49152, 49215, "8080,9000-9010\n", "49152-49215", "8080,9000-9010,49152-49215"),
        (49152, 49215, "49216-49300\n", "49152-49215", "49152-49300"),
        (49152, 49215, "49160-49170,49172\n", "49152-49159,49171,49173-49215", "49152-49215"),
        (49152, 49215, "49153-49214\n", "49152,49215", "49152-49215"),
        (32000, 32768, "\n", "32768", "32768"),
        (60999, 65535, "\n", "60999", "60999"),
    ],
)
def test_ephemeral_overlap(
    first: int, last: int, reserved: str, ports: str, cured: str, sysctl: Callable[[str, str], Path]
) -> None:
    """The overlap is named, and the cure reserves it and keeps what is reserved already."""
    overlap = ephemeral_overlap(first, last, sysctl=sysctl("32768\t60999\n", reserved))
    assert (ports, "32768-60999", CURE + cured) == overlap
    warning = f"ports {ports} lie in the kernel's ephemeral ports 32768-60999, reserve them: {CURE}{cured}"
    assert warning == str(overlap)


@pytest.mark.parametrize(
    ("first", "last", "reserved"),
    [(10809, 10872, "\n"), (32767, 32767, "\n"), (61000, 65535, "\n"), (49152, 49215, "49000-50000\n")],
)
def test_no_ephemeral_overlap(first: int, last: int, reserved: str, sysctl: Callable[[str, str], Path]) -> None:
    """There is none beside the kernel's range, nor where all of it is reserved."""
    assert ephemeral_overlap(first, last, sysctl=sysctl("32768\t60999\n", reserved)) is None


def test_ephemeral_overlap_without_cure(sysctl: Callable[[str, str], Path]) -> None:
    """Nobody is told to reserve most of the kernel's ports: the machine could hardly connect to anything then."""
    half = ephemeral_overlap(101, 150, sysctl=sysctl("101 200", ""))
    more = ephemeral_overlap(101, 151, sysctl=sysctl("101 200", ""))
    left = ephemeral_overlap(101, 111, sysctl=sysctl("101 200", "121-200"))
    assert half is not None
    assert more is not None
    assert left is not None
    assert (f"{CURE}101-150", None, None) == (half.sysctl, more.sysctl, left.sysctl)
    assert str(more).startswith("ports 101-151 lie in the kernel's ephemeral ports 101-200, they are too many")


def test_warning_of_ephemeral_ports(sysctl: Callable[[str, str], Path], caplog: pytest.LogCaptureFixture) -> None:
    """A range in the kernel's ephemeral ports is told once, with the line that cures it; another one is told too."""
    warn = partial(warn_ephemeral, sysctl=sysctl("32768\t60999\n", "\n"))
    with ThreadPoolExecutor(4) as pool:
        for arguments in (("w1", 49152, 49215), ("w2", 10809, 10872), ("w3", 49152, 49152)):
            list(pool.map(warn, *([argument] * 16 for argument in arguments)))
    overlap = "ports {0} lie in the kernel's ephemeral ports 32768-60999, reserve them: " + CURE + "{0}"
    assert [
        f"range 'w1' (49152-49215): {overlap.format('49152-49215')}",
        f"range 'w3' (49152-49152): {overlap.format('49152')}",
    ] == caplog.messages
    assert {("clusterports", "WARNING")} == {(record.name, record.levelname) for record in caplog.records}


@pytest.mark.parametrize("ephemeral", [None, "", "what"])
def test_ephemeral_ports_unknown(ephemeral: str | None, tmp_path: Path) -> None:
    """Where the kernel does not say which ports are ephemeral there is nothing to warn of."""
    if ephemeral is not None:
        (tmp_path / "ip_local_port_range").write_text(ephemeral)
        (tmp_path / "ip_local_reserved_ports").write_text("")
    assert ephemeral_overlap(1, 65535, sysctl=tmp_path) is None


def test_ephemeral_overlap_of_this_machine() -> None:
    """The kernel's own files are read: an ephemeral port, as an outgoing connection gets it, is found there."""
    with socket.socket(AF_INET, SOCK_DGRAM) as sock:
        sock.connect(("127.0.0.1", 9))
        number = sock.getsockname()[1]
    overlap = ephemeral_overlap(number, number)
    assert overlap is not None
    assert str(number) == overlap.ports
