"""The state of the cluster: what is counted how, and the layout that programs read."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.errors import BackendError, ConfigurationError, IncompatibleSchema
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus, RangeOnHost

NOW = datetime(2026, 3, 1, 12, 0, 0, 250_000, tzinfo=UTC)
BACKUP = PortRange("backup", 10809, 10812)
WIDE = PortRange("wide", 10000, 10999)
GATEWAY = PortRange("gateway", 10810, 10819, scope="cluster")


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
    return partly({view.space: view for view in spaces}, ranges, **filters)


def partly(
    spaces: dict[str, SpaceView | BackendError], ranges: tuple[PortRange, ...] = (BACKUP,), **filters: str
) -> ClusterStatus:
    """Of a store that could not be read as a whole."""
    return ClusterStatus.build(
        names=list(spaces), views=list(spaces.values()), ranges=ranges, backend="test", generated_at=NOW, **filters
    )


def cluster(*ports: PortView, leases: tuple[LeaseView, ...] = (), waiting: int = 0) -> SpaceView:
    return SpaceView("cluster", 9, leases, ports, waiting)


def on_host(ports: list[PortView], *ranges: PortRange) -> list[tuple[int, int, int, int]]:
    status = build(SpaceView("host:h", 9, (), tuple(ports)), ranges=ranges)
    return [(one.hosts[0].held, one.hosts[0].cooling, one.hosts[0].foreign, one.hosts[0].free) for one in status.ranges]


def test_layout() -> None:
    """The layout of schema 1, to the letter."""
    spaces = (
        SpaceView(
            "host:m%C3%BCn",
            9,
            (lease(expires_in=28_123_456), lease(2, "gone", -1_000)._replace(grace=True)),
            (
                port(10809, owner="vm-1", labels={"b": "2", "a": "1"}, age=1_500_000),
                port(10812, state="cooling", lease=2, fence=8, age=60_000_000, free_in=4_200_400, protocol="both"),
            ),
            3,
            recovering=12_345_678,
        ),
        cluster(port(10810, range="", host="k")),
    )
    ranges = (
        GATEWAY,
        PortRange(
            "backup", 10805, 10809, exclude=("10806-10807",), static_band=2, limit=4, strategy="next", cooldown=0.5
        ),
    )
    expected = {
        "schema": 1,
        "backend": "test",
        "generated_at": "2026-03-01T12:00:00.250+00:00",
        "hosts": [
            {
                "host": "",
                "leases": [],
                "ports": [
                    {
                        "number": 10810,
                        "protocol": "tcp",
                        "range": None,
                        "state": "held",
                        "owner": "",
                        "labels": {},
                        "instance": "i",
                        "lease": 1,
                        "fence": 7,
                        "since": "2026-03-01T12:00:00.250+00:00",
                        "free_in_s": None,
                        "host": "k",
                        "outside": False,
                    },
                ],
                "waiting": 0,
                "recovering_s": 0.0,
            },
            {
                "host": "mün",
                "leases": [
                    {
                        "lease": 2,
                        "instance": "gone",
                        "state": "expired",
                        "grace": True,
                        "expires_in_s": -0.001,
                        "ports": 0,
                    },
                    {
                        "lease": 1,
                        "instance": "i",
                        "state": "live",
                        "grace": False,
                        "expires_in_s": 28.123,
                        "ports": 1,
                    },
                ],
                "ports": [
                    {
                        "number": 10809,
                        "protocol": "tcp",
                        "range": "backup",
                        "state": "held",
                        "owner": "vm-1",
                        "labels": {"a": "1", "b": "2"},
                        "instance": "i",
                        "lease": 1,
                        "fence": 7,
                        "since": "2026-03-01T11:59:58.750+00:00",
                        "free_in_s": None,
                        "host": "mün",
                        "outside": False,
                    },
                    {
                        "number": 10812,
                        "protocol": "both",
                        "range": "backup",
                        "state": "cooling",
                        "owner": "",
                        "labels": {},
                        "instance": "i",
                        "lease": 2,
                        "fence": 8,
                        "since": "2026-03-01T11:59:00.250+00:00",
                        "free_in_s": 4.2,
                        "host": "mün",
                        "outside": True,
                    },
                ],
                "waiting": 3,
                "recovering_s": 12.346,
            },
        ],
        "ranges": [
            {
                "name": "backup",
                "first": 10805,
                "last": 10809,
                "size": 5,
                "scope": "host",
                "strategy": "next",
                "limit": 4,
                "exclude": [[10806, 10807]],
                "static_band": 2,
                "quarantine_s": 15.0,
                "cooldown_s": 0.5,
                "hosts": [
                    {
                        "host": "mün",
                        "held": 1,
                        "cooling": 0,
                        "foreign": 0,
                        "free": 2,
                        "excluded": 2,
                        "band_free": 1,
                        "outside": 1,
                    }
                ],
            },
            {
                "name": "gateway",
                "first": 10810,
                "last": 10819,
                "size": 10,
                "scope": "cluster",
                "strategy": "lowest",
                "limit": None,
                "exclude": [],
                "static_band": 0,
                "quarantine_s": 15.0,
                "cooldown_s": 0.0,
                "hosts": [
                    {
                        "host": "",
                        "held": 1,
                        "cooling": 0,
                        "foreign": 0,
                        "free": 9,
                        "excluded": 0,
                        "band_free": 0,
                        "outside": 0,
                    }
                ],
            },
        ],
        "unreadable": [{"host": "torn", "error": "it is damaged"}],
    }
    torn = {"host:torn": BackendError("it is damaged")}

    assert json.dumps(expected) == json.dumps(
        partly({**torn, **{view.space: view for view in spaces}}, ranges).to_dict()
    )


def test_unreadable() -> None:
    """A host that cannot be read is named, with the reason, and is in no count; the others show as ever."""
    damage, newer = BackendError("damaged"), IncompatibleSchema("schema 2")
    status = partly(
        {"host:b": damage, "host:a": SpaceView("host:a", 9, (), (port(10809),)), "cluster": newer, "rack:1": damage}
    )

    assert [("", "schema 2"), ("b", "damaged")] == [(one.host, one.error) for one in status.unreadable]
    assert ["a"] == [host.host for host in status.hosts]
    assert (RangeOnHost("a", 1, 0, 0, 3),) == status.ranges[0].hosts


def test_unreadable_elsewhere() -> None:
    """Whoever asks for one host hears nothing of another's damage, but of the cluster's."""
    damage = BackendError("damaged")
    status = partly({"host:a": damage, "host:b": damage, "cluster": damage}, host="b")

    assert ["", "b"] == [one.host for one in status.unreadable]


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


def test_a_port_without_a_range() -> None:
    """It is nobody's: it has no range, no range can be asked for to find it, and it is outside of none."""
    view = SpaceView("host:h", 1, (), (port(10810, range=""),))
    (one,) = build(view).hosts[0].ports

    assert (None, False) == (one.range, one.outside)
    assert () == build(view, range="backup").hosts[0].ports
    with pytest.raises(ConfigurationError, match="must be one of backup; got ''"):
        build(view, range="")


