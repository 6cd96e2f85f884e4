"""``clusterports hosts``: a line for each, with how full it is."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pytest

from clusterports import PortAllocator
from clusterports.abc import LeaseView, PortView, SpaceView
from clusterports.cli._table import RED, YELLOW, lean, table
from clusterports.cli.hosts import COLUMNS, Fill, Row, host_rows
from clusterports.ranges import PortRange
from clusterports.status import ClusterStatus

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cli.conftest import Command

NOW = datetime(2026, 3, 1, tzinfo=UTC)
RANGES = (
    PortRange("small", 10, 13, exclude=(13,)),
    PortRange("wide", 10, 1009),
    PortRange("gateway", 2000, 2009, scope="cluster"),
)


def lease(number: int, expires_in: int = 1) -> LeaseView:
    return LeaseView(number, "i", 1, 30_000_000, expires_in)


def port(number: int, state: str = "held", protocol: str = "tcp", host: str = "") -> PortView:
    return PortView(number, protocol, state, "small", "", {}, "i", 1, 7, 0, None, host)  # type: ignore[arg-type]


def rows(*spaces: SpaceView) -> list[Row]:
    names = [space.space for space in spaces]
    return list(
        host_rows(ClusterStatus.build(names=names, views=spaces, ranges=RANGES, backend="redis", generated_at=NOW))
    )


def lines(found: Sequence[Row], width: int | None = None, color: bool = False) -> list[str]:
    return table(*lean(COLUMNS, [row.cells() for row in found]), width, color)


def test_counts() -> None:
    """Leases by whether they live, ports by state, and the range of which the least is free."""
    busy = (port(10), port(10, protocol="udp"), port(11, "cooling"), port(500, "foreign"))
    found = rows(
        SpaceView("host:b", 9, (lease(1), lease(2, 0), lease(3, -1)), busy, 3),
        SpaceView("host:a", 9, (), ()),
        SpaceView("cluster", 9, (lease(1),), (port(2000, host="a"),)),
    )

    assert [
        Row("", 1, 0, 1, 0, 0, 0, Fill("gateway", 1, 10)),
        Row("a", 0, 0, 0, 0, 0, 0, None),
        Row("b", 1, 2, 2, 1, 1, 3, Fill("small", 2, 3)),
    ] == found
    assert [
        "HOST      LIVE EXPIRED HELD COOLING FOREIGN WAITING FULLEST FULL",
        "(cluster)    1       0    1       0       0       0 gateway  10%",
        "a            0       0    0       0       0       0 -          -",
        "b            1       2    2       1       1       3 small    66%",
    ] == lines(found)


def test_40_columns() -> None:
    """In 40 columns the host, what is held, and the fullest range stay."""
    found = rows(SpaceView("host:kvm-07.example.com", 9, (lease(1), lease(2, -1)), (port(10), port(11, "cooling")), 2))

    assert [
        "HOST           HELD WAITING FULLEST FULL",
        "kvm-07.exampl…    1       2 small    66%",
    ] == lines(found, 40)


def test_nothing_of_no_use() -> None:
    """Columns of things that happen nowhere are left out."""
    assert ["HOST LIVE HELD COOLING FOREIGN FULLEST FULL", "h       1    1       0       0 small    33%"] == lines(
        rows(SpaceView("host:h", 9, (lease(1),), (port(10),)))
    )


@pytest.mark.parametrize(
    ("taken", "size", "percent"), [(1, 60_000, 1), (1, 3, 33), (899, 1000, 89), (999, 1000, 99), (3, 3, 100)]
)
def test_percent(taken: int, size: int, percent: int) -> None:
    """Only what is full is said to be full, and what is taken is never said to be nothing."""
    assert percent == Fill("r", taken, size).percent()


@pytest.mark.parametrize(("taken", "style"), [(1, None), (9, None), (89, None), (90, YELLOW), (99, YELLOW), (100, RED)])
def test_colours(taken: int, style: str | None) -> None:
    """A range that is nearly full, or full, has a colour, and so have leases that ran out."""
    row = Row("h", 0, taken, 0, 0, 0, 0, Fill("r", taken, 100))
    painted = lines([row, row._replace(expired=0)], color=True)

    assert painted[0].startswith("\x1b[1mHOST LIVE EXPIRED ")
    assert (f"\x1b[{style}m" if style else " ") + f"{taken}%" in painted[1]
    assert f"\x1b[{RED}m{taken}\x1b[m" in painted[1]
    assert f"\x1b[{RED}m" not in painted[2].replace("\x1b[31m100%", "")


def test_in_a_store(command: Command) -> None:
    """Of a real store, for people and for programs; a choice of range holds for ports and fill."""
    url = command.environment["CLUSTERPORTS_URL"]
    with (
        PortAllocator(url, host="[red]日", instance="one", probe=False) as ports,
        PortAllocator(url, host="b", instance="two", probe=False) as more,
    ):
        ports.acquire("backup", count=16)
        more.acquire("display")
        table_ = command("hosts").stdout
        status = json.loads(command("hosts", "--json", "--range", "backup").stdout)

    assert [
        "HOST    LIVE HELD COOLING FOREIGN FULLEST FULL",
        "[red]日    1   16       0       0 backup   25%",
        "b          1    1       0       0 display   1%",
    ] == table_.splitlines()
    assert {
        "schema": 1,
        "hosts": [
            {
                "host": "[red]日",
                "leases": {"live": 1, "expired": 0},
                "held": 16,
                "cooling": 0,
                "foreign": 0,
                "waiting": 0,
                "fullest": {"range": "backup", "taken": 16, "size": 64},
            },
            {
                "host": "b",
                "leases": {"live": 1, "expired": 0},
                "held": 0,
                "cooling": 0,
                "foreign": 0,
                "waiting": 0,
                "fullest": None,
            },
        ],
        "unreadable": [],
    } == status


def test_empty_store(command: Command) -> None:
    """A store that nobody has used has no hosts."""
    url = command.environment["CLUSTERPORTS_URL"]

    assert (0, f"No host is known (store: {url}).\n") == (
        (done := command("hosts")).returncode,
        done.stdout,
    )
