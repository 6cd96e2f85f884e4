"""A store that comes back with less than it knew: holders claim what is theirs, and meanwhile nothing is given out.

The store is emptied, or put back to an earlier copy of itself, while allocators go on.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
from contextlib import closing
from typing import TYPE_CHECKING, Any

import pytest
import servers
from allocator.kit import BACKUP, Fault, Told, begin, eventually, finished, numbers, result

from clusterports import BackendError, BackendRecovering, BackendUnavailable, LeaseLost, PortRange
from clusterports.abc import Renewal

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from allocator.kit import Kit

TTL = 0.8
WIDE = PortRange("backup", 10809, 10872, quarantine=15)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "clusterports")


def copied(store: Any) -> Callable[[], None]:
    """Remembers all that the store knows now; calling it puts the store back to that."""
    if isinstance(store, servers.MemoryStore):
        spaces = copy.deepcopy(store._virtual.spaces)
        return lambda: store._virtual.spaces.update(copy.deepcopy(spaces))
    if isinstance(store, servers.SqliteStore):
        aside = store.path.with_suffix(".copy")
        _backup(store.path, aside)
        return lambda: _backup(aside, store.path)
    kept = {key: store.client.dump(key) for key in store.client.keys("clusterports:1:*")}

    def back() -> None:
        for key in store.client.keys("clusterports:1:*"):
            store.client.delete(key)
        for key, value in kept.items():
            store.client.restore(key, 0, value)

    return back


def emptied(store: Any) -> None:
    """The store forgets everything but the time, which has gone on."""
    if isinstance(store, servers.MemoryStore):
        store._virtual.spaces.clear()
    elif isinstance(store, servers.SqliteStore):
        for path in store.path.parent.glob(f"{store.path.name}*"):
            path.unlink()
    else:
        store.client.flushall()
    store.clock.advance(0.1)


def _backup(source: Path, target: Path) -> None:
    with closing(sqlite3.connect(source)) as one, closing(sqlite3.connect(target)) as other:
        one.backup(other)


def fences(kit: Kit) -> dict[int, int]:
    return {port.number: port.fence for port in kit.view().ports if port.state == "held"}


async def test_emptied(kit: Kit) -> None:
    """With the next heartbeat a holder has its ports again, by number and fence, and nobody is told anything."""
    told = Told()
    holder = kit.allocator(ranges=[WIDE], ttl=TTL, on_lost=told)
    ports = [await result(holder.acquire("backup", owner=f"vm-{n}", labels={"n": str(n)})) for n in range(3)]
    other = kit.allocator(ranges=[WIDE], ttl=TTL)
    theirs = await result(other.acquire("backup"))
    before = {port.number: port for port in kit.view().ports}
    emptied(kit.store)
    await eventually({*numbers(ports), theirs.number}, lambda: set(kit.ports()))

    after = {port.number: port for port in kit.view().ports}
    for number, port in after.items():
        assert before[number]._replace(lease=port.lease, age=port.age) == port
    await eventually([True] * 4, lambda: [port.valid for port in [*ports, theirs]])
    assert ports == await result(holder.allocations())
    for port in ports:
        await result(port.release())
    assert {theirs.number: "held"} == kit.ports()
    assert [] == told.what


async def test_recovering(kit: Kit) -> None:
    """Who knew the host takes nothing there until holders had a TTL to claim theirs; then fences go on growing."""
    holder = kit.allocator(ranges=[WIDE], ttl=30.0)
    (first, _) = [await result(holder.acquire("backup")) for _ in range(2)]
    await result(first.release())
    emptied(kit.store)
    with pytest.raises(BackendRecovering, match=r"on host 'kvm-07'; no port is given out there for another 30.0") as no:
        await result(holder.acquire("backup"))
    assert 30.0 == no.value.left
    with pytest.raises(BackendRecovering):
        await result(holder.acquire("backup", dry_run=True))
    with pytest.raises(BackendRecovering):
        await result(kit.allocator(ranges=[WIDE]).acquire("backup"))
    held = fences(kit)
    assert [10810] == list(held)

    kit.pass_time(30.0)
    again = await result(kit.allocator(ranges=[WIDE]).acquire("backup"))
    assert 10809 == again.number
    assert again.fence > max(*held.values(), first.fence)


async def test_wait_through_it(kit: Kit) -> None:
    """Who is ready to wait gets a port when it is over."""
    holder = kit.allocator(ttl=30.0)
    await result(holder.acquire("backup"))
    emptied(kit.store)
    with pytest.raises(BackendRecovering):
        await result(holder.acquire("backup"))
    call = begin(holder.acquire, "backup", wait=60)
    kit.pass_time(30.0)
    assert 10810 == (await finished(call)).number


async def test_newcomer_was_first(kit: Kit) -> None:
    """Where somebody was given the port after the loss, the higher fence has it, and the older holder is told."""
    told = Told()
    holder = kit.allocator(ttl=TTL, on_lost=told)
    ports = [await result(holder.acquire("backup")) for _ in range(2)]
    emptied(kit.store)
    newcomer = kit.allocator(backend=kit.backend(), ttl=30.0)
    theirs = await result(newcomer.acquire("backup", port=10810))
    (error,) = await told.wait()

    assert isinstance(error, LeaseLost)
    assert ("revoked", [ports[1]]) == (error.reason, error.allocations)
    assert "Given to another, after the store had lost them, from instance" in str(error)
    await eventually({10809: ports[0].fence, 10810: theirs.fence}, lambda: fences(kit))
    await eventually([True, False, True], lambda: [port.valid for port in [*ports, theirs]])
    with pytest.raises(LeaseLost, match="Given to another"):
        await result(ports[1].release())
    assert {10809: ports[0].fence, 10810: theirs.fence} == fences(kit)


@pytest.mark.parametrize("sure", [True, False], ids=["by-count", "by-doubt"])
async def test_older_copy(kit: Kit, sure: bool) -> None:
    """Grants and releases that an older copy lacks are made good: by their number, or since the server is another."""
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ranges=[WIDE], ttl=TTL)
    ports = [await result(holder.acquire("backup")) for _ in range(3)]
    await backend.wait("renew")
    back = copied(kit.store)
    await result(ports[0].release())
    ports.append(await result(holder.acquire("backup", port=10830)))
    if sure:
        ports.append(await result(holder.acquire("backup", port=10831)))
    held = {port.number: port.fence for port in ports[1:]}
    assert held == fences(kit)
    back()
    if not sure:
        backend.says = lambda step, reply: [one._replace(doubt=True) for one in reply] if step == "renew" else reply
    await eventually(held, lambda: fences(kit))
    await eventually([False, *[True] * len(held)], lambda: [port.valid for port in ports])


async def test_stray_is_not_a_request_on_its_way(memory_kit: Kit) -> None:
    """A port that the store has and we do not, since the reply is on its way, is not given back."""
    kit = memory_kit
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ranges=[WIDE], ttl=TTL)
    await result(holder.acquire("backup"))
    backend.says = lambda step, reply: [one._replace(doubt=True) for one in reply] if step == "renew" else reply
    release = backend.hold_reply("acquire")
    call = begin(holder.acquire, "backup")
    await eventually({10809, 10810}, lambda: set(kit.ports()))
    await backend.wait("held", 2)
    await backend.wait("renew", 2)
    assert {10809: "held", 10810: "held"} == kit.ports()
    release()
    assert 10810 == (await finished(call)).number
    await backend.wait("renew", 2)
    assert {10809: "held", 10810: "held"} == kit.ports()


async def test_lease_is_younger_than_the_copy(kit: Kit) -> None:
    """A lease that the copy does not have, on a host that it has, is opened anew where its counter shows the loss."""
    other = kit.allocator(ranges=[WIDE], ttl=30.0)
    await result(other.acquire("backup"))
    back = copied(kit.store)
    kit.store.clock.advance(1)
    holder = kit.allocator(ranges=[WIDE], ttl=TTL)
    port = await result(holder.acquire("backup"))
    back()
    await eventually({10809, 10810}, lambda: set(kit.ports()))
    await eventually(True, lambda: port.valid)
    assert port.fence == fences(kit)[10810]


async def test_released_while_it_is_lost(kit: Kit) -> None:
    """A release that finds the store emptied is a release: the port does not come back with the others."""
    holder = kit.allocator(ranges=[WIDE], ttl=30.0)
    ports = [await result(holder.acquire("backup")) for _ in range(2)]
    emptied(kit.store)
    await result(ports[0].release())
    assert {10810: "held"} == kit.ports()
    await result(holder.close())
    assert {} == kit.ports()


async def test_closed_while_it_is_lost(kit: Kit) -> None:
    """Closing after a loss leaves nothing behind, and says nothing."""
    holder = kit.allocator(ttl=30.0)
    await result(holder.acquire("backup"))
    emptied(kit.store)
    await result(holder.close())
    assert ({}, []) == (kit.ports(), kit.leases())


async def test_many_ports(kit: Kit) -> None:
    """Ports beyond what one claim may have are claimed too, each once."""
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ranges=[PortRange("r", 1, 1000)], ttl=TTL)
    await result(holder.acquire("r", count=620))
    held = fences(kit)
    emptied(kit.store)
    await eventually(held, lambda: fences(kit))
    await eventually(10, lambda: backend.count("claim"))
    claims = [args[3] for step, args in backend.calls if step == "claim"]
    assert 620 == len({claim.port for part in claims for claim in part}) == sum(map(len, claims))
    assert 64 == max(map(len, claims))


async def test_claim_without_a_reply(kit: Kit) -> None:
    """A claim whose reply is lost, or that does not get through, is made again with the next heartbeat."""
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ttl=TTL)
    port = await result(holder.acquire("backup"))
    backend.faults["claim"] = Fault(BackendUnavailable("lost", unknown=True), after=True, times=1)
    emptied(kit.store)
    await backend.wait("claim")
    await eventually({10809: port.fence}, lambda: fences(kit))
    backend.faults["claim"] = Fault(BackendUnavailable("away"), times=2)
    emptied(kit.store)
    await backend.wait("claim", 3)
    await eventually({10809: port.fence}, lambda: fences(kit))
    await eventually(True, lambda: port.valid)
    await result(port.release())
    assert {} == kit.ports()


async def test_released_beside_the_claim(memory_kit: Kit) -> None:
    """A port that is released while its claim is on its way is not held afterwards."""
    kit = memory_kit
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ranges=[WIDE], ttl=TTL)
    ports = [await result(holder.acquire("backup")) for _ in range(2)]
    go_on = backend.hold_request("claim")
    emptied(kit.store)
    await eventually(1, lambda: len([step for step, _ in backend.begun if step == "claim"]))
    await result(ports[0].release())
    go_on()
    await eventually({10810: ports[1].fence}, lambda: fences(kit))
    await backend.wait("renew", 2)
    assert {10810: ports[1].fence} == fences(kit)


async def test_expired_is_lost_all_the_same(kit: Kit) -> None:
    """A lease that ran out in a store that lost nothing is lost: nothing is taken back behind the user's back."""
    told = Told()
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ttl=TTL, on_lost=told)
    await result(holder.acquire("backup"))
    backend.away()
    kit.pass_time(TTL + 5)
    backend.back()
    (error,) = await told.wait()
    assert "it was not renewed in time" in str(error)
    assert {10809: "cooling"} == kit.ports()
    assert 0 == backend.count("claim")


