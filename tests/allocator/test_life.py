"""From the first call to the last, and over: resume, takeover, detach, fork, close."""

from __future__ import annotations

import json
import logging
import os
import threading
import warnings
from typing import TYPE_CHECKING, Any

import pytest
import servers
from allocator.kit import BACKUP, HOST, PATIENCE, Fault, Told, eventually, result

from clusterports import BackendUnavailable, ClusterPortsError, LeaseLost, PortAllocator, PortRange
from clusterports_memory import MemoryBackend

if TYPE_CHECKING:
    from allocator.kit import Kit

    from clusterports.abc import Closed, Gone, Holder

MANY = [PortRange("many", 20000, 29999)]


def facts(ports: list[Any]) -> list[tuple[Any, ...]]:
    return [(p.host, p.number, p.protocol, p.range, p.owner, p.labels, p.fence, p.lease, p.valid) for p in ports]


# -------------------------------------------------------------------- resume


@pytest.mark.parametrize("crash", [False, True], ids=["detach", "crash"])
async def test_resume(kit: Kit, crash: bool) -> None:
    """Who comes back under his name within the TTL finds all his ports as they were, and can free them."""
    before = kit.allocator(instance="manager", ranges=[*MANY, BACKUP])
    await result(before.acquire("many", count=1005, owner="vm-1", labels={"a": "b"}))
    await result(before.acquire("many", count=3, protocol="udp"))
    await result(before.acquire("backup", host="other", owner="vm-2"))
    held = facts(await result(before.allocations()))
    if not crash:
        await result(before.detach())
    kit.pass_time(20)

    after = kit.allocator(instance="manager", ranges=[*MANY, BACKUP])
    found = await result(after.allocations())
    assert 1009 == len(found)
    assert held == facts(found)
    for port in (found[0], found[1004], found[1008]):
        await result(port.release())
    assert 1006 == len(await result(after.allocations()))
    assert (1004, {}) == (len(kit.ports()), kit.ports("other"))
    await result(after.detach())  # spares the emulator the release of a thousand ports


async def test_resume_prolongs(kit: Kit) -> None:
    """The resumed lease has a full TTL again."""
    before = kit.allocator(instance="manager")
    await result(before.acquire("backup"))
    await result(before.detach())
    kit.pass_time(25)
    await result(kit.allocator(instance="manager").allocations())
    kit.pass_time(25)
    assert {10809: "held"} == kit.ports()


async def test_acquire_resumes_too(kit: Kit) -> None:
    """The first call finds what was left behind on all hosts, whichever call it is."""
    before = kit.allocator(instance="manager")
    for host in ("a", "b"):
        await result(before.acquire("backup", host=host))
    await result(before.detach())
    after = kit.allocator(instance="manager")
    assert 10810 == int(await result(after.acquire("backup", host="a")))
    found = [(port.host, port.number) for port in await result(after.allocations())]
    assert [("a", 10809), ("a", 10810), ("b", 10809)] == found


async def test_too_late_to_resume(kit: Kit) -> None:
    """After the TTL there is nothing to come back to: the ports cool, and the name begins anew."""
    before = kit.allocator(instance="manager")
    await result(before.acquire("backup"))
    await result(before.detach())
    kit.pass_time(31)
    after = kit.allocator(instance="manager")
    assert ([], {10809: "cooling"}) == (await result(after.allocations()), kit.ports())
    assert 10810 == int(await result(after.acquire("backup")))


async def test_nothing_to_resume_without_a_name(kit: Kit) -> None:
    """An allocator without a name of its own never finds another's ports."""
    before = kit.allocator()
    await result(before.acquire("backup"))
    await result(before.detach())
    after = kit.allocator()
    assert before.instance != after.instance
    assert [] == await result(after.allocations())


async def test_resume_that_failed_halfway(memory_kit: Kit) -> None:
    """A resume that the store interrupted is done by the next call, whole."""
    before = memory_kit.allocator(instance="manager")
    for host in ("a", "b"):
        await result(before.acquire("backup", host=host))
    await result(before.detach())
    flaky = memory_kit.flaky()
    after = memory_kit.allocator(instance="manager", backend=flaky)
    flaky.faults["held"] = Fault(BackendUnavailable("away"), times=1)
    with pytest.raises(BackendUnavailable):
        await result(after.allocations())
    assert ["a", "b"] == [port.host for port in await result(after.allocations())]


