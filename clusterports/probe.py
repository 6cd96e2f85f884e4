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
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, TypeAlias

from .errors import AllocationError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from .abc import Protocol4

__all__ = [
    "FREE",
    "BindError",
    "EphemeralOverlap",
    "PortBusy",
    "Probe",
    "Verdict",
    "bound",
    "ephemeral_overlap",
    "is_local",
    "probe",
]

_KINDS: Final = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}
_WILDCARD: Final[dict[int, str]] = {socket.AF_INET: "0.0.0.0", socket.AF_INET6: "::"}
_ABSENT: Final = {errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL}
_SYSCTL: Final = Path("/proc/sys/net/ipv4")

Probe: TypeAlias = Callable[[str, int, Literal["tcp", "udp", "both"]], bool]
"""A caller's own probe: host, number, protocol; True when the port is free there."""


class Verdict(NamedTuple):
    """What the probe says of a port.

    ``busy``: something on this machine has it, it may be free later. ``error``: it could not be bound for
    another reason, such as a privileged number. ``reason`` is for people: number, address, the kernel's word.
    """

    state: Literal["free", "busy", "error"]
    reason: str = ""


FREE: Final = Verdict("free")


class BindError(AllocationError):
    """A port could not be bound on this machine; ``verdict`` says why."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(f"Unable to bind port {verdict.reason}")
        self.verdict = verdict


class PortBusy(BindError):
    """Something on this machine has the port, and nothing was bound."""


def probe(number: int, protocol: Protocol4 | Literal["both"] = "tcp") -> Verdict:
    """Whether the port, 1 to 65535, is free on every address of this machine; ``both``: for TCP and UDP.

    A machine without IPv6 (or without IPv4) is judged by what it has. Takes some 50 microseconds.
    """
    protocols: tuple[Protocol4, ...] = ("tcp", "udp") if protocol == "both" else (protocol,)
    for kind in protocols:
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
            return absent[0]
    return FREE


def bound(number: int, protocol: Protocol4 = "tcp", *, listen: bool = True) -> socket.socket:
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
    raise BindError(Verdict("error", f"{number}/{protocol}: neither IPv6 nor IPv4 is there")) from absent


def is_local(host: str) -> bool:
    """Whether it names this machine: its host name, that name's first label, or ``localhost``.

    Asks no resolver: an alias, an address, or a longer form than the machine's own name is not recognised.
    """
    name = socket.gethostname().lower()
    return host.lower() in {"localhost", name, name.partition(".")[0]}


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


def _families() -> tuple[socket.AddressFamily, ...]:
    return (socket.AF_INET, socket.AF_INET6) if socket.has_ipv6 else (socket.AF_INET,)


def _bind(
    number: int, protocol: Protocol4, family: socket.AddressFamily, *, v6only: bool, listen: bool = False
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
    return Verdict(state, f"{number}/{protocol} on {_WILDCARD[family]} ({word})")


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
