"""What the store knows, put in order for people and programs. Pure: views and the time are passed in."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import chain
from operator import attrgetter, itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

from ._names import is_cluster_space, is_host_space, space_host
from ._text import show
from .errors import BackendError, ConfigurationError
from .ranges import Scope, merged, without

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from .abc import LeaseView, PortView, Protocol4, SpaceView
    from .ranges import PortRange, Span, Strategy

__all__ = ["ClusterStatus", "HostStatus", "LeaseStatus", "PortStatus", "RangeOnHost", "RangeStatus", "UnreadableHost"]

SCHEMA = 1
"""Of the layout of :meth:`ClusterStatus.to_dict`. It grows when a reader of the old layout would be misled."""


@dataclass(frozen=True, slots=True)
class LeaseStatus:
    """A lease. ``state`` is ``"live"`` or ``"expired"``; ``expires_in``: seconds, negative once it has run out;
    ``ports``: how many it holds, of all ranges. ``grace``: it has run out, but nobody used the host's ports for so
    long that whoever does next gives it a full TTL to renew.
    """

    lease: int
    instance: str
    state: str
    expires_in: float
    ports: int
    grace: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "lease": self.lease,
            "instance": self.instance,
            "state": self.state,
            "grace": self.grace,
            "expires_in_s": self.expires_in,
            "ports": self.ports,
        }


class PortStatus(NamedTuple):
    """A port that is not free. A plain tuple, since there may be a hundred thousand of them.

    ``range``: None when it was claimed without one. ``state`` is ``"held"``, ``"cooling"`` or ``"foreign"``.
    ``instance``: who holds it, held it last, or saw that something foreign has it. ``since``: when it was granted.
    ``free_in``: seconds, None while it is held. ``host``: where it is bound. ``outside``: its range was changed
    since, and would not give this number here any more.
    """

    number: int
    protocol: Protocol4
    range: str | None
    state: str
    owner: str
    labels: Mapping[str, str]
    instance: str
    lease: int
    fence: int
    since: datetime
    free_in: float | None
    host: str
    outside: bool

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "number": self.number,
            "protocol": self.protocol,
            "range": self.range,
            "state": self.state,
            "owner": self.owner,
            "labels": dict(sorted(self.labels.items())),
            "instance": self.instance,
            "lease": self.lease,
            "fence": self.fence,
            "since": iso(self.since),
            "free_in_s": self.free_in,
            "host": self.host,
            "outside": self.outside,
        }


@dataclass(frozen=True, slots=True)
class HostStatus:
    """A host that has a space in the store: leases by instance, ports by number.

    ``host`` is ``""`` for what is unique in the whole cluster; there each port says where it is bound. ``waiting``:
    how many callers wait for a port. ``recovering``: seconds for which no port is given out there, because the store
    lost what it knew and holders are to have time to claim theirs.
    """

    host: str
    leases: tuple[LeaseStatus, ...]
    ports: tuple[PortStatus, ...]
    waiting: int = 0
    recovering: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "host": self.host,
            "leases": [lease.to_dict() for lease in self.leases],
            "ports": [port.to_dict() for port in self.ports],
            "waiting": self.waiting,
            "recovering_s": self.recovering,
        }


@dataclass(frozen=True, slots=True)
class UnreadableHost:
    """A host whose space is in the store, but damaged or of another version; ``""`` for the whole cluster's."""

    host: str
    error: str

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {"host": self.host, "error": self.error}


@dataclass(frozen=True, slots=True)
class RangeOnHost:
    """How many numbers of a range are in which state on a host, or with ``host=""`` in the cluster.

    A number counts once, whatever range or protocol it was given for: as held if it is held for any protocol,
    else as cooling, else as foreign. Of the others, ``excluded`` are never given out: the range excludes them, or,
    on a host, they belong to a range of the cluster. The five together are the range's size.
    ``band_free``: how many of the free ones are in the static band. ``outside``: how many numbers were given for
    this range and would not be today, since it was changed.
    """

    host: str
    held: int
    cooling: int
    foreign: int
    free: int
    excluded: int = 0
    band_free: int = 0
    outside: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "host": self.host,
            "held": self.held,
            "cooling": self.cooling,
            "foreign": self.foreign,
            "free": self.free,
            "excluded": self.excluded,
            "band_free": self.band_free,
            "outside": self.outside,
        }


@dataclass(frozen=True, slots=True)
class RangeStatus:
    """A configured range on every host that has a space, or, when its scope is the cluster, in the cluster's.

    The rest is as in :class:`~clusterports.PortRange`.
    """

    name: str
    first: int
    last: int
    size: int
    scope: Scope
    strategy: Strategy
    limit: int | None
    exclude: tuple[Span, ...]
    static_band: int
    quarantine: float
    cooldown: float
    hosts: tuple[RangeOnHost, ...]

    def to_dict(self) -> dict[str, Any]:
        """Its part of :meth:`ClusterStatus.to_dict`."""
        return {
            "name": self.name,
            "first": self.first,
            "last": self.last,
            "size": self.size,
            "scope": self.scope,
            "strategy": self.strategy,
            "limit": self.limit,
            "exclude": [list(span) for span in self.exclude],
            "static_band": self.static_band,
            "quarantine_s": self.quarantine,
            "cooldown_s": self.cooldown,
            "hosts": [host.to_dict() for host in self.hosts],
        }


