"""``clusterports status``: who holds what."""

from __future__ import annotations

import json
import os
import sys
from shutil import get_terminal_size
from typing import TYPE_CHECKING, Annotated

import typer

from clusterports._names import check_name

from ._common import Config, Url, connect, load
from ._table import Column, table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from clusterports.status import ClusterStatus, HostStatus

__all__ = ["status"]

LONGEST = 200
"""Characters of an owner that a table shows; all of it is in the JSON."""

RANGES = (
    Column("RANGE", least=8),
    Column("PORTS"),
    Column("HOSTS", right=True),
    Column("HELD", right=True),
    Column("COOLING", right=True),
    Column("FREE", right=True, rank=1),
)
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
)


def status(
    host: Annotated[str | None, typer.Option(help="This host only.")] = None,
    range: Annotated[str | None, typer.Option(help="Ports of this range only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document, of a fixed layout.")] = False,
    url: Url = None,
    config: Config = None,
) -> None:
    """Show who holds which port, and for how long.

    LEFT is the time until the lease of a held port runs out unless it is renewed, and until a cooling port is
    free again.
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
    if not any(host.leases or host.ports for host in cluster.hosts):
        print(f"Nothing is held, and no port is cooling (store: {cluster.backend}).")
        return
    width = get_terminal_size().columns if sys.stdout.isatty() or "COLUMNS" in os.environ else None
    ports = [row for host in cluster.hosts for row in port_rows(cluster, host)]
    print(*table(RANGES, range_rows(cluster), width), sep="\n")
    if ports:
        print("", *table(PORTS, ports, width), sep="\n")


def range_rows(cluster: ClusterStatus) -> list[Sequence[object]]:
    """Each range, over all hosts that are shown."""
    return [
        (
            one.name,
            f"{one.first}-{one.last}",
            len(one.hosts),
            sum(host.held for host in one.hosts),
            sum(host.cooling for host in one.hosts),
            sum(host.free for host in one.hosts),
        )
        for one in cluster.ranges
    ]


def port_rows(cluster: ClusterStatus, host: HostStatus) -> Iterator[Sequence[object]]:
    """Each port of a host that is not free."""
    left = {lease.lease: lease.expires_in for lease in host.leases}
    for port in host.ports:
        yield (
            port.range,
            f"{port.number}/{port.protocol}",
            port.state,
            port.owner[:LONGEST] or "-",  # so that every line has as many words
            host.host,
            port.instance,
            port.fence,
            span((cluster.generated_at - port.since).total_seconds()),
            span(left.get(port.lease) if port.free_in is None else port.free_in),
        )


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
