"""A task that is cancelled at any of its awaits leaves no port behind and no answer for somebody else."""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from allocator.kit import HOST, Kit, eventually

from clusterports import PortRange

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    import servers

RANGE = PortRange("r", 1, 1000)


async def cancelled_after(steps: int, what: Coroutine[Any, Any, Any]) -> Any:
    """Run it for so many turns of the event loop, then cancel it; its result when it was through before."""
    task = asyncio.ensure_future(what)
    for _ in range(steps):
        await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        return await task
    return None


async def held_in(ports: Any) -> list[tuple[str, int]]:
    status = await ports.status()
    return [(host.host, port.number) for host in status.hosts for port in host.ports if port.state == "held"]


async def known_to(ports: Any) -> list[tuple[str, int]]:
    return [(port.host, port.number) for port in await ports.allocations()]


@pytest.mark.parametrize("through", ["flaky", "caller's client", "own connections"])
async def test_acquire(server: servers.ServerStore, memory: servers.MemoryStore, through: str) -> None:
    """However far an acquire came: what its caller did not get is free again after the next heartbeat."""
    kit = Kit("async", memory if through == "flaky" else server)
    arguments: dict[str, Any] = {"ranges": [RANGE], "ttl": 2}
    client = redis.asyncio.Redis.from_url(str(server.url))
    if through == "flaky":
        ports = kit.allocator(backend=kit.flaky(), **arguments)
    elif through == "own connections":
        ports = kit.allocator(server.url, **arguments)
    else:
        ports = kit.allocator(client=client, **arguments)
    got, cut = [], 0
    for steps in range(60):
        port = await cancelled_after(steps, ports.acquire("r", host=f"{HOST}-{steps % 3}"))
        if port is None:
            cut += 1
        else:
            got.append((port.host, port.number))
        fresh = await ports.acquire("r", host="elsewhere")  # the next call gets its own answer
        assert "elsewhere" == fresh.host
        got.append((fresh.host, fresh.number))
    assert 0 < cut < 60
    assert sorted(got) == await known_to(ports)

    async def same() -> bool:
        return await known_to(ports) == sorted(await held_in(ports))

    await eventually(True, same)
    assert sorted(got) == await known_to(ports)
    await kit.finish()
    await client.aclose()


@pytest.mark.parametrize("through", ["flaky", "own connections"])
async def test_release(server: servers.ServerStore, memory: servers.MemoryStore, through: str) -> None:
    """However far a release came: the port is free at the latest after the next heartbeat, and never valid again."""
    kit = Kit("async", memory if through == "flaky" else server)
    if through == "flaky":
        ports = kit.allocator(backend=kit.flaky(), ranges=[RANGE], ttl=2)
    else:
        ports = kit.allocator(server.url, ranges=[RANGE], ttl=2)
    kept = await ports.acquire("r")
    for steps in range(40):
        port = await ports.acquire("r")
        await cancelled_after(steps, port.release())
        if steps:  # it did begin
            assert not port.valid
        await port.release()
    await eventually([(HOST, kept.number)], lambda: held_in(ports))
    assert [kept] == await ports.allocations()
    await kit.finish()


def count_valid(ports: list[Any]) -> int:
    return sum(port.valid for port in ports)


@pytest.mark.parametrize("call", ["close", "detach"])
async def test_end(server: servers.ServerStore, call: str) -> None:
    """However far the end of an allocator came, afterwards nothing of it is valid, and no task or lock is left."""
    kit = Kit("async", server)
    before = asyncio.all_tasks()
    for steps in range(1, 40, 3):
        ports = kit.allocator(server.url, ranges=[RANGE], ttl=0.5)
        held: Any = await ports.acquire("r", count=70)
        await cancelled_after(steps, getattr(ports, call)())
        await eventually(0, partial(count_valid, held))
    await eventually(before, asyncio.all_tasks)
    await kit.finish()


async def test_resume(server: servers.ServerStore) -> None:
    """However far a resume came, the next call finishes it."""
    kit = Kit("async", server)
    first = kit.allocator(server.url, ranges=[RANGE], instance="manager")
    for host in ("a", "b", "c"):
        await first.acquire("r", host=host, count=2)
    await first.detach()
    for steps in range(1, 60, 4):
        ports = kit.allocator(server.url, ranges=[RANGE], instance="manager")
        await cancelled_after(steps, ports.allocations())
        assert [(host, n) for host in ("a", "b", "c") for n in (1, 2)] == await known_to(ports)
        await ports.detach()
    await kit.finish()


async def test_many_at_once(server: servers.ServerStore) -> None:
    """Tasks that share an allocator, some of them cancelled, each get their own answers."""
    kit = Kit("async", server)
    ports = kit.allocator(server.url, ranges=[RANGE], ttl=2)
    got: list[int] = []

    async def use(number: int) -> None:
        for _ in range(5):
            port = await ports.acquire("r", owner=str(number))
            assert str(number) == port.owner
            got.append(port.number)
            await asyncio.sleep(0)
            await port.release()

    waits: list[Callable[[], Any]] = []
    tasks = [asyncio.ensure_future(use(number)) for number in range(40)]
    for number, task in enumerate(tasks):
        if number % 4 == 0:
            waits.append(task.cancel)
    for cancel in waits:
        await asyncio.sleep(0)
        cancel()
    outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert [None] * 30 == [outcome for number, outcome in enumerate(outcomes) if number % 4]
    assert 150 <= len(got)
    await eventually([], lambda: held_in(ports))
    await kit.finish()
