"""Reads what the processes of a fault run wrote down, and says which guarantees they saw broken.

Every process appends JSON lines to a file of its own. All run on one machine, so their monotonic clocks are one
clock. An event has the time before it was asked for and the time at which its answer was there: what the store
did, it did in between. Where the two ends differ, the end is taken that can only hide a breach, never invent one.
"""

from __future__ import annotations

import json
import threading
import time
from collections import defaultdict
from dataclasses import asdict, dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, Final, Literal

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

__all__ = ["GRAIN", "Event", "Kind", "Recorder", "Use", "breaches", "overtakings", "read", "uses"]

Kind = Literal["granted", "released", "refused", "jeopardy", "recovered", "lost", "beat", "killed", "queued"]


GRAIN: Final = 0.001
"""The store's clock moves in steps of a millisecond, so it may be behind by that much."""


@dataclass(frozen=True)
class Event:
    """One thing that happened to one client; ``asked`` and ``answered`` in seconds of the monotonic clock.

    ``granted``, ``released`` and ``refused`` (a release that raised LeaseLost) are of one port.
    ``jeopardy``, ``recovered``, ``lost``, ``beat`` (a heartbeat that was confirmed) and ``killed`` are of all that
    the client holds on the host, or everywhere when ``host`` is "". ``queued``: a place in the queue, by its ticket,
    was taken or kept; a port that was given to one who waited has the ticket too.
    """

    client: str
    event: Kind
    asked: float
    answered: float
    host: str = ""
    number: int = 0
    protocol: str = "tcp"
    fence: int = 0
    ticket: int = 0


class Recorder:
    """Writes events, each as one line, complete before the next step is taken."""

    def __init__(self, path: Path, client: str) -> None:
        self._file = path.open("a", buffering=1, encoding="utf-8")
        self._client = client
        self._lock = threading.Lock()

    def write(
        self,
        event: Kind,
        asked: float,
        answered: float | None = None,
        host: str = "",
        number: int = 0,
        protocol: str = "tcp",
        fence: int = 0,
        ticket: int = 0,
    ) -> None:
        at = time.monotonic() if answered is None else answered
        line = json.dumps(asdict(Event(self._client, event, asked, at, host, number, protocol, fence, ticket)))
        with self._lock:
            self._file.write(line + "\n")

    def close(self) -> None:
        self._file.close()


def read(paths: Iterable[Path]) -> list[Event]:
    """All events of these files. The last line of a process that was killed may be cut short."""
    events = []
    for path in paths:
        lines = path.read_text("utf-8").split("\n")
        for number, line in enumerate(lines):
            try:
                events.append(Event(**json.loads(line)))
            except ValueError:
                if number != len(lines) - 1:
                    raise ValueError(f"{path.name}, line {number + 1}: not an event") from None
    return events


@dataclass
class Use:
    """A time during which a client relied on a port. ``until``: infinite when the run ended before it did."""

    granted: Event
    since: float
    until: float = float("inf")
    end: Kind | Literal["deadline"] | None = None

    def __str__(self) -> str:
        port = self.granted
        return (
            f"{port.client} with fence {port.fence} from {self.since:.3f} to {self.until:.3f} ({self.end or 'the end'})"
        )


def overtakings(events: Iterable[Event], window: float) -> list[str]:
    """Those who got a port before somebody who had come earlier, and whose place was still kept; ``window``: seconds.

    Tickets are given out in the order of arrival, fences in the order of giving. All want the same ports.
    """
    kept: dict[int, list[Event]] = defaultdict(list)
    given: dict[int, Event] = {}
    for event in events:
        if event.event == "queued":
            kept[event.ticket].append(event)
        elif event.event == "granted" and event.ticket:
            given[event.ticket] = event
    found = []
    waiting: list[int] = sorted(kept)
    for late in sorted(given.values(), key=attrgetter("fence")):
        for ticket in waiting:
            if ticket >= late.ticket:
                break
            # One that was killed may have been served before, and could not say so.
            places = kept[ticket]
            after = given[ticket].fence > late.fence if ticket in given else places[-1].asked > late.answered
            if after and any(place.answered < late.asked and late.answered < place.asked + window for place in places):
                found.append(f"ticket {late.ticket} of {late.client} was served before ticket {ticket}")
    return found


_ENDS: dict[str, Kind] = {
    "released": "released",
    "refused": "refused",
    "jeopardy": "jeopardy",
    "lost": "lost",
    "killed": "killed",
}


def uses(events: Iterable[Event]) -> list[Use]:
    """From the answer to the grant until the release was asked for, the holder was warned, or it died.

    A recovery from jeopardy begins another use of the same grant.
    """
    found: list[Use] = []
    current: dict[str, dict[tuple[str, int], Use]] = defaultdict(dict)
    waiting: dict[str, dict[tuple[str, int], Event]] = defaultdict(dict)
    for event in sorted(events, key=_effect):
        mine, paused, key = current[event.client], waiting[event.client], (event.host, event.fence)
        if event.event == "granted":
            mine[key] = Use(event, event.answered)
            found.append(mine[key])
        elif event.event in ("released", "refused"):
            paused.pop(key, None)
            _end(mine, [key], event)
        elif event.event in ("jeopardy", "lost", "killed"):
            touched = [key for key in mine if event.host in ("", key[0])]
            if event.event == "jeopardy":
                paused.update({key: mine[key].granted for key in touched})
            else:
                for key in [key for key in paused if event.host in ("", key[0])]:
                    del paused[key]
            _end(mine, touched, event)
        elif event.event == "recovered":
            for key in [key for key in paused if event.host in ("", key[0])]:
                mine[key] = Use(paused.pop(key), event.answered)
                found.append(mine[key])
    return found


