"""Whether a port is free on this machine: asked of the kernel, by binding it.

:func:`probe` binds the wildcard of IPv4 and of IPv6 and lets go again. It does not listen, because a client
that connects in that moment would be accepted by nobody. A bind alone finds every listener all the same: the
kernel lets two sockets with SO_REUSEADDR share a port only while none of them listens. What it says, on Linux:

=====================================================  =======  ==============================================
on the port                                            verdict  why
=====================================================  =======  ==============================================
nothing                                                free
TCP listener on 127.0.0.1, 0.0.0.0, [::1], [::],       busy     with or without SO_REUSEADDR or SO_REUSEPORT
[::] with IPV6_V6ONLY, on one device, of MPTCP
TCP bound, not listening                               busy
the same with SO_REUSEADDR                             free     whoever listens first has it: see `bound`
outgoing TCP connection's local port, also its         busy     nobody could listen there
TIME_WAIT
the same from a socket with SO_REUSEADDR               free     a server with SO_REUSEADDR may listen there
TIME_WAIT or connection left by a server that had      free     the reason why the probe sets SO_REUSEADDR
SO_REUSEADDR
TIME_WAIT or connection left by a server without it    busy     both must have had it; 60 s, or the connection
UDP socket on any of these addresses, with or without  busy     two with SO_REUSEADDR would share the port and
SO_REUSEADDR or SO_REUSEPORT, also a connected one              its datagrams, so the probe does not set it
the other protocol's socket                            free     their numbers are independent
=====================================================  =======  ==============================================

The probe sees its own network namespace: not the ports of containers, nor those that a packet filter redirects.

:func:`bound` takes the port by the same bind and keeps it. It succeeds where the probe says free, and once it
listens nobody else can bind the port, on any address, with any option: there is no gap between looking and taking.
:class:`HeldSockets` is a probe that looks in this way.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from .errors import BindError, PortBusy

if TYPE_CHECKING:
    from collections.abc import Iterable
    from types import TracebackType
    from typing import Self

    from .abc import Protocol4

__all__ = [
    "FREE",
    "EphemeralOverlap",
    "HeldSockets",
    "Probe",
    "Verdict",
    "bound",
    "check",
    "ephemeral_overlap",
    "is_local",
    "probe",
    "warn_ephemeral",
]

logger = logging.getLogger("clusterports")

_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_WILDCARD: Final[dict[int, str]] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_ABSENT: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_NOT_THE_PORT: Final = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_SYSCTL: Final = Path("/proc/sys/net/ipv4")

Probe: TypeAlias = Callable[[str, int, Literal["tcp", "udp", "both"]], bool]
"""A caller's own probe: host, number, protocol; True when the port is free there."""


class Verdict(NamedTuple):
    """What the probe says of a port.

    ``busy``: something on this machine has it, it may be free later. ``error``: it could not be bound for
    another reason, such as a privileged number. ``reason`` is for people: number, address, the kernel's word.
    ``fatal``: the error is not this port's, such as no descriptors left; another port would have it too.
    """

    state: Literal["free", "busy", "error"]
    reason: str = ""
    fatal: bool = False


FREE: Final = Verdict("free")


def probe(number: int, protocol: Protocol4 = "tcp") -> Verdict:
    """Whether the port, 1 to 65535, is free on every address of this machine; ``both``: for TCP and UDP.

    A machine without IPv6 (or without IPv4) is judged by what it has. Takes some 50 microseconds.
    """
    for kind in _each(protocol):
        absent: list[Verdict] = []
        families = _families()
        for family in families:
            try:
                _bind(number, kind, family, v6only=True).close()
            except OSError as error:
                verdict = _verdict(error, number, kind, family)
                if error.errno not in _ABSENT:
                    return verdict
                absent.append(verdict)
        if len(absent) == len(families):
            return absent[0]._replace(fatal=True)
    return FREE


def check(by: Probe | Literal["auto", False], host: str, number: int, protocol: Protocol4) -> Verdict:
    """What an allocator's probe says of a port on a host.

    ``auto``: :func:`probe` on this machine (see :func:`is_local`), elsewhere free unseen; False: always free. The
    `BindError` of a callable counts as its verdict; whatever else it raises is passed on.
    """
    if by is False:
        return FREE
    if by == "auto":
        return probe(number, protocol) if is_local(host) else FREE
    try:
        free = by(host, number, protocol)
    except BindError as error:
        return error.verdict
    return FREE if free else Verdict("busy", f"{number}/{protocol} on host {host!r} (so says the probe)")