class SlowEnd(MemoryBackend):
    """One thread is slow to end a lease. ``ending``: it is about to; ``go_on``: it need not wait any longer."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.ending, self.go_on = threading.Event(), threading.Event()

    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        if threading.current_thread().name == "resumes":
            self.ending.set()
            self.go_on.wait(0.3)
        return super().close_lease(space, holder, quarantine=quarantine)


def test_resume_beside_an_acquire(memory: servers.MemoryStore) -> None:
    """A lease that a resume finds empty, and ends, is never one under which another thread just got a port."""
    memory.connect().open("host:kvm-07", "manager", token="0", ttl=30_000_000)
    backend = SlowEnd(memory._real)
    ports = PortAllocator(backend=backend, instance="manager", host=HOST, ranges=[BACKUP])
    first = threading.Thread(target=ports.allocations, name="resumes")
    first.start()
    assert backend.ending.wait(PATIENCE)
    held = ports.acquire("backup")
    backend.go_on.set()
    first.join(PATIENCE)
    found = servers.view(backend, "host:kvm-07").ports
    assert [(10809, held.fence)] == [(port.number, port.fence) for port in found]
    ports.close()


# -------------------------------------------------------------------- two of one name


async def test_takeover(kit: Kit) -> None:
    """Of two processes of one name the newer has the ports; the older is told, and can neither free nor take any."""
    lost = Told()
    older = kit.allocator(instance="manager", ttl=1, on_lost=lost, ranges=[PortRange("r", 1, 9)])
    held = await result(older.acquire("r", count=2))
    newer = kit.allocator(instance="manager", ranges=[PortRange("r", 1, 9)])
    found = await result(newer.allocations())
    assert [port.fence for port in held] == [port.fence for port in found]

    (error,) = await lost.wait()
    assert (LeaseLost, "revoked", held) == (type(error), error.reason, error.allocations)
    assert "instance 'manager' on host 'kvm-07' is lost: a newer process runs under this name" in str(error)
    assert "clusterports-callbacks" == lost.threads[0]
    assert [False, False] == [port.valid for port in held]
    with pytest.raises(LeaseLost, match="newer process"):
        await result(held[0].release())
    with pytest.raises(LeaseLost, match="newer process"):
        await result(older.acquire("r"))
    await result(older.close())
    assert {1: "held", 2: "held"} == kit.ports()
    assert [True, True] == [port.valid for port in found]
    assert 1 == len(lost.what)


@pytest.mark.parametrize("step", ["acquire", "release"])
async def test_takeover_seen_before_the_heartbeat(kit: Kit, step: str) -> None:
    """The older process is refused by the store itself, and told at once."""
    lost = Told()
    older = kit.allocator(instance="manager", on_lost=lost)
    held = await result(older.acquire("backup"))
    newer = kit.allocator(instance="manager")
    await result(newer.allocations())
    with pytest.raises(LeaseLost, match="newer process"):
        await result(older.acquire("backup") if step == "acquire" else held.release())
    await lost.wait()
    assert (False, {10809: "held"}) == (held.valid, kit.ports())


# -------------------------------------------------------------------- fork


def test_fork(server: servers.ServerStore) -> None:
    """In a forked child the parent's allocator and ports are refused, and nothing that it does disturbs the parent."""
    ports = PortAllocator(server.url, instance="parent", host=HOST, ranges=[BACKUP], ttl=2)
    held = ports.acquire("backup")
    log = ports.event_log()
    reading, writing = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads do not survive a fork; we know
        pid = os.fork()
    if pid == 0:
        said: list[object] = [held.valid]
        for call in (
            lambda: ports.acquire("backup"),
            lambda: ports.acquire("backup", host="elsewhere"),
            held.release,
            ports.allocations,
            log.read,
        ):
            try:
                call()
                said.append("no error")
            except ClusterPortsError as error:
                said.append(str(error))
            except BaseException as error:  # noqa: BLE001  # the child must end, whatever happens
                said.append(repr(error))
        ports.close()
        os.write(writing, json.dumps(said).encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        said = json.loads(pipe.read())
    os.waitpid(pid, 0)
    refused = "This allocator belongs to the parent process; make one after the fork"
    assert [False, *[refused] * 5] == said
    assert held.valid
    held.release()
    again = ports.acquire("backup")
    assert 10809 == again.number
    ports.close()


# -------------------------------------------------------------------- close and detach


async def test_close(kit: Kit) -> None:
    """After the close nothing is held, nothing is valid, and only what does nothing is still allowed."""
    ports = kit.allocator(ranges=MANY)
    held = await result(ports.acquire("many", count=200))
    await result(ports.acquire("many", host="other"))
    await result(ports.close())
    assert ({}, {}, [], []) == (kit.ports(), kit.ports("other"), kit.leases(), kit.leases("other"))
    assert [] == [port for port in held if port.valid]
    await result(held[0].release())
    await result(ports.close())
    for call in (lambda: ports.acquire("many"), ports.allocations, ports.status):
        with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
            await result(call())


async def test_threads_end(kit: Kit) -> None:
    """A closed allocator leaves no thread behind."""

    def ours() -> list[str]:
        return [thread.name for thread in threading.enumerate() if thread.name.startswith("clusterports")]

    ports = kit.allocator()
    await result(ports.acquire("backup"))
    assert "clusterports-watchdog" in ours()
    await result(ports.close())
    await result(ports._backend.close())  # not its own
    await eventually([], ours)


async def test_nothing_is_contacted_before_the_first_call(kit: Kit) -> None:
    """Making an allocator, and closing it unused, does not touch the store."""
    flaky = kit.flaky()
    flaky.away()
    ports = kit.allocator(backend=flaky, instance="manager")
    await result(ports.close())
    assert [] == flaky.calls


async def test_detach(kit: Kit) -> None:
    """After a detach the ports are held until the lease runs out, and this process has no more to do with them."""
    ports = kit.allocator()
    held = await result(ports.acquire("backup"))
    await result(ports.detach())
    assert (False, {10809: "held"}) == (held.valid, kit.ports())
    with pytest.raises(ClusterPortsError, match="closed"):
        await result(held.release())
    kit.pass_time(31)
    assert {10809: "cooling"} == kit.ports()


async def test_job_outlives_its_allocator(kit: Kit) -> None:
    """A port on which a job of libvirt runs on stays held when all else is given back, until its lease runs out."""
    ports = kit.allocator()
    held = [await result(ports.acquire("backup", labels=labels)) for labels in ({}, {"libvirt.job": "backup"})]
    elsewhere = await result(ports.acquire("backup", host="kvm-08"))
    await result(ports.close())
    assert (False, False, False) == (held[0].valid, held[1].valid, elsewhere.valid)
    assert ({10810: "held"}, {}) == (kit.ports(), kit.ports("kvm-08"))
    kit.pass_time(31)
    assert {10810: "cooling"} == kit.ports()


async def test_detach_leaves_no_released_port(memory_kit: Kit) -> None:
    """A release that did not get through is made good before the lease is left: the next process must not find it."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky)
    held = await result(ports.acquire("backup", count=2))
    flaky.away()
    with pytest.raises(BackendUnavailable):
        await result(held[0].release())
    flaky.back()
    await result(ports.detach())
    assert {10810: "held"} == memory_kit.ports()


@pytest.mark.parametrize("failed", [False, True], ids=["block ended", "block failed"])
async def test_block_ends_with_the_store_away(memory_kit: Kit, failed: bool, caplog: pytest.LogCaptureFixture) -> None:
    """That the ports could not be given back is an error of the block, unless the block failed by itself."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky)

    async def block() -> None:
        if memory_kit.kind == "sync":
            with ports:
                held.append(ports.acquire("backup"))
                flaky.away()
                if failed:
                    raise ZeroDivisionError
        else:
            async with ports:
                held.append(await ports.acquire("backup"))
                flaky.away()
                if failed:
                    raise ZeroDivisionError

    held: list[Any] = []
    with pytest.raises(ZeroDivisionError if failed else BackendUnavailable):
        await block()
    warned = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert (["the store is away; the ports are free when the lease has run out"] if failed else []) == warned
    assert (False, {10809: "held"}) == (held[0].valid, memory_kit.ports())


async def test_port_block_ends_with_the_store_away(memory_kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """The end of a port's block never fails for a store that is away: the heartbeat makes the release good."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=1)
    held = await result(ports.acquire("backup"))
    flaky.away()
    if memory_kit.kind == "sync":
        with held:
            pass
    else:
        async with held:
            pass
    warned = [r.message for r in caplog.records if "release" in r.message]
    assert ["the store is away; the release is repeated with the next heartbeat"] == warned
    flaky.back()
    await eventually({}, memory_kit.ports)


async def test_port_block_ends_after_a_loss(memory_kit: Kit) -> None:
    """A lost port is an error at the end of its block, so that nobody takes the work for safe; others go first."""
    ports = memory_kit.allocator()

    async def block(held: Any, error: Exception | None) -> None:
        if memory_kit.kind == "sync":
            with held:
                if error is not None:
                    raise error
        else:
            async with held:
                if error is not None:
                    raise error

    for error in (None, ZeroDivisionError()):
        held = await result(ports.acquire("backup"))
        memory_kit.pass_time(46)
        with pytest.raises(LeaseLost if error is None else ZeroDivisionError):
            await block(held, error)
