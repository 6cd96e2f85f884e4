"""What a migration asks of libvirt: ports are filled in where libvirt would choose them."""

from __future__ import annotations

import sys
from socket import AF_INET, AF_INET6
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from unit.fake_libvirt import FakeError, passing

from clusterports import ConfigurationError, PortAllocator
from clusterports.libvirt import _binding, migrate, migration, settle_migrations
from clusterports.libvirt._jobs import own_labels
from clusterports.libvirt._ledger import LONGEST_BEGIN
from clusterports.libvirt.migration import _Asked
from clusterports.probe import HeldSockets, bound

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from clusterports import Allocation

NON_SHARED_DISK = 64
PEER2PEER = 2

BACKUP, MIGRATION_OUT = 9, 5
"""Jobs, as libvirt counts them."""


@pytest.fixture
def ports() -> Iterator[PortAllocator]:
    with PortAllocator("memory://", probe=False) as allocator:
        yield allocator


@pytest.mark.parametrize(
    ("params", "flags", "expected"),
    [
        ({}, 0, {"migrate_uri": "tcp://h2:49152"}),
        ({"migrate_uri": "tcp://10.0.0.1"}, 0, {"migrate_uri": "tcp://10.0.0.1:49152", "listen_address": "0.0.0.0"}),
        ({"migrate_uri": "tcp:10.0.0.1:0"}, 0, {"migrate_uri": "tcp:10.0.0.1:49152", "listen_address": "0.0.0.0"}),
        ({"migrate_uri": "rdma://[fd00::1]/?x"}, 0, {"migrate_uri": "rdma://[fd00::1]:49152/?x"}),
        ({"migrate_uri": "tcp://[fd00::1]:5"}, 0, {"migrate_uri": "tcp://[fd00::1]:5"}),
        (
            {"migrate_uri": "unix:///s", "disks_uri": "unix:///t"},
            64,
            {"migrate_uri": "unix:///s", "disks_uri": "unix:///t"},
        ),
        (
            {"migrate_uri": "unix:///s", "disks_uri": "tcp://10.0.0.1"},
            64,
            {"migrate_uri": "unix:///s", "disks_uri": "tcp://10.0.0.1:49152"},
        ),
        (
            {"disks_port": 0, "bandwidth": 3},
            128,
            {"migrate_uri": "tcp://h2:49152", "disks_port": 49153, "bandwidth": 3},
        ),
        ({}, 4 | 2, {}),
    ],
)
def test_params(
    ports: PortAllocator, params: dict[str, Any], flags: int, expected: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ports are filled in where libvirt would choose them; nothing else is changed."""
    monkeypatch.setattr("socket.getaddrinfo", _unknown)
    before = dict(params)
    asked: list[dict[str, Any]] = []

    class Domain:
        def UUIDString(self) -> str:  # noqa: N802
            return "u"

        def name(self) -> str:
            return "vm1"

        def connect(self) -> Any:
            return Destination()

        def migrate3(self, _: object, params: dict[str, Any], flags: int) -> str:
            asked.append(params)
            return "moved"

        def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> int:  # noqa: N802
            asked.append(params)
            return 0

    class Destination:
        def getHostname(self) -> str:  # noqa: N802
            return "h2"

        def getURI(self) -> str:  # noqa: N802
            return "qemu+ssh://h2/system"

        def lookupByUUIDString(self, uuid: str) -> Any:  # noqa: N802
            return "moved"

    assert "moved" == migrate(ports, Domain(), Destination(), host="h2", params=params, flags=flags)
    assert ([expected], before, []) == (asked, params, ports.allocations())


def test_nothing_kept_by_a_probe(libvirt: SimpleNamespace) -> None:
    """What a probe keeps bound is let go before libvirt is asked: QEMU binds the port itself."""
    asked: list[int] = []
    with HeldSockets(any_host=True) as held, PortAllocator("memory://", probe=held) as ports:

        class Source(Host):
            def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> None:  # noqa: N802
                for port in ports.allocations():
                    bound(port.number).close()
                    asked.append(port.number)

        migrate(ports, Source(HERE), "qemu:///system", host=ports.host, address="10.0.0.1", flags=PEER2PEER)
    assert 1 == len(asked)


def test_listens_where_the_name_leads(monkeypatch: pytest.MonkeyPatch) -> None:
    """QEMU is to listen on IPv4 only, where that is all that a name means."""
    known = {"old": [AF_INET], "new": [AF_INET6], "both": [AF_INET6, AF_INET]}
    monkeypatch.setattr("socket.getaddrinfo", lambda name, *_, **__: [(family,) for family in known[name]])
    listens = {name: _Asked({}, 0, name).params.get("listen_address") for name in known}
    assert {"old": "0.0.0.0", "new": None, "both": None} == listens
    assert "::" == _Asked({"listen_address": "::"}, 0, "old").params["listen_address"]


@pytest.mark.parametrize(
    ("params", "message"),
    [
        (
            {"migrate_uri": "tcp://h2:70000"},
            "migrate_uri: its port must be an integer from 1 to 65535, or none; got 70000",
        ),
        ({"migrate_uri": 7}, "migrate_uri: must be a URI, got 7"),
        ({"disks_port": "x"}, "disks_port: its port must be an integer from 1 to 65535, or none; got 'x'"),
    ],
)
def test_bad_params(params: dict[str, Any], message: str) -> None:
    """A port that is none is refused by name, value and bound."""
    with pytest.raises(ConfigurationError) as raised:
        _Asked(params, NON_SHARED_DISK, "h2")
    assert f"params: {message}" == str(raised.value)


def test_uri_without_peers(ports: PortAllocator) -> None:
    """A destination that is a URI goes with VIR_MIGRATE_PEER2PEER; its password is not told."""
    refused = pytest.raises(
        ConfigurationError, match=r"^destination: must be a connection without VIR_MIGRATE_PEER2PEER"
    )
    with refused as raised:
        migrate(ports, None, "qemu+ssh://me:secret@h2/system", host="h2")
    assert "secret" not in str(raised.value)


def _unknown(*_: object, **__: object) -> Any:
    raise OSError("no such name")


# -------------------------------------------------------------------- a migration of unknown outcome


class Host:
    """The daemon of a host, and a connection to it. ``state``: that of the domain here; None: it is not here. ``job``:
    what a job of it does. ``alive`` False: the connection has broken, and another is to be had.
    """

    def __init__(self, state: tuple[int, int] | None = None, job: int = 0) -> None:
        self._state, self.job = state, job
        self.alive = True
        self.error = FakeError(38, "Cannot recv data: Connection reset by peer")

    def at(self, state: tuple[int, int] | None) -> Host:
        self._state = state
        return self

    def isAlive(self) -> bool:  # noqa: N802
        return self.alive

    def getURI(self) -> str:  # noqa: N802
        return "qemu:///system"

    def getHostname(self) -> str:  # noqa: N802
        return "h2"

    def lookupByUUIDString(self, uuid: str) -> Host:  # noqa: N802
        if self._state is None:
            raise FakeError(42, "Domain not found: no domain with matching uuid 'u'")
        return self

    def close(self) -> None:
        """Of this one nobody asks again."""

    # the domain on it

    def connect(self) -> Host:
        return self

    def UUIDString(self) -> str:  # noqa: N802
        return "u"

    def name(self) -> str:
        return "vm1"

    def state(self) -> tuple[int, int]:
        assert self._state is not None
        return self._state

    def jobInfo(self) -> list[int]:  # noqa: N802
        return [2 if self.job else 0]

    def jobStats(self) -> dict[str, int]:  # noqa: N802
        return {"type": 2, "operation": self.job} if self.job else {"type": 0}

    def migrateToURI3(self, uri: str, params: dict[str, Any], flags: int) -> None:  # noqa: N802
        raise self.error


HERE = (1, 1)
"""libvirt's state of a domain that runs, and has been started here."""


@pytest.fixture
def libvirt(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    module = SimpleNamespace(libvirtError=FakeError, VIR_DOMAIN_JOB_NONE=0)
    monkeypatch.setitem(sys.modules, "libvirt", module)
    _binding.binding.cache_clear()
    yield module
    _binding.binding.cache_clear()


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Let so many seconds pass, for whoever settles."""
    return passing(monkeypatch, migration)


@pytest.fixture
def port(ports: PortAllocator, libvirt: SimpleNamespace, later: Callable[[float], None]) -> Allocation:
    """Of a migration that an earlier process of this instance asked for."""
    return ports.acquire("migration", host="h2", labels=own_labels("migration", "u", None))


def test_not_over_before_it_began(ports: PortAllocator, port: Allocation, later: Callable[[float], None]) -> None:
    """One that nobody has seen on the destination may still begin, until a daemon has given up waiting for that."""
    h2 = Host()
    later(10 * LONGEST_BEGIN)  # it may have hung
    assert [port] == settle_migrations(ports, h2, host="h2")
    later(LONGEST_BEGIN / 2)
    assert [port] == settle_migrations(ports, h2, host="h2")
    later(LONGEST_BEGIN / 2)
    assert ([], []) == (settle_migrations(ports, h2, host="h2"), ports.allocations())


@pytest.mark.parametrize("state", [(1, 10), (1, 11), (3, 2), (3, 11), (3, 12), (3, 13)])
@pytest.mark.parametrize("after", [HERE, None])
def test_over_when_it_has_been_there(
    ports: PortAllocator,
    port: Allocation,
    later: Callable[[float], None],
    state: tuple[int, int],
    after: tuple[int, int] | None,
) -> None:
    """While it goes on, after the switch to the destination too, the port is held; then it is given back at once."""
    h2 = Host(state)
    assert [port] == settle_migrations(ports, h2, host="h2")
    assert ([], []) == (settle_migrations(ports, h2.at(after), host="h2"), ports.allocations())


@pytest.mark.parametrize("state", [(1, 10), (1, 11), (3, 2), (3, 11), (3, 12), (3, 13)])
def test_goes_on_for_long(
    ports: PortAllocator, port: Allocation, later: Callable[[float], None], state: tuple[int, int]
) -> None:
    """A migration may last as long as it will."""
    assert [port] == settle_migrations(ports, Host(), host="h2")
    later(10 * LONGEST_BEGIN)
    assert [port] == settle_migrations(ports, Host(state), host="h2")


@pytest.mark.parametrize("state", [(1, 1), (1, 2), (1, 5), (3, 1), (3, 5), (5, 2), (4, 1)])
def test_states_of_others(
    ports: PortAllocator, port: Allocation, later: Callable[[float], None], state: tuple[int, int]
) -> None:
    """A domain that runs, is paused or is shut off is not on its way here."""
    assert [port] == settle_migrations(ports, Host(state), host="h2")
    later(LONGEST_BEGIN)
    assert ([], []) == (settle_migrations(ports, Host(state), host="h2"), ports.allocations())


def test_seen_by_the_call_itself(
    ports: PortAllocator, libvirt: SimpleNamespace, later: Callable[[float], None]
) -> None:
    """What a call has seen on the destination when it failed is over as soon as it is there no more."""
    h1, h2 = Host(HERE, MIGRATION_OUT), Host((3, 2))
    with pytest.raises(FakeError):
        migrate(ports, h1, h2, host="h2", flags=PEER2PEER)
    assert [49152] == [port.number for port in ports.allocations()]
    assert ([], []) == (settle_migrations(ports, h2.at(None), host="h2"), ports.allocations())


@pytest.mark.parametrize(
    ("alive", "job", "held"),
    [
        (True, 0, 0),
        (True, BACKUP, 0),
        (True, MIGRATION_OUT, 1),
        (False, 0, 0),
        (False, BACKUP, 1),
        (False, MIGRATION_OUT, 1),
    ],
)
def test_held_while_the_source_may_begin(
    ports: PortAllocator, libvirt: SimpleNamespace, alive: bool, job: int, held: int
) -> None:
    """A source's daemon that answers has ended the call; one whose answer was lost may wait for the domain's job."""
    h1 = Host(HERE, job)
    h1.alive = alive
    libvirt.open = lambda uri: Host(HERE, job)
    with pytest.raises(FakeError):
        migrate(ports, h1, Host(), host="h2", flags=PEER2PEER)
    assert held == len(ports.allocations())
    assert held == len(settle_migrations(ports, Host(), host="h2"))
