"""What follows from a history: who relied on which port, and when."""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cached_property
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final, Literal

from faults.story import told

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from faults.history import Event, Kind

__all__ = ["GRAIN", "KINDS", "SHARE", "Breach", "History", "Use", "until_deadlines", "uses"]

GRAIN: Final = 0.001
"""The store's clock moves in steps of a millisecond, so it may be behind by that much."""

SHARE: Final = 0.9
"""The part of a TTL that a holder relies on."""

KINDS: Final = {"tcp": ("tcp",), "udp": ("udp",), "both": ("tcp", "udp")}
"""The number spaces that a port takes."""


@dataclass(frozen=True)
class Breach:
    """``rule``: the guarantee. ``key``: what makes it this breach and no other. ``clients``, ``host``: those in it.
    ``story``: events, in order of time, without any one of which there would be no breach.
    """

    rule: str
    text: str
    key: tuple[Any, ...]
    clients: frozenset[str]
    host: str
    story: tuple[Event, ...] = ()

    def __str__(self) -> str:
        return "\n".join([f"{self.rule}: {self.text}", *(f"    {line}" for line in told(self.story))])


@dataclass
class Use:
    """A time during which a client relied on a port. ``until``: infinite when the run ended before it did."""

    granted: Event
    since: float
    until: float = float("inf")
    end: Kind | Literal["deadline", "taken over"] | None = None

    def __str__(self) -> str:
        port = self.granted
        return (
            f"{port.client} with fence {port.fence} from {self.since:.3f} to {self.until:.3f} ({self.end or 'the end'})"
        )


@dataclass
class History:
    """Events and what follows from them. ``slack``: by how many seconds callbacks, and the times at which a fault is
    said to begin and end, may be off. ``patience``: seconds that a call may take at most when nothing is wrong.
    """

    events: Sequence[Event]
    ttl: float
    quarantine: float
    slack: float = 0.0
    patience: float = float("inf")
    by_kind: dict[str, list[Event]] = field(init=False)

    def __post_init__(self) -> None:
        self.by_kind = defaultdict(list)
        for event in sorted(self.events, key=attrgetter("asked")):
            self.by_kind[event.event].append(event)

    @cached_property
    def beats(self) -> dict[tuple[str, str], list[Event]]:
        """Of a client on a host, in the order of their answers; those of all hosts under ""."""
        found: dict[tuple[str, str], list[Event]] = defaultdict(list)
        for beat in sorted(self.by_kind["beat"], key=attrgetter("answered")):
            for host in beat.host.split(" "):
                found[beat.client, host].append(beat)
        return found

    def beats_of(self, client: str, host: str) -> list[Event]:
        here, everywhere = self.beats.get((client, host), []), self.beats.get((client, ""), [])
        return sorted([*here, *everywhere], key=attrgetter("answered")) if here and everywhere else here or everywhere

    @cached_property
    def clients(self) -> dict[str, list[str]]:
        """The processes of an instance."""
        found: dict[str, dict[str, None]] = defaultdict(dict)
        for event in self.events:
            found[event.instance][event.client] = None
        return {instance: list(clients) for instance, clients in found.items()}

    @cached_property
    def began(self) -> dict[str, float]:
        """When each process was first heard of."""
        found: dict[str, float] = {}
        for event in self.events:
            found[event.client] = min(event.asked, found.get(event.client, event.asked))
        return found

    def last_beat(self, instance: str, host: str, before: float = float("inf")) -> Event | None:
        """The last one of an instance, by whatever process, that may have been carried out before then."""
        beats = [beat for name in self.clients.get(instance, ()) for beat in self.beats_of(name, host)]
        return max((beat for beat in beats if beat.asked < before), key=attrgetter("asked"), default=None)

    @cached_property
    def watched(self) -> frozenset[str]:
        """Clients whose heartbeats were recorded."""
        return frozenset(client for client, _ in self.beats)

    @cached_property
    def uses(self) -> list[Use]:
        return uses(self.events, self.watched)

    @cached_property
    def grants(self) -> dict[tuple[str, str, int], list[Event]]:
        """By host, protocol and number, in the order of fences; one of both protocols under each."""
        found: dict[tuple[str, str, int], list[Event]] = defaultdict(list)
        for grant in sorted(self.by_kind["granted"], key=attrgetter("fence")):
            for kind in KINDS[grant.protocol]:
                found[grant.host, kind, grant.number].append(grant)
        return found

    def losses(self, since: float, until: float, *kinds: str) -> list[Event]:
        """What the store may have lost between these times."""
        wanted = [loss for kind in kinds or ("emptied", "rolled back") for loss in self.by_kind[kind]]
        return [loss for loss in wanted if loss.answered >= since and loss.asked <= until]

    @cached_property
    def reliances(self) -> dict[tuple[str, str, int], list[Use]]:
        """By client, host and fence: the times during which it was relied upon and might be."""
        found: dict[tuple[str, str, int], list[Use]] = defaultdict(list)
        for use in self.uses:
            port = use.granted
            found[port.client, port.host, port.fence] += until_deadlines(self, use)
        return found

    def relied(self, port: Event, at: float) -> bool:
        """Whether the client of this event relied on its port then."""
        return any(part.since <= at < part.until for part in self.reliances[port.client, port.host, port.fence])

    def breach(self, rule: str, text: str, key: tuple[Any, ...], *about: Event) -> Breach:
        clients = frozenset(name for event in about for name in self.clients.get(event.instance, (event.client,)))
        return Breach(rule, text, (rule, *key), clients, about[0].host)


