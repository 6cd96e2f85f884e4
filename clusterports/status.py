"""What the store knows, put in order for people and programs. Pure: views and the time are passed in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from ._names import is_host_space, space_host
from ._text import show
from .errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from .abc import LeaseView, PortView, Protocol4, SpaceView
    from .ranges import PortRange

__all__ = ["ClusterStatus", "HostStatus", "LeaseStatus", "PortStatus", "RangeOnHost", "RangeStatus"]

SCHEMA = 1
"""Of the layout of :meth:`ClusterStatus.to_dict`. It grows when a reader of the old layout would be misled."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease. ``state`` is ``"live"`` or ``"expired"``; ``expires_in``: seconds, negative once it has run out;
    ``ports``: how many it holds, of all ranges.
    """

    lease: int
    instance: str
    state: str
    expires_in: float
    ports: int

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "lease": self.lease,
            "instance": self.instance,
            "state": self.state,
            "expires_in_s": self.expires_in,
            "ports": self.ports,
        }


class PortStatus(NamedTuple):
    """A port that is not free. A plain tuple, since there may be a hundred thousand of them.

    ``state`` is ``"held"``, ``"cooling"`` or ``"foreign"``; ``since``: when it was granted; ``free_in``: seconds,
    None while it is held.
    """

    number: int
    protocol: Protocol4
    range: str
    state: str
    owner: str
    labels: Mapping[str, str]
    instance: str
    lease: int
    fence: int
    since: datetime
    free_in: float | None

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "number": self.number,
            "protocol": self.protocol,
            "range": self.range,
            "state": self.state,
            "owner": self.owner,
            "labels": dict(sorted(self.labels.items())),
            "lease": self.lease,
            "fence": self.fence,
            "since": _iso(self.since),
            "free_in_s": self.free_in,
        }


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host that has a space in the store: leases by instance, ports by number."""

    host: str
    leases: tuple[LeaseStatus, ...]
    ports: tuple[PortStatus, ...]

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "host": self.host,
            "leases": [lease.to_dict() for lease in self.leases],
            "ports": [port.to_dict() for port in self.ports],
        }


@dataclass(frozen=True, slots=True)
class RangeOnHost:
    """How many numbers of a range are in which state on a host; together they are the range's size.

    A number counts once, whatever range or protocol it was given for: as held if it is held for any protocol,
    else as cooling, else as foreign.
    """

    host: str
    held: int
    cooling: int
    foreign: int
    free: int

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "host": self.host,
            "held": self.held,
            "cooling": self.cooling,
            "foreign": self.foreign,
            "free": self.free,
        }


@dataclass(frozen=True, slots=True)
class RangeStatus:
    """A configured range on every host that has a space."""

    name: str
    first: int
    last: int
    size: int
    scope: str
    hosts: tuple[RangeOnHost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "name": self.name,
            "first": self.first,
            "last": self.last,
            "size": self.size,
            "scope": self.scope,
            "hosts": [host.to_dict() for host in self.hosts],
        }


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster at one moment, by this machine's clock: hosts and ranges sorted by name."""

    backend: str
    generated_at: datetime
    hosts: tuple[HostStatus, ...]
    ranges: tuple[RangeStatus, ...]

    @classmethod
    def build(
        cls,
        spaces: Sequence[SpaceView],
        ranges: Sequence[PortRange],
        backend: str,
        generated_at: datetime,
        host: str | None = None,
        range: str | None = None,
    ) -> ClusterStatus:
        """Put the views of the store in order.

        ``host``: this one only. ``range``: ports and counts of this range only; leases are shown all the same.

        :raises ConfigurationError: when ``range`` is neither configured nor found in the store.
        """
        now = generated_at.astimezone(UTC)
        views = sorted(
            ((space_host(view.space), view) for view in spaces if is_host_space(view.space)), key=itemgetter(0)
        )
        if range is not None:
            known = {one.name for one in ranges} | {port.range for _, view in views for port in view.ports}
            if range not in known:
                raise ConfigurationError(f"range: must be one of {', '.join(sorted(known))}; got {show(range)}")
        shown = [(name, view) for name, view in views if host is None or name == host]
        taken = [(name, _numbers(view)) for name, view in shown]
        return cls(
            backend=backend,
            generated_at=now,
            hosts=tuple(_host(name, view, now, range) for name, view in shown),
            ranges=tuple(
                RangeStatus(
                    name=one.name,
                    first=one.first,
                    last=one.last,
                    size=one.size,
                    scope="host",
                    hosts=tuple(_on_host(name, one, numbers) for name, numbers in taken),
                )
                for one in sorted(ranges, key=attrgetter("name"))
                if range is None or one.name == range
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The layout of ``clusterports status --json``. Seconds are rounded to milliseconds, times are UTC."""
        return {
            "schema": SCHEMA,
            "backend": self.backend,
            "generated_at": _iso(self.generated_at),
            "hosts": [host.to_dict() for host in self.hosts],
            "ranges": [one.to_dict() for one in self.ranges],
        }


def _host(name: str, view: SpaceView, now: datetime, only: str | None) -> HostStatus:
    counts: dict[int, int] = {}
    for port in view.ports:
        if port.state == "held":
            counts[port.lease] = counts.get(port.lease, 0) + 1
    ports = [_port(port, now) for port in view.ports if only is None or port.range == only]
    return HostStatus(
        host=name,
        leases=tuple(
            _lease(lease, counts.get(lease.lease, 0))
            for lease in sorted(view.leases, key=attrgetter("instance", "lease"))
        ),
        ports=tuple(sorted(ports, key=attrgetter("number", "protocol"))),
    )


def _lease(view: LeaseView, ports: int) -> LeaseStatus:
    state = "live" if view.expires_in > 0 else "expired"
    return LeaseStatus(view.lease, view.instance, state, _seconds(view.expires_in), ports)


def _port(view: PortView, now: datetime) -> PortStatus:
    # an age beyond the epoch is damaged data, and no reason to show nothing at all
    age = min(view.age, int(now.timestamp()) * 1_000_000)
    return PortStatus(
        number=view.number,
        protocol=view.protocol,
        range=view.range,
        state=view.state,
        owner=view.owner,
        labels=view.labels,
        instance=view.instance,
        lease=view.lease,
        fence=view.fence,
        since=now - timedelta(microseconds=age),
        free_in=None if view.free_in is None else _seconds(view.free_in),
    )


def _numbers(view: SpaceView) -> tuple[list[int], list[int], list[int]]:
    """The numbers that are held, cooling, foreign; sorted, and each in one list only."""
    by_state: dict[str, set[int]] = {"held": set(), "cooling": set(), "foreign": set()}
    for port in view.ports:
        by_state[port.state].add(port.number)
    held, cooling, foreign = by_state.values()
    return sorted(held), sorted(cooling - held), sorted(foreign - held - cooling)


def _on_host(name: str, one: PortRange, numbers: tuple[list[int], list[int], list[int]]) -> RangeOnHost:
    held, cooling, foreign = (bisect_right(n, one.last) - bisect_left(n, one.first) for n in numbers)
    return RangeOnHost(name, held, cooling, foreign, one.size - held - cooling - foreign)


def _seconds(microseconds: int) -> float:
    return round(microseconds / 1e6, 3)


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
