"""Waiting for a port: in order, woken, ended by all that can end it; who stopped waiting leaves nothing behind."""

from __future__ import annotations

import asyncio
import threading
from functools import partial
from typing import Any

import pytest
import redis
import redis.asyncio
import servers
from allocator.kit import HOST, Fault, Kit, Outside, begin, eventually, finished, numbers, result

from clusterports import (
    BackendUnavailable,
    BindError,
    ClusterPortsError,
    LeaseLost,
    PortInUse,
    PortRange,
    PortRequest,
    PortsExhausted,
)
from clusterports._names import host_space
from clusterports.abc import AsyncWatch, Watch
from clusterports.probe import Verdict

LONG = 60.0
"""Seconds; a test that waits for so long has failed."""

ONE = PortRange("r", 100, 100, quarantine=15)
TWO = PortRange("r", 100, 101, quarantine=15)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """What nobody is woken for, because a test moves the clock, is soon looked at."""
    for kind in ("sync", "async"):
        monkeypatch.setattr(f"clusterports._{kind}.acquire.PAUSE", 0.1)


async def queued(kit: Kit, ports: Any, *arguments: Any, **more: Any) -> asyncio.Future[Any]:
    """A call that waits, once it has its place in the queue."""
    before = kit.waiting()
    call = begin(ports.acquire, *(arguments or ("r",)), wait=LONG, **more)
    await eventually(before + 1, kit.waiting)
    return call


async def pass_time(kit: Kit, seconds: int, *living: Any) -> None:
    """The store's time goes on; these allocators keep up with their heartbeats."""
    for _ in range(0, seconds, 5):
        kit.pass_time(5)
        for ports in living:
            await result(ports._renew_all())


# -------------------------------------------------------------------- its turn