_ENDS: Final = ("releasing", "released", "refused", "lost", "killed", "detached", "jeopardy")


def uses(events: Iterable[Event], watched: frozenset[str] = frozenset()) -> list[Use]:
    """From the answer to the grant until the release was asked for, the holder was warned, or it died.

    A recovery from jeopardy begins another use of the same grant. Jeopardy and recovery of those who are ``watched``
    are seen from their heartbeats.
    """
    found: list[Use] = []
    events = list(events)
    robbed = {(e.client, e.host, e.fence): e.asked for e in events if e.event == "lost" and e.fence}
    current: dict[str, dict[tuple[str, int], Use]] = defaultdict(dict)
    waiting: dict[str, dict[tuple[str, int], Event]] = defaultdict(dict)
    for event in sorted(events, key=_effect):
        kind, mine, paused = event.event, current[event.client], waiting[event.client]
        key = (event.host, event.fence)
        if kind in ("granted", "found"):
            if event.asked <= robbed.get((event.client, *key), -1.0) <= event.answered:
                continue  # it was told so before it could write down that it was given the port
            if kind == "found":
                for other, theirs in current.items():
                    if other.partition("#")[0] == event.instance:
                        _end(theirs, [key], event.asked, "taken over")
            mine[key] = Use(event, event.answered)
            found.append(mine[key])
        elif kind == "recovered":
            for key in _touched(paused, event):
                mine[key] = Use(paused.pop(key), event.answered)
                found.append(mine[key])
        elif kind in _ENDS and not (kind == "jeopardy" and event.client in watched):
            touched = _touched(mine, event)
            if kind == "jeopardy":
                paused.update({key: mine[key].granted for key in touched})
            else:
                for key in _touched(paused, event):
                    del paused[key]
            _end(mine, touched, event.asked, kind)
    return found


def _effect(event: Event) -> float:
    """The time from which it counts: what ends a use when it was asked for, what begins one when it was answered."""
    return event.asked if event.event in _ENDS else event.answered


def _touched(mine: Iterable[tuple[str, int]], event: Event) -> list[tuple[str, int]]:
    return [key for key in mine if event.host in ("", key[0]) and event.fence in (0, key[1])]


def _end(mine: dict[tuple[str, int], Use], keys: Iterable[tuple[str, int]], at: float, why: Any) -> None:
    for key in keys:
        use = mine.pop(key, None)
        if use is not None:
            use.until, use.end = at, why


def until_deadlines(history: History, use: Use) -> Iterator[Use]:
    """H1: without a heartbeat the holder relies on nothing beyond its deadline, whether or not it can say so.

    Somebody whose heartbeats were not recorded is taken to have none missed.
    """
    beats, lasts = history.beats_of(use.granted.client, use.granted.host), history.ttl * SHARE
    if not beats:
        yield use
        return
    first = bisect_right(beats, use.since, key=attrgetter("answered"))
    since = use.since
    deadline = max((beat.asked for beat in beats[:first][-8:]), default=since) + lasts
    for beat in beats[first:]:
        if beat.answered >= use.until:
            break
        if beat.answered > deadline:
            if since < deadline:
                yield Use(use.granted, since, deadline, "deadline")
            since = beat.answered
        deadline = max(deadline, beat.asked + lasts)
    if since < min(use.until, deadline):
        yield Use(use.granted, since, min(use.until, deadline), use.end if use.until <= deadline else "deadline")
