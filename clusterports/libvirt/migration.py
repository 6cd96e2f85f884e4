"""Live migration: the destination's QEMU listens on a port of its host for what the source sends."""

from __future__ import annotations

import ipaddress
import logging
import re
import socket
from contextlib import suppress
from math import inf
from typing import TYPE_CHECKING, Any, Final

from clusterports._lease import LABEL_JOB, monotonic
from clusterports._names import check_name
from clusterports._text import redact_url, show
from clusterports._wants import check_wait
from clusterports.errors import ConfigurationError
from clusterports.ranges import MAX_PORT, PORT_BOUND, PortRequest

from ._attempt import attempt, give_back, in_use, take
from ._binding import binding, code
from ._jobs import GONE, LABEL_DOMAIN, own_labels
from ._ledger import LONGEST_BEGIN

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from clusterports import Allocation, PortAllocator

__all__ = ["migrate", "settle_migrations"]

logger = logging.getLogger("clusterports")

KIND: Final = "migration"

STORAGE: Final = "storage"
"""What a port is for that is not the migration's own: the copy of the disks."""

URI: Final = "migrate_uri"
DISKS_URI: Final = "disks_uri"
DISKS_PORT: Final = "disks_port"
LISTEN_ADDRESS: Final = "listen_address"
"""libvirt's names of parameters."""

PEER2PEER: Final = 2
TUNNELLED: Final = 4
NON_SHARED: Final = 64 | 128
"""libvirt's flags: VIR_MIGRATE_PEER2PEER, _TUNNELLED, and _NON_SHARED_DISK or _NON_SHARED_INC."""

RUNNING: Final = 1
PAUSED: Final = 3
INCOMING: Final = {RUNNING: (10, 11), PAUSED: (2, 11, 12, 13)}
"""libvirt's states of a domain on the host that it migrates to, and their reasons: RUNNING for POSTCOPY and for
POSTCOPY_FAILED; PAUSED for MIGRATION, STARTING_UP, POSTCOPY and POSTCOPY_FAILED."""

MIGRATION_OUT: Final = 5
"""libvirt's number of what such a job does."""

_URI: Final = re.compile(r"((?:tcp|rdma):(?://)?)(\[[^\]]*\]|[^]:/?[]+)(?::([0-9]*))?([/?].*)?", re.DOTALL)

_underway: list[tuple[str, str]] = []
"""Host and domain of each call that is being made in this process."""

_missed: dict[tuple[str, int, int], float] = {}
"""Host, lease and fence of each port that stays held, and since when its migration is missing on the destination."""


class _Asked:
    """What a migration needs: parameters of libvirt, and the ports that are to be filled in there."""

    def __init__(self, params: Mapping[str, Any] | None, flags: int, address: str) -> None:
        self.params = dict(params or {})
        self.ports: dict[str, int | None] = {}
        """By parameter; None: any that is free."""
        if flags & TUNNELLED:  # within the connection of the daemons
            return
        if not self.params.get(URI):
            self.params[URI] = f"tcp://[{address}]" if ":" in address else f"tcp://{address}"
        self._add_uri(URI)
        if flags & NON_SHARED:
            if self.params.get(DISKS_URI):
                self._add_uri(DISKS_URI)
            else:
                self._add(DISKS_PORT, self.params.get(DISKS_PORT, 0))
        self._listen()

    def _add_uri(self, key: str) -> None:
        if not isinstance(self.params[key], str):
            raise ConfigurationError(f"params: {key}: must be a URI, got {show(self.params[key])}")
        if found := _URI.fullmatch(self.params[key]):
            self._add(key, int((found[3] or "0")[:9]))

    def _add(self, key: str, number: object) -> None:
        if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_PORT:
            raise ConfigurationError(f"params: {key}: its port must be {PORT_BOUND}, or none; got {show(number)}")
        self.ports[key] = number or None

    def _listen(self) -> None:
        """Where only IPv4 leads to the destination, let QEMU listen there only.

        Left alone it listens on both, and is content with IPv6 where something else has the port on IPv4: then the
        source sends to that, and waits for ever.
        """
        found = _URI.fullmatch(self.params[URI])
        if found and LISTEN_ADDRESS not in self.params and _only_ipv4(found[2]):
            self.params[LISTEN_ADDRESS] = "0.0.0.0"

    def filled(self, given: Sequence[Allocation]) -> dict[str, Any]:
        """The parameters with these ports."""
        params = dict(self.params)
        for key, port in zip(self.ports, given, strict=True):
            if found := key != DISKS_PORT and _URI.fullmatch(params[key]):
                params[key] = f"{found[1]}{found[2]}:{port.number}{found[4] or ''}"
            else:
                params[key] = port.number
        return params

    def in_use(self, error: Exception, given: Sequence[Allocation]) -> tuple[set[Allocation], bool]:
        """As :func:`in_use`; QEMU names the command that failed."""
        busy, certain = in_use(error, given)
        storage = {port for key, port in zip(self.ports, given, strict=True) if key != URI}
        if "nbd-server-start" in str(error):
            busy &= storage
        elif "migrate-incoming" in str(error):
            busy -= storage
        return busy, certain


