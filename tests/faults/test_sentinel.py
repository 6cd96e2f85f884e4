"""Allocators that find their server through sentinels, while the primary changes."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import servers
from allocator.kit import Kit, Told, begin, eventually, finished, result
from faults.control import SERVICE, Server, until
from faults.load import PATIENCE, Load

from clusterports import BackendError, BackendUnavailable, PortRange, Settings
from clusterports._names import host_space
from clusterports_redis import connect, connect_async
from clusterports_redis._async_link import OwnConnections
from clusterports_redis._url import Address, target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from faults.control import Sentinels

RANGES = [PortRange("held", 1, 9), PortRange("churn", 10, 99)]

TTL = 4.0

SECRET = "s3cr3t"


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of allocator."""
    return str(request.param)


@pytest_asyncio.fixture
async def kit(kind: str, sentinels: Sentinels) -> AsyncIterator[Kit]:
    kit = Kit(kind, servers.ServerStore("sentinels", sentinels.primary().url))
    yield kit
    await kit.finish()
    kit.store.client.close()


def allocator(kit: Kit, sentinels: Sentinels, host: str, **more: Any) -> Any:
    settings = Settings(url=sentinels.url, timeout=15.0)
    return kit.allocator(settings=settings, host=host, ranges=RANGES, probe=False, ttl=TTL, **more)


def held(sentinels: Sentinels, host: str) -> list[int]:
    """The numbers of the range ``held`` that the primary of now says are held."""
    with connect(sentinels.primary().url) as backend:
        view = servers.view(backend, host_space(host))
    return [port.number for port in view.ports if port.state == "held" and port.range == "held"]


@pytest.mark.parametrize("way", ["ordered", "killed"])
async def test_failover(kit: Kit, sentinels: Sentinels, way: str) -> None:
    """When the primary changes no caller is told an error, held ports stay held, and the heartbeat goes on."""
    host, lost = f"{kit.kind}-{way}", Told()
    ports = allocator(kit, sentinels, host, on_lost=lost)
    kept = await result(ports.acquire("held", count=5))
    before = sentinels.primary()
    await asyncio.to_thread(until, lambda: before.ask("WAIT", 2, 1000) == 2)
    lease = ports._leases[host_space(host)]
    async with Load(ports, "churn", [host]) as load:
        if way == "ordered":
            await asyncio.to_thread(sentinels.failover)
        else:
            before.kill()
        after = await asyncio.to_thread(until, lambda: (now := sentinels.primary()) is not before and now, PATIENCE)
        await load.rounds()
        deadline = lease.until
        await eventually(True, lambda: lease.until > deadline + TTL / 2)
    if way == "killed":
        before.start()
    assert after is not before
    assert ([True] * 5, []) == ([port.valid for port in kept], lost.what)
    assert [int(port) for port in kept] == held(sentinels, host)
    assert load.slowest < 15


async def test_replica(kind: str, sentinels: Sentinels) -> None:
    """A replica that sentinels still take for the primary counts as not reached, and another sentinel is asked."""
    backend = (connect if kind == "sync" else connect_async)(sentinels.url, timeout=15.0)
    link: Any = backend._link
    primary = sentinels.primary()
    replica = next(server for server in sentinels.servers if server is not primary)
    find, first, asked = link._sentinels.primary, link._sentinels._seeds[0], []

    def mistaken() -> Any:
        asked.append(link._sentinels._seeds[0])
        return find() if len(asked) > 1 else found if kind == "sync" else asyncio.sleep(0, found)

    found = Address("127.0.0.1", replica.port)
    link._sentinels.primary = mistaken
    assert [] == await result(backend.spaces("nobody"))
    assert (2, first) == (len(asked), asked[0])
    assert first != asked[1]
    assert primary.port == link._arguments["port"]
    await result(backend.close())


