"""What a migration asks of libvirt: ports are filled in where libvirt would choose them."""

from __future__ import annotations

from socket import AF_INET, AF_INET6
from typing import TYPE_CHECKING, Any

import pytest

from clusterports import ConfigurationError, PortAllocator
from clusterports.libvirt import migrate
from clusterports.libvirt.migration import _Asked

if TYPE_CHECKING:
    from collections.abc import Iterator

NON_SHARED_DISK = 64


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
