"""What those who follow are told, and how often the store is read."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Any

import pytest
from starlette.requests import ClientDisconnect, Request
from web.conftest import PATIENCE, RANGES

from clusterports import PortAllocator
from clusterports.errors import BackendError
from clusterports.web import _app, _cluster
from clusterports.web._access import Access
from clusterports.web._cluster import Cluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

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
        self.looks = 0
        self.logs: list[list[str]] = []
        self.refuses: Exception | None = None
        self.during: Callable[[], None] = lambda: None

    def read(self, spaces: list[str]) -> Any:
        self.reads.append(list(spaces))
        go_on, views = self.go_on, self._backend.read(spaces)
        self.reading.release()
        assert go_on.wait(PATIENCE)
        self.during()
        return views

    def events(self, *arguments: Any) -> Any:
        self.looks += 1
        self.logs.append(list(arguments[0]))
        if self.refuses:
            raise self.refuses
        return self._backend.events(*arguments)

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


@asynccontextmanager
async def following(cluster: Cluster) -> AsyncIterator[None]:
    reader = asyncio.create_task(cluster.follow())
    try:
        yield
    finally:
        reader.cancel()
        with suppress(asyncio.CancelledError):
            await reader


async def until(seen: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE):
        while not seen():  # noqa: ASYNC110  of other threads
            await asyncio.sleep(0.005)


def hosts(changes: dict[str, Any] | None) -> list[str]:
    assert changes is not None
    return [one["host"] for one in changes["hosts"]]


def held(cluster: Cluster, host: str) -> int:
    """Of the range backup."""
    (row,) = [one for one in json.loads(cluster.map().plain)["hosts"] if one["host"] == host]
    return int(row["ranges"]["backup"][0])


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
    async with following(cluster):
        while len(store.reads) < 2:
            await cluster.news(PATIENCE)
        await cluster.news(1)
        before, reads = cluster.id, len(store.reads)
        ports.acquire("backup", host="b", owner="vm-7")
        while not ((changes := cluster.since(before))[0] or {}).get("hosts"):
            assert await cluster.news(PATIENCE)
        again = cluster.since(cluster.id)

    assert ["b"] == hosts(changes[0])
    assert [("acquired", "b", 10810, "vm-7")] == [
        tuple(one[key] for key in ("kind", "host", "number", "owner")) for one in changes[1]
    ]
    assert (None, []) == again
    assert [read] == [sorted(one) for one in store.reads[reads:]]


async def test_log_that_cannot_be_read(
    store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A log that cannot be read makes nobody read everything more often, is told once, and is followed when it can."""
    skipped = 0
    monkeypatch.setattr(_cluster, "monotonic", lambda: time.monotonic() + skipped)
    monkeypatch.setattr(_cluster, "FOLLOW", 0.01)
    ports.acquire("backup", host="a")
    cluster = make(store, ports)
    store.refuses = BackendError("NOPERM no permissions to run 'xrevrange'")
    async with following(cluster):
        await until(lambda: store.looks >= 5)
        first = len(store.reads)
        skipped += 3600
        await until(lambda: len(store.reads) == 3)
        store.refuses = None
        await until(lambda: len(store.reads) == 4)
        store.refuses = ZeroDivisionError("what nobody thought of")
        await until(lambda: len(store.reads) == 5)
        before = store.looks
        await until(lambda: store.looks >= before + 5)
        store.refuses = None
        ports.acquire("backup", host="a")
        await until(lambda: len(store.reads) == 6)

    assert 2 == first
    assert [["host:a"]] == [sorted(set(one) - {"cluster"}) for one in store.reads[5:]]
    assert cluster.ready
    assert [
        "the events cannot be read, so changes show late: NOPERM no permissions to run 'xrevrange'",
        "the events cannot be read, so changes show late: unexpected ZeroDivisionError: what nobody thought of",
    ] == caplog.messages


