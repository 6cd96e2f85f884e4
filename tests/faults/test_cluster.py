"""Allocators on a cluster: slots that move, primaries that die, and nodes that are silent."""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import servers
from allocator.kit import Kit, Told, begin, eventually, finished, result
from faults.control import until
from faults.load import PATIENCE, Load

from clusterports import BackendError, BackendUnavailable, PortRange, Settings
from clusterports._names import CLUSTER_SPACE, host_space
from clusterports.abc import Holder, Opened, Renewal, Renewed
from clusterports.errors import ConfigurationError
from clusterports.testing import BackendConformance, RealClock
from clusterports_redis import _wire as wire
from clusterports_redis import connect, connect_async
from clusterports_redis._async_cluster import ClusterConnections
from clusterports_redis._async_link import CallersClient
from clusterports_redis._sync_cluster import ClusterConnections as BlockingClusterConnections
from clusterports_redis._url import target

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from faults.control import Cluster, Server

    from clusterports.abc import Backend
    from clusterports.testing import Clock

RANGES = [PortRange("held", 1, 9), PortRange("churn", 10, 99), PortRange("everywhere", 100, 199, scope="cluster")]

TTL = 4.0


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of allocator."""
    return str(request.param)


@pytest_asyncio.fixture
async def kit(kind: str, cluster: Cluster) -> AsyncIterator[Kit]:
    kit = Kit(kind, servers.MemoryStore())  # only makes and ends the allocators
    yield kit
    await kit.finish()


def allocator(kit: Kit, cluster: Cluster, **more: Any) -> Any:
    settings = Settings(url=cluster.url, timeout=15.0)
    return kit.allocator(settings=settings, ranges=RANGES, probe=False, ttl=TTL, **more)


def key(host: str) -> str:
    return wire.keys(host_space(host))[0]


def hosts_on(cluster: Cluster, node: Server, count: int, prefix: str) -> list[str]:
    """Names of hosts whose spaces this node has."""
    mine = cluster.slots_of(node)
    if not mine:
        return []
    names = (f"{prefix}-{number}" for number in itertools.count())
    return list(itertools.islice((name for name in names if cluster.slot(key(name)) in mine), count))


def held(cluster: Cluster, host: str) -> list[int]:
    with connect(cluster.url) as backend:
        view = servers.view(backend, host_space(host))
    return [port.number for port in view.ports if port.state == "held" and port.range == "held"]


@pytest.mark.parametrize("host", ["plain", "}x{", "{}", "*", "a b", "{a}{b}", "täglich", "\x1b[31m", "~", "%7B"])
def test_one_slot(cluster: Cluster, host: str) -> None:
    """All keys of a space are in one slot, as the server counts, whatever the host is called."""
    for space in (host_space(host), CLUSTER_SPACE):
        assert 1 == len({cluster.nodes[0].ask("CLUSTER", "KEYSLOT", one) for one in wire.all_keys(space)})


async def test_spread(kit: Kit, cluster: Cluster) -> None:
    """Spaces lie on all nodes, and what is asked of many of them is answered in their order."""
    hosts = [f"{kit.kind}-spread-{number}" for number in range(12)]
    ports = allocator(kit, cluster, host=hosts[0])
    taken = [await result(ports.acquire("held", host=host, count=index % 3 + 1)) for index, host in enumerate(hosts)]
    everywhere = await result(ports.acquire("everywhere"))
    owners = {cluster.owner(key(host)).port for host in hosts}
    assert {node.port for node in cluster.nodes[:3]} == owners
    status = await result(ports.status())
    counts = {found.host: len(found.ports) for found in status.hosts if found.host in hosts}
    assert {host: index % 3 + 1 for index, host in enumerate(hosts)} == counts
    assert [] == [space for space in map(host_space, hosts) if space not in await result(ports._backend.spaces())]
    spaces = [host_space(host) for host in hosts]
    assert spaces == [view.space for view in await result(ports._backend.read(spaces))]
    assert len(taken) == len(await result(ports.allocations())) - sum(index % 3 for index in range(12)) - 1
    await result(everywhere.release())


async def test_moved(kit: Kit, cluster: Cluster) -> None:
    """After a slot has moved its space is found on the new node, and so are the ports that are held in it."""
    host = f"{kit.kind}-moved"
    ports = allocator(kit, cluster, host=host)
    first = await result(ports.acquire("held"))
    source = cluster.owner(key(host))
    to = next(node for node in cluster.nodes[:3] if node is not source)
    assert ["importing", "migrating", "moved"] == [
        step for step in cluster.migrate(cluster.slot(key(host)), to) if step != "key"
    ]
    assert (1, 2) == (int(first), int(await result(ports.acquire("held"))))
    await result(first.release())
    assert [2] == held(cluster, host)
    assert to.address == str(ports._backend._link._owners[cluster.slot(key(host))])


async def test_moving(kit: Kit, cluster: Cluster) -> None:
    """While a slot moves key by key and back, calls wait for it and no caller is told an error."""
    host, lost = f"{kit.kind}-moving", Told()
    ports = allocator(kit, cluster, host=host, on_lost=lost)
    kept = await result(ports.acquire("held", count=3))
    slot, source = cluster.slot(key(host)), cluster.owner(key(host))
    to = next(node for node in cluster.nodes[:3] if node is not source)
    async with Load(ports, "churn", [host]) as load:
        for end in (to, source):
            for _ in cluster.migrate(slot, end):
                await asyncio.sleep(0.05)  # long enough for calls to meet each state
            await load.rounds()
    assert ([True] * 3, []) == ([port.valid for port in kept], lost.what)
    assert [1, 2, 3] == held(cluster, host)


@pytest.mark.parametrize("options", ["", "?min_replicas=1"], ids=["plain", "copies"])
async def test_moving_without_a_log(kit: Kit, cluster: Cluster, options: str) -> None:
    """A slot that somebody began to move, and left so, answers nobody who names a key that is not there. The log of
    events may be that key, and keeps nobody from its ports."""
    host = f"{kit.kind}-{bool(options)}-begun"
    settings = Settings(url=cluster.url + options, timeout=15.0)
    ports = kit.allocator(settings=settings, ranges=RANGES, probe=False, ttl=TTL, host=host)
    kept = await result(ports.acquire("held"))
    slot, source = cluster.slot(key(host)), cluster.owner(key(host))
    steps = cluster.migrate(slot, next(node for node in cluster.nodes[:3] if node is not source))
    assert ["importing", "migrating"] == [next(steps), next(steps)]
    try:
        source.ask("DEL", wire.all_keys(host_space(host))[-1])
        (renewed,) = await result(ports._backend.renew([Renewal(kept._lease.space, kept._lease.holder)]))
        assert isinstance(renewed, Renewed)
        other = await result(ports.acquire("held"))
        await result(kept.release())
        assert [int(other)] == held(cluster, host)
    finally:
        list(steps)
    assert [int(other)] == held(cluster, host)


async def test_asked(kit: Kit, cluster: Cluster) -> None:
    """A key that has gone ahead of its slot is asked for where it is: here the index of spaces."""
    slot, source = cluster.slot(wire.SPACES), cluster.owner(wire.SPACES)
    ports = allocator(kit, cluster, host=f"{kit.kind}-before")
    await result(ports.acquire("held"))
    to = next(node for node in cluster.nodes[:3] if node is not source)
    steps = cluster.migrate(slot, to)
    while wire.SPACES in source.ask("CLUSTER", "GETKEYSINSLOT", slot, 10):
        next(steps)
    await result(ports.acquire("held", host=f"{kit.kind}-after"))
    known = await result(ports._backend.spaces())
    assert source is cluster.owner(wire.SPACES)
    list(steps)
    wanted = [host_space(f"{kit.kind}-before"), host_space(f"{kit.kind}-after")]
    assert wanted == [space for space in wanted if space in known]
    assert [] == await result(ports._backend.spaces("nobody"))


async def test_primary_killed(kit: Kit, cluster: Cluster) -> None:
    """When a primary dies its replica takes over: no caller is told an error, and held ports stay held everywhere."""
    dying = cluster.owner(key("any"))
    other = next(node for node in cluster.nodes if node is not dying and cluster.slots_of(node))
    hosts = hosts_on(cluster, dying, 2, kit.kind) + hosts_on(cluster, other, 1, kit.kind)
    lost, heir = Told(), cluster.replica(dying)
    ports = allocator(kit, cluster, host=hosts[0], on_lost=lost)
    kept = [await result(ports.acquire("held", host=host)) for host in hosts]
    await asyncio.to_thread(until, lambda: dying.ask("WAIT", 1, 1000) == 1)
    lease = ports._leases[host_space(hosts[0])]
    async with Load(ports, "churn", hosts) as load:
        dying.kill()
        await asyncio.to_thread(until, lambda: cluster.owner(key("any")) is heir, PATIENCE)
        await load.rounds()
        deadline = lease.until
        await eventually(True, lambda: lease.until > deadline + TTL / 2)
    dying.start()
    assert ([True] * 3, []) == ([port.valid for port in kept], lost.what)
    assert [[1]] * 3 == [held(cluster, host) for host in hosts]
    assert load.slowest < 15


def test_silent_node(cluster: Cluster) -> None:
    """A node that does not answer costs its own spaces alone: the others are renewed, and read, by the same call."""
    nodes = [node for node in cluster.nodes if cluster.slots_of(node)]
    hosts = [hosts_on(cluster, node, 1, "silent")[0] for node in nodes]
    with connect(cluster.url, timeout=0.6) as backend:
        renewals = []
        for host in hosts:
            opened = backend.open(host_space(host), "i", token="a", ttl=60_000_000)
            assert isinstance(opened, Opened)
            renewals.append(Renewal(host_space(host), Holder("i", opened.lease, opened.incarnation)))
        nodes[0].pause()
        try:
            outcomes = backend.renew(renewals)
        finally:
            nodes[0].resume()
    assert [BackendUnavailable, Renewed, Renewed] == [type(outcome) for outcome in outcomes]


async def test_scripts_taught(kind: str, cluster: Cluster) -> None:
    """Each node is sent a script that it does not know, within one batch."""
    spaces = [host_space(f"taught-{number}") for number in range(20)]
    backend = (connect if kind == "sync" else connect_async)(cluster.url)
    for node in cluster.nodes[:3]:
        node.ask("SCRIPT", "FLUSH")
    await result(backend.spaces())
    batches: list[int] = []
    send: Any = backend._scripted

    def counted(commands: Any) -> Any:
        batches.append(len(commands))
        return send(commands)

    backend._scripted = counted  # type: ignore[method-assign]
    assert [(space, 0) for space in spaces] == [(view.space, view.fence) for view in await result(backend.read(spaces))]
    assert [20] == batches
    await result(backend.close())


async def test_sessions_and_together(kind: str, cluster: Cluster) -> None:
    """Each key has the run of the node that serves it; commands go together to the one that has the first's key."""
    keys = [key(str(number)) for number in range(9)]
    runs = [
        f"{node.ask('INFO', 'server')['run_id']} {node.ask('INFO', 'replication')['master_replid']}"
        for node in map(cluster.owner, keys)
    ]
    make = BlockingClusterConnections if kind == "sync" else ClusterConnections
    link = make(target(cluster.url, 2.5))
    assert runs == await result(link.sessions(keys))
    assert 1 < len(set(runs))
    assert [1, 1, 1] == await result(link.together([("SADD", "t", "x"), ("SREM", "t", "x"), ("WAIT", "1", "2000")]))
    await result(link.close())


