"""The story of ports, put in order for people and programs. Pure: logs and the time are passed in."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from ._names import check_name, is_host_space, space_host
from ._requests import check_port
from ._text import show
from .errors import ConfigurationError
from .status import iso

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from datetime import datetime

    from .abc import Event, EventKind, Events, Protocol4

__all__ = ["MOST", "EventFilter", "PortEvent", "check_limit"]

MOST: Final = 1_000_000
"""The most events that can be asked for."""


class PortEvent(NamedTuple):
    """What happened to a port. ``at``: in UTC, by the clock of this machine and that of the store.

    ``number``: None where a request for any number was refused, whose ``fence`` is 0. ``host``: where the port is
    bound; ``""`` where one that is unique in the cluster has none. ``range``: None when it was claimed without one.
    ``instance``, ``lease``, ``owner`` and ``labels`` are those of the holder, then or before, or of who was refused; an
    ``owner`` up to 512 bytes, ``labels`` if they have no more than that together.
    """

    at: datetime
    kind: EventKind
    host: str
    number: int | None
    protocol: Protocol4
    range: str | None
    owner: str
    labels: Mapping[str, str]
    instance: str
    lease: int
    fence: int

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return self._asdict() | {"at": iso(self.at), "labels": dict(sorted(self.labels.items()))}


@dataclass(frozen=True, slots=True)
class EventFilter:
    """Which events are wanted; None: any. ``since``: no older ones. ``test``: those only of which it is true.

    :raises ConfigurationError: a value out of its bounds.
    """

    host: str | None = None
    range: str | None = None
    port: int | None = None
    owner: str | None = None
    since: datetime | None = None
    test: Callable[[PortEvent], bool] | None = None

    def __post_init__(self) -> None:
        if self.host is not None:
            check_name("host", self.host)
        if self.port is not None:
            check_port(self.port, "tcp")
        if self.since is not None and self.since.tzinfo is None:
            raise ConfigurationError(f"since: must be a time with a time zone, got {show(str(self.since))}")

    @property
    def is_narrow(self) -> bool:
        """Whether of the events in a log only some are wanted."""
        return any(value is not None for value in (self.host, self.range, self.port, self.owner, self.since, self.test))

    def matches(self, event: PortEvent) -> bool:
        """Whether this one is wanted."""
        return (
            self.host in (None, event.host)
            and self.range in (None, event.range)
            and self.port in (None, event.number)
            and self.owner in (None, event.owner)
            and (self.since is None or self.since <= event.at)
            and (self.test is None or self.test(event))
        )

    def pick(self, log: Events, now: datetime) -> list[PortEvent]:
        """Those that are wanted, in their order. ``now``: when the log was read.

        None is later than the one after it: the clock that their times were taken from may have gone back.
        """
        host = space_host(log.space) if is_host_space(log.space) else None
        found = []
        age = 0
        for event in reversed(log.events):
            age = max(age, event.age)
            shown = _shown(event, host, now - timedelta(microseconds=age))
            if self.matches(shown):
                found.append(shown)
        return found[::-1]


def _shown(event: Event, host: str | None, at: datetime) -> PortEvent:
    return PortEvent(
        at=at,
        kind=event.kind,
        host=event.host if host is None else host,
        number=event.number or None,
        protocol=event.protocol,
        range=event.range or None,
        owner=event.owner,
        labels=event.labels,
        instance=event.instance,
        lease=event.lease,
        fence=event.fence,
    )


def check_limit(limit: int) -> int:
    """As it is.

    :raises ConfigurationError: it is none.
    """
    if type(limit) is not int or not 1 <= limit <= MOST:
        raise ConfigurationError(f"limit: must be a whole number from 1 to {MOST}, got {show(limit)}")
    return limit