async def test_much_news(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much happens, reading everything takes no more than its part of the time."""
    skipped = 0.0

    def slow() -> None:
        nonlocal skipped
        skipped += 20

    store.during = slow
    monkeypatch.setattr(_cluster, "monotonic", lambda: time.monotonic() + skipped)
    monkeypatch.setattr(_cluster, "FOLLOW", 0.01)
    monkeypatch.setattr(_cluster, "MANY", 0)
    cluster = make(store, ports)
    async with following(cluster):
        await until(lambda: len(store.reads) == 2)
        for _ in range(3):
            before = store.looks
            ports.acquire("backup", host="a")
            await until(lambda: store.looks >= before + 2)  # noqa: B023
        reads = len(store.reads)
        skipped += 200
        await until(lambda: len(store.reads) == 3)

    assert 2 == reads


@pytest.mark.parametrize("host", ["known", "new"])
async def test_late_read(host: str, store: Any, ports: PortAllocator) -> None:
    """What a read of everything found is not shown of a host that was read since it began."""
    log = ports.event_log(limit=1)
    cluster = make(store, ports)
    ports.acquire("backup", host="known")
    await cluster.whole()
    await cluster._catch_up(log)
    await store.is_read()
    late, now = threading.Event(), store.go_on
    store.go_on = late
    reading = asyncio.create_task(cluster.whole())
    await store.is_read()
    store.go_on = now
    ports.acquire("backup", host=host)
    await cluster._catch_up(log)
    before = held(cluster, host)
    late.set()
    await reading

    assert {"known": 2, "new": 1}[host] == before == held(cluster, host)
    await cluster.whole()
    assert before == held(cluster, host)


async def test_early_read(store: Any, ports: PortAllocator) -> None:
    """What the log led to is not shown of a host where everything was read since."""
    log = ports.event_log(limit=1)
    cluster = make(store, ports)
    await cluster._catch_up(log)
    ports.acquire("backup", host="a")
    late, now = threading.Event(), store.go_on
    store.go_on = late
    catching_up = asyncio.create_task(cluster._catch_up(log))
    await store.is_read()
    store.go_on = now
    ports.acquire("backup", host="a")
    await cluster.whole()
    late.set()
    await catching_up

    assert 2 == held(cluster, "a")


async def test_no_host_but_those_with_a_space(store: Any, ports: PortAllocator) -> None:
    """A host where only ports of the whole cluster are bound is none of the map."""
    log = ports.event_log(limit=1)
    cluster = make(store, ports)
    await cluster._catch_up(log)
    ports.acquire("gateway", host="far")
    await cluster._catch_up(log)

    assert [["cluster", "host:far"]] == store.reads
    assert [""] == [host.host for host in cluster.hosts()]


async def test_damaged_host(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that cannot be read any more has no counts, until it can."""
    cluster = make(store, ports)
    ports.acquire("backup", host="a")
    await cluster.whole()
    read, before = store.read, cluster.id
    monkeypatch.setattr(store, "read", lambda spaces: [BackendError("damaged") for _ in spaces])
    await cluster.whole()
    changes, _ = cluster.since(before)
    monkeypatch.setattr(store, "read", read)
    await cluster.whole()
    healed, _ = cluster.since(before)

    assert ([], ["a"]) == (hosts(changes), changes and changes["gone"])
    assert [{"host": "a", "error": "damaged"}] == (changes and changes["unreadable"])
    assert (["a"], [], []) == (hosts(healed), healed and healed["gone"], healed and healed["unreadable"])


async def test_when_it_was_read(store: Any, ports: PortAllocator) -> None:
    """Of a read of what changed it is not said that it was one of everything."""
    log = ports.event_log(limit=1)
    cluster = make(store, ports)
    await cluster._catch_up(log)
    nothing = cluster.head()
    await cluster.whole()
    first = cluster.head()
    ports.acquire("backup", host="a")
    await cluster._catch_up(log)
    second = cluster.head()

    assert (None, None) == (nothing["generated_at"], nothing["all_read_at"])
    assert first["generated_at"] == first["all_read_at"] == second["all_read_at"] < second["generated_at"]


def following_page(store: Any, ports: PortAllocator) -> tuple[_app._Page, Request]:
    scope = {"type": "http", "method": "GET", "path": "/api/stream", "query_string": b"", "headers": []}
    return _app._Page(make(store, ports), Access(None)), Request(scope)


async def test_no_more_follow(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who was let in counts from then on, and no more once he is gone, though he may never have been told anything."""
    monkeypatch.setattr(_app, "LIVE", 2)
    page, request = following_page(store, ports)
    answers = [await page._stream(request) for _ in range(2)]
    with pytest.raises(_app._Refused, match="at most 2 may follow"):
        await page._stream(request)

    async def gone(*_: object) -> Any:
        return {"type": "http.disconnect"}

    async def broken(*_: object) -> None:
        raise OSError

    await answers[0](request.scope, gone, gone)
    with suppress(OSError, ExceptionGroup, ClientDisconnect):
        await answers[1](request.scope, gone, broken)
    again = [await page._stream(request) for _ in range(2)]

    assert [200, 200] == [one.status_code for one in again]


async def test_signs_of_life(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who follows hears something again and again, in a way that a script of the page sees."""
    monkeypatch.setattr(_app, "BEAT", 0.01)
    page, _ = following_page(store, ports)
    news = page._news(page.cluster.id)
    told = [await anext(news) for _ in range(3)]
    await news.aclose()  # type: ignore[attr-defined]

    assert ["retry: 3000\n\n", "event: beat\ndata: {}\n\n", "event: beat\ndata: {}\n\n"] == told


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


async def test_range_of_what_is_known(store: Any, ports: PortAllocator) -> None:
    """Who asks for a range on all hosts shares the read with the others."""
    cluster = make(store, ports)
    ports.acquire("backup")
    store.go_on.clear()
    asking = [asyncio.create_task(cluster.of_range(name)) for name in 10 * ("backup", "spare")]
    await store.is_read()
    store.go_on.set()
    answers = [json.loads(one.plain) for one in await asyncio.gather(*asking)]

    assert 1 == len(store.reads)
    assert [1, 0] * 10 == [len(one["hosts"][0]["ports"]) for one in answers]


async def test_log_of_the_cluster(store: Any, ports: PortAllocator) -> None:
    """For what happened in a range of the whole cluster no host's log is read."""
    cluster = make(store, ports)
    ports.acquire("gateway", host="far", owner="vm-1")
    ports.acquire("backup")
    found = await cluster.events(host=None, range="gateway", limit=10)

    assert [("far", "vm-1")] == [(one.host, one.owner) for one in found]
    assert [["cluster"]] == store.logs


async def test_too_many_ask(store: Any, ports: PortAllocator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those who ask for what nobody shares few are served at a time, some wait, and others are sent away; that
    keeps neither the page from reading the store nor anybody from what needs no read.
    """
    for name, count in (("READERS", 1), ("WIDE", 1), ("ASKING", 3)):
        monkeypatch.setattr(_cluster, name, count)
    cluster = make(store, ports)
    go_on, begun = threading.Event(), threading.Semaphore(0)

    def read() -> bool:
        begun.release()
        return go_on.wait(PATIENCE)

    asking = [asyncio.create_task(cluster.ask(read, wide)) for wide in (False, True, False)]
    await until(lambda: cluster._asking == 3)
    with pytest.raises(_cluster.Busy):
        await cluster.ask(read)
    await cluster.whole()
    await cluster.work(cluster.map)
    running = [begun.acquire(timeout=PATIENCE) for _ in range(2)], begun.acquire(blocking=False)
    go_on.set()
    answers = await asyncio.gather(*asking)

    assert ([True, True], False) == running
    assert [True] * 3 == answers
    assert await cluster.ask(read)


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