async def test_woken(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A release wakes who waits: it does not depend on looking again."""
    monkeypatch.setattr(f"clusterports._{kit.kind}.acquire.PAUSE", 1000)
    monkeypatch.setattr(f"clusterports._{kit.kind}.acquire.WINDOW", 1000)
    holder, ports = (kit.allocator(ranges=[ONE]) for _ in range(2))
    held = await result(holder.acquire("r"))
    waiter = await queued(kit, ports, owner="vm-1")
    assert [1] == [host.waiting for host in (await result(ports.status())).hosts]
    await result(held.release())
    port = await finished(waiter)
    assert (100, "vm-1", True, 0) == (port.number, port.owner, port.valid, kit.waiting())
    assert [port] == await result(ports.allocations())


async def test_free_already(kit: Kit) -> None:
    """Who need not wait does not."""
    ports = kit.allocator()
    assert 10809 == int(await result(ports.acquire("backup", wait=LONG)))
    assert 10810 == int(await result(ports.acquire("backup", wait=LONG)))
    assert 0 == kit.waiting()


async def test_in_order(kit: Kit) -> None:
    """Ports are given in the order in which callers came, over allocators and within one."""
    one, two, three = (kit.allocator(ranges=[ONE]) for _ in range(3))
    port = await result(one.acquire("r"))
    waiters = [await queued(kit, ports) for ports in (three, one, two, three)]
    for place, waiter in enumerate(waiters, 1):
        await result(port.release())
        port = await finished(waiter)
        assert [True] * place + [False] * (4 - place) == [other.done() for other in waiters]
        assert 4 - place == kit.waiting()
    await result(port.release())
    assert {} == kit.ports()


async def test_nobody_overtakes(kit: Kit) -> None:
    """Who comes later gets nothing of what another waits for, without patience or with it, by number or not."""
    spans = [TWO, PortRange("other", 101, 103)]
    holder, ports, late = (kit.allocator(ranges=spans) for _ in range(3))
    held = await result(holder.acquire("r", count=2))
    pair = await queued(kit, ports, count=2)
    await result(held[0].release())
    for ask in ({}, {"port": 100}):
        with pytest.raises(PortsExhausted) as refused:
            await result(late.acquire("r", **ask))
        expected = "Unable to find an unused port in range 'r' (100-101): others wait for them already"
        assert (expected, "queue") == (str(refused.value), refused.value.why)
    with pytest.raises(PortsExhausted, match="others wait for it already"):
        await result(late.acquire(None, port=100))
    behind = await queued(kit, late)
    assert 100 == int(await result(late.acquire("r", protocol="udp")))
    await result(held[1].release())
    first = await finished(pair)
    assert ([100, 101], False) == (numbers(first), behind.done())
    await result(first[1].release())
    assert 101 == int(await finished(behind))


async def test_who_waits_for_one_number(kit: Kit) -> None:
    """Who waits for a number by name holds up nobody who can have another."""
    holder, ports, late = (kit.allocator(ranges=[TWO]) for _ in range(3))
    held = await result(holder.acquire("r", count=2))
    waiter = await queued(kit, ports, "r", port=100)
    await result(held[1].release())
    assert 101 == int(await result(late.acquire("r")))
    await result(held[0].release())
    assert 100 == int(await finished(waiter))


async def test_several_at_once(kit: Kit) -> None:
    """Who waits for two ports gets both when two are free, and nothing before."""
    holder, ports = (kit.allocator(ranges=[PortRange("r", 100, 102)]) for _ in range(2))
    held = await result(holder.acquire("r", count=3))
    waiter = await queued(kit, ports, count=2)
    await result(held[2].release())
    assert ({100: "held", 101: "held"}, 1) == (kit.ports(), kit.waiting())
    await result(held[0].release())
    assert [100, 102] == numbers(await finished(waiter))


async def test_a_block(kit: Kit) -> None:
    """Who waits for a block gets it when its ports are free, not when as many others are."""
    holder, ports = (kit.allocator(ranges=[PortRange("r", 100, 103)]) for _ in range(2))
    held = await result(holder.acquire("r", count=4))
    waiter = await queued(kit, ports, count=2, contiguous=True, align=2)
    await result(held[1].release())
    await result(held[2].release())
    assert 1 == kit.waiting()
    await result(held[3].release())
    assert [102, 103] == numbers(await finished(waiter))


# -------------------------------------------------------------------- what frees a port


async def test_cooldown(kit: Kit) -> None:
    """A port that cools is given when that is over, though nothing happens then."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 100, cooldown=0.3)], virtual=False)
    held = await result(ports.acquire("r"))
    await result(held.release())
    port = await finished(begin(ports.acquire, "r", wait=LONG))
    assert (100, True) == (port.number, port.fence > held.fence)


async def test_a_holder_dies(kit: Kit) -> None:
    """The port of one who is heard of no more is given after its quarantine."""
    dead, ports = (kit.allocator(ranges=[ONE], instance=name) for name in ("dead", "alive"))
    await result(dead.acquire("r"))
    waiter = await queued(kit, ports)
    await pass_time(kit, 40, ports)
    await eventually(({100: "cooling"}, 1), lambda: (kit.ports(), kit.waiting()))
    await pass_time(kit, 10, ports)
    assert 100 == int(await finished(waiter))
    assert ["alive"] == kit.leases()


async def test_a_holder_closes(kit: Kit) -> None:
    """The end of the allocator that holds it frees a port like a release."""
    holder, ports = (kit.allocator(ranges=[ONE]) for _ in range(2))
    await result(holder.acquire("r"))
    waiter = await queued(kit, ports)
    await result(holder.close())
    assert 100 == int(await finished(waiter))


async def test_in_the_cluster(kit: Kit) -> None:
    """Numbers of the cluster are waited for like those of a host."""
    holder, ports = (kit.allocator(ranges=[PortRange("gateway", 100, 100, scope="cluster")]) for _ in range(2))
    held = await result(holder.acquire("gateway", host="a"))
    waiter = begin(ports.acquire, "gateway", host="b", wait=LONG)
    await eventually(1, partial(kit.waiting, ""))
    await result(held.release())
    port = await finished(waiter)
    assert (100, "b") == (port.number, port.host)


# -------------------------------------------------------------------- by number


async def test_by_number(kit: Kit) -> None:
    """A number is waited for too; when the time is over, the error says who has it."""
    holder, ports = (kit.allocator(instance=name) for name in ("holder", "ports"))
    held = await result(holder.acquire("backup", owner="vm-1"))
    with pytest.raises(PortInUse, match=r"is held by instance 'holder', owner 'vm-1'"):
        await result(ports.acquire("backup", port=10809, wait=0.05))
    assert 0 == kit.waiting()
    waiter = await queued(kit, ports, "backup", port=10809)
    await result(held.release())
    assert 10809 == int(await finished(waiter))


async def test_until_the_outside_is_gone(kit: Kit) -> None:
    """A number that something outside has is tried until it is free, or the time over."""
    outside = Outside(10809)
    ports = kit.allocator(probe=outside)
    with pytest.raises(PortInUse, match="in use by a process outside clusterports"):
        await result(ports.acquire("backup", port=10809, wait=0.05))
    assert ({}, 0) == (kit.ports(), kit.waiting())
    asked = len(outside.asked)
    waiter = begin(ports.acquire, "backup", port=10809, wait=LONG)
    await eventually(True, lambda: len(outside.asked) > asked)
    outside.busy.clear()
    assert 10809 == int(await finished(waiter))


# -------------------------------------------------------------------- the probe


async def test_busy_ports_are_tried_again(kit: Kit) -> None:
    """When something outside has all ports, those without a mark are tried again and again."""
    outside = Outside(100, 101, 102, 103)
    ports = kit.allocator(ranges=[PortRange("r", 100, 103)], probe=outside)
    waiter = await queued(kit, ports)
    outside.busy.clear()
    assert 102 == int(await finished(waiter))
    assert {100: "foreign", 101: "foreign", 102: "held"} == kit.ports()


async def test_ports_that_cannot_be_bound(kit: Kit) -> None:
    """When the time is over, the error says why none was taken; one that is not the port's ends the call at once."""
    fatal = False

    def refuse(host: str, number: int, protocol: str) -> bool:
        raise BindError(Verdict("error", f"{number}/tcp on 0.0.0.0 (Permission denied)", fatal=fatal))

    ports = kit.allocator(ranges=[TWO], probe=refuse)
    with pytest.raises(BindError, match="Permission denied"):
        await result(ports.acquire("r", wait=0.05))
    fatal = True
    with pytest.raises(BindError, match="Permission denied"):
        await finished(begin(ports.acquire, "r", wait=LONG))
    assert ({}, 0) == (kit.ports(), kit.waiting())


# -------------------------------------------------------------------- the end of patience


async def test_timeout(kit: Kit) -> None:
    """When the time is over the error says how long it was, and the place is given up at once."""
    ports = kit.allocator()
    await result(ports.acquire("backup", count=2))
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("backup", wait=0.2))
    assert "Unable to find an unused port in range 'backup' (10809-10810) within 0.2 s" == str(full.value)
    assert (0.2, "taken", 0) == (full.value.waited, full.value.why, kit.waiting())


