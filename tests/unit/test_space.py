"""The rules of one space, one after the other, on a clock that stands still until it is moved.

The letters are those of the guarantees: S safety, L liveness, H the holder's side.
"""

from __future__ import annotations

import copy
import dataclasses
from collections import Counter
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clusterports import _space
from clusterports._space import GRAIN, MAX_GAP, STEP, Space, member
from clusterports.abc import (
    Ask,
    Claim,
    Claimed,
    Closed,
    Event,
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
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterports.abc import Protocol4

SECOND = 1_000_000
MINUTE = 60 * SECOND
DAY = 86_400 * SECOND
TTL = 30 * SECOND
QUARANTINE = 15 * SECOND
WINDOW = 4 * SECOND
START = 1_750_000_000 * SECOND


@dataclasses.dataclass
class Actor:
    """A process with a lease, which numbers its requests."""

    world: World
    holder: Holder
    number: int = 0

    def ask(
        self,
        *asks: Ask,
        number: int | None = None,
        floor: int | None = None,
        wait: Wait | None = None,
        knew: int = 0,
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        if number is None:
            number = self.number = self.number + 1
        request = Request(number, floor or number, knew)
        return self.world.space.acquire(self.world.now, self.holder, request, asks, wait)

    def take(self, *asks: Ask, floor: int | None = None) -> tuple[Port, ...]:
        reply = self.ask(*asks, floor=floor)
        assert isinstance(reply, Granted)
        return reply.ports

    def queue(self, asked: Ask, ticket: int = 0, window: int = WINDOW) -> Queued:
        reply = self.ask(asked, wait=Wait(window, ticket))
        assert isinstance(reply, Queued)
        return reply

    def mark(
        self, *ports: Port, range: str = "backup", duration: int = 30 * SECOND, most: int = 100, host: str = ""
    ) -> Marked | Gone:
        return self.world.space.mark_foreign(
            self.world.now, self.holder, ports, range=range, duration=duration, most=most, host=host
        )

    def claim(
        self, *ports: Port, asked: Ask | None = None, number: int | None = None, floor: int | None = None
    ) -> Claimed | Gone:
        if number is None:
            number = self.number = self.number + 1
        claims = [Claim(port, asked or ask()) for port in ports]
        return self.world.space.claim(self.world.now, self.holder, Request(number, floor or number), claims)

    def renew(
        self,
        *abandoned: int,
        floor: int = 1,
        left: tuple[int, ...] = (),
        heard: tuple[int, ...] = (),
        ports: int = -1,
        knew: int = 0,
    ) -> Renewed | Gone:
        renewal = Renewal("host:a", self.holder, floor, abandoned, left, heard, ports, knew)
        return self.world.space.renew(self.world.now, renewal)

    def release(self, *ports: Port) -> Released | Gone:
        return self.world.space.release(self.world.now, self.holder, ports)

    def close(self, *, quarantine: bool = False) -> Closed | Gone:
        return self.world.space.close(self.world.now, self.holder, quarantine=quarantine)

    def held(self) -> Held | Gone:
        return self.world.space.held(self.holder, self.world.now)


@dataclasses.dataclass
class World:
    space: Space
    now: int = START

    def open(
        self, instance: str = "one", token: str = "a", *, ttl: int = TTL, supersede: int = 0, knew: int = 0
    ) -> Actor:
        reply = self.try_open(instance, token, ttl=ttl, supersede=supersede, knew=knew)
        assert isinstance(reply, Opened)
        return Actor(self, Holder(instance, reply.lease, reply.incarnation))

    def try_open(
        self, instance: str = "one", token: str = "a", *, ttl: int = TTL, supersede: int = 0, knew: int = 0
    ) -> Opened | Occupied:
        return self.space.open(self.now, instance, token, ttl, supersede, knew)

    def lose(self, kept: Space | None = None) -> None:
        """The store forgets everything, or what it heard since this copy was made."""
        self.now += SECOND
        self.space = copy.deepcopy(kept) if kept else Space("host:a", max_gap=self.space._max_gap)

    def copied(self) -> Space:
        return copy.deepcopy(self.space)

    def visit(self) -> bool:
        return self.space.reclaim(self.now).backlog

    def wait(self, duration: int) -> None:
        """Time passes while somebody visits the space often enough: no silence."""
        end = self.now + duration
        while self.now < end:
            self.now = min(end, self.now + 5 * SECOND)
            self.visit()

    def silence(self, duration: int) -> None:
        """Time passes, and then somebody visits the space."""
        self.now += duration
        self.visit()

    def view(self) -> SpaceView:
        return self.space.view(self.now)

    def port(self, number: int) -> PortView:
        (port,) = (port for port in self.view().ports if port.number == number)
        return port

    def force(self, port: PortView) -> bool:
        return self.space.force(self.now, port)

    def bury(self, *actors: Actor) -> None:
        self.space.bury(self.now, [actor.holder.lease for actor in actors])

    def preview(self, *asks: Ask) -> Granted | Full | Recovering:
        return self.space.preview(self.now, asks)

    def stirred(self) -> bool:
        """Whether somebody in the queue may have got its turn since the last call."""
        stirred, self.space.stirred = self.space.stirred, False
        return stirred

    def states(self) -> dict[str, str]:
        return {member(port.protocol, port.number): port.state for port in self.view().ports}

    def settled(self) -> SpaceView:
        """The view without what changes by looking at it later."""
        view = self.view()
        return view._replace(
            leases=tuple(lease._replace(expires_in=0) for lease in view.leases),
            ports=tuple(port._replace(age=0) for port in view.ports),
        )


@pytest.fixture(params=[None, MAX_GAP], ids=["memory", "server"])
def world(request: pytest.FixtureRequest) -> World:
    """A space of each kind of store: one that cannot be away from its clients, and one that can."""
    return World(Space("host:a", max_gap=request.param))


@pytest.fixture
def server() -> World:
    return World(Space("host:a", max_gap=MAX_GAP))


@pytest.fixture
def memory() -> World:
    return World(Space("host:a"))


def ask(first: int = 10809, last: int = 10872, count: int = 1, **kwargs: object) -> Ask:
    kwargs.setdefault("quarantine", QUARANTINE)
    return Ask("backup", ((first, last),), count, **kwargs)  # type: ignore[arg-type]


def one_port(number: int, **kwargs: object) -> Ask:
    """An explicit ask."""
    return ask(number, number, 1, explicit=True, **kwargs)


def numbers(ports: Iterable[Port]) -> list[int]:
    return [port.number for port in ports]


EXPIRED = Gone("expired")
SUPERSEDED = Gone("superseded")
UNKNOWN = Gone("unknown")


class TestPick:
    """Which numbers an ask gets (S1, S6)."""

    def test_lowest(self, world: World) -> None:
        """The lowest free numbers of the span are given, and a released one is the next to be given."""
        one = world.open()
        first, second, third = one.take(ask()) + one.take(ask()) + one.take(ask())
        assert [10809, 10810, 10811] == numbers((first, second, third))
        assert Released(1) == one.release(second)
        assert [10810] == numbers(one.take(ask()))
        assert [10812] == numbers(one.take(ask()))

    def test_range_of_two(self, world: World) -> None:
        """A full range is answered so, an explicit ask with what is known of the holder; a release ends that."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10809, 10810, owner="vm-1", labels={"job": "x"}))
        world.wait(SECOND)
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
            age=SECOND,
            free_in=None,
        )
        assert Full(0, holder, False) == two.ask(one_port(10809))
        assert [10810] == numbers(two.take(ask(10809, 10810)))
        assert Full(0, None, False) == two.ask(ask(10809, 10810))
        assert Released(1) == one.release(port)
        assert [10809] == numbers(two.take(ask(10809, 10810)))

    def test_explicit_cooling(self, world: World) -> None:
        """Of a cooling explicit port the reply says for how long it will stay closed."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10809, 10809))
        one.close(quarantine=True)
        world.wait(SECOND)
        full = two.ask(one_port(10809))
        assert isinstance(full, Full)
        assert full.holder is not None
        assert ("cooling", "one", QUARANTINE - SECOND) == (
            full.holder.state,
            full.holder.instance,
            full.holder.free_in,
        )

    def test_spans_in_order(self, world: World) -> None:
        """The first span is used up before the next, whichever is higher."""
        one = world.open()
        spans = Ask("backup", ((20, 21), (10, 11), (30, 30)), 4)
        assert [20, 21, 10, 11] == numbers(one.take(spans))
        assert [30] == numbers(one.take(spans._replace(count=1)))

    def test_overlapping_spans(self, world: World) -> None:
        """Where spans of one ask overlap, no number is given twice."""
        asked = Ask("backup", ((11, 12), (10, 14), (12, 12)), 5)
        assert [11, 12, 10, 13, 14] == numbers(world.open().take(asked))

    def test_no_spans(self, world: World) -> None:
        """An ask without any span is full."""
        assert Full(0, None, False) == world.open().ask(Ask("backup", ()))

    def test_count_is_all_or_nothing(self, world: World) -> None:
        """One port too few, and nothing is given and nothing changed (S6)."""
        one = world.open()
        one.take(ask(10, 10))
        before = world.settled()
        assert Full(0, None, False) == one.ask(ask(10, 14, 5))
        assert before == world.settled()
        assert [11, 12, 13, 14] == numbers(one.take(ask(10, 14, 4)))

    def test_protocols(self, world: World) -> None:
        """tcp and udp have numbers of their own."""
        one = world.open()
        assert [5, 5] == numbers(one.take(ask(5, 5)) + one.take(ask(5, 5, protocol="udp")))
        assert isinstance(one.ask(ask(5, 5)), Full)
        assert isinstance(one.ask(ask(5, 5, protocol="udp")), Full)

    def test_several_asks(self, world: World) -> None:
        """Asks of one step are met in order, also where they overlap, and the ports come in that order."""
        one = world.open()
        ports = one.take(ask(10, 12, 2), ask(10, 20, protocol="udp"), ask(11, 12), ask(12, 14))
        assert [10, 11, 10, 12, 13] == numbers(ports)
        assert ["tcp", "tcp", "udp", "tcp", "tcp"] == [port.protocol for port in ports]

    def test_several_asks_are_all_or_nothing(self, world: World) -> None:
        """The reply names the ask that could not be met; what the asks before it had found is free (S6)."""
        one = world.open()
        before = world.settled()
        assert Full(2, None, False) == one.ask(ask(10, 11, 2), ask(1, 9, 9, protocol="udp"), ask(10, 11))
        assert before == world.settled()
        assert [10, 11] == numbers(one.take(ask(10, 11, 2)))
        assert 9 == len(one.take(ask(1, 9, 9, protocol="udp")))

    def test_same_explicit_port_twice(self, world: World) -> None:
        """Two asks of one step for the same port cannot both be met, and nobody is said to hold it."""
        assert Full(1, None, False) == world.open().ask(one_port(10), one_port(10))

    @pytest.mark.parametrize("number", [1, 1023, 65535])
    def test_bounds(self, world: World, number: int) -> None:
        """Every port number can be had."""
        assert [number] == numbers(world.open().take(ask(number, number)))

    def test_whole_range(self, world: World) -> None:
        """A range of 64,512 ports can be given to the last one."""
        one = world.open()
        assert list(range(1024, 65536)) == numbers(one.take(ask(1024, 65535, 64512)))
        assert Full(0, None, False) == one.ask(ask(1024, 65535))

    def test_labels_are_copied(self, world: World) -> None:
        """What the caller does with its labels afterwards does not alter what was recorded."""
        one, labels = world.open(), {"job": "x"}
        one.take(ask(labels=labels))
        labels["job"] = "y"
        assert {"job": "x"} == world.view().ports[0].labels


class TestFence:
    """Fences only grow (S3)."""

    def test_servers_time_or_next(self, world: World) -> None:
        """A fence is the time in microseconds, or one more than the last when that is later."""
        one = world.open()
        assert START == one.holder.lease == one.holder.incarnation
        assert [START + 1, START + 2] == [port.fence for port in one.take(ask(count=2))]
        assert [START + 3] == [port.fence for port in one.take(ask())]
        world.wait(SECOND)
        assert [START + SECOND] == [port.fence for port in one.take(ask())]
        assert START + SECOND == world.view().fence

    def test_data_lost(self, world: World) -> None:
        """A store that lost its data goes on above all fences of before."""
        before = world.open().take(ask(count=64))[-1].fence
        again = World(Space("host:a", max_gap=world.space._max_gap), world.now + SECOND)
        assert again.open().holder.lease > before

    def test_clock_back(self, world: World) -> None:
        """A step back of the store's clock does not turn fences back (L4)."""
        one = world.open()
        (first,) = one.take(ask())
        world.now -= DAY
        (second,) = one.take(ask())
        assert first.fence + 1 == second.fence

    def test_nothing_given(self, world: World) -> None:
        """What was not given uses up no fence."""
        one = world.open()
        one.take(ask(10, 10))
        fence = world.view().fence
        one.ask(ask(10, 10))
        assert fence == world.view().fence


class TestRequest:
    """A lost reply, a late request, a request that comes twice (S4, S5)."""

    def test_repeated(self, world: World) -> None:
        """A request that was granted is answered with the same ports, however often it comes, and counts once."""
        one = world.open()
        first = one.ask(ask(count=2), number=1)
        world.wait(SECOND)
        other = one.ask(ask(), number=2, floor=1)
        assert first == one.ask(ask(count=2), number=1)
        assert other == one.ask(ask(), number=2, floor=1)
        assert 3 == len(world.view().ports)

    def test_repeated_with_full_range(self, world: World) -> None:
        """The repetition of a granted request is answered also when nothing is free any more."""
        one = world.open()
        first = one.ask(ask(10, 10), number=1)
        assert first == one.ask(ask(10, 10), number=1)

    def test_refused_is_settled(self, world: World) -> None:
        """A request that found nothing is stale from then on, so a late copy is not granted; a new one may be."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        assert isinstance(one.ask(ask(10, 10), number=2), Full)
        one.release(port)
        assert Stale(2) == one.ask(ask(10, 10), number=2)
        assert isinstance(one.ask(ask(10, 10), number=3), Granted)

    def test_settled(self, world: World) -> None:
        """A request below the floor is stale, whether it was carried out before or not."""
        one = world.open()
        one.ask(ask(), number=1)
        one.ask(ask(), number=3, floor=3)
        before = world.settled()
        assert Stale(1) == one.ask(ask(), number=1)
        assert Stale(2) == one.ask(ask(), number=2)
        assert before == world.settled()

    def test_settled_by_heartbeat(self, world: World) -> None:
        """A heartbeat settles requests as an acquire does, and a late one with a lower floor unsettles none."""
        one = world.open()
        one.ask(ask(), number=1)
        assert Renewed(False) == one.renew(floor=3)
        assert Renewed(False) == one.renew(floor=1)
        assert Stale(1) == one.ask(ask(), number=1)
        assert Stale(2) == one.ask(ask(), number=2)
        assert isinstance(one.ask(ask(), number=3), Granted)

    def test_records_are_dropped(self, world: World) -> None:
        """Of settled requests no record is kept."""
        one = world.open()
        for _ in range(100):
            one.take(ask(1, 65535))
        assert [100] == list(world.space._leases[one.holder.lease].done)
        one.renew(1, 100, floor=101)
        assert [] == list(world.space._leases[one.holder.lease].done)

    def test_abandoned_after(self, world: World) -> None:
        """A request that was carried out and then abandoned is undone; its repetition is stale."""
        one = world.open()
        one.ask(ask(count=3), number=1)
        kept = one.ask(ask(), number=2, floor=1)
        assert isinstance(kept, Granted)
        assert Renewed(False) == one.renew(1)
        assert numbers(kept.ports) == [port.number for port in world.view().ports]
        assert Stale(1) == one.ask(ask(count=3), number=1)
        assert kept == one.ask(ask(), number=2, floor=1)

    def test_abandoned_before(self, world: World) -> None:
        """A request that is abandoned before it arrives is refused when it does."""
        one = world.open()
        one.renew(1)
        assert Stale(1) == one.ask(ask(), number=1)
        assert () == world.view().ports

    def test_abandoned_twice(self, world: World) -> None:
        """The same heartbeat once more does no harm to whoever has the ports now."""
        one, two = world.open("one"), world.open("two")
        one.ask(ask(), number=1)
        one.renew(1)
        (port,) = two.take(ask())
        one.renew(1)
        assert [port.fence] == [view.fence for view in world.view().ports]

    def test_abandoned_is_bound_to_fence(self, world: World) -> None:
        """Undoing a request frees only what it had got, not what its holder got under the same number later."""
        one = world.open()
        first = one.ask(ask(10, 10), number=1)
        assert isinstance(first, Granted)
        one.release(*first.ports)
        second = one.ask(ask(10, 10), number=2, floor=1)
        assert isinstance(second, Granted)
        one.renew(1)
        assert [second.ports[0].fence] == [view.fence for view in world.view().ports]

    def test_abandoned_below_floor(self, world: World) -> None:
        """A settled request cannot be abandoned any more: a late heartbeat does not take its ports."""
        one = world.open()
        (port,) = one.take(ask())
        one.renew(floor=2)
        one.renew(1)
        assert [port.fence] == [view.fence for view in world.view().ports]

    def test_numbers_belong_to_incarnation(self, world: World) -> None:
        """A newer incarnation counts its requests from 1 again."""
        old = world.open()
        first = old.take(ask(), ask())
        new = world.open(token="b", supersede=old.holder.incarnation)
        assert {10811} == set(numbers(new.take(ask()))) - set(numbers(first))


class TestOpen:
    """One live lease per instance, one process behind it (H2, H3, S5)."""

    def test_repeated(self, world: World) -> None:
        """The same call once more is answered alike and changes nothing, not even the time that is left."""
        one = world.open()
        one.take(ask(count=2))
        world.wait(SECOND)
        before = world.view()
        assert Opened(one.holder.lease, one.holder.incarnation, 2) == world.try_open()
        assert before == world.view()

    def test_occupied(self, world: World) -> None:
        """Another process is told who has the lease in which incarnation, and changes nothing."""
        one = world.open()
        before = world.view()
        assert Occupied(one.holder.incarnation, "a") == world.try_open(token="b")
        assert before == world.view()

    def test_resume(self, world: World) -> None:
        """Whoever supersedes the incarnation that it saw gets the lease with its ports, for a full TTL."""
        old = world.open()
        ports = old.take(ask(count=2))
        world.wait(TTL - GRAIN)
        reply = world.try_open(token="b", supersede=old.holder.incarnation)
        assert isinstance(reply, Opened)
        assert (old.holder.lease, 2) == (reply.lease, reply.ports)
        assert reply.incarnation > old.holder.incarnation
        new = Actor(world, Holder("one", reply.lease, reply.incarnation))
        held = new.held()
        assert isinstance(held, Held)
        assert [port.fence for port in ports] == [view.fence for view in held.ports]
        assert [TTL] == [lease.expires_in for lease in world.view().leases]
        assert Released(2) == new.release(*ports)

    def test_resume_may_change_ttl(self, world: World) -> None:
        """The newer incarnation's TTL counts from then on."""
        old = world.open()
        world.open(token="b", ttl=3 * TTL, supersede=old.holder.incarnation)
        assert [(3 * TTL, 3 * TTL)] == [(lease.ttl, lease.expires_in) for lease in world.view().leases]

    def test_older_incarnation_is_fenced(self, world: World) -> None:
        """Every step of the older incarnation is refused, says so, and changes nothing (S2)."""
        old = world.open()
        ports = old.take(ask(count=2))
        world.open(token="b", supersede=old.holder.incarnation)
        before = world.view()
        assert [SUPERSEDED] * 6 == [
            old.ask(ask()),
            old.ask(ask(count=2), number=1),
            old.renew(1, floor=9),
            old.release(*ports),
            old.close(),
            old.held(),
        ]
        assert before == world.view()

    def test_supersedes_only_what_was_seen(self, world: World) -> None:
        """A take-over that names another incarnation than the present one is refused."""
        first = world.open()
        second = world.open(token="b", supersede=first.holder.incarnation)
        assert Occupied(second.holder.incarnation, "b") == world.try_open(token="c", supersede=first.holder.incarnation)
        assert Occupied(second.holder.incarnation, "b") == world.try_open(
            token="c", supersede=second.holder.incarnation + 1
        )

    def test_late(self, world: World) -> None:
        """An open that comes late does not take the lease back from the newer incarnation."""
        old = world.open(token="a")
        new = world.open(token="b", supersede=old.holder.incarnation)
        assert Occupied(new.holder.incarnation, "b") == world.try_open(token="a")
        assert Occupied(new.holder.incarnation, "b") == world.try_open(token="a", supersede=old.holder.incarnation)
        assert Renewed(False) == new.renew()

    def test_take_over_repeated(self, world: World) -> None:
        """The take-over once more is answered alike."""
        old = world.open(token="a")
        reply = world.try_open(token="b", supersede=old.holder.incarnation)
        assert reply == world.try_open(token="b", supersede=old.holder.incarnation)

    def test_after_expiry(self, world: World) -> None:
        """Once the lease has run out its instance begins anew, whatever incarnation it names."""
        old = world.open()
        old.take(ask(count=2))
        world.wait(TTL)
        reply = world.try_open(token="a", supersede=old.holder.incarnation)
        assert isinstance(reply, Opened)
        assert (True, True, 0) == (reply.lease > old.holder.lease, reply.incarnation == reply.lease, reply.ports)
        assert EXPIRED == old.renew()

    def test_instances(self, world: World) -> None:
        """Each instance has a lease of its own; nobody can act on another's with the name alone."""
        one, two = world.open("one"), world.open("two")
        assert one.holder.lease != two.holder.lease
        forged = Actor(world, two.holder._replace(lease=one.holder.lease))
        assert UNKNOWN == forged.renew()

    def test_draining_under_the_same_name(self, world: World) -> None:
        """A lease of 300 ports that ran out drains on while a new one lives under the same instance name."""
        old = world.open()
        old.take(ask(1, 300, 300))
        world.wait(TTL)
        assert {"held": 236, "cooling": 64} == count(world)
        new = world.open()
        assert Opened(new.holder.lease, new.holder.lease, 0) == world.try_open()
        (port,) = new.take(ask(1, 400))
        assert 301 == port.number
        assert [(old.holder.lease, True), (new.holder.lease, True)] == [
            (lease.lease, world.space.has(lease.instance)) for lease in world.view().leases
        ]
        while world.visit():
            pass
        assert [new.holder.lease] == [lease.lease for lease in world.view().leases]
        assert Renewed(False) == new.renew()
        world.wait(QUARANTINE)
        while world.visit():
            pass
        assert [301] == [view.number for view in world.view().ports]
        assert Closed(False) == new.close()
        assert not world.space.has("one")

    def test_draining_outlives_the_newer(self, world: World) -> None:
        """A lease that ran out drains to its end also when a newer one of its name came and went meanwhile."""
        world.open().take(ask(1, 300, 300, quarantine=0))
        world.wait(TTL)
        assert Closed(False) == world.open().close()
        while world.visit():
            pass
        assert SpaceView("host:a", world.view().fence, (), ()) == world.view()


class TestRelease:
    """Only the holder frees (S2)."""

    def test_once(self, world: World) -> None:
        """A port is free at once; releasing it again frees nothing."""
        one = world.open()
        ports = one.take(ask(count=2))
        assert Released(2) == one.release(*ports)
        assert Released(0) == one.release(*ports)
        assert () == world.view().ports

    def test_twice_in_one_step(self, world: World) -> None:
        """The same port twice in one release counts once."""
        one = world.open()
        (port,) = one.take(ask())
        assert Released(1) == one.release(port, port)

    def test_nothing(self, world: World) -> None:
        """A release of nothing frees nothing."""
        assert Released(0) == world.open().release()

    @pytest.mark.parametrize("delta", [-1, 1])
    def test_stale_fence(self, world: World, delta: int) -> None:
        """A port that is held with another fence is passed over, the others are freed."""
        one = world.open()
        first, second = one.take(ask(10, 11, 2))
        assert Released(1) == one.release(first._replace(fence=first.fence + delta), second)
        assert {"tcp/00010": "held"} == world.states()

    def test_held_again(self, world: World) -> None:
        """A late release does not free what the same number was given for since."""
        one, two = world.open("one"), world.open("two")
        (first,) = one.take(ask(10, 10))
        one.release(first)
        two.take(ask(10, 10))
        assert Released(0) == one.release(first)
        assert {"tcp/00010": "held"} == world.states()

    def test_anothers(self, world: World) -> None:
        """Another lease's port is not freed, even with its fence."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask())
        assert Released(0) == two.release(port)
        assert Released(1) == one.release(port)

    def test_other_protocol(self, world: World) -> None:
        """The same number of the other protocol is another port."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        assert Released(0) == one.release(port._replace(protocol="udp"))
        assert {"tcp/00010": "held"} == world.states()

    def test_cooling(self, world: World) -> None:
        """A port that cools is not freed by the lease that held it."""
        one = world.open()
        ports = one.take(ask(1, 65, 65))
        one.close(quarantine=True)
        assert Released(1) == one.release(*ports)
        assert {"cooling": 64} == count(world)

    def test_expired(self, world: World) -> None:
        """The release of a holder whose lease ran out is refused."""
        one = world.open()
        ports = one.take(ask())
        world.wait(TTL)
        assert EXPIRED == one.release(*ports)
        assert {"tcp/10809": "cooling"} == world.states()


class TestClose:
    def test_empty(self, world: World) -> None:
        """A lease without ports is closed at once, and its holder is refused from then on."""
        one = world.open()
        assert Closed(False) == one.close()
        assert () == world.view().leases
        assert [EXPIRED] * 5 == [one.close(), one.renew(), one.release(), one.ask(ask()), one.held()]

    @pytest.mark.parametrize(("ports", "steps"), [(1, 1), (63, 1), (64, 2), (65, 2), (128, 3), (130, 3)])
    @pytest.mark.parametrize("quarantine", [False, True])
    def test_in_steps(self, world: World, ports: int, steps: int, quarantine: bool) -> None:
        """Each step handles at most 64 ports; in between the lease is live, with the ports that are left (L3)."""
        one = world.open()
        one.take(ask(1, ports, ports))
        left = ports
        for _ in range(steps - 1):
            assert Closed(True) == one.close(quarantine=quarantine)
            left -= STEP
            assert left == count(world).get("held", 0)
            assert Renewed(False) == one.renew()
        assert Closed(False) == one.close(quarantine=quarantine)
        assert ({"cooling": ports} if quarantine else {}) == count(world)
        assert not world.space.has("one")

    def test_quarantine(self, world: World) -> None:
        """With quarantine the ports are free exactly when it is over, counted from the close."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        world.wait(SECOND)
        one.close(quarantine=True)
        world.wait(QUARANTINE - GRAIN)
        assert isinstance(two.ask(ask(10, 10)), Full)
        two.renew()
        world.wait(GRAIN)
        assert [10] == numbers(two.take(ask(10, 10)))

    def test_only_its_own(self, world: World) -> None:
        """Closing frees no other lease's ports."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        two.take(ask(11, 11))
        one.close()
        assert {"tcp/00011": "held"} == world.states()


class TestExpiry:
    """A dead holder's ports come back, not too early and not too late (L1)."""

    def test_lease(self, world: World) -> None:
        """A lease lives until one grain (a millisecond) before its TTL is over, counted from the last renewal."""
        one = world.open()
        world.wait(TTL - GRAIN)
        assert Renewed(False) == one.renew()
        world.wait(TTL - GRAIN)
        assert isinstance(one.ask(ask()), Granted)
        world.wait(GRAIN)
        assert EXPIRED == one.renew()

    def test_lease_with_many_ports(self, world: World) -> None:
        """The same holds for a lease whose ports take several visits to reclaim."""
        one = world.open()
        one.take(ask(1, 200, 200))
        world.wait(TTL)
        assert [one.holder.lease] == [lease.lease for lease in world.view().leases]
        assert EXPIRED == one.renew()

    def test_only_heartbeat_prolongs(self, world: World) -> None:
        """An acquire or a release does not prolong the lease."""
        one = world.open()
        world.wait(TTL - GRAIN)
        one.release(*one.take(ask()))
        world.wait(GRAIN)
        assert EXPIRED == one.renew()

    def test_all_refused(self, world: World) -> None:
        """At its TTL's end a holder is refused in every step, before anybody else visited the space."""
        for step in ("ask", "renew", "release", "close"):
            one = world.open(step)
            world.wait(TTL - GRAIN)
            world.now += GRAIN
            assert EXPIRED == (one.ask(ask()) if step == "ask" else getattr(one, step)())
            assert EXPIRED == one.held()

    @pytest.mark.parametrize("quarantine", [0, GRAIN, QUARANTINE, 10 * TTL])
    def test_port(self, world: World, quarantine: int) -> None:
        """A dead holder's port is free exactly TTL + quarantine after its last heartbeat."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        world.wait(SECOND)
        one.renew()
        one.take(ask(10, 10, quarantine=quarantine))
        world.wait(TTL + quarantine - GRAIN)
        assert isinstance(two.ask(ask(10, 10)), Full)
        world.wait(GRAIN)
        assert [10] == numbers(two.take(ask(10, 10)))

    def test_cooling_is_shown(self, world: World) -> None:
        """A cooling port still says whose it was, and when it will be free."""
        one = world.open()
        (port,) = one.take(ask(10, 10, owner="vm-1"))
        world.wait(TTL + SECOND)
        view = PortView(
            number=10,
            protocol="tcp",
            state="cooling",
            range="backup",
            owner="vm-1",
            labels={},
            instance="one",
            lease=one.holder.lease,
            fence=port.fence,
            age=TTL + SECOND,
            free_in=QUARANTINE - SECOND,
        )
        assert SpaceView("host:a", port.fence, (), (view,)) == world.view()

    def test_quarantine_is_each_ports_own(self, world: World) -> None:
        """Ports of one lease cool as long as the range of each says."""
        one = world.open()
        one.take(ask(10, 10, quarantine=0), ask(11, 11, quarantine=SECOND), ask(12, 12, quarantine=2 * SECOND))
        world.wait(TTL)
        assert ["tcp/00011", "tcp/00012"] == sorted(world.states())
        world.wait(SECOND)
        assert ["tcp/00012"] == sorted(world.states())
        world.wait(SECOND)
        assert [] == sorted(world.states())

    def test_live_neighbour(self, world: World) -> None:
        """A holder that goes on renewing loses nothing by another's death."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        two.take(ask(11, 11))
        for _ in range(10):
            world.wait(TTL // 3)
            assert Renewed(False) == two.renew()
        assert {"tcp/00011": "held"} == world.states()


def count(world: World) -> dict[str, int]:
    counts: dict[str, int] = {}
    for state in world.states().values():
        counts[state] = counts.get(state, 0) + 1
    return counts


class TestReclaim:
    """No call does much of it (L3)."""

    def test_64_at_once(self, world: World) -> None:
        """Each visit lets at most 64 ports cool, or frees as many, and says when more is due."""
        one = world.open()
        one.take(ask(1, 200, 200))
        world.wait(TTL - GRAIN)
        world.now += GRAIN
        seen = []
        for _ in range(4):
            backlog = world.visit()
            seen.append((count(world), backlog))
        assert [
            ({"held": 136, "cooling": 64}, True),
            ({"held": 72, "cooling": 128}, True),
            ({"held": 8, "cooling": 192}, True),
            ({"cooling": 200}, False),
        ] == seen
        world.wait(QUARANTINE - GRAIN)
        world.now += GRAIN
        assert [(136, True), (72, True), (8, True), (0, False)] == [
            (200 - 64 * i if i < 4 else 0, backlog) for i, backlog in enumerate((world.visit() for _ in range(4)), 1)
        ]
        assert () == world.view().ports

    def test_every_step_reclaims(self, world: World) -> None:
        """Whatever visits the space reclaims, and tells its caller of the backlog where there is room for it."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        one.take(ask(1, 400, 400))
        world.wait(TTL - GRAIN)
        world.now += GRAIN
        assert Renewed(True) == two.renew()
        assert Full(0, None, True) == two.ask(ask(1, 400))
        assert Reclaimed(True) == world.space.reclaim(world.now)
        two.release()
        world.try_open("two")
        assert 320 == count(world)["cooling"]

    def test_order(self, world: World) -> None:
        """What was due first comes back first, whichever lease it belonged to."""
        one = world.open("one")
        one.take(ask(100, 200, 64, quarantine=0))
        world.wait(SECOND)
        two = world.open("two")
        two.take(ask(1, 64, 64, quarantine=0))
        world.wait(TTL - SECOND - GRAIN)
        world.now += SECOND + GRAIN
        world.visit()
        assert {"held"} == {view.state for view in world.view().ports if view.lease == two.holder.lease}

    def test_20_000_ports(self, world: World) -> None:
        """A holder of 20,000 ports comes back piece by piece, while others go on as ever."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        one.take(ask(1024, 65535, 20_000, quarantine=0))
        world.wait(TTL)
        visits = 0
        while world.visit():
            visits += 1
            assert Released(1) == two.release(*two.take(ask(50_000, 50_000)))
        assert () == world.view().ports
        assert 0 < visits * 3 < 2 * 20_000 / STEP + 3

    def test_queue_does_not_grow(self, world: World) -> None:
        """Heartbeats leave nothing behind."""
        one = world.open()
        for _ in range(1000):
            world.wait(SECOND)
            one.renew()
        assert len(world.space._heap) <= STEP + 3


class TestSilence:
    """A server that was away takes no ports from live holders (L2), and dead ones do not keep them for ever (L1)."""

    @pytest.mark.parametrize("silence", [TTL // 3 + 1, TTL - GRAIN, TTL, TTL + GRAIN, 10 * TTL, MAX_GAP, DAY, 30 * DAY])
    def test_one_full_ttl(self, server: World, silence: int) -> None:
        """After a silence longer than a third of the TTL, a lease has exactly one full TTL from the first visit on."""
        one = server.open()
        server.silence(silence)
        assert [TTL] == [lease.expires_in for lease in server.view().leases]
        server.wait(TTL - GRAIN)
        held = one.held()
        assert isinstance(held, Held)
        server.wait(GRAIN)
        assert EXPIRED == one.renew()

    @pytest.mark.parametrize("silence", [TTL // 3 + 1, TTL, 10 * TTL, DAY])
    def test_heartbeat_after(self, server: World, silence: int) -> None:
        """The holder's own heartbeat may be the first visit, and all is as before."""
        one = server.open()
        one.take(ask(10, 10))
        server.now += silence
        assert Renewed(False) == one.renew()
        assert {"tcp/00010": "held"} == server.states()
        assert [TTL] == [lease.expires_in for lease in server.view().leases]

    def test_no_silence(self, server: World) -> None:
        """A third of the TTL is no silence yet."""
        one = server.open()
        server.silence(TTL // 3)
        assert [TTL - TTL // 3] == [lease.expires_in for lease in server.view().leases]
        server.wait(TTL - TTL // 3)
        assert EXPIRED == one.renew()

    def test_resume_after(self, server: World) -> None:
        """A restarted manager that is the first visitor after the silence finds its ports."""
        old = server.open()
        old.take(ask(10, 10))
        server.now += 10 * TTL
        new = server.open(token="b", supersede=old.holder.incarnation)
        assert Opened(old.holder.lease, new.holder.incarnation, 1) == server.try_open(token="b")

    @pytest.mark.parametrize("silence", [TTL // 3 + 1, TTL, TTL + QUARANTINE, 10 * TTL, DAY])
    @pytest.mark.parametrize("quarantine", [0, QUARANTINE, 3 * TTL])
    def test_bound(self, server: World, silence: int, quarantine: int) -> None:
        """A dead holder's ports are free at the later of the normal bound and one TTL after the first visit."""
        server.open("dead").take(ask(10, 10, quarantine=quarantine))
        server.silence(silence)
        elapsed = min(silence, MAX_GAP)
        left = max(TTL + quarantine - elapsed, TTL)
        server.wait(left - GRAIN)
        assert ["tcp/00010"] == list(server.states())
        server.wait(GRAIN)
        assert {} == server.states()

    def test_once_between_renewals(self, server: World) -> None:
        """A second silence gives a lease nothing more."""
        server.open()
        server.silence(TTL // 2)
        server.silence(TTL // 2)
        assert [TTL - TTL // 2] == [lease.expires_in for lease in server.view().leases]
        server.silence(TTL // 2)
        assert () == server.view().leases

    def test_again_after_renewal(self, server: World) -> None:
        """A renewal makes a lease ready for the next silence."""
        one = server.open()
        for _ in range(5):
            server.silence(10 * TTL)
            assert Renewed(False) == one.renew()

    def test_held_before_the_first_visit(self, server: World) -> None:
        """A holder that looks for its ports before anybody visited the space is not told that they are gone."""
        one = server.open()
        one.take(ask(10, 10))
        server.now += 10 * TTL
        held = one.held()
        assert isinstance(held, Held)
        assert [10] == [view.number for view in held.ports]
        assert Renewed(False) == one.renew()

    @pytest.mark.parametrize("interval", [TTL // 2, TTL, TTL + 1, 10 * TTL, 2 * DAY])
    def test_lone_slow_client(self, server: World, interval: int) -> None:
        """One client that polls more rarely than the TTL gets a dead holder's ports back all the same."""
        server.open("dead").take(ask(10, 10))
        polls = 0
        while server.states():
            server.silence(interval)
            polls += 1
            assert polls < 6
        assert polls * min(interval, MAX_GAP) >= TTL + QUARANTINE

    def test_expired_before(self, server: World) -> None:
        """A lease that had run out before the silence is not revived by it."""
        old = server.open()
        old.take(ask(1, 200, 200))
        server.wait(TTL)
        server.now += 10 * TTL
        assert EXPIRED == old.renew()
        while server.visit():
            pass
        assert () == server.view().ports

    def test_each_by_its_own_ttl(self, server: World) -> None:
        """What is a silence for a short lease is none for a long one."""
        server.open("short", ttl=3 * SECOND)
        server.open("long", ttl=300 * SECOND)
        server.silence(20 * SECOND)
        assert [("short", 3 * SECOND), ("long", 280 * SECOND)] == [
            (lease.instance, lease.expires_in) for lease in server.view().leases
        ]

    def test_memory_has_no_silence(self, memory: World) -> None:
        """Where the store cannot be away, a silence is the holder's own, and the TTL counts to the microsecond."""
        one = memory.open()
        one.take(ask(10, 10))
        memory.now += TTL
        assert EXPIRED == one.renew()
        memory.now += QUARANTINE
        memory.visit()
        assert () == memory.view().ports


class TestGrain:
    """The lease clock moves in steps of at least a millisecond."""

    def test_clock_stands_still(self, world: World) -> None:
        """Visits that follow one another more closely do not move it, and lose no time: the next one makes up."""
        world.open()
        for _ in range(GRAIN - 1):
            world.now += 1
            world.visit()
        assert [TTL] == [lease.expires_in for lease in world.view().leases]
        world.now += 1
        world.visit()
        assert [TTL - GRAIN] == [lease.expires_in for lease in world.view().leases]


class TestClockStep:
    """Steps of the store's own clock (L4)."""

    @pytest.mark.parametrize("step", [DAY, -DAY, -365 * DAY, 365 * DAY])
    def test_server(self, server: World, step: int) -> None:
        """A step of any size expires no live lease, and does not stop reclaim."""
        dead, one = server.open("dead"), server.open("one")
        dead.take(ask(10, 10))
        one.take(ask(11, 11))
        for _ in range(2):
            server.wait(5 * SECOND)
            one.renew()
        server.now += step
        server.visit()
        assert Renewed(False) == one.renew()
        for _ in range(6):
            server.wait(TTL // 3)
            assert Renewed(False) == one.renew()
        assert {"tcp/00011": "held"} == server.states()

    def test_quarantine_is_bounded(self, server: World) -> None:
        """A step forward ends no quarantine that is longer than the most one visit may move the clock."""
        one = server.open()
        one.take(ask(10, 10, quarantine=MAX_GAP + SECOND))
        one.close(quarantine=True)
        server.silence(DAY)
        assert [SECOND] == [view.free_in for view in server.view().ports]
        server.wait(SECOND)
        assert {} == server.states()

    def test_back_and_forth(self, world: World) -> None:
        """A clock that is set back and forth in small steps still lets a dead lease run out."""
        one = world.open()
        one.take(ask(10, 10))
        for _ in range(10):
            world.wait(5 * SECOND)
            world.now -= 5 * SECOND
            world.visit()
        assert {} == world.states()

    def test_ages_are_never_negative(self, world: World) -> None:
        """A port that was granted in what is now the future has age 0."""
        one = world.open()
        one.take(ask())
        world.now -= DAY
        assert [0] == [view.age for view in world.view().ports]


class TestRead:
    def test_empty(self, world: World) -> None:
        """A space that nobody opened is empty, and refuses every holder without a trace."""
        ghost = Actor(world, Holder("one", 1, 1))
        assert [UNKNOWN] * 5 == [ghost.ask(ask()), ghost.renew(), ghost.release(), ghost.close(), ghost.held()]
        assert Reclaimed(False) == world.space.reclaim(world.now)
        assert SpaceView("host:a", 0, (), ()) == world.view()
        assert not world.space.has("one")

    def test_view(self, world: World) -> None:
        """Leases come in the order in which they were opened, ports by protocol and number."""
        one, two = world.open("b"), world.open("a", ttl=2 * TTL)
        two.take(ask(9, 9), ask(8, 8, protocol="udp"))
        one.take(ask(10000, 10000), ask(8, 8))
        world.wait(SECOND)
        view = world.view()
        assert (
            LeaseView(one.holder.lease, "b", one.holder.incarnation, TTL, TTL - SECOND),
            LeaseView(two.holder.lease, "a", two.holder.incarnation, 2 * TTL, 2 * TTL - SECOND),
        ) == view.leases
        assert [("tcp", 8), ("tcp", 9), ("tcp", 10000), ("udp", 8)] == [(p.protocol, p.number) for p in view.ports]

    @pytest.mark.parametrize("silence", [GRAIN, TTL // 3 + 1, TTL - GRAIN, TTL, TTL + GRAIN, 10 * TTL, DAY])
    def test_grace(self, world: World, silence: int) -> None:
        """Of a lease that seems to have run out the view says whether the next visit will give it time."""
        world.open()
        world.now += silence
        (shown,) = world.view().leases
        patient = world.space._max_gap is not None
        elapsed = min(silence, MAX_GAP) if patient else silence
        assert (TTL - elapsed, patient and silence >= TTL) == (shown.expires_in, shown.grace)
        world.visit()
        left = world.view().leases
        assert (shown.grace or shown.expires_in > 0) == bool(left)
        assert [False] * len(left) == [lease.grace for lease in left]
        if shown.grace:
            assert [TTL] == [lease.expires_in for lease in left]

    def test_grace_once(self, server: World) -> None:
        """A second silence gives it none, so none is shown; after a renewal it does again."""
        one = server.open()
        server.silence(TTL)
        server.now += TTL
        assert [False] == [lease.grace for lease in server.view().leases]
        server.now -= TTL
        one.renew()
        server.now += TTL
        assert [True] == [lease.grace for lease in server.view().leases]

    def test_grace_to_each_its_own(self, server: World) -> None:
        """Of two leases that ran out, one may be given time and the other not."""
        server.open("one")
        server.open("long", ttl=4 * TTL)
        server.now += TTL + GRAIN
        assert [("one", True), ("long", False)] == [(each.instance, each.grace) for each in server.view().leases]

    def test_reads_only(self, world: World) -> None:
        """Looking reclaims nothing and prolongs nothing, however late."""
        one = world.open()
        one.take(ask(10, 10))
        world.now += TTL + SECOND
        assert [-SECOND] == [lease.expires_in for lease in world.view().leases]
        assert {"tcp/00010": "held"} == world.states()

    def test_held_pages(self, world: World) -> None:
        """The ports of a lease come in ascending order, page by page, each once."""
        one, two = world.open("one"), world.open("two")
        ports = one.take(ask(9, 12, 4), ask(1, 2, 2, protocol="udp"))
        two.take(ask(100, 100))
        seen: list[tuple[str, int]] = []
        after: Port | None = None
        pages = []
        while True:
            page = world.space.held(one.holder, world.now, after, 2)
            assert isinstance(page, Held)
            pages.append(len(page.ports))
            seen += [(view.protocol, view.number) for view in page.ports]
            if not page.more:
                break
            last = page.ports[-1]
            after = Port(last.number, last.protocol, last.fence)
        assert [(port.protocol, port.number) for port in ports] == seen
        assert [2, 2, 2, 0] == pages


class TestBoth:
    """One number for both protocols."""

    def test_free_in_both(self, world: World) -> None:
        """The lowest number is given that neither protocol has taken, as one port with one fence."""
        one = world.open()
        one.take(ask(10, 10), ask(11, 11, protocol="udp"))
        (port,) = one.take(ask(10, 20, protocol="both"))
        assert (12, "both") == (port.number, port.protocol)
        assert {"tcp/00010": "held", "udp/00011": "held", "both/00012": "held"} == world.states()

    @pytest.mark.parametrize("protocol", ["tcp", "udp", "both"])
    def test_closes_both(self, world: World, protocol: str) -> None:
        """Its number is taken for each protocol, in later requests and in the same one."""
        one = world.open()
        assert [10, 11] == numbers(one.take(ask(10, 20, protocol="both"), ask(10, 20, protocol=protocol)))
        assert [12] == numbers(one.take(ask(10, 20, protocol=protocol)))

    def test_same_number_in_one_request(self, world: World) -> None:
        """What an earlier ask of the request takes in one protocol, a later one does not get in both."""
        assert [10, 10, 11] == numbers(
            world.open().take(ask(10, 20), ask(10, 20, protocol="udp"), ask(10, 20, protocol="both"))
        )

    def test_freed_together(self, world: World) -> None:
        """It is released under its own name, not under a part of it, and is free in both then."""
        one = world.open()
        (port,) = one.take(ask(10, 10, protocol="both"))
        assert Released(0) == one.release(port._replace(protocol="tcp"), port._replace(protocol="udp"))
        assert Released(1) == one.release(port)
        assert [10, 10] == numbers(one.take(ask(10, 10), ask(10, 10, protocol="udp")))

    def test_neighbour_is_not_freed(self, world: World) -> None:
        """Freeing a port of one protocol leaves the other protocol's, and nobody gets both."""
        one = world.open()
        tcp, udp = one.take(ask(10, 10), ask(10, 10, protocol="udp"))
        assert Released(1) == one.release(tcp)
        assert Full(0, None, False) == one.ask(ask(10, 10, protocol="both"))
        assert Released(1) == one.release(udp)
        assert [10] == numbers(one.take(ask(10, 10, protocol="both")))

    def test_cools_in_both(self, world: World) -> None:
        """It cools as one port, and closes both protocols so long."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        one.take(ask(10, 10, protocol="both"))
        world.wait(TTL)
        assert {"both/00010": "cooling"} == world.states()
        assert isinstance(two.ask(ask(10, 10)), Full)
        assert isinstance(two.ask(ask(10, 10, protocol="udp")), Full)
        world.wait(QUARANTINE)
        assert [10, 10] == numbers(two.take(ask(10, 10), ask(10, 10, protocol="udp")))

    def test_foreign_in_both(self, world: World) -> None:
        """Marked, it is one foreign port, and closes both protocols."""
        one = world.open()
        assert Marked(1) == one.mark(*one.take(ask(10, 11, protocol="both")))
        assert {"both/00010": "foreign"} == world.states()
        assert [11, 11] == numbers(one.take(ask(10, 11), ask(10, 11, protocol="udp")))

    def test_held_in_order(self, world: World) -> None:
        """In lists it comes under its own name, before tcp and udp."""
        one = world.open()
        one.take(ask(10, 10), ask(9, 9, protocol="udp"), ask(11, 12, 2, protocol="both"))
        pages = [one.held(), world.space.held(one.holder, world.now, Port(11, "both", 0))]
        expected = [("both", 11), ("both", 12), ("tcp", 10), ("udp", 9)]
        assert [expected, expected[1:]] == [
            [(view.protocol, view.number) for view in page.ports] for page in pages if isinstance(page, Held)
        ]
        assert expected == [(view.protocol, view.number) for view in world.view().ports]


class TestBlock:
    """Adjacent numbers (``align``)."""

    def test_lowest(self, world: World) -> None:
        """The lowest block that is free is given, in ascending order, past gaps that are too small for it."""
        one = world.open()
        one.take(ask(10, 10), ask(13, 13), ask(16, 16))
        assert [17, 18, 19] == numbers(one.take(ask(10, 40, 3, align=1)))
        assert [11, 12] == numbers(one.take(ask(10, 40, 2, align=1)))

    @pytest.mark.parametrize(("align", "first"), [(1, 11), (2, 12), (3, 12), (4, 12), (5, 15), (8, 16), (64, 64)])
    def test_aligned(self, world: World, align: int, first: int) -> None:
        """Its first number is a multiple of ``align``."""
        assert [first, first + 1] == numbers(world.open().take(ask(11, 70, 2, align=align)))

    def test_alignment_past_what_is_taken(self, world: World) -> None:
        """A free place that is big enough is passed over when no multiple lies well in it."""
        one = world.open()
        one.take(ask(10, 10), ask(14, 14), ask(21, 21))
        assert [16, 17, 18, 19] == numbers(one.take(ask(10, 40, 4, align=4)))
        assert [24, 25, 26, 27] == numbers(one.take(ask(10, 40, 4, align=4)))

    def test_not_across_spans(self, world: World) -> None:
        """A block lies inside one span, also where two spans touch."""
        one = world.open()
        asked = Ask("backup", ((10, 11), (12, 13), (20, 22)), 3, align=1)
        assert [20, 21, 22] == numbers(one.take(asked))
        assert Full(0, None, False) == one.ask(asked)

    def test_spans_in_order(self, world: World) -> None:
        """The first span with room for it has it."""
        one = world.open()
        asked = Ask("backup", ((20, 22), (10, 19)), 2, align=1)
        assert [[20, 21], [10, 11]] == [numbers(one.take(asked)) for _ in range(2)]

    def test_last_numbers_of_a_span(self, world: World) -> None:
        """A block may end where its span ends, and not a number later."""
        one = world.open()
        assert [65534, 65535] == numbers(one.take(ask(65533, 65535, 2, align=2)))
        assert [12, 13] == numbers(one.take(ask(11, 13, 2, align=2)))
        assert Full(0, None, False) == one.ask(ask(15, 16, 2, align=2))

    def test_all_or_nothing(self, world: World) -> None:
        """Enough free numbers that are not adjacent are no block, and nothing changes."""
        one = world.open()
        one.take(ask(11, 11), ask(13, 13))
        before = world.settled()
        assert Full(0, None, False) == one.ask(ask(10, 14, 2, align=1))
        assert before == world.settled()
        assert [10, 12] == numbers(one.take(ask(10, 14, 2)))

    def test_two_in_one_request(self, world: World) -> None:
        """Two blocks of one request lie apart; when the second has no room, the first is not given either."""
        one = world.open()
        pair = ask(10, 17, 4, align=2)
        assert Full(2, None, False) == one.ask(pair, pair, pair)
        assert () == world.view().ports
        assert [10, 11, 12, 13, 14, 15, 16, 17] == numbers(one.take(pair, pair))

    def test_free_in_both(self, world: World) -> None:
        """A block for both protocols is free in both all over."""
        one = world.open()
        one.take(ask(11, 11), ask(14, 14, protocol="udp"))
        assert [15, 16, 17] == numbers(one.take(ask(10, 20, 3, align=1, protocol="both")))

    def test_ports_are_ports(self, world: World) -> None:
        """Each port of a block has a fence of its own, and is released by itself."""
        one = world.open()
        ports = one.take(ask(10, 20, 3, align=1))
        assert [ports[0].fence + i for i in range(3)] == [port.fence for port in ports]
        assert Released(1) == one.release(ports[1])
        assert ["tcp/00010", "tcp/00012"] == list(world.states())


class TestRotate:
    """Each time the numbers after the last one that was given (``rotate``)."""

    def test_after_the_last(self, world: World) -> None:
        """A number that was released is not given again before the others had their turn."""
        one = world.open()
        given = []
        for _ in range(7):
            (port,) = one.take(ask(10, 12, rotate=1))
            given.append(port.number)
            one.release(port)
        assert [10, 11, 12, 10, 11, 12, 10] == given

    def test_taken_ones_are_passed_over(self, world: World) -> None:
        """What is not free is left out of the round."""
        one = world.open()
        one.take(ask(11, 11), ask(13, 13))
        assert [10, 12, 14] == numbers(one.take(ask(10, 14, rotate=1)) + one.take(ask(10, 14, 2, rotate=1)))
        assert Full(0, None, False) == one.ask(ask(10, 14, rotate=1))

    def test_several_at_once(self, world: World) -> None:
        """Several numbers of one ask go round too, and the last of them counts."""
        one = world.open()
        for expected in ([10, 11, 12], [13, 14, 10], [11, 12, 13]):
            ports = one.take(ask(10, 14, 3, rotate=1))
            assert expected == numbers(ports)
            one.release(*ports)

    def test_several_spans(self, world: World) -> None:
        """The circle goes over all of the first spans, the others come when these are full."""
        one = world.open()
        asked = Ask("backup", ((20, 21), (30, 31), (10, 11)), 1, rotate=2)
        assert [20, 21, 30, 31, 10, 11] == [one.take(asked)[0].number for _ in range(6)]

    def test_others_come_last(self, world: World) -> None:
        """Also from the middle of the circle, the spans outside it come after all of it."""
        one = world.open()
        asked = Ask("backup", ((20, 21), (30, 31), (10, 11)), 1, rotate=2)
        one.release(*one.take(asked._replace(count=3)))
        assert [31, 20, 21, 30, 10, 11] == numbers(one.take(asked._replace(count=6)))

    def test_round_after_the_others(self, world: World) -> None:
        """After a number outside the circle the circle begins anew, from the number that would follow."""
        one = world.open()
        asked = Ask("backup", ((20, 22), (10, 11)), 1, rotate=1)
        ports = one.take(asked._replace(count=4))
        assert [20, 21, 22, 10] == numbers(ports)
        one.release(*ports)
        assert [20, 21, 22, 10, 11] == numbers(one.take(asked._replace(count=5)))

    def test_block_across_the_cursor(self, world: World) -> None:
        """A block may lie across the number where the round ends, when there is no other room."""
        one = world.open()
        one.release(*one.take(ask(10, 16, 4, rotate=1)))
        block = ask(10, 16, 4, align=1, rotate=1)
        assert [10, 11, 12, 13] == numbers(one.take(block))
        one.release(*(Port(port.number, port.protocol, port.fence) for port in world.view().ports))
        one.release(*one.take(ask(12, 12, rotate=1)))
        one.take(ask(10, 10))
        ports = one.take(block)
        assert [13, 14, 15, 16] == numbers(ports)
        one.release(*ports)
        one.take(ask(11, 11), ask(16, 16))
        one.release(*one.take(ask(13, 13, rotate=1)))
        assert [12, 13, 14, 15] == numbers(one.take(block))

    def test_block_after_the_last(self, world: World) -> None:
        """Blocks go round as single numbers do, each after the end of the last."""
        one = world.open()
        given = []
        for _ in range(4):
            ports = one.take(ask(10, 16, 2, align=2, rotate=1))
            given.append(ports[0].number)
            one.release(*ports)
        assert [10, 12, 14, 10] == given

    def test_ranges_apart(self, world: World) -> None:
        """Each range goes round by itself, whatever is given without ``rotate`` or to other ranges."""
        one = world.open()
        mine, other = ask(10, 19, rotate=1), Ask("display", ((10, 19),), rotate=1)
        given = []
        for asked in (mine._replace(count=3), other, other, ask(10, 19), mine, other, mine):
            ports = one.take(asked)
            given.append(numbers(ports))
            one.release(*ports)
        assert [[10, 11, 12], [10], [11], [10], [13], [12], [14]] == given

    def test_protocols_go_round_together(self, world: World) -> None:
        """A range has one round for all protocols."""
        one = world.open()
        asks = (ask(10, 19, rotate=1, protocol=protocol) for protocol in ("tcp", "udp", "both", "tcp"))
        assert [10, 11, 12, 13] == [one.take(each)[0].number for each in asks]

    def test_refused(self, world: World) -> None:
        """A request that was refused, or undone because it was abandoned, does not take the round back."""
        one = world.open()
        one.take(ask(10, 14, rotate=1))
        assert isinstance(one.ask(ask(10, 14, rotate=1), ask(10, 10)), Full)
        assert [11] == numbers(one.take(ask(10, 14, rotate=1)))
        one.renew(one.number)
        assert {"tcp/00010": "held"} == world.states()
        assert [12] == numbers(one.take(ask(10, 14, rotate=1)))

    def test_outlives_leases(self, world: World) -> None:
        """The round goes on when nobody is left in the space."""
        one = world.open()
        one.take(ask(10, 14, rotate=1))
        one.close()
        assert [11] == numbers(world.open().take(ask(10, 14, rotate=1)))


class TestLimit:
    """How many ports one owner may hold of a range."""

    def test_per_owner(self, world: World) -> None:
        """An owner that has as many as it may is refused, whoever asks for it; others are not."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(owner="vm-1", limit=2))
        two.take(ask(owner="vm-1", limit=2))
        assert [Full(0, None, False, "limit")] * 2 == [a.ask(ask(owner="vm-1", limit=2)) for a in (one, two)]
        assert isinstance(one.ask(ask(owner="vm-2", limit=2)), Granted)
        assert isinstance(one.ask(ask(owner="", limit=2)), Granted)

    def test_per_range(self, world: World) -> None:
        """What an owner holds of another range does not count, also of the same numbers."""
        one = world.open()
        one.take(ask(owner="vm-1", limit=1))
        other = Ask("display", ((10809, 10872),), owner="vm-1", limit=1)
        assert isinstance(one.ask(other), Granted)
        assert Full(0, None, False, "limit") == one.ask(other)

    def test_more_than_the_limit(self, world: World) -> None:
        """An ask for more than the limit is refused by it, one for as many is not."""
        one = world.open()
        assert Full(0, None, False, "limit") == one.ask(ask(count=3, limit=2))
        assert isinstance(one.ask(ask(count=2, limit=2)), Granted)

    def test_over_several_asks(self, world: World) -> None:
        """The asks of one request count together, for each owner and range by itself; the reply names the ask."""
        one = world.open()
        mine = ask(owner="vm-1", limit=2)
        before = world.settled()
        asks = (mine, ask(owner="vm-2", limit=1), Ask("display", ((1, 9),), owner="vm-1", limit=1), mine, mine)
        assert Full(4, None, False, "limit") == one.ask(*asks)
        assert before == world.settled()
        assert isinstance(one.ask(*asks[:4]), Granted)

    def test_protocols(self, world: World) -> None:
        """A port for both protocols counts once, and the protocols count together."""
        one = world.open()
        one.take(ask(limit=3, protocol="both"), ask(limit=3), ask(limit=3, protocol="udp"))
        assert Full(0, None, False, "limit") == one.ask(ask(limit=3, protocol="udp"))

    def test_without_limit(self, world: World) -> None:
        """Ports that were asked for without a limit do not count."""
        one = world.open()
        one.take(ask(count=5), ask(limit=1))
        assert Full(0, None, False, "limit") == one.ask(ask(limit=1))
        assert isinstance(one.ask(ask()), Granted)

    def test_limits_may_differ(self, world: World) -> None:
        """Each ask is judged by its own limit, also when a range's limit was changed meanwhile."""
        one = world.open()
        one.take(ask(count=3, limit=3))
        assert Full(0, None, False, "limit") == one.ask(ask(limit=2))
        assert isinstance(one.ask(ask(limit=4)), Granted)

    def test_before_what_is_free(self, world: World) -> None:
        """An owner at its limit is told of that also when nothing is free."""
        one = world.open()
        one.take(ask(10, 10, limit=1))
        assert Full(0, None, False, "limit") == one.ask(ask(10, 10, limit=1))
        assert Full(0, None, False, "taken") == one.ask(ask(10, 10, owner="vm-2", limit=1))

    def test_holder_of_explicit(self, world: World) -> None:
        """An explicit ask that passes the limit is told of the holder too."""
        one = world.open()
        one.take(ask(10, 10, limit=1))
        full = one.ask(one_port(10, limit=1))
        assert isinstance(full, Full)
        assert ("limit", 10) == (full.why, full.holder and full.holder.number)

    @pytest.mark.parametrize("way", ["release", "cooldown", "expiry", "close", "quarantine", "mark", "abandon"])
    def test_given_back(self, world: World, way: str) -> None:
        """A port that is not held any more does not count, whether it is free, cools, or is foreign."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        ports = one.take(ask(10, 10, limit=1, cooldown=DAY if way == "cooldown" else 0))
        assert isinstance(two.ask(ask(11, 11, limit=1)), Full)
        match way:
            case "release" | "cooldown":
                one.release(*ports)
            case "expiry":
                world.wait(TTL)
            case "close" | "quarantine":
                one.close(quarantine=way == "quarantine")
            case "mark":
                one.mark(*ports)
            case "abandon":
                one.renew(1)
        free = {"release", "close", "abandon"}
        assert ([] if way in free else ["tcp/00010"]) == list(world.states())
        assert isinstance(two.ask(ask(11, 11, limit=1)), Granted)
        assert Full(0, None, False, "limit") == two.ask(ask(11, 11, limit=1))
        assert {("backup", ""): 1} == world.space._owned

    def test_lease_that_drains(self, world: World) -> None:
        """Ports of a lease that ran out count until they are reclaimed."""
        one, two = world.open("one"), world.open("two", ttl=DAY)
        one.take(ask(1, 200, 2 * STEP + 12, limit=200))
        world.wait(TTL)
        assert Full(0, None, True, "limit") == two.ask(ask(limit=12))
        assert isinstance(two.ask(ask(limit=12)), Granted)

    def test_repeated_request(self, world: World) -> None:
        """The repetition of a request that was granted is answered with its ports, not with the limit."""
        one = world.open()
        first = one.ask(ask(limit=1), number=1)
        assert first == one.ask(ask(limit=1), number=1)


class TestCooldown:
    """A released port that is not to be given out again at once."""

    def test_release(self, world: World) -> None:
        """It cools for exactly the cooldown, counted from the release, and says whose it was."""
        one = world.open(ttl=DAY)
        (port,) = one.take(ask(10, 10, cooldown=2 * SECOND, owner="vm-1"))
        world.wait(SECOND)
        assert Released(1) == one.release(port)
        full = one.ask(one_port(10))
        assert isinstance(full, Full)
        assert full.holder is not None
        view = full.holder
        assert ("cooling", "vm-1", "one", port.fence, 2 * SECOND) == (
            *(view.state, view.owner, view.instance, view.fence, view.free_in),
        )
        world.wait(2 * SECOND - GRAIN)
        assert {"tcp/00010": "cooling"} == world.states()
        world.wait(GRAIN)
        assert [10] == numbers(one.take(ask(10, 10)))

    def test_twice(self, world: World) -> None:
        """Released once more it is no longer held, and cools no longer for it."""
        one = world.open(ttl=DAY)
        (port,) = one.take(ask(10, 10, cooldown=2 * SECOND))
        assert [Released(1), Released(0)] == [one.release(port, port), one.release(port)]
        world.wait(SECOND)
        assert Released(0) == one.release(port)
        assert [SECOND] == [view.free_in for view in world.view().ports]

    def test_each_its_own(self, world: World) -> None:
        """Ports released together cool each for its own time."""
        one = world.open(ttl=DAY)
        one.release(*one.take(ask(10, 10), ask(11, 11, cooldown=SECOND), ask(12, 12, cooldown=2 * SECOND)))
        assert {11: SECOND, 12: 2 * SECOND} == {view.number: view.free_in for view in world.view().ports}

    def test_close(self, world: World) -> None:
        """A clean close lets the ports cool for the cooldown; one with quarantine for the quarantine."""
        for quarantine, expected in ((False, SECOND), (True, QUARANTINE)):
            one = world.open()
            one.take(ask(10, 10, cooldown=SECOND))
            assert Closed(False) == one.close(quarantine=quarantine)
            assert [("cooling", expected)] == [(view.state, view.free_in) for view in world.view().ports]
            world.wait(QUARANTINE)

    def test_abandoned(self, world: World) -> None:
        """The ports of a request that was abandoned were never used, and are free at once."""
        one = world.open()
        one.ask(ask(10, 10, cooldown=DAY), number=1)
        one.renew(1)
        assert {} == world.states()

    def test_expiry(self, world: World) -> None:
        """After an expiry the quarantine counts, whatever the cooldown."""
        world.open().take(ask(10, 10, cooldown=DAY), ask(11, 11, quarantine=0, cooldown=DAY))
        world.wait(TTL)
        assert [(10, QUARANTINE)] == [(view.number, view.free_in) for view in world.view().ports]


class TestExplicit:
    """One number, and no other."""

    def test_holder(self, world: World) -> None:
        """Whoever asks explicitly is told what is known of the port; whoever asks for a span of one is not."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 10, owner="vm-1"))
        full = two.ask(one_port(9), one_port(10))
        assert isinstance(full, Full)
        assert full.holder is not None
        assert (1, "taken", "held", "vm-1", "one", port.fence) == (
            *(full.ask, full.why, full.holder.state, full.holder.owner, full.holder.instance, full.holder.fence),
        )
        assert Full(0, None, False) == two.ask(ask(10, 10))

    @pytest.mark.parametrize(
        ("held", "asked"), [("both", "tcp"), ("both", "udp"), ("tcp", "both"), ("udp", "both"), ("both", "both")]
    )
    def test_holder_of_other_protocol(self, world: World, held: str, asked: str) -> None:
        """What is in the way of the port may have another protocol."""
        one = world.open()
        one.take(ask(10, 10, protocol=held))
        full = one.ask(one_port(10, protocol=asked))
        assert isinstance(full, Full)
        assert held == (full.holder and full.holder.protocol)

    def test_other_protocol_is_not_in_the_way(self, world: World) -> None:
        """A port of the other protocol is no hindrance."""
        one = world.open()
        one.take(ask(10, 10))
        assert [10] == numbers(one.take(one_port(10, protocol="udp")))

    def test_takes_over_foreign(self, world: World) -> None:
        """A foreign mark gives way to whoever wants this very number, and counts no more."""
        one = world.open()
        one.mark(*one.take(ask(10, 11, 2)))
        assert Full(0, None, False) == one.ask(ask(10, 11))
        (port,) = one.take(one_port(10, owner="vm-1"))
        assert [(10, "held", "vm-1", None), (11, "foreign", "", 30 * SECOND)] == [
            (view.number, view.state, view.owner, view.free_in) for view in world.view().ports
        ]
        assert {"backup": 1} == world.space._foreign
        world.wait(30 * SECOND - GRAIN)
        one.renew()
        world.wait(GRAIN)
        assert {"tcp/00010": "held"} == world.states()
        assert {} == world.space._foreign
        assert Released(1) == one.release(port)

    @pytest.mark.parametrize(
        ("marked", "asked", "free"),
        [("tcp", "both", None), ("udp", "both", None), ("both", "tcp", "udp"), ("both", "udp", "tcp")],
    )
    def test_takes_over_other_protocol(self, world: World, marked: str, asked: str, free: str | None) -> None:
        """A mark gives way as a whole: what was marked for both and is taken for one is free for the other."""
        one = world.open()
        one.mark(*one.take(ask(10, 10, protocol=marked)))
        one.take(one_port(10, protocol=asked))
        assert {f"{asked}/00010": "held"} == world.states()
        assert {} == world.space._foreign
        if free:
            assert [10] == numbers(one.take(ask(10, 10, protocol=free)))
        assert isinstance(one.ask(ask(10, 10, protocol="both")), Full)

    def test_takes_over_two_marks(self, world: World) -> None:
        """A number for both takes over a mark of tcp and one of udp."""
        one = world.open()
        one.mark(*one.take(ask(10, 10), ask(10, 10, protocol="udp")))
        assert {"backup": 2} == world.space._foreign
        assert [10] == numbers(one.take(one_port(10, protocol="both")))
        assert {"both/00010": "held"} == world.states()
        assert {} == world.space._foreign

    @pytest.mark.parametrize("state", ["held", "cooling"])
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_takes_over_nothing_else(self, world: World, state: str, protocol: str) -> None:
        """A held or cooling port does not give way, nor does a mark beside one."""
        one = world.open()
        other = "udp" if protocol == "tcp" else "tcp"
        ports = one.take(ask(10, 10, protocol=protocol, cooldown=DAY))
        one.mark(*one.take(ask(10, 10, protocol=other)))
        if state == "cooling":
            one.release(*ports)
        before = world.settled()
        assert isinstance(one.ask(one_port(10, protocol=protocol)), Full)
        full = one.ask(one_port(10, protocol="both"))
        assert isinstance(full, Full)
        assert before == world.settled()
        assert isinstance(one.ask(ask(10, 10, protocol=other)), Full)

    def test_holder_is_who_is_in_the_way(self, world: World) -> None:
        """Of a mark and a held port, it is the held one that is told of: the mark would have given way."""
        one = world.open()
        one.mark(*one.take(ask(10, 10)))
        one.take(ask(10, 10, protocol="udp"))
        full = one.ask(one_port(10, protocol="both"))
        assert isinstance(full, Full)
        assert ("udp", "held") == (full.holder and full.holder.protocol, full.holder and full.holder.state)

    def test_refused_leaves_the_mark(self, world: World) -> None:
        """When another ask of the request cannot be met, the marks stay as they were."""
        one = world.open()
        marked = one.take(ask(10, 10), ask(11, 11, protocol="both"), ask(12, 12, protocol="udp"))
        one.mark(*marked)
        one.take(ask(99, 99))
        before = world.settled()
        asks = (one_port(10), one_port(11), one_port(12, protocol="both"))
        assert isinstance(one.ask(*asks, ask(99, 99)), Full)
        assert before == world.settled()
        assert {"backup": 3} == world.space._foreign
        assert [Full(0, None, False)] * 3 == [
            one.ask(each) for each in (ask(10, 10), ask(11, 11, protocol="udp"), ask(12, 12, protocol="both"))
        ]
        assert [10, 11, 12] == numbers(one.take(*asks))

    def test_same_mark_twice_in_one_request(self, world: World) -> None:
        """A mark gives way to each ask of a request that no other is in the way of."""
        one = world.open()
        one.mark(*one.take(ask(10, 10, protocol="both")))
        before = world.settled()
        for second in (one_port(10), one_port(10, protocol="both")):
            full = one.ask(one_port(10), second)
            assert isinstance(full, Full)
            assert 1 == full.ask
            assert before == world.settled()
        assert [10, 10] == numbers(one.take(one_port(10), one_port(10, protocol="udp")))
        assert {} == world.space._foreign

    def test_expired_ownership_of_the_mark(self, world: World) -> None:
        """Another lease takes a mark over as well, and its maker's lease may be gone."""
        one, two = world.open("one"), world.open("two")
        one.mark(*one.take(ask(10, 10)))
        one.close()
        assert [10] == numbers(two.take(one_port(10)))
        assert Closed(False) == two.close()
        assert {} == world.states()


class TestForeign:
    """Ports that something else was seen to have."""

    def test_view(self, world: World) -> None:
        """A mark says who saw it, in which range and where, and when it ends; nobody owns it."""
        one = world.open()
        (port,) = one.take(ask(10, 10, owner="vm-1", labels={"job": "x"}, limit=5, host="kvm-07"))
        assert "kvm-07" == world.view().ports[0].host
        world.wait(SECOND)
        assert Marked(1) == one.mark(port, duration=4 * SECOND, host="kvm-08")
        view = PortView(
            number=10,
            protocol="tcp",
            state="foreign",
            range="backup",
            owner="",
            labels={},
            instance="one",
            lease=one.holder.lease,
            fence=port.fence,
            age=SECOND,
            free_in=4 * SECOND,
            host="kvm-08",
        )
        assert (view,) == world.view().ports

    def test_bounded_in_time(self, world: World) -> None:
        """It is closed for exactly the duration, then free; the count of its range goes down with it."""
        one = world.open(ttl=DAY)
        one.mark(*one.take(ask(10, 10)), duration=4 * SECOND)
        world.wait(SECOND)
        one.mark(*one.take(ask(11, 11)), duration=4 * SECOND)
        world.wait(3 * SECOND - GRAIN)
        assert isinstance(one.ask(ask(10, 11)), Full)
        assert {"backup": 2} == world.space._foreign
        world.wait(GRAIN)
        assert [10] == numbers(one.take(ask(10, 11)))
        assert {"backup": 1} == world.space._foreign
        world.wait(SECOND)
        assert {} == world.space._foreign

    def test_at_most(self, world: World) -> None:
        """No more ports of a range are marked than ``most``, over all calls; the others are freed."""
        one = world.open()
        first, second, third, fourth = one.take(ask(10, 13, 4))
        assert Marked(1) == one.mark(first, most=2)
        assert Marked(1) == one.mark(second, third, fourth, most=2)
        assert {"tcp/00010": "foreign", "tcp/00011": "foreign"} == world.states()
        assert Marked(0) == one.mark(*one.take(ask(12, 12, cooldown=DAY)), most=2)
        assert ["tcp/00010", "tcp/00011"] == list(world.states())

    def test_at_most_none(self, world: World) -> None:
        """With 0 nothing is marked, all is freed."""
        one = world.open()
        assert Marked(0) == one.mark(*one.take(ask(10, 11, 2)), most=0)
        assert {} == world.states()

    def test_at_most_for_each_range(self, world: World) -> None:
        """Each range counts by itself, and over all leases."""
        one, two = world.open("one"), world.open("two")
        assert Marked(1) == one.mark(*one.take(ask(10, 10)), most=1)
        assert Marked(1) == two.mark(*two.take(ask(11, 11)), range="display", most=1)
        assert Marked(0) == two.mark(*two.take(ask(12, 12)), most=1)
        assert ["backup", "display"] == [view.range for view in world.view().ports]

    def test_stale(self, world: World) -> None:
        """Only what the lease holds with this very fence is marked, once; the rest is passed over."""
        one, two = world.open("one"), world.open("two")
        first, second = one.take(ask(10, 11, 2, cooldown=DAY))
        (other,) = two.take(ask(12, 12))
        before = world.settled()
        assert Marked(0) == one.mark(
            first._replace(fence=first.fence + 1), other, first._replace(protocol="udp"), Port(99, "tcp", first.fence)
        )
        assert Marked(0) == one.mark()
        assert before == world.settled()
        one.release(second)
        assert Marked(1) == one.mark(second, first, first)
        assert ["foreign", "cooling", "held"] == list(world.states().values())
        assert Released(0) == one.release(first)
        assert Marked(0) == one.mark(first)

    def test_refused(self, world: World) -> None:
        """Without a live lease, or after a take-over, nothing is marked."""
        old = world.open()
        ports = old.take(ask(10, 10))
        world.open(token="b", supersede=old.holder.incarnation)
        assert SUPERSEDED == old.mark(*ports)
        assert {"tcp/00010": "held"} == world.states()
        world.wait(TTL)
        assert EXPIRED == old.mark(*ports)
        assert {"tcp/00010": "cooling"} == world.states()

    def test_outlives_its_lease(self, world: World) -> None:
        """A mark is nobody's: it does not fall with the lease, and is not closed with it."""
        one = world.open()
        one.mark(*one.take(ask(10, 10)), duration=DAY)
        assert Closed(False) == one.close()
        assert {"tcp/00010": "foreign"} == world.states()

    def test_late_copies(self, world: World) -> None:
        """A late mark does not mark what the number was given for since."""
        one = world.open()
        (first,) = one.take(ask(10, 10))
        one.release(first)
        one.take(ask(10, 10))
        assert Marked(0) == one.mark(first)
        assert {"tcp/00010": "held"} == world.states()

    def test_abandoned_afterwards(self, world: World) -> None:
        """Undoing a request leaves the marks on what it had got."""
        one = world.open()
        reply = one.ask(ask(10, 11, 2), number=1)
        assert isinstance(reply, Granted)
        one.mark(reply.ports[0])
        one.renew(1)
        assert {"tcp/00010": "foreign"} == world.states()


class TestForce:
    """An operator takes a port from whoever has it; a holder learns of it."""

    def test_held(self, world: World) -> None:
        """A held port cools from now on, for its quarantine and not its cooldown, and is no longer its holder's."""
        one = world.open(ttl=MINUTE)
        one.take(ask(10, 11, 2, owner="vm-1", quarantine=2 * MINUTE, cooldown=DAY))
        world.wait(SECOND)
        seen = world.port(10)
        assert world.force(seen)
        assert seen._replace(state="cooling", free_in=2 * MINUTE) == world.port(10)
        held = one.held()
        assert isinstance(held, Held)
        assert [11] == [port.number for port in held.ports]
        for left in (4, 3, 2, 1):
            assert {"tcp/00010": "cooling", "tcp/00011": "held"} == world.states(), left
            world.wait(30 * SECOND)
            assert isinstance(one.renew(), Renewed)
        assert {"tcp/00011": "held"} == world.states()

    def test_until_the_holder_must_know(self, world: World) -> None:
        """It cools until its lease would have run out, if that is later; that the lease is renewed changes nothing."""
        one = world.open(ttl=MINUTE)
        one.take(ask(10, 10, quarantine=SECOND))
        world.wait(SECOND)
        assert world.force(world.port(10))
        assert MINUTE - SECOND == world.port(10).free_in
        world.wait(SECOND)
        assert isinstance(one.renew(), Renewed)
        assert MINUTE - 2 * SECOND == world.port(10).free_in

    def test_released_before_it_is_told(self, world: World) -> None:
        """Who gives back ports that were taken meanwhile is told which, each once, until it has heard of them."""
        one, two = world.open(), world.open("two")
        first, second, third = one.take(ask(10, 12, 3))
        (other,) = two.take(ask(20, 20))
        for number in (11, 10, 20):
            assert world.force(world.port(number))
        assert Released(1, (first, second)) == one.release(first, third, second, first)
        assert Released(0, (second,)) == one.release(second, second._replace(fence=first.fence), other)
        one.renew(heard=(first.fence,))
        assert Released(0, (second,)) == one.release(first, second)
        one.renew(heard=(second.fence,))
        assert Released(0) == one.release(first, second)

    @pytest.mark.parametrize("state", ["cooling", "foreign"])
    def test_not_held(self, world: World, state: str) -> None:
        """One that cools or is marked as foreign is free at once, and nobody is told."""
        one = world.open()
        (port,) = one.take(ask(10, 10, cooldown=DAY))
        assert one.release(port) if state == "cooling" else one.mark(port, duration=DAY)
        assert state == world.port(10).state
        assert world.force(world.port(10))
        assert ((), Renewed(False)) == (world.view().ports, one.renew())
        assert [10] == numbers(one.take(ask(10, 10)))

    @pytest.mark.parametrize("protocol", ["tcp", "udp", "both"])
    def test_protocols(self, world: World, protocol: Protocol4) -> None:
        """It is the port of this protocol that is taken."""
        one = world.open()
        one.take(ask(10, 10, protocol=protocol), *(ask(11, 11, protocol=kind) for kind in ("tcp", "udp")))
        assert world.force(world.port(10))
        revoked = one.renew()
        assert isinstance(revoked, Renewed)
        assert [(10, protocol)] == [(port.number, port.protocol) for port in revoked.revoked]
        assert ["held", "held"] == [port.state for port in world.view().ports if port.number == 11]

    @pytest.mark.parametrize("state", ["held", "cooling", "foreign"])
    @pytest.mark.parametrize(
        "change",
        [{"fence": START}, {"fence": START + 3}, {"protocol": "udp"}, {"protocol": "both"}, {"number": 11}, {}],
        ids=str,
    )
    def test_changed(self, world: World, state: str, change: dict[str, object]) -> None:
        """One that is not as it was seen, with this fence and in this state, is not touched."""
        one = world.open()
        (port,) = one.take(ask(10, 10, cooldown=DAY))
        if state != "held":
            assert one.release(port) if state == "cooling" else one.mark(port, duration=DAY)
        before, seen = world.settled(), world.port(10)
        states = ["held", "cooling", "foreign"]
        change = change or {"state": states[states.index(state) - 1]}
        assert not world.force(seen._replace(**change))  # type: ignore[arg-type]
        assert before == world.settled()
        assert Renewed(False) == one.renew()

    def test_ran_out_meanwhile(self, world: World) -> None:
        """A port whose lease ran out since it was seen cools already, and goes on doing so."""
        one = world.open()
        one.take(ask(10, 10))
        world.wait(TTL - GRAIN)
        seen = world.port(10)
        world.now += GRAIN
        assert not world.force(seen)
        assert QUARANTINE == world.port(10).free_in

    def test_unknown_space(self, world: World) -> None:
        """Where nobody opened a lease there is nothing to take."""
        assert not world.force(PortView(10, "tcp", "held", "", "", {}, "one", 1, 1, 0, None))
        assert SpaceView("host:a", 0, (), ()) == world.view()

    def test_told_until_heard(self, world: World) -> None:
        """Every heartbeat is answered with the ports that were taken, in that order, until the holder has heard."""
        one = world.open(ttl=DAY)
        first, second, third = one.take(ask(10, 12, 3, quarantine=0))
        for number in (12, 10):
            assert world.force(world.port(number))
        assert Renewed(False, (third, first)) == one.renew()
        world.wait(SECOND)
        assert Renewed(False, (third, first)) == one.renew(heard=(second.fence, first.fence + 99))
        assert Renewed(False, (first,)) == one.renew(heard=(third.fence,))
        assert world.force(world.port(11))
        assert Renewed(False, (first, second)) == one.renew(heard=(third.fence,))
        assert Renewed(False) == one.renew(heard=(first.fence, second.fence))
        assert Renewed(False) == one.renew()

    def test_same_number_twice(self, world: World) -> None:
        """A number that was taken twice is told twice: its fences differ."""
        one = world.open()
        ports: list[Port] = []
        for _ in range(2):
            ports += one.take(ask(10, 10))
            for state in ("held", "cooling"):
                assert state == world.port(10).state
                assert world.force(world.port(10))
        assert Renewed(False, tuple(ports)) == one.renew()

    def test_others_are_not_told(self, world: World) -> None:
        """Only the holder is told, and only it can say that it has heard."""
        one, two = world.open("one"), world.open("two")
        ports = one.take(ask(10, 10))
        two.take(ask(11, 11))
        assert world.force(world.port(10))
        assert Renewed(False) == two.renew(heard=(ports[0].fence,))
        assert Renewed(False, ports) == one.renew()

    def test_successor(self, world: World) -> None:
        """A newer incarnation is told too, even of what the older one had heard of but not confirmed."""
        old = world.open()
        ports = old.take(ask(10, 10))
        assert world.force(world.port(10))
        assert Renewed(False, ports) == old.renew()
        new = world.open(token="b", supersede=old.holder.incarnation)
        assert SUPERSEDED == old.renew(heard=(ports[0].fence,))
        assert Renewed(False, ports) == new.renew()
        assert Renewed(False) == new.renew(heard=(ports[0].fence,))

    @pytest.mark.parametrize("way", ["close", "expiry"])
    def test_ends_with_the_lease(self, world: World, way: str) -> None:
        """A new lease under the same name is told nothing."""
        one = world.open()
        one.take(ask(10, 10))
        assert world.force(world.port(10))
        if way == "close":
            one.close()
        else:
            world.wait(TTL)
        assert Renewed(False) == world.open().renew()

    def test_holder_comes_late(self, world: World) -> None:
        """Whatever the holder does about a port that was taken from it is passed over, and it is told."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        assert world.force(world.port(10))
        before = world.settled()
        assert (Released(0, (port,)), Marked(0)) == (one.release(port), one.mark(port))
        assert Renewed(False, (port,)) == one.renew(1)
        assert before == world.settled()

    def test_counts(self, world: World) -> None:
        """What was taken counts neither for its owner's limit nor as a mark of its range."""
        one = world.open()
        _, second = one.take(ask(10, 11, 2, owner="vm-1", limit=2))
        assert world.force(world.port(10))
        assert isinstance(one.ask(ask(20, 20, owner="vm-1", limit=2)), Granted)
        assert Marked(1) == one.mark(second, most=1, duration=DAY)
        assert world.force(world.port(11))
        assert Marked(1) == one.mark(*one.take(ask(30, 30)), most=1)

    @pytest.mark.parametrize("state", ["held", "cooling", "foreign"])
    def test_stirs(self, world: World, state: str) -> None:
        """Whoever waits for a port that is free by it may have its turn."""
        one, two = world.open("one"), world.open("two")
        (port,) = one.take(ask(10, 10, cooldown=DAY))
        if state != "held":
            assert one.release(port) if state == "cooling" else one.mark(port, duration=DAY)
        two.queue(ask(10, 10))
        world.stirred()
        assert world.force(world.port(10))
        assert (state != "held") == world.stirred()


class TestBury:
    """Leases of processes that are known to be dead."""

    def test_runs_out_now(self, world: World) -> None:
        """It runs out at once, its ports cool for their quarantine from now on, and its name can be used again."""
        one = world.open()
        one.take(ask(10, 11, 2))
        world.wait(SECOND)
        world.bury(one)
        assert EXPIRED == one.renew()
        assert [("cooling", QUARANTINE)] * 2 == [(port.state, port.free_in) for port in world.view().ports]
        assert world.open(token="b").holder.lease != one.holder.lease
        world.wait(QUARANTINE)
        assert {} == world.states()

    def test_no_grace(self, world: World) -> None:
        """A silence afterwards gives it no time."""
        one = world.open()
        world.bury(one)
        world.now += 10 * TTL
        assert not world.view().leases[0].grace
        world.visit()
        assert () == world.view().leases

    def test_others_live(self, world: World) -> None:
        """Only those that were named run out; one that is unknown is passed over."""
        one, two = world.open("one"), world.open("two")
        world.space.bury(world.now, [one.holder.lease, 1, one.holder.lease])
        assert (EXPIRED, Renewed(False)) == (one.renew(), two.renew())

    def test_ran_out_before(self, memory: World) -> None:
        """Ports of a lease that ran out before cool from then on, as they would have."""
        one = memory.open()
        one.take(ask(1, 2 * STEP, 2 * STEP))
        memory.now += TTL + SECOND
        memory.bury(one)
        memory.visit()
        assert {QUARANTINE - SECOND} == {port.free_in for port in memory.view().ports}

    def test_leaves_the_queue(self, world: World) -> None:
        """Its places are given up, and those behind it have their turn."""
        one, two = world.open("one"), world.open("two")
        world.open("holder").take(ask(10, 10))
        one.queue(ask(10, 10))
        ticket = two.queue(ask(10, 10)).ticket
        world.bury(one)
        assert two.queue(ask(10, 10), ticket).first
        assert world.stirred()


class TestTold:
    """What the steps tell of themselves."""

    @pytest.fixture(autouse=True)
    def _log(self, world: World) -> None:
        world.space.told = []

    @staticmethod
    def told(world: World) -> list[tuple[str, int]]:
        """Kind and number of what was told since the last call."""
        told, world.space.told = world.space.told, []
        assert told is not None
        return [(event.kind, event.number) for event in told]

    def test_nothing(self, world: World) -> None:
        """Where there is no log, none is made."""
        world.space.told = None
        one = world.open()
        one.release(*one.take(ask(10, 11, 2)))
        assert world.space.told is None

    def test_fields(self, world: World) -> None:
        """Port and holder as they are then, also when the caller's labels change afterwards."""
        labels = {"k": "v"}
        one = world.open()
        (port,) = one.take(ask(10, 10, protocol="both", owner="vm-1", labels=labels, host="kvm-07"))
        labels.clear()
        about = "backup", "vm-1", {"k": "v"}, "one", one.holder.lease, port.fence, 0, "kvm-07"
        assert [Event("acquired", 10, "both", *about)] == world.space.told

    def test_refused(self, world: World) -> None:
        """Who asked for what, with the number if it was for this very one; no fence."""
        one = world.open()
        one.take(ask(10, 10))
        world.space.told = []
        one.ask(ask(20, 20), one_port(10, owner="vm-1", host="kvm-07", labels={"k": "v"}))
        one.ask(ask(10, 10))
        about = "vm-1", {"k": "v"}, "one", one.holder.lease, 0, 0, "kvm-07"
        first, second = world.space.told
        assert Event("refused", 10, "tcp", "backup", *about) == first
        assert ("refused", 0, 0) == (second.kind, second.number, second.fence)

    def test_brief(self, world: World) -> None:
        """Owner and labels as far as an event keeps them, whatever happens to the port; of the port in full."""
        one, long = world.open(), {"k": "v" * 600}
        (port,) = one.take(ask(10, 10, owner="é" * 300, labels=long))
        one.ask(one_port(10, owner="é" * 300, labels=long))
        one.release(port)
        assert world.space.told is not None
        assert ["acquired", "refused", "released"] == [event.kind for event in world.space.told]
        assert [("é" * 256, {})] * 3 == [(event.owner, event.labels) for event in world.space.told]
        one.take(ask(10, 10, owner="é" * 300, labels=long))
        assert ("é" * 300, long) == (world.port(10).owner, world.port(10).labels)

    def test_labels_of_its_own(self, world: World) -> None:
        """Who changes the labels of an event or of the ask changes nobody else's."""
        one, labels = world.open(), {"k": "v"}
        one.take(ask(10, 10, labels=labels))
        one.ask(one_port(10, labels=labels))
        told = world.space.told or []
        labels["k"] = "of the ask"
        dict.clear(told[0].labels)  # type: ignore[arg-type]
        assert {"k": "v"} == world.port(10).labels == told[1].labels

    def test_queued(self, world: World) -> None:
        """Who waits is not refused, until it gives up."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        ticket = two.queue(ask(10, 10)).ticket
        assert [("acquired", 10)] == self.told(world)
        two.ask(ask(10, 10), wait=Wait(0, ticket))
        assert [("refused", 0)] == self.told(world)

    def test_ends(self, world: World) -> None:
        """Given back, given up by a request, or with the lease: released. In doubt, or without a heartbeat: expired."""
        one = world.open()
        first, *_ = one.take(*(ask(number, number, cooldown=SECOND) for number in (10, 11)))
        one.ask(ask(12, 12), number=7, floor=1)
        self.told(world)
        one.release(first, first)
        one.renew(7)
        one.close()
        assert [("released", 10), ("released", 12), ("released", 11)] == self.told(world)
        two = world.open("two")
        two.take(ask(20, 20))
        two.close(quarantine=True)
        three = world.open("three")
        three.take(ask(30, 30))
        self.told(world)
        world.bury(three)
        world.wait(QUARANTINE)
        told = self.told(world)
        assert ("expired", 30) in told
        assert [("reclaimed", 10), ("reclaimed", 11), ("reclaimed", 20), ("reclaimed", 30)] == sorted(told)[1:]

    def test_steps_of_reclaim(self, world: World) -> None:
        """A visit tells of what it reclaimed, not of what is left for the next."""
        one = world.open()
        one.take(ask(1, STEP + 6, STEP + 6))
        self.told(world)
        world.bury(one)
        world.visit()
        assert [("expired", number) for number in range(1, STEP + 1)] == self.told(world)
        world.visit()
        assert [("expired", number) for number in range(STEP + 1, STEP + 7)] == self.told(world)

    def test_marks(self, world: World) -> None:
        """What is marked is foreign, what is over the bound is released, and a mark that gives way is not told of."""
        one = world.open()
        ports = one.take(ask(10, 11, 2, owner="vm-1"))
        self.told(world)
        one.mark(*ports, most=1, host="kvm-07")
        assert world.space.told is not None
        mark = world.space.told[0]
        assert ("", "kvm-07", {}) == (mark.owner, mark.host, mark.labels)
        assert [("foreign", 10), ("released", 11)] == self.told(world)
        one.take(one_port(10))
        assert [("acquired", 10)] == self.told(world)

    def test_force(self, world: World) -> None:
        """Taken by force, whatever it was; a view that is old tells nothing."""
        one = world.open()
        one.take(ask(10, 10))
        seen = world.port(10)
        self.told(world)
        assert [True, False, True] == [world.force(seen), world.force(seen), world.force(world.port(10))]
        assert [("forced", 10)] * 2 == self.told(world)

    def test_claims(self, world: World) -> None:
        """What was lost is recovered, and taken from whoever has it; what was not lost is no event."""
        one, two = world.open("one"), world.open("two")
        (port,) = two.take(ask(10, 10, owner="vm-2"))
        self.told(world)
        mine = Port(10, "tcp", port.fence + 1)
        one.claim(mine, Port(11, "tcp", port.fence))
        assert world.space.told is not None
        assert ["vm-2", "", ""] == [event.owner for event in world.space.told]
        assert [("forced", 10), ("recovered", 10), ("recovered", 11)] == self.told(world)
        one.claim(mine)
        two.claim(port)
        assert [] == self.told(world)

    def test_nothing_done(self, world: World) -> None:
        """Reads, heartbeats, and steps that are stale or refused for another reason, tell nothing."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        self.told(world)
        stale = port._replace(fence=port.fence + 1)
        one.ask(ask(10, 10), number=1)
        one.release(stale)
        one.mark(stale)
        one.renew()
        one.held()
        world.preview(ask(10, 10))
        world.view()
        world.visit()
        new = world.open(token="b", supersede=one.holder.incarnation)
        assert [SUPERSEDED] * 4 == [one.release(port), one.close(), one.mark(port), one.ask(ask())]
        assert [] == self.told(world)
        new.claim(Port(11, "tcp", port.fence - 1))
        self.told(world)
        assert isinstance(new.ask(ask()), Recovering)
        assert [] == self.told(world)


class TestEmpty:
    def test_empty(self, world: World) -> None:
        """A space is empty before the first lease, and again when no lease and no port that is not free is left."""
        assert world.space.empty()
        one = world.open()
        assert not world.space.empty()
        cooling, marked = one.take(ask(10, 11, 2, cooldown=SECOND))
        one.release(cooling)
        one.mark(marked, duration=2 * SECOND)
        one.close()
        assert not world.space.empty()
        world.wait(SECOND)
        assert ({"tcp/00011": "foreign"}, False) == (world.states(), world.space.empty())
        world.wait(SECOND)
        assert world.space.empty()

    def test_due(self, world: World) -> None:
        """What is due but not reclaimed yet is there still."""
        world.open()
        world.wait(TTL - GRAIN)
        world.now += GRAIN
        assert not world.space.empty()
        world.visit()
        assert world.space.empty()


class TestLostData:
    """The store knows less than it did: holders claim what they have, and nothing is given out meanwhile (S7)."""

    def test_unknown(self, world: World) -> None:
        """A lease that the space never gave is unknown: from before its beginning, or ahead of it."""
        old = world.open()
        world.lose()
        assert UNKNOWN == old.renew()
        kept = world.open("two").world.copied()
        newer = world.open("three")
        world.lose(kept)
        assert [UNKNOWN] * 6 == [
            *(old.renew(), newer.renew(), newer.ask(ask()), newer.release(), newer.held()),
            newer.claim(Port(10, "tcp", 1)),
        ]
        assert ["two"] == [lease.instance for lease in world.view().leases]

    def test_expired(self, world: World) -> None:
        """A lease that the space gave, and that is no more, has expired, to the first and the last it gave."""
        first, last = world.open("one"), world.open("two")
        first.close()
        last.close()
        assert [EXPIRED] * 4 == [first.renew(), last.renew(), first.held(), last.claim(Port(10, "tcp", 1))]

    def test_superseded(self, world: World) -> None:
        """An older incarnation was taken over; a newer one than the space knows has lost its takeover."""
        old = world.open()
        kept = world.copied()
        new = world.open(token="b", supersede=old.holder.incarnation)
        assert (SUPERSEDED, SUPERSEDED, Renewed(False)) == (old.renew(), old.held(), new.renew())
        world.lose(kept)
        assert (Renewed(False), UNKNOWN, UNKNOWN) == (old.renew(), new.renew(), new.held())
        world.wait(TTL)
        assert EXPIRED == new.renew()

    def test_too_new(self, world: World) -> None:
        """A space that began after what its caller knew gives nothing out for a TTL, and then does."""
        (port,) = world.open("one").take(ask())
        world.lose()
        world.open("two")
        assert 0 == world.view().recovering
        one = world.open("one", knew=port.fence)
        assert (TTL, Recovering(TTL)) == (world.view().recovering, one.ask(ask()))
        world.wait(TTL - GRAIN)
        assert Recovering(GRAIN) == one.ask(ask())
        one.renew()
        world.wait(GRAIN)
        assert 0 == world.view().recovering
        assert [10809] == numbers(one.take(ask()))

    def test_too_new_later(self, world: World) -> None:
        """Who comes back to it after it is older than a TTL had time to claim; it gives out as before."""
        (port,) = world.open("one").take(ask())
        world.lose()
        two = world.open("two")
        world.wait(TTL // 2)
        two.renew()
        world.wait(TTL // 2 - SECOND)
        world.open("one", knew=port.fence)
        assert SECOND == world.view().recovering
        world.wait(SECOND)
        world.open("three", knew=port.fence)
        assert (0, [10809]) == (world.view().recovering, numbers(two.take(ask())))

    def test_behind(self, world: World) -> None:
        """A space that has not come to what its caller knew goes on above that, and gives nothing out for a TTL."""
        one = world.open()
        kept = world.copied()
        knew = one.take(ask(count=9))[-1].fence
        world.lose(kept)
        world.now -= DAY
        assert Renewed(False) == one.renew()
        world.wait(SECOND)
        assert Opened(one.holder.lease, one.holder.incarnation, 0) == world.try_open(knew=knew)
        assert (knew, Recovering(TTL)) == (world.view().fence, one.ask(ask()))
        world.wait(TTL // 2)
        one.renew()
        world.wait(TTL // 2)
        assert [knew + 1] == [port.fence for port in one.take(ask())]

    def test_behind_and_occupied(self, world: World) -> None:
        """It is noticed also when the caller does not get the lease."""
        world.open(token="b")
        knew = world.view().fence + 1
        assert isinstance(world.try_open(token="a", knew=knew), Occupied)
        assert (knew, TTL) == (world.view().fence, world.view().recovering)

    def test_known(self, world: World) -> None:
        """A space that knows all that its caller does gives out at once."""
        one = world.open()
        (port,) = one.take(ask())
        world.open("two", knew=one.holder.lease).take(ask())
        world.open("three", knew=port.fence).take(ask())
        world.open("four", knew=world.view().fence).take(ask())
        assert 0 == world.view().recovering

    def test_first(self, world: World) -> None:
        """The first lease of a new space is above what its caller knew of the lost one."""
        knew = START + DAY
        one = world.open(knew=knew)
        assert (knew + 1, Recovering(TTL)) == (one.holder.lease, one.ask(ask()))
        assert Renewed(False) == one.renew()

    def test_late_copy(self, world: World) -> None:
        """A late copy of an open prolongs no recovery, whether the space was too new for it or behind."""
        (port,) = world.open("one").take(ask())
        world.lose()
        for knew in (port.fence, world.now + DAY):
            world.open("one", knew=knew)
            world.wait(SECOND)
            left = world.view().recovering
            world.open("one", knew=knew)
            assert left == world.view().recovering > 0
        world.wait(left)
        world.open("one", knew=port.fence)
        assert 0 == world.view().recovering

    def test_nothing_is_given(self, world: World) -> None:
        """A request while the space recovers is settled, so that no late copy of it is granted, and takes no place."""
        one = world.open(knew=START + DAY)
        before = world.settled()
        asked = [one.ask(ask(), number=1), one.ask(ask(), number=2, floor=1, wait=Wait(WINDOW)), world.preview(ask())]
        assert [Recovering(TTL)] * 3 == asked
        assert before == world.settled()
        world.wait(TTL - GRAIN)
        one.renew()
        world.now += GRAIN  # nobody has seen the space since
        assert Granted((Port(10809, "tcp", 0),), 0) == world.preview(ask())
        assert [Stale(1), Stale(2)] == [one.ask(ask(), number=number, floor=1) for number in (1, 2)]
        assert isinstance(one.ask(ask(), number=3), Granted)

    def test_all_else_goes_on(self, world: World) -> None:
        """While it recovers, what was granted is answered again, and ports are renewed, released, marked, reclaimed."""
        one, two = world.open("one"), world.open("two", ttl=TTL // 2)
        granted = one.ask(ask(10, 13, 4), number=1)
        assert isinstance(granted, Granted)
        two.take(ask(20, 20, quarantine=0))
        world.open("three", knew=START + DAY)
        assert granted == one.ask(ask(10, 13, 4), number=1)
        assert (Released(1), Marked(1)) == (one.release(granted.ports[0]), one.mark(granted.ports[1]))
        world.wait(TTL // 2)
        assert {"tcp/00011": "foreign", "tcp/00012": "held", "tcp/00013": "held"} == world.states()
        assert (Renewed(False), Closed(False)) == (one.renew(), one.close())
        assert TTL - TTL // 2 == world.view().recovering

    def test_not_shortened(self, world: World) -> None:
        """A caller with a shorter TTL does not shorten a recovery, whatever it knew."""
        world.open()
        world.open("two", ttl=3 * TTL, knew=START + DAY)
        for knew in (START - 1, START + 2 * DAY):
            world.open("three", knew=knew)
            assert 3 * TTL == world.view().recovering

    def test_place_is_kept(self, world: World) -> None:
        """A place in the queue stays while the space recovers."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        queued = two.queue(ask(10, 10), window=2 * TTL)
        world.open("three", knew=START + DAY)
        assert Recovering(TTL) == two.ask(ask(10, 10), wait=Wait(WINDOW, queued.ticket))
        assert 1 == world.view().waiting

    def test_claim(self, world: World) -> None:
        """A port is taken back as it was: fence, age, owner, and how it will cool; the space recovers from then on."""
        asked = ask(10, 11, 2, owner="vm-1", labels={"job": "x"}, cooldown=3 * SECOND, protocol="both")
        ports = world.open().take(asked)
        world.wait(5 * SECOND)
        before = world.view().ports
        world.lose()
        one = world.open()
        assert Claimed() == one.claim(*ports, asked=asked)
        assert (TTL, Recovering(TTL)) == (world.view().recovering, one.ask(ask()))
        # The age is counted from the fence, which is the time of the grant but for the other fences of that moment.
        moved = [was._replace(lease=one.holder.lease, age=was.age + SECOND) for was in before]
        assert moved == [port._replace(age=round(port.age / SECOND) * SECOND) for port in world.view().ports]
        assert Released(1) == one.release(ports[0])
        assert 3 * SECOND == world.port(10).free_in
        world.wait(TTL)
        assert QUARANTINE == world.port(11).free_in

    def test_claim_fence_ahead(self, world: World) -> None:
        """A port whose fence is ahead of the store's time is not older than nothing, and fences go on above it."""
        one = world.open()
        fence = START + 9 * SECOND
        assert Claimed() == one.claim(Port(10, "tcp", fence))
        assert (0, fence) == (world.port(10).age, world.view().fence)
        world.wait(10 * SECOND)
        assert 10 * SECOND == world.port(10).age

    def test_claim_counts(self, world: World) -> None:
        """What is taken back counts against its owner's limit, once."""
        asked = ask(10, 20, 2, owner="vm-1", limit=3)
        ports = world.open().take(asked)
        world.lose()
        one = world.open()
        assert [Claimed()] * 2 == [one.claim(*ports, asked=asked) for _ in range(2)]
        world.wait(TTL // 2)
        one.renew()
        world.wait(TTL // 2)
        assert Full(0, None, False, "limit") == one.ask(asked)
        assert [12] == numbers(one.take(asked._replace(count=1)))
        one.release(*ports)
        assert [10, 11] == numbers(one.take(asked))

    def test_labels_are_copied(self, world: World) -> None:
        """What the caller does with its labels after a claim does not alter what was recorded."""
        one, labels = world.open(), {"job": "x"}
        one.claim(Port(10, "tcp", 1), asked=ask(labels=labels))
        labels["job"] = "y"
        assert {"job": "x"} == world.port(10).labels

    def test_higher_fence_wins(self, world: World) -> None:
        """A port that was given to another since is refused; the others are taken back, and from under a mark too: what
        is foreign to one who looked may be the very job of the holder."""
        ports = world.open("one").take(ask(10, 14, 5))
        world.lose()
        two = world.open("two")
        cooling, foreign, held = two.take(ask(11, 13, 3, cooldown=DAY))
        two.release(cooling)
        two.mark(foreign)
        one = world.open("one")
        before = [port for port in world.view().ports if port.state != "foreign"]
        assert Claimed((ports[1], ports[3])) == one.claim(*ports)
        assert before == [port for port in world.view().ports if port.number in (11, 13)]
        assert ([10, 12, 14], Renewed(False), Renewed(False, (), True)) == (
            [port.number for port in world.view().ports if port.lease == one.holder.lease],
            two.renew(ports=1),
            one.renew(ports=5),
        )
        assert Released(1) == two.release(held)

    def test_higher_fence_alone(self, world: World) -> None:
        """Also a claim that takes nothing back shows that the store lost something."""
        (port,) = world.open("one").take(ask(10, 10))
        world.lose()
        world.open("two").take(ask(10, 10))
        assert Claimed((port,)) == world.open("one").claim(port)
        assert TTL == world.view().recovering

    @pytest.mark.parametrize(
        ("had", "claimed"), [("tcp", "tcp"), ("udp", "udp"), ("tcp", "both"), ("udp", "both"), ("both", "udp")]
    )
    def test_lower_fence_loses(self, world: World, had: Protocol4, claimed: Protocol4) -> None:
        """Who has it with a lower fence loses it, and is told with each heartbeat until it has heard."""
        one, two = world.open("one"), world.open("two")
        other, (lower,) = two.take(ask(20, 20)), two.take(ask(10, 10, protocol=had, limit=1))
        higher = Port(10, claimed, lower.fence + 1)
        assert Claimed() == one.claim(higher)
        assert {"tcp/00020": "held", f"{claimed}/00010": "held"} == world.states()
        assert [Renewed(False, (lower,)), Released(0, (lower,)), Renewed(False, (lower,), True)] == [
            two.renew(ports=1),
            two.release(lower),
            two.renew(ports=2),
        ]
        assert (Renewed(False), Renewed(False)) == (two.renew(heard=(lower.fence,)), one.renew(ports=1))
        assert Released(1) == two.release(*other)
        world.wait(TTL - SECOND)
        two.renew()
        world.wait(SECOND)
        assert [11] == numbers(two.take(ask(11, 11, limit=1)))  # what was lost does not count any more

    def test_lower_fences_of_two(self, world: World) -> None:
        """A number for both protocols takes both of those that have one each."""
        one, two, three = (world.open(instance) for instance in ("one", "two", "three"))
        (tcp,), (udp,) = two.take(ask(10, 10)), three.take(ask(10, 10, protocol="udp"))
        assert Claimed((Port(10, "both", udp.fence - 1),)) == one.claim(Port(10, "both", udp.fence - 1))
        assert Claimed() == one.claim(Port(10, "both", udp.fence + 1))
        assert [Renewed(False, (tcp,)), Renewed(False, (udp,))] == [two.renew(), three.renew()]
        assert {"both/00010": "held"} == world.states()

    @pytest.mark.parametrize("state", ["cooling", "foreign"])
    def test_not_held_by_another(self, world: World, state: str) -> None:
        """A port that cools or is marked under a lower fence is taken back, and nobody has to be told."""
        one, two = world.open("one"), world.open("two")
        (port,) = two.take(ask(10, 10, cooldown=DAY))
        assert two.mark(port) if state == "foreign" else two.release(port)
        assert Claimed() == one.claim(port._replace(fence=port.fence + 1))
        assert ({"tcp/00010": "held"}, Renewed(False)) == (world.states(), two.renew())
        world.wait(TTL)
        assert {"tcp/00010": "cooling"} == world.states()

    def test_own_with_lower_fence(self, world: World) -> None:
        """A release and what came after it were lost: the caller has it with the later fence, and lost nothing."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        kept = world.copied()
        one.release(port)
        (later,) = one.take(ask(10, 10))
        world.lose(kept)
        assert Claimed() == one.claim(later)
        assert (later.fence, Renewed(False)) == (world.port(10).fence, one.renew(ports=1))
        assert Claimed((port,)) == one.claim(port)

    def test_own_that_cools(self, world: World) -> None:
        """A port that the lease has let go of, and that cools under the same fence, is held again."""
        one = world.open()
        (port,) = one.take(ask(10, 10, cooldown=DAY))
        one.release(port)
        assert Claimed() == one.claim(port)
        assert {"tcp/00010": "held"} == world.states()

    def test_of_former_lease(self, world: World) -> None:
        """The same port under an earlier lease of the same instance goes over to the present one, and none is told."""
        (port,) = world.open().take(ask(10, 10))
        world.wait(TTL)
        assert "cooling" == world.port(10).state
        again = world.open()
        assert Claimed() == again.claim(port)
        assert (again.holder.lease, "held") == (world.port(10).lease, world.port(10).state)

    def test_former_lease_drains(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """The same, while the ports of the earlier lease are still to be reclaimed."""
        monkeypatch.setattr(_space, "STEP", 1)
        world.space._patient = False
        ports = world.open().take(ask(10, 15, 6))
        world.wait(TTL - SECOND)
        world.now += SECOND
        again = world.open()
        assert Claimed() == again.claim(*ports)
        while world.visit():
            pass
        assert [again.holder.lease] * 6 == [port.lease for port in world.view().ports]
        assert Renewed(False) == again.renew(ports=6)

    def test_same_fence(self, world: World) -> None:
        """Two have a port under the same fence, since the store lost a grant and its time went back: one has it."""
        one, two = world.open("one"), world.open("two")
        kept = world.copied()
        world.now -= DAY
        (port,) = one.take(ask(10, 10))
        world.lose(kept)
        world.now -= DAY
        assert (port,) == two.take(ask(10, 10))
        assert Claimed((port,)) == one.claim(port)
        assert (two.holder.lease, Renewed(False)) == (world.port(10).lease, two.renew(ports=1))

    def test_same_number_twice(self, world: World) -> None:
        """Of two claims of the same number the higher fence is held, and the other refused, in either order."""
        one = world.open()
        low, high = Port(10, "tcp", START - 2), Port(10, "tcp", START - 1)
        assert Claimed((low,)) == one.claim(low, high)
        assert Claimed((low,)) == one.claim(high, low)
        assert [high.fence] == [port.fence for port in world.view().ports]

    def test_claim_again(self, world: World) -> None:
        """The same claim changes nothing the second time, under the same number or a new one."""
        ports = world.open().take(ask(10, 11, 2))
        world.lose()
        one = world.open()
        assert Claimed() == one.claim(*ports, number=1)
        world.wait(SECOND)
        before = world.settled()
        assert [Claimed()] * 2 == [one.claim(*ports, number=number, floor=1) for number in (1, 2)]
        assert before == world.settled()

    def test_claim_late(self, world: World) -> None:
        """A late copy takes nothing back that was released meanwhile, and says so."""
        ports = world.open().take(ask(10, 11, 2))
        world.lose()
        one = world.open()
        one.claim(*ports, number=1)
        one.release(ports[0])
        assert Claimed(ports[:1]) == one.claim(*ports, number=1)
        assert {"tcp/00011": "held"} == world.states()
        one.renew(floor=5)
        assert Claimed(ports[:1]) == one.claim(*ports, number=4)

    def test_claim_abandoned(self, world: World) -> None:
        """One that was abandoned before it came, or after, changes nothing from then on."""
        ports = world.open().take(ask(10, 11, 2))
        world.lose()
        one = world.open()
        one.renew(1)
        assert Claimed(ports) == one.claim(*ports, number=1)
        assert ((), 0) == (world.view().ports, world.view().recovering)
        one.claim(*ports, number=2, floor=1)
        one.renew(2)
        assert Renewed(False) == one.renew(ports=2)

    def test_claim_settles(self, world: World) -> None:
        """A claim settles what is below its floor, and its number is used up."""
        one = world.open()
        granted = one.ask(ask(10, 10), number=1)
        one.claim(number=2, floor=1)
        assert [granted, Stale(2)] == [one.ask(ask(10, 10), number=number, floor=1) for number in (1, 2)]
        one.claim(number=5, floor=4)
        assert [Stale(1), Stale(3)] == [one.ask(ask(10, 10), number=number) for number in (1, 3)]

    def test_nothing_lost(self, world: World) -> None:
        """A claim of nothing but what the lease has begins no recovery."""
        one = world.open()
        ports = one.take(ask(10, 12, 3))
        assert [Claimed()] * 2 == [one.claim(*ports), one.claim()]
        assert (0, [13]) == (world.view().recovering, numbers(one.take(ask(10, 20))))

    def test_claim_while_recovering(self, world: World) -> None:
        """A claim does not prolong a recovery that is under way; one after it begins another, of its lease's TTL."""
        (first, second) = world.open(ttl=2 * TTL).take(ask(10, 11, 2))
        world.lose()
        one = world.open(ttl=2 * TTL)
        two = world.open("two", knew=first.fence)
        world.wait(TTL // 2)
        one.claim(first)
        assert TTL - TTL // 2 == world.view().recovering
        two.renew()
        world.wait(TTL - TTL // 2)
        one.claim(second)
        assert 2 * TTL == world.view().recovering

    def test_taken_by_force(self, world: World) -> None:
        """A port that was taken by force is not claimed back: its holder is to hear of it."""
        one = world.open()
        ports = one.take(ask(10, 11, 2))
        world.force(world.port(10))
        assert Claimed(ports[:1]) == one.claim(*ports)
        assert ({"tcp/00010": "cooling", "tcp/00011": "held"}, 0) == (world.states(), world.view().recovering)
        assert Renewed(False, ports[:1]) == one.renew(ports=1)

    def test_wanted_by_another(self, world: World) -> None:
        """A claim need not wait for those in the queue: its ports were given before they came."""
        one, two = world.open("one"), world.open("two")
        two.queue(ask(10, 11, 3))
        assert Claimed() == one.claim(Port(10, "tcp", START - 5))

    def test_empty(self, world: World) -> None:
        """A space is not empty while it recovers: what was known of that would be lost."""
        world.open(knew=START + DAY).close()
        assert not world.space.empty()
        world.wait(TTL - SECOND)
        assert not world.space.empty()
        world.wait(SECOND)
        assert world.space.empty()

    def test_time_steps(self, server: World) -> None:
        """A step of the store's time ends no recovery; neither does a silence, of which a third of a TTL counts."""
        server.open(knew=START + 2 * DAY)
        server.silence(-DAY)
        assert TTL == server.view().recovering
        server.now += DAY
        assert TTL - TTL // 3 == server.view().recovering
        assert Recovering(TTL - TTL // 3) == server.preview(ask())
        server.visit()
        assert TTL - TTL // 3 == server.view().recovering
        server.now += TTL // 3
        assert TTL - 2 * (TTL // 3) == server.view().recovering

    def test_silence_of_those_who_are_gone(self, server: World) -> None:
        """Where no lease is live, nobody is waited for longer than the time that was set."""
        server.open(knew=START + 2 * DAY)
        server.silence(MINUTE)
        server.silence(MINUTE)
        assert 0 < server.view().recovering
        server.silence(MINUTE)
        assert 0 == server.view().recovering

    def test_asks_with_what_it_knew(self, world: World) -> None:
        """An ask that knows a later fence than the space shows a loss: nothing is given for a TTL, and fences go on."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        assert Recovering(TTL) == one.ask(ask(), knew=port.fence + 50)
        assert (port.fence + 50, TTL) == (world.view().fence, world.view().recovering)
        assert isinstance(one.ask(ask(), knew=port.fence + 50), Recovering)
        world.wait(TTL // 2)
        one.renew()
        world.wait(TTL // 2)
        (later,) = one.take(ask(11, 11))
        assert later.fence > port.fence + 50

    def test_granted_before_is_answered_all_the_same(self, world: World) -> None:
        """The repetition of a request that was granted says nothing of a loss."""
        one = world.open()
        granted = one.ask(ask(10, 10), number=1)
        assert granted == one.ask(ask(10, 10), number=1, knew=START + DAY)
        assert 0 == world.view().recovering

    def test_renews_with_what_it_knew(self, world: World) -> None:
        """A heartbeat that knows a later fence puts the lease in doubt, once, and the space in recovery."""
        one = world.open()
        knew = world.view().fence
        assert Renewed(False) == one.renew(knew=knew)
        assert [Renewed(False, (), True), Renewed(False)] == [one.renew(knew=knew + 1), one.renew(knew=knew + 1)]
        assert (knew + 1, TTL) == (world.view().fence, world.view().recovering)

    def test_trace_of_a_lease(self, world: World) -> None:
        """One that ended is known to have ended; of one that the space may have given there is no trace."""
        one, two = world.open("one"), world.open("two")
        two.close()
        world.silence(3 * TTL)
        world.silence(3 * TTL)
        assert [EXPIRED] * 2 == [one.renew(), two.renew()]
        world.now += SECOND
        three = world.open("three")
        never = Actor(world, Holder("one", three.holder.lease - 1, three.holder.lease - 1))
        assert Gone("expired", forgotten=True) == never.renew()

    def test_traces_are_bounded(self, world: World) -> None:
        """The last 64 leave a trace."""
        actors = [world.open(f"i{number}") for number in range(66)]
        for actor in actors:
            actor.close()
        replies = [actor.renew() for actor in actors]
        assert [Gone("expired", forgotten=True)] * 2 == replies[:2]
        assert [EXPIRED] * 64 == replies[2:]

    def test_doubt(self, world: World) -> None:
        """A holder that has another number of ports than the store is told; one that is not sure is not."""
        one = world.open()
        ports = one.take(ask(10, 12, 3))
        assert [False, True, True, True, False] == [
            reply.doubt for count in (3, 2, 4, 0, -1) if isinstance(reply := one.renew(ports=count), Renewed)
        ]
        one.release(*ports)
        assert [True, False] == [
            reply.doubt for count in (3, 0) if isinstance(reply := one.renew(ports=count), Renewed)
        ]

    def test_doubt_after_what_is_abandoned(self, world: World) -> None:
        """The count is that after the renewal undid what it names."""
        one = world.open()
        one.ask(ask(10, 12, 3), number=1)
        one.ask(ask(20, 20), number=2, floor=1)
        assert Renewed(False) == one.renew(1, ports=1)


class TestQueue:
    """Who comes first is served first; nobody who is gone is waited for."""

    def test_tickets_in_order(self, world: World) -> None:
        """Tickets grow in order of arrival, and only the first one lacks nothing but free ports."""
        one = world.open()
        one.take(ask(10, 10))
        waiting = [world.open(name) for name in "xyz"]
        queued = [actor.queue(ask(10, 10)) for actor in waiting]
        assert [True, False, False] == [reply.first for reply in queued]
        tickets = [reply.ticket for reply in queued]
        assert sorted(set(tickets)) == tickets
        assert 3 == world.view().waiting

    def test_served_in_order(self, world: World) -> None:
        """Freed ports go to the first in the queue, in whichever order the waiting ones ask."""
        one = world.open()
        held = one.take(ask(10, 10))
        waiting = [world.open(name) for name in "xyz"]
        tickets = [actor.queue(ask(10, 10)).ticket for actor in waiting]
        one.release(*held)
        served = []
        for _ in range(3):
            for actor, ticket in reversed(list(zip(waiting, tickets, strict=True))):
                reply = actor.ask(ask(10, 10), wait=Wait(WINDOW, ticket))
                if isinstance(reply, Granted):
                    served.append(actor.holder.instance)
                    actor.release(*reply.ports)
                    break
            tickets = tickets[1:]
            waiting = waiting[1:]
        assert ["x", "y", "z"] == served
        assert 0 == world.view().waiting

    def test_behind_is_not_served(self, world: World) -> None:
        """The second in the queue gets nothing while the first waits, though there would be enough for it."""
        one = world.open()
        ports = one.take(ask(10, 12, 3))
        first, second = world.open("x"), world.open("y")
        ticket, behind = first.queue(ask(10, 12, 2)).ticket, second.queue(ask(10, 12)).ticket
        one.release(ports[0])
        reply = second.queue(ask(10, 12), behind)
        assert (behind, False) == (reply.ticket, reply.first)
        one.release(ports[1])
        assert [10, 11] == numbers(_granted(first.ask(ask(10, 12, 2), wait=Wait(WINDOW, ticket))))
        assert second.queue(ask(10, 12), behind).first

    def test_newcomers(self, world: World) -> None:
        """Whoever does not wait gets none of the ports that somebody waits for, and is told why."""
        one = world.open()
        one.take(ask(10, 10))
        world.open("x").queue(ask(10, 12, 3))
        assert Full(0, None, False, "queue") == one.ask(ask(11, 12))
        assert Full(1, None, False, "queue") == one.ask(ask(13, 14), ask(9, 12, 2))
        assert [13, 9, 14] == numbers(one.take(ask(12, 14), ask(9, 10), ask(11, 14)))
        full = one.ask(one_port(10))
        assert isinstance(full, Full)
        assert ("queue", "held") == (full.why, full.holder and full.holder.state)
        assert Full(0, None, False, "queue") == one.ask(one_port(11))

    @pytest.mark.parametrize(
        ("waits", "asks", "competes"),
        [
            ("tcp", "tcp", True),
            ("tcp", "udp", False),
            ("udp", "tcp", False),
            ("both", "tcp", True),
            ("both", "udp", True),
            ("tcp", "both", True),
            ("udp", "both", True),
            ("both", "both", True),
        ],
    )
    def test_protocols(self, world: World, waits: str, asks: str, competes: bool) -> None:
        """Only those compete who want the same protocol, or both."""
        one = world.open()
        one.take(ask(10, 10, protocol="both"))
        world.open("x").queue(ask(10, 11, 2, protocol=waits))
        reply = one.ask(ask(10, 11, protocol=asks))
        assert (Full(0, None, False, "queue") if competes else Granted) == (reply if competes else type(reply))

    def test_spans(self, world: World) -> None:
        """Only those compete whose spans have a number in common, whatever their range is called."""
        one = world.open()
        one.take(ask(10, 10), ask(20, 20))
        spans = Ask("display", ((10, 10), (20, 22)), 4)
        world.open("x").queue(spans)
        assert [11] == numbers(one.take(ask(11, 19)))
        assert [23] == numbers(one.take(Ask("backup", ((9, 9), (23, 99)), 2))[1:])
        for first, last in ((10, 10), (20, 22), (10, 11), (21, 21)):
            assert Full(0, None, False, "queue") == one.ask(ask(first, last))
        assert [1, 24] == numbers(one.take(ask(1, 99), ask(22, 30)))

    def test_any_before(self, world: World) -> None:
        """It is not only the first in the queue who is waited for."""
        one = world.open()
        one.take(ask(10, 10), ask(20, 20))
        for number in (10, 20):
            assert world.open(f"waits for {number}").queue(ask(number, number + 1, 2)).first
        assert [Full(0, None, False, "queue")] * 2 == [one.ask(ask(11, 11)), one.ask(ask(21, 21))]
        assert not one.queue(ask(21, 21)).first
        assert [12, 22] == numbers(one.take(ask(11, 12), ask(21, 22)))

    def test_single_number(self, world: World) -> None:
        """A number that somebody before wants explicitly is left out of automatic picks, and holds nobody up."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        ticket = world.open("x").queue(one_port(10)).ticket
        one.release(port)
        assert [11, 12] == numbers(one.take(ask(10, 12, 2)))
        assert Full(0, None, False, "queue") == one.ask(ask(10, 12))
        assert Full(0, None, False) == one.ask(ask(11, 12))
        assert [12, 10] == [
            *numbers(one.take(ask(12, 12, protocol="udp"))),
            *numbers(one.take(ask(10, 10, protocol="udp"))),
        ]
        assert 1 == world.view().waiting
        assert world.space._queue.keys() == {ticket}

    def test_single_number_in_both(self, world: World) -> None:
        """One that wants both protocols keeps its number out of the picks of each."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        waiting = world.open("x")
        ticket = waiting.queue(one_port(10, protocol="both")).ticket
        one.release(port)
        assert [11, 11, 12] == [one.take(ask(10, 14, protocol=p))[0].number for p in ("tcp", "udp", "both")]
        assert [10] == numbers(_granted(waiting.ask(one_port(10, protocol="both"), wait=Wait(WINDOW, ticket))))

    def test_single_number_in_a_block(self, world: World) -> None:
        """A block is not laid across a number that somebody before wants."""
        one = world.open()
        (port,) = one.take(ask(11, 11))
        world.open("x").queue(one_port(11))
        one.release(port)
        assert [12, 13] == numbers(one.take(ask(10, 15, 2, align=1)))

    def test_single_number_among_explicit(self, world: World) -> None:
        """Those who want the same number explicitly stand in line for it; another number is free to them."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        first = world.open("x")
        ticket = first.queue(one_port(10)).ticket
        one.release(port)
        assert Full(0, None, False, "queue") == one.ask(one_port(10))
        assert not one.queue(one_port(10)).first
        assert [11] == numbers(one.take(one_port(11)))
        assert [10] == numbers(_granted(first.ask(one_port(10), wait=Wait(WINDOW, ticket))))

    def test_automatic_before_explicit(self, world: World) -> None:
        """Whoever wants one number waits for those before it who would take any."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        ticket = world.open("x").queue(ask(10, 10)).ticket
        second = world.open("y").queue(one_port(10))
        assert (False, True) == (second.first, second.ticket > ticket)
        one.release(port)
        assert Full(0, None, False, "queue") == one.ask(one_port(10))

    def test_waits_for_a_mark_to_be_seen(self, world: World) -> None:
        """A foreign mark is no reason for an explicit ask to wait: it gives way."""
        one = world.open()
        one.mark(*one.take(ask(10, 10)))
        assert isinstance(world.open("x").ask(one_port(10), wait=Wait(WINDOW)), Granted)
        assert 0 == world.view().waiting

    def test_place_is_given_up(self, world: World) -> None:
        """A place for which nobody asks for as long as its window is given up, not a grain earlier."""
        one = world.open(ttl=DAY)
        (port,) = one.take(ask(10, 10))
        world.open("x").queue(ask(10, 10))
        one.release(port)
        world.wait(WINDOW - GRAIN)
        assert Full(0, None, False, "queue") == one.ask(ask(10, 10))
        world.wait(GRAIN)
        assert 0 == world.view().waiting
        assert isinstance(one.ask(ask(10, 10)), Granted)

    def test_place_is_kept(self, world: World) -> None:
        """Asking again keeps the place for another window, which may be another."""
        one = world.open("one", ttl=DAY)
        one.take(ask(10, 10))
        ticket = one.queue(ask(10, 10)).ticket
        for window in (WINDOW, 2 * WINDOW, WINDOW):
            assert Queued(ticket, True, window) == one.queue(ask(10, 10), ticket, window)
            world.wait(window - GRAIN)
        assert 1 == world.view().waiting
        world.wait(GRAIN)
        assert 0 == world.view().waiting

    def test_place_after_an_expiry(self, world: World) -> None:
        """The places of a lease end with it, whether it ran out or was closed."""
        one, dead, other = world.open("one", ttl=DAY), world.open("dead"), world.open("other", ttl=DAY)
        (port,) = one.take(ask(10, 10))
        dead.queue(ask(10, 10), window=TTL + SECOND)
        other.queue(ask(10, 10), window=DAY)
        one.release(port)
        assert Full(0, None, False, "queue") == one.ask(ask(10, 10))
        world.wait(TTL)
        assert EXPIRED == dead.renew()
        assert 1 == world.view().waiting
        other.close()
        assert isinstance(one.ask(ask(10, 10)), Granted)

    def test_old_place(self, world: World) -> None:
        """Who comes back with its ticket has its old place, before those who came after it, also when it was late."""
        one = world.open(ttl=DAY)
        one.take(ask(10, 10))
        late, second = world.open("x", ttl=DAY), world.open("y", ttl=DAY)
        ticket = late.queue(ask(10, 10)).ticket
        world.wait(WINDOW)
        behind = second.queue(ask(10, 10))
        assert (True, 1) == (behind.first, world.view().waiting)
        reply = late.queue(ask(10, 10), ticket)
        assert (ticket, True) == (reply.ticket, reply.first)
        assert not second.queue(ask(10, 10), behind.ticket).first

    def test_served_late(self, world: World) -> None:
        """A late one is also served before those who came after it."""
        one = world.open(ttl=DAY)
        (port,) = one.take(ask(10, 10))
        late, second = world.open("x", ttl=DAY), world.open("y", ttl=DAY)
        ticket = late.queue(ask(10, 10)).ticket
        world.wait(WINDOW)
        second.queue(ask(10, 10))
        one.release(port)
        assert isinstance(late.ask(ask(10, 10), wait=Wait(WINDOW, ticket)), Granted)
        assert 1 == world.view().waiting

    def test_others_ticket(self, world: World) -> None:
        """With the ticket of another lease that is in the queue one has no place before it, but a new one."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        first, thief = world.open("x"), world.open("y")
        ticket = first.queue(ask(10, 10)).ticket
        one.release(port)
        reply = thief.queue(ask(10, 10), ticket)
        assert (False, True) == (reply.first, reply.ticket > ticket)
        assert Full(0, None, False, "queue") == thief.ask(ask(10, 10), wait=Wait(0, ticket))
        assert 2 == world.view().waiting
        assert isinstance(first.ask(ask(10, 10), wait=Wait(WINDOW, ticket)), Granted)

    def test_newer_incarnation(self, world: World) -> None:
        """A ticket belongs to the lease: the newer incarnation of its instance may go on with it."""
        one, old = world.open("one"), world.open("x")
        (port,) = one.take(ask(10, 10))
        ticket = old.queue(ask(10, 10)).ticket
        new = world.open("x", "b", supersede=old.holder.incarnation)
        one.release(port)
        assert SUPERSEDED == old.ask(ask(10, 10), wait=Wait(WINDOW, ticket))
        assert isinstance(new.ask(ask(10, 10), wait=Wait(WINDOW, ticket)), Granted)

    def test_several_places(self, world: World) -> None:
        """One lease may have several places."""
        one = world.open()
        one.take(ask(10, 10))
        tickets = [one.queue(ask(10, 10)).ticket for _ in range(3)]
        assert [(ticket, ticket == tickets[0]) for ticket in tickets] == [
            one.queue(ask(10, 10), ticket)[:2] for ticket in tickets
        ]
        assert 3 == world.view().waiting

    def test_another_ask(self, world: World) -> None:
        """What is asked for at last is what the place is for."""
        one = world.open()
        one.take(ask(10, 10), ask(20, 20))
        ticket = one.queue(ask(10, 11, 2)).ticket
        assert ticket == one.queue(ask(20, 21, 2), ticket).ticket
        assert [11] == numbers(one.take(ask(11, 11)))
        assert Full(0, None, False, "queue") == one.ask(ask(21, 21))

    def test_gives_up(self, world: World) -> None:
        """Without a window the place is given up, unless there is enough now."""
        one = world.open()
        ports = one.take(ask(10, 10))
        tickets = [one.queue(ask(10, 10)).ticket for _ in range(2)]
        assert Full(0, None, False) == one.ask(ask(10, 10), wait=Wait(0, tickets[0]))
        assert world.space._queue.keys() == {tickets[1]}
        one.release(*ports)
        assert [10] == numbers(_granted(one.ask(ask(10, 10), wait=Wait(0, tickets[1]))))
        assert 0 == world.view().waiting
        assert Full(0, None, False) == one.ask(ask(10, 10), wait=Wait(0))

    def test_limit(self, world: World) -> None:
        """An owner at its limit does not wait; a place that it has is given up."""
        one = world.open()
        one.take(ask(10, 10))
        asked = ask(10, 10, owner="vm-1", limit=1)
        ticket = one.queue(asked).ticket
        other = world.open("x").queue(ask(10, 10))
        assert not other.first
        one.take(ask(20, 20, owner="vm-1", limit=1))
        assert Full(0, None, False, "limit") == one.ask(asked, wait=Wait(WINDOW, ticket))
        assert world.space._queue.keys() == {other.ticket}
        assert Full(0, None, False, "limit") == one.ask(asked, wait=Wait(WINDOW))
        assert 1 == world.view().waiting

    def test_request_is_settled(self, world: World) -> None:
        """A late copy of a request that was queued gets nothing: its ticket while that is good, then no answer."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        first = one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        assert isinstance(first, Queued)
        assert first._replace(first=False) == one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        assert Stale(2) == one.ask(ask(10, 10), number=2)
        one.release(port)
        assert first._replace(first=False) == one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        assert isinstance(one.ask(ask(10, 10), number=3, wait=Wait(WINDOW, first.ticket)), Granted)
        assert Stale(2) == one.ask(ask(10, 10), number=2, floor=1, wait=Wait(WINDOW))
        assert 0 == world.view().waiting

    def test_repeated_after_grant(self, world: World) -> None:
        """A granted request that comes again with its ticket is answered with its ports and takes no place."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        ticket = one.queue(ask(10, 10)).ticket
        one.release(port)
        granted = one.ask(ask(10, 10), number=9, wait=Wait(WINDOW, ticket))
        assert isinstance(granted, Granted)
        assert granted == one.ask(ask(10, 10), number=9, wait=Wait(WINDOW, ticket))
        assert 0 == world.view().waiting

    def test_abandoned_place_of_another(self, world: World) -> None:
        """Who abandons a request gives up its own place only, also where another has come back with that ticket."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        queued = one.ask(ask(10, 10), number=9, wait=Wait(SECOND))
        assert isinstance(queued, Queued)
        world.wait(SECOND)
        assert queued.ticket == two.queue(ask(10, 10), queued.ticket).ticket
        one.renew(9)
        assert 1 == world.view().waiting

    def test_ticket_of_the_future(self, world: World) -> None:
        """A ticket that was never given is none, so none can be given twice."""
        one = world.open()
        one.take(ask(10, 10))
        fence = world.view().fence
        reply = one.queue(ask(10, 10), fence + 1)
        assert (fence + 1, True) == (reply.ticket, reply.first)
        assert fence + 2 == one.queue(ask(10, 10), fence + 1000).ticket

    def test_tickets_and_fences(self, world: World) -> None:
        """Tickets and fences come from one count: none is used twice; coming back uses up none."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        ticket = one.queue(ask(10, 10)).ticket
        assert (port.fence + 1, port.fence + 1) == (ticket, world.view().fence)
        one.queue(ask(10, 10), ticket)
        assert ticket == world.view().fence
        assert [ticket + 1] == [port.fence for port in one.take(ask(20, 20))]

    def test_kept_when_met(self, world: World) -> None:
        """Who keeps its place gets ports and is waited for all the same, until its window or its use is over."""
        one, two = world.open("one", ttl=DAY), world.open("two", ttl=DAY)
        (port,) = one.take(ask(10, 11))
        ticket = two.queue(ask(10, 11, 2)).ticket
        one.release(port)
        for _ in range(2):
            world.wait(WINDOW - GRAIN)
            granted = two.ask(ask(10, 11, 2), wait=Wait(WINDOW, ticket, keep=True))
            assert isinstance(granted, Granted)
            two.mark(granted.ports[0], most=0)
            two.release(granted.ports[1])
            assert Full(0, None, False, "queue") == one.ask(ask(10, 11))
            assert not one.queue(ask(10, 11), window=SECOND).first
        assert 2 == world.view().waiting
        world.wait(WINDOW)
        assert 0 == world.view().waiting

    def test_kept_without_a_place(self, world: World) -> None:
        """Who has no ticket has nothing to keep."""
        one = world.open()
        assert isinstance(one.ask(ask(10, 11), wait=Wait(WINDOW, keep=True)), Granted)
        assert 0 == world.view().waiting

    def test_left(self, world: World) -> None:
        """A heartbeat gives up the places that its sender has no use for, and nobody else's."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        mine, others = [one.queue(ask(10, 10)).ticket for _ in range(3)], two.queue(ask(10, 10)).ticket
        world.stirred()
        assert Renewed(False) == one.renew(left=(mine[0], mine[2], others, 1))
        assert {mine[1], others} == world.space._queue.keys()
        assert world.stirred()
        assert Renewed(False) == two.renew(left=(mine[1],))
        assert not world.stirred()
        assert one.queue(ask(10, 10), mine[1]).first

    def test_abandoned(self, world: World) -> None:
        """A queued request that is abandoned has no place any more, and comes to nothing if it arrives again."""
        one, two = world.open("one"), world.open("two")
        one.take(ask(10, 10))
        one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        behind = two.queue(ask(10, 10)).ticket
        world.stirred()
        assert Renewed(False) == one.renew(2)
        assert {behind} == world.space._queue.keys()
        assert world.stirred()
        assert Stale(2) == one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        assert two.queue(ask(10, 10), behind).first

    def test_abandoned_and_served(self, world: World) -> None:
        """Abandoning the request that came first does not undo what the ticket got later."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        queued = one.ask(ask(10, 10), number=2, wait=Wait(WINDOW))
        assert isinstance(queued, Queued)
        one.release(port)
        assert isinstance(one.ask(ask(10, 10), number=3, floor=2, wait=Wait(WINDOW, queued.ticket)), Granted)
        one.renew(2)
        assert {"tcp/00010": "held"} == world.states()

    @pytest.mark.parametrize("way", ["close", "expiry"])
    def test_falls_with_the_lease(self, world: World, way: str) -> None:
        """The places of a lease are given up when it ends, so nobody waits for one who is gone."""
        one, two, three = world.open("one", ttl=DAY), world.open("two"), world.open("three", ttl=DAY)
        (port,) = one.take(ask(10, 10))
        for _ in range(2):
            two.queue(ask(10, 10), window=DAY)
        behind = three.queue(ask(10, 10), window=DAY)
        one.release(port)
        world.stirred()
        if way == "close":
            assert Closed(False) == two.close()
        else:
            world.wait(TTL)
        assert world.stirred()
        assert {behind.ticket} == world.space._queue.keys()
        assert isinstance(three.ask(ask(10, 10), wait=Wait(WINDOW, behind.ticket)), Granted)

    def test_due_in(self, world: World) -> None:
        """Whoever is queued is told when the next thing in the space is due: a lease, a port, or a place."""
        one = world.open(ttl=DAY)
        ports = one.take(ask(10, 10, cooldown=2 * SECOND))
        ticket = one.queue(ask(10, 10), window=3 * SECOND).ticket
        assert 3 * SECOND == one.queue(ask(10, 10), ticket, 3 * SECOND).due_in
        assert 2 * DAY > one.queue(ask(10, 10), ticket, 2 * DAY).due_in
        assert DAY == one.queue(ask(10, 10), ticket, 2 * DAY).due_in
        one.release(*ports)
        world.wait(SECOND)
        assert SECOND == one.queue(ask(10, 10), ticket, 2 * DAY).due_in

    def test_due_now(self, world: World) -> None:
        """While more is due than one visit does, that is now."""
        dead, one = world.open("dead"), world.open("one", ttl=DAY)
        dead.take(ask(1, 200, 200))
        world.wait(TTL - GRAIN)
        world.now += 2 * GRAIN
        assert -GRAIN == one.queue(ask(1, 200)).due_in

    def test_reclaimed_in_steps(self, world: World) -> None:
        """Places that are given up count as what a visit reclaims."""
        one = world.open(ttl=DAY)
        one.take(ask(10, 10))
        for _ in range(STEP + 2):
            one.queue(ask(10, 10))
        world.now += WINDOW
        assert world.visit()
        assert 2 == world.view().waiting
        assert not world.visit()
        assert 0 == world.view().waiting

    def test_silence(self, server: World) -> None:
        """After a silence of the store everybody finds its old place by its ticket."""
        one = server.open()
        (port,) = one.take(ask(10, 10))
        first, second = server.open("x"), server.open("y")
        ticket = first.queue(ask(10, 10)).ticket
        behind = second.queue(ask(10, 10)).ticket
        server.silence(TTL)
        assert 0 == server.view().waiting
        assert second.queue(ask(10, 10), behind).first
        assert first.queue(ask(10, 10), ticket).first
        one.release(port)
        assert isinstance(second.ask(ask(10, 10), wait=Wait(WINDOW, behind)), Queued)
        assert isinstance(first.ask(ask(10, 10), wait=Wait(WINDOW, ticket)), Granted)

    @pytest.mark.parametrize(
        "event",
        ["release", "surplus", "abandoned", "close", "cooled", "unmarked", "given up", "served", "left", "limit"],
    )
    def test_stirred(self, world: World, event: str) -> None:
        """Whatever may give somebody in the queue its turn is told to the backend."""
        one, two, holder = (world.open(name, ttl=DAY) for name in ("one", "two", "holder"))
        ports = holder.take(ask(10, 10, cooldown=SECOND if event == "cooled" else 0))
        if event == "cooled":
            holder.release(*ports)
        elif event == "unmarked":
            holder.mark(*ports, duration=SECOND)
        asked = ask(10, 10, limit=1)
        ahead = one.queue(asked, window=2 * SECOND).ticket
        two.queue(asked, window=DAY)
        if event == "served":
            holder.release(*ports)
        elif event == "limit":
            two.take(ask(20, 20, limit=1))
        world.stirred()
        match event:
            case "release":
                holder.release(*ports)
            case "surplus":
                holder.mark(*ports, most=0)
            case "abandoned":
                holder.renew(1)
            case "close":
                holder.close()
            case "cooled" | "unmarked":
                world.now += SECOND
                world.visit()
            case "given up":
                world.now += 2 * SECOND
                world.visit()
            case "served":
                one.take(ask(30, 30))
                assert not world.stirred()
                assert isinstance(one.ask(asked, wait=Wait(WINDOW, ahead)), Granted)
            case "left" | "limit":
                assert isinstance(one.ask(asked, wait=Wait(0, ahead)), Full)
        assert world.stirred()
        assert not world.stirred()

    def test_stirred_by_taking_over(self, world: World) -> None:
        """An explicit ask for one protocol that takes over a mark for both frees the other protocol's number."""
        one = world.open()
        one.mark(*one.take(ask(10, 10, protocol="both")))
        udp = ask(10, 10, protocol="udp")
        ticket = world.open("x").queue(udp).ticket
        world.stirred()
        one.take(one_port(10))
        assert world.stirred()
        assert world.space._queue.keys() == {ticket}

    def test_not_stirred(self, world: World) -> None:
        """What gives nobody its turn is not told."""
        one = world.open(ttl=DAY)
        ports = one.take(ask(10, 12, 3, cooldown=DAY))
        one.release(*one.take(ask(20, 20)))
        assert not world.stirred()
        ticket = one.queue(ask(10, 12), window=DAY).ticket
        one.queue(ask(10, 12), ticket, DAY)
        one.ask(ask(10, 12))
        one.ask(ask(10, 12), wait=Wait(0))
        one.ask(ask(10, 12), wait=Wait(0, ticket + 99))
        one.take(ask(20, 20))
        one.renew()
        one.mark(ports[0])
        one.release(ports[1])
        one.release(ports[1])
        world.preview(ask(10, 12))
        world.try_open("two")
        world.wait(SECOND)
        assert not world.stirred()
        one.release(*one.take(ask(30, 30)))
        assert world.stirred()

    def test_nobody_left(self, world: World) -> None:
        """The last one to leave the queue stirs nobody."""
        one = world.open()
        (port,) = one.take(ask(10, 10))
        ticket = one.queue(ask(10, 10)).ticket
        one.ask(ask(10, 10), wait=Wait(0, ticket))
        ticket = one.queue(ask(10, 10)).ticket
        one.release(port)
        world.stirred()
        assert isinstance(one.ask(ask(10, 10), wait=Wait(0, ticket)), Granted)
        assert not world.stirred()


def _granted(reply: object) -> tuple[Port, ...]:
    assert isinstance(reply, Granted)
    return reply.ports


def inside(space: Space) -> object:
    """All that a space knows, in a form that can be compared later. Outdated entries of the heap do not count."""
    return copy.deepcopy(
        (
            *(space._seen, space._clock, space._fence, space._names, space._owned, space._foreign, space._last),
            *(space._due, space.stirred, {kind: bytes(bits) for kind, bits in space._taken.items()}),
            [(ticket, lease.id, asked) for ticket, (lease, asked) in space._queue.items()],
            [[getattr(lease, name) for name in lease.__slots__] for lease in space._leases.values()],
            {
                name: (port.state, port.lease.id, port.fence, port.since, port.until, port.ask, port.labels)
                for name, port in space._ports.items()
            },
        )
    )


class TestPreview:
    """What would be given, without giving it."""

    ASKS: ClassVar[dict[str, tuple[Ask, ...]]] = {
        "lowest": (ask(10, 99, 3),),
        "several": (ask(10, 99), ask(10, 99, protocol="udp"), ask(10, 99, 2, protocol="both")),
        "block": (ask(10, 99, 4, align=4),),
        "rotate": (ask(10, 99, 2, rotate=1),),
        "foreign": (one_port(14), one_port(14, protocol="udp")),
        "full": (ask(10, 11),),
        "second is full": (one_port(14), ask(10, 11)),
        "explicit": (one_port(10),),
        "limit": (ask(10, 99, owner="vm-1", limit=1),),
        "queue": (ask(10, 99), ask(198, 202)),
        "left out": (ask(299, 301, 2),),
    }

    @pytest.mark.parametrize("asks", ASKS.values(), ids=ASKS)
    def test_as_acquired(self, world: World, asks: tuple[Ask, ...]) -> None:
        """It is what an acquire would give or refuse now, without fences and time, and changes nothing."""
        one = world.open()
        one.take(ask(10, 10), ask(11, 11, owner="vm-1", limit=1), ask(12, 12, rotate=1), ask(200, 200), ask(300, 300))
        one.mark(*one.take(ask(14, 14, protocol="both")))
        one.queue(ask(200, 201, 2))
        one.queue(one_port(300))
        one.release(*(Port(v.number, v.protocol, v.fence) for v in world.view().ports if v.number == 300))
        world.stirred()
        before = inside(world.space)
        shown = world.preview(*asks)
        assert shown == world.preview(*asks)
        assert before == inside(world.space)
        given = one.ask(*asks)
        if isinstance(given, Granted):
            given = Granted(tuple(port._replace(fence=0) for port in given.ports), 0)
        assert given == shown

    def test_unknown_space(self, world: World) -> None:
        """In a space that nobody opened everything is free, and it stays unopened."""
        assert Granted((Port(10, "tcp", 0), Port(11, "tcp", 0)), 0) == world.preview(ask(10, 20, 2))
        assert SpaceView("host:a", 0, (), ()) == world.view()

    def test_backlog(self, world: World) -> None:
        """What could be reclaimed now is still taken, and the reply says that there is some."""
        one = world.open()
        one.release(*one.take(ask(10, 10, cooldown=SECOND)))
        assert Full(0, None, False) == world.preview(ask(10, 10))
        world.now += SECOND
        before = inside(world.space)
        assert Full(0, None, True) == world.preview(ask(10, 10))
        assert before == inside(world.space)
        world.visit()
        assert Granted((Port(10, "tcp", 0),), 0) == world.preview(ask(10, 10))

    def test_time_left(self, world: World) -> None:
        """How long a port is closed yet is told as of now, also when nobody visited the space meanwhile."""
        one = world.open()
        one.release(*one.take(ask(10, 10, cooldown=4 * SECOND)))
        world.now += SECOND
        full = world.preview(one_port(10))
        assert isinstance(full, Full)
        assert full.holder == world.view().ports[0]
        assert 3 * SECOND == (full.holder and full.holder.free_in)


SMALL = 12
"""So many numbers there are in `test_what_is_picked`."""


def picked_by_hand(taken: set[int], asked: Ask, last: int) -> list[int]:
    """Which numbers an ask gets, by trying them all in order."""
    circle = asked.spans[: asked.rotate] if last else ()
    places = [(number, final) for first, final in circle for number in range(first, final + 1)]
    places.sort(key=lambda place: (place[0] <= last, place[0]))
    rest = asked.spans[len(circle) :]
    places += [(number, final) for first, final in rest for number in range(first, final + 1)]
    if not asked.align:
        free = [number for number in dict.fromkeys(number for number, _ in places) if number not in taken]
        return free[: asked.count] if len(free) >= asked.count else []
    for start, final in places:
        block = range(start, start + asked.count)
        if start % asked.align == 0 and block[-1] <= final and not taken & set(block):
            return list(block)
    return []


@st.composite
def any_spans(draw: st.DrawFn) -> tuple[tuple[tuple[int, int], ...], int]:
    """Spans, and how many of them are a circle: those ascend and lie apart, the others lie anywhere else."""
    cuts = sorted(draw(st.sets(st.integers(1, SMALL), min_size=2, max_size=6)))
    apart = [(cuts[i], cuts[i + 1] - 1 if i + 2 < len(cuts) else cuts[i + 1]) for i in range(0, len(cuts) - 1, 2)]
    if draw(st.booleans()):
        rest = draw(st.lists(st.tuples(st.integers(1, SMALL), st.integers(0, 4)), max_size=2))
        return tuple(apart + [(first, min(first + size, SMALL)) for first, size in rest]), 0
    circle = draw(st.integers(1, len(apart)))
    return tuple(apart[-circle:] + apart[:-circle]), circle


@given(
    tcp=st.sets(st.integers(1, SMALL), max_size=SMALL),
    udp=st.sets(st.integers(1, SMALL), max_size=SMALL),
    spans=any_spans(),
    last=st.integers(0, SMALL + 1),
    count=st.integers(1, 5),
    align=st.sampled_from([0, 0, 1, 2, 3]),
    protocol=st.sampled_from(["tcp", "udp", "both"]),
)
def test_what_is_picked(
    tcp: set[int],
    udp: set[int],
    spans: tuple[tuple[tuple[int, int], ...], int],
    last: int,
    count: int,
    align: int,
    protocol: Protocol4,
) -> None:
    """Whatever is taken, an ask gets the first numbers in its order that are free, or nothing."""
    world = World(Space("host:a"))
    one = world.open()
    if last:
        one.release(*one.take(Ask("backup", ((last, last),), rotate=1)))
    for each, kind in ((tcp, "tcp"), (udp, "udp")):
        one.take(*(ask(number, number, protocol=kind) for number in sorted(each)))
    asked = Ask("backup", spans[0], count, protocol, align=align, rotate=spans[1])
    reply = one.ask(asked)
    taken = {"tcp": tcp, "udp": udp, "both": tcp | udp}[protocol]
    assert picked_by_hand(taken, asked, last) == (numbers(reply.ports) if isinstance(reply, Granted) else [])


KINDS: dict[Protocol4, tuple[Protocol4, ...]] = {"tcp": ("tcp",), "udp": ("udp",), "both": ("tcp", "udp")}


@st.composite
def any_ask(draw: st.DrawFn) -> Ask:
    first = draw(st.integers(1, 5))
    explicit = draw(st.sampled_from([False, False, True]))
    return ask(
        first,
        first if explicit else first + draw(st.integers(0, 3)),
        1 if explicit else draw(st.sampled_from([1, 1, 2, 4])),
        protocol=draw(st.sampled_from(["tcp", "tcp", "udp", "both"])),
        quarantine=first % 3 * SECOND,
        cooldown=draw(st.sampled_from([0, 0, 2 * SECOND])),
        align=0 if explicit else draw(st.sampled_from([0, 0, 1, 2])),
        rotate=0 if explicit else draw(st.sampled_from([0, 0, 1])),
        limit=draw(st.sampled_from([0, 0, 3])),
        owner=draw(st.sampled_from(["", "vm-1"])),
        explicit=explicit,
        running=explicit and draw(st.booleans()),
    )


class Told(NamedTuple):
    """What a holder believes to hold."""

    port: Port
    lease: int
    ask: Ask


class SmallWorld(RuleBasedStateMachine):
    """Random steps in a world so small that everything collides, with the safety rules checked after each.

    ``believed`` is what the holders were told, kept apart from the space: nobody may be given a port before
    whoever was told of it gave it back, or had a TTL and a quarantine without a renewal. ``closed`` says until when
    a number may not be given at all, and whether only a foreign mark is the reason.
    """

    actors: list[Actor]

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()

    def teardown(self) -> None:
        self.patch.undo()

    @initialize(server=st.booleans(), step=st.sampled_from([1, 2, STEP]))
    def start(self, server: bool, step: int) -> None:
        self.patch.setattr(_space, "STEP", step)
        self.max_gap = MAX_GAP if server else None
        self.world = World(Space("host:a", max_gap=self.max_gap))
        self.actors = []
        self.clock = 0
        self.seen = self.world.now
        self.renewed: dict[int, tuple[int, int]] = {}
        self.believed: dict[tuple[str, int], Told] = {}
        self.closed: dict[tuple[str, int], tuple[int, bool]] = {}
        self.fences: set[int] = set()
        self.tickets = [0]
        for instance in "xy":
            self.open(instance, "a", False, 2)

    def any_actor(self, data: st.DataObject) -> Actor:
        """Mostly one with a live lease."""
        if not data.draw(st.integers(0, 7)):
            return data.draw(st.sampled_from(self.actors))
        if not self.live():
            self.open("x", "b", False, 2)
        return data.draw(st.sampled_from(self.live()))

    def live(self) -> list[Actor]:
        return [actor for actor in self.actors if isinstance(self.space._live(actor.holder), _space._Lease)]

    @rule(
        step=st.sampled_from([GRAIN, SECOND, SECOND, QUARANTINE])
        | st.sampled_from([1, GRAIN - 1, TTL // 3, TTL // 3 + 1, TTL - 1, TTL, QUARANTINE, 3 * TTL, DAY, -SECOND, -DAY])
    )
    def pass_time(self, step: int) -> None:
        self.world.now += step
        gap = self.world.now - self.seen
        if gap >= GRAIN:
            self.clock += min(gap, self.max_gap or gap)
        if gap < 0 or gap >= GRAIN:
            self.seen = self.world.now
        self.world.visit()

    @rule(instance=st.sampled_from("xy"), token=st.sampled_from("ab"), seen=st.booleans(), ttl=st.sampled_from([1, 2]))
    def open(self, instance: str, token: str, seen: bool, ttl: int) -> None:
        supersede = 0
        if seen and isinstance(reply := self.world.try_open(instance, token, ttl=ttl * TTL), Occupied):
            supersede = reply.incarnation
        known = {(lease.lease, lease.incarnation) for lease in self.world.view().leases}
        reply = self.world.try_open(instance, token, ttl=ttl * TTL, supersede=supersede)
        if isinstance(reply, Opened):
            self.actors.append(Actor(self.world, Holder(instance, reply.lease, reply.incarnation)))
            if (reply.lease, reply.incarnation) not in known or reply.lease not in self.renewed:
                self.renewed[reply.lease] = (self.clock, ttl * TTL)

    @rule(data=st.data(), asks=st.lists(any_ask(), min_size=1, max_size=2), window=st.sampled_from([0, SECOND, TTL]))
    def acquire(self, data: st.DataObject, asks: list[Ask], window: int) -> None:
        actor = self.any_actor(data)
        wait = None
        if len(asks) == 1 and data.draw(st.booleans()):
            ticket = data.draw(st.sampled_from(self.tickets)) + data.draw(st.sampled_from([0, 0, 0, 1, DAY]))
            wait = Wait(window, ticket, data.draw(st.booleans()))
        number = max(1, actor.number + data.draw(st.sampled_from([1] * 9 + [0, -1, 3])))
        self.ask(actor, number, data.draw(st.integers(0, 3)), asks, wait)

    def ask(self, actor: Actor, number: int, back: int, asks: list[Ask], wait: Wait | None) -> None:
        actor.number = max(actor.number, number)
        before = self.before(actor, wait)
        due = any(at <= self.clock for at in self.space._due.values())
        shown = None if wait or due else self.world.preview(*asks)
        reply = actor.ask(*asks, number=number, floor=max(1, number - back), wait=wait)
        if isinstance(reply, Granted):
            if reply.ports[0].fence in self.fences:
                return  # an old reply, once more
            its_ask = [each for each in asks for _ in range(each.count)]
            for port, each in zip(reply.ports, its_ask, strict=True):
                self.told(actor.holder.lease, port, each)
                self.nobody_before(before, port, each)
                assert not each.limit or self.owned()[each.range, each.owner] <= each.limit
            reply = Granted(tuple(port._replace(fence=0) for port in reply.ports), 0)
        elif isinstance(reply, Queued):
            self.tickets.append(reply.ticket)
        assert isinstance(reply, Gone | Stale | Queued) or shown in (reply, None)

    def before(self, actor: Actor, wait: Wait | None) -> list[Ask]:
        """What those in the queue want who are before this one."""
        queue = self.space._queue
        ticket = wait.ticket if wait and wait.ticket <= self.space._fence else 0
        if ticket in queue and queue[ticket][0].id != actor.holder.lease:
            ticket = 0
        return [
            wanted
            for other, (_, wanted) in queue.items()
            if self.space._due[f"wait/{other:016d}"] > self.clock and (not ticket or other < ticket)
        ]

    def nobody_before(self, before: list[Ask], port: Port, asked: Ask) -> None:
        for wanted in () if asked.running else before:
            if set(KINDS[wanted.protocol]) & set(KINDS[asked.protocol]):
                assert not any(first <= port.number <= last for first, last in wanted.spans)

    def told(self, lease: int, port: Port, asked: Ask) -> None:
        assert all(port.fence > fence for fence in self.fences)
        self.fences.add(port.fence)
        name = (port.protocol, port.number)
        for other in _space._OVER[port.protocol]:
            if (before := self.believed.pop((other, port.number), None)) is not None:
                renewed, ttl = self.renewed[before.lease]
                closed = 0 if asked.running else before.ask.quarantine
                assert self.clock >= renewed + ttl + closed, f"{port} was {before}"
        for kind in KINDS[port.protocol]:
            until, foreign = self.closed.get((kind, port.number), (0, False))
            assert self.clock >= until or (foreign and asked.explicit) or asked.running
        if asked.explicit:
            self.forget_marks(port.number)
        view = next(view for view in self.world.view().ports if (view.protocol, view.number) == name)
        self.believed[name] = Told(port, lease, asked)
        assert ("held", port.fence, lease) == (view.state, view.fence, view.lease)

    def forget_marks(self, number: int) -> None:
        """A mark that was taken over is gone, also for the protocol that nobody took."""
        marked = {
            kind
            for view in self.world.view().ports
            if view.number == number and view.state == "foreign"
            for kind in KINDS[view.protocol]
        }
        for kind in {"tcp", "udp"} - marked:
            if self.closed.get((kind, number), (0, False))[1]:
                del self.closed[kind, number]

    def holder_or_any(self, data: st.DataObject, lease: int) -> Actor:
        """Mostly the newest that has this lease."""
        its = [actor for actor in self.actors if actor.holder.lease == lease]
        return its[-1] if data.draw(st.integers(0, 5)) else self.any_actor(data)

    def close_until(self, port: Port, until: int, *, foreign: bool = False) -> None:
        del self.believed[port.protocol, port.number]
        for kind in KINDS[port.protocol]:
            self.closed[kind, port.number] = (until, foreign)

    @rule(data=st.data(), asked=any_ask())
    def come_back(self, data: st.DataObject, asked: Ask) -> None:
        """Everybody in the queue, for the same as before, in any order; then somebody else."""
        queue = self.space._queue
        for ticket in data.draw(st.permutations(sorted(queue))):
            its = [actor for actor in self.live() if ticket in queue and actor.holder.lease == queue[ticket][0].id]
            if its:
                self.ask(its[0], its[0].number + 1, 0, [queue[ticket][1]], Wait(SECOND, ticket))
        actor = self.any_actor(data)
        self.ask(actor, actor.number + 1, 0, [asked], Wait(SECOND))

    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 0, 1]))
    def release(self, data: st.DataObject, wrong: int) -> None:
        if not self.believed:
            return
        port, lease, asked = data.draw(st.sampled_from(list(self.believed.values())))
        actor = self.holder_or_any(data, lease)
        while self.world.visit():
            pass
        held = self.world.states()
        reply = actor.release(port._replace(fence=port.fence + wrong))
        if reply == Released(1) and isinstance(reply, Released):
            assert (lease, 0) == (actor.holder.lease, wrong)
            self.close_until(port, self.clock + asked.cooldown)
        else:
            assert held == self.world.states()

    @rule(
        data=st.data(),
        wrong=st.sampled_from([0, 0, 0, 1]),
        duration=st.sampled_from([GRAIN, SECOND, TTL]),
        most=st.integers(0, 3),
    )
    def mark(self, data: st.DataObject, wrong: int, duration: int, most: int) -> None:
        if not self.believed:
            return
        port, lease, _ = data.draw(st.sampled_from(list(self.believed.values())))
        actor = self.holder_or_any(data, lease)
        while self.world.visit():
            pass
        before = self.world.states()
        reply = actor.mark(port._replace(fence=port.fence + wrong), duration=duration, most=most)
        if reply == Marked(1) and isinstance(reply, Marked):
            assert (lease, 0) == (actor.holder.lease, wrong)
            assert most >= sum(view.state == "foreign" for view in self.world.view().ports)
            self.close_until(port, self.clock + duration, foreign=True)
        elif before != self.world.states():
            assert (Marked(0), lease, 0) == (reply, actor.holder.lease, wrong)
            assert most <= list(before.values()).count("foreign")
            del self.believed[port.protocol, port.number]

    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 0, 1]))
    def force(self, data: st.DataObject, wrong: int) -> None:
        held = self.held()
        ports = self.world.view().ports
        if not ports:
            return
        port = data.draw(st.sampled_from(ports))
        before = self.world.states()
        left = {lease.lease: lease.expires_in for lease in self.world.view().leases}
        if not self.world.force(port._replace(fence=port.fence + wrong)):
            assert (1, before) == (wrong, self.world.states())
        elif port.fence in held:
            told = self.believed[port.protocol, port.number]
            assert (port.fence, 0) == (told.port.fence, wrong)
            self.close_until(told.port, self.clock + max(told.ask.quarantine, left[port.lease]))
        else:
            assert not wrong
            believed = self.believed.get((port.protocol, port.number))
            if believed is not None and believed.port.fence == port.fence:  # its lease ran out
                del self.believed[port.protocol, port.number]
                return
            for kind in KINDS[port.protocol]:
                del self.closed[kind, port.number]

    @rule(data=st.data(), chance=st.integers(0, 3))
    def bury(self, data: st.DataObject, chance: int) -> None:
        if not chance:
            actor = self.any_actor(data)
            renewed, ttl = self.renewed[actor.holder.lease]
            self.world.bury(actor)
            self.renewed[actor.holder.lease] = (min(renewed, self.clock - ttl), ttl)
            assert EXPIRED == actor.renew()

    @rule(data=st.data(), floor=st.integers(1, 4), abandoned=st.sets(st.integers(1, 8), max_size=2))
    def renew(self, data: st.DataObject, floor: int, abandoned: set[int]) -> None:
        actor = self.any_actor(data)
        held = self.held()
        left = data.draw(st.lists(st.sampled_from(self.tickets), max_size=2))
        others = {ticket for ticket, (lease, _) in self.space._queue.items() if lease.id != actor.holder.lease}
        revoked = {port.fence for lease in self.space._leases.values() for port in lease.revoked}
        heard = data.draw(st.lists(st.sampled_from(sorted({0, *revoked})), max_size=2))
        reply = actor.renew(*abandoned, floor=floor, left=tuple(left), heard=tuple(heard))
        assert others <= self.space._queue.keys()
        if isinstance(reply, Renewed):
            self.renewed[actor.holder.lease] = (self.clock, self.renewed[actor.holder.lease][1])
            assert not {port.fence for port in reply.revoked} & ({*heard} | self.held())
            for told in self.given_back(held, actor):  # by undoing a request: its holder was never told of them
                del self.believed[told.port.protocol, told.port.number]

    @rule(data=st.data(), quarantine=st.booleans())
    def close(self, data: st.DataObject, quarantine: bool) -> None:
        actor = self.any_actor(data)
        held = self.held()
        if isinstance(actor.close(quarantine=quarantine), Closed):
            for told in self.given_back(held, actor):
                self.close_until(told.port, self.clock + (told.ask.quarantine if quarantine else told.ask.cooldown))

    def held(self) -> set[int]:
        """The fences of all held ports, once nothing is due."""
        while self.world.visit():
            pass
        return {view.fence for view in self.world.view().ports if view.state == "held"}

    def given_back(self, held: set[int], actor: Actor) -> list[Told]:
        """What was held before, and is not any more; it can only be the actor's own."""
        gone = held - self.held()
        told = [told for told in self.believed.values() if told.port.fence in gone]
        assert {actor.holder.lease} >= {each.lease for each in told}
        return told

    @rule(chance=st.integers(0, 15))
    def all_die(self, chance: int) -> None:
        """When nobody renews any more, everything is free again in the end."""
        if not chance:
            for _ in range(3):
                self.pass_time(MAX_GAP)
                while self.world.visit():
                    pass
            view = self.world.view()
            assert ((), (), 0) == (view.leases, view.ports, view.waiting)
            assert not any(any(bits) for bits in self.space._taken.values())

    @property
    def space(self) -> Space:
        return self.world.space

    def owned(self) -> Counter[tuple[str, str]]:
        held = (port for port in self.space._ports.values() if port.state == "held")
        return Counter((port.ask.range, port.ask.owner) for port in held if port.ask.limit)

    @invariant()
    def bitmap_is_ports(self) -> None:
        """A number is taken exactly while there is a port of that number, in each protocol that the port has."""
        ports = [_space.parse_member(name) for name in self.space._ports]
        expected = {kind: {number for protocol, number in ports if kind in KINDS[protocol]} for kind in ("tcp", "udp")}
        expected["both"] = expected["tcp"] | expected["udp"]
        assert expected == {
            kind: {number for number in range(16) if bits[number]} for kind, bits in self.space._taken.items()
        }
        taken = [(kind, number) for protocol, number in ports for kind in KINDS[protocol]]
        assert sorted(set(taken)) == sorted(taken)

    @invariant()
    def counts_are_right(self) -> None:
        """Owners' ports and foreign marks are as many as one counts."""
        assert self.owned() == self.space._owned
        marks = Counter(port.ask.range for port in self.space._ports.values() if port.state == "foreign")
        assert marks == self.space._foreign

    @invariant()
    def held_belongs_to_lease(self) -> None:
        """A held port is in the list of one lease, live or draining; a cooling or foreign one in none."""
        listed = [(name, lease.id) for lease in self.space._leases.values() for name in lease.ports]
        held = [(name, port.lease.id) for name, port in self.space._ports.items() if port.until is None]
        assert sorted(held) == sorted(listed)
        assert all((port.state == "held") == (port.until is None) for port in self.space._ports.values())

    @invariant()
    def all_due_is_queued(self) -> None:
        """Each lease, each port that is not held and each place, and nothing else, waits for its time."""
        due = {f"lease/{lease.id}": lease.expires for lease in self.space._leases.values()}
        due |= {name: port.until for name, port in self.space._ports.items() if port.until is not None}
        places = {f"wait/{ticket:016d}" for ticket in self.space._queue}
        assert due == {name: at for name, at in self.space._due.items() if not name.startswith("wait/")}
        assert places == {name for name in self.space._due if name.startswith("wait/")}
        assert {(at, name) for name, at in self.space._due.items()} <= set(self.space._heap)

    @invariant()
    def names_lead_to_leases(self) -> None:
        """A name leads to a lease of that name, and each live lease is found under its name."""
        named = {name: self.space._leases[id].instance for name, id in self.space._names.items()}
        assert all(name == instance for name, instance in named.items())
        live = {lease.id for lease in self.space._leases.values() if lease.expires > self.space._clock}
        assert live <= set(self.space._names.values())

    @invariant()
    def clock_is_bounded(self) -> None:
        """The lease clock is the time that passed, never back, never more than a bounded gap at once."""
        assert self.clock == self.space._clock

    @invariant()
    def nothing_is_left_over(self) -> None:
        """Of what is due after a visit the visitor is told."""
        if not self.world.visit():
            assert all(at > self.space._clock for at in self.space._due.values())


TestSmallWorld = SmallWorld.TestCase