async def test_newer_process_came_first(kit: Kit) -> None:
    """After a loss a newer process under the same name has the lease: the older one is told, and claims nothing."""
    told = Told()
    backend = kit.flaky()
    older = kit.allocator(backend=backend, instance="manager", ttl=TTL, on_lost=told)
    await result(older.acquire("backup"))
    backend.away()
    emptied(kit.store)
    kit.store.clock.advance(1)
    newer = kit.allocator(instance="manager", ttl=30.0)
    port = await result(newer.acquire("backup", port=10810))
    backend.back()
    (error,) = await told.wait()
    assert "a newer process runs under this name" in str(error)
    assert {10810: port.fence} == fences(kit)


async def test_lost_takeover(kit: Kit) -> None:
    """A takeover that an older copy lacks is made again: it is no sign of a newer process."""
    older = kit.allocator(instance="manager", ttl=30.0)
    await result(older.acquire("backup"))
    await result(older.detach())
    back = copied(kit.store)
    kit.store.clock.advance(1)
    told = Told()
    newer = kit.allocator(instance="manager", ttl=TTL, on_lost=told)
    (port,) = await result(newer.allocations())
    second = await result(newer.acquire("backup"))
    back()
    await eventually({10809: port.fence, 10810: second.fence}, lambda: fences(kit))
    await eventually([True, True], lambda: [port.valid, second.valid])
    assert [] == told.what