async def test_map_from_another(cluster: Cluster) -> None:
    """Seeds that are dead, or silent, do not matter while one node answers; without any, each is named."""
    good = cluster.nodes[2].address
    link = BlockingClusterConnections(target(f"redis+cluster://127.0.0.1:1,{good}", 2.5))
    assert set() == set(link.call("SMEMBERS", "nothing"))
    link.close()
    with (
        connect("redis+cluster://127.0.0.1:1,127.0.0.1:2", timeout=0.3) as backend,
        pytest.raises(BackendUnavailable) as caught,
    ):
        backend.spaces()
    assert "did not answer within 0.3 s: no node can be asked: 127.0.0.1:1: " in str(caught.value)
    assert "; 127.0.0.1:2: " in str(caught.value)


def test_doctor(cluster: Cluster) -> None:
    """The doctor finds spaces on every node that the index lacks, and puts them in again."""
    spaces = [host_space(host) for node in cluster.nodes for host in hosts_on(cluster, node, 2, "lacking")]
    with connect(cluster.url) as backend:
        for space in spaces:
            backend.open(space, "i", token="a", ttl=60_000_000)
        cluster.owner(wire.SPACES).ask("SREM", wire.SPACES, *spaces)
        assert [] == [space for space in spaces if space in backend.spaces()]
        findings = list(backend.diagnose(repair=True))
        assert sorted(spaces) == [space for space in backend.spaces() if space in spaces]
    assert [True] == [found.mended for found in findings if found.text.startswith(f"{len(spaces)} missing")]
    assert [] == [found for found in findings if found.level == "error"]


