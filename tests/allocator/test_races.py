"""What goes wrong only at a bad moment: late and repeated messages, two processes of one name, threads that meet,
interrupts, a part of the store that is damaged or forbidden.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import warnings
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

import pytest
import pytest_asyncio
import servers
from allocator.kit import BACKUP, HOST, PATIENCE, Fault, Kit, Told, eventually, result

from clusterports import (
    BackendError,
    BackendUnavailable,
    ClusterPortsError,
    LeaseLost,
    PortAllocator,
    PortInUse,
    PortRange,
    PortsExhausted,
    Settings,
)
from clusterports._names import host_space
from clusterports.abc import Ask, Closed, Full, Granted, Holder, Opened, Released, Renewal, Request, Stale
from clusterports_redis._sync_link import OwnConnections
from clusterports_redis._url import target
from clusterports_redis._wire import all_keys, keys

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from clusterports.abc import Backend

SHORT: Final = 0.6
"""Seconds of a TTL that is meant to run out."""

LONG: Final = 3600.0
"""Seconds of a TTL whose next heartbeat never comes by itself."""

RANGE: Final = PortRange("r", 1, 9)

NO_REPLY: Final = BackendUnavailable("no reply", unknown=True)


@pytest_asyncio.fixture
async def redis_kit(kind: str, redis_store: servers.RedisStore) -> AsyncIterator[Kit]:
    """Both kinds on each store that speaks Redis."""
    kit = Kit(kind, redis_store)
    yield kit
    await kit.finish()


def begin(kit: Kit, call: Callable[[], Any]) -> asyncio.Future[Any]:
    """Make a call that may take its time, beside the test."""
    return asyncio.ensure_future(asyncio.to_thread(call) if kit.kind == "sync" else call())


async def happens(event: threading.Event) -> None:
    assert await asyncio.to_thread(event.wait, PATIENCE)


def opened(backend: Backend, space: str, *, ttl: float = 30.0) -> Holder:
    reply = backend.open(space, "manager", token="a", ttl=round(ttl * 1e6))
    assert isinstance(reply, Opened)
    return Holder("manager", reply.lease, reply.incarnation)


# -------------------------------------------------------------------- opens


async def test_open_repeated_late(memory_kit: Kit) -> None:
    """An open that was carried out unheard, and is repeated at the end of its TTL, gives a whole TTL from then on."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky)
    flaky.faults["open"] = Fault(NO_REPLY, after=True, times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    memory_kit.store.clock.advance(28)
    held = await result(ports.acquire("backup"))
    with memory_kit.store.connect(virtual=True) as visitor:
        (view,) = visitor.read(["host:kvm-07"])
    assert [30_000_000] == [lease.expires_in for lease in view.leases]
    memory_kit.pass_time(held.expires_in)
    assert {10809: "held"} == memory_kit.ports()


# -------------------------------------------------------------------- two of one name


@pytest.mark.parametrize("asks", [HOST, "elsewhere"])
@pytest.mark.parametrize("before", ["expired", "superseded", "told of the expiry"])
async def test_older_process_goes_on(memory_kit: Kit, before: str, asks: str) -> None:
    """An older process that goes on after a pause takes no lease from the newer one, on any host."""
    lost, told = Told(), Told()
    older = memory_kit.allocator(instance="manager", ttl=1 if before == "told of the expiry" else 30, on_lost=told)
    await result(older.acquire("backup"))
    while before != "superseded" and memory_kit.leases():  # a heartbeat in between puts it off
        memory_kit.pass_time(31)
    if before == "told of the expiry":
        await told.wait()
    newer = memory_kit.allocator(instance="manager", on_lost=lost)
    kept = [await result(newer.acquire("backup", host=host)) for host in (HOST, "elsewhere")]
    for host in (asks, HOST, "elsewhere"):
        with pytest.raises(LeaseLost, match="newer process"):
            await result(older.acquire("backup", host=host))
    for port in kept:
        await result(port.release())
    await result(newer.acquire("backup", host="elsewhere"))
    assert ([], ["manager"]) == (lost.what, memory_kit.leases("elsewhere"))


async def test_older_process_opens_another_host(memory_kit: Kit) -> None:
    """What an older process opens before it hears of the newer one, the newer one takes over when it comes there."""
    older = memory_kit.allocator(instance="manager")
    await result(older.acquire("backup"))
    newer = memory_kit.allocator(instance="manager")
    await result(newer.allocations())
    held = await result(older.acquire("backup", host="elsewhere"))
    assert 10810 == int(await result(newer.acquire("backup", host="elsewhere")))
    with pytest.raises(LeaseLost, match="newer process"):
        await result(held.release())
    assert {10809: "held", 10810: "held"} == memory_kit.ports("elsewhere")


async def test_older_process_begins_anew(memory_kit: Kit) -> None:
    """A newer process that ended its predecessor's empty lease is not fenced by what that one opens afterwards."""
    older = memory_kit.allocator(instance="manager")
    await result((await result(older.acquire("backup"))).release())
    newer = memory_kit.allocator(instance="manager")
    assert ([], []) == (await result(newer.allocations()), memory_kit.leases())
    held = await result(older.acquire("backup"))
    assert 10810 == int(await result(newer.acquire("backup")))
    with pytest.raises(LeaseLost, match="newer process"):
        await result(held.release())


# -------------------------------------------------------------------- late and repeated acquires


def test_late_copy_after_full(store: servers.Store) -> None:
    """A request that was answered Full is stale when a copy of it arrives after a port has become free."""
    with store.connect() as backend:
        holder, ask = opened(backend, "host:a"), Ask("r", ((7, 7),))
        first = backend.acquire("host:a", holder, Request(1, 1), [ask])
        assert isinstance(first, Granted)
        assert isinstance(backend.acquire("host:a", holder, Request(2, 2), [ask]), Full)
        assert Released(1) == backend.release("host:a", holder, first.ports)
        late = [backend.acquire("host:a", holder, Request(2, 2), [ask])]
        backend.renew([Renewal("host:a", holder, 3)])
        late.append(backend.acquire("host:a", holder, Request(2, 2), [ask]))
        assert [(Stale, 2)] * 2 == [(type(reply), *reply) for reply in late]
        assert () == servers.view(backend, "host:a").ports


class Twice:
    """A store to which the next acquire is delivered twice, and only its second answer arrives."""

    def __init__(self, kind: str, inner: Any) -> None:
        self.answers: list[Any] = []
        self._inner = inner
        self._next = True
        self.acquire = self._blocking if kind == "sync" else self._awaiting

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def _blocking(self, *args: Any) -> Any:
        if self._next:
            self._next = False
            self.answers.append(self._inner.acquire(*args))
        self.answers.append(self._inner.acquire(*args))
        return self.answers[-1]

    async def _awaiting(self, *args: Any) -> Any:
        if self._next:
            self._next = False
            self.answers.append(await self._inner.acquire(*args))
        self.answers.append(await self._inner.acquire(*args))
        return self.answers[-1]


@pytest.mark.parametrize("port", [None, 10810])
async def test_repeated_after_a_lost_refusal(kit: Kit, port: int | None) -> None:
    """A refusal that was lost on the way, and whose repetition is stale, still reaches its caller as what it was."""
    flaky = kit.flaky()
    ports = kit.allocator(backend=flaky)
    held = await result(ports.acquire("backup", count=2))
    flaky.inner = twice = Twice(kit.kind, flaky.inner)
    with pytest.raises(PortsExhausted if port is None else PortInUse) as refused:
        await result(ports.acquire("backup", port=port))
    assert [Full, Stale, Full] == [type(answer) for answer in twice.answers]
    if port is not None:
        assert "held by instance" in str(refused.value)
    await result(held[1].release())
    assert 10810 == int(await result(ports.acquire("backup", port=port)))


def test_overlapping_spans(store: servers.Store) -> None:
    """Spans of one ask that overlap give no port twice, in their order, on every store."""
    with store.connect() as backend:
        holder = opened(backend, "host:a")
        reply = backend.acquire("host:a", holder, Request(1, 1), [Ask("r", ((21, 22), (20, 23)), count=4)])
        assert isinstance(reply, Granted)
        assert [21, 22, 20, 23] == [port.number for port in reply.ports]
        assert [20, 21, 22, 23] == [port.number for port in servers.view(backend, "host:a").ports]
        more = backend.acquire("host:a", holder, Request(2, 2), [Ask("r", ((30, 31), (30, 31)), count=3)])
        assert isinstance(more, Full)


# -------------------------------------------------------------------- requests without an answer


async def test_abandoned_wakes_the_heartbeat(memory_kit: Kit) -> None:
    """A request without an answer is undone at once, not a quarter of a TTL later; then the floor moves on."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=LONG)
    kept = await result(ports.acquire("backup"))
    flaky.faults["acquire"] = Fault(NO_REPLY, after=True, times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    await eventually({10809: "held"}, memory_kit.ports)
    await eventually((), lambda: kept._lease.renewal().abandoned)
    await result(ports.acquire("backup"))
    requests = [args[2] for name, args in flaky.calls if name == "acquire"]
    assert [(1, 1), (2, 2), (3, 3)] == [request[:2] for request in requests]


async def test_a_thousand_abandoned(memory_kit: Kit) -> None:
    """However many requests have no answer, all are undone soon, by heartbeats that name a hundred each."""
    flaky, gate = memory_kit.flaky(), threading.Event()
    ports = memory_kit.allocator(backend=flaky, ttl=LONG, ranges=[PortRange("r", 1, 2000)])
    await result(ports.acquire("r"))
    flaky.faults = {"acquire": Fault(NO_REPLY, after=True, times=1000), "renew": Fault(gate=gate)}
    for _ in range(1000):
        with pytest.raises(BackendUnavailable):
            await result(ports.acquire("r"))
    assert 1001 == len(memory_kit.ports())
    gate.set()
    await eventually({1: "held"}, memory_kit.ports)

    def told() -> list[tuple[int, ...]]:
        return [args[0][0].abandoned for name, args in flaky.calls if name == "renew"]

    await eventually(list(range(2, 1002)), lambda: [number for numbers in told() for number in numbers])
    assert 100 == max(len(numbers) for numbers in told())


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("after", [False, True], ids=["before", "carried out"])
async def test_interrupted_acquire(memory_kit: Kit, interrupt: type[BaseException], after: bool) -> None:
    """An acquire that is cut short from outside leaves nothing behind and keeps no later one from its floor."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=LONG)
    flaky.faults["acquire"] = Fault(interrupt(), after=after, times=1)
    with pytest.raises(interrupt):
        await result(ports.acquire("backup"))
    lease = ports._leases[host_space(HOST)]
    await eventually(((), {}), lambda: (lease.renewal().abandoned, memory_kit.ports()))
    held = await result(ports.acquire("backup"))
    assert ([held], 10809) == (await result(ports.allocations()), held.number)
    assert (2, 2) == flaky.calls[-1][1][2][:2]


@pytest.mark.parametrize("after", [False, True], ids=["before", "carried out"])
async def test_interrupted_release(memory_kit: Kit, after: bool) -> None:
    """A release that is cut short from outside is made good by the heartbeat; the port is not valid meanwhile."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ttl=1)
    held = await result(ports.acquire("backup"))
    flaky.faults["release"] = Fault(KeyboardInterrupt(), after=after, times=1)
    with pytest.raises(KeyboardInterrupt):
        await result(held.release())
    assert (False, []) == (held.valid, await result(ports.allocations()))
    await flaky.wait("release")
    assert {} == memory_kit.ports()


def test_undoing_is_quick(valkey: servers.ServerStore) -> None:
    """To undo a hundred of a thousand requests takes a heartbeat little longer than to look at them."""
    backend = valkey.connect()
    holder = opened(backend, "host:a", ttl=LONG)
    for number in range(1, 1001):
        backend.acquire("host:a", holder, Request(number, 1), [Ask("r", ((1, 2000),))])

    def microseconds(*abandoned: int) -> int:
        valkey.client.config_resetstat()
        backend.renew([Renewal("host:a", holder, 1, abandoned)])
        used: int = valkey.client.info("commandstats")["cmdstat_evalsha"]["usec"]
        return used

    microseconds()  # teaches the server the script
    plain = min(microseconds() for _ in range(5))
    undoing = min(microseconds(*range(first, first + 100)) for first in (1, 201, 401, 601, 801))
    assert 500 == len(servers.view(backend, "host:a").ports)
    assert undoing < 10 * plain
    backend.close()


# -------------------------------------------------------------------- forbidden and damaged


@pytest.fixture
def porter(server: servers.ServerStore) -> Iterator[str]:
    """A URL with the login of a user, whose rules are for the test to make."""
    yield str(server.url).replace("redis://", "redis://porter:s3cr3t@")
    client: Any = server.client
    client.execute_command("ACL", "DELUSER", "porter")


@pytest.mark.parametrize("kind", ["sync"])
@pytest.mark.parametrize("lacks", ["HSET", "ZADD", "SETBIT", "HDEL", "ZREM", "ZLEXCOUNT", "ZRANGE", "HGET"])
async def test_user_lacks_a_command(server_kit: Kit, porter: str, lacks: str) -> None:
    """A user who may not run one of our commands is told which before anything is written; with it, all works."""
    client = server_kit.store.client

    def set_user(*rules: str) -> None:
        client.execute_command("ACL", "SETUSER", "porter", "reset", "on", ">s3cr3t", "~*", "+@all", *rules)

    set_user(f"-{lacks}")
    ports = server_kit.allocator(porter)
    with pytest.raises(BackendError, match=f"forbids this user what is needed: .*{lacks}"):
        ports.acquire("backup")
    assert [] == client.keys("clusterports:1:*")
    set_user()
    held = ports.acquire("backup", count=2)
    held[0].release()
    assert {10810: "held"} == server_kit.ports()
    ports.close()
    assert ({}, []) == (server_kit.ports(), server_kit.leases())


def content(client: Any) -> dict[str, Any]:
    """All that the store keeps, but for the progress of its clock."""
    readers: dict[bytes, Callable[[bytes], Any]] = {
        b"hash": client.hgetall,
        b"zset": lambda key: client.zrange(key, 0, -1, withscores=True),
        b"set": client.smembers,
        b"list": lambda key: client.lrange(key, 0, -1),
        b"string": client.get,
        b"stream": client.xrange,
    }
    seen = {key.decode(): readers[client.type(key)](key) for key in client.keys("clusterports:1:*")}
    for fields in seen.values():
        if isinstance(fields, dict):
            for clock in (b"clock", b"seen", b"next", b"min_ttl"):
                fields.pop(clock, None)
    return seen


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_key_of_a_wrong_type(redis_store: servers.RedisStore, protocol: Any) -> None:
    """While a key has a wrong type nothing is changed by any step; as soon as it has the right one, all goes on."""
    client: Any = redis_store.client
    key = keys("host:a")[3 if protocol == "tcp" else 4]
    backend = redis_store.connect()
    holder, ask = opened(backend, "host:a", ttl=LONG), Ask("r", ((1, 99),), protocol=protocol)
    granted = [backend.acquire("host:a", holder, Request(number, 1), [ask]) for number in (1, 2, 3)]
    ports = [reply.ports[0] for reply in granted if isinstance(reply, Granted)]
    bits = client.get(key)
    client.delete(key)
    client.rpush(key, "something else")
    before = content(client)
    wrong = "WRONGTYPE|script"  # all that the emulator says is that the script failed
    for call in (
        lambda: backend.release("host:a", holder, ports[:1]),
        lambda: backend.release("host:a", holder, ports),
        lambda: backend.acquire("host:a", holder, Request(4, 1), [ask]),
        lambda: backend.acquire("host:a", holder, Request(5, 1), [ask._replace(count=2)]),
        lambda: backend.close_lease("host:a", holder),
    ):
        with pytest.raises(BackendError, match=wrong):
            call()
        assert before == content(client)
    (outcome,) = backend.renew([Renewal("host:a", holder, 1, (3,))])
    assert isinstance(outcome, BackendError)
    assert before == content(client)

    client.delete(key)
    client.set(key, bits)
    assert Released(1) == backend.release("host:a", holder, ports[:1])
    assert Released(1) == backend.release("host:a", holder, ports[:2])
    assert Closed(False) == backend.close_lease("host:a", holder)
    left = content(client)
    assert {"schema", "born", "ended", "fence"} == {field.decode() for field in left.pop(keys("host:a")[0])}
    assert [set(), set()] == [set(left.pop(bitmap).replace(b"\0", b"")) for bitmap in keys("host:a")[3:]]
    assert 3 + 3 == len(left.pop(all_keys("host:a")[-1]))  # events: each port was taken, and given back
    assert {"clusterports:1:spaces": {b"host:a"}} == left
    backend.close()


async def test_resume_beside_a_damaged_host(redis_kit: Kit) -> None:
    """A host whose space cannot be opened does not keep an instance from its ports on the others."""
    before = redis_kit.allocator(instance="manager")
    for host in ("a", "b", "c"):
        await result(before.acquire("backup", host=host))
    await result(before.detach())
    client, state = redis_kit.store.client, keys("host:b")[0]
    clock = client.hget(state, "clock")
    client.hdel(state, "clock")
    after = redis_kit.allocator(instance="manager")
    assert ["a", "c"] == [port.host for port in await result(after.allocations())]
    assert 10810 == int(await result(after.acquire("backup", host="c")))
    with pytest.raises(BackendError, match="damaged"):
        await result(after.acquire("backup", host="b"))
    client.hset(state, "clock", clock)
    assert ["a", "b", "c", "c"] == [port.host for port in await result(after.allocations())]


async def test_close_beside_a_damaged_host(redis_kit: Kit) -> None:
    """A close gives back what it can on all hosts, and then says what it could not."""
    ports = redis_kit.allocator(instance="manager")
    for host in ("a", "b", "c"):
        await result(ports.acquire("backup", host=host))
    redis_kit.store.client.delete(keys("host:a")[0])
    with pytest.raises(BackendError, match=r"is damaged.*state is missing"):
        await result(ports.close())
    assert [({}, [])] * 2 == [(redis_kit.ports(host), redis_kit.leases(host)) for host in ("b", "c")]


# -------------------------------------------------------------------- strict


class Halt(dict[Any, Any]):
    """Halts whoever is about to put something in."""

    def __init__(self) -> None:
        super().__init__()
        self.reached, self.go_on = threading.Event(), threading.Event()

    def __setitem__(self, key: Any, value: Any) -> None:
        self.reached.set()
        self.go_on.wait(PATIENCE)
        super().__setitem__(key, value)


async def test_strict_deadline_beside_an_acquire(memory_kit: Kit) -> None:
    """A lease that is just being given up is not used any more: not by an acquire beside it, not by the next."""
    flaky, lost = memory_kit.flaky(), Told()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, strict=True, on_lost=lost, ranges=[RANGE])
    ports._forfeited = halt = Halt()
    held = await result(ports.acquire("r"))
    flaky.faults["renew"] = Fault(BackendUnavailable("away"))
    await happens(halt.reached)
    flaky.back()
    with pytest.raises(LeaseLost):
        await result(ports.acquire("r"))
    halt.go_on.set()
    await lost.wait()
    again = await result(ports.acquire("r"))
    assert (True, False) == (again.valid, held.valid)
    assert again._lease.holder.incarnation > held._lease.holder.incarnation
    assert [again] == await result(ports.allocations())
    await eventually({1: "cooling", 2: "cooling", 3: "held"}, memory_kit.ports)


async def test_two_leases_given_up(memory_kit: Kit) -> None:
    """Of two leases of one host that were given up, whichever was noticed last, both are ended."""
    lost = Told()
    ports = memory_kit.allocator(ttl=1, strict=True, on_lost=lost, ranges=[RANGE])
    first = await result(ports.acquire("r"))
    del ports._leases[host_space(HOST)]  # as a deadline that passes between two looks does
    second = await result(ports.acquire("r"))
    assert first._lease.holder.incarnation < second._lease.holder.incarnation
    for port in (second, first):
        port._lease.until = 0.0
        ports._overdue(port._lease)
    await lost.wait(2)
    await eventually({1: "cooling", 2: "cooling"}, memory_kit.ports)
    await eventually({}, lambda: ports._forfeited)


async def test_strict_is_not_revived(memory_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A strict lease whose renewal was answered after its deadline is lost, even if nobody noticed it before."""
    flaky, lost, gate = memory_kit.flaky(), Told(), threading.Event()
    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, strict=True, on_lost=lost)
    flaky.faults["renew"] = Fault(gate=gate)
    with monkeypatch.context() as patch:
        patch.setattr(ports._watchdog, "start", lambda: None)
        held = await result(ports.acquire("backup"))
        until = held._lease.until
        await eventually(True, lambda: held.expires_in <= 0)
        gate.set()
        await flaky.wait("renew", 1)
    await flaky.wait("renew", 1)
    assert ([held], "deadline") == ((await lost.wait())[0].allocations, lost.what[0].reason)
    assert (until, False) == (held._lease.until, held.valid)