async def test_several_hosts(kit: Kit) -> None:
    """The heartbeat makes good every host, and one that fails does not keep it from the others."""
    holder = kit.allocator(ttl=TTL, ranges=[BACKUP, PortRange("gateway", 20000, 20001, scope="cluster")])
    ports = [await result(holder.acquire("backup", host=f"kvm-{n}")) for n in range(5)]
    ports.append(await result(holder.acquire("gateway", host="kvm-3")))
    emptied(kit.store)

    def seen() -> list[tuple[int, str]]:
        hosts = ["", *(f"kvm-{n}" for n in range(5))]
        return [(port.fence, port.host) for host in hosts for port in kit.view(host).ports]

    expected = [(ports[5].fence, "kvm-3"), *((port.fence, "") for port in ports[:5])]
    await eventually(expected, seen)
    await eventually(True, lambda: all(port.valid for port in ports))


async def test_own_port_a_second_time(kit: Kit) -> None:
    """Who asks an older copy before its heartbeat is not given what it has: the copy is behind what it knows."""
    holder = kit.allocator(ranges=[WIDE], ttl=30.0)
    ports = [await result(holder.acquire("backup"))]
    back = copied(kit.store)
    ports.append(await result(holder.acquire("backup")))
    back()
    with pytest.raises(BackendRecovering):
        await result(holder.acquire("backup"))
    await result(holder.detach())
    assert {port.number: port.fence for port in ports} == fences(kit)