@pytest.mark.parametrize("space", ["clusters", "Cluster", "host:", "rack:7", ""])
def test_other_spaces(space: str) -> None:
    """A space that is neither a host's nor the cluster's is passed over."""
    status = build(SpaceView(space, 1, (lease(),), (port(10810, range="gateway"),)), ranges=(BACKUP, GATEWAY))

    assert ((), [(), ()]) == (status.hosts, [one.hosts for one in status.ranges])


def test_cluster_without_a_space() -> None:
    """A store whose cluster's space was never used has no entry for it."""
    status = build(SpaceView("cluster", 0, (), ()), ranges=(GATEWAY,))

    assert ((), ()) == (status.hosts, status.ranges[0].hosts)


def test_cluster_says_where() -> None:
    """The entry of the cluster comes first, and each of its ports has the host on which it is bound."""
    status = build(
        SpaceView("host:a", 1, (), (port(10809),)),
        cluster(port(10810, range="gateway", host="b"), port(10811, range="gateway", host="a"), leases=(lease(),)),
        ranges=(GATEWAY,),
    )

    assert [("", [(10810, "b"), (10811, "a")]), ("a", [(10809, "a")])] == [
        (host.host, [(one.number, one.host) for one in host.ports]) for host in status.hosts
    ]
    assert [2] == [one.ports for one in status.hosts[0].leases]


