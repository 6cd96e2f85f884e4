"""What those who follow are told, and how often the store is read."""

from __future__ import annotations

import asyncio
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from web.conftest import PATIENCE, RANGES

from clusterports import PortAllocator
from clusterports.web import _cluster
from clusterports.web._cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import Iterator

    import servers

    from clusterports.abc import Backend


class Counted:
    """A store that says what was read, and can be stopped in the middle."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self.reads: list[list[str]] = []
        self.reading = threading.Semaphore(0)
        self.go_on = threading.Event()
        self.go_on.set()

    def read(self, spaces: list[str]) -> Any:
        self.reads.append(list(spaces))
        self.reading.release()
        assert self.go_on.wait(PATIENCE)
        return self._backend.read(spaces)

    async def is_read(self) -> None:
        """Wait for the next read to begin."""
        assert await asyncio.to_thread(self.reading.acquire, timeout=PATIENCE)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)


@pytest.fixture
def store(memory: servers.MemoryStore) -> Any:
    return Counted(memory.connect())


@pytest.fixture
def ports(store: Any) -> Iterator[PortAllocator]:
    with PortAllocator(backend=store, host="h", ranges=RANGES, probe=False, instance="i") as made:
        yield made


def make(store: Any, ports: PortAllocator) -> Cluster:
    return Cluster(store, RANGES, allocator=ports, every=3600)


def hosts(changes: dict[str, Any] | None) -> list[str]:
    assert changes is not None
    return [one["host"] for one in changes["hosts"]]


async def test_changes_since(store: Any, ports: PortAllocator) -> None:
    """Who has a state of the map gets what changed in it; who has none of this process, everything."""
    cluster = make(store, ports)
    ports.acquire("backup", host="a")
    ports.acquire("backup", host="b")
    await cluster.whole()
    before = cluster.id
    ports.acquire("backup", host="b")
    await cluster.whole()
    after, _ = cluster.since(before)
    everything = [cluster.since(id)[0] for id in ("", "x-1", "nonsense", before.replace("-", "-9"), f"{before[:-1]}٣")]

    assert (False, ["b"], []) == (after and after["all"], hosts(after), after and after["gone"])
    assert [["a", "b"]] * 5 == [hosts(one) for one in everything]
    assert (None, []) == cluster.since(cluster.id)


async def test_gone(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that was removed is told as gone, and who missed too many of those gets everything."""
    monkeypatch.setattr(_cluster, "KEPT", 2)
    cluster = make(store, ports)
    for host in "abcd":
        ports.acquire("backup", host=host).release()
    ports.acquire("backup", host="stays")
    await cluster.whole()
    before = cluster.id
    spaces = sorted(store.spaces())

    def remove(space: str) -> None:
        monkeypatch.setattr(store, "spaces", lambda: [one for one in spaces if one not in removed])
        removed.add(space)

    removed: set[str] = set()
    remove("host:a")
    await cluster.whole()
    told, _ = cluster.since(before)
    for space in ("host:b", "host:c"):
        remove(space)
        await cluster.whole()
    missed, _ = cluster.since(before)

    assert ([], ["a"], False) == (hosts(told), told and told["gone"], told and told["all"])
    assert (["d", "stays"], True) == (hosts(missed), missed and missed["all"])


@pytest.mark.parametrize(("many", "read"), [(1, ["cluster", "host:b"]), (0, ["host:a", "host:b"])])
async def test_follows_the_log(
    many: int, read: list[str], store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between two reads of everything, only hosts with events are read, unless they are too many; those who follow are
    told these, once.
    """
    monkeypatch.setattr(_cluster, "FOLLOW", 0.02)
    monkeypatch.setattr(_cluster, "MANY", many)
    for host in ("a", "b"):
        ports.acquire("backup", host=host)
    cluster = make(store, ports)
    reader = asyncio.create_task(cluster.follow())
    while len(store.reads) < 2:
        await cluster.news(PATIENCE)
    await cluster.news(1)
    before, reads = cluster.id, len(store.reads)
    ports.acquire("backup", host="b", owner="vm-7")
    while not ((changes := cluster.since(before))[0] or {}).get("hosts"):
        assert await cluster.news(PATIENCE)
    again = cluster.since(cluster.id)
    reader.cancel()
    with suppress(asyncio.CancelledError):
        await reader

    assert ["b"] == hosts(changes[0])
    assert [("acquired", "b", 10810, "vm-7")] == [
        tuple(one[key] for key in ("kind", "host", "number", "owner")) for one in changes[1]
    ]
    assert (None, []) == again
    assert [read] == [sorted(one) for one in store.reads[reads:]]


async def test_one_read_for_all(store: Any, ports: PortAllocator) -> None:
    """However many ask at the same time, the store is read once."""
    cluster = make(store, ports)
    ports.acquire("backup")
    store.go_on.clear()
    asking = [asyncio.create_task(cluster.status()) for _ in range(20)]
    await store.is_read()
    store.go_on.set()
    answers = await asyncio.gather(*asking)

    assert 1 == len(store.reads)
    assert 1 == len({id(one) for one in answers})


async def test_who_leaves_stops_nobody(store: Any, ports: PortAllocator) -> None:
    """One who asked and went away leaves the read to the others."""
    cluster = make(store, ports)
    store.go_on.clear()
    gone, stays = (asyncio.create_task(cluster.whole()) for _ in range(2))
    await store.is_read()
    gone.cancel()
    store.go_on.set()

    assert "memory" == (await stays).cluster.backend
    assert 1 == len(store.reads)


async def test_reading_does_not_stop_the_others(store: Any, ports: PortAllocator) -> None:
    """While the store is being read, everything else goes on."""
    cluster = make(store, ports)
    ports.acquire("backup")
    await cluster.whole()
    await store.is_read()
    store.go_on.clear()
    reading = asyncio.create_task(cluster.whole())
    await store.is_read()
    shown = cluster.map().plain
    store.go_on.set()
    await reading

    assert b'"host": "h"' in shown
