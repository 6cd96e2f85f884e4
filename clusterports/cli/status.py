"""``clusterports status``: who holds what."""

from __future__ import annotations

import json
import os
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated, TypeAlias

import typer

from clusterports._names import check_name

from ._common import Config, Url, connect, load
from ._table import Column, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clusterports.status import ClusterStatus, HostStatus, PortStatus, RangeStatus

    Row: TypeAlias = Sequence[object]

__all__ = ["status"]

LONGEST = 200
"""Characters of an owner that a table shows; all of it is in the JSON."""

RANGES = (
    Column("RANGE", least=8),
    Column("PORTS"),
    Column("HOSTS", right=True),
    Column("HELD", right=True),
    Column("COOLING", right=True, rank=2),
    Column("FOREIGN", right=True, rank=3),
    Column("EXCLUDED", right=True, rank=4),
    Column("FREE", right=True, rank=1),
)
RULES = (Column("RANGE", least=8), Column("RULE", least=8))
PORTS = (
    Column("RANGE", least=6, rank=1),
    Column("PORT"),
    Column("STATE"),
    Column("OWNER", least=8),
    Column("HOST", least=7),
    Column("INSTANCE", least=10, rank=4),
    Column("FENCE", right=True, rank=3),
    Column("AGE", right=True, rank=2),
    Column("LEFT", right=True),
    Column("NOTE", least=20),
)
WAITING = (Column("HOST", least=9), Column("WAITING", right=True))

SPARE = {"EXCLUDED", "NOTE"}
"""Columns that are left out when there is nothing in them."""


def status(
    host: Annotated[str | None, typer.Option(help="This host only, and what is bound there.")] = None,
    range: Annotated[str | None, typer.Option(help="Ports of this range only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, of a fixed layout.")] = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show who holds which port, and for how long.

    LEFT is the time until the lease of a held port runs out unless it is renewed, and until a cooling or a foreign
    port is free again. INSTANCE of a foreign port is who found that something else has it. NOTE: "cluster-wide", the
    number is taken on all hosts; "outside", "excluded" or "scope": the range has changed and would not give it now.
    """
    from clusterports import PortAllocator

    settings = load(config, url=url)
    if host is not None:
        check_name("host", host)
    with connect(settings) as backend, PortAllocator(settings=settings, backend=backend) as ports:
        cluster = ports.status(host=host, range=range)
    if as_json:
        text = json.dumps(cluster.to_dict(), indent=2, ensure_ascii=True)
        print(text.replace("\x7f", "\\u007f"))  # the one control character that JSON leaves as it is
    else:
        show_tables(cluster)


def show_tables(cluster: ClusterStatus) -> None:
    """For people. On a terminal, as wide as that; otherwise as wide as it takes."""
    width = get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None
    ports = [row for host in cluster.hosts for row in port_rows(cluster, host)]
    rules = [(one.name, rule) for one in cluster.ranges for rule in range_rules(one)]
    waiting = [(host.host or "(cluster)", host.waiting) for host in cluster.hosts if host.waiting]
    if ports or any(host.leases or host.waiting for host in cluster.hosts):
        print(*table(*lean(RANGES, range_rows(cluster)), width), sep="\n")
    else:
        print(f"Nothing is held, and no port is cooling (store: {cluster.backend}).")
    for columns, rows in ((RULES, rules), lean(PORTS, ports), (WAITING, waiting)):
        if rows:
            print("", *table(columns, rows, width), sep="\n")


def lean(columns: Sequence[Column], rows: Sequence[Row]) -> tuple[Sequence[Column], Sequence[Row]]:
    """The table without those of the spare columns that have nothing in any row."""
    kept = [i for i, column in enumerate(columns) if column.title not in SPARE or any(row[i] for row in rows)]
    if len(kept) == len(columns):
        return columns, rows
    return [columns[i] for i in kept], [[row[i] for i in kept] for row in rows]


def range_rows(cluster: ClusterStatus) -> list[Row]:
    """Each range, over all hosts that are shown."""
    return [
        (
            one.name,
            f"{one.first}-{one.last}",
            len(one.hosts) if one.scope == "host" else "cluster",
            sum(host.held for host in one.hosts),
            sum(host.cooling for host in one.hosts),
            sum(host.foreign for host in one.hosts),
            sum(host.excluded for host in one.hosts),
            sum(host.free for host in one.hosts),
        )
        for one in cluster.ranges
    ]


def range_rules(one: RangeStatus) -> Iterator[str]:
    """What explains why a port that looks free is not given, or why one is taken that should not be."""
    if one.limit is not None:
        yield f"at most {one.limit} per owner" + (" on each host" if one.scope == "host" else "")
    if one.static_band:
        free = f", {sum(host.band_free for host in one.hosts)} free" if one.hosts else ""
        yield f"static band {one.first}-{one.first + one.static_band - 1}{free}"
    if one.exclude:
        spans = [f"{first}-{last}" if first < last else str(first) for first, last in one.exclude]
        yield f"never {', '.join(spans)}"[:LONGEST]
    if outside := sum(host.outside for host in one.hosts):
        yield f"taken, but no longer part of it: {outside}"


def port_rows(cluster: ClusterStatus, host: HostStatus) -> Iterator[Row]:
    """Each port of a host that is not free."""
    left = {lease.lease: lease.expires_in for lease in host.leases}
    ranges = {one.name: one for one in cluster.ranges}
    for port in host.ports:
        yield (
            port.range or "-",  # so that every line has as many words
            f"{port.number}/{port.protocol}",
            port.state,
            port.owner[:LONGEST] or "-",
            port.host,
            port.instance,
            port.fence,
            span((cluster.generated_at - port.since).total_seconds()),
            span(left.get(port.lease) if port.free_in is None else port.free_in),
            "" if host.host and not port.outside else note(host, port, ranges.get(port.range or "")),
        )


def note(host: HostStatus, port: PortStatus, one: RangeStatus | None) -> str:
    """Where else the number is taken, and why its range would not give it any more."""
    scope = "host" if host.host else "cluster"
    notes = []
    if port.outside and one is not None:
        if one.scope != scope:
            notes.append(f"scope is now {one.scope}")
        elif one.first <= port.number <= one.last:
            notes.append("now excluded")
        else:
            notes.append(f"outside {one.first}-{one.last}")
    if scope == "cluster":
        notes.append("cluster-wide")
    return ", ".join(notes)


def span(seconds: float | None) -> str:
    """A span of time in few characters: ``28.1s``, ``4m05s``, ``3h12m``, ``2d07h``; ``-`` when it is unknown."""
    if seconds is None:
        return "-"
    if seconds <= 0:
        return "0s"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, second = divmod(int(seconds), 60)
    hours, minute = divmod(minutes, 60)
    days, hour = divmod(hours, 24)
    if days:
        return f"{days}d{hour:02}h"
    return f"{hours}h{minute:02}m" if hours else f"{minute}m{second:02}s"