def _only_ipv4(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.strip("[]")).version == 4
    except ValueError:
        pass
    try:
        found = {family for family, *_ in socket.getaddrinfo(address, None, type=socket.SOCK_STREAM)}
    except OSError:  # a name that is not for this machine to know
        return False
    return found == {socket.AF_INET}


def migrate(
    ports: PortAllocator,
    domain: Any,
    destination: Any,
    *,
    host: str,
    address: str | None = None,
    params: Mapping[str, Any] | None = None,
    flags: int = 0,
    range: str = "migration",
    owner: str | None = None,
    labels: Mapping[str, str] | None = None,
    wait: float = 0.0,
) -> Any:
    """Migrate a domain that runs, as libvirt's ``migrate3`` does, on ports that are held meanwhile on the destination.

    ``domain``: a ``virDomain``. ``destination``: an open connection to the daemon there. For
    ``VIR_MIGRATE_PEER2PEER`` (libvirt's ``migrateToURI3``) its URI is what the source's daemon connects to; then
    ``destination`` may also be the URI itself.
    ``host``: the name under which all managers know the destination. ``address``: under which the source's QEMU
    reaches it; default what the destination calls itself, or ``host`` where it is a URI. ``params``, ``flags``:
    libvirt's. A ``migrate_uri`` without a port gets one of the range, and where storage is copied, so does
    ``disks_port`` or ``disks_uri``; what is named is claimed, and not changed. Tunnelled migrations need none. Where
    QEMU says that something else has a port, it is marked as foreign and the next one tried. ``owner``: default the
    domain's name. ``wait``: seconds to wait for free ports.

    When the call comes back, the ports are free again. Only when it failed and it cannot be found out whether the
    migration goes on (by asking the destination's daemon, and for ``VIR_MIGRATE_PEER2PEER`` the source's, each over a
    new connection if need be), or it does go on, do they stay held: :func:`settle_migrations` gives them back later.

    Ports of the domain's display are another matter: those that libvirt chose it chooses anew on the destination, but
    those that were filled in are the same there, unless ``params`` has a ``destination_xml`` with others.

    Returns the domain on the destination; None where that is a URI.

    :raises PortInUse: a port that is named is held, or something else has it. libvirt was not asked, or refused.
    :raises PortsExhausted: no port of the range is free.
    :raises ConfigurationError: a value out of its bounds, or a URI without ``VIR_MIGRATE_PEER2PEER``.
    :raises libvirtError: the migration failed.
    :raises: what :meth:`PortAllocator.acquire` raises.
    """
    peers = bool(flags & PEER2PEER)
    check_name("host", host)
    until = monotonic() + check_wait(wait)
    if isinstance(destination, str):
        if not peers:
            raise ConfigurationError(
                f"destination: must be a connection without VIR_MIGRATE_PEER2PEER, got {show(redact_url(destination))}"
            )
        uri, named = destination, address or host
    else:
        if not hasattr(destination, "lookupByUUIDString"):
            raise ConfigurationError(f"destination: must be a connection or a URI, got {show(destination)}")
        uri, named = destination.getURI(), address or str(destination.getHostname())
        settle_migrations(ports, destination, host=host)
    asked = _Asked(params, flags, named)
    uuid, name = domain.UUIDString(), domain.name()
    requests = [
        PortRequest(
            range if number is None else ports._ranges.home(range, number),
            host=host,
            port=number,
            owner=name if owner is None else owner,
            labels=own_labels(KIND, uuid, labels, "" if key == URI else STORAGE),
        )
        for key, number in asked.ports.items()
    ]
    held: list[Allocation] = []

    def taken(skip: Collection[int]) -> Sequence[Allocation]:
        held[:] = take(ports, requests, max(0.0, until - monotonic()), skip)
        return held

    def start(given: Sequence[Allocation]) -> Any:
        filled = asked.filled(given)
        if not peers:
            return domain.migrate3(destination, filled, flags)
        domain.migrateToURI3(uri, filled, flags)
        return None

    def goes_on() -> bool | None:
        answers = [] if isinstance(destination, str) else [_ask(destination, lambda there: _comes_in(there, uuid))]
        if True in answers:
            _seen(held)
        if peers:  # it may not have come to the destination yet
            source = domain.connect()
            # By the connection that the call was made with, the daemon has answered: nothing of it waits there.
            answers.append(_ask(source, lambda here: _goes_out(here, uuid, waiting=here is not source)))
        return True if True in answers else None if None in answers else False

    here = (host, uuid)
    _underway.append(here)
    try:
        moved = attempt(ports, taken, requests, start, goes_on, asked.in_use)
    except Exception:
        raise
    except BaseException:  # an interrupt, when libvirt's call had come back
        if goes_on() is False:
            _give_back(held)
        raise
    finally:
        _underway.remove(here)
    _give_back(held)
    return moved if isinstance(destination, str) or not peers else destination.lookupByUUIDString(uuid)