def _effect(event: Event) -> float:
    """The time from which it counts: what ends a use when it was asked for, what begins one when it was answered."""
    return event.asked if event.event in _ENDS else event.answered


def _end(mine: dict[tuple[str, int], Use], keys: Iterable[tuple[str, int]], event: Event) -> None:
    for key in keys:
        use = mine.pop(key, None)
        if use is not None:
            use.until, use.end = event.asked, event.event


def breaches(events: Iterable[Event], *, ttl: float, quarantine: float) -> list[str]:
    """What was seen of broken guarantees, in words; empty when all held.

    ``ttl`` and ``quarantine`` are those of all clients, in seconds.
    """
    events = list(events)
    beats: dict[str, list[Event]] = defaultdict(list)
    for event in sorted(events, key=attrgetter("answered")):
        if event.event == "beat":
            beats[event.client].append(event)
    relied = [part for use in uses(events) for part in _until_deadlines(use, beats[use.granted.client], ttl * 0.9)]
    return [
        *_shared_ports(relied),
        *_fences(events),
        *_too_early(events, ttl + quarantine),
        *_strangers(events),
    ]


def _until_deadlines(use: Use, beats: list[Event], lasts: float) -> Iterator[Use]:
    """H1: without a heartbeat the holder relies on nothing beyond its deadline, whether or not it can say so.

    Somebody whose heartbeats were not recorded is taken to have none missed.
    """
    if not beats:
        yield use
        return
    since, deadline = use.since, use.since + lasts
    for beat in beats:
        if since < beat.answered < use.until:
            if beat.answered > deadline:
                yield Use(use.granted, since, deadline, "deadline")
                since = beat.answered
            deadline = max(deadline, beat.asked + lasts)
    if since < min(use.until, deadline):
        yield Use(use.granted, since, min(use.until, deadline), use.end if use.until <= deadline else "deadline")


def _shared_ports(all_uses: list[Use]) -> Iterator[str]:
    """S1: at no moment do two hold one port."""
    by_port: dict[tuple[str, str, int], list[Use]] = defaultdict(list)
    for use in all_uses:
        by_port[use.granted.host, use.granted.protocol, use.granted.number].append(use)
    for (host, protocol, number), port_uses in sorted(by_port.items()):
        longest: Use | None = None
        for use in sorted(port_uses, key=attrgetter("since")):
            if longest is not None and use.since < longest.until and use.granted != longest.granted:
                yield f"{number}/{protocol} on {host} was held twice: by {longest}, and by {use}"
            if longest is None or use.until > longest.until:
                longest = use


def _fences(events: list[Event]) -> Iterator[str]:
    """S3: who asked after another's answer was there has a higher fence, and no two have the same."""
    by_host: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        if event.event == "granted":
            by_host[event.host].append(event)
    for host, grants in sorted(by_host.items()):
        seen: dict[int, Event] = {}
        for grant in grants:
            other = seen.setdefault(grant.fence, grant)
            if other is not grant:
                yield f"fence {grant.fence} on {host} was given to {other.client} and to {grant.client}"
        answered = sorted(grants, key=attrgetter("answered"))
        highest, index = 0, 0
        for grant in sorted(grants, key=attrgetter("asked")):
            while index < len(answered) and answered[index].answered < grant.asked:
                highest = max(highest, answered[index].fence)
                index += 1
            if grant.fence < highest:
                yield f"fences on {host} went back: {grant.client} got {grant.fence} after {highest} was given"


def _too_early(events: list[Event], closed: float) -> Iterator[str]:
    """L1, from below: a port whose holder died stays closed for TTL + quarantine from its last heartbeat.

    The lease was renewed at the earliest when its last confirmed heartbeat was asked for; the next grant was made
    at the latest when it was answered.
    """
    beats: dict[str, float] = {}
    for event in events:
        if event.event == "beat":
            beats[event.client] = max(beats.get(event.client, 0.0), event.asked)
    grants = [event for event in events if event.event == "granted"]
    for use in uses(events):
        port = use.granted
        if use.end != "killed" or port.client not in beats:
            continue
        opens = beats[port.client] + closed
        for grant in grants:
            same = (grant.host, grant.protocol, grant.number) == (port.host, port.protocol, port.number)
            if same and grant.fence > port.fence and grant.answered < opens - GRAIN:
                early = opens - grant.answered
                yield (
                    f"{port.number}/{port.protocol} on {port.host} of {port.client}, which was killed,"
                    f" was given to {grant.client} {early:.3f} s too early"
                )


def _strangers(events: list[Event]) -> Iterator[str]:
    """S2: nobody frees what he does not hold, and nobody frees it twice."""
    held: dict[tuple[str, str, int], int] = defaultdict(int)
    for event in events:
        if event.event == "granted":
            held[event.client, event.host, event.fence] += 1
    for event in sorted(events, key=attrgetter("asked")):
        if event.event == "released":
            key = (event.client, event.host, event.fence)
            held[key] -= 1
            if held[key] < 0:
                yield f"{event.client} released {event.number}/{event.protocol} on {event.host} that it did not hold"