def test_counts_by_scope() -> None:
    """A range of the cluster is counted there and nowhere else, and takes its numbers from the ranges of hosts."""
    status = build(
        SpaceView("host:a", 1, (), (port(10809),)),
        SpaceView("host:b", 1, (), ()),
        cluster(port(10810, range="gateway", host="a"), port(10812, range="gateway", host="b", state="cooling")),
        ranges=(BACKUP, GATEWAY),
    )

    assert {
        "backup": (RangeOnHost("a", 1, 0, 0, 0, excluded=3), RangeOnHost("b", 0, 0, 0, 1, excluded=3)),
        "gateway": (RangeOnHost("", 1, 1, 0, 8),),
    } == {one.name: one.hosts for one in status.ranges}


def test_one_host_of_the_cluster() -> None:
    """Of the cluster one host shows what is bound there and who holds that; counts stay those of the cluster."""
    status = build(
        SpaceView("host:a", 1, (), ()),
        cluster(
            port(10810, range="gateway", host="a"),
            port(10811, range="gateway", host="b", lease=2),
            port(10812, range="gateway", host="a", lease=3, state="cooling"),
            port(10813, range="gateway", host="b"),
            leases=(lease(), lease(2), lease(3)),
            waiting=2,
        ),
        ranges=(GATEWAY,),
        host="a",
    )

    assert ["", "a"] == [host.host for host in status.hosts]
    assert [10810, 10812] == [one.number for one in status.hosts[0].ports]
    assert [(1, 2)] == [(one.lease, one.ports) for one in status.hosts[0].leases]
    assert 2 == status.hosts[0].waiting
    assert (RangeOnHost("", 3, 1, 0, 6),) == status.ranges[0].hosts


def test_one_range_of_one_host_of_the_cluster() -> None:
    """Both filters together; a lease is shown for what it holds there of any range."""
    view = cluster(port(10810, range="gateway", host="a"), port(10811, range="", host="a", lease=2), leases=(lease(2),))
    (entry,) = build(view, ranges=(GATEWAY,), host="a", range="gateway").hosts

    assert ([10810], [2]) == ([one.number for one in entry.ports], [one.lease for one in entry.leases])


def test_foreign() -> None:
    """What something else has says who saw it, and until when it is passed over."""
    found = port(10809, state="foreign", instance="seer", free_in=30_000_000)
    (one,) = build(SpaceView("host:h", 1, (), (found,))).hosts[0].ports

    assert ("foreign", "", "seer", 30.0) == (one.state, one.owner, one.instance, one.free_in)
    assert "foreign" == one.to_dict()["state"]


@pytest.mark.parametrize(
    ("numbers", "counts"),
    [
        ((), RangeOnHost("h", 0, 0, 0, 7, excluded=3, band_free=3)),
        ((10800,), RangeOnHost("h", 1, 0, 0, 6, excluded=3, band_free=2)),
        ((10803, 10804), RangeOnHost("h", 2, 0, 0, 5, excluded=3, band_free=2)),
        ((10801, 10809), RangeOnHost("h", 2, 0, 0, 6, excluded=2, band_free=3, outside=1)),
        (tuple(range(10800, 10810)), RangeOnHost("h", 10, 0, 0, 0, outside=3)),
        ((10799, 10810), RangeOnHost("h", 0, 0, 0, 7, excluded=3, band_free=3, outside=2)),
    ],
)
def test_exclusion_and_band(numbers: tuple[int, ...], counts: RangeOnHost) -> None:
    """An excluded number is never free: it counts by its state while it is taken, and as excluded otherwise."""
    one = PortRange("backup", 10800, 10809, exclude=(10801, "10806-10807"), static_band=4)
    view = SpaceView("host:h", 1, (), tuple(port(number) for number in numbers))

    assert (counts,) == build(view, ranges=(one,)).ranges[0].hosts


