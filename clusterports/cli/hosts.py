"""``clusterports hosts``: how full they are."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from clusterports._text import printable, redact_url

from ._common import CLUSTER, Common, complete_range
from ._pager import page
from ._table import RED, YELLOW, Column, clip, colored, lean, table
from .status import Wanted, say_unreadable

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterports.status import ClusterStatus

__all__ = ["hosts"]


class Fill(NamedTuple):
    """How much of what a range can give on a host is not free. The most is ``size``."""

    range: str
    taken: int
    size: int

    def percent(self) -> int:
        """Rounded so that 0 is said of nothing and 100 of everything only."""
        return max(1, self.taken * 100 // self.size)


class Row(NamedTuple):
    """A host. ``expired`` are not among the ``live``; ``fullest``: None when nothing of any range is taken."""

    host: str
    live: int
    expired: int
    held: int
    cooling: int
    foreign: int
    waiting: int
    fullest: Fill | None

    def to_dict(self) -> dict[str, Any]:
        """Its part of ``hosts --json``."""
        return {
            "host": self.host,
            "leases": {"live": self.live, "expired": self.expired},
            "held": self.held,
            "cooling": self.cooling,
            "foreign": self.foreign,
            "waiting": self.waiting,
            "fullest": None if self.fullest is None else self.fullest._asdict(),
        }

    def cells(self) -> tuple[object, ...]:
        """Its line of the table."""
        most = ("-", "-") if self.fullest is None else (self.fullest.range, f"{self.fullest.percent()}%")
        return (self.host or CLUSTER, *self[1:-1], *most)


COLUMNS = (
    Column("HOST", least=8),
    Column("LIVE", right=True, rank=4),
    Column("EXPIRED", right=True, rank=5, spare=True, style=lambda text: None if text == "0" else RED),
    Column("HELD", right=True),
    Column("COOLING", right=True, rank=2),
    Column("FOREIGN", right=True, rank=3),
    Column("WAITING", right=True, rank=1, spare=True),
    Column("FULLEST", least=6),
    Column("FULL", right=True, style=lambda text: {"100%": RED}.get(text, YELLOW if text >= "90%" else None)),
)


def hosts(
    common: Common,
    range: Annotated[str | None, typer.Option(help="Ports of this range only.", autocompletion=complete_range)] = None,
) -> None:
    """Show the hosts, and how full they are.

    LIVE and EXPIRED are leases; WAITING, callers that wait for a port; FULLEST, the range of which the least is free,
    and FULL how much of it is taken. What is unique in the whole cluster comes first, as "(cluster)". With --instance,
    leases and ports are those of that instance. Exits with 5 when a host's data cannot be read, and shows the others.

    \b
    Examples:
      clusterports hosts --range backup
      clusterports hosts --json
    """
    from clusterports import PortAllocator

    settings = common.settings()
    with common.backend(settings) as backend, PortAllocator(settings=settings, backend=backend) as ports:
        cluster = ports.status(host=common.host, range=range)
    rows = list(host_rows(Wanted(instance=common.instance).of(cluster)))
    if common.json:
        common.print_json(
            {"hosts": [row.to_dict() for row in rows], "unreadable": [one.to_dict() for one in cluster.unreadable]}
        )
    elif rows:
        page(table(*lean(COLUMNS, [row.cells() for row in rows]), common.width, colored()))
    elif not cluster.unreadable:
        print(clip(printable(f"No host is known (store: {redact_url(settings.url or '')})."), common.width))
    say_unreadable(cluster)


def host_rows(cluster: ClusterStatus) -> Iterator[Row]:
    """By name."""
    fullest: dict[str, Fill] = {}
    for one in cluster.ranges:
        for there in one.hosts:
            fill = Fill(one.name, taken := there.held + there.cooling + there.foreign, taken + there.free)
            best = fullest.get(there.host)
            if taken and (best is None or fill.taken * best.size > best.taken * fill.size):
                fullest[there.host] = fill
    for host in cluster.hosts:
        states = Counter(port.state for port in host.ports)
        live = sum(lease.state == "live" for lease in host.leases)
        yield Row(
            host.host,
            live,
            len(host.leases) - live,
            states["held"],
            states["cooling"],
            states["foreign"],
            host.waiting,
            fullest.get(host.host),
        )