async def test_silent_sentinels(kit: Kit, sentinels: Sentinels) -> None:
    """Sentinels that do not answer cost their shares of the time; after that another is asked first."""
    silent = sentinels.sentinels[:2]
    for sentinel in silent:
        sentinel.pause()
    try:
        ports = kit.allocator(settings=Settings(url=sentinels.url, timeout=3.0), host="s", ranges=RANGES, probe=False)
        began = time.monotonic()
        assert 1 == int(await result(ports.acquire("held")))
        assert time.monotonic() - began < 2.5
        assert sentinels.sentinels[2].port == ports._backend._link._sentinels._seeds[0].port
    finally:
        for sentinel in silent:
            sentinel.resume()


async def test_nobody_knows(kind: str, sentinels: Sentinels) -> None:
    """Without a sentinel that knows the service, each is named with what it said, once the time is over."""
    known = sentinels.sentinels[0].address
    backend = (connect if kind == "sync" else connect_async)(f"redis+sentinel://127.0.0.1:1,{known}/other", timeout=0.5)
    with pytest.raises(BackendUnavailable) as caught:
        await result(backend.spaces())
    message = str(caught.value)
    assert message.startswith(f"The store at redis+sentinel://127.0.0.1:1,{known}/other did not answer within 0.5 s: ")
    assert "no sentinel names a primary of other: 127.0.0.1:1: " in message
    assert message.endswith(f"; {known} does not know it")
    assert not caught.value.unknown
    await result(backend.close())


@pytest.fixture(scope="module")
def guarded(_sentinels: Sentinels, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder: Path = tmp_path_factory.mktemp("guarded")
    (folder / "sentinel.conf").write_text(
        f"sentinel monitor {SERVICE} 127.0.0.1 {_sentinels.primary().port} 1\nrequirepass {SECRET}\n"
    )
    with Server(servers.find_valkey(), folder, str(folder / "sentinel.conf"), "--sentinel") as sentinel:
        yield sentinel


async def test_password_of_sentinels(kind: str, sentinels: Sentinels, guarded: Server) -> None:
    """Sentinels have a password of their own; one that is missing or wrong is told at once, and not shown."""
    make: Any = connect if kind == "sync" else connect_async
    url = f"redis+sentinel://{guarded.address}/{SERVICE}"
    right = make(f"{url}?sentinel_password={SECRET}")
    assert [] == await result(right.spaces("nobody"))
    await result(right.close())
    for options in ("", f"?sentinel_password=not-{SECRET}"):
        backend, began = make(url + options, timeout=30.0), time.monotonic()
        with pytest.raises(BackendError, match="refuses the login: the sentinel at 127") as caught:
            await result(backend.spaces())
        await result(backend.close())
        assert SECRET not in str(caught.value)
        assert time.monotonic() - began < 15


async def test_sessions_and_together(sentinels: Sentinels) -> None:
    """A server's run has a name that another server does not share; commands go together on one connection."""
    link = OwnConnections(target(sentinels.url, 2.5))
    primary = await asyncio.to_thread(sentinels.primary)
    run = f"{primary.ask('INFO', 'server')['run_id']} {primary.ask('INFO', 'replication')['master_replid']}"
    assert [run, run] == await link.sessions(["a", "b"])
    assert [[], 2] == await link.together([("SMEMBERS", "nothing"), ("WAIT", "0", "0")])
    await link.close()


async def test_wakes(kit: Kit, sentinels: Sentinels) -> None:
    """Who waits is woken through the server that the sentinels name."""
    primary = await asyncio.to_thread(sentinels.primary)
    ports = allocator(kit, sentinels, f"{kit.kind}-waits")
    first = await result(ports.acquire("held", port=1))
    waiting = begin(ports.acquire, "held", port=1, wait=20)
    await eventually(True, lambda: bool(primary.ask("PUBSUB", "CHANNELS", "clusterports:*")))
    await result(first.release())
    assert 1 == int(await finished(waiting))
