"""What an allocator tells of the past: its own steps and those of others."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from allocator.kit import HOST, Kit, Outside, eventually, result

from clusterports import (
    BackendError,
    BackendUnavailable,
    ClusterPortsError,
    ConfigurationError,
    PortRange,
    PortsExhausted,
)

if TYPE_CHECKING:
    import servers

GATEWAY = PortRange("gateway", 20000, 20001, scope="cluster")


async def test_a_story(kit: Kit) -> None:
    """Taken, refused, given back, forced: as the story of the port tells it, with host, range and holder."""
    ports, others = kit.allocator(instance="one"), kit.allocator(instance="two")
    first = await result(ports.acquire("backup", owner="vm-1", labels={"job": "nightly"}))
    second = await result(others.acquire("backup", owner="vm-2"))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("backup", owner="vm-3"))
    await result(first.release())
    await result(ports.force_release(HOST, second.number))
    story = await result(ports.events())

    assert [
        ("acquired", 10809, "vm-1", "one", first.fence),
        ("acquired", 10810, "vm-2", "two", second.fence),
        ("refused", None, "vm-3", "one", 0),
        ("released", 10809, "vm-1", "one", first.fence),
        ("forced", 10810, "vm-2", "two", second.fence),
    ] == [(event.kind, event.number, event.owner, event.instance, event.fence) for event in story]
    assert {(HOST, "backup", "tcp")} == {(event.host, event.range, event.protocol) for event in story}
    assert {"job": "nightly"} == story[0].labels
    assert [10810] * 2 == [event.number for event in await result(others.events(port=10810))]
    assert ["vm-3"] == [event.owner for event in await result(others.events(owner="vm-3", host=HOST))]
    assert story[-2:] == [
        event._replace(at=known.at)
        for event, known in zip(await result(ports.events(limit=2)), story[-2:], strict=True)
    ]


async def test_times(memory_kit: Kit) -> None:
    """Times are of this machine's clock and in UTC; what is older than asked for is left out."""
    ports = memory_kit.allocator(virtual=False)
    before = datetime.now(UTC)
    await result(ports.acquire("backup"))
    (event,) = await result(ports.events(since=before - timedelta(seconds=1)))

    assert UTC is event.at.tzinfo
    assert before - timedelta(milliseconds=1) <= event.at <= datetime.now(UTC)
    assert [] == await result(ports.events(since=datetime.now(UTC) + timedelta(days=1)))


async def test_cluster_scope(memory_kit: Kit) -> None:
    """What is unique in the cluster is told with the host where it is bound."""
    ports = memory_kit.allocator(ranges=[GATEWAY])
    await result(ports.acquire("gateway"))
    await result(ports.acquire("gateway", host="kvm-08"))

    assert [HOST, "kvm-08"] == [event.host for event in await result(ports.events())]
    assert [20001] == [event.number for event in await result(ports.events(host="kvm-08"))]
    assert 2 == len(await result(ports.events(range="gateway")))


async def test_foreign(memory_kit: Kit) -> None:
    """A port that something outside has is told of, before the one that is given."""
    ports = memory_kit.allocator(probe=Outside(10809))
    await result(ports.acquire("backup"))

    kinds = [(event.kind, event.number) for event in await result(ports.events())]
    assert [("acquired", 10809), ("foreign", 10809), ("acquired", 10810)] == kinds


async def test_death(kit: Kit) -> None:
    """Of a manager that died the story tells that its ports expired, and when they were free again."""
    ports = kit.allocator(instance="one")
    await result(ports.acquire("backup"))
    await result(ports.detach())
    kit.pass_time(50)
    watcher = kit.allocator()

    assert ["acquired", "expired", "reclaimed"] == [event.kind for event in await result(watcher.events(host=HOST))]