async def test_timeout_in_the_queue(kit: Kit) -> None:
    """Who stood behind others all the time is told so."""
    holder, ports, late = (kit.allocator(ranges=[TWO]) for _ in range(3))
    held = await result(holder.acquire("r", count=2))
    pair = await queued(kit, ports, count=2)
    await result(held[0].release())
    message = r"^Unable to find an unused port in range 'r' \(100-101\) within 0\.1 s: others wait for them already$"
    with pytest.raises(PortsExhausted, match=message):
        await result(late.acquire("r", wait=0.1))
    assert 1 == kit.waiting()
    await result(held[1].release())
    assert [100, 101] == numbers(await finished(pair))


async def test_limit(kit: Kit) -> None:
    """Who has as many as its owner may have is told so at once: others cannot help."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 109, limit=1)])
    held = await result(ports.acquire("r", owner="vm-1"))
    message = r"^Unable to find an unused port in range 'r' \(100-109\): owner 'vm-1' may hold at most 1 here$"
    with pytest.raises(PortsExhausted, match=message):
        await finished(begin(ports.acquire, "r", owner="vm-1", wait=LONG))
    assert 0 == kit.waiting()
    await result(held.release())


async def test_limit_reached_meanwhile(kit: Kit) -> None:
    """Who waits while its owner gets as many as it may have elsewhere is told so without waiting any longer."""
    span = PortRange("r", 100, 101, limit=1)
    holder, ports, other = (kit.allocator(ranges=[span]) for _ in range(3))
    await result(holder.acquire("r", owner="vm-2"))
    held = await result(holder.acquire("r", owner="vm-3"))
    waiter = await queued(kit, ports, "r", port=100, owner="vm-1")
    await result(held.release())
    assert 101 == int(await result(other.acquire("r", owner="vm-1")))
    message = r"^Unable to find an unused port in range 'r' \(100-101\): owner 'vm-1' may hold at most 1 here$"
    with pytest.raises(PortsExhausted, match=message):
        await finished(waiter)
    assert 0 == kit.waiting()


async def test_closed(kit: Kit) -> None:
    """The end of its allocator ends a wait, and its place is another's at once."""
    holder, ports, other = (kit.allocator(ranges=[ONE]) for _ in range(3))
    held = await result(holder.acquire("r"))
    first = await queued(kit, ports)
    second = await queued(kit, other)
    await result(ports.close())
    assert 1 == kit.waiting()
    await result(held.release())
    assert 100 == int(await finished(second))
    with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
        await finished(first)
    assert ({100: "held"}, 0) == (kit.ports(), kit.waiting())


