"""The rules of one space, one after the other, on a clock that stands still until it is moved.

The letters are those of the guarantees: S safety, L liveness, H the holder's side.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from clusterports import _space
from clusterports._space import GRAIN, MAX_GAP, STEP, Space, member
from clusterports.abc import (
    Ask,
    Closed,
    Full,
    Gone,
    Granted,
    Held,
    Holder,
    LeaseView,
    Occupied,
    Opened,
    Port,
    PortView,
    Reclaimed,
    Released,
    Renewal,
    Renewed,
    Request,
    SpaceView,
    Stale,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

SECOND = 1_000_000
DAY = 86_400 * SECOND
TTL = 30 * SECOND
QUARANTINE = 15 * SECOND
START = 1_750_000_000 * SECOND


@dataclasses.dataclass
class Actor:
    """A process with a lease, which numbers its requests."""

    world: World
    holder: Holder
    number: int = 0

    def ask(self, *asks: Ask, number: int | None = None, floor: int | None = None) -> Granted | Full | Gone | Stale:
        if number is None:
            number = self.number = self.number + 1
        return self.world.space.acquire(self.world.now, self.holder, Request(number, floor or number), asks)

    def take(self, *asks: Ask, floor: int | None = None) -> tuple[Port, ...]:
        reply = self.ask(*asks, floor=floor)
        assert isinstance(reply, Granted)
        return reply.ports

    def renew(self, *abandoned: int, floor: int = 1) -> Renewed | Gone:
        return self.world.space.renew(self.world.now, Renewal("host:a", self.holder, floor, abandoned))

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

    def open(self, instance: str = "one", token: str = "a", *, ttl: int = TTL, supersede: int = 0) -> Actor:
        reply = self.try_open(instance, token, ttl=ttl, supersede=supersede)
        assert isinstance(reply, Opened)
        return Actor(self, Holder(instance, reply.lease, reply.incarnation))

    def try_open(
        self, instance: str = "one", token: str = "a", *, ttl: int = TTL, supersede: int = 0
    ) -> Opened | Occupied:
        return self.space.open(self.now, instance, token, ttl, supersede)

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


def numbers(ports: Iterable[Port]) -> list[int]:
    return [port.number for port in ports]


EXPIRED = Gone("expired")
SUPERSEDED = Gone("superseded")


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
        assert Full(0, holder, False) == two.ask(ask(10809, 10809))
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
        full = two.ask(ask(10809, 10809))
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
        assert Full(1, None, False) == world.open().ask(ask(10, 10), ask(10, 10))

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
        assert SUPERSEDED == forged.renew()

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
        assert [EXPIRED] * 5 == [ghost.ask(ask()), ghost.renew(), ghost.release(), ghost.close(), ghost.held()]
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


class SmallWorld(RuleBasedStateMachine):
    """Random steps in a world so small that everything collides, with the safety rules checked after each.

    ``believed`` is what the holders were told, kept apart from the space: nobody may be given a port before
    whoever was told of it gave it back, or had a TTL and a quarantine without a renewal.
    """

    actors: list[Actor]
    seen: int

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
        self.renewed: dict[int, tuple[int, int]] = {}
        self.believed: dict[tuple[str, int], tuple[Port, int, int]] = {}
        self.fences: set[int] = set()

    @rule(
        step=st.sampled_from(
            [1, GRAIN - 1, GRAIN, SECOND, TTL // 3, TTL // 3 + 1, TTL - 1, TTL, QUARANTINE, 3 * TTL, DAY, -SECOND, -DAY]
        )
    )
    def pass_time(self, step: int) -> None:
        self.world.now += step
        if self.actors:
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
            if not self.actors:
                self.seen = self.world.now
            self.actors.append(Actor(self.world, Holder(instance, reply.lease, reply.incarnation)))
            if (reply.lease, reply.incarnation) not in known or reply.lease not in self.renewed:
                self.renewed[reply.lease] = (self.clock, ttl * TTL)

    @rule(data=st.data(), first=st.integers(1, 6), size=st.integers(0, 5), count=st.integers(1, 4), udp=st.booleans())
    def acquire(self, data: st.DataObject, first: int, size: int, count: int, udp: bool) -> None:
        if not self.actors:
            return
        actor = data.draw(st.sampled_from(self.actors))
        asks = [ask(first, first + size, count, quarantine=first % 3 * SECOND)]
        if udp:
            asks.append(ask(1, 4, protocol="udp"))
        number = max(1, actor.number + data.draw(st.sampled_from([1, 1, 1, 1, 0, -1, 3])))
        back = data.draw(st.integers(0, 3))
        actor.number = max(actor.number, number)
        reply = actor.ask(*asks, number=number, floor=max(1, number - back))
        if isinstance(reply, Granted):
            for port in reply.ports:
                self.told(actor.holder.lease, port)

    def told(self, lease: int, port: Port) -> None:
        if port.fence in self.fences:
            return  # an old reply, once more
        assert all(port.fence > fence for fence in self.fences)
        self.fences.add(port.fence)
        name = (port.protocol, port.number)
        if name in self.believed:
            before, its_lease, quarantine = self.believed[name]
            renewed, ttl = self.renewed[its_lease]
            assert self.clock >= renewed + ttl + quarantine, f"{port} was {before}"
        view = next(view for view in self.world.view().ports if (view.protocol, view.number) == name)
        self.believed[name] = (port, lease, self.space._ports[member(*name)].ask.quarantine)
        assert ("held", port.fence, lease) == (view.state, view.fence, view.lease)

    @rule(data=st.data(), wrong=st.sampled_from([0, 0, 0, 1]))
    def release(self, data: st.DataObject, wrong: int) -> None:
        if not self.actors or not self.believed:
            return
        actor = data.draw(st.sampled_from(self.actors))
        port, lease, _ = data.draw(st.sampled_from(list(self.believed.values())))
        while self.world.visit():
            pass
        held = self.world.states()
        reply = actor.release(port._replace(fence=port.fence + wrong))
        if reply == Released(1) and isinstance(reply, Released):
            assert (lease, 0) == (actor.holder.lease, wrong)
            del self.believed[(port.protocol, port.number)]
        else:
            assert held == self.world.states()

    @rule(data=st.data(), floor=st.integers(1, 4), abandoned=st.sets(st.integers(1, 8), max_size=2))
    def renew(self, data: st.DataObject, floor: int, abandoned: set[int]) -> None:
        if self.actors:
            actor = data.draw(st.sampled_from(self.actors))
            if actor.renew(*abandoned, floor=floor) in (Renewed(False), Renewed(True)):
                self.renewed[actor.holder.lease] = (self.clock, self.renewed[actor.holder.lease][1])
                self.forget_freed()

    @rule(data=st.data(), quarantine=st.booleans())
    def close(self, data: st.DataObject, quarantine: bool) -> None:
        if self.actors:
            actor = data.draw(st.sampled_from(self.actors))
            if isinstance(actor.close(quarantine=quarantine), Closed):
                self.believed = {n: b for n, b in self.believed.items() if b[1] != actor.holder.lease}

    def forget_freed(self) -> None:
        """An abandoned request's ports: its holder was never told of them."""
        held = {(view.protocol, view.number, view.fence) for view in self.world.view().ports}
        self.believed = {n: b for n, b in self.believed.items() if (*n, b[0].fence) in held}

    @property
    def space(self) -> Space:
        return self.world.space

    @invariant()
    def bitmap_is_ports(self) -> None:
        """A number is taken exactly while there is a port of that number."""
        taken = {
            member(protocol, number)
            for protocol, bits in self.space._taken.items()
            for number in range(16)
            if bits[number]
        }
        assert set(self.space._ports) == taken

    @invariant()
    def held_belongs_to_lease(self) -> None:
        """A held port is in the list of one lease, live or draining; a cooling one in none."""
        listed = [(name, lease.id) for lease in self.space._leases.values() for name in lease.ports]
        held = [(name, port.lease.id) for name, port in self.space._ports.items() if port.until is None]
        assert sorted(held) == sorted(listed)

    @invariant()
    def all_due_is_queued(self) -> None:
        """Each lease and each cooling port, and nothing else, waits for its time."""
        due = {f"lease/{lease.id}": lease.expires for lease in self.space._leases.values()}
        due |= {name: port.until for name, port in self.space._ports.items() if port.until is not None}
        assert due == self.space._due
        assert {(at, name) for name, at in due.items()} <= set(self.space._heap)

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