async def test_before_a_detach(kit: Kit) -> None:
    """A manager that leaves its lease to the next process leaves all of it, also what the store had lost."""
    before = kit.allocator(instance="manager", ttl=30.0)
    port = await result(before.acquire("backup"))
    emptied(kit.store)
    await result(before.detach())
    after = kit.allocator(instance="manager", ttl=30.0)
    assert [(10809, port.fence)] == [(one.number, one.fence) for one in await result(after.allocations())]


async def test_detach_without_a_store(kit: Kit) -> None:
    """Where the store is away, the leases are left as they are, and nothing is raised."""
    backend = kit.flaky()
    before = kit.allocator(backend=backend, instance="manager", ttl=30.0)
    await result(before.acquire("backup"))
    backend.away()
    await result(before.detach())
    assert {10809: "held"} == kit.ports()


async def test_one_that_cannot_be_made_good(kit: Kit) -> None:
    """A host whose data is damaged keeps no other from being made good."""
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ttl=TTL)
    ports = [await result(holder.acquire("backup", host=f"kvm-{n}")) for n in range(4)]
    refuse = Refusing(backend, {"host:kvm-0", "host:kvm-2"})

    def made_good() -> list[int]:
        return [n for n in range(4) if [ports[n].fence] == [port.fence for port in kit.view(f"kvm-{n}").ports]]

    emptied(kit.store)
    await eventually([1, 3], made_good)
    refuse.spaces.clear()
    await eventually([0, 1, 2, 3], made_good)