# -------------------------------------------------------------------- callbacks and heartbeat


async def test_callback_that_blocks(memory_kit: Kit) -> None:
    """While a callback of one host takes its time, the deadline of another is noticed; it is told afterwards."""
    flaky, told, go_on = memory_kit.flaky(), Told(), threading.Event()

    def on_jeopardy(ports: Any) -> None:
        told(ports[0].host)
        go_on.wait(PATIENCE)

    ports = memory_kit.allocator(backend=flaky, ttl=SHORT, on_jeopardy=on_jeopardy)
    flaky.faults["renew"] = Fault(BackendUnavailable("away"))
    await result(ports.acquire("backup", host="a"))
    assert ["a"] == await told.wait()
    other = await result(ports.acquire("backup", host="b"))
    assert "live" == other._lease.state
    await eventually("jeopardy", lambda: other._lease.state)
    assert ["a"] == told.what
    go_on.set()
    assert ["a", "b"] == await told.wait(2)


async def test_heartbeat_that_died(memory_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that was killed beats again at the deadline, not an interval later: the store may have it still."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    flaky, ttl = memory_kit.flaky(), 2.0
    ports = memory_kit.allocator(backend=flaky, ttl=ttl)
    killed: BaseException = SystemExit() if memory_kit.kind == "sync" else asyncio.CancelledError()
    flaky.faults["renew"] = Fault(killed, times=1)
    held = await result(ports.acquire("backup"))
    deadline = time.monotonic() + held.expires_in
    await flaky.wait("renew", 2)
    await eventually(True, lambda: held.valid)
    beats = [at for step, at in flaky.begun if step == "renew"]
    assert deadline <= beats[1] < deadline + ttl / 4
    assert [held] == await result(ports.allocations())


# -------------------------------------------------------------------- close


async def test_close_beside_an_open(memory_kit: Kit) -> None:
    """A close waits for a lease that is being opened, and ends it too."""
    flaky, gate = memory_kit.flaky(), threading.Event()
    ports = memory_kit.allocator(backend=flaky)
    flaky.faults["open"] = Fault(gate=gate)
    acquiring = begin(memory_kit, lambda: ports.acquire("backup"))
    await eventually(["open"], lambda: [step for step, _ in flaky.begun])
    closing = begin(memory_kit, ports.close)
    await asyncio.sleep(0.05)  # nothing tells that it waits; if it has not begun yet, the test is merely easier
    gate.set()
    await closing
    with suppress(ClusterPortsError):  # it may have come in time
        assert not (await acquiring).valid
    assert ({}, []) == (memory_kit.ports(), memory_kit.leases())
    with pytest.raises(ClusterPortsError, match="closed"):
        await result(ports.acquire("backup"))


@pytest.mark.parametrize("step", ["renew", "close_lease"])
async def test_close_cut_short(memory_kit: Kit, step: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A close that was cut short can be called again, and gives back what was not given back yet."""
    flaky, gate = memory_kit.flaky(), threading.Event()
    ports = memory_kit.allocator(backend=flaky, ranges=[PortRange("r", 1, 500)], ttl=1)
    held = await result(ports.acquire("r", count=200))
    await result(ports.acquire("r", host="elsewhere"))
    if memory_kit.kind == "sync":

        def interrupt(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(*((ports._heart, "join") if step == "renew" else (flaky.inner, step)), interrupt)
            with pytest.raises(KeyboardInterrupt):
                ports.close()
    else:
        flaky.faults[step] = Fault(gate=gate)
        await eventually(True, lambda: step == "close_lease" or flaky.begun[-1][0] == step)
        closing = asyncio.ensure_future(ports.close())
        await eventually((True, step), lambda: (ports._closed, flaky.begun[-1][0]))
        closing.cancel()
        await asyncio.wait([closing])
        assert closing.cancelled()
    flaky.back()
    await result(ports.close())
    assert [({}, [])] * 2 == [(memory_kit.ports(host), memory_kit.leases(host)) for host in (HOST, "elsewhere")]
    await result(held[0].release())
    await result(ports.close())


# -------------------------------------------------------------------- connections


async def test_server_that_became_a_replica(server_kit: Kit) -> None:
    """Connections to a server that may no longer be written to are given up, all: a new one may find the primary."""
    ports = server_kit.allocator(settings=Settings(url=server_kit.store.url, timeout=1.0))
    held = await result(ports.acquire("backup", count=2))
    link = ports._backend._link
    for connection in [await result(link._take()) for _ in range(50)]:  # more than can be tried in the time given
        await result(link._put_back(connection))
    idle = list(link._idle)
    client = server_kit.store.client
    client.execute_command("REPLICAOF", "127.0.0.1", "1")
    try:
        with pytest.raises(BackendUnavailable, match="read only replica"):
            await result(held[0].release())
        assert [] == list(link._idle)
    finally:
        client.execute_command("REPLICAOF", "NO", "ONE")
    await result(held[1].release())
    assert [False] == [connection in idle for connection in link._idle]


def test_idle_connections_dropped_by_two() -> None:
    """Two threads that give up the idle connections at once do not get in each other's way."""
    closed = []

    class Connection:
        def disconnect(self) -> None:
            closed.append(self)

    class Contested(deque[Any]):
        """Whoever takes the first finds that another thread has taken all."""

        def pop(self) -> Any:  # type: ignore[override]
            if threading.current_thread() is threading.main_thread():
                other = threading.Thread(target=link._drop_idle)
                other.start()
                other.join(PATIENCE)
            return super().pop()

    link = OwnConnections(target("redis://127.0.0.1:1/0", 1.0))
    connections = [Connection(), Connection()]
    link._idle = Contested(connections)
    link._drop_idle()
    assert (connections[::-1], 0) == (closed, len(link._idle))


# -------------------------------------------------------------------- fork


@pytest.mark.parametrize("fails", [False, True], ids=["block ended", "block failed"])
def test_block_in_a_forked_child(server: servers.ServerStore, fails: bool) -> None:
    """A child that leaves its parent's blocks does not release the parent's port, and sees its own exception."""
    reading, writing = os.pipe()
    pid, said = -1, "nothing"
    try:
        with PortAllocator(server.url, host=HOST, ranges=[BACKUP]) as ports, ports.acquire("backup") as held:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12: threads do not survive a fork
                pid = os.fork()
            if pid:
                os.close(writing)
                with os.fdopen(reading) as pipe:
                    assert ("ZeroDivisionError" if fails else "nothing") == pipe.read()
                os.waitpid(pid, 0)
                assert held.valid
                with server.connect() as visitor:
                    assert [10809] == [port.number for port in servers.view(visitor, "host:kvm-07").ports]
            elif fails:
                raise ZeroDivisionError
    except BaseException as error:
        if pid:
            raise
        said = type(error).__name__
    finally:
        if pid == 0:  # the child must end here, whatever happened
            os.write(writing, said.encode())
            os._exit(0)
