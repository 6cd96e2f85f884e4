"""The state of the cluster: what is counted how, and the layout that programs read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest

from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.errors import ConfigurationError
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus, RangeOnHost

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
BACKUP = PortRange("backup", 10809, 10812)
WIDE = PortRange("wide", 10000, 10999)


def lease(number: int = 1, instance: str = "i", expires_in: int = 28_123_456) -> LeaseView:
    return LeaseView(number, instance, 1, 30_000_000, expires_in)


def port(number: int, **other: Any) -> PortView:
    fields: dict[str, Any] = {
        "protocol": "tcp",
        "state": "held",
        "range": "backup",
        "owner": "",
        "labels": {},
        "instance": "i",
        "lease": 1,
        "fence": 7,
        "age": 0,
        "free_in": None,
    }
    return PortView(number=number, **fields | other)


def build(*spaces: SpaceView, ranges: tuple[PortRange, ...] = (BACKUP,), **filters: str) -> ClusterStatus:
    return ClusterStatus.build(spaces, ranges, backend="test", generated_at=NOW, **filters)


def on_host(ports: list[PortView], *ranges: PortRange) -> list[tuple[int, int, int, int]]:
    status = build(SpaceView("host:h", 9, (), tuple(ports)), ranges=ranges)
    return [(one.hosts[0].held, one.hosts[0].cooling, one.hosts[0].foreign, one.hosts[0].free) for one in status.ranges]


def test_layout() -> None:
    """The layout of schema 1, to the letter."""
    view = SpaceView(
        "host:m%C3%BCn",
        9,
        (lease(expires_in=28_123_456), lease(2, "gone", -1_000)),
        (
            port(10809, owner="vm-1", labels={"b": "2", "a": "1"}, age=1_500_000),
            port(10810, state="cooling", lease=2, fence=8, age=60_000_000, free_in=4_200_400, protocol="udp"),
        ),
    )
    expected = {
        "schema": 1,
        "backend": "test",
        "generated_at": "2026-03-01T12:00:00.250+00:00",
        "hosts": [
            {
                "host": "mün",
                "leases": [
                    {"lease": 2, "instance": "gone", "state": "expired", "expires_in_s": -0.001, "ports": 0},
                    {"lease": 1, "instance": "i", "state": "live", "expires_in_s": 28.123, "ports": 1},
                ],
                "ports": [
                    {
                        "number": 10809,
                        "protocol": "tcp",
                        "range": "backup",
                        "state": "held",
                        "owner": "vm-1",
                        "labels": {"a": "1", "b": "2"},
                        "lease": 1,
                        "fence": 7,
                        "since": "2026-03-01T11:59:58.750+00:00",
                        "free_in_s": None,
                    },
                    {
                        "number": 10810,
                        "protocol": "udp",
                        "range": "backup",
                        "state": "cooling",
                        "owner": "",
                        "labels": {},
                        "lease": 2,
                        "fence": 8,
                        "since": "2026-03-01T11:59:00.250+00:00",
                        "free_in_s": 4.2,
                    },
                ],
            }
        ],
        "ranges": [
            {
                "name": "backup",
                "first": 10809,
                "last": 10812,
                "size": 4,
                "scope": "host",
                "hosts": [{"host": "mün", "held": 1, "cooling": 1, "foreign": 0, "free": 2}],
            }
        ],
    }

    assert json.dumps(expected) == json.dumps(build(view).to_dict())


def test_sorted() -> None:
    """Whatever the order of the views, hosts and ranges are sorted by name, ports by number, then protocol."""
    views = [
        SpaceView("host:b", 1, (lease(3, "z"), lease(2, "a"), lease(1, "a")), ()),
        SpaceView("host:a", 1, (), (port(10811), port(10809, protocol="udp"), port(10809))),
    ]
    status = build(*views, ranges=(WIDE, BACKUP))

    assert ["a", "b"] == [host.host for host in status.hosts]
    assert [1, 2, 3] == [one.lease for one in status.hosts[1].leases]
    assert [(10809, "tcp"), (10809, "udp"), (10811, "tcp")] == [(p.number, p.protocol) for p in status.hosts[0].ports]
    assert ["backup", "wide"] == [one.name for one in status.ranges]
    assert ["a", "b"] == [host.host for host in status.ranges[0].hosts]


def test_empty_store() -> None:
    """Without a space there is no host, and the ranges are there all the same."""
    status = build()

    assert () == status.hosts
    assert [("backup", ())] == [(one.name, one.hosts) for one in status.ranges]


def test_space_without_ports() -> None:
    """A host whose ports all came back has its ranges free."""
    assert (RangeOnHost("h", 0, 0, 0, 4),) == build(SpaceView("host:h", 3, (), ())).ranges[0].hosts


def test_both_bounds_count() -> None:
    """A range's first and last port are its own; the next ones are not."""
    ports = [port(number) for number in (10808, 10809, 10812, 10813)]

    assert [(2, 0, 0, 2)] == on_host(ports, BACKUP)