def test_nameless_nodes(cluster: Cluster) -> None:
    """Nodes that give no address of their own are found by the one that they were asked at."""
    for node in cluster.nodes:
        node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "unknown-endpoint")
    try:
        with connect(cluster.url) as backend:
            link: Any = backend._link
            assert [] == backend.spaces("nobody")
            link._owners = [link._primaries[0]] * len(link._owners)
            backend.read(
                [host_space(str(number)) for number in range(9)]
            )  # some are told another node, without its host
            assert set(link._primaries) == set(link._owners)
            assert {"127.0.0.1"} == {address.host for address in link._nodes}
    finally:
        for node in cluster.nodes:
            node.ask("CONFIG", "SET", "cluster-preferred-endpoint-type", "ip")


def test_wrong_scheme(cluster: Cluster, valkey: servers.ServerStore) -> None:
    """A cluster asked as one server, and one server asked as a cluster, say so at once."""
    elsewhere = next(str(number) for number in range(99) if cluster.owner(key(str(number))) is not cluster.nodes[0])
    with connect(cluster.nodes[0].url) as backend, pytest.raises(BackendError, match=r"a cluster: .*redis\+cluster://"):
        backend.reclaim(host_space(elsewhere))
    with (
        connect(valkey.url.replace("redis:", "redis+cluster:")) as backend,
        pytest.raises(BackendError, match="cluster support disabled"),
    ):
        backend.spaces()


