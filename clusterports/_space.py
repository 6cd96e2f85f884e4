"""The rules of one space: a state machine without I/O and without a clock of its own.

This is the executable specification. The memory backend runs it as it is; the Redis backend says the same in
Lua and is compared with it, reply by reply. Every method is one atomic step and takes the store's time
``now`` in microseconds.

Time. A space keeps a *lease clock*: the store's time, but it never goes back, and one visit moves it by at
most ``max_gap``, so a step of the store's own clock cannot end every quarantine at once. A visit after a
silence longer than a third of a lease's TTL gives that lease one full TTL to renew: nobody can tell whether
its holder died or the store was away. Between two renewals it gets that once only, so that a space which is
visited rarely is reclaimed all the same.

Reclaim. What is due lies in one order: leases by expiry, cooling ports by the time they are free. A visit
handles at most `STEP` of it. The ports of a lease that ran out cool until its TTL after the last renewal plus
their quarantine are over, then they are free.

Queue. Whoever finds too little free may keep a place in the queue, in the order of tickets, and asks again. From
the spans that somebody before it waits for nothing is given to an ask. So the order holds without anything being
set aside for a waiter that may have died: a place that nobody asks for in time is given up.

Lost data. All ids and fences of a space come from one counter, which begins with the space: `_born` is its first. One
that is lower, or higher than the counter, was given by a space that is lost. Its holder opens a lease anew and claims
its ports, and until every holder has had a TTL to do so the space gives nothing out. Where two have the same port,
the higher fence wins: what was given last is what others may have heard of. A silence counts for that TTL no more
than the third by which it is one: the holders may have been kept away.
"""

from __future__ import annotations

import heapq
from collections import deque
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

from ._events import brief_labels, brief_owner
from .abc import (
    Ask,
    Claimed,
    Closed,
    Event,
    Full,
    Gone,
    Granted,
    Held,
    LeaseView,
    Marked,
    Occupied,
    Opened,
    Port,
    PortView,
    Queued,
    Reclaimed,
    Recovering,
    Released,
    Renewed,
    SpaceView,
    Stale,
)
from .ranges import MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence
    from typing import Literal

    from .abc import Claim, EventKind, Holder, Protocol4, Renewal, Request, Wait

__all__ = ["GRAIN", "MAX_GAP", "STEP", "Space"]

STEP: Final = 64
"""The most ports that one visit reclaims (L3)."""

GRAIN: Final = 1_000
"""Time moves in steps of a millisecond at least: a shorter one is left for the next visit."""

TRACES: Final = 64
"""So many of the leases that ended last are remembered."""

MAX_GAP: Final = 3_600_000_000
"""The most that one visit moves the lease clock of a store that can be away; no TTL may be longer."""

_Key = TypeVar("_Key")

_KINDS: Final[dict[Protocol4, tuple[Protocol4, ...]]] = {"tcp": ("tcp",), "udp": ("udp",), "both": ("tcp", "udp")}
"""The number spaces that a port takes."""

_OVER: Final[dict[Protocol4, tuple[Protocol4, ...]]] = {
    "tcp": ("tcp", "both"),
    "udp": ("udp", "both"),
    "both": ("both", "tcp", "udp"),
}
"""What may be in the way of a port of this protocol."""

_GONE: Final = Gone("expired")
_SUPERSEDED: Final = Gone("superseded")
_UNKNOWN: Final = Gone("unknown")
_FORGOTTEN: Final = Gone("expired", forgotten=True)


class _Lease:
    """``nominal``: a TTL after the last renewal. ``expires``: the same, or later after a silence."""

    __slots__ = (
        "done",
        "expires",
        "floor",
        "id",
        "incarnation",
        "instance",
        "nominal",
        "ports",
        "revoked",
        "token",
        "ttl",
    )

    nominal: int
    expires: int

    def __init__(self, id: int, instance: str) -> None:
        self.id = id
        self.instance = instance
        self.ports: set[str] = set()
        self.revoked: dict[Port, None] = {}  # in order; the holder does not know yet

    def begin(self, incarnation: int, token: str, ttl: int) -> None:
        self.incarnation = incarnation
        self.token = token
        self.ttl = ttl
        self.floor = 1
        self.done: dict[int, Granted | int | None] = {}  # a ticket: queued; None: answered with Full, or abandoned

    def settle(self, floor: int) -> None:
        if floor > self.floor:
            self.floor = floor
            for number in [number for number in self.done if number < floor]:
                del self.done[number]