def test_overlapping_ranges() -> None:
    """A number is taken in every range that has it, whichever it was given for."""
    assert [(1, 0, 0, 3), (2, 0, 0, 998)] == on_host([port(10809), port(10000, range="wide")], BACKUP, WIDE)


@pytest.mark.parametrize(
    ("tcp", "udp", "counts"),
    [
        ("held", "held", (1, 0, 0, 3)),
        ("held", "cooling", (1, 0, 0, 3)),
        ("cooling", "held", (1, 0, 0, 3)),
        ("cooling", "cooling", (0, 1, 0, 3)),
        ("foreign", "cooling", (0, 1, 0, 3)),
        ("held", "foreign", (1, 0, 0, 3)),
        ("foreign", "foreign", (0, 0, 1, 3)),
    ],
)
def test_a_number_counts_once(tcp: str, udp: str, counts: tuple[int, int, int, int]) -> None:
    """Over both protocols: held before cooling before foreign, and all of them make the size."""
    ports = [port(10809, state=tcp), port(10809, state=udp, protocol="udp")]

    assert [counts] == on_host(ports, BACKUP)


def test_a_lease_that_ends_now() -> None:
    """At the very moment of its expiry a lease is expired."""
    status = build(SpaceView("host:h", 1, (lease(1, "a", 0), lease(2, "b", 1)), ()))

    assert ["expired", "live"] == [one.state for one in status.hosts[0].leases]


def test_one_host() -> None:
    """Another host shows neither in the hosts nor in the counts."""
    status = build(SpaceView("host:a", 1, (), (port(10809),)), SpaceView("host:b", 1, (), ()), host="b")

    assert ["b"] == [host.host for host in status.hosts]
    assert (RangeOnHost("b", 0, 0, 0, 4),) == status.ranges[0].hosts


def test_unknown_host() -> None:
    """A host that the store does not know has nothing."""
    assert () == build(SpaceView("host:a", 1, (), (port(10809),)), host="b").hosts


def test_one_range() -> None:
    """Only its ports and counts; what was given for another range counts where the numbers overlap."""
    view = SpaceView("host:h", 1, (lease(),), (port(10809), port(10810, range="wide")))
    status = build(view, ranges=(BACKUP, WIDE), range="backup")

    assert [10809] == [one.number for one in status.hosts[0].ports]
    assert [2] == [one.ports for one in status.hosts[0].leases]
    assert [("backup", (RangeOnHost("h", 2, 0, 0, 2),))] == [(one.name, one.hosts) for one in status.ranges]


def test_a_range_of_somebody_else() -> None:
    """A range that is configured elsewhere can be asked for if the store has ports of it."""
    status = build(SpaceView("host:h", 1, (), (port(5, range="theirs"),)), range="theirs")

    assert [5] == [one.number for one in status.hosts[0].ports]
    assert () == status.ranges


def test_unknown_range() -> None:
    """A range that nobody has is a mistake, and the message has those that there are."""
    with pytest.raises(ConfigurationError) as caught:
        build(SpaceView("host:h", 1, (), (port(5, range="theirs"),)), range="bakcup")

    assert "range: must be one of backup, theirs; got 'bakcup'" == str(caught.value)


def test_other_spaces() -> None:
    """A space that is not a host's is no host."""
    assert () == build(SpaceView("cluster", 1, (), ())).hosts


def test_any_time_zone() -> None:
    """Times are UTC, wherever the clock was read."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-5)))
    status = ClusterStatus.build([], [], backend="test", generated_at=elsewhere)

    assert "2026-03-01T12:00:00.250+00:00" == status.to_dict()["generated_at"]


def test_damaged_age() -> None:
    """An age that cannot be does not keep the rest from being shown."""
    status = build(SpaceView("host:h", 1, (), (port(10809, age=10**30),)))

    assert datetime(1970, 1, 1, tzinfo=UTC) <= status.hosts[0].ports[0].since <= datetime(1970, 1, 2, tzinfo=UTC)