def bound(number: int, protocol: Literal["tcp", "udp"] = "tcp", *, listen: bool = True) -> socket.socket:
    """A socket that has the port, 1 to 65535, on all addresses: to be served by the caller or handed to a job.

    One socket on [::] serves IPv4 too (as ``::ffff:a.b.c.d``); a machine without IPv6 gets one on 0.0.0.0.
    Clients of a listening one may connect at once and wait in its queue until the job is up. It is not
    inherited by child processes, unless ``subprocess`` is given it in ``pass_fds``.

    ``listen=False`` leaves a TCP socket bound only: until somebody listens on it, another process may still
    bind the port with SO_REUSEADDR and listen first. UDP sockets have the port for themselves once bound.

    :raises PortBusy: when something has it.
    :raises BindError: when it cannot be bound for another reason.
    """
    absent: OSError | None = None
    for family in reversed(_families()):
        try:
            return _bind(number, protocol, family, v6only=False, listen=listen)
        except OSError as error:
            if error.errno in _ABSENT:
                absent = error
                continue
            verdict = _verdict(error, number, protocol, family)
            raise (PortBusy if verdict.state == "busy" else BindError)(verdict) from error
    raise BindError(Verdict("error", f"{number}/{protocol}: neither IPv6 nor IPv4 is there", fatal=True)) from absent


def is_local(host: str) -> bool:
    """Whether it names this machine: its host name, that name's first label, or ``localhost``.

    Asks no resolver: an alias, an address, or a longer form than the machine's own name is not recognised.
    """
    name = socket.gethostname().lower()
    return host.lower() in {"localhost", name, name.partition(".")[0]}


class HeldSockets:
    """A :data:`Probe` that keeps what it bound, so that nobody can come between the look and the job.

    What it says is free has been bound as by :func:`bound`, and stays so until it is taken or discarded::

        with HeldSockets() as held, PortAllocator(url, probe=held) as ports, ports.acquire("backup") as port:
            [sock] = held.take(port.number, port.protocol)

    A port on a host that is not this machine (see :func:`is_local`) is said to be free, and nothing is bound;
    ``any_host=True`` binds it here all the same. May be used by several threads, and again after :meth:`close`.
    """

    def __init__(self, *, any_host: bool = False) -> None:
        self._any_host = any_host
        self._lock = Lock()
        self._held: dict[tuple[int, Protocol4], tuple[str, list[socket.socket]]] = {}

    def __call__(self, host: str, number: int, protocol: Protocol4) -> bool:
        """Whether the port is bound now, for this host. A busy one is not, and nothing of it is kept.

        :raises BindError: when it cannot be bound for another reason.
        """
        if not self._any_host and not is_local(host):
            return True
        with self._lock, ExitStack() as opened:
            if (number, protocol) in self._held:  # asked before, and the port was not given out after all
                return self._held[number, protocol][0] == host
            try:
                sockets = [opened.enter_context(bound(number, kind)) for kind in _each(protocol)]
            except PortBusy:
                return False
            self._held[number, protocol] = host, sockets
            opened.pop_all()
        return True

    def take(self, number: int, protocol: Protocol4, kind: Literal["tcp", "udp"] | None = None) -> list[socket.socket]:
        """Hand over the sockets of a port, which are the caller's to close: for ``both`` that of TCP, then of UDP.

        ``kind``: only that one. An empty list when it holds none, as for a host that is not this machine.
        """
        with self._lock:
            host, sockets = self._held.pop((number, protocol), ("", []))
            taken = [sock for sock in sockets if kind is None or sock.type == _KINDS[kind]]
            rest = [sock for sock in sockets if sock not in taken]
            if rest:
                self._held[number, protocol] = host, rest
            return taken

    def discard(self, number: int, protocol: Protocol4, host: str | None = None) -> None:
        """Close the sockets of a port, if it holds any; those of this host's, where one is named."""
        with self._lock:
            kept, sockets = self._held.get((number, protocol), ("", []))
            if host is not None and host != kept:
                return
            self._held.pop((number, protocol), None)
        for sock in sockets:
            sock.close()

    def close(self) -> None:
        """Close all that was not taken."""
        with self._lock:
            kept, self._held = self._held, {}
        for _, sockets in kept.values():
            for sock in sockets:
                sock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class EphemeralOverlap(NamedTuple):
    """Ports of a range that the kernel may give to outgoing connections. ``str()`` is a warning for people."""

    ports: str
    """As the kernel writes them: ``49152-49215,50000``."""
    ephemeral: str
    """The bounds of ``net.ipv4.ip_local_port_range``: ``32768-60999``."""
    sysctl: str | None
    """The command that takes them out. None when that would cost over half of the ports that the kernel has left."""

    def __str__(self) -> str:
        cure = f"reserve them: {self.sysctl}"
        if self.sysctl is None:
            cure = "they are too many to be reserved: change the bounds of the range, or net.ipv4.ip_local_port_range"
        return f"ports {self.ports} lie in the kernel's ephemeral ports {self.ephemeral}, {cure}"