def test_wholly_the_cluster_s() -> None:
    """A range of hosts that lies within one of the cluster has nothing to give."""
    inner = PortRange("inner", 10812, 10813, static_band=1)
    status = build(SpaceView("host:h", 1, (), ()), ranges=(GATEWAY, inner))

    assert (RangeOnHost("h", 0, 0, 0, 0, excluded=2),) == status.ranges[1].hosts


PARTS = st.tuples(st.integers(1, 30), st.integers(0, 12), st.sets(st.integers(0, 12), max_size=6), st.integers(0, 12))
TAKEN = st.dictionaries(st.integers(1, 45), st.sampled_from(["held", "cooling", "foreign"]))


@given(PARTS, st.none() | st.tuples(st.integers(1, 30), st.integers(0, 12)), TAKEN)
def test_counts_are_what_they_say(
    parts: tuple[int, int, set[int], int], gateway: tuple[int, int] | None, taken: dict[int, str]
) -> None:
    """Each number of a range is counted in one column, as a look at it alone would count it."""
    first, more, exclude, band = parts
    excluded = {first + offset for offset in exclude if 0 < offset <= more}
    one = PortRange("r", first, first + more, exclude=excluded, static_band=min(band, more))
    ranges = [one]
    if gateway is not None:
        ranges.append(PortRange("g", gateway[0], sum(gateway), scope="cluster"))
    never = excluded | {number for other in ranges[1:] for number in range(other.first, other.last + 1)}
    ports = tuple(port(number, state=state, range="r") for number, state in taken.items())
    columns: dict[str, int] = dict.fromkeys(("held", "cooling", "foreign", "free", "excluded", "band_free"), 0)
    for number in range(one.first, one.last + 1):
        column = taken.get(number, "excluded" if number in never else "free")
        columns[column] += 1
        columns["band_free"] += column == "free" and number < one.first + one.static_band
    outside = {number for number in taken if number not in one or number in never}
    status = build(SpaceView("host:h", 1, (), ports), ranges=tuple(ranges))

    assert {"host": "h", **columns, "outside": len(outside)} == status.ranges[-1].hosts[0].to_dict()
    assert outside == {shown.number for shown in status.hosts[0].ports if shown.outside}


def test_outside() -> None:
    """A port that its range would not give today says so; one of a range that is not configured cannot know."""
    ports = [
        port(10808),
        port(10808, protocol="udp"),
        port(10809),
        port(10811),
        port(10812),
        port(10813, state="foreign"),
        port(1, range="theirs"),
        port(2, range=""),
    ]
    shrunk = PortRange("backup", 10809, 10812, exclude=(10811,))
    status = build(SpaceView("host:h", 1, (), tuple(ports)), ranges=(shrunk,))

    assert {(10808, "tcp"), (10808, "udp"), (10811, "tcp"), (10813, "tcp")} == {
        (one.number, one.protocol) for one in status.hosts[0].ports if one.outside
    }
    assert 3 == status.ranges[0].hosts[0].outside


def test_outside_by_scope() -> None:
    """So does one that was given on a host for what is the cluster's now, and the other way round."""
    status = build(
        SpaceView("host:h", 1, (), (port(10810, range="gateway"), port(10811), port(10809))),
        cluster(port(10809, host="h"), port(10812, range="gateway", host="h")),
        ranges=(BACKUP, GATEWAY),
    )

    assert [[(10809, True), (10812, False)], [(10809, False), (10810, True), (10811, True)]] == [
        [(one.number, one.outside) for one in host.ports] for host in status.hosts
    ]
    assert [[1], [0]] == [[host.outside for host in one.hosts] for one in status.ranges]


def test_any_time_zone() -> None:
    """Times are UTC, wherever the clock was read."""
    elsewhere = NOW.astimezone(timezone(timedelta(hours=-5)))
    status = ClusterStatus.build(names=[], views=[], ranges=[], backend="test", generated_at=elsewhere)

    assert "2026-03-01T12:00:00.250+00:00" == status.to_dict()["generated_at"]


def test_damaged_age() -> None:
    """An age that cannot be does not keep the rest from being shown."""
    status = build(SpaceView("host:h", 1, (), (port(10809, age=10**30),)))

    assert datetime(1970, 1, 1, tzinfo=UTC) <= status.hosts[0].ports[0].since <= datetime(1970, 1, 2, tzinfo=UTC)