async def test_closed_with_its_own_connections(server_kit: Kit) -> None:
    """The same when the connections end with the allocator."""
    url = server_kit.store.url
    holder, ports = (server_kit.allocator(url, ranges=[ONE]) for _ in range(2))
    held = await result(holder.acquire("r"))
    waiter = await queued(server_kit, ports)
    await result(ports.close())
    with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
        await finished(waiter)
    assert 0 == server_kit.waiting()
    await result(held.release())
    assert {} == server_kit.ports()


async def test_detached(kit: Kit) -> None:
    """Who leaves its lease to be resumed waits no longer all the same, and its places are free in a moment."""
    holder, ports = (kit.allocator(ranges=[ONE], instance=name) for name in ("holder", "ports"))
    held = await result(holder.acquire("r"))
    waiter = await queued(kit, ports)
    await result(ports.detach())
    with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
        await finished(waiter)
    kit.pass_time(3.1)
    assert 0 == kit.waiting()
    await result(held.release())
    assert {} == kit.ports()


async def test_cancelled(store: servers.Store) -> None:
    """A task that is cancelled while it waits leaves nothing but its place, and that for three seconds at most."""
    kit = Kit("async", store)
    before = asyncio.all_tasks()
    holder, ports, other = (kit.allocator(ranges=[ONE]) for _ in range(3))
    held = await holder.acquire("r")
    first = await queued(kit, ports)
    second = await queued(kit, other)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await held.release()
    kit.pass_time(3.1)
    assert 100 == int(await finished(second))
    await eventually({100: "held"}, kit.ports)
    assert [] == await ports.allocations()
    await kit.finish()
    await eventually(before, asyncio.all_tasks)


async def test_cancelled_at_any_step(memory: servers.MemoryStore) -> None:
    """However far it came, a port that a cancelled waiter was given is free with the next heartbeat."""
    memory_kit = Kit("async", memory)
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=[ONE], backend=flaky, ttl=2)
    holder = memory_kit.allocator(ranges=[ONE])
    for steps in range(1, 30):
        held = await holder.acquire("r", wait=LONG)
        waiter = await queued(memory_kit, ports)
        await held.release()
        for _ in range(steps):
            await asyncio.sleep(0)
        waiter.cancel()
        try:
            port = await waiter
        except asyncio.CancelledError:
            pass
        else:
            await port.release()
        await eventually({}, memory_kit.ports)
        memory_kit.pass_time(3.1)
        assert 0 == memory_kit.waiting()
    await memory_kit.finish()