def ephemeral_overlap(first: int, last: int, *, sysctl: Path = _SYSCTL) -> EphemeralOverlap | None:
    """The ports from first to last (inclusive) that the kernel may give to any outgoing connection.

    These are those of ``ip_local_port_range`` without ``ip_local_reserved_ports``. None when there are none,
    and where there is no such thing to read: not Linux, or no /proc.
    """
    try:
        low, high = map(int, (sysctl / "ip_local_port_range").read_text().split())
        reserved = _parse((sysctl / "ip_local_reserved_ports").read_text())
    except (OSError, ValueError):
        return None
    available = set(range(low, high + 1)) - reserved
    overlap = {port for port in available if first <= port <= last}
    if not overlap:
        return None
    command = None
    if 2 * len(overlap) <= len(available):
        command = f"sysctl -w net.ipv4.ip_local_reserved_ports={_spans(overlap | reserved)}"
    return EphemeralOverlap(_spans(overlap), f"{low}-{high}", command)


def warn_ephemeral(name: str, first: int, last: int, *, sysctl: Path = _SYSCTL) -> None:
    """Log a warning, once in this process for a range, if the kernel may give its ports to outgoing connections."""
    with _checking:
        if (name, first, last) in _checked:
            return
        _checked.add((name, first, last))
    overlap = ephemeral_overlap(first, last, sysctl=sysctl)
    if overlap is not None:
        logger.warning("range %r (%d-%d): %s", name, first, last, overlap)


_checking: Final = Lock()
_checked: Final[set[tuple[str, int, int]]] = set()


def _each(protocol: Protocol4) -> tuple[Literal["tcp", "udp"], ...]:
    return ("tcp", "udp") if protocol == "both" else (protocol,)


def _families() -> tuple[socket.AddressFamily, ...]:
    return (socket.AF_INET, socket.AF_INET6) if socket.has_ipv6 else (socket.AF_INET,)


def _bind(
    number: int, protocol: Literal["tcp", "udp"], family: socket.AddressFamily, *, v6only: bool, listen: bool = False
) -> socket.socket:
    if not 1 <= number <= 65535:  # 0 would be any port
        raise ValueError(f"port must be from 1 to 65535, got {number}")
    sock = socket.socket(family, _KINDS[protocol])
    try:
        sock.setblocking(True)  # whatever socket.setdefaulttimeout says: the job shares this flag
        if protocol == "tcp":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, v6only)
        sock.bind((_WILDCARD[family], number))
        if listen and protocol == "tcp":
            sock.listen(socket.SOMAXCONN)  # cut by the kernel to net.core.somaxconn
    except BaseException:
        sock.close()
        raise
    return sock


def _verdict(error: OSError, number: int, protocol: Protocol4, family: socket.AddressFamily) -> Verdict:
    word = os.strerror(error.errno) if error.errno else str(error)
    state: Literal["busy", "error"] = "busy" if error.errno == errno.EADDRINUSE else "error"
    reason = f"{number}/{protocol} on {_WILDCARD[family]} ({word})"
    return Verdict(state, reason, fatal=error.errno in _NOT_THE_PORT)


def _parse(spans: str) -> set[int]:
    ports: set[int] = set()
    for span in filter(None, spans.strip().split(",")):
        first, _, last = span.partition("-")
        ports.update(range(int(first), int(last or first) + 1))
    return ports


def _spans(ports: Iterable[int]) -> str:
    spans: list[list[int]] = []
    for port in sorted(ports):
        if spans and port == spans[-1][1] + 1:
            spans[-1][1] = port
        else:
            spans.append([port, port])
    return ",".join(f"{first}-{last}" if first < last else f"{first}" for first, last in spans)