async def test_log(kit: Kit) -> None:
    """A log goes on from where it was read, and reading it holds no lease."""
    ports, watcher = kit.allocator(), kit.allocator()
    await result(ports.acquire("backup"))
    log = watcher.event_log(limit=5)
    reads = [await result(log.read()), await result(log.read())]
    await result(ports.acquire("backup"))

    assert [[10809], []] == [[event.number for event in events] for events in reads]
    assert [10810] == [event.number for event in await result(log.read())]
    assert 1 == len(kit.leases())


async def test_after_the_allocator(kit: Kit) -> None:
    """A log is of use as long as its allocator is."""
    ports = kit.allocator()
    await result(ports.acquire("backup"))
    log = ports.event_log()
    await result(ports.close())

    with pytest.raises(ClusterPortsError, match="This allocator is closed"):
        await result(log.read())


async def test_brief(kit: Kit) -> None:
    """A long owner is that of the port in full, and in its story in brief."""
    ports, owner = kit.allocator(), "vm-" + "x" * 10_000
    if kit.store.name == "fakeredis":
        pytest.skip("fakeredis has no cjson")
    await result(ports.acquire("backup", owner=owner, labels={"job": "y" * 1000}))
    (event,) = await result(ports.events())
    (port,) = (await result(ports.status(HOST))).hosts[0].ports

    assert (owner[:512], {}) == (event.owner, event.labels)
    assert owner == port.owner


async def test_input(memory_kit: Kit) -> None:
    """What cannot be asked for is refused by name before the store is asked."""
    ports = memory_kit.allocator()
    for arguments, said in (
        ({"since": datetime(2026, 3, 1)}, "since: must be a time with a time zone"),  # noqa: DTZ001
        ({"limit": 0}, "limit: must be a whole number from 1 to 1000000, got 0"),
        ({"port": 0}, "port: "),
        ({"host": "\n"}, "host: "),
    ):
        with pytest.raises(ConfigurationError, match=said):
            await result(ports.events(**arguments))


async def test_store_away(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that is away is an error, and the log goes on when it is back."""
    ports = kit.allocator()
    await result(ports.acquire("backup"))
    log = ports.event_log()
    await result(log.read())
    await result(ports.acquire("backup"))

    def away(*_: object) -> None:
        raise BackendUnavailable("away")

    with monkeypatch.context() as patch:
        patch.setattr(log._backend, "events", away)
        with pytest.raises(BackendUnavailable):
            await result(log.read())
    assert [10810] == [event.number for event in await result(log.read())]


async def test_damaged(kind: str, fake_redis: servers.FakeRedisStore, caplog: pytest.LogCaptureFixture) -> None:
    """A host whose log is damaged is passed over with a warning, but where it was asked for it is an error."""
    kit = Kit(kind, fake_redis)
    ports = kit.allocator()
    await result(ports.acquire("backup"))
    await result(ports.acquire("backup", host="kvm-08"))
    fake_redis.client.set(f"clusterports:1:{{host:{HOST}}}:events", "x")

    assert ["kvm-08"] == [event.host for event in await result(ports.events())]
    assert [f"the events on host '{HOST}' cannot be read"] == [r.message.partition(":")[0] for r in caplog.records]
    with pytest.raises(BackendError, match="WRONGTYPE"):
        await result(ports.events(host=HOST))
    await kit.finish()


async def test_while_others_work(kit: Kit) -> None:
    """Whoever follows hears of every port once, in its order, however many take and give back meanwhile."""
    ports, log = kit.allocator(ranges=[PortRange("r", 100, 199)]), kit.allocator().event_log()
    heard: list[tuple[str, int | None]] = []

    async def work() -> None:
        for _ in range(5):
            await result((await result(ports.acquire("r"))).release())

    async def follow() -> int:
        heard.extend((event.kind, event.number) for event in await result(log.read()))
        return len(heard)

    await asyncio.gather(work(), work(), follow())
    await eventually(20, follow)
    by_port = [[kind for kind, number in heard if number == port] for port in {number for _, number in heard}]
    assert all(["acquired", "released"] * (len(kinds) // 2) == kinds for kinds in by_port)