def settle_migrations(ports: PortAllocator, destination: Any, *, host: str) -> list[Allocation]:
    """Give back the ports of migrations to this host of which nobody heard how they ended, and that are over.

    They are of calls of :func:`migrate` by this instance: one whose connection broke, or that an earlier process made.
    ``destination``: an open connection to the host's daemon. Each call of :func:`migrate` that has one does this too.
    Returns those whose migration goes on, or may yet reach the destination: for a minute after the first call that
    misses it there the source's daemon may be about to begin, unless it was seen there before.

    :raises libvirtError: the daemon cannot be asked. Nothing more is given back then.
    """
    jobs: dict[str, list[Allocation]] = {}
    for port in ports.allocations():
        uuid = port.labels.get(LABEL_DOMAIN, "")
        if port.host == host and port.labels.get(LABEL_JOB) == KIND and (host, uuid) not in _underway:
            jobs.setdefault(uuid, []).append(port)
    left = []
    for uuid, held in jobs.items():
        comes, now = _comes_in(destination, uuid), monotonic()
        if comes:
            _seen(held)
            left += held
            continue
        for port in held:
            if now - _missed.setdefault(_key(port), now) >= LONGEST_BEGIN:
                del _missed[_key(port)]
                give_back(port)
            else:
                left.append(port)
    return left


def _seen(held: Sequence[Allocation]) -> None:
    """On the destination: what is not there any more is over at once."""
    _missed.update((_key(port), -inf) for port in held)


def _key(port: Allocation) -> tuple[str, int, int]:
    return port.host, port.lease, port.fence


def _give_back(held: Sequence[Allocation]) -> None:
    for port in held:
        give_back(port)


def _comes_in(connection: Any, uuid: str) -> bool:
    """Whether a domain is being migrated to this host."""
    try:
        state, reason = connection.lookupByUUIDString(uuid).state()
    except binding().libvirtError as error:
        if code(error) in GONE:
            return False
        raise
    return reason in INCOMING.get(state, ())


def _goes_out(connection: Any, uuid: str, *, waiting: bool) -> bool:
    """Whether a domain is being migrated from this host. ``waiting``: or will be, once another job of it has ended."""
    try:
        domain = connection.lookupByUUIDString(uuid)
        if waiting:
            return domain.jobInfo()[0] != binding().VIR_DOMAIN_JOB_NONE  # type: ignore[no-any-return]
        return domain.jobStats().get("operation") == MIGRATION_OUT  # type: ignore[no-any-return]
    except binding().libvirtError as error:
        if code(error) in GONE:
            return False
        raise


def _ask(connection: Any, question: Callable[[Any], bool]) -> bool | None:
    """None: the daemon cannot be asked, also not over a new connection."""
    libvirt = binding()
    opened: Any = None
    try:
        if not connection.isAlive():
            connection = opened = libvirt.open(connection.getURI())
        return question(connection)
    except libvirt.libvirtError as error:
        logger.warning("whether a migration goes on cannot be found out: %s", error)
        return None
    finally:
        if opened is not None:
            with suppress(libvirt.libvirtError):
                opened.close()