async def test_callers_cluster_client(cluster: Cluster) -> None:
    """A cluster's client of the caller's cannot keep commands together, and says what can."""
    from redis.asyncio.cluster import RedisCluster

    client = RedisCluster("127.0.0.1", cluster.nodes[0].port)
    with pytest.raises(ConfigurationError, match=r"redis\+cluster://"):
        await CallersClient(client).together([("PING",)])
    await client.aclose()


async def test_wakes(kit: Kit, cluster: Cluster) -> None:
    """Who waits is woken, at whichever node it listens."""
    ports = allocator(kit, cluster, host=f"{kit.kind}-waits")
    first = await result(ports.acquire("held", port=1))
    waiting = begin(ports.acquire, "held", port=1, wait=20)
    await eventually(True, lambda: any(node.ask("PUBSUB", "CHANNELS", "clusterports:*") for node in cluster.nodes))
    await result(first.release())
    assert 1 == int(await finished(waiting))


class ShortClock(RealClock):
    ttl = 0.5


class TestSuite(BackendConformance):
    """The suite that all backends pass, in real time."""

    @pytest.fixture
    def clock(self) -> Clock:
        return ShortClock()

    @pytest.fixture
    def backend(self, _cluster: Cluster) -> Iterator[Backend]:
        with connect(_cluster.url) as backend:
            yield backend

    @pytest.fixture
    def backend2(self, _cluster: Cluster) -> Iterator[Backend]:
        with connect(_cluster.url) as backend:
            yield backend