@dataclass(frozen=True, slots=True)
class ClusterStatus:
    """The whole cluster at one moment, by this machine's clock: hosts and ranges sorted by name.

    What is unique in the whole cluster comes first, as a host with the name ``""``. ``unreadable``: hosts of which
    nothing can be told; they are in no count.
    """

    backend: str
    generated_at: datetime
    hosts: tuple[HostStatus, ...]
    ranges: tuple[RangeStatus, ...]
    unreadable: tuple[UnreadableHost, ...] = ()

    @classmethod
    def build(
        cls,
        *,
        names: Sequence[str],
        views: Sequence[SpaceView | BackendError],
        ranges: Sequence[PortRange],
        backend: str,
        generated_at: datetime,
        host: str | None = None,
        range: str | None = None,
    ) -> ClusterStatus:
        """Put the views of the store in order.

        ``names``: of the spaces; ``views``: as :meth:`~clusterports.abc.Backend.read` answers for them. ``ranges``:
        all that are configured, since those of the cluster take their numbers from the others. ``host``: this one
        only, with those ports of the cluster that are bound there; counts in the cluster are of all of it. ``range``:
        ports and counts of this range only; leases are shown all the same.

        :raises ConfigurationError: when ``range`` is neither configured nor found in the store.
        """
        now = generated_at.astimezone(UTC)
        answers = _by_host(names, views)
        if range is not None:
            given_for = {port.range for _, view in answers if not isinstance(view, BackendError) for port in view.ports}
            known = {one.name for one in ranges} | given_for - {""}
            if range not in known:
                raise ConfigurationError(f"range: must be one of {', '.join(sorted(known))}; got {show(range)}")
        answers = [(name, view) for name, view in answers if host is None or name in ("", host)]
        shown = [(name, view) for name, view in answers if not isinstance(view, BackendError)]
        rules = _rules(ranges)
        given: dict[Scope, dict[str, Collection[int]]] = {
            scope: {rule.span.name: rule.given if rule.span.scope == scope else () for rule in rules}
            for scope in get_args(Scope)
        }
        taken = [(name, _taken(view, given[_scope(name)])) for name, view in shown]
        return cls(
            backend=backend,
            generated_at=now,
            hosts=tuple(
                _host(name, view, numbers.outside, now, range, None if name else host)
                for (name, view), (_, numbers) in zip(shown, taken, strict=True)
            ),
            ranges=tuple(
                _range(rule, [(name, numbers) for name, numbers in taken if _scope(name) == rule.span.scope])
                for rule in rules
                if range is None or rule.span.name == range
            ),
            unreadable=tuple(
                UnreadableHost(name, str(view)) for name, view in answers if isinstance(view, BackendError)
            ),
        )

    def to_dict(self) -> dict[str, Any]:
        """The layout of ``clusterports status --json``. Seconds are rounded to milliseconds, times are UTC."""
        return {
            "schema": SCHEMA,
            "backend": self.backend,
            "generated_at": iso(self.generated_at),
            "hosts": [host.to_dict() for host in self.hosts],
            "ranges": [one.to_dict() for one in self.ranges],
            "unreadable": [one.to_dict() for one in self.unreadable],
        }


class _Rule(NamedTuple):
    """A range, the numbers that it gives, and how many of these are in the static band, below the border."""

    span: PortRange
    given: Collection[int]
    band: int
    border: int


class _Taken(NamedTuple):
    """Numbers that are not free, sorted: each in one of the states only, and in ``all``. ``outside``: by range."""

    held: list[int]
    cooling: list[int]
    foreign: list[int]
    all: list[int]
    outside: dict[str, set[int]]


def _by_host(
    spaces: Iterable[str], views: Iterable[SpaceView | BackendError]
) -> list[tuple[str, SpaceView | BackendError]]:
    """Each with its host, or with "" for the cluster's; nothing of a cluster whose space nobody has used."""
    found: list[tuple[str, SpaceView | BackendError]] = []
    for space, view in zip(spaces, views, strict=True):
        if is_cluster_space(space):
            if isinstance(view, BackendError) or view.fence or view.leases or view.ports:
                found.append(("", view))
        elif is_host_space(space) and (name := space_host(space)):
            found.append((name, view))
    return sorted(found, key=itemgetter(0))


def _scope(name: str) -> Scope:
    return "host" if name else "cluster"