class Interrupted(Watch):
    def __init__(self) -> None:
        self.closed = False

    def wait(self, seconds: float) -> None:
        raise KeyboardInterrupt

    def close(self) -> None:
        self.closed = True


class AsyncInterrupted(AsyncWatch):
    def __init__(self) -> None:
        self.closed = False

    async def wait(self, seconds: float) -> None:
        raise KeyboardInterrupt

    async def close(self) -> None:
        self.closed = True


async def test_keyboard_interrupt(memory_kit: Kit) -> None:
    """It ends the wait, and nothing stays held, subscribed or, after a moment, queued."""
    flaky = memory_kit.flaky()
    holder, ports, other = (memory_kit.allocator(ranges=[ONE], **more) for more in ({}, {"backend": flaky}, {}))
    held = await result(holder.acquire("r"))
    watch = Interrupted() if memory_kit.kind == "sync" else AsyncInterrupted()

    async def awaited() -> Any:
        return watch

    flaky.inner.watch = (lambda *args: watch) if memory_kit.kind == "sync" else (lambda *args: awaited())
    with pytest.raises(KeyboardInterrupt):
        await result(ports.acquire("r", wait=LONG))
    assert watch.closed
    await result(held.release())
    memory_kit.pass_time(3.1)
    assert 0 == memory_kit.waiting()
    assert 100 == int(await result(other.acquire("r")))
    assert [] == await result(ports.allocations())


