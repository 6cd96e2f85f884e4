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
"""

from __future__ import annotations

import heapq
from typing import TYPE_CHECKING, Final

from .abc import (
    Closed,
    Full,
    Gone,
    Granted,
    Held,
    LeaseView,
    Occupied,
    Opened,
    Port,
    PortView,
    Reclaimed,
    Released,
    Renewed,
    SpaceView,
    Stale,
)
from .ranges import MAX_PORT

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from .abc import Ask, Holder, Protocol4, Renewal, Request

__all__ = ["GRAIN", "MAX_GAP", "STEP", "Space"]

STEP: Final = 64
"""The most ports that one visit reclaims (L3)."""

GRAIN: Final = 1_000
"""Time moves in steps of a millisecond at least: a shorter one is left for the next visit."""

MAX_GAP: Final = 3_600_000_000
"""The most that one visit moves the lease clock of a store that can be away; no TTL may be longer."""

_GONE: Final = Gone("expired")
_SUPERSEDED: Final = Gone("superseded")


class _Lease:
    """``nominal``: a TTL after the last renewal. ``expires``: the same, or later after a silence."""

    __slots__ = ("done", "expires", "floor", "id", "incarnation", "instance", "nominal", "ports", "token", "ttl")

    nominal: int
    expires: int

    def __init__(self, id: int, instance: str) -> None:
        self.id = id
        self.instance = instance
        self.ports: set[str] = set()

    def begin(self, incarnation: int, token: str, ttl: int) -> None:
        self.incarnation = incarnation
        self.token = token
        self.ttl = ttl
        self.floor = 1
        self.done: dict[int, Granted | None] = {}  # None: answered with Full, or abandoned

    def settle(self, floor: int) -> None:
        if floor > self.floor:
            self.floor = floor
            for number in [number for number in self.done if number < floor]:
                del self.done[number]


class _Port:
    """A port that is not free; ``until`` is on the lease clock, and None while it is held."""

    __slots__ = ("ask", "fence", "labels", "lease", "since", "until")

    def __init__(self, lease: _Lease, fence: int, since: int, ask: Ask) -> None:
        self.lease = lease
        self.fence = fence
        self.since = since
        self.until: int | None = None
        self.ask = ask
        self.labels = dict(ask.labels)  # a copy: the caller's own mapping may change


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
        self._seen: int | None = None
        self._clock = 0
        self._fence = 0
        self._leases: dict[int, _Lease] = {}
        self._names: dict[str, int] = {}
        self._ports: dict[str, _Port] = {}
        self._taken = {"tcp": bytearray(MAX_PORT + 1), "udp": bytearray(MAX_PORT + 1)}
        self._due: dict[str, int] = {}
        self._heap: list[tuple[int, str]] = []  # of _due; outdated entries stay until they come up

    # ---------------------------------------------------------------- steps

    def open(self, now: int, instance: str, token: str, ttl: int, supersede: int = 0) -> Opened | Occupied:
        if self._seen is None:
            self._seen = now
        self._visit(now)
        lease = self._leases.get(self._names.get(instance, 0))
        if lease is None or lease.expires <= self._clock:
            id = self._next_fence(now)
            lease = self._leases[id] = _Lease(id, instance)
            self._names[instance] = id
            lease.begin(id, token, ttl)
            self._prolong(lease)
        elif lease.token != token:
            if lease.incarnation != supersede:
                return Occupied(lease.incarnation, lease.token)
            lease.begin(self._next_fence(now), token, ttl)
            self._prolong(lease)
        return Opened(lease.id, lease.incarnation, len(lease.ports))

    def acquire(self, now: int, holder: Holder, request: Request, asks: Sequence[Ask]) -> Granted | Full | Gone | Stale:
        backlog = self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        number = request.number
        if number in lease.done:
            return lease.done[number] or Stale(number)
        if number < lease.floor:
            return Stale(number)

        picked: list[tuple[Ask, int]] = []
        for index, ask in enumerate(asks):
            taken = self._taken[ask.protocol]
            missing = ask.count
            for first, last in ask.spans:
                while missing and (first := taken.find(0, first, last + 1)) >= 0:
                    taken[first] = 1
                    picked.append((ask, first))
                    missing -= 1
            if missing:
                for other, port in picked:
                    self._taken[other.protocol][port] = 0
                lease.settle(request.floor)
                lease.done[number] = None  # so that a late copy of this request is not granted
                return Full(index, self._explicit(now, ask), backlog)

        fence = self._next_fence(now, len(picked))
        ports = []
        for ask, port in picked:
            name = member(ask.protocol, port)
            self._ports[name] = _Port(lease, fence, now, ask)
            lease.ports.add(name)
            ports.append(Port(port, ask.protocol, fence))
            fence += 1
        lease.settle(request.floor)
        granted = lease.done[number] = Granted(tuple(ports), now)
        return granted

    def renew(self, now: int, renewal: Renewal) -> Renewed | Gone:
        backlog = self._visit(now)
        lease = self._live(renewal.holder)
        if not isinstance(lease, _Lease):
            return lease
        for number in renewal.abandoned:
            if number >= lease.floor:
                granted = lease.done.get(number)
                if granted is not None:
                    self._free_held(lease, granted.ports)
                lease.done[number] = None
        lease.settle(renewal.floor)
        self._prolong(lease)
        return Renewed(backlog)

    def release(self, now: int, holder: Holder, ports: Iterable[Port]) -> Released | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        return Released(self._free_held(lease, ports))

    def close(self, now: int, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        self._visit(now)
        lease = self._live(holder)
        if not isinstance(lease, _Lease):
            return lease
        names = self._first_ports(lease, STEP)
        for name in names:
            if quarantine:
                self._cool(lease, name, self._clock)
            else:
                self._free(name)
        if len(names) < STEP:
            self._drop(lease)
        return Closed(len(names) == STEP)

    def reclaim(self, now: int) -> Reclaimed:
        return Reclaimed(self._visit(now))

    # ---------------------------------------------------------------- reads

    def held(self, holder: Holder, now: int, after: Port | None = None, limit: int = 1000) -> Held | Gone:
        lease = self._live(holder)  # as of the last visit: until the next, a lease may yet be given time to renew
        if not isinstance(lease, _Lease):
            return lease
        start = member(after.protocol, after.number) if after else ""
        names = sorted(name for name in lease.ports if name > start)
        return Held(tuple(self._port_view(name, now, self._clock) for name in names[:limit]), len(names) >= limit)

    def has(self, instance: str) -> bool:
        return instance in self._names

    def view(self, now: int) -> SpaceView:
        clock = self._clock_at(now)
        leases = (
            LeaseView(lease.id, lease.instance, lease.incarnation, lease.ttl, lease.expires - clock)
            for _, lease in sorted(self._leases.items())
        )
        ports = (self._port_view(name, now, clock) for name in sorted(self._ports))
        return SpaceView(self.name, self._fence, tuple(leases), tuple(ports))

    # ---------------------------------------------------------------- time

    def _visit(self, now: int) -> bool:
        """Let the clock advance and reclaim what is due; True when more is due still."""
        if self._seen is None:
            return False
        before, gap = self._clock, now - self._seen
        if not 0 <= gap < GRAIN:
            self._clock = self._clock_at(now)
            self._seen = now
        clock = self._clock
        if self._max_gap is not None:
            for lease in self._leases.values():
                if gap * 3 > lease.ttl and before < lease.expires == lease.nominal:
                    lease.expires = clock + lease.ttl
                    self._put_due(f"lease/{lease.id}", lease.expires)
        heap = self._heap
        return bool(heap) and heap[0][0] <= clock and self._reclaim()

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
                    self._free(name)
                    budget -= 1
                    continue
                lease = self._leases[int(rest)]
                ports = self._first_ports(lease, budget)
                for port in ports:
                    self._cool(lease, port, lease.nominal)
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

    def _put_due(self, name: str, at: int) -> None:
        self._due[name] = at
        heapq.heappush(self._heap, (at, name))
        if len(self._heap) > 64 + 2 * len(self._due):
            self._heap = [(at, name) for name, at in self._due.items()]
            heapq.heapify(self._heap)

    def _cool(self, lease: _Lease, name: str, start: int) -> None:
        lease.ports.remove(name)
        port = self._ports[name]
        port.until = start + port.ask.quarantine
        self._put_due(name, port.until)

    def _drop(self, lease: _Lease) -> None:
        del self._leases[lease.id], self._due[f"lease/{lease.id}"]
        if self._names.get(lease.instance) == lease.id:  # a newer one may have come, and gone, meanwhile
            del self._names[lease.instance]

    # ---------------------------------------------------------------- ports

    def _live(self, holder: Holder) -> _Lease | Gone:
        lease = self._leases.get(holder.lease)
        if lease is None or lease.expires <= self._clock:
            return _GONE
        return lease if lease.incarnation == holder.incarnation else _SUPERSEDED

    def _first_ports(self, lease: _Lease, limit: int) -> list[str]:
        return sorted(lease.ports)[:limit] if len(lease.ports) <= limit else heapq.nsmallest(limit, lease.ports)

    def _free_held(self, lease: _Lease, ports: Iterable[Port]) -> int:
        """Free those that this lease holds with this very fence (S2)."""
        count = 0
        for number, protocol, fence in ports:
            name = member(protocol, number)
            port = self._ports.get(name)
            if port is not None and port.fence == fence and port.lease is lease and port.until is None:
                self._free(name)
                count += 1
        return count

    def _free(self, name: str) -> None:
        port = self._ports.pop(name)
        if port.until is None:
            port.lease.ports.remove(name)
        else:
            del self._due[name]
        protocol, number = parse_member(name)
        self._taken[protocol][number] = 0

    def _explicit(self, now: int, ask: Ask) -> PortView | None:
        if len(ask.spans) != 1 or ask.spans[0][0] != ask.spans[0][1]:
            return None
        name = member(ask.protocol, ask.spans[0][0])
        return self._port_view(name, now, self._clock) if name in self._ports else None

    def _port_view(self, name: str, now: int, clock: int) -> PortView:
        port = self._ports[name]
        protocol, number = parse_member(name)
        return PortView(
            number=number,
            protocol=protocol,
            state="held" if port.until is None else "cooling",
            range=port.ask.range,
            owner=port.ask.owner,
            labels=port.labels,
            instance=port.lease.instance,
            lease=port.lease.id,
            fence=port.fence,
            age=max(0, now - port.since),
            free_in=None if port.until is None else port.until - clock,
        )