class _Port:
    """A port that is not free; ``until`` is on the lease clock, and None while it is held."""

    __slots__ = ("ask", "fence", "labels", "lease", "since", "state", "until")

    def __init__(self, lease: _Lease, fence: int, since: int, ask: Ask) -> None:
        self.state: Literal["held", "cooling", "foreign"] = "held"
        self.lease = lease
        self.fence = fence
        self.since = since
        self.until: int | None = None
        self.ask = ask
        self.labels = dict(ask.labels)  # a copy: the caller's own mapping may change


class _Refused(NamedTuple):
    """Why an ask cannot be met now."""

    ask: int
    why: Literal["taken", "limit", "queue"]


def member(protocol: str, number: int) -> str:
    """The name of a port inside a space. Sorts by protocol, then by number."""
    return f"{protocol}/{number:05d}"


def parse_member(text: str) -> tuple[Protocol4, int]:
    protocol, _, number = text.partition("/")
    return protocol, int(number)  # type: ignore[return-value]


class Space:
    """One space. ``max_gap``: None for a store that cannot be away from its clients (memory, SQLite)."""

    def __init__(self, name: str = "", *, max_gap: int | None = None) -> None:
        self.name = name
        self._max_gap = max_gap
        self._patient = max_gap is not None
        self._seen: int | None = None
        self._clock = 0
        self._fence = 0
        self._born = 0
        self._ended: deque[int] = deque(maxlen=TRACES)  # leases
        self._recovering = 0  # until then on the lease clock nothing is given out
        self._leases: dict[int, _Lease] = {}
        self._names: dict[str, int] = {}
        self._ports: dict[str, _Port] = {}
        self._taken = {kind: bytearray(MAX_PORT + 1) for kind in _OVER}  # "both": in either
        self._owned: dict[tuple[str, str], int] = {}  # held under a limit, by range and owner
        self._foreign: dict[str, int] = {}  # marked, by range
        self._last: dict[str, int] = {}  # given to an ask with rotate, by range
        self._queue: dict[int, tuple[_Lease, Ask]] = {}  # by ticket
        self.stirred = False
        """Somebody in the queue may have got its turn. For the backend, which sets it back."""
        self.told: list[Event] | None = None
        """What the steps did, with no age yet: for the backend's log, which takes it away. None: there is no log."""
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []  # of _due; outdated entries stay until they come up

    # ---------------------------------------------------------------- steps

    def open(
        self, now: int, instance: str, token: str, ttl: int, supersede: int = 0, knew: int = 0
    ) -> Opened | Occupied:
        fresh = self._seen is None
        if fresh:
            self._seen = now
        self._visit(now)
        if not self._behind(knew, ttl) and 0 < knew < self._born:
            self._recovering = max(self._recovering, ttl)  # the lease clock began with the space
        lease = self._leases.get(self._names.get(instance, 0))
        if lease is None or lease.expires <= self._clock:
            id = self._next_fence(now)
            lease = self._leases[id] = _Lease(id, instance)
            self._names[instance] = id
            lease.begin(id, token, ttl)
            self._prolong(lease)
            if fresh:
                self._born = id
        elif lease.token != token:
            if lease.incarnation != supersede:
                return Occupied(lease.incarnation, lease.token)
            lease.begin(self._next_fence(now), token, ttl)
            self._prolong(lease)
        return Opened(lease.id, lease.incarnation, len(lease.ports))

    def acquire(
        self, now: int, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        backlog = self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        number = request.number
        if number in lease.done:
            known = lease.done[number]
            if isinstance(known, Granted):
                return known
            if known is not None and known in self._queue and wait is not None:
                return self._queued(known, first=False)
            return Stale(number)
        if number < lease.floor:
            return Stale(number)
        if request.knew > self._fence:
            self._behind(request.knew, lease.ttl)
        if self._clock < self._recovering:
            lease.settle(request.floor)
            lease.done[number] = None
            return Recovering(self._recovering - self._clock)
        ticket = 0 if wait is None else self._ticket(lease, wait)

        picked = self._pick(asks, ticket)
        if isinstance(picked, _Refused):
            lease.settle(request.floor)
            lease.done[number] = None  # so that a late copy of this request is not granted
            if wait is None or not wait.window or picked.why == "limit":
                self._leave(ticket)
                self._tell_refused(lease, asks[picked.ask])
                return Full(picked.ask, self._explicit(now, self._clock, asks[picked.ask]), backlog, picked.why)
            ticket = ticket or self._next_fence(now)
            self._queue[ticket] = lease, asks[0]
            self._put_due(f"wait/{ticket:016d}", self._clock + wait.window)
            lease.done[number] = ticket
            return self._queued(ticket, first=picked.why != "queue")

        fence = self._next_fence(now, len(picked))
        ports = []
        for ask, port in picked:
            name = member(ask.protocol, port)
            taken = self._ports[name] = _Port(lease, fence, now, ask)
            lease.ports.add(name)
            ports.append(Port(port, ask.protocol, fence))
            self._tell("acquired", name, taken)
            fence += 1
            if ask.limit:
                _count_up(self._owned, (ask.range, ask.owner))
            if ask.rotate:
                self._last[ask.range] = port
        if ticket and wait is not None and wait.keep:
            self._queue[ticket] = lease, asks[0]
            self._put_due(f"wait/{ticket:016d}", self._clock + wait.window)
        else:
            self._leave(ticket)
        lease.settle(request.floor)
        granted = lease.done[number] = Granted(tuple(ports), now)
        return granted

    def claim(self, now: int, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        number = request.number
        if number >= lease.floor and number not in lease.done:
            lease.settle(request.floor)
            lease.done[number] = None  # a late copy takes nothing back
            taken = [self._take_back(now, lease, claim) for claim in claims]
            if any(taken) and self._clock >= self._recovering:
                self._recovering = self._clock + lease.ttl
        return Claimed(tuple(claim.port for claim in claims if not self._held_names(lease, (claim.port,))))

    def _take_back(self, now: int, lease: _Lease, claim: Claim) -> bool:
        """Whether it was lost."""
        number, protocol, fence = claim.port
        name = member(protocol, number)
        in_the_way = {other: self._ports[other] for other in self._in_the_way(protocol, number)}
        own = in_the_way.get(name)
        if own is not None and own.lease is lease and own.fence == fence and own.state == "held":
            return False
        if claim.port in lease.revoked:  # it was not lost
            return False
        for port in in_the_way.values():
            if port.fence > fence and port.state != "foreign":  # such a mark may be of this very holder's job
                return True
            # Two may have the same fence when the store lost one of them, and its time went back.
            if port.fence == fence and port.state == "held" and port.lease.instance != lease.instance:
                return True
        for other, port in in_the_way.items():
            if port.state == "held" and port.lease is not lease:
                kind, _ = parse_member(other)
                port.lease.revoked[Port(number, kind, port.fence)] = None
                self._tell("forced", other, port)
            self._free(other)
        self._set_taken(protocol, number, 1)
        own = self._ports[name] = _Port(lease, fence, min(fence, now), claim.ask)
        lease.ports.add(name)
        self._tell("recovered", name, own)
        if claim.ask.limit:
            _count_up(self._owned, (claim.ask.range, claim.ask.owner))
        self._fence = max(self._fence, fence)
        return True

    def renew(self, now: int, renewal: Renewal) -> Renewed | Gone:
        backlog = self._visit(now)
        lease = self._live(renewal.holder)
        if not isinstance(lease, _Lease):
            return lease
        for number in renewal.abandoned:
            if number >= lease.floor:
                granted = lease.done.get(number)
                if isinstance(granted, Granted):
                    self._release(lease, granted.ports, unused=True)
                elif granted is not None:
                    self._leave_own(lease, granted)
                lease.done[number] = None
        for ticket in renewal.left:
            self._leave_own(lease, ticket)
        if renewal.heard:
            for port in [port for port in lease.revoked if port.fence in renewal.heard]:
                del lease.revoked[port]
        lease.settle(renewal.floor)
        self._prolong(lease)
        doubt = self._behind(renewal.knew, lease.ttl) or renewal.ports not in (-1, len(lease.ports))
        return Renewed(backlog, tuple(lease.revoked), doubt)

    def release(self, now: int, holder: Holder, ports: Iterable[Port]) -> Released | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        if not lease.revoked:
            return Released(self._release(lease, ports))
        asked = list(ports)
        revoked = dict.fromkeys(port for port in asked if port in lease.revoked)
        return Released(self._release(lease, asked), tuple(revoked))

    def mark_foreign(
        self,
        now: int,
        holder: Holder,
        ports: Iterable[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        count = 0
        for name in self._held_names(lease, ports):
            port = self._ports[name]
            if self._foreign.get(range, 0) >= most:
                self._tell("released", name, port)
                self._free(name)
                continue
            self._end_hold(name, port)
            port.state = "foreign"
            port.ask = Ask(range, (), host=host)
            port.labels = {}
            port.until = self._clock + duration
            self._put_due(name, port.until)
            _count_up(self._foreign, range)
            self._tell("foreign", name, port)
            count += 1
        return Marked(count)

    def force(self, now: int, seen: PortView) -> bool:
        self._visit(now)
        name = member(seen.protocol, seen.number)
        port = self._ports.get(name)
        if port is None or (port.fence, port.state) != (seen.fence, seen.state):
            return False
        self._tell("forced", name, port)
        if port.state == "held":
            port.lease.revoked[Port(seen.number, seen.protocol, port.fence)] = None
            self._cool(name, max(self._clock + port.ask.quarantine, port.lease.expires))
        else:
            self._free(name)
        return True

    def close(self, now: int, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        names = self._first_ports(lease, STEP)
        for name in names:
            port = self._ports[name]
            if quarantine:
                self._tell("expired", name, port)
                self._cool(name, self._clock + port.ask.quarantine)
            else:
                self._let_go(name)
        if len(names) < STEP:
            self._drop(lease)
        return Closed(len(names) == STEP)

    def reclaim(self, now: int) -> Reclaimed:
        return Reclaimed(self._visit(now))

    def bury(self, now: int, leases: Iterable[int]) -> None:
        """Their holders are known to be dead: they run out now, unless they have already."""
        self._visit(now)
        for id in leases:
            lease = self._leases.get(id)
            if lease is not None and lease.expires > self._clock:
                lease.nominal = lease.expires = self._clock
                self._put_due(f"lease/{id}", self._clock)

    # ---------------------------------------------------------------- reads

    def preview(self, now: int, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        left = self._recovering_at(now) - self._clock_at(now)
        if left > 0:
            return Recovering(left)
        picked = self._pick(asks, 0, dry_run=True)
        if isinstance(picked, _Refused):
            clock = self._clock_at(now)
            due = bool(self._due) and self._first_due() <= clock
            return Full(picked.ask, self._explicit(now, clock, asks[picked.ask]), due, picked.why)
        return Granted(tuple(Port(number, ask.protocol, 0) for ask, number in picked), 0)

    def held(self, holder: Holder, now: int, after: Port | None = None, limit: int = 1000) -> Held | Gone:
        lease = self._live(holder)  # as of the last visit: until the next, a lease may yet be given time to renew
        if not isinstance(lease, _Lease):
            return lease
        start = member(after.protocol, after.number) if after else ""
        names = sorted(name for name in lease.ports if name > start)
        return Held(tuple(self._port_view(name, now, self._clock) for name in names[:limit]), len(names) >= limit)

    def empty(self) -> bool:
        return not (self._leases or self._ports or self._queue or self._clock < self._recovering)

    def has(self, instance: str) -> bool:
        return instance in self._names

    def view(self, now: int) -> SpaceView:
        clock = self._clock_at(now)
        graced = [lease for lease in self._graced(now) if lease.expires <= clock]
        leases = (
            LeaseView(lease.id, lease.instance, lease.incarnation, lease.ttl, lease.expires - clock, lease in graced)
            for _, lease in sorted(self._leases.items())
        )
        ports = (self._port_view(name, now, clock) for name in sorted(self._ports))
        left = max(0, self._recovering_at(now) - clock)
        return SpaceView(self.name, self._fence, tuple(leases), tuple(ports), len(self._queue), left)

    # ---------------------------------------------------------------- time

    def _visit(self, now: int) -> bool:
        """Let the clock advance and reclaim what is due; True when more is due still."""
        if self._seen is None:
            return False
        graced = self._graced(now) if self._patient else ()
        if self._clock < self._recovering:
            self._recovering = self._recovering_at(now)
        if not 0 <= now - self._seen < GRAIN:
            self._clock = self._clock_at(now)
            self._seen = now
        clock = self._clock
        for lease in graced:
            lease.expires = clock + lease.ttl
            self._put_due(f"lease/{lease.id}", lease.expires)
        heap = self._heap
        return bool(heap) and heap[0][0] <= clock and self._reclaim()

    def _graced(self, now: int) -> list[_Lease]:
        """Those that a visit now would give a full TTL to renew."""
        gap = 0 if self._seen is None else now - self._seen
        return [
            lease
            for lease in self._leases.values()
            if gap * 3 > lease.ttl and self._clock < lease.expires == lease.nominal and self._may_wait(lease.id)
        ]

    def _behind(self, knew: int, ttl: int) -> bool:
        """Whether the counter has not come to a fence that it gave. It goes on from there, and the space recovers."""
        if knew <= self._fence:
            return False
        self._fence = knew
        self._recovering = max(self._recovering, self._clock + ttl)
        return True

    def _recovering_at(self, now: int) -> int:
        """The end of the recovery, if somebody visited now."""
        if self._clock < self._recovering:
            clock = self._clock_at(now)
            live = [lease for lease in self._leases.values() if lease.expires > self._clock]
            least = min((lease.ttl for lease in live if self._may_wait(lease.id)), default=0)
            until = self._recovering + clock - self._clock - least // 3
            if least and (clock - self._clock) * 3 > least and until > clock:
                return until
        return self._recovering

    def _may_wait(self, lease: int) -> bool:
        """Whether the holder may have been kept from renewing by the store."""
        return self._patient

    def _clock_at(self, now: int) -> int:
        gap = 0 if self._seen is None else now - self._seen
        if gap < GRAIN:
            return self._clock
        return self._clock + (gap if self._max_gap is None or gap < self._max_gap else self._max_gap)

    def _prolong(self, lease: _Lease) -> None:
        lease.nominal = lease.expires = self._clock + lease.ttl
        self._put_due(f"lease/{lease.id}", lease.expires)

    def _next_fence(self, now: int, count: int = 1) -> int:
        """Fences grow, also after the store lost them: the store's microseconds outrun any counter (S3)."""
        first = now if now > self._fence else self._fence + 1
        self._fence = first + count - 1
        return first

    # ---------------------------------------------------------------- reclaim

    def _reclaim(self) -> bool:
        budget = STEP
        while budget and (entries := list(self._next_due(budget))):
            for name in entries:
                if not budget:
                    break
                kind, _, rest = name.partition("/")
                if kind != "lease":
                    if kind == "wait":
                        self._leave(int(rest))
                    else:
                        self._tell("reclaimed", name, self._ports[name])
                        self._free(name)
                    budget -= 1
                    continue
                lease = self._leases[int(rest)]
                ports = self._first_ports(lease, budget)
                for port in ports:
                    self._tell("expired", port, self._ports[port])
                    self._cool(port, lease.nominal + self._ports[port].ask.quarantine)
                budget -= len(ports)
                if budget:
                    self._drop(lease)
                    budget -= 1
        return not budget and any(self._next_due(1))

    def _next_due(self, limit: int) -> Iterator[str]:
        """The first names that are due, in order of time, then of name. They stay due."""
        found: list[tuple[int, str]] = []
        while limit and self._heap and self._heap[0][0] <= self._clock:
            entry = heapq.heappop(self._heap)
            if self._due.get(entry[1]) == entry[0] and (not found or entry != found[-1]):
                found.append(entry)
                limit -= 1
        for entry in found:
            heapq.heappush(self._heap, entry)
        return (name for _, name in found)

    def _first_due(self) -> int:
        """When something is due next; something must be."""
        while self._due.get(self._heap[0][1]) != self._heap[0][0]:
            heapq.heappop(self._heap)
        return self._heap[0][0]

    def _put_due(self, name: str, at: int) -> None:
        self._due[name] = at
        heapq.heappush(self._heap, (at, name))
        if len(self._heap) > 64 + 2 * len(self._due):
            self._heap = [(at, name) for name, at in self._due.items()]
            heapq.heapify(self._heap)

    def _drop(self, lease: _Lease) -> None:
        del self._leases[lease.id], self._due[f"lease/{lease.id}"]
        self._ended.append(lease.id)
        if self._names.get(lease.instance) == lease.id:  # a newer one may have come, and gone, meanwhile
            del self._names[lease.instance]
        for ticket in [ticket for ticket, (other, _) in self._queue.items() if other is lease]:
            self._leave(ticket)

    # ---------------------------------------------------------------- events

    def _tell(self, kind: EventKind, name: str, port: _Port) -> None:
        if self.told is not None:
            protocol, number = parse_member(name)
            ask, lease = port.ask, port.lease
            about = ask.range, brief_owner(ask.owner), brief_labels(port.labels), lease.instance, lease.id, port.fence
            self.told.append(Event(kind, number, protocol, *about, 0, ask.host))

    def _tell_refused(self, lease: _Lease, ask: Ask) -> None:
        # Who watches a host asks for what others have there, again and again.
        if self.told is not None and not ask.running:
            number = ask.spans[0][0] if ask.explicit else 0
            about = ask.range, brief_owner(ask.owner), brief_labels(ask.labels), lease.instance, lease.id
            self.told.append(Event("refused", number, ask.protocol, *about, 0, 0, ask.host))

    # ---------------------------------------------------------------- picking

    def _pick(self, asks: Sequence[Ask], ticket: int, *, dry_run: bool = False) -> list[tuple[Ask, int]] | _Refused:
        """Numbers for all of the asks, taken from now on; or nothing. What is in the way and gives way is gone."""
        if len(asks) == 1 and not dry_run and not self._queue:  # what most ask for; the same as the long way gives
            _, spans, count, protocol, _, _, _, _, align, rotate, limit, explicit, *_ = asks[0]
            if count == 1 and not (align or rotate or limit or explicit):
                taken = self._taken[protocol]
                for first, last in spans:
                    number = taken.find(0, first, last + 1)
                    if number >= 0:
                        self._set_taken(protocol, number, 1)
                        return [(asks[0], number)]
        picked: list[tuple[Ask, int]] = []
        mine: set[tuple[Protocol4, int]] = set()
        evicted: list[str] = []
        refused: _Refused | None = None
        for index, ask in enumerate(asks):
            if ask.limit and not ask.running:
                earlier = sum(one.range == ask.range and one.owner == ask.owner and one.limit > 0 for one, _ in picked)
                if self._owned.get((ask.range, ask.owner), 0) + earlier + ask.count > ask.limit:
                    refused = _Refused(index, "limit")
                    break
            shut = self._wanted_before(ticket, ask) if self._queue and not ask.running else []
            if ask.explicit:
                numbers = [] if shut else self._pick_marked(ask, mine, evicted)
            else:
                taken = self._taken[ask.protocol]
                if shut:
                    taken = bytearray(taken)
                    for first, last in shut:
                        taken[first : last + 1] = bytes((1,)) * (last + 1 - first)
                numbers = self._pick_numbers(ask, taken)
            if len(numbers) < ask.count:
                refused = _Refused(index, "queue" if shut else "taken")
                break
            for number in numbers:
                self._set_taken(ask.protocol, number, 1)
                mine.update((kind, number) for kind in _KINDS[ask.protocol])
                picked.append((ask, number))
        if refused or dry_run:
            for ask, number in picked:
                self._set_taken(ask.protocol, number, 0)
            for name in evicted:
                protocol, number = parse_member(name)
                self._set_taken(protocol, number, 1)
        else:
            for name in evicted:
                self._free(name)
            for ask, number in picked if evicted else ():
                self._set_taken(ask.protocol, number, 1)
        return refused or picked

    def _pick_numbers(self, ask: Ask, taken: bytearray) -> list[int]:
        """As many free numbers as there are, at most as many as asked for; a block is all or nothing."""
        numbers: dict[int, None] = {}  # in order, each once: spans may overlap
        for first, last in self._search_order(ask):
            at = first
            if ask.align:
                free = bytes(ask.count)
                while (at := taken.find(free, at, last + 1)) >= 0:
                    aligned = -(-at // ask.align) * ask.align
                    if aligned == at:
                        return list(range(at, at + ask.count))
                    at = aligned
                continue
            while len(numbers) < ask.count and (at := taken.find(0, at, last + 1)) >= 0:
                numbers[at] = None
                at += 1
        return list(numbers)

    def _search_order(self, ask: Ask) -> Sequence[tuple[int, int]]:
        last_given = self._last.get(ask.range, 0) if ask.rotate else 0
        if not last_given:
            return ask.spans
        circle = ask.spans[: ask.rotate]
        across = ask.count - 1 if ask.align else 0  # a block may lie across the point where the circle begins
        after = [(max(first, last_given + 1), last) for first, last in circle if last > last_given]
        before = [(first, min(last, last_given + across)) for first, last in circle if first <= last_given]
        return [*after, *before, *ask.spans[ask.rotate :]]

    def _pick_marked(self, ask: Ask, mine: set[tuple[Protocol4, int]], evicted: list[str]) -> list[int]:
        """The explicit number, if it is free but for what gives way."""
        number = ask.spans[0][0]
        names = self._in_the_way(ask.protocol, number)
        if not names:
            return [] if self._taken[ask.protocol][number] else [number]
        if any(self._ports[name].state not in ("foreign", "cooling" if ask.running else "") for name in names):
            return []
        if any((kind, number) in mine for kind in _KINDS[ask.protocol]):
            return []
        evicted += [name for name in names if name not in evicted]
        return [number]

    # ---------------------------------------------------------------- queue

    def _ticket(self, lease: _Lease, wait: Wait) -> int:
        """The ticket that the caller rightly has; 0: none."""
        if wait.ticket > self._fence:
            return 0
        place = self._queue.get(wait.ticket)
        return wait.ticket if place is None or place[0] is lease else 0

    def _wanted_before(self, ticket: int, ask: Ask) -> list[tuple[int, int]]:
        """Of the spans that those before this ticket wait for, those in which the ask may look."""
        spans: list[tuple[int, int]] = []
        for other, (_, wanted) in sorted(self._queue.items()):
            if ticket and other >= ticket:
                break
            if set(_KINDS[wanted.protocol]) & set(_KINDS[ask.protocol]):
                spans += [(a, b) for a, b in wanted.spans if any(a <= d and c <= b for c, d in ask.spans)]
        return spans

    def _queued(self, ticket: int, *, first: bool) -> Queued:
        return Queued(ticket, first, self._first_due() - self._clock)

    def _leave_own(self, lease: _Lease, ticket: int) -> None:
        place = self._queue.get(ticket)
        if place is not None and place[0] is lease:
            self._leave(ticket)

    def _leave(self, ticket: int) -> None:
        """Give up a place, if it is one."""
        if self._queue.pop(ticket, None) is not None:
            del self._due[f"wait/{ticket:016d}"]
            if self._queue:
                self.stirred = True

    # ---------------------------------------------------------------- ports

    def _live(self, holder: Holder) -> _Lease | Gone:
        lease = self._leases.get(holder.lease)
        if lease is None and holder.lease not in self._ended:
            return _FORGOTTEN if self._born <= holder.lease <= self._fence else _UNKNOWN
        if lease is None or lease.expires <= self._clock:
            return _GONE
        if lease.incarnation == holder.incarnation:
            return lease
        return _SUPERSEDED if holder.incarnation < lease.incarnation else _UNKNOWN  # it lost the takeover

    def _first_ports(self, lease: _Lease, limit: int) -> list[str]:
        return sorted(lease.ports)[:limit] if len(lease.ports) <= limit else heapq.nsmallest(limit, lease.ports)

    def _held_names(self, lease: _Lease, ports: Iterable[Port]) -> list[str]:
        """Those that this lease holds with this very fence (S2)."""
        names: list[str] = []
        for number, protocol, fence in ports:
            name = member(protocol, number)
            port = self._ports.get(name)
            if port is None or port.fence != fence or port.lease is not lease or port.state != "held":
                continue
            names.append(name)
        return names if len(names) < 2 else list(dict.fromkeys(names))

    def _release(self, lease: _Lease, ports: Iterable[Port], *, unused: bool = False) -> int:
        names = self._held_names(lease, ports)
        for name in names:
            if unused:
                self._tell("released", name, self._ports[name])
                self._free(name)
            else:
                self._let_go(name)
        return len(names)

    def _let_go(self, name: str) -> None:
        """A clean release."""
        port = self._ports[name]
        self._tell("released", name, port)
        if port.ask.cooldown:
            self._cool(name, self._clock + port.ask.cooldown)
        else:
            self._free(name)

    def _cool(self, name: str, until: int) -> None:
        port = self._ports[name]
        self._end_hold(name, port)
        port.state = "cooling"
        port.until = until
        self._put_due(name, until)

    def _end_hold(self, name: str, port: _Port) -> None:
        port.lease.ports.remove(name)
        if port.ask.limit:
            _count_down(self._owned, (port.ask.range, port.ask.owner))

    def _free(self, name: str) -> None:
        port = self._ports.pop(name)
        if port.state == "held":
            self._end_hold(name, port)
        else:
            self._forget_mark(name, port)
        protocol, number = parse_member(name)
        self._set_taken(protocol, number, 0)
        if self._queue:
            self.stirred = True

    def _forget_mark(self, name: str, port: _Port) -> None:
        del self._due[name]
        if port.state == "foreign":
            _count_down(self._foreign, port.ask.range)

    def _set_taken(self, protocol: Protocol4, number: int, value: int) -> None:
        taken = self._taken
        if protocol == "both":
            taken["tcp"][number] = taken["udp"][number] = taken["both"][number] = value
        else:
            taken[protocol][number] = value
            taken["both"][number] = value or taken["tcp"][number] or taken["udp"][number]

    def _in_the_way(self, protocol: Protocol4, number: int) -> list[str]:
        names = (member(other, number) for other in _OVER[protocol])
        return [name for name in names if name in self._ports]

    def _explicit(self, now: int, clock: int, ask: Ask) -> PortView | None:
        names = self._in_the_way(ask.protocol, ask.spans[0][0]) if ask.explicit else []
        names.sort(key=lambda name: self._ports[name].state == "foreign")  # a mark would not be in the way alone
        return self._port_view(names[0], now, clock) if names else None

    def _port_view(self, name: str, now: int, clock: int) -> PortView:
        port = self._ports[name]
        protocol, number = parse_member(name)
        return PortView(
            number=number,
            protocol=protocol,
            state=port.state,
            range=port.ask.range,
            owner=port.ask.owner,
            labels=port.labels,
            instance=port.lease.instance,
            lease=port.lease.id,
            fence=port.fence,
            age=max(0, now - port.since),
            free_in=None if port.until is None else port.until - clock,
            host=port.ask.host,
        )


def _count_up(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] = counts.get(key, 0) + 1


def _count_down(counts: dict[_Key, int], key: _Key) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]