async def test_interrupted_in_the_answer(memory_kit: Kit) -> None:
    """A grant that its waiter never saw is undone with the next heartbeat."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=[ONE], backend=flaky, ttl=2)
    flaky.faults["acquire"] = Fault(KeyboardInterrupt(), after=True, times=1)
    with pytest.raises(KeyboardInterrupt):
        await result(ports.acquire("r", wait=LONG))
    await eventually({}, memory_kit.ports)


# -------------------------------------------------------------------- the lease, the store


def still(lease: Any, ports: Any) -> list[bool]:
    """Whether the one lease is still this one."""
    return [other is lease for other in list(ports._leases.values())]


async def test_a_lease_that_runs_out(kit: Kit) -> None:
    """Who lost its lease while it waited goes on under a new one, and keeps its place, however often."""
    holder, ports, late = (kit.allocator(ranges=[ONE], instance=name) for name in ("holder", "ports", "late"))
    held = await result(holder.acquire("r"))
    waiter = await queued(kit, ports)
    behind = await queued(kit, late)
    for _ in range(2):
        (lease,) = ports._leases.values()
        await pass_time(kit, 65, holder, late)
        await eventually([False], partial(still, lease, ports))
    await eventually(2, kit.waiting)
    await result(held.release())
    port = await finished(waiter)
    assert (100, True, False) == (port.number, port.valid, behind.done())
    await result(port.release())
    assert 100 == int(await finished(behind))


async def test_superseded(kit: Kit) -> None:
    """Who waits under a name that a newer process took is told so."""
    holder, ports = (kit.allocator(ranges=[ONE], instance=name) for name in ("holder", "manager"))
    held = await result(holder.acquire("r"))
    waiter = await queued(kit, ports)
    newer = kit.allocator(ranges=[ONE], instance="manager")
    behind = begin(newer.acquire, "r", wait=LONG)
    with pytest.raises(LeaseLost, match="newer process runs"):
        await finished(waiter)
    await result(held.release())
    kit.pass_time(3.1)
    assert 100 == int(await finished(behind))


async def test_a_store_that_is_away(memory_kit: Kit) -> None:
    """Who waits is told when the store is away for longer than a call may take, and has nothing afterwards."""
    flaky = memory_kit.flaky()
    holder = memory_kit.allocator(ranges=[ONE])
    ports = memory_kit.allocator(ranges=[ONE], backend=flaky, ttl=2)
    held = await result(holder.acquire("r"))
    for unknown in (False, True):
        waiter = await queued(memory_kit, ports)
        flaky.faults["acquire"] = Fault(BackendUnavailable("the store is away", unknown=unknown), after=unknown)
        with pytest.raises(BackendUnavailable):
            await finished(waiter)
        flaky.back()
        memory_kit.pass_time(3.1)
        assert 0 == memory_kit.waiting()
    waiter = await queued(memory_kit, ports)
    flaky.faults["acquire"] = Fault(BackendUnavailable("the store is away", unknown=True), after=True)
    await result(held.release())
    with pytest.raises(BackendUnavailable):
        await finished(waiter)
    flaky.back()
    await eventually({}, memory_kit.ports)
    assert [] == await result(ports.allocations())
    assert 100 == int(await result(ports.acquire("r", wait=LONG)))


async def test_a_store_that_is_slow(memory_kit: Kit) -> None:
    """An answer that takes its time is waited for, and is not asked for twice."""
    flaky = memory_kit.flaky()
    holder = memory_kit.allocator(ranges=[ONE])
    ports = memory_kit.allocator(ranges=[ONE], backend=flaky)
    held = await result(holder.acquire("r"))
    waiter = await queued(memory_kit, ports)
    fault = flaky.faults["acquire"] = Fault(gate=threading.Event())
    begun = len(flaky.begun)
    await eventually(True, lambda: len(flaky.begun) > begun)
    await result(held.release())
    assert not waiter.done()
    assert fault.gate is not None
    fault.gate.set()
    assert 100 == int(await finished(waiter))


async def test_a_server_that_pauses(server_kit: Kit) -> None:
    """A pause of the server that a call outlasts costs nobody its place."""
    holder, ports, late = (server_kit.allocator(ranges=[ONE]) for _ in range(3))
    held = await result(holder.acquire("r"))
    first = await queued(server_kit, ports)
    second = await queued(server_kit, late)
    server_kit.store.client.execute_command("CLIENT", "PAUSE", "1500", "ALL")
    await result(held.release())
    port = await finished(first)
    assert (100, False) == (port.number, second.done())
    await result(port.release())
    assert 100 == int(await finished(second))


async def test_a_subscription_that_is_cut(server_kit: Kit) -> None:
    """Who cannot be woken any more looks again from time to time."""
    holder, ports = (server_kit.allocator(ranges=[ONE]) for _ in range(2))
    held = await result(holder.acquire("r"))
    waiter = await queued(server_kit, ports)
    client = server_kit.store.client
    await eventually(1, lambda: client.execute_command("CLIENT", "KILL", "TYPE", "pubsub"))
    await result(held.release())
    assert 100 == int(await finished(waiter))


async def test_a_waiter_that_died(kit: Kit) -> None:
    """One that is heard of no more is passed over after three seconds, long before its lease has run out."""
    flaky = kit.flaky()
    dead = kit.allocator(ranges=[ONE], backend=flaky)
    holder, ports = (kit.allocator(ranges=[ONE]) for _ in range(2))
    held = await result(holder.acquire("r"))
    lost = await queued(kit, dead)
    flaky.away()
    with pytest.raises(BackendUnavailable):
        await finished(lost)
    waiter = await queued(kit, ports)
    await result(held.release())
    with pytest.raises(PortsExhausted, match="others wait for them already"):
        await result(holder.acquire("r"))
    kit.pass_time(3.1)
    assert 100 == int(await finished(waiter))


async def test_not_with_many(kit: Kit) -> None:
    """Several requests at once do not wait, and do not overtake who does."""
    holder, ports = (kit.allocator(ranges=[TWO]) for _ in range(2))
    held = await result(holder.acquire("r", count=2))
    pair = await queued(kit, ports, count=2)
    await result(held[0].release())
    with pytest.raises(PortsExhausted, match="others wait for them already"):
        await result(holder.acquire_many([PortRequest("r")]))
    await result(held[1].release())
    assert [100, 101] == numbers(await finished(pair))


# -------------------------------------------------------------------- what is left behind


async def test_cancelled_gives_up_its_place(store: servers.Store) -> None:
    """A task that is cancelled, while its allocator goes on, gives up its place with the next heartbeat."""
    kit = Kit("async", store)
    holder, ports = (kit.allocator(ranges=[ONE], ttl=LONG) for _ in range(2))
    held = await holder.acquire("r")
    waiter = await queued(kit, ports)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await eventually(0, kit.waiting)
    await held.release()
    assert 100 == (await ports.acquire("r")).number
    await kit.finish()


async def test_a_cancel_before_the_answer(memory: servers.MemoryStore) -> None:
    """The place of a request whose answer nobody saw is given up too."""
    kit = Kit("async", memory)
    flaky = kit.flaky()
    holder, ports = kit.allocator(ranges=[ONE], ttl=LONG), kit.allocator(ranges=[ONE], ttl=LONG, backend=flaky)
    await holder.acquire("r")
    await (await ports.acquire(None, port=7)).release()  # its lease is open
    error = BackendUnavailable("no answer", unknown=True)
    flaky.faults["acquire"] = Fault(error, after=True, times=1)
    with pytest.raises(BackendUnavailable):
        await ports.acquire("r", wait=LONG)
    await eventually(0, kit.waiting)
    await kit.finish()


async def test_other_ranges_stay_open(kit: Kit) -> None:
    """Who waits for one range shuts nothing of another but the numbers that both have."""
    wide, narrow = PortRange("wide", 90, 110), PortRange("narrow", 100, 101)
    holder, ports = kit.allocator(ranges=[wide, narrow]), kit.allocator(ranges=[wide, narrow])
    held = await result(holder.acquire("narrow", count=2))
    waiter = await queued(kit, ports, "narrow")
    assert [*range(90, 100), *range(102, 111)] == numbers(await result(holder.acquire("wide", count=19)))
    with pytest.raises(PortsExhausted, match=r"others wait for them already$"):
        await result(holder.acquire("wide"))
    await result(held[1].release())
    assert 101 == int(await finished(waiter))


async def test_tried_out_in_turn(kit: Kit) -> None:
    """Who is refused a port by the machine keeps its place, and the next one waits until it has another."""
    busy = Outside(100)
    holder, first, second = (
        kit.allocator(ranges=[TWO]),
        kit.allocator(ranges=[TWO], probe=busy),
        kit.allocator(ranges=[TWO]),
    )
    held = await result(holder.acquire("r", count=2))
    one = await queued(kit, first)
    two = await queued(kit, second)
    await result(held[0].release())
    await eventually({100: "foreign", 101: "held"}, kit.ports)
    await result(held[1].release())
    assert 101 == int(await finished(one))
    assert (1, False) == (kit.waiting(), two.done())
    two.cancel()


async def test_connections_of_the_caller(kind: str, valkey: servers.ServerStore) -> None:
    """Those who wait take no connection from a pool of the caller's, which a heartbeat may need."""
    library: Any = redis if kind == "sync" else redis.asyncio
    pool = library.ConnectionPool.from_url(valkey.url, max_connections=2)
    client = library.Redis(connection_pool=pool)
    kit = Kit(kind, valkey)
    ports = kit.allocator(client=client, ranges=[ONE])
    held = await result(ports.acquire("r"))
    waiters = [begin(ports.acquire, "r", wait=LONG) for _ in range(4)]
    with valkey.connect() as visitor:
        await eventually(4, lambda: servers.view(visitor, host_space(HOST)).waiting)
    assert await result(ports._renew_all())
    assert held.valid
    for _ in range(4):
        await result(held.release())
        done, _ = await asyncio.wait(waiters, return_when=asyncio.FIRST_COMPLETED)
        held = next(iter(done)).result()
        waiters = [other for other in waiters if other not in done]
    await kit.finish()
    await result(client.aclose() if kind == "async" else client.close())
    await result(pool.disconnect())
