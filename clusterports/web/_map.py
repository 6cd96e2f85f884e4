"""What the page shows of a cluster, as plain documents. Pure: no I/O, no clock."""

from __future__ import annotations

import json
from dataclasses import replace
from operator import attrgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from clusterports._lease import MARGIN
from clusterports._names import is_cluster_space, is_host_space, space_host
from clusterports._text import show
from clusterports.errors import BackendError, ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from clusterports.abc import SpaceView
    from clusterports.ranges import PortRange
    from clusterports.status import ClusterStatus, HostStatus, PortStatus

__all__ = ["COLUMNS", "SCHEMA", "Row", "as_json", "in_jeopardy", "only_range", "range_document", "rows", "search"]

COLUMNS = ("held", "cooling", "foreign", "free", "excluded")
"""Of the counts of a range on a host, which add up to its size."""

_counts = attrgetter(*COLUMNS)

SCHEMA = 1
"""Of the documents that only the page has."""


class Row(NamedTuple):
    """A host in the map; "" is the whole cluster. ``ranges``: by name, its counts in the order of `COLUMNS`. ``live``,
    ``expired``, ``jeopardy``: leases, those in jeopardy among the live ones. ``recovering``: seconds.
    """

    host: str
    ranges: dict[str, tuple[int, ...]]
    live: int
    expired: int
    jeopardy: int
    waiting: int
    recovering: float

    def to_dict(self) -> dict[str, Any]:
        """Its part of ``/api/map``."""
        return {
            "host": self.host,
            "ranges": self.ranges,
            "live": self.live,
            "expired": self.expired,
            "jeopardy": self.jeopardy,
            "waiting": self.waiting,
            "recovering_s": self.recovering,
        }


def rows(cluster: ClusterStatus, jeopardy: Mapping[str, int]) -> Iterator[Row]:
    """A row for each host that could be read."""
    ranges: dict[str, dict[str, tuple[int, ...]]] = {}
    for one in cluster.ranges:
        for there in one.hosts:
            ranges.setdefault(there.host, {})[one.name] = _counts(there)
    for host in cluster.hosts:
        live = sum(lease.state == "live" for lease in host.leases)
        late = jeopardy.get(host.host, 0)
        expired = len(host.leases) - live
        yield Row(host.host, ranges.get(host.host, {}), live, expired, late, host.waiting, host.recovering)


def in_jeopardy(spaces: Sequence[str], views: Sequence[SpaceView | BackendError]) -> dict[str, int]:
    """By host, how many live leases have so little time left that their holders do not rely on them any more."""
    late: dict[str, int] = {}
    for space, view in zip(spaces, views, strict=True):
        if isinstance(view, BackendError) or not (is_host_space(space) or is_cluster_space(space)):
            continue
        count = sum(0 < lease.expires_in < lease.ttl * MARGIN for lease in view.leases)
        if count:
            host = space_host(space) if is_host_space(space) else ""
            late[host] = late.get(host, 0) + count
    return late


def only_range(cluster: ClusterStatus, name: str) -> ClusterStatus:
    """As :meth:`ClusterStatus.build` makes it for a range.

    :raises ConfigurationError: it is neither configured nor found in the store.
    """
    found = {port.range for host in cluster.hosts for port in host.ports if port.range is not None}
    known = {one.name for one in cluster.ranges} | found
    if name not in known:
        raise ConfigurationError(f"range: must be one of {', '.join(sorted(known))}; got {show(name)}")
    return replace(
        cluster,
        hosts=tuple(
            replace(host, ports=tuple(one for one in host.ports if one.range == name)) for host in cluster.hosts
        ),
        ranges=tuple(one for one in cluster.ranges if one.name == name),
    )


def range_document(one: PortRange) -> dict[str, Any]:
    """What the head of a column says."""
    excluded = sum(last - first + 1 for first, last in one.exclude)
    return {
        "name": one.name,
        "first": one.first,
        "last": one.last,
        "size": one.size,
        "scope": one.scope,
        "excluded": excluded,
    }


def search(hosts: Iterable[HostStatus], wanted: str, limit: int) -> dict[str, Any]:
    """Hosts whose names have the text in them, and ports of this number or with the text in owner, instance or labels;
    of each at most ``limit``, first those of which it is the whole. Case makes no difference.
    """
    text = wanted.casefold()
    number = int(wanted) if wanted.isascii() and wanted.isdecimal() and len(wanted) <= 5 else -1
    names = _Best(limit)
    ports = _Best(limit)
    for host in hosts:
        names.add(host.host, _fit(text, (host.host.casefold(),)))
        for port in host.ports:
            ports.add(port, 2 if port.number == number else _fit(text, _words(port)))
    return {
        "schema": SCHEMA,
        "query": wanted,
        "hosts": names.found(),
        "ports": [port.to_dict() for port in ports.found()],
        "more": names.more or ports.more,
    }


class _Best:
    """The first of those that fit wholly, then the first of the others."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_fit: dict[int, list[Any]] = {1: [], 2: []}

    def add(self, one: object, fit: int) -> None:
        if fit and len(self._by_fit[fit]) <= self._limit:
            self._by_fit[fit].append(one)

    def found(self) -> list[Any]:
        return (self._by_fit[2] + self._by_fit[1])[: self._limit]

    @property
    def more(self) -> bool:
        return sum(map(len, self._by_fit.values())) > self._limit


def _words(port: PortStatus) -> Iterator[str]:
    yield port.owner.casefold()
    yield port.instance.casefold()
    for name, value in port.labels.items():
        yield name.casefold()
        yield value.casefold()


def _fit(text: str, words: Iterable[str]) -> int:
    """2: a word is the text; 1: has it inside; 0: none has."""
    best = 0
    for word in words:
        if text in word:
            best = max(best, 2 if text == word else 1)
    return best


def as_json(document: Mapping[str, Any]) -> bytes:
    """As ``--json`` prints it, byte by byte. Element by element: one call for all would keep every other thread waiting
    for as long as it takes.
    """
    parts = []
    for key, value in document.items():
        text = f"[{', '.join(map(_dumps, value))}]" if isinstance(value, list) else _dumps(value)
        parts.append(f"{_dumps(key)}: {text}")
    return f"{{{', '.join(parts)}}}\n".replace("\x7f", "\\u007f").encode("ascii")


def _dumps(value: object) -> str:
    return json.dumps(value, ensure_ascii=True)