def _rules(ranges: Iterable[PortRange]) -> list[_Rule]:
    ordered = sorted(ranges, key=attrgetter("name"))
    cluster = [(one.first, one.last) for one in ordered if one.scope == "cluster"]
    rules = []
    for one in ordered:
        holes = one.exclude if one.scope == "cluster" else merged((*one.exclude, *cluster))
        parts = [range(first, last + 1) for first, last in without(((one.first, one.last),), holes)]
        given = parts[0] if len(parts) == 1 else frozenset(chain.from_iterable(parts))
        border = one.first + one.static_band
        rules.append(_Rule(one, given, sum(number in given for number in range(one.first, border)), border))
    return rules


def _host(
    name: str, view: SpaceView, outside: Mapping[str, set[int]], now: datetime, only: str | None, bound: str | None
) -> HostStatus:
    """``only``: ports of this range. ``bound``: ports that are bound there, and leases that hold one of them."""
    counts: dict[int, int] = {}
    for port in view.ports:
        if port.state == "held":
            counts[port.lease] = counts.get(port.lease, 0) + 1
    here: Sequence[PortView] = view.ports
    leases: Sequence[LeaseView] = view.leases
    if bound is not None:
        here = [port for port in here if port.host == bound]
        holders = {port.lease for port in here if port.state == "held"}
        leases = [lease for lease in leases if lease.lease in holders]
    oldest = int(now.timestamp()) * 1_000_000
    ports = [_port(port, name, outside, now, oldest) for port in here if only is None or port.range == only]
    return HostStatus(
        host=name,
        leases=tuple(
            _lease(lease, counts.get(lease.lease, 0)) for lease in sorted(leases, key=attrgetter("instance", "lease"))
        ),
        ports=tuple(sorted(ports, key=attrgetter("number", "protocol"))),
        waiting=view.waiting,
        recovering=round(view.recovering / 1e6, 3),
    )


def _lease(view: LeaseView, ports: int) -> LeaseStatus:
    state = "live" if view.expires_in > 0 else "expired"
    return LeaseStatus(view.lease, view.instance, state, _seconds(view.expires_in), ports, view.grace)


def _port(view: PortView, host: str, outside: Mapping[str, set[int]], now: datetime, oldest: int) -> PortStatus:
    # an age beyond the epoch is damaged data, and no reason to show nothing at all
    age = min(view.age, oldest)
    return PortStatus(
        number=view.number,
        protocol=view.protocol,
        range=view.range or None,
        state=view.state,
        owner=view.owner,
        labels=view.labels,
        instance=view.instance,
        lease=view.lease,
        fence=view.fence,
        since=now - timedelta(microseconds=age),
        free_in=None if view.free_in is None else _seconds(view.free_in),
        host=host or view.host,
        outside=view.range in outside and view.number in outside[view.range],
    )


def _taken(view: SpaceView, given: Mapping[str, Collection[int]]) -> _Taken:
    by_state: dict[str, set[int]] = {"held": set(), "cooling": set(), "foreign": set()}
    outside: dict[str, set[int]] = {}
    for port in view.ports:
        by_state[port.state].add(port.number)
        if port.range in given and port.number not in given[port.range]:
            outside.setdefault(port.range, set()).add(port.number)
    held, cooling, foreign = by_state.values()
    return _Taken(
        sorted(held),
        sorted(cooling - held),
        sorted(foreign - held - cooling),
        sorted(held | cooling | foreign),
        outside,
    )


def _range(rule: _Rule, taken: Iterable[tuple[str, _Taken]]) -> RangeStatus:
    one = rule.span
    return RangeStatus(
        name=one.name,
        first=one.first,
        last=one.last,
        size=one.size,
        scope=one.scope,
        strategy=one.strategy,
        limit=one.limit,
        exclude=one.exclude,
        static_band=one.static_band,
        quarantine=one.quarantine,
        cooldown=one.cooldown,
        hosts=tuple(_on_host(name, rule, numbers) for name, numbers in taken),
    )


def _on_host(name: str, rule: _Rule, taken: _Taken) -> RangeOnHost:
    one, given = rule.span, rule.given
    held, cooling, foreign = (_count(numbers, one.first, one.last) for numbers in taken[:3])
    inside = taken.all[bisect_left(taken.all, one.first) : bisect_right(taken.all, one.last)]
    band_free = rule.band
    if band_free:
        band_free -= sum(number in given for number in inside[: bisect_left(inside, rule.border)])
    free = len(given) - (len(inside) if len(given) == one.size else sum(number in given for number in inside))
    return RangeOnHost(
        host=name,
        held=held,
        cooling=cooling,
        foreign=foreign,
        free=free,
        excluded=one.size - len(inside) - free,
        band_free=band_free,
        outside=len(taken.outside.get(one.name, ())),
    )


def _count(numbers: list[int], first: int, last: int) -> int:
    return bisect_right(numbers, last) - bisect_left(numbers, first)


def _seconds(microseconds: int) -> float:
    return round(microseconds / 1e6, 3)


def iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