async def test_doubt_in_the_middle(memory_kit: Kit) -> None:
    """A doubt that comes up while the ports are compared is not forgotten with the one that began it."""
    kit = memory_kit
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ranges=[WIDE], ttl=TTL)
    ports = [await result(holder.acquire("backup")) for _ in range(3)]
    (lease,) = holder._leases.values()

    def says(step: str, reply: Any) -> Any:
        if step == "held" and backend.count("held") == 0:
            lease.suspect("doubt")
        return reply

    backend.says = says
    lease.suspect("doubt")
    await backend.wait("held", 2)
    await eventually("", lambda: lease.amiss)
    await eventually([True] * 3, lambda: [port.valid for port in ports])


async def test_answer_to_the_lease_of_before(kit: Kit) -> None:
    """An ask whose answer is about the lease as it was before it was opened anew says nothing of the one of now."""
    told = Told()
    backend = kit.flaky()
    older = kit.allocator(instance="manager", ttl=30.0)
    await result(older.acquire("backup"))
    await result(older.detach())
    back = copied(kit.store)
    kit.store.clock.advance(1)
    holder = kit.allocator(backend=backend, ranges=[WIDE], instance="manager", ttl=TTL, on_lost=told)
    (port,) = await result(holder.allocations())
    go_on = backend.hold_request("acquire")
    call = begin(holder.acquire, "backup", wait=60)
    await eventually(1, lambda: len([step for step, _ in backend.begun if step == "acquire"]))
    back()
    before = holder._leases["host:kvm-07"].holder
    await eventually(True, lambda: holder._leases["host:kvm-07"].holder != before)
    go_on()
    await eventually(True, lambda: backend.count("acquire") > 1)
    for _ in range(5):
        kit.pass_time(TTL / 4)
        await backend.wait("renew")
    assert 10810 == (await finished(call)).number
    await eventually(True, lambda: port.valid)
    assert [] == told.what


async def test_expired_before_a_restart(kit: Kit) -> None:
    """A lease that ran out is lost, also when the server was restarted afterwards: it left a trace there."""
    told = Told()
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ttl=TTL, on_lost=told)
    await result(holder.acquire("backup"))
    backend.away()
    kit.pass_time(TTL + 5)

    def says(step: str, reply: Any) -> Any:
        return [one._replace(doubt=True) for one in reply] if step == "renew" else reply

    backend.says = says
    backend.back()
    (error,) = await told.wait()
    assert "it was not renewed in time" in str(error)
    assert 0 == backend.count("claim")


async def test_two_on_one_backend(server_kit: Kit) -> None:
    """Of two allocators with one backend each hears for itself that the server is another."""
    kit = server_kit
    backend = kit.backend()
    ports = [await result(kit.allocator(backend=backend, ranges=[WIDE], ttl=TTL).acquire("backup")) for _ in range(2)]
    backend._sessions = dict.fromkeys(backend._sessions, "another")
    outcomes = [await result(backend.renew([Renewal("host:kvm-07", port._lease.holder)])) for port in [*ports, *ports]]
    assert [True, True, False, False] == [outcome.doubt for (outcome,) in outcomes]


class Refusing:
    """Answers every look at what a lease holds, in some spaces, with an error."""

    def __init__(self, backend: Any, spaces: set[str]) -> None:
        self.spaces = spaces
        inner = backend.inner
        listed = inner.held

        def held(space: str, *args: Any) -> Any:
            if space in self.spaces:
                raise BackendError("damaged")
            return listed(space, *args)

        inner.held = held
