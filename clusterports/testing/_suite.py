"""One suite for both kinds of backend: the asyncio kind is driven through a loop of its own."""

from __future__ import annotations

import asyncio
import inspect
import time
import uuid
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import pytest

from clusterports.abc import (
    EVENTS,
    Ask,
    AsyncBackend,
    AsyncWatch,
    Backend,
    Capability,
    Claim,
    Claimed,
    Closed,
    Event,
    Events,
    Full,
    Gone,
    Granted,
    Held,
    Holder,
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
    Renewal,
    Renewed,
    Request,
    SpaceView,
    Stale,
    Wait,
    Watch,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator, Sequence

    from clusterports.abc import Protocol4
    from clusterports.errors import BackendError

__all__ = ["AsyncBackendConformance", "BackendConformance", "Clock", "RealClock", "exact"]

T = TypeVar("T")

SECOND = 1_000_000
LONG = 3600 * SECOND
GONE = Gone("expired")
UNKNOWN = Gone("unknown")
SUPERSEDED = Gone("superseded")

HOSTILE = {
    "braces": "}x{",
    "star": "*",
    "newline": "a\nb\r\nc",
    "nul": "a\0b",
    "escape": "\x1b[31mred\x1b]0;title\x07",
    "markup": "[bold red]x[/] <b>x</b> %s {0} ${x}",
    "quotes": "'\"\\\\\"' ; -- ]]",
    "separators": "a;b|c/d:e,f=g h\ti 00010 lease/1 tcp/00010",
    "non-ascii": "Gäste-Rechner-\u4e2d\u6587-\U0001f6a2-\u202e-\u2028",
    "empty-looking": " ",
    "number": "0012",
    "10 kB": "x" * 10_240,
}


def exact(value: Any) -> Any:
    """A reply in a form that compares as strictly as one looks at it.

    Replies are tuples, and `Stale(1) == Released(1) == Closed(True)`; here the types count too, all the way down.
    """
    if isinstance(value, tuple):
        return (type(value).__name__, *(exact(item) for item in value))
    if isinstance(value, list):
        return [exact(item) for item in value]
    if isinstance(value, Mapping):
        return {key: exact(item) for key, item in value.items()}
    return (type(value).__name__, value)


class Clock(Protocol):
    """The store's time. ``ttl``: seconds, the TTL that the suite's leases get; it never waits for much longer."""

    ttl: float

    def time(self) -> float:
        """Seconds from any beginning."""
        ...

    def advance(self, seconds: float) -> None:
        """Let time pass for the store."""
        ...


class RealClock:
    """For a store that has a clock of its own: really waits."""

    ttl = 0.8

    def time(self) -> float:
        return time.monotonic()

    def advance(self, seconds: float) -> None:
        time.sleep(seconds)


class _Blocking(Backend):
    """An `AsyncBackend` for synchronous callers: each call runs in one event loop, which lives as long as this."""

    def __init__(self, runner: asyncio.Runner, backend: AsyncBackend) -> None:
        self._run = runner.run
        self.asynchronous = backend
        self.name = backend.name
        self.capabilities = backend.capabilities

    def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        call = self.asynchronous.open(
            space, instance, token=token, ttl=ttl, supersede=supersede, bound=bound, knew=knew
        )
        return self._run(call)

    def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        return self._run(self.asynchronous.acquire(space, holder, request, asks, wait))

    def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        return self._run(self.asynchronous.claim(space, holder, request, claims))

    def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        return self._run(self.asynchronous.preview(space, asks))

    def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        call = self.asynchronous.mark_foreign(
            space, holder, ports, range=range, duration=duration, most=most, host=host
        )
        return self._run(call)

    def watch(self, space: str, ticket: int) -> Watch:
        return _BlockingWatch(self._run, self._run(self.asynchronous.watch(space, ticket)))

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        return self._run(self.asynchronous.renew(renewals))

    def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        return self._run(self.asynchronous.release(space, holder, ports))

    def force(self, space: str, port: PortView) -> bool:
        return self._run(self.asynchronous.force(space, port))

    def drop(self, space: str) -> bool:
        return self._run(self.asynchronous.drop(space))

    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        return self._run(self.asynchronous.close_lease(space, holder, quarantine=quarantine))

    def reclaim(self, space: str) -> Reclaimed:
        return self._run(self.asynchronous.reclaim(space))

    def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        return self._run(self.asynchronous.held(space, holder, after))

    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        return self._run(self.asynchronous.read(spaces))

    def spaces(self, instance: str | None = None) -> list[str]:
        return self._run(self.asynchronous.spaces(instance))

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        return self._run(self.asynchronous.events(cursors, limit))

    def close(self) -> None:
        self._run(self.asynchronous.close())


class _BlockingWatch(Watch):
    def __init__(self, run: Callable[[Coroutine[Any, Any, Any]], Any], watch: AsyncWatch) -> None:
        self._run = run
        self.asynchronous = watch

    def wait(self, seconds: float) -> None:
        self._run(self.asynchronous.wait(seconds))

    def close(self) -> None:
        self._run(self.asynchronous.close())


class _Actor:
    """A process with a lease in one space, which numbers its requests."""

    def __init__(self, store: Backend, space: str, instance: str, opened: Opened) -> None:
        self.store = store
        self.space = space
        self.holder = Holder(instance, opened.lease, opened.incarnation)
        self.number = 0

    def ask(
        self, *asks: Ask, number: int | None = None, floor: int | None = None, wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        if number is None:
            number = self.number = self.number + 1
        if wait is None:
            return self.store.acquire(self.space, self.holder, Request(number, floor or number), asks)
        return self.store.acquire(self.space, self.holder, Request(number, floor or number), asks, wait)

    def take(self, *asks: Ask) -> tuple[Port, ...]:
        reply = self.ask(*asks)
        assert isinstance(reply, Granted)
        return reply.ports

    def queue(self, asked: Ask, ticket: int = 0, window: int = LONG) -> Queued:
        reply = self.ask(asked, wait=Wait(window, ticket))
        assert isinstance(reply, Queued)
        return reply

    def mark(
        self, *ports: Port, range: str = "backup", duration: int = LONG, most: int = 100, host: str = ""
    ) -> Marked | Gone:
        return self.store.mark_foreign(
            self.space, self.holder, ports, range=range, duration=duration, most=most, host=host
        )

    def claim(self, *claims: Claim, number: int | None = None) -> Claimed | Gone:
        if number is None:
            number = self.number = self.number + 1
        return self.store.claim(self.space, self.holder, Request(number, number), claims)

    def renewal(
        self, *abandoned: int, floor: int = 1, heard: tuple[int, ...] = (), ports: int = -1, knew: int = 0
    ) -> Renewal:
        return Renewal(self.space, self.holder, floor, abandoned, heard=heard, ports=ports, knew=knew)

    def renew(
        self, *abandoned: int, floor: int = 1, heard: tuple[int, ...] = (), ports: int = -1, knew: int = 0
    ) -> Renewed | Gone | BaseException:
        (outcome,) = self.store.renew([self.renewal(*abandoned, floor=floor, heard=heard, ports=ports, knew=knew)])
        return outcome

    def release(self, *ports: Port) -> Released | Gone:
        return self.store.release(self.space, self.holder, ports)

    def close(self, *, quarantine: bool = False) -> Closed | Gone:
        return self.store.close_lease(self.space, self.holder, quarantine=quarantine)

    def held(self, after: Port | None = None) -> Held | Gone:
        return self.store.held(self.space, self.holder, after)


class _World:
    """One space of a store, on its clock."""

    def __init__(self, store: Backend, space: str, clock: Clock) -> None:
        self.store = store
        self.space = space
        self.clock = clock
        self.ttl = round(clock.ttl * SECOND)
        self.live: list[_Actor] = []

    def try_open(
        self, instance: str = "one", token: str = "a", *, ttl: int = LONG, supersede: int = 0, knew: int = 0
    ) -> Opened | Occupied:
        return self.store.open(self.space, instance, token=token, ttl=ttl, supersede=supersede, knew=knew)

    def open(
        self, instance: str = "one", token: str = "a", *, ttl: int = LONG, supersede: int = 0, knew: int = 0
    ) -> _Actor:
        reply = self.try_open(instance, token, ttl=ttl, supersede=supersede, knew=knew)
        assert isinstance(reply, Opened)
        return _Actor(self.store, self.space, instance, reply)

    def view(self) -> SpaceView:
        (view,) = self.store.read([self.space])
        assert isinstance(view, SpaceView)
        return view

    def port(self, number: int) -> PortView:
        (port,) = (port for port in self.view().ports if port.number == number)
        return port

    def force(self, number: int, /, **seen: Any) -> bool:
        """Take the port, if it is as it is now but for what was ``seen``."""
        return self.store.force(self.space, self.port(number)._replace(**seen))

    def settled(self) -> SpaceView:
        """The view without what time alone changes."""
        view = self.view()
        return view._replace(
            leases=tuple(lease._replace(expires_in=0) for lease in view.leases),
            ports=tuple(port._replace(age=0, free_in=port.free_in and 0) for port in view.ports),
        )

    def states(self) -> dict[tuple[str, int], str]:
        return {(port.protocol, port.number): port.state for port in self.view().ports}

    def until(self, done: Callable[[], bool], within: float) -> float:
        """Let time pass in steps too small to be a silence, each with a visit, until ``done``; returns how much did."""
        start = self.clock.time()
        while not done():
            passed = self.clock.time() - start
            assert passed <= within, f"not done after {passed} s"
            self.clock.advance(self.clock.ttl / 16)
            while self.store.reclaim(self.space).backlog:
                pass
        return self.clock.time() - start


class _Log:
    """The log of a world's space, read on and on."""

    def __init__(self, world: _World) -> None:
        self.store = world.store
        self.space = world.space
        self.cursor = ""

    def part(self, cursor: str = "", limit: int = 10_000) -> Events:
        (log,) = self.store.events({self.space: cursor}, limit)
        assert isinstance(log, Events)
        assert self.space == log.space
        return log

    def new(self) -> list[Event]:
        """What was told since the last time, but for its age: of ports in ascending order, of each as it happened."""
        log = self.part(self.cursor)
        self.cursor = log.cursor
        events = sorted(log.events, key=lambda event: event.number)
        assert all(type(event.age) is int and event.age >= 0 for event in events)
        return [event._replace(age=0) for event in events]

    def brief(self) -> list[tuple[str, int]]:
        """The kinds and numbers of those."""
        return [(event.kind, event.number) for event in self.new()]


def ask(first: int = 10809, last: int = 10872, count: int = 1, **kwargs: Any) -> Ask:
    return Ask("backup", ((first, last),), count, **kwargs)


def one_port(number: int, **kwargs: Any) -> Ask:
    """An explicit ask."""
    return ask(number, number, explicit=True, **kwargs)


def numbers(ports: Sequence[Port] | Sequence[PortView]) -> list[int]:
    return [port.number for port in ports]


class _Conformance:
    """The suite itself. ``world`` is where it plays."""

    @pytest.fixture
    def clock(self) -> Clock:
        """Override where the store's clock can be set."""
        return RealClock()

    @pytest.fixture
    def space(self) -> str:
        """A space that nobody used before. Override where names have to have another form."""
        return f"host:conformance-{uuid.uuid4().hex}"

    @pytest.fixture
    def world(self, subject: Backend, space: str, clock: Clock) -> _World:
        return _World(subject, space, clock)

    @pytest.fixture
    def other(self, subject2: Backend, space: str, clock: Clock) -> _World:
        """The same space, seen through another backend object."""
        return _World(subject2, space, clock)

    @pytest.fixture
    def kept(self) -> int:
        """How many events the backend under test leaves in a log. Override where it was told another number."""
        return EVENTS

    @pytest.fixture
    def log(self, world: _World) -> _Log:
        if Capability.EVENTS not in world.store.capabilities:
            pytest.skip("it writes no events")
        return _Log(world)

    def together(self, store: Backend, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        raise NotImplementedError

    def while_waiting(self, watch: Watch, seconds: float, act: Callable[[], Any]) -> None:
        """Wait, and meanwhile do something in another thread."""
        with ThreadPoolExecutor(1) as pool:
            doing = pool.submit(act)
            watch.wait(seconds)
            doing.result()

    # ------------------------------------------------------------ open

    def test_open(self, world: _World) -> None:
        """A new lease has no ports; its number and incarnation are positive."""
        reply = world.try_open()
        assert isinstance(reply, Opened)
        assert (True, True, 0) == (reply.lease > 0, reply.incarnation > 0, reply.ports)

    def test_open_repeated(self, world: _World) -> None:
        """The same process is answered alike, also about the ports that it holds by now."""
        one = world.open()
        one.take(ask(count=3))
        before = world.settled()
        assert exact(Opened(one.holder.lease, one.holder.incarnation, 3)) == exact(world.try_open())
        assert before == world.settled()

    def test_open_occupied(self, world: _World) -> None:
        """Another process is told who has the lease in which incarnation, and changes nothing."""
        one = world.open()
        one.take(ask())
        before = world.settled()
        occupied = exact(Occupied(one.holder.incarnation, "a"))
        assert occupied == exact(world.try_open(token="b"))
        assert occupied == exact(world.try_open(token="b", supersede=one.holder.incarnation + 1))
        assert before == world.settled()

    def test_supersede(self, world: _World) -> None:
        """Whoever names the present incarnation takes over the lease and its ports."""
        old = world.open()
        ports = old.take(ask(count=3))
        new = world.open(token="b", supersede=old.holder.incarnation)
        assert old.holder.lease == new.holder.lease
        assert new.holder.incarnation > old.holder.incarnation
        assert exact(Opened(new.holder.lease, new.holder.incarnation, 3)) == exact(world.try_open(token="b"))
        assert exact(Released(3)) == exact(new.release(*ports))

    def test_superseded(self, world: _World) -> None:
        """The older incarnation is refused everywhere, is told why, and changes nothing."""
        old = world.open()
        ports = old.take(ask(count=3))
        world.open(token="b", supersede=old.holder.incarnation)
        before = world.settled()
        assert [exact(SUPERSEDED)] * 9 == [
            exact(reply)
            for reply in (
                old.ask(ask()),
                old.ask(ask(), wait=Wait(LONG)),
                old.ask(ask(count=3), number=1),
                old.renew(1, floor=9),
                old.release(*ports),
                old.mark(*ports),
                old.close(),
                old.close(quarantine=True),
                old.held(),
            )
        ]
        assert before == world.settled()

    def test_open_late(self, world: _World) -> None:
        """An open or a take-over that comes late does not take the lease from the newer incarnation."""
        old = world.open()
        new = world.open(token="b", supersede=old.holder.incarnation)
        occupied = exact(Occupied(new.holder.incarnation, "b"))
        assert occupied == exact(world.try_open())
        assert occupied == exact(world.try_open(supersede=old.holder.incarnation))
        assert exact(Renewed(False)) == exact(new.renew())

    def test_bound(self, world: _World) -> None:
        """The lease of a process that says that nobody will come back after it is like any other while it lives."""
        opened = world.store.open(world.space, "one", token="a", ttl=LONG, bound=True)
        assert isinstance(opened, Opened)
        one = _Actor(world.store, world.space, "one", opened)
        one.take(ask(10, 10))
        again = world.store.open(world.space, "one", token="a", ttl=LONG, bound=True)
        assert exact(opened._replace(ports=1)) == exact(again)
        assert exact(Renewed(False)) == exact(one.renew())
        assert [opened.lease] == [lease.lease for lease in world.view().leases]

    def test_instances_and_spaces(self, world: _World) -> None:
        """Leases of other instances and other spaces are other leases; their ports do not meet."""
        one, two = world.open("one"), world.open("two")
        elsewhere = _World(world.store, world.space + "-2", world.clock).open("one")
        assert one.holder.lease != two.holder.lease
        assert [10809] == numbers(one.take(ask()))
        assert [10810] == numbers(two.take(ask()))
        assert [10809] == numbers(elsewhere.take(ask()))
        assert exact(UNKNOWN) == exact(world.store.held(world.space + "-3", one.holder))

    # ------------------------------------------------------------ acquire

    def test_lowest(self, world: _World) -> None:
        """The lowest free number is given, a released one again."""
        one = world.open()
        ports = [one.take(ask())[0] for _ in range(3)]
        assert [10809, 10810, 10811] == numbers(ports)
        one.release(ports[1])
        assert [10810, 10812] == numbers([one.take(ask())[0] for _ in range(2)])

    def test_granted(self, world: _World) -> None:
        """Fences are consecutive within a step and grow from step to step; the time is the store's."""
        one = world.open()
        first, second = one.ask(ask(count=3)), one.ask(ask())
        assert isinstance(first, Granted)
        assert isinstance(second, Granted)
        fence = first.ports[0].fence
        expected = Granted(tuple(Port(10809 + i, "tcp", fence + i) for i in range(3)), first.since)
        assert exact(expected) == exact(first)
        assert fence > one.holder.lease
        assert second.ports[0].fence > fence + 2
        assert second.since >= first.since > 0

    def test_seed_case(self, world: _World) -> None:
        """Two ports, three asks: the third finds nothing; an explicit one is told who has the port."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10809, 10810, owner="vm-1", labels={"job": "x"}))
        full = two.ask(one_port(10809))
        assert isinstance(full, Full)
        assert isinstance(full.holder, PortView)
        holder = PortView(
            number=10809,
            protocol="tcp",
            state="held",
            range="backup",
            owner="vm-1",
            labels={"job": "x"},
            instance="one",
            lease=one.holder.lease,
            fence=port.fence,
            age=full.holder.age,
            free_in=None,
        )
        assert exact(Full(0, holder, False)) == exact(full)
        assert exact(Full(0, None, False)) == exact(two.ask(ask(10809, 10809)))
        assert [10810] == numbers(two.take(ask(10809, 10810)))
        assert exact(Full(0, None, False)) == exact(two.ask(ask(10809, 10810)))
        assert exact(Released(1)) == exact(one.release(port))
        assert [10809] == numbers(two.take(ask(10809, 10810)))

    def test_spans(self, world: _World) -> None:
        """Spans are used in the order given."""
        asked = Ask("backup", ((20, 21), (10, 11), (30, 30)), 4)
        one = world.open()
        assert [20, 21, 10, 11] == numbers(one.take(asked))
        assert exact(Full(0, None, False)) == exact(one.ask(asked))
        assert [30] == numbers(one.take(asked._replace(count=1)))

    def test_overlapping_spans(self, world: _World) -> None:
        """Where spans of one ask overlap, no number is given twice."""
        asked = Ask("backup", ((11, 12), (10, 14), (12, 12)), 5)
        one = world.open()
        assert exact(Full(0, None, False)) == exact(one.ask(asked._replace(count=6)))
        assert [11, 12, 10, 13, 14] == numbers(one.take(asked))

    def test_all_or_nothing(self, world: _World) -> None:
        """When one ask of several cannot be met, its index is told and nothing is given."""
        one = world.open()
        (port,) = one.take(ask(12, 12))
        before = world.settled()
        assert exact(Full(0, None, False)) == exact(one.ask(ask(10, 15, 6)))
        full = one.ask(ask(10, 11, 2), ask(1, 9, 9, protocol="udp"), one_port(12))
        assert isinstance(full, Full)
        assert (2, port.fence) == (full.ask, full.holder and full.holder.fence)
        assert exact(Full(1, None, False)) == exact(one.ask(one_port(10), one_port(10)))
        assert before == world.settled()
        assert [10, 11, 13] == numbers(one.take(ask(10, 13, 3)))

    def test_overlapping_asks(self, world: _World) -> None:
        """Asks of one step never get the same number, and protocols do not meet."""
        ports = world.open().take(ask(10, 12, 2), ask(10, 20, protocol="udp"), ask(11, 12), ask(12, 14))
        assert [("tcp", 10), ("tcp", 11), ("udp", 10), ("tcp", 12), ("tcp", 13)] == [
            (port.protocol, port.number) for port in ports
        ]

    @pytest.mark.parametrize("protocol", ["tcp", "udp", "both"])
    @pytest.mark.parametrize("number", [1, 7, 8, 65534, 65535])
    def test_bounds(self, world: _World, protocol: Any, number: int) -> None:
        """Every number of every protocol can be had, once."""
        one = world.open()
        (port,) = one.take(ask(number, number, protocol=protocol))
        assert (number, protocol) == (port.number, port.protocol)
        full = one.ask(one_port(number, protocol=protocol))
        assert isinstance(full, Full)
        assert full.holder is not None
        assert (number, protocol) == (full.holder.number, full.holder.protocol)

    def test_thousands(self, world: _World) -> None:
        """Thousands of ports in one step, listed in pages, released in one step."""
        one = world.open()
        ports = one.take(ask(20_000, 29_999, 2_500))
        assert list(range(20_000, 22_500)) == numbers(ports)
        assert 2_500 == len(world.view().ports)
        listed: list[PortView] = []
        page = one.held()
        while isinstance(page, Held) and page.ports:
            listed += page.ports
            last = page.ports[-1]
            page = one.held(Port(last.number, last.protocol, last.fence)) if page.more else Held((), False)
        assert [(port.number, port.fence) for port in ports] == [(view.number, view.fence) for view in listed]
        assert exact(Released(2_500)) == exact(one.release(*ports))
        assert () == world.view().ports

    def test_repeated(self, world: _World) -> None:
        """A request that comes again is answered with the same ports, also when nothing is free, and counts once."""
        one = world.open()
        first = one.ask(ask(10, 12, 3), number=1)
        second = one.ask(ask(13, 13), ask(13, 13, protocol="udp"), number=2, floor=1)
        assert exact(first) == exact(one.ask(ask(10, 12, 3), number=1))
        assert exact(second) == exact(one.ask(ask(13, 13), ask(13, 13, protocol="udp"), number=2, floor=1))
        assert 5 == len(world.view().ports)

    def test_repeated_after_refusal(self, world: _World) -> None:
        """A request that found nothing is stale from then on, so a late copy is not granted; a new one may be."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        assert isinstance(one.ask(ask(10, 10), number=2, floor=2), Full)
        one.release(port)
        assert exact(Stale(2)) == exact(one.ask(ask(10, 10), number=2, floor=2))
        assert isinstance(one.ask(ask(10, 10), number=3, floor=2), Granted)

    def test_stale(self, world: _World) -> None:
        """A request below the floor is refused, whether or not it was carried out, by acquire or heartbeat."""
        one = world.open()
        one.ask(ask(), number=1)
        one.ask(ask(), number=13, floor=12)
        before = world.settled()
        assert [exact(Stale(number)) for number in (1, 2, 11)] == [
            exact(one.ask(ask(), number=number)) for number in (1, 2, 11)
        ]
        assert exact(Renewed(False)) == exact(one.renew(floor=20))
        assert exact(Renewed(False)) == exact(one.renew(floor=1))
        assert [exact(Stale(number)) for number in (12, 13, 19)] == [
            exact(one.ask(ask(), number=number)) for number in (12, 13, 19)
        ]
        assert before == world.settled()
        assert isinstance(one.ask(ask(), number=20), Granted)

    def test_unknown_lease(self, world: _World) -> None:
        """Without a lease everything is refused, in a space that exists and in one that does not."""
        nobody = _Actor(world.store, world.space, "one", Opened(1, 1, 0))
        port = Port(10, "tcp", 1)
        for _ in range(2):
            assert [exact(UNKNOWN)] * 8 == [
                exact(reply)
                for reply in (
                    nobody.ask(ask()),
                    nobody.ask(ask(), wait=Wait(LONG)),
                    nobody.renew(),
                    nobody.release(port),
                    nobody.mark(port),
                    nobody.claim(Claim(port, ask())),
                    nobody.close(),
                    nobody.held(),
                )
            ]
            assert exact(Reclaimed(False)) == exact(world.store.reclaim(world.space))
            world.open("two")

    # ------------------------------------------------------------ both protocols, blocks, rounds

    def test_both(self, world: _World) -> None:
        """One number for both protocols is free in both, closes both, and is freed in both."""
        one = world.open()
        assert [10, 11] == numbers(one.take(ask(10, 10), ask(11, 11, protocol="udp")))
        (port,) = one.take(ask(10, 20, protocol="both"))
        assert exact(Port(12, "both", port.fence)) == exact(port)
        assert {("tcp", 10): "held", ("udp", 11): "held", ("both", 12): "held"} == world.states()
        assert [11, 10, 13] == [one.take(ask(10, 20, protocol=p))[0].number for p in ("tcp", "udp", "both")]
        assert exact(Released(0)) == exact(one.release(port._replace(protocol="tcp"), port._replace(protocol="udp")))
        assert exact(Released(1)) == exact(one.release(port))
        tcp, udp = one.take(ask(12, 12), ask(12, 12, protocol="udp"))
        assert (12, 12) == (tcp.number, udp.number)
        for each in (tcp, udp):
            assert exact(Full(0, None, False)) == exact(one.ask(ask(12, 12, protocol="both")))
            assert exact(Released(1)) == exact(one.release(each))
        assert [12] == numbers(one.take(ask(12, 12, protocol="both")))

    def test_both_in_one_step(self, world: _World) -> None:
        """What an ask takes of one protocol, the next ask of the step does not get of both, and the other way round."""
        asks = [ask(10, 20, protocol=protocol) for protocol in ("tcp", "both", "udp", "both", "tcp")]
        ports = world.open().take(*asks)
        assert [("tcp", 10), ("both", 11), ("udp", 10), ("both", 12), ("tcp", 13)] == [
            (port.protocol, port.number) for port in ports
        ]

    @pytest.mark.parametrize("protocol", ["tcp", "udp", "both"])
    def test_block(self, world: _World, protocol: Protocol4) -> None:
        """Adjacent numbers: the lowest that are free, the first a multiple of ``align``, all inside one span."""
        one = world.open()
        one.take(*(ask(n, n, protocol=protocol) for n in (10, 14, 21, 27)))
        taken = [
            numbers(one.take(ask(10, 99, count, align=align, protocol=protocol)))
            for count, align in ((4, 4), (3, 1), (2, 5), (3, 2), (9, 3))
        ]
        assert [
            [16, 17, 18, 19],
            [11, 12, 13],
            [25, 26],
            [22, 23, 24],
            [30, 31, 32, 33, 34, 35, 36, 37, 38],
        ] == taken
        spans = Ask("backup", ((100, 101), (102, 103), (200, 202)), 3, protocol, align=1)
        assert [200, 201, 202] == numbers(one.take(spans))
        assert exact(Full(0, None, False)) == exact(one.ask(spans))
        assert [65534, 65535] == numbers(one.take(ask(65533, 65535, 2, align=2, protocol=protocol)))

    @pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 7, 8, 16, 33])
    def test_block_in_a_gap(self, world: _World, count: int) -> None:
        """A gap of just the size is found wherever it lies, behind one that is a number too small."""
        one = world.open()
        for offset in range(9):
            low = 1000 + 97 * offset
            gap, final = low + count + offset % 3, low + 80
            taken = ((low + count - 1, gap - 1), (gap + count, final))
            one.take(Ask("backup", taken, final - low + 1 - (count - 1) - count))
            assert exact(Full(0, None, False)) == exact(one.ask(ask(low, final, count + 1, align=1)))
            assert list(range(gap, gap + count)) == numbers(one.take(ask(low, final, count, align=1)))

    def test_blocks_in_one_step(self, world: _World) -> None:
        """Two blocks of one step lie apart; when one has no room, neither is given."""
        one = world.open()
        before = world.settled()
        pair = ask(10, 17, 4, align=2)
        assert exact(Full(2, None, False)) == exact(one.ask(pair, pair, pair))
        assert before == world.settled()
        assert list(range(10, 18)) == numbers(one.take(pair, pair))

    def test_rotate(self, world: _World) -> None:
        """Numbers go round, over the first spans; the others come last; each range has its own round."""
        one = world.open()
        asked = Ask("backup", ((20, 21), (30, 31), (10, 11)), rotate=2)
        given = []
        for count in (1, 2, 2, 1):
            ports = one.take(asked._replace(count=count))
            given.append(numbers(ports))
            one.release(*ports)
        assert [[20], [21, 30], [31, 20], [21]] == given
        for expected in ([30, 31, 20, 21, 10], [20, 21, 30, 31, 10]):
            ports = one.take(asked._replace(count=5))
            assert expected == numbers(ports)
            one.release(*ports)
        for range, number in (("display", 20), ("display", 21), ("backup", 20), ("display", 30)):
            ports = one.take(asked._replace(range=range, protocol="udp"))
            assert [number] == numbers(ports)
            one.release(*ports)

    def test_rotate_blocks(self, world: _World) -> None:
        """Blocks go round too, and may lie across the number where the round ends."""
        one = world.open()
        given = []
        for count, align in ((2, 2), (2, 2), (3, 1), (4, 1)):
            ports = one.take(ask(10, 16, count, align=align, rotate=1))
            given.append(numbers(ports))
            one.release(*ports)
        assert [[10, 11], [12, 13], [14, 15, 16], [10, 11, 12, 13]] == given
        one.take(ask(10, 11, 2), ask(16, 16))
        assert [12, 13, 14, 15] == numbers(one.take(ask(10, 16, 4, align=1, rotate=1)))

    # ------------------------------------------------------------ limit, cooldown

    def test_limit(self, world: _World) -> None:
        """One owner gets no more ports of a range than its limit, over all asks of a step and all leases."""
        one, two = world.open("one"), world.open("two")
        mine = ask(10, 99, owner="vm-1", limit=2)
        full = exact(Full(0, None, False, "limit"))
        before = world.settled()
        assert exact(Full(2, None, False, "limit")) == exact(one.ask(mine, mine._replace(protocol="both"), mine))
        assert full == exact(one.ask(mine._replace(count=3)))
        assert before == world.settled()
        first, _ = one.take(mine) + two.take(mine._replace(protocol="udp"))
        assert [full] * 3 == [exact(reply) for reply in (one.ask(mine), two.ask(mine), one.ask(mine, wait=Wait(LONG)))]
        assert 0 == world.view().waiting
        for other in (mine._replace(owner="vm-2"), mine._replace(range="display"), mine._replace(limit=0)):
            assert isinstance(one.ask(other), Granted)
        assert exact(Released(1)) == exact(one.release(first))
        assert isinstance(two.ask(mine), Granted)
        assert full == exact(two.ask(mine))

    @pytest.mark.parametrize("way", ["cooldown", "close", "quarantine", "mark", "surplus", "abandon"])
    def test_limit_given_back(self, world: _World, way: str) -> None:
        """What is not held any more does not count, whatever became of it."""
        one, two = world.open("one"), world.open("two")
        mine = ask(10, 10, limit=1, quarantine=LONG, cooldown=LONG if way == "cooldown" else 0)
        ports = one.take(mine)
        elsewhere = ask(11, 11, limit=1)
        assert exact(Full(0, None, False, "limit")) == exact(two.ask(elsewhere))
        match way:
            case "cooldown":
                one.release(*ports)
            case "mark" | "surplus":
                one.mark(*ports, most=int(way == "mark"))
            case "abandon":
                one.renew(1)
            case _:
                one.close(quarantine=way == "quarantine")
        assert ([] if way in ("close", "surplus", "abandon") else [("tcp", 10)]) == list(world.states())
        assert isinstance(two.ask(elsewhere), Granted)
        assert exact(Full(0, None, False, "limit")) == exact(two.ask(ask(12, 12, limit=1)))

    def test_limit_after_expiry(self, world: _World) -> None:
        """A dead holder's ports count until they are reclaimed."""
        one, two = world.open("one", ttl=world.ttl), world.open("two")
        one.take(ask(10, 10, limit=1, quarantine=LONG))
        world.until(lambda: isinstance(two.ask(ask(11, 11, limit=1)), Granted), within=3 * world.clock.ttl)
        assert {("tcp", 10): "cooling", ("tcp", 11): "held"} == world.states()

    def test_cooldown(self, world: _World) -> None:
        """A released port cools for its cooldown, and says so to whoever asks for it; an abandoned one does not."""
        one = world.open()
        cooldown = world.ttl // 2
        plain, port = one.take(ask(9, 9), ask(10, 10, cooldown=cooldown, owner="vm-1"))
        before = world.clock.time()
        assert exact(Released(2)) == exact(one.release(plain, port))
        assert exact(Released(0)) == exact(one.release(plain, port))
        full = one.ask(one_port(10))
        assert isinstance(full, Full)
        assert full.holder is not None
        expected = PortView(10, "tcp", "cooling", "backup", "vm-1", {}, "one", one.holder.lease, port.fence, 0, 0)
        assert exact(expected) == exact(full.holder._replace(age=0, free_in=full.holder.free_in and 0))
        world.until(lambda: not world.view().ports, within=world.clock.ttl)
        assert world.clock.time() - before >= 0.99 * cooldown / SECOND
        one.ask(ask(10, 10, cooldown=LONG), number=90)
        assert exact(Renewed(False)) == exact(one.renew(90))
        assert {} == world.states()

    @pytest.mark.parametrize("way", ["close", "quarantine", "expiry"])
    def test_cooldown_or_quarantine(self, world: _World, way: str) -> None:
        """After a clean close ports cool for their cooldown; after one with quarantine or an expiry, for that."""
        one = world.open(ttl=world.ttl)
        one.take(ask(10, 10, cooldown=LONG), ask(11, 11, quarantine=LONG))
        if way != "expiry":
            assert exact(Closed(False)) == exact(one.close(quarantine=way == "quarantine"))
        cools = {("tcp", 10 if way == "close" else 11): "cooling"}
        world.until(lambda: cools == world.states(), within=3 * world.clock.ttl)

    # ------------------------------------------------------------ foreign ports

    def test_mark_foreign(self, world: _World) -> None:
        """What a lease holds with these very fences is marked, for a time; others are passed over."""
        one, two = world.open("one"), world.open("two")
        duration = world.ttl // 2
        first, second = one.take(ask(10, 11, 2, owner="vm-1", labels={"a": "b"}, host="kvm-07"))
        (other,) = two.take(ask(12, 12))
        stale = first._replace(fence=first.fence + 1), first._replace(protocol="udp"), Port(99, "tcp", first.fence)
        before, start = world.settled(), world.clock.time()
        assert exact(Marked(0)) == exact(one.mark(*stale, other))
        assert exact(Marked(0)) == exact(one.mark())
        assert before == world.settled()
        assert exact(Marked(1)) == exact(one.mark(*stale, first, first, other, duration=duration, host="kvm-08"))
        marked = world.view().ports[0]
        expected = PortView(
            10, "tcp", "foreign", "backup", "", {}, "one", one.holder.lease, first.fence, 0, 0, "kvm-08"
        )
        assert exact(expected) == exact(marked._replace(age=0, free_in=marked.free_in and 0))
        assert exact(Released(0)) == exact(one.release(first))
        assert exact(Full(0, None, False)) == exact(two.ask(ask(10, 10)))
        assert exact(Released(1)) == exact(one.release(second))
        assert exact(Closed(False)) == exact(one.close())
        assert {("tcp", 10): "foreign", ("tcp", 12): "held"} == world.states()
        world.until(lambda: ("tcp", 10) not in world.states(), within=world.clock.ttl)
        assert world.clock.time() - start >= 0.99 * duration / SECOND
        assert [10] == numbers(two.take(ask(10, 10)))

    def test_mark_at_most(self, world: _World) -> None:
        """Of each range at most so many ports are marked, over all calls and leases; the others are freed."""
        one, two = world.open("one"), world.open("two")
        ports = one.take(ask(10, 12, 3, cooldown=LONG), ask(20, 20, protocol="both"))
        assert exact(Marked(2)) == exact(one.mark(*ports, most=2))
        assert {("tcp", 10): "foreign", ("tcp", 11): "foreign"} == world.states()
        (fifth,) = two.take(ask(20, 20, protocol="both"))
        assert exact(Marked(0)) == exact(two.mark(*two.take(ask(12, 12)), most=2))
        assert exact(Marked(1)) == exact(two.mark(fifth, range="display", most=1))
        assert {("tcp", 10): "foreign", ("tcp", 11): "foreign", ("both", 20): "foreign"} == world.states()
        assert exact(Full(0, None, False)) == exact(one.ask(ask(20, 20, protocol="udp")))

    def test_marks_run_out(self, world: _World) -> None:
        """A mark that ran out counts no more."""
        one = world.open()
        first, second = one.take(ask(10, 11, 2))
        assert exact(Marked(1)) == exact(one.mark(first, most=1, duration=world.ttl // 4))
        world.until(lambda: ("tcp", 10) not in world.states(), within=world.clock.ttl)
        assert exact(Marked(1)) == exact(one.mark(second, most=1))

    @pytest.mark.parametrize("marked", ["tcp", "udp", "both"])
    @pytest.mark.parametrize("asked", ["tcp", "udp", "both"])
    def test_explicit_over_a_mark(self, world: _World, marked: Protocol4, asked: Protocol4) -> None:
        """Whoever wants the very number gets it from under a mark, which is gone and counts no more."""
        one, two = world.open("one"), world.open("two")
        one.mark(*one.take(ask(10, 10, protocol=marked)), most=1)
        in_the_way = marked == asked or "both" in (marked, asked)
        assert (Full if in_the_way else Granted) is type(one.ask(ask(10, 10, protocol=asked)))
        if not in_the_way:
            return
        assert [10] == numbers(two.take(one_port(10, protocol=asked)))
        assert {(asked, 10): "held"} == world.states()
        assert exact(Marked(1)) == exact(one.mark(*one.take(ask(11, 11)), most=1))
        if marked == "both" and asked != "both":
            assert [10] == numbers(one.take(ask(10, 10, protocol="udp" if asked == "tcp" else "tcp")))

    def test_explicit_over_two_marks(self, world: _World) -> None:
        """A number for both protocols takes away a mark of each; one that is held is left, and then the marks are."""
        one = world.open()
        one.mark(*one.take(ask(10, 10), ask(10, 10, protocol="udp"), ask(11, 11)))
        one.take(ask(11, 11, protocol="udp"))
        before = world.settled()
        assert isinstance(one.ask(one_port(11, protocol="both")), Full)
        assert isinstance(one.ask(one_port(10, protocol="both"), one_port(11, protocol="both")), Full)
        assert before == world.settled()
        assert [10] == numbers(one.take(one_port(10, protocol="both")))
        assert {("both", 10): "held", ("tcp", 11): "foreign", ("udp", 11): "held"} == world.states()

    def test_explicit_refused(self, world: _World) -> None:
        """A refused step leaves the marks; held and cooling ports do not give way."""
        one, two = world.open("one"), world.open("two")
        held, cooling, foreign = one.take(ask(10, 10), ask(11, 11, cooldown=LONG), ask(12, 12))
        one.release(cooling)
        one.mark(foreign)
        before = world.settled()
        for number, state, fence in ((10, "held", held.fence), (11, "cooling", cooling.fence)):
            full = two.ask(one_port(12), one_port(number))
            assert isinstance(full, Full)
            assert full.holder is not None
            assert (1, state, fence) == (full.ask, full.holder.state, full.holder.fence)
        assert before == world.settled()
        assert exact(Full(0, None, False)) == exact(two.ask(ask(12, 12)))

    @pytest.mark.parametrize("cooling", ["tcp", "udp", "both"])
    @pytest.mark.parametrize("asked", ["tcp", "udp", "both"])
    def test_running(self, world: _World, cooling: Protocol4, asked: Protocol4) -> None:
        """The number of a job that runs is taken while it cools, past the queue and over a limit."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 10, protocol=cooling, cooldown=LONG, owner="vm", limit=2))
        one.take(ask(11, 11, owner="vm", limit=2))
        one.release(port)
        world.open("x").queue(one_port(10, protocol=cooling))
        wanted = one_port(10, protocol=asked, owner="vm", limit=1)
        assert isinstance(two.ask(wanted), Full)
        assert [10] == numbers(two.take(wanted._replace(running=True)))
        in_the_way = cooling == asked or "both" in (cooling, asked)
        left = {} if in_the_way else {(cooling, 10): "cooling"}
        assert {(asked, 10): "held", ("tcp", 11): "held", **left} == world.states()
        full = one.ask(one_port(10, protocol=asked, running=True))
        assert isinstance(full, Full)
        assert full.holder is not None
        assert ("taken", "held", "two") == (full.why, full.holder.state, full.holder.instance)

    # ------------------------------------------------------------ queue

    def test_queue(self, world: _World) -> None:
        """Freed ports go to who waited first, whoever asks first; the others keep their places."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        waiting = [world.open(name) for name in "xyz"]
        queued = [actor.queue(ask(10, 10)) for actor in waiting]
        assert [True, False, False] == [reply.first for reply in queued]
        tickets = [reply.ticket for reply in queued]
        assert sorted(set(tickets)) == tickets
        assert all(type(reply.due_in) is int and reply.due_in <= LONG for reply in queued)
        assert 3 == world.view().waiting
        assert exact(Released(1)) == exact(one.release(port))
        assert exact(Full(0, None, False, "queue")) == exact(one.ask(ask(10, 10)))
        for at, actor in enumerate(waiting):
            for behind, ticket in zip(waiting[at + 1 :], tickets[at + 1 :], strict=True):
                reply = behind.queue(ask(10, 10), ticket)
                assert (ticket, False) == (reply.ticket, reply.first)
            granted = actor.ask(ask(10, 10), wait=Wait(LONG, tickets[at]))
            assert [10] == numbers(_ports(granted))
            actor.release(*_ports(granted))
        assert 0 == world.view().waiting

    def test_queue_and_others(self, world: _World) -> None:
        """Nobody gets a number from spans that somebody before it waits for; other numbers and protocols are free."""
        one = world.open()
        one.take(ask(10, 10))
        ticket = world.open("x").queue(Ask("backup", ((10, 11), (20, 22)), 5)).ticket
        asks = (ask(11, 19), ask(11, 11, protocol="udp"), ask(20, 99), ask(9, 40, 2, align=2))
        assert [12, 11, 23, 14, 15] == numbers(one.take(*asks))
        for competing in (ask(10, 11), ask(21, 21), one_port(22), ask(20, 22, protocol="both"), ask(20, 23, 2)):
            reply = one.ask(competing)
            assert isinstance(reply, Full)
            assert "queue" == reply.why
        assert exact(Full(1, None, False, "queue")) == exact(one.ask(ask(30, 30), ask(20, 20)))
        reply = one.queue(ask(22, 30, 9))
        assert (True, False) == (reply.ticket > ticket, reply.first)
        assert exact(Full(0, None, False, "queue")) == exact(one.ask(ask(30, 30)))
        assert [31] == numbers(one.take(ask(30, 31)))

    def test_queue_for_one_number(self, world: _World) -> None:
        """A number that somebody before wants explicitly is left out of automatic picks, and holds nobody up."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(11, 11))
        wanted = one_port(11, protocol="both")
        ticket = two.queue(wanted).ticket
        one.release(port)
        assert [10, 12] == numbers(one.take(ask(10, 20, 2)))
        assert [10, 12] == numbers(one.take(ask(10, 20, 2, protocol="udp")))
        assert [13, 14] == numbers(one.take(ask(11, 20, 2, align=1, protocol="both")))
        for competing in (ask(11, 11), one_port(11), ask(11, 14)):
            assert exact(Full(0, None, False, "queue")) == exact(one.ask(competing))
        assert [16] == numbers(one.take(one_port(16)))
        assert [11] == numbers(_ports(two.ask(wanted, wait=Wait(LONG, ticket))))

    def test_place_is_given_up(self, world: _World) -> None:
        """A place that nobody asks for within its window is given up; who comes late has it again all the same."""
        one, late, behind = world.open("one"), world.open("x"), world.open("y")
        (port,) = one.take(ask(10, 10))
        window = world.ttl // 2
        before = world.clock.time()
        ticket = late.queue(ask(10, 10), window=window).ticket
        world.until(lambda: world.view().waiting == 0, within=world.clock.ttl)
        assert world.clock.time() - before >= 0.99 * window / SECOND
        its = behind.queue(ask(10, 10))
        assert its.first
        one.release(port)
        reply = late.ask(ask(10, 11, 2), wait=Wait(LONG, ticket))
        assert isinstance(reply, Granted)
        late.release(*reply.ports)
        assert 1 == world.view().waiting
        assert [10] == numbers(_ports(behind.ask(ask(10, 10), wait=Wait(LONG, its.ticket))))

    def test_place_is_kept(self, world: _World) -> None:
        """Who asks again in time keeps its place, however long it takes."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        ticket = two.queue(ask(10, 10), window=world.ttl).ticket
        again: list[tuple[int, bool]] = []

        def long_enough() -> bool:
            assert 1 == world.view().waiting
            again.append(two.queue(ask(10, 10), ticket, world.ttl)[:2])
            return len(again) == 24

        world.until(long_enough, within=6 * world.clock.ttl)
        assert [(ticket, True)] * 24 == again

    def test_giving_up(self, world: _World) -> None:
        """Without a window a place is given up, unless there is enough now."""
        one, two = world.open("one"), world.open("two")
        ports = one.take(ask(10, 10))
        first, second = two.queue(ask(10, 10)).ticket, two.queue(ask(10, 10)).ticket
        assert exact(Full(0, None, False)) == exact(two.ask(ask(10, 10), wait=Wait(0, first)))
        assert exact(Full(0, None, False, "queue")) == exact(one.ask(ask(10, 10), wait=Wait(0)))
        assert 1 == world.view().waiting
        one.release(*ports)
        assert [10] == numbers(_ports(two.ask(ask(10, 10), wait=Wait(0, second))))
        assert 0 == world.view().waiting

    def test_wrong_tickets(self, world: _World) -> None:
        """Another's ticket is no place before it; one that was never given is none; both get a new one."""
        one, two, three = world.open("one"), world.open("two"), world.open("three")
        (port,) = one.take(ask(10, 10))
        ticket = two.queue(ask(10, 10)).ticket
        one.release(port)
        stolen = three.queue(ask(10, 10), ticket)
        future = three.queue(ask(10, 10), stolen.ticket + LONG)
        assert [False, False] == [stolen.first, future.first]
        assert ticket < stolen.ticket < future.ticket < stolen.ticket + LONG
        assert 3 == world.view().waiting
        assert [10] == numbers(_ports(two.ask(ask(10, 10), wait=Wait(LONG, ticket))))

    def test_limit_in_the_queue(self, world: _World) -> None:
        """Whoever would pass its limit does not wait, and gives up its place."""
        one = world.open()
        one.take(ask(10, 10))
        mine = ask(10, 10, owner="vm-1", limit=1)
        ticket = one.queue(mine).ticket
        one.take(ask(20, 20, owner="vm-1", limit=1))
        assert exact(Full(0, None, False, "limit")) == exact(one.ask(mine, wait=Wait(LONG, ticket)))
        assert 0 == world.view().waiting

    def test_queued_request_is_settled(self, world: _World) -> None:
        """A late copy of a request that was queued gets no ports: its ticket while that is good, else nothing."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 10))
        queued = two.ask(ask(10, 10), number=1, wait=Wait(world.ttl // 4))
        assert isinstance(queued, Queued)
        one.release(port)
        again = two.ask(ask(10, 10), number=1, wait=Wait(LONG))
        assert isinstance(again, Queued)
        assert (queued.ticket, False, 1) == (again.ticket, again.first, world.view().waiting)
        assert exact(Stale(1)) == exact(two.ask(ask(10, 10), number=1))
        world.until(lambda: world.view().waiting == 0, within=world.clock.ttl)
        assert exact(Stale(1)) == exact(two.ask(ask(10, 10), number=1, wait=Wait(LONG)))
        granted = two.ask(ask(10, 10), number=2, floor=1, wait=Wait(LONG, queued.ticket))
        assert isinstance(granted, Granted)
        assert exact(granted) == exact(two.ask(ask(10, 10), number=2, floor=1, wait=Wait(LONG, queued.ticket)))
        assert exact(Stale(1)) == exact(two.ask(ask(10, 10), number=1, floor=1, wait=Wait(LONG)))
        assert (0, {("tcp", 10): "held"}) == (world.view().waiting, world.states())

    def test_kept_when_met(self, world: _World) -> None:
        """Who keeps its place gets ports and is waited for all the same, until it leaves or its window is over."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 11))
        ticket = two.queue(ask(10, 11, 2)).ticket
        one.release(port)
        for window in (LONG, world.ttl // 4):
            granted = two.ask(ask(10, 11, 2), wait=Wait(window, ticket, keep=True))
            assert exact(Released(2)) == exact(two.release(*_ports(granted)))
            assert exact(Full(0, None, False, "queue")) == exact(one.ask(ask(10, 11)))
            assert 1 == world.view().waiting
        world.until(lambda: world.view().waiting == 0, within=world.clock.ttl)
        assert isinstance(one.ask(ask(10, 11), wait=Wait(LONG, keep=True)), Granted)
        assert 0 == world.view().waiting

    def test_left(self, world: _World) -> None:
        """A heartbeat gives up the places that its sender has no use for, and nobody else's."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        mine, others = [one.queue(ask(10, 10)).ticket for _ in range(3)], two.queue(ask(10, 10)).ticket
        left = one.renewal()._replace(left=(mine[0], mine[2], others, 1))
        assert exact([Renewed(False)]) == exact(world.store.renew([left]))
        assert 2 == world.view().waiting
        assert [True, False] == [one.queue(ask(10, 10), mine[1]).first, two.queue(ask(10, 10), others).first]

    def test_abandoned_in_the_queue(self, world: _World) -> None:
        """A queued request that is abandoned has no place any more, and is stale if it arrives again."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        one.ask(ask(10, 10), number=2, wait=Wait(LONG))
        behind = two.queue(ask(10, 10)).ticket
        assert exact(Renewed(False)) == exact(one.renew(2))
        assert 1 == world.view().waiting
        assert exact(Stale(2)) == exact(one.ask(ask(10, 10), number=2, wait=Wait(LONG)))
        assert two.queue(ask(10, 10), behind).first

    def test_places_fall_with_the_lease(self, world: _World) -> None:
        """Nobody waits for one whose lease ended."""
        one, two, dead = world.open("one"), world.open("two"), world.open("dead", ttl=world.ttl)
        (port,) = one.take(ask(10, 10))
        for actor in (two, two, dead):
            actor.queue(ask(10, 10))
        one.release(port)
        assert exact(Closed(False)) == exact(two.close())
        assert 1 == world.view().waiting
        world.until(lambda: world.view().waiting == 0, within=4 * world.clock.ttl)
        assert ["one"] == [lease.instance for lease in world.view().leases]
        assert isinstance(one.ask(ask(10, 10)), Granted)

    def test_dead_waiter(self, world: _World) -> None:
        """A waiter whose lease ran out holds nobody up for longer than its window."""
        one, dead, two = world.open("one"), world.open("dead", ttl=world.ttl), world.open("two")
        (port,) = one.take(ask(10, 10))
        dead.queue(ask(10, 10), window=2 * world.ttl)
        ticket = two.queue(ask(10, 10)).ticket
        one.release(port)
        assert not two.queue(ask(10, 10), ticket).first
        world.until(
            lambda: isinstance(two.ask(ask(10, 10), wait=Wait(LONG, ticket)), Granted), within=4 * world.clock.ttl
        )

    # ------------------------------------------------------------ watch

    @pytest.mark.parametrize("when", ["before", "meanwhile"])
    @pytest.mark.parametrize("event", ["release", "close", "mark", "served", "gives up", "force"])
    def test_wakes(self, world: _World, when: str, event: str) -> None:
        """Where the backend says that it wakes, whoever waits is woken when its turn has come, long before its time."""
        if Capability.WAKES not in world.store.capabilities:
            pytest.skip("this backend wakes nobody")
        one, ahead, two = world.open("one"), world.open("ahead"), world.open("two")
        held, asked, its = 1, ask(10, 10), ask(10, 10)
        if event == "served":
            held, asked, its = 2, ask(10, 12), ask(10, 12, 2)
        elif event == "gives up":
            asked, its = ask(10, 11), ask(10, 11, 2)
        ports = one.take(ask(10, 11, held))
        if event == "force":
            one.mark(*ports)
        before = ahead.queue(its).ticket if its != asked else 0
        ticket = two.queue(asked).ticket
        if event == "served":
            one.release(*ports)

        def act() -> None:
            match event:
                case "release":
                    one.release(*ports)
                case "close":
                    one.close()
                case "mark":
                    one.mark(*ports, most=0)
                case "served":
                    assert isinstance(ahead.ask(its, wait=Wait(0, before)), Granted)
                case "gives up":
                    assert isinstance(ahead.ask(its, wait=Wait(0, before)), Full)
                case "force":
                    assert world.force(10)

        watch = world.store.watch(world.space, ticket)
        try:
            start = time.monotonic()
            if when == "before":
                act()
                watch.wait(60)
            else:
                self.while_waiting(watch, 60, act)
            reply = two.ask(asked, wait=Wait(LONG, ticket))
            while isinstance(reply, Queued):
                watch.wait(60)
                reply = two.ask(asked, wait=Wait(LONG, ticket))
        finally:
            watch.close()
            watch.close()
        assert isinstance(reply, Granted)
        assert time.monotonic() - start < 30

    def test_watch_in_vain(self, world: _World) -> None:
        """Without an event a watch comes back when its time is over."""
        one = world.open()
        one.take(ask(10, 10))
        watch = world.store.watch(world.space, one.queue(ask(10, 10)).ticket)
        start = time.monotonic()
        watch.wait(0.05)
        watch.wait(0)
        watch.close()
        assert 0 < time.monotonic() - start < 30

    # ------------------------------------------------------------ preview

    def test_preview(self, world: _World) -> None:
        """It says what an acquire would give now, for every kind of ask, and changes nothing."""
        one = world.open()
        one.take(ask(10, 10), ask(11, 11, owner="vm-1", limit=1), ask(12, 12, rotate=1), ask(200, 200), ask(300, 300))
        one.mark(*one.take(ask(14, 14, protocol="both")))
        one.queue(ask(200, 201, 2))
        one.queue(one_port(300))
        one.release(*(Port(300, "tcp", view.fence) for view in world.view().ports if view.number == 300))
        for asks in (
            (ask(10, 99, 3),),
            (ask(10, 99), ask(10, 99, protocol="udp"), ask(10, 99, 2, protocol="both")),
            (ask(10, 99, 4, align=4), ask(10, 99, 9, align=1, protocol="both")),
            (ask(10, 99, 2, rotate=1),),
            (one_port(14), ask(10, 99)),
            (ask(10, 11),),
            (one_port(14), ask(10, 11)),
            (one_port(10),),
            (ask(10, 99, owner="vm-1", limit=1),),
            (ask(10, 99), ask(198, 202)),
            (ask(299, 301, 2),),
        ):
            before = world.settled()
            shown = world.store.preview(world.space, asks)
            assert before == world.settled()
            given = one.ask(*asks)
            if isinstance(given, Granted):
                one.release(*given.ports)
                given = Granted(tuple(port._replace(fence=0) for port in given.ports), 0)
            elif isinstance(given, Full) and given.holder and isinstance(shown, Full) and shown.holder:
                given = given._replace(holder=given.holder._replace(age=shown.holder.age))
            assert exact(given) == exact(shown)

    def test_preview_of_nothing(self, world: _World) -> None:
        """In a space that nobody opened everything is free."""
        shown = world.store.preview(world.space, [ask(10, 20, 2), ask(10, 20, 3, align=4, protocol="both")])
        ports = [Port(10, "tcp", 0), Port(11, "tcp", 0), *(Port(n, "both", 0) for n in (12, 13, 14))]
        assert exact(Granted(tuple(ports), 0)) == exact(shown)
        assert exact(Full(0, None, False)) == exact(world.store.preview(world.space, [ask(10, 10, 2)]))
        assert exact(Full(0, None, False, "limit")) == exact(world.store.preview(world.space, [ask(count=2, limit=1)]))
        assert exact(SpaceView(world.space, 0, (), ())) == exact(world.view())

    def test_preview_backlog(self, world: _World) -> None:
        """What could be reclaimed now is still taken, and the reply says that there is some."""
        one = world.open()
        one.release(*one.take(ask(10, 10, cooldown=world.ttl // 4)))
        start = world.clock.time()
        assert exact(Full(0, None, False)) == exact(world.store.preview(world.space, [ask(10, 10)]))
        while exact(Full(0, None, False)) == exact(world.store.preview(world.space, [ask(10, 10)])):
            assert world.clock.time() - start < 3 * world.clock.ttl
            world.clock.advance(world.clock.ttl / 16)
        assert exact(Full(0, None, True)) == exact(world.store.preview(world.space, [ask(10, 10)]))
        assert {("tcp", 10): "cooling"} == world.states()
        world.store.reclaim(world.space)
        assert isinstance(world.store.preview(world.space, [ask(10, 10)]), Granted)

    # ------------------------------------------------------------ renew

    def test_renew_many(self, world: _World) -> None:
        """One call, many spaces: outcomes in order, each for itself."""
        worlds = [_World(world.store, f"{world.space}-{i}", world.clock) for i in range(5)]
        actors = [each.open() for each in worlds]
        actors[1].close()
        worlds[3].open(token="b", supersede=actors[3].holder.incarnation)
        outcomes = world.store.renew([actor.renewal() for actor in actors])
        expected = [Renewed(False), GONE, Renewed(False), SUPERSEDED, Renewed(False)]
        assert exact(expected) == exact(outcomes)
        assert [] == world.store.renew([])

    def test_abandoned_after(self, world: _World) -> None:
        """A request that was carried out and abandoned is undone, and stale from then on."""
        one = world.open()
        one.ask(ask(10, 11, 2), ask(10, 10, protocol="udp"), number=1)
        kept = one.ask(ask(12, 12), number=2, floor=1)
        assert exact(Renewed(False)) == exact(one.renew(1))
        assert [("tcp", 12)] == list(world.states())
        assert exact(Stale(1)) == exact(one.ask(ask(10, 11, 2), number=1))
        assert exact(kept) == exact(one.ask(ask(12, 12), number=2, floor=1))

    def test_abandoned_before(self, world: _World) -> None:
        """A request that is abandoned before it arrives is refused when it does."""
        one = world.open()
        one.renew(2, 3)
        assert isinstance(one.ask(ask(), number=1), Granted)
        assert [exact(Stale(2)), exact(Stale(3))] == [exact(one.ask(ask(), number=n, floor=1)) for n in (2, 3)]
        assert isinstance(one.ask(ask(), number=4, floor=1), Granted)

    def test_abandoned_twice(self, world: _World) -> None:
        """An old heartbeat that comes once more takes nothing from whoever has the port now."""
        one, two = world.open("one"), world.open("two")
        one.ask(ask(), number=1)
        one.renew(1)
        (port,) = two.take(ask())
        one.renew(1)
        assert [port.fence] == [view.fence for view in world.view().ports]

    # ------------------------------------------------------------ release

    def test_release(self, world: _World) -> None:
        """Only ports held under this lease with this very fence are freed; others are passed over."""
        one, two = world.open("one"), world.open("two")
        first, second, third = one.take(ask(10, 12, 3))
        (foreign,) = two.take(ask(13, 13))
        assert exact(Released(0)) == exact(one.release())
        assert exact(Released(0)) == exact(one.release(foreign, first._replace(fence=first.fence + 1)))
        assert exact(Released(0)) == exact(one.release(first._replace(protocol="udp"), Port(99, "tcp", first.fence)))
        assert exact(Released(0)) == exact(two.release(first, second, third))
        assert exact(Released(2)) == exact(one.release(first, foreign, third, first))
        assert {("tcp", 11): "held", ("tcp", 13): "held"} == world.states()
        assert exact(Released(0)) == exact(one.release(first))

    def test_release_late(self, world: _World) -> None:
        """A release that comes late does not free what the number was given for since."""
        one = world.open()
        (first,) = one.take(ask(10, 10))
        one.release(first)
        (again,) = one.take(ask(10, 10))
        assert exact(Released(0)) == exact(one.release(first))
        assert [again.fence] == [view.fence for view in world.view().ports]

    # ------------------------------------------------------------ force

    def test_force(self, world: _World) -> None:
        """A held port that an operator takes cools for its quarantine, and its holder's release is told so."""
        one, two = world.open("one"), world.open("two")
        port, kept = one.take(ask(10, 11, 2, owner="vm-1", labels={"a": "b"}, quarantine=LONG, cooldown=1))
        seen = world.port(10)
        assert exact(True) == exact(world.force(10))
        cooling = world.port(10)
        assert exact(seen._replace(state="cooling", age=cooling.age, free_in=cooling.free_in)) == exact(cooling)
        assert cooling.free_in is not None
        assert LONG - 60 * SECOND < cooling.free_in <= LONG
        held = one.held()
        assert isinstance(held, Held)
        assert [11] == numbers(held.ports)
        assert isinstance(two.ask(one_port(10)), Full)
        assert exact(Released(0, (port,))) == exact(one.release(port))
        assert exact(Released(1, (port,))) == exact(one.release(port, kept, port))
        one.renew(heard=(port.fence,))
        assert exact(Released(0)) == exact(one.release(port))

    def test_force_lasts_as_long_as_the_lease(self, world: _World) -> None:
        """Without a quarantine, a port that was taken cools until its lease would have run out."""
        one = world.open(ttl=LONG)
        one.take(ask(10, 10, quarantine=0))
        assert world.force(10)
        free_in = world.port(10).free_in
        assert free_in is not None
        assert LONG - 60 * SECOND < free_in <= LONG

    def test_force_is_told(self, world: _World) -> None:
        """Every heartbeat of the holder is told what was taken, and a successor's is, until one says that it heard."""
        one, two = world.open("one"), world.open("two")
        first, second, third = one.take(ask(10, 10, protocol="both"), ask(11, 11, protocol="udp"), ask(12, 12))
        assert [True, True] == [world.force(number) for number in (11, 10)]
        assert exact(Renewed(False, (second, first))) == exact(one.renew())
        assert exact(Renewed(False)) == exact(two.renew(heard=(first.fence, second.fence)))
        new = world.open("one", token="b", supersede=one.holder.incarnation)
        assert exact(SUPERSEDED) == exact(one.renew(heard=(first.fence,)))
        assert exact(Renewed(False, (second, first))) == exact(new.renew(heard=(third.fence,)))
        assert exact(Renewed(False, (first,))) == exact(new.renew(heard=(second.fence,)))
        assert world.force(12)
        assert exact(Renewed(False, (first, third))) == exact(new.renew())
        assert exact(Renewed(False)) == exact(new.renew(heard=(third.fence, first.fence)))
        assert exact(Renewed(False)) == exact(new.renew())

    def test_force_ends_with_the_lease(self, world: _World) -> None:
        """What the holder was not told before its lease ended, the next lease of this name is not told."""
        one = world.open()
        one.take(ask(10, 10))
        assert world.force(10)
        assert exact(Closed(False)) == exact(one.close())
        assert exact(Renewed(False)) == exact(world.open().renew())

    @pytest.mark.parametrize("state", ["cooling", "foreign"])
    def test_force_not_held(self, world: _World, state: str) -> None:
        """A port that cools or is marked as foreign is free at once, and nobody is told."""
        one = world.open()
        (port,) = one.take(ask(10, 10, cooldown=LONG, protocol="both"))
        assert one.release(port) if state == "cooling" else one.mark(port)
        assert {("both", 10): state} == world.states()
        assert exact(True) == exact(world.force(10))
        assert {} == world.states()
        assert exact(Renewed(False)) == exact(one.renew())
        assert [10, 10] == numbers(one.take(ask(10, 10), ask(10, 10, protocol="udp")))

    @pytest.mark.parametrize("state", ["held", "cooling", "foreign"])
    def test_force_changed(self, world: _World, state: str) -> None:
        """One that has another fence or state than was seen, or is not there at all, is not touched."""
        one = world.open()
        (port,) = one.take(ask(10, 10, cooldown=LONG))
        if state != "held":
            assert one.release(port) if state == "cooling" else one.mark(port)
        before = world.settled()
        changes: list[dict[str, Any]] = [
            *({"state": other} for other in ("held", "cooling", "foreign") if other != state),
            *({"fence": port.fence + 1}, {"fence": port.fence - 1}, {"number": 11}),
            *({"protocol": "udp"}, {"protocol": "both"}),
        ]
        assert [exact(False)] * len(changes) == [exact(world.force(10, **change)) for change in changes]
        assert before == world.settled()
        assert exact(Renewed(False)) == exact(one.renew())
        elsewhere = world.store.force(world.space + "-2", world.port(10))
        assert exact(False) == exact(elsewhere)
        assert world.space + "-2" not in world.store.spaces()

    def test_force_counts(self, world: _World) -> None:
        """What was taken counts neither for its owner's limit nor as a mark of its range."""
        one = world.open()
        _, second = one.take(ask(10, 11, 2, owner="vm-1", limit=2, quarantine=LONG))
        assert world.force(10)
        assert isinstance(one.ask(ask(20, 20, owner="vm-1", limit=2)), Granted)
        assert exact(Marked(1)) == exact(one.mark(second, most=1))
        assert world.force(11)
        assert exact(Marked(1)) == exact(one.mark(*one.take(ask(30, 30)), most=1))

    # ------------------------------------------------------------ drop

    def test_drop(self, world: _World) -> None:
        """A space in which there is nothing more is removed, and begins anew with the next lease."""
        one = world.open()
        one.take(ask(10, 20, 4, align=4, protocol="both"), ask(30, 30, rotate=1))
        assert exact(False) == exact(world.store.drop(world.space))
        one.close()
        assert world.space in world.store.spaces()
        assert exact(True) == exact(world.store.drop(world.space))
        assert world.space not in world.store.spaces()
        assert exact(SpaceView(world.space, 0, (), ())) == exact(world.view())
        assert exact(UNKNOWN) == exact(one.renew())
        assert [10] == numbers(world.open().take(ask(10, 20)))
        assert world.space in world.store.spaces()

    @pytest.mark.parametrize("what", ["lease", "cooling", "foreign"])
    def test_not_dropped(self, world: _World, what: str) -> None:
        """A space with a lease, or with a port that is not free, is left as it is, and stays known."""
        one = world.open()
        if what != "lease":
            (port,) = one.take(ask(10, 10, cooldown=LONG))
            assert one.release(port) if what == "cooling" else one.mark(port)
            one.close()
        before = world.settled()
        assert exact(False) == exact(world.store.drop(world.space))
        assert before == world.settled()
        assert world.space in world.store.spaces()

    def test_drop_nothing(self, world: _World) -> None:
        """A space that nobody opened counts as removed, and so does one that was removed before."""
        assert [exact(True)] * 2 == [exact(world.store.drop(world.space)) for _ in range(2)]
        assert world.space not in world.store.spaces()

    def test_drop_spares_others(self, world: _World) -> None:
        """Spaces whose names begin alike are others."""
        other = _World(world.store, world.space + "-2", world.clock)
        other.open().take(ask(10, 10))
        before = other.settled()
        world.open().close()
        assert exact(True) == exact(world.store.drop(world.space))
        assert before == other.settled()
        assert other.space in world.store.spaces()

    # ------------------------------------------------------------ lost data

    def test_too_new(self, world: _World) -> None:
        """A space that its caller knew before it began gives nothing out for a TTL; all else goes on."""
        two = world.open("two")
        granted = two.ask(ask(10, 11, 2), number=1)
        one = world.open("one", ttl=world.ttl, knew=two.holder.lease - 1)
        left = world.view().recovering
        world.open("three", ttl=world.ttl // 8, knew=two.holder.lease - 1)
        assert left // 2 < world.view().recovering <= left
        assert [True] * 3 == [
            isinstance(reply, Recovering) and 0 < reply.left <= world.ttl
            for reply in (one.ask(ask()), two.ask(ask(), number=2, floor=1), world.store.preview(world.space, [ask()]))
        ]
        assert isinstance(granted, Granted)
        assert exact(granted) == exact(two.ask(ask(10, 11, 2), number=1))
        assert exact(Released(1)) == exact(two.release(granted.ports[0]))
        assert 0 < world.view().recovering <= world.ttl
        passed = world.until(lambda: world.view().recovering == 0, within=1.5 * world.clock.ttl)
        assert passed > 0.5 * world.clock.ttl
        assert exact(Stale(2)) == exact(two.ask(ask(), number=2))
        assert [10] == numbers(_ports(two.ask(ask(10, 20), number=3)))

    def test_behind(self, world: _World) -> None:
        """A space that has not come to what its caller knew goes on above that, also where the caller is refused."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        knew = port.fence + 1000 * LONG
        assert isinstance(world.try_open(token="b", ttl=world.ttl, knew=knew), Occupied)
        assert (knew, True) == (world.view().fence, 0 < world.view().recovering <= world.ttl)
        assert isinstance(one.ask(ask()), Recovering)
        world.until(lambda: world.view().recovering == 0, within=1.5 * world.clock.ttl)
        assert [knew + 1] == [given.fence for given in one.take(ask())]
        world.open("two", knew=knew)
        assert 0 == world.view().recovering

    def test_knew_nothing_new(self, world: _World) -> None:
        """What the space has given is no reason to doubt it."""
        one = world.open()
        (port,) = one.take(ask())
        for index, knew in enumerate((0, one.holder.lease, port.fence)):
            world.open(f"other-{index}", knew=knew).take(ask())
        assert 0 == world.view().recovering

    def test_recovering_is_not_dropped(self, world: _World) -> None:
        """A space that recovers is not removed, even when nothing else is in it."""
        one = world.open(ttl=world.ttl, knew=10**15 * 4)
        one.close()
        assert exact(False) == exact(world.store.drop(world.space))
        world.until(lambda: world.store.drop(world.space), within=1.5 * world.clock.ttl)
        assert world.space not in world.store.spaces()

    def test_lost_lease(self, world: _World) -> None:
        """A lease from before the space, or ahead of it, is unknown; one that it gave, and that is no more, expired."""
        first, last = world.open("one"), world.open("two")
        for lease in (first.holder.lease - 1, last.holder.lease + 1):
            lost = _Actor(world.store, world.space, "one", Opened(lease, lease, 0))
            assert [exact(UNKNOWN)] * 3 == [exact(lost.renew()), exact(lost.held()), exact(lost.ask(ask()))]
        first.close()
        last.close()
        assert [exact(GONE)] * 4 == [exact(reply) for one in (first, last) for reply in (one.renew(), one.held())]

    def test_lost_takeover(self, world: _World) -> None:
        """A newer incarnation than the space knows of is unknown; an older one was taken over."""
        old = world.open()
        new = world.open(token="b", supersede=old.holder.incarnation)
        lost = _Actor(world.store, world.space, "one", Opened(1, 1, 0))
        lost.holder = new.holder._replace(incarnation=new.holder.incarnation + 1)
        assert [exact(UNKNOWN)] * 3 == [exact(lost.renew()), exact(lost.held()), exact(lost.ask(ask()))]
        assert exact(SUPERSEDED) == exact(old.renew())

    def test_claim(self, world: _World) -> None:
        """A port is taken back under its fence, as it was asked for; the space recovers from then on."""
        asked = ask(owner="vm-1", labels={"k": "v"}, cooldown=LONG, limit=2, protocol="both", host="kvm-07")
        one = world.open(ttl=world.ttl)
        port = Port(10, "both", one.holder.lease - 5)
        assert exact(Claimed()) == exact(one.claim(Claim(port, asked)))
        (shown,) = world.view().ports
        expected = PortView(
            number=10,
            protocol="both",
            state="held",
            range="backup",
            owner="vm-1",
            labels={"k": "v"},
            instance="one",
            lease=one.holder.lease,
            fence=port.fence,
            age=shown.age,
            free_in=None,
            host="kvm-07",
        )
        assert exact(expected) == exact(shown)
        assert isinstance(one.ask(ask()), Recovering)
        assert 0 < world.view().recovering <= world.ttl
        held = one.held()
        assert isinstance(held, Held)
        assert [10] == numbers(held.ports)
        assert exact(Released(1)) == exact(one.release(port))
        assert {("both", 10): "cooling"} == world.states()

    def test_claim_counts(self, world: _World) -> None:
        """What is taken back counts against its owner's limit, and closes its number."""
        one, two = world.open(ttl=world.ttl), world.open("two")
        asked = ask(10, 20, owner="vm-1", limit=2)
        one.claim(*(Claim(Port(number, "tcp", one.holder.lease - number), asked) for number in (10, 11)))
        world.until(lambda: exact(one.renew()) == exact(Renewed(False)) and world.view().recovering == 0, within=LONG)
        assert exact(Full(0, None, False, "limit")) == exact(two.ask(asked))
        assert [12] == numbers(two.take(ask(10, 20)))

    def test_claim_conflict(self, world: _World) -> None:
        """The higher fence has the port. Who loses it is told with each heartbeat until it has heard."""
        one, two = world.open("one"), world.open("two")
        also, port = two.take(ask(10, 10, limit=1), ask(10, 10, protocol="udp"))
        lower, higher = Port(10, "both", port.fence - 2), Port(10, "both", port.fence + 1)
        assert exact(Claimed((lower,))) == exact(one.claim(Claim(lower, ask())))
        assert exact(Renewed(False)) == exact(two.renew(ports=2))
        assert exact(Claimed()) == exact(one.claim(Claim(higher, ask())))
        assert {("both", 10): "held"} == world.states()
        told = Renewed(False, (also, port))
        assert [exact(told)] * 2 == [exact(two.renew(ports=0)), exact(two.renew(ports=0))]
        assert exact(Released(0, (port,))) == exact(two.release(port))
        assert exact(Renewed(False, (port,))) == exact(two.renew(heard=(also.fence,), ports=0))
        assert exact(Renewed(False)) == exact(two.renew(heard=(port.fence,), ports=0))
        assert exact(Renewed(False)) == exact(one.renew(ports=1))

    def test_claim_repeated(self, world: _World) -> None:
        """The same claim again changes nothing, and a late copy takes nothing back that was released meanwhile."""
        one = world.open()
        ports = [Port(number, "tcp", one.holder.lease - number) for number in (10, 11)]
        claims = [Claim(port, ask()) for port in ports]
        assert [exact(Claimed())] * 3 == [exact(one.claim(*claims, number=number)) for number in (1, 1, 2)]
        assert exact(Released(1)) == exact(one.release(ports[0]))
        assert [exact(Claimed((ports[0],)))] * 2 == [exact(one.claim(*claims, number=number)) for number in (1, 2)]
        one.renew(3)
        assert exact(Claimed((ports[0],))) == exact(one.claim(*claims, number=3))
        assert {("tcp", 11): "held"} == world.states()

    def test_claim_nothing_lost(self, world: _World) -> None:
        """A claim of what the lease has already is no sign of a loss."""
        one = world.open()
        ports = one.take(ask(10, 12, 3))
        assert exact(Claimed()) == exact(one.claim(*(Claim(port, ask()) for port in ports)))
        assert [13] == numbers(one.take(ask(10, 20)))

    def test_claim_many(self, world: _World) -> None:
        """As many as one call may name: all are held then, and listed."""
        one = world.open()
        claims = [Claim(Port(number, "tcp", one.holder.lease - number), ask()) for number in range(20_000, 20_250)]
        assert exact(Claimed()) == exact(one.claim(*claims))
        assert list(range(20_000, 20_250)) == numbers(world.view().ports)
        assert exact(Renewed(False)) == exact(one.renew(ports=250))

    def test_knows_a_later_fence(self, world: _World) -> None:
        """An ask or a heartbeat that knows a fence to which the space has not come shows that it lost some."""
        one = world.open()
        (port,) = one.take(ask(1000, 1000))
        assert exact(Renewed(False)) == exact(one.renew(ports=1, knew=port.fence))
        behind = Request(2, 2, port.fence + 1)
        assert isinstance(world.store.acquire(world.space, one.holder, behind, [ask(1001, 1009)]), Recovering)
        assert world.view().fence == port.fence + 1
        assert 0 < world.view().recovering <= LONG
        assert exact(Renewed(False, (), True)) == exact(one.renew(knew=port.fence + 9))
        assert exact(Renewed(False)) == exact(one.renew(knew=port.fence + 9))
        assert exact(Released(1)) == exact(one.release(port))

    def test_trace_of_an_ended_lease(self, world: _World) -> None:
        """The last 64 leases that ended are known as such; of an earlier one there is no trace."""
        actors = [world.open(f"i{number}") for number in range(65)]
        for actor in actors:
            actor.close()
        assert exact(Gone("expired", forgotten=True)) == exact(actors[0].renew())
        assert [exact(GONE)] * 2 == [exact(actors[1].renew()), exact(actors[64].renew())]

    def test_claim_while_draining(self, world: _World) -> None:
        """What an expired lease of the same instance still has goes over to its new one, under the same fence."""
        one = world.open("one", ttl=world.ttl)
        ports = one.take(ask(1000, 1999, 200))
        start = world.clock.time()
        while exact(GONE) != exact(one.held()):
            assert world.clock.time() - start < 3 * world.clock.ttl
            world.clock.advance(world.clock.ttl / 16)
            world.store.reclaim(world.space)
        new = world.open("one", token="b")
        assert exact(Claimed()) == exact(new.claim(Claim(ports[-1], ask())))
        while world.store.reclaim(world.space).backlog:
            pass
        shown = world.port(ports[-1].number)
        assert ("held", new.holder.lease, ports[-1].fence) == (shown.state, shown.lease, shown.fence)

    def test_claim_after_force(self, world: _World) -> None:
        """What was taken by force is not lost, and is not taken back."""
        one = world.open()
        (port,) = one.take(ask(10, 10, quarantine=LONG))
        world.force(10)
        assert exact(Claimed((port,))) == exact(one.claim(Claim(port, ask())))
        assert ({("tcp", 10): "cooling"}, 0) == (world.states(), world.view().recovering)

    def test_doubt(self, world: _World) -> None:
        """Who says how many ports it holds is told when the store has another number; who is not sure is not."""
        one = world.open()
        one.take(ask(10, 12, 3))
        outcomes = [one.renew(ports=count) for count in (3, 2, 4, 0, -1)]
        expected = [Renewed(False, (), doubt) for doubt in (False, True, True, True, False)]
        assert exact(expected) == exact(outcomes)

    # ------------------------------------------------------------ close_lease

    def test_close(self, world: _World) -> None:
        """A closed lease is gone, its ports are free, and its instance begins anew."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 12, 3))
        two.take(ask(13, 13))
        assert exact(Closed(False)) == exact(one.close())
        assert {("tcp", 13): "held"} == world.states()
        assert ["two"] == [lease.instance for lease in world.view().leases]
        assert [exact(GONE)] * 2 == [exact(one.close()), exact(one.renew())]
        assert world.open("one").holder.lease > one.holder.lease

    def test_close_in_steps(self, world: _World) -> None:
        """Each step handles at most 64 ports; in between the lease is live."""
        one = world.open()
        one.take(ask(1000, 1999, 150))
        assert exact(Closed(True)) == exact(one.close())
        assert 86 == len(world.view().ports)
        assert exact(Renewed(False)) == exact(one.renew())
        assert exact(Closed(True)) == exact(one.close())
        assert exact(Closed(False)) == exact(one.close())
        assert ((), ()) == (world.view().leases, world.view().ports)

    def test_close_with_quarantine(self, world: _World) -> None:
        """With quarantine the ports cool first, and say so to whoever asks for one."""
        one, two = world.open("one"), world.open("two")
        quarantine = world.ttl // 2
        (port,) = one.take(ask(10, 10, quarantine=quarantine, owner="vm-1"))
        before = world.clock.time()
        assert exact(Closed(False)) == exact(one.close(quarantine=True))
        full = two.ask(one_port(10))
        assert isinstance(full, Full)
        assert full.holder is not None
        expected = PortView(10, "tcp", "cooling", "backup", "vm-1", {}, "one", one.holder.lease, port.fence, 0, 0)
        assert exact(expected) == exact(full.holder._replace(age=0, free_in=full.holder.free_in and 0))
        assert full.holder.free_in is not None
        assert 0 < full.holder.free_in <= quarantine
        world.until(lambda: not world.view().ports, within=world.clock.ttl)
        assert world.clock.time() - before >= 0.99 * quarantine / SECOND
        assert [10] == numbers(two.take(ask(10, 10)))

    # ------------------------------------------------------------ expiry

    def test_expiry(self, world: _World) -> None:
        """A dead holder's port cools after the TTL, and is free after its quarantine, not before."""
        quarantine = world.ttl // 2
        before = world.clock.time()
        one, two = world.open("one", ttl=world.ttl), world.open("two")
        one.take(ask(10, 10, quarantine=quarantine))
        world.until(lambda: exact(GONE) == exact(one.held()), within=3 * world.clock.ttl)
        assert world.clock.time() - before >= 0.99 * world.clock.ttl
        assert [exact(GONE)] * 4 == [
            exact(reply) for reply in (one.renew(), one.ask(ask()), one.release(), one.close())
        ]
        world.until(lambda: not world.view().ports, within=3 * world.clock.ttl)
        assert world.clock.time() - before >= 0.99 * (world.ttl + quarantine) / SECOND
        assert [10] == numbers(two.take(ask(10, 10)))

    def test_heartbeat_keeps(self, world: _World) -> None:
        """A holder that goes on renewing keeps lease and ports beyond the TTL."""
        one = world.open(ttl=world.ttl)
        one.take(ask(10, 10))
        renewed: list[Any] = []

        def long_enough() -> bool:
            renewed.append(exact(one.renew()))
            return len(renewed) == 40

        world.until(long_enough, within=10 * world.clock.ttl)
        assert [exact(Renewed(False))] * 40 == renewed
        assert {("tcp", 10): "held"} == world.states()

    def test_expiry_in_steps(self, world: _World) -> None:
        """The ports of a dead holder come back at most 64 at a visit; a new lease of its name is not touched."""
        one, watcher = world.open("one", ttl=world.ttl), world.open("two")
        one.take(ask(1000, 1999, 200))
        start = world.clock.time()
        left, new = [200], None

        def look() -> None:
            left.append(sum(port.lease == one.holder.lease for port in world.view().ports))
            assert 0 <= left[-2] - left[-1] <= 64
            assert "cooling" not in world.states().values() or exact(GONE) == exact(one.held())

        while left[-1]:
            assert world.clock.time() - start < 5 * world.clock.ttl
            backlog = world.store.reclaim(world.space).backlog
            look()
            if new is None and exact(GONE) == exact(one.held()):
                new = world.open("one", token="b")
                look()
            if not backlog:
                world.clock.advance(world.clock.ttl / 16)
        assert new is not None
        assert exact(Renewed(False)) == exact(new.renew())
        assert exact(Renewed(False)) == exact(watcher.renew())

    def test_resume_after_expiry(self, world: _World) -> None:
        """Who comes back after the TTL begins anew, without the ports."""
        old = world.open(ttl=world.ttl)
        old.take(ask(10, 10, quarantine=10 * world.ttl))
        world.until(lambda: exact(GONE) == exact(old.held()), within=3 * world.clock.ttl)
        reply = world.try_open(supersede=old.holder.incarnation)
        assert isinstance(reply, Opened)
        assert (True, 0) == (reply.lease > old.holder.lease, reply.ports)

    # ------------------------------------------------------------ reads

    def test_held(self, world: _World) -> None:
        """A lease's own ports, in ascending order, tcp before udp; after a given one only what follows."""
        one, two = world.open("one"), world.open("two")
        ports = one.take(ask(9, 9, protocol="udp"), ask(10000, 10000), ask(9, 10, 2, labels={"a": "b", "c": ""}))
        two.take(ask(11, 11))
        held = one.held()
        assert isinstance(held, Held)
        assert (False, [("tcp", 9), ("tcp", 10), ("tcp", 10000), ("udp", 9)]) == (
            held.more,
            [(view.protocol, view.number) for view in held.ports],
        )
        assert {port.fence for port in ports} == {view.fence for view in held.ports}
        assert [{"a": "b", "c": ""}, {}] == [dict(held.ports[0].labels), dict(held.ports[2].labels)]
        rest = one.held(Port(10, "tcp", 0))
        assert isinstance(rest, Held)
        assert [("tcp", 10000), ("udp", 9)] == [(view.protocol, view.number) for view in rest.ports]
        assert exact(Held((), False)) == exact(one.held(Port(9, "udp", 0)))
        assert exact(Held((), False)) == exact(world.open("three").held())

    def test_read(self, world: _World) -> None:
        """Spaces are shown in the order asked for; one that nobody opened is empty."""
        one = world.open("b")
        two = world.open("a", ttl=2 * LONG)
        (second,) = two.take(ask(9, 9, protocol="udp", owner="vm-2"))
        (first,) = one.take(ask(10, 10))
        empty, view = world.store.read([world.space + "-none", world.space])
        assert isinstance(view, SpaceView)
        assert exact(SpaceView(world.space + "-none", 0, (), ())) == exact(empty)
        assert exact((world.space, first.fence)) == exact((view.space, view.fence))
        expected = [LeaseView(a.holder.lease, a.holder.instance, a.holder.incarnation, 0, 0) for a in (one, two)]
        assert exact(expected) == exact([lease._replace(ttl=0, expires_in=0) for lease in view.leases])
        assert [LONG, 2 * LONG] == [lease.ttl for lease in view.leases]
        assert all(0 < lease.expires_in <= lease.ttl for lease in view.leases)
        ports = [
            PortView(10, "tcp", "held", "backup", "", {}, "b", one.holder.lease, first.fence, 0, None),
            PortView(9, "udp", "held", "backup", "vm-2", {}, "a", two.holder.lease, second.fence, 0, None),
        ]
        assert exact(ports) == exact([port._replace(age=0) for port in view.ports])
        assert all(type(port.age) is int and port.age >= 0 for port in view.ports)
        assert [] == world.store.read([])

    def test_read_changes_nothing(self, world: _World) -> None:
        """Looking reclaims nothing: what ran out is shown as that."""
        one = world.open(ttl=world.ttl)
        one.take(ask(10, 10))
        start = world.clock.time()
        while world.view().leases[0].expires_in > 0:
            assert world.clock.time() - start < 3 * world.clock.ttl
            world.clock.advance(world.clock.ttl / 4)
        assert (["one"], {("tcp", 10): "held"}) == ([lease.instance for lease in world.view().leases], world.states())

    def test_grace(self, world: _World) -> None:
        """Of a lease that seems to have run out the view says whether the next visit will give it a full TTL."""
        one = world.open(ttl=world.ttl)
        assert [False] == [lease.grace for lease in world.view().leases]
        world.clock.advance(world.clock.ttl * 1.2)
        (shown,) = world.view().leases
        assert shown.expires_in <= 0
        assert exact(Renewed(False) if shown.grace else GONE) == exact(one.renew())
        assert [False] * len(world.view().leases) == [lease.grace for lease in world.view().leases]

    def test_labels_are_copied(self, world: _World) -> None:
        """What the caller does with its labels afterwards does not alter what was recorded."""
        one, labels = world.open(), {"job": "x"}
        one.take(ask(labels=labels))
        labels["job"] = "y"
        assert {"job": "x"} == world.view().ports[0].labels

    def test_spaces(self, world: _World) -> None:
        """Spaces are known from the first lease on, and by the instances that have one there now."""
        names = [f"{world.space}-{i}" for i in (2, 1, 0)]
        mine, others = uuid.uuid4().hex, uuid.uuid4().hex
        assert [] == world.store.spaces(mine)
        actors = [_World(world.store, name, world.clock).open(mine) for name in names[:2]]
        _World(world.store, names[2], world.clock).open(others)
        assert sorted(names) == [name for name in world.store.spaces() if name in names]
        assert sorted(names[:2]) == world.store.spaces(mine)
        actors[0].close()
        assert names[1:2] == world.store.spaces(mine)
        assert names[2:] == world.store.spaces(others)

    def test_spaces_not_from_refusals(self, world: _World) -> None:
        """A refused or mere look does not make a space known."""
        nobody = _Actor(world.store, world.space, "one", Opened(1, 1, 0))
        nobody.ask(ask())
        nobody.renew()
        nobody.held()
        world.store.reclaim(world.space)
        world.view()
        world.store.preview(world.space, [ask(count=3, align=1, protocol="both")])
        nobody.mark(Port(10, "tcp", 1))
        assert world.space not in world.store.spaces()

    # ------------------------------------------------------------ events

    def test_events(self, world: _World, log: _Log) -> None:
        """Each event tells of the port and of its holder as they were then."""
        one, labels = world.open("one"), {"k": "v"}
        asked = ask(10, 10, owner="vm-1", labels=labels, host="kvm-07", protocol="both", cooldown=LONG)
        (port,) = one.take(asked)
        labels["k"] = "another"
        same = Event(
            "acquired", 10, "both", "backup", "vm-1", {"k": "v"}, "one", one.holder.lease, port.fence, 0, "kvm-07"
        )
        assert exact([same]) == exact(log.new())
        one.release(port)
        assert exact([same._replace(kind="released")]) == exact(log.new())
        world.force(10)
        assert exact([same._replace(kind="forced")]) == exact(log.new())
        (port,) = one.take(asked)
        same = same._replace(labels={"k": "another"}, fence=port.fence)
        world.force(10)
        assert exact([same, same._replace(kind="forced")]) == exact(log.new())

    def test_event_of_foreign(self, world: _World, log: _Log) -> None:
        """What something outside has is told with who saw it, and once more when the mark is over, or taken away."""
        one = world.open("one")
        first, second, third = one.take(ask(10, 12, 3, owner="vm-1"))
        assert [("acquired", 10), ("acquired", 11), ("acquired", 12)] == log.brief()
        one.mark(first, second, third, range="display", duration=world.ttl // 2, most=2, host="kvm-07")
        mark = Event("foreign", 10, "tcp", "display", "", {}, "one", one.holder.lease, first.fence, 0, "kvm-07")
        marks = [mark, mark._replace(number=11, fence=second.fence)]
        freed = Event("released", 12, "tcp", "backup", "vm-1", {}, "one", one.holder.lease, third.fence, 0)
        assert exact([*marks, freed]) == exact(log.new())
        world.force(11)
        assert exact([marks[1]._replace(kind="forced")]) == exact(log.new())
        world.until(lambda: not world.view().ports, within=2 * world.clock.ttl)
        assert exact([marks[0]._replace(kind="reclaimed")]) == exact(log.new())

    def test_event_of_expiry(self, world: _World, log: _Log) -> None:
        """A dead holder's port expires, and is reclaimed when it has cooled; both tell whose it was."""
        one, two = world.open("one", ttl=world.ttl), world.open("two")
        (port,) = one.take(ask(10, 10, owner="vm-1", quarantine=world.ttl // 2))
        (mine,) = two.take(ask(11, 11, owner="vm-2"))
        same = Event("acquired", 10, "tcp", "backup", "vm-1", {}, "one", one.holder.lease, port.fence, 0)
        other = same._replace(number=11, owner="vm-2", instance="two", lease=two.holder.lease, fence=mine.fence)
        assert exact([same, other]) == exact(log.new())
        world.until(lambda: ("tcp", 10) not in world.states(), within=5 * world.clock.ttl)
        assert exact([same._replace(kind="expired"), same._replace(kind="reclaimed")]) == exact(log.new())
        two.close(quarantine=True)
        assert exact([other._replace(kind="expired")]) == exact(log.new())

    def test_event_of_refusal(self, world: _World, log: _Log) -> None:
        """Of what is refused the ask is told, with its number if it was for this very one; the same once a minute."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 11, 2, owner="vm-1", limit=2))
        log.new()
        asked = ask(10, 11, owner="vm-2", labels={"k": "v"}, host="kvm-07", protocol="udp")
        about = "backup", "vm-2", {"k": "v"}, "two", two.holder.lease, 0, 0, "kvm-07"
        assert isinstance(two.ask(ask(12, 12), asked._replace(count=3)), Full)
        assert exact([Event("refused", 0, "udp", *about)]) == exact(log.new())
        explicit = asked._replace(spans=((10, 10),), explicit=True, protocol="both")
        assert isinstance(two.ask(explicit), Full)
        assert isinstance(two.ask(explicit), Full)
        assert exact([Event("refused", 10, "both", *about)]) == exact(log.new())
        two.take(asked)
        assert isinstance(two.ask(explicit), Full)
        assert [("acquired", 10)] == log.brief()
        assert isinstance(one.ask(ask(12, 20, owner="vm-1", limit=2)), Full)
        limited = Event("refused", 0, "tcp", "backup", "vm-1", {}, "one", one.holder.lease, 0, 0)
        assert exact([limited]) == exact(log.new())

    def test_event_of_what_runs(self, world: _World, log: _Log) -> None:
        """Who asks for the port of what runs on it is told of when it is given, and not when another has it: those who
        watch a host ask again and again.
        """
        one, two = world.open("one"), world.open("two")
        runs = one_port(10, owner="vm-1", running=True)
        (port,) = one.take(runs)
        assert isinstance(two.ask(runs), Full)
        assert isinstance(two.ask(ask(20, 20), runs), Full)
        acquired = Event("acquired", 10, "tcp", "backup", "vm-1", {}, "one", one.holder.lease, port.fence, 0)
        assert exact([acquired]) == exact(log.new())

    def test_event_of_refusal_again(self, world: _World, log: _Log) -> None:
        """The same refusal is told once among 16 events, whoever is refused; what differs in anything else is told."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 12, 3), ask(10, 10, protocol="udp"))
        asked = one_port(10, owner="vm-1", labels={"k": "v", "a": "b"}, host="kvm-07")
        log.new()
        assert isinstance(one.ask(asked), Full)
        assert isinstance(two.ask(asked), Full)
        for _ in range(7):
            two.release(*two.take(ask(20, 20)))
        (port,) = two.take(ask(20, 20))
        assert 16 == len(log.new())
        assert isinstance(two.ask(asked), Full)
        assert [] == log.new()
        two.release(port)
        assert isinstance(two.ask(asked), Full)
        assert [("refused", 10), ("released", 20)] == log.brief()
        others = (
            asked._replace(spans=((11, 11),)),
            asked._replace(explicit=False),
            asked._replace(protocol="udp"),
            asked._replace(range="display"),
            asked._replace(owner="vm-2"),
            asked._replace(labels={"k": "v", "a": "c"}),
            asked._replace(labels={}),
            asked._replace(host="kvm-08"),
            asked._replace(host=""),
        )
        for other in (*others, asked, *others):
            assert isinstance(two.ask(other), Full)
        assert [0, *[10] * 7, 11] == [number for _, number in log.brief()]

    def test_event_is_brief(self, world: _World, log: _Log) -> None:
        """Of a long owner an event keeps what fits into 512 bytes, and of labels that are longer together nothing."""
        one = world.open()
        for owner, kept in (
            ("x" * 512, "x" * 512),
            ("y" * 513, "y" * 512),
            ("\u4e2d" * 170 + "xx", "\u4e2d" * 170 + "xx"),
            ("\u4e2d" * 171, "\u4e2d" * 170),
            ("\U0001f6a2" * 128 + "x", "\U0001f6a2" * 128),
            ("xx" + "\U0001f6a2" * 128, "xx" + "\U0001f6a2" * 127),
            ('"' * 600, '"' * 512),
        ):
            one.release(*one.take(ask(10, 10, owner=owner)))
            assert isinstance(one.ask(ask(10, 10, 2, owner=owner)), Full)
            assert [kept] * 3 == [event.owner for event in log.new()]
        for owner, labels, told in (
            ("a", {"k": "v" * 511}, True),
            ("b", {"k": "v" * 512}, False),
            ("c", {"\u4e2d" * 80: "\u4e2d" * 90, "k": "v"}, True),
            ("d", {"\u4e2d" * 80: "\u4e2d" * 90, "kk": "v"}, False),
        ):
            (port,) = one.take(ask(10, 10, owner=owner, labels=labels))
            assert labels == world.port(10).labels
            one.release(port)
            assert isinstance(one.ask(ask(10, 10, 2, owner=owner, labels=labels)), Full)
            assert [labels if told else {}] * 3 == [event.labels for event in log.new()]

    def test_event_of_recovery(self, world: _World, log: _Log) -> None:
        """What a holder takes back is told, and so is what another loses by it."""
        one, two = world.open("one"), world.open("two")
        (port,) = two.take(ask(10, 10, owner="vm-2"))
        (second,) = two.take(ask(11, 11))
        log.new()
        asked = ask(10, 10, owner="vm-1", labels={"k": "v"}, host="kvm-07")
        lower, higher = Port(11, "tcp", second.fence - 1), Port(10, "tcp", port.fence + 1)
        assert exact(Claimed((lower,))) == exact(one.claim(Claim(lower, asked), Claim(higher, asked)))
        lost = Event("forced", 10, "tcp", "backup", "vm-2", {}, "two", two.holder.lease, port.fence, 0)
        back = Event(
            "recovered", 10, "tcp", "backup", "vm-1", {"k": "v"}, "one", one.holder.lease, higher.fence, 0, "kvm-07"
        )
        assert exact([lost, back]) == exact(log.new())
        one.claim(Claim(higher, asked))
        assert [] == log.new()

    def test_events_of_requests(self, world: _World, log: _Log) -> None:
        """What is done once is told once, however often it is asked for; and what is undone was released."""
        one = world.open("one")
        for _ in range(2):
            one.ask(ask(10, 11, 2), number=1, floor=1)
        assert [("acquired", 10), ("acquired", 11)] == log.brief()
        for _ in range(2):
            one.renew(1)
        one.number = 1
        assert [("released", 10), ("released", 11)] == log.brief()
        assert exact(Stale(1)) == exact(one.ask(ask(10, 11, 2), number=1, floor=1))
        (port,) = one.take(ask(10, 10, cooldown=LONG))
        log.new()
        for _ in range(2):
            one.release(port)
        assert [("released", 10)] == log.brief()
        assert exact(Marked(0)) == exact(one.mark(port))
        assert [] == log.new()

    def test_events_of_nothing(self, world: _World, log: _Log) -> None:
        """A step that changes no port tells nothing."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 10))
        log.new()
        stale = port._replace(fence=port.fence + 1)
        assert isinstance(two.ask(ask(10, 10), wait=Wait(LONG)), Queued)
        assert isinstance(world.store.preview(world.space, [ask(10, 10)]), Full)
        assert [exact(Released(0))] * 3 == [
            exact(reply) for reply in (one.release(stale), two.release(port), one.release())
        ]
        assert exact(Marked(0)) == exact(one.mark(stale))
        assert exact(False) == exact(world.force(10, fence=stale.fence))
        assert exact(False) == exact(world.store.drop(world.space))
        new = world.open("one", "b", supersede=one.holder.incarnation)
        assert exact(SUPERSEDED) == exact(one.release(port))
        assert exact(SUPERSEDED) == exact(one.close())
        assert exact(Renewed(False)) == exact(new.renew())
        assert exact(Reclaimed(False)) == exact(world.store.reclaim(world.space))
        assert [] == log.new()
        new.close()
        assert [("released", 10)] == log.brief()

    def test_events_in_parts(self, world: _World, log: _Log) -> None:
        """A log is read from its end back: the last so many, and from the cursor on what came since."""
        one = world.open("one")
        for _ in range(3):
            one.release(*one.take(ask(10, 10)))
        every = log.part()
        assert ["acquired", "released"] * 3 == [event.kind for event in every.events]
        last = log.part(limit=2)
        assert [event.fence for event in every.events[-2:]] == [event.fence for event in last.events]
        assert (2, every.cursor) == (len(last.events), last.cursor)
        cursor = last.cursor
        assert exact(Events(world.space, (), cursor)) == exact(log.part(cursor))
        one.take(ask(11, 12, 2))
        assert [11, 12] == sorted(event.number for event in log.part(cursor).events)
        assert 1 == len(log.part(cursor, limit=1).events)
        none, some = world.store.events({f"{world.space}-none": "", world.space: cursor}, 10)
        assert isinstance(none, Events)
        assert isinstance(some, Events)
        assert ((f"{world.space}-none", 0), (world.space, 2)) == (
            (none.space, len(none.events)),
            (some.space, len(some.events)),
        )
        assert [] == world.store.events({}, 10)

    def test_events_have_an_age(self, world: _World, log: _Log) -> None:
        """An event says how long ago it was."""
        world.open("one").take(ask(10, 10))
        before = log.part().events[0].age
        world.clock.advance(world.clock.ttl)
        assert log.part().events[0].age - before >= 0.99 * world.ttl

    def test_events_are_bounded(self, world: _World, log: _Log, kept: int) -> None:
        """A log keeps about as many events as it is to, the last ones; those of others are not its."""
        neighbour = _World(world.store, f"{world.space}-b", world.clock).open()
        one = world.open()
        most = min(kept, 250)
        for _ in range(-(-kept // most) + 1):
            one.release(*one.take(ask(1, most, most)))
            neighbour.take(ask())
        (last,) = one.take(ask(9, 9))
        events = log.part().events
        assert kept <= len(events) <= kept + 200
        assert ("acquired", last.fence) == (events[-1].kind, events[-1].fence)
        (others,) = world.store.events({neighbour.space: ""}, 10_000)
        assert isinstance(others, Events)
        assert {"acquired"} == {event.kind for event in others.events}

    def test_events_are_dropped(self, world: _World, log: _Log) -> None:
        """A space that is removed takes its log with it, and one that is begun anew has its own."""
        one = world.open()
        one.take(ask(10, 10))
        one.close()
        before = log.part()
        assert exact(True) == exact(world.store.drop(world.space))
        assert () == log.part().events
        world.open().take(ask(11, 11))
        assert [11] == [event.number for event in log.part().events]
        assert 2 == len(before.events)

    def test_events_change_nothing(self, world: _World, log: _Log) -> None:
        """Reading a log reclaims nothing and makes no space known."""
        assert () == log.part().events
        assert world.space not in world.store.spaces()
        world.open(ttl=world.ttl).take(ask(10, 10))
        start = world.clock.time()
        while world.view().leases[0].expires_in > 0:
            assert world.clock.time() - start < 3 * world.clock.ttl
            world.clock.advance(world.clock.ttl / 4)
        before = world.settled()
        assert [("acquired", 10)] == log.brief()
        assert [] == log.new()
        assert before == world.settled()

    # ------------------------------------------------------------ hostile names

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_hostile_text(self, world: _World, text: str) -> None:
        """Whatever people write as instance, owner, range or label is kept as it is, and matches only itself."""
        one, two = world.open(text), world.open("two")
        (port,) = one.take(Ask(text, ((10, 10),), 1, "tcp", 0, text, {text: text, "b": ""}))
        (plain,) = two.take(ask(11, 11))
        view = PortView(
            10, "tcp", "held", text, text, {text: text, "b": ""}, text, one.holder.lease, port.fence, 0, None
        )
        first, second = world.view().ports
        assert exact(view) == exact(first._replace(age=0))
        assert ("two", plain.fence) == (second.instance, second.fence)
        held = one.held()
        assert isinstance(held, Held)
        assert exact((view,)) == exact(tuple(port._replace(age=0) for port in held.ports))
        full = two.ask(one_port(10))
        assert isinstance(full, Full)
        assert full.holder is not None
        assert exact(view) == exact(full.holder._replace(age=0))
        if Capability.EVENTS in world.store.capabilities and len(text) < 200:  # longer ones are brief
            told = Event("acquired", 10, "tcp", *view[3:7], one.holder.lease, port.fence, 0)
            refused = Event("refused", 10, "tcp", "backup", "", {}, "two", two.holder.lease, 0, 0)
            assert exact([told, refused]) == exact(_Log(world).new()[:2])
        assert {text, "two"} == {lease.instance for lease in world.view().leases}
        assert world.space in world.store.spaces(text)
        assert exact(Opened(one.holder.lease, one.holder.incarnation, 1)) == exact(world.try_open(text))
        new = world.open(text, token="b", supersede=one.holder.incarnation)
        assert exact(SUPERSEDED) == exact(one.renew())
        assert exact(Released(1)) == exact(new.release(port))
        assert exact(Closed(False)) == exact(new.close())
        assert exact(Renewed(False)) == exact(two.renew())

    @pytest.mark.parametrize("name", ["%7Dx%7B", "%2A", "a:b", "host", "%00", "x" * 200])
    def test_hostile_space(self, world: _World, name: str) -> None:
        """Spaces whose names resemble one another share nothing."""
        space = f"{world.space}{name}"
        one = _World(world.store, space, world.clock).open()
        two = world.open()
        assert [10809] == numbers(one.take(ask()))
        assert [10809] == numbers(two.take(ask()))
        views = world.store.read([space, world.space])
        assert [space, world.space] == [view.space for view in views if isinstance(view, SpaceView)]
        assert {space, world.space} <= set(world.store.spaces())

    @pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE)
    def test_hostile_owner_at_its_limit(self, world: _World, text: str) -> None:
        """An owner is counted as who it is, also where it waits, cools, or is marked."""
        one = world.open(text)
        mine = ask(10, 20, owner=text, labels={text: text}, host=text, limit=1, cooldown=LONG, rotate=1)
        (first,) = one.take(mine)
        assert exact(Full(0, None, False, "limit")) == exact(one.ask(mine))
        (second,) = one.take(mine._replace(owner=text + " "), mine._replace(owner=""))[:1]
        assert exact(Marked(1)) == exact(one.mark(first, host=text))
        assert exact(Released(1)) == exact(one.release(second))
        foreign, cooling = world.view().ports[:2]
        expected = (
            PortView(10, "tcp", "foreign", "backup", "", {}, text, one.holder.lease, first.fence, 0, 0, text),
            second.number,
            (text + " ", {text: text}, text),
        )
        assert exact(expected) == exact(
            (
                foreign._replace(age=0, free_in=foreign.free_in and 0),
                cooling.number,
                (cooling.owner, cooling.labels, cooling.host),
            )
        )
        assert [13] == numbers(one.take(mine))
        assert one.queue(ask(10, 10, owner=text)).first

    @pytest.mark.parametrize(
        ("one", "other"),
        [(("ab", "c"), ("a", "bc")), (("a", ""), ("", "a")), (("a", "b"), ("b", "a")), (("a", "0"), ("a", "00"))],
    )
    def test_limits_of_others(self, world: _World, one: tuple[str, str], other: tuple[str, str]) -> None:
        """Owners and ranges that resemble one another are not counted together."""
        asks = [Ask(range, ((10, 20),), owner=owner, limit=1) for range, owner in (one, other)]
        actor = world.open()
        assert [10, 11] == numbers(actor.take(*asks))
        assert [exact(Full(0, None, False, "limit"))] * 2 == [exact(actor.ask(each)) for each in asks]

    # ------------------------------------------------------------ together

    def test_together(self, world: _World) -> None:
        """Calls that run at the same time are steps one after the other: no port twice, none left out."""
        actors = [world.open(f"i{i}") for i in range(8)]
        calls = [
            ("acquire", (world.space, actor.holder, Request(number, 1), [ask(10, 99)]))
            for number in range(1, 13)
            for actor in actors
        ]
        replies = self.together(world.store, calls)
        granted = [reply for reply in replies if isinstance(reply, Granted)]
        assert 90 == len(granted)
        assert 6 == sum(isinstance(reply, Full) for reply in replies)
        assert list(range(10, 100)) == sorted(reply.ports[0].number for reply in granted)
        assert 90 == len({reply.ports[0].fence for reply in granted})

    def test_together_opens(self, world: _World) -> None:
        """Of several processes that open one instance at the same time, one gets it and all others are told."""
        calls = [("open", (world.space, "one", f"{i:02x}")) for i in range(8)]
        replies = self.together(world.store, calls)
        (opened,) = [reply for reply in replies if isinstance(reply, Opened)]
        occupied = Occupied(opened.incarnation, f"{replies.index(opened):02x}")
        assert [exact(occupied)] * 7 == [exact(reply) for reply in replies if not isinstance(reply, Opened)]

    def test_together_in_the_queue(self, world: _World) -> None:
        """Those who come at the same time have a place each, and one of them is the first."""
        world.open("one").take(ask(10, 10))
        actors = [world.open(f"i{i}") for i in range(8)]
        wait = Wait(LONG)
        calls = [("acquire", (world.space, actor.holder, Request(1, 1), [ask(10, 10)], wait)) for actor in actors]
        replies = self.together(world.store, calls)
        assert [Queued] * 8 == [type(reply) for reply in replies]
        tickets = sorted((reply.ticket, reply.first) for reply in replies)
        assert [True] + [False] * 7 == [first for _, first in tickets]
        assert 8 == len({ticket for ticket, _ in tickets}) == world.view().waiting

    def test_two_objects(self, world: _World, other: _World) -> None:
        """What one backend object does, another one on the same store sees and respects."""
        one, two = world.open("one"), other.open("two")
        ports = one.take(ask(10, 10))
        assert isinstance(two.ask(ask(10, 10)), Full)
        assert world.settled() == other.settled()
        assert exact(_Log(world).new()) == exact(_Log(other).new())
        assert world.space in other.store.spaces("one")
        assert exact(Occupied(one.holder.incarnation, "a")) == exact(other.try_open("one", "b"))
        new = other.open("one", "b", supersede=one.holder.incarnation)
        assert exact(SUPERSEDED) == exact(one.release(*ports))
        assert exact(Released(1)) == exact(new.release(*ports))
        assert [10] == numbers(two.take(ask(10, 10)))
        assert exact(Closed(False)) == exact(two.close())
        assert exact(Closed(False)) == exact(
            _Actor(world.store, world.space, "one", Opened(*new.holder[1:], 0)).close()
        )
        assert ((), ()) == (world.view().leases, world.view().ports)

    def test_leases_outlive_the_object(self, world: _World, other: _World) -> None:
        """Giving up a backend object touches no lease."""
        one = other.open("one")
        one.take(ask(10, 10))
        other.store.close()
        assert (["one"], {("tcp", 10): "held"}) == ([lease.instance for lease in world.view().leases], world.states())

    def test_name(self, world: _World) -> None:
        """A backend has a name to be shown, and declares what it can."""
        assert world.store.name
        assert world.store.capabilities <= frozenset(Capability)


def _no_second(backend: Backend | AsyncBackend) -> Any:
    if Capability.PROCESSES in backend.capabilities:
        pytest.fail("override the fixture backend2: this backend declares Capability.PROCESSES")
    pytest.skip("one object has the store for itself")


class BackendConformance(_Conformance):
    """The suite for a `Backend`. Override ``backend``, and what else applies; the suite closes what it gets."""

    @pytest.fixture
    def backend(self) -> Backend:
        raise NotImplementedError("override the fixture backend")

    @pytest.fixture
    def backend2(self, backend: Backend) -> Backend:
        """Another backend object on the same store."""
        return _no_second(backend)  # type: ignore[no-any-return]

    @pytest.fixture
    def subject(self, backend: Backend) -> Iterator[Backend]:
        with backend:
            yield backend

    @pytest.fixture
    def subject2(self, backend2: Backend) -> Iterator[Backend]:
        with backend2:
            yield backend2

    def together(self, store: Backend, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        with ThreadPoolExecutor(8) as pool:
            return list(pool.map(lambda call: _call(store, *call), calls))


class AsyncBackendConformance(_Conformance):
    """The suite for an `AsyncBackend`. The fixture ``backend`` may also return an awaitable of one.

    The suite runs everything in one event loop per test, and closes what it gets.
    """

    @pytest.fixture
    def backend(self) -> Any:
        raise NotImplementedError("override the fixture backend")

    @pytest.fixture
    def backend2(self, subject: _Blocking) -> Any:
        """Another backend object on the same store."""
        return _no_second(subject.asynchronous)

    @pytest.fixture
    def runner(self) -> Iterator[asyncio.Runner]:
        """The event loop."""
        with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:
            runner.get_loop()
            yield runner

    @pytest.fixture
    def subject(self, runner: asyncio.Runner, backend: Any) -> Iterator[_Blocking]:
        with _Blocking(runner, _awaited(runner, backend)) as subject:
            yield subject

    @pytest.fixture
    def subject2(self, runner: asyncio.Runner, backend2: Any) -> Iterator[_Blocking]:
        with _Blocking(runner, _awaited(runner, backend2)) as subject:
            yield subject

    def together(self, store: Backend, calls: Sequence[tuple[str, tuple[Any, ...]]]) -> list[Any]:
        assert isinstance(store, _Blocking)
        backend = store.asynchronous

        async def gather() -> list[Any]:
            return list(await asyncio.gather(*(_call(backend, *call) for call in calls)))

        return store._run(gather())

    def while_waiting(self, watch: Watch, seconds: float, act: Callable[[], Any]) -> None:
        assert isinstance(watch, _BlockingWatch)

        async def begin() -> asyncio.Future[None]:
            return asyncio.ensure_future(watch.asynchronous.wait(seconds))

        async def end(waiting: asyncio.Future[None]) -> None:
            await waiting

        waiting = watch._run(begin())
        act()
        watch._run(end(waiting))

    @pytest.mark.parametrize("switches", range(12))
    def test_cancelled(self, world: _World, switches: int) -> None:
        """A call that is cancelled leaves no wrong reply behind for the next; abandoning it undoes what it did."""
        one = world.open()
        store = world.store
        assert isinstance(store, _Blocking)
        backend = store.asynchronous

        async def cancel() -> None:
            call = backend.acquire(world.space, one.holder, Request(1, 1), [ask(10, 10)])
            task = asyncio.ensure_future(call)
            for _ in range(switches):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

        store._run(cancel())
        assert exact(Renewed(False)) == exact(one.renew(1))
        assert exact(Stale(1)) == exact(one.ask(ask(10, 10), number=1))
        assert exact(Released(0)) == exact(one.release())
        assert [10] == numbers(_ports(one.ask(ask(10, 10), number=2, floor=1)))


def _ports(reply: Granted | Full | Queued | Recovering | Gone | Stale) -> tuple[Port, ...]:
    assert isinstance(reply, Granted)
    return reply.ports


def _call(backend: Backend | AsyncBackend, method: str, args: tuple[Any, ...]) -> Any:
    if method == "open":
        space, instance, token = args
        return backend.open(space, instance, token=token, ttl=LONG)
    return getattr(backend, method)(*args)


def _awaited(runner: asyncio.Runner, value: Any) -> AsyncBackend:
    async def wait(value: Coroutine[Any, Any, T]) -> T:
        return await value

    return runner.run(wait(value)) if inspect.isawaitable(value) else value  # type: ignore[arg-type, no-any-return]
