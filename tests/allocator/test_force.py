"""A port taken by an operator: what becomes of it, and what its holder is told."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
import servers
from allocator.kit import BACKUP, HOST, PATIENCE, Fault, Told, eventually, result

from clusterports import BackendUnavailable, ConfigurationError, LeaseLost, PortAllocator, PortInUse, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable

    from allocator.kit import Kit

GATEWAY = PortRange("gateway", 20000, 20001, scope="cluster")


async def test_holder_is_told(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """The port cools, and with its next heartbeat the holder hears that it is not his any more; his others are."""
    told = Told()
    holder = kit.allocator(instance="manager", ttl=0.8, on_lost=told)
    first = await result(holder.acquire("backup", owner="vm-1"))
    second = await result(holder.acquire("backup"))
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        assert await result(kit.allocator().force_release(HOST, 10809)) is True
        (error,) = await told.wait()

    assert {10809: "cooling", 10810: "held"} == kit.ports()
    assert isinstance(error, LeaseLost)
    assert ("revoked", [first]) == (error.reason, error.allocations)
    assert "Taken by force from instance 'manager' on host 'kvm-07': 10809/tcp" == str(error)
    assert (False, True) == (first.valid, second.valid)
    assert [10810] == [int(port) for port in await result(holder.allocations())]
    with pytest.raises(LeaseLost, match="Taken by force"):
        await result(first.release())
    await result(second.release())
    assert {10809: "cooling"} == kit.ports()


async def test_told_once(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """Who has heard of it is not told again, also where the answer to his next heartbeat was lost."""
    told = Told()
    backend = kit.flaky()
    holder = kit.allocator(backend=backend, ttl=0.8, on_lost=told)
    await result(holder.acquire("backup"))
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        await result(kit.allocator().force_release(HOST, 10809))
        await told.wait()
        backend.faults["renew"] = Fault(BackendUnavailable("lost"), after=True, times=1)
        await backend.wait("renew", 4)

    assert 1 == len(told.what)


async def test_next_process_is_not_told(kit: Kit) -> None:
    """A process that takes over the lease hears nothing of ports that it never knew."""
    told = Told()
    before = kit.allocator(instance="manager")
    await result(before.acquire("backup"))
    await result(before.detach())
    await result(kit.allocator().force_release(HOST, 10809))
    backend = kit.flaky()
    after = kit.allocator(backend=backend, instance="manager", ttl=0.8, on_lost=told)
    await result(after.acquire("backup", port=10810))
    await backend.wait("renew", 3)

    assert [] == told.what
    assert [10810] == [int(port) for port in await result(after.allocations())]


async def test_cooling_and_foreign(kit: Kit) -> None:
    """A port that cools, or is marked as foreign, is free at once."""
    holder = kit.allocator(ranges=[PortRange("backup", 10809, 10810, cooldown=60)])
    await result((await result(holder.acquire("backup"))).release())
    operator = kit.allocator()
    assert {10809: "cooling"} == kit.ports()
    assert await result(operator.force_release(HOST, 10809)) is True
    assert {} == kit.ports()

    marking = kit.allocator(probe=lambda host, number, protocol: number != 10809)
    await result(marking.acquire("backup"))
    assert {10809: "foreign", 10810: "held"} == kit.ports()
    assert await result(operator.force_release(HOST, 10809)) is True
    assert {10810: "held"} == kit.ports()


async def test_free(kit: Kit) -> None:
    """There is nothing to take of a port that is free, in that protocol and on that host."""
    await result(kit.allocator().acquire("backup"))
    operator = kit.allocator()
    for host, number, protocol in ((HOST, 10810, "tcp"), (HOST, 10809, "udp"), ("other", 10809, "tcp")):
        assert await result(operator.force_release(host, number, protocol)) is False

    assert {10809: "held"} == kit.ports()


@pytest.mark.parametrize(("held", "named"), [("both", "tcp"), ("both", "udp"), ("tcp", "both")])
async def test_both(kit: Kit, held: str, named: str) -> None:
    """A port of both protocols is found by either, and what is in the way of both by that."""
    await result(kit.allocator().acquire("backup", protocol=held))

    assert await result(kit.allocator().force_release(HOST, 10809, named)) is True
    assert {10809: "cooling"} == kit.ports()


async def test_port_of_the_cluster(kit: Kit) -> None:
    """A number of the whole cluster is taken from the host on which it is bound."""
    holder = kit.allocator(ranges=[GATEWAY])
    await result(holder.acquire("gateway", host="a"))
    operator = kit.allocator()
    assert await result(operator.force_release("b", 20000)) is False
    assert await result(operator.force_release("a", 20000)) is True
    assert {20000: "cooling"} == kit.ports("")


async def test_only_what_was_seen(kit: Kit) -> None:
    """With a fence, nobody loses a port who got it after the operator looked."""
    holder = kit.allocator()
    seen = await result(holder.acquire("backup"))
    await result(seen.release())
    now = await result(holder.acquire("backup", owner="vm-2"))
    with pytest.raises(PortInUse, match=r"held by .* owner 'vm-2'"):
        await result(kit.allocator().force_release(HOST, 10809, fence=seen.fence))
    assert now.valid
    assert {10809: "held"} == kit.ports()
    assert await result(kit.allocator().force_release(HOST, 10809, fence=now.fence)) is True


async def test_reply_lost(kit: Kit) -> None:
    """A step that was carried out, and whose repetition finds nothing to do, has taken the port once."""
    await result(kit.allocator().acquire("backup"))
    backend = kit.flaky()
    step = backend.inner.force

    def twice(space: str, port: object) -> object:
        async def asynchronous() -> object:
            await step(space, port)
            return await step(space, port)

        if kit.kind == "async":
            return asynchronous()
        step(space, port)
        return step(space, port)

    backend.inner.force = twice
    assert await result(kit.allocator(backend=backend).force_release(HOST, 10809)) is True
    assert {10809: "cooling"} == kit.ports()


@pytest.mark.parametrize(
    ("host", "number", "protocol", "message"),
    [
        ("", 1, "tcp", "host: must be 1 to 255 bytes"),
        ("h", 0, "tcp", "port: must be an integer from 1 to 65535, got 0"),
        ("h", 65536, "tcp", "port: must be an integer from 1 to 65535, got 65536"),
        ("h", True, "tcp", "port: must be an integer from 1 to 65535, got True"),
        ("h", 1, "sctp", "protocol: must be one of tcp, udp, both, got 'sctp'"),
    ],
)
async def test_bad_values(memory_kit: Kit, host: str, number: int, protocol: str, message: str) -> None:
    """What cannot be a port of a host is refused by key, value and bound."""
    with pytest.raises(ConfigurationError, match=message):
        await result(memory_kit.allocator().force_release(host, number, protocol))


async def test_detach_outlives_the_process(memory_kit: Kit) -> None:
    """A lease under a name of its own is bound to the process that opens it, until that leaves it behind."""
    opened = []
    backend = memory_kit.flaky()
    backend.capabilities = frozenset({"deaths"})
    step = backend.inner.open

    def seen(space: str, instance: str, **how: object) -> object:
        opened.append((how["bound"], how["token"]))
        return step(space, instance, **how)

    backend.inner.open = seen
    ports = memory_kit.allocator(backend=backend, ranges=[BACKUP])
    await result(ports.acquire("backup"))
    await result(ports.detach())
    (at_first, token), (at_last, same) = opened
    assert (True, False, token) == (at_first, at_last, same)
    named = memory_kit.allocator(backend=backend, instance="manager", ranges=[BACKUP])
    await result(named.acquire("backup", host="other"))
    await eventually(3, lambda: len(opened))
    assert opened[2][0] is False


def _between(backend: Any, kind: str, then: Callable[[], Any]) -> None:
    """Let something happen between the next grant and its reply."""
    step = backend.inner.acquire

    async def late_async(*args: Any, **kwargs: Any) -> Any:
        backend.inner.acquire = step
        reply = await step(*args, **kwargs)
        await then()
        return reply

    def late(*args: Any, **kwargs: Any) -> Any:
        backend.inner.acquire = step
        reply = step(*args, **kwargs)
        then()
        return reply

    backend.inner.acquire = late_async if kind == "async" else late


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("wait", [0.0, 60.0], ids=["at once", "patient"])
async def test_taken_before_the_reply(kit: Kit, count: int, wait: float) -> None:
    """Who hears of the force before the reply to his acquire does not get the port, and keeps none of the others."""
    backend = kit.flaky()
    ports = kit.allocator(backend=backend, probe=False)
    await result((await result(ports.acquire("backup", host="kvm-07", port=10810))).release())
    operator = kit.allocator()

    def force() -> Any:
        async def asynchronous() -> None:
            await operator.force_release(HOST, 10809)
            await ports._renew_all()

        if kit.kind == "async":
            return asynchronous()
        operator.force_release(HOST, 10809)
        return ports._renew_all()

    _between(backend, kit.kind, force)
    with pytest.raises(LeaseLost, match=r"Taken by force from .*: 10809/tcp") as told:
        await result(ports.acquire("backup", count=count, wait=wait))
    assert ([10809], "revoked") == ([int(port) for port in told.value.allocations], told.value.reason)
    assert [] == await result(ports.allocations())
    assert {10809: "cooling"} == kit.ports()
    again = await result(ports.acquire("backup"))
    assert (10810, True) == (int(again), again.valid)


def test_taken_while_it_is_probed(memory: servers.MemoryStore) -> None:
    """A port that is taken while acquire still looks whether it is free is not handed out."""
    told = threading.Event()

    def probe(host: str, number: int, protocol: str) -> bool:
        with memory.connect(virtual=True) as operator:
            assert operator.force("host:kvm-07", servers.view(operator, "host:kvm-07").ports[0])
        return told.wait(PATIENCE)

    with (
        memory.connect(virtual=True) as backend,
        PortAllocator(backend=backend, host=HOST, ttl=0.4, probe=probe, on_lost=lambda _: told.set()) as ports,
        pytest.raises(LeaseLost, match="Taken by force"),
    ):
        ports.acquire("backup")
    assert told.is_set()


async def test_released_before_it_is_told(kit: Kit) -> None:
    """Who gives back a port that was taken from him meanwhile is told that it was not his any more."""
    told = Told()
    ports = kit.allocator(on_lost=told)
    port = await result(ports.acquire("backup"))
    await result(kit.allocator().force_release(HOST, 10809))
    with pytest.raises(LeaseLost, match="Taken by force") as error:
        await result(port.release())
    assert [port] == error.value.allocations
    await result(port.release())
    assert await result(ports._renew_all())
    assert [] == told.what
    assert {10809: "cooling"} == kit.ports()
