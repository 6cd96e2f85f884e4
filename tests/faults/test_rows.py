"""What may go wrong on real servers beside the rest: clocks, lost keys, refusals, twins, names, versions, deaths."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

import pytest
import redis
import servers
from allocator.kit import Kit, Told, eventually, result
from faults.control import Server, until
from faults.process import Process
from redis.crc import key_slot

from clusterports import (
    AsyncPortAllocator,
    BackendRecovering,
    ConfigurationError,
    IncompatibleSchema,
    PortAllocator,
    PortRange,
    Settings,
)
from clusterports._lease import MARGIN, monotonic
from clusterports._names import host_space
from clusterports._space import STEP
from clusterports.abc import Ask, Granted, Holder, Opened, Renewal, Renewed, Request
from clusterports.errors import BackendError
from clusterports_redis import AsyncRedisBackend, RedisBackend
from clusterports_redis._failures import Fate, Unreached, code, fate
from clusterports_redis._scripts import Scripts
from clusterports_redis._wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clusterports.abc import Port

SECOND = 1_000_000
DAY = 86_400.0
RANGE = PortRange("r", 100, 999, quarantine=0.5)
SPACE = host_space("h")
STATE, _, PORTS, TCP, _ = keys(SPACE)

TTL = 300.0
"""Seconds: no heartbeat comes by itself while a test runs, and a slow machine misses none."""


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "clusterports")


@pytest.fixture
def managers(server: servers.ServerStore) -> Iterator[Callable[..., PortAllocator]]:
    """Makes allocators of host h on this server, and ends them."""
    with ExitStack() as stack:

        def make(url: str | None = server.url, **arguments: Any) -> PortAllocator:
            settings: dict[str, Any] = {"host": "h", "ranges": [RANGE], "ttl": TTL, "probe": False} | arguments
            made = PortAllocator(None if "backend" in settings else url, **settings)
            stack.callback(made.detach)
            return made

        yield make


def beat(ports: PortAllocator, *hosts: str) -> None:
    """Wait until the leases on these hosts were renewed by a heartbeat that was sent from now on."""
    leases = [ports._leases[host_space(host)] for host in hosts or ("h",)]
    since = monotonic() + ports.ttl * (1 - MARGIN)
    ports._wake.set()
    until(lambda: all(lease.until >= since for lease in leases), what="a heartbeat")


def opened(backend: RedisBackend, instance: str, ttl: float) -> Holder:
    reply = backend.open(SPACE, instance, token="ab", ttl=round(ttl * SECOND))
    assert isinstance(reply, Opened)
    return Holder(instance, reply.lease, reply.incarnation)


def taken(backend: RedisBackend, holder: Holder, number: int, first: int, count: int = 1) -> tuple[Port, ...]:
    ask = Ask("r", ((first, 65535),), count, quarantine=SECOND // 2)
    reply = backend.acquire(SPACE, holder, Request(number, number), [ask])
    assert isinstance(reply, Granted)
    return reply.ports


# -------------------------------------------------------------------- clocks


@pytest.mark.parametrize("days", [1, -1])
def test_clock_of_a_client(managers: Callable[..., PortAllocator], days: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A holder whose wall clock steps by a day is told nothing; it renews, acquires and releases as ever."""
    told: list[object] = []
    ports = managers(on_lost=told.append, on_jeopardy=told.append)
    held = ports.acquire("r")
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + days * DAY)
    assert (True, True) == (held.valid, 0 < held.expires_in <= TTL * (1 - MARGIN))
    beat(ports)
    assert (True, True) == (held.valid, 0 < held.expires_in <= TTL * (1 - MARGIN))
    later = ports.acquire("r")
    assert (101, True, True) == (later.number, later.valid, later.fence > held.fence)
    held.release()
    assert (100, []) == (ports.acquire("r").number, told)


STEPPED = "clusterports:test:stepped"
"""By how many microseconds the server's clock was set."""

STEPPING = Scripts(
    clock="local time = redis.call('TIME')\n"
    f"local now = time[1] * 1000000 + time[2] + tonumber(redis.call('GET', '{STEPPED}') or 0)"
)


@pytest.mark.parametrize("days", [1, -1])
def test_clock_of_the_server(server: servers.ServerStore, managers: Callable[..., PortAllocator], days: int) -> None:
    """A day's step of its clock ends no live lease; fences grow, and a dead holder's port is free in its time."""
    told: list[object] = []
    ttl = 0.6
    with RedisBackend.connect(server.url, scripts=STEPPING) as backend:
        ports = managers(backend=backend, on_lost=told.append, on_jeopardy=told.append)
        held = ports.acquire("r")
        began = time.monotonic()
        (port,) = taken(backend, opened(backend, "dead", ttl), 1, 101)
        server.client.set(STEPPED, round(days * DAY * SECOND))
        beat(ports)
        later = ports.acquire("r", port=102)
        assert later.fence > max(port.fence, held.fence)

        def clock() -> int:
            return int(server.client.hget(STATE, "clock") or 0)

        bound = clock() + (ttl + RANGE.quarantine) * SECOND

        def freed() -> bool:
            beat(ports)
            free = 101 not in [seen.number for seen in servers.view(backend, SPACE).ports]
            assert free or clock() < bound
            return free

        until(freed, what="the dead holder's port is free")
        assert time.monotonic() - began >= ttl - 0.001
        again = ports.acquire("r")
        assert (101, True) == (again.number, again.fence > later.fence)
        assert ([True] * 3, []) == ([one.valid for one in (held, later, again)], told)


# -------------------------------------------------------------------- lost keys


@pytest.mark.parametrize("how", ["FLUSHALL", "SWAPDB 0 1"])
def test_lost_without_a_restart(server: servers.ServerStore, managers: Callable[..., PortAllocator], how: str) -> None:
    """What a server that runs on has lost, or is in another database by now, is claimed with the next heartbeat."""
    ports = managers()
    held: Any = ports.acquire("r", count=3)
    server.client.execute_command(*how.split())  # type: ignore[no-untyped-call]
    beat(ports)

    def known() -> list[tuple[int, int]]:
        with server.connect() as backend:
            return [(port.number, port.fence) for port in servers.view(backend, SPACE).ports]

    until(lambda: known() == [(port.number, port.fence) for port in held], what="all held again")
    assert [True] * 3 == [port.valid for port in held]
    with pytest.raises(BackendRecovering):
        ports.acquire("r")


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_evicted(own_server: tuple[str, int], policy: str) -> None:
    """While keys of a space are evicted nobody is given what another holds; afterwards the holders have all again."""
    url, _ = own_server
    fillers: set[str] = set()
    arguments: dict[str, Any] = {"host": "h", "ranges": [RANGE], "ttl": TTL, "probe": False}
    lost: list[object] = []

    def left() -> int:
        """How many keys of the space are there, after more has come in than there is room for."""
        pipe = client.pipeline(transaction=False)
        for _ in range(50):
            name = f"filler:{len(fillers)}"
            fillers.add(name)
            pipe.set(name, b"x" * 20_000)
        pipe.execute()
        return int(client.exists(*keys(SPACE)))

    with (
        redis.Redis.from_url(url) as client,
        PortAllocator(url, on_lost=lost.append, **arguments) as holder,
        PortAllocator(url, on_lost=lost.append, **arguments) as other,
    ):
        ports: Any = holder.acquire("r", count=20)
        other.acquire("r", port=999).release()  # it knows the host, and has nothing to claim
        relied = {port.number: port.fence for port in ports}
        memory: Any = client.info("memory")
        client.config_set("maxmemory-policy", policy)
        client.config_set("maxmemory", memory["used_memory"] + SECOND)
        assert ("error", True) == eviction(url, policy)
        until(lambda: left() < 5, what="a key that is evicted")
        for _ in range(5):
            with suppress(BackendError), other.acquire("r") as port:
                assert port.number not in relied
        until(lambda: not left(), what="all keys evicted")
        client.config_set("maxmemory", 0)
        client.delete(*fillers)
        with pytest.raises(BackendRecovering):
            other.acquire("r")
        beat(holder)

        def held() -> dict[int, int]:
            with RedisBackend.connect(url) as backend:
                return {port.number: port.fence for port in servers.view(backend, SPACE).ports if port.number in relied}

        until(lambda: held() == relied, what="all held again")
        assert ([], [True] * 20) == (lost, [port.valid for port in ports])
        statistics: Any = client.info("stats")
        assert statistics["evicted_keys"] > 0


def eviction(url: str, policy: str) -> tuple[str, bool]:
    """What doctor says of it, and whether it names the policy."""
    with RedisBackend.connect(url) as backend:
        (finding,) = [finding for finding in backend.diagnose() if finding.check == "eviction"]
    return finding.level, policy in finding.text


# -------------------------------------------------------------------- refusals


class Refusing:
    """A server of its own that refuses, until that is lifted."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self.control = stack.enter_context(server.client())
        self._stack = stack

    def ask(self, *command: object) -> Any:
        return self.control.execute_command(*command)

    def in_background(self, *command: object) -> None:
        """It keeps the server busy: return when that shows."""

        def work() -> None:
            with self.server.client(socket_timeout=None) as client, suppress(redis.RedisError):
                client.execute_command(*command)

        def refused() -> bool:
            try:
                self.ask("DBSIZE")
            except redis.RedisError:
                return True
            return False

        thread = threading.Thread(target=work)
        thread.start()
        self._stack.callback(thread.join)
        until(refused, what="a server that refuses")


def replica_of_nobody(server: Refusing, stale: str) -> None:
    server.ask("CONFIG", "SET", "replica-serve-stale-data", stale)
    server.ask("REPLICAOF", "127.0.0.1", 1)


def busy(server: Refusing) -> None:
    server.ask("CONFIG", "SET", "busy-reply-threshold", 1)
    server.in_background("EVAL", "while true do end", 0)


def loading(server: Refusing) -> None:
    for number in range(500):
        server.ask("SET", f"filler:{number}", os.urandom(1000))
    server.in_background("DEBUG", "RELOAD")


CLUSTERED = ("--cluster-enabled", "yes")
SLOW_TO_LOAD = ("--enable-debug-command", "yes", "--key-load-delay", "20000")
OFTEN_ASKED = ("--loading-process-events-interval-bytes", "1024")

REFUSALS: dict[str, tuple[tuple[str, ...], Callable[[Refusing], object], Callable[[Refusing], object]]] = {
    "READONLY": ((), lambda s: replica_of_nobody(s, "yes"), lambda s: s.ask("REPLICAOF", "NO", "ONE")),
    "MASTERDOWN": ((), lambda s: replica_of_nobody(s, "no"), lambda s: s.ask("REPLICAOF", "NO", "ONE")),
    "NOREPLICAS": (
        (),
        lambda s: s.ask("CONFIG", "SET", "min-replicas-to-write", 1),
        lambda s: s.ask("CONFIG", "SET", "min-replicas-to-write", 0),
    ),
    "BUSY": ((), busy, lambda s: s.ask("SCRIPT", "KILL")),
    "LOADING": ((*SLOW_TO_LOAD, *OFTEN_ASKED), loading, lambda s: s.ask("CONFIG", "SET", "key-load-delay", 0)),
    "CLUSTERDOWN": (CLUSTERED, lambda s: None, lambda s: s.ask("CLUSTER", "ADDSLOTSRANGE", 0, 16383)),
    "max number of clients": (
        (),
        lambda s: s.ask("CONFIG", "SET", "maxclients", 1),
        lambda s: s.ask("CONFIG", "SET", "maxclients", 100),
    ),
}
"""Options of the server, what makes it refuse, and what ends that."""


@pytest.mark.parametrize("why", REFUSALS)
def test_refused_for_a_while(binary: str, tmp_path: Path, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server refuses only now is asked for again until it is done: once, and no caller is told an error."""
    options, refuse, lift = REFUSALS[why]
    said: list[str] = []

    def heard(error: BaseException) -> Fate:
        text = str(error)
        said.append(text if "max number" in text else code(error.cause if isinstance(error, Unreached) else error))
        return fate(error)

    monkeypatch.setattr("clusterports_redis._sync.fate", heard)
    given: list[Any] = []
    with (
        Server(binary, tmp_path, *options) as server,
        PortAllocator(settings=Settings(url=server.url, timeout=30.0), host="h", ranges=[RANGE], probe=False) as ports,
        ExitStack() as stack,
    ):
        refusing = Refusing(server, stack)
        refuse(refusing)

        def call() -> None:
            ports.status()  # a replica refuses to read for another reason than to write
            given.append(ports.acquire("r"))

        caller = threading.Thread(target=call)
        caller.start()
        try:
            until(lambda: any(why in text for text in said), what=why)
        finally:
            lift(refusing)
            caller.join()
        assert [(100, True)] == [(port.number, port.valid) for port in given]
        assert [100] == [port.number for host in ports.status().hosts for port in host.ports]


# -------------------------------------------------------------------- twins


def test_cloned_machine(server: servers.ServerStore, tmp_path: Path) -> None:
    """Of two processes that are alike in everything, as after a machine was cloned, the newer one has the ports; the
    older is told, and frees nothing.
    """
    alike: dict[str, Any] = {"first": 1, "last": 9, "ttl": 6.0, "quarantine": 0.5}

    def twin() -> Process:
        return Process(tmp_path, server.url, "twin", **alike)

    with twin() as older, twin() as newer:
        assert [1, 2] == older.do("acquire", count=2)
        assert [3] == newer.do("acquire")
        assert ["lost"] == older.do("told", wait="lost")
        assert [False, False] == older.do("valid")
        assert [False, False] == older.do("release")
        assert ([True], []) == (newer.do("valid"), newer.do("told"))
        with server.connect() as backend:
            seen = servers.view(backend, SPACE)
        assert [(n, "held") for n in (1, 2, 3)] == [(port.number, port.state) for port in seen.ports]
        assert 1 == len(seen.leases)


# -------------------------------------------------------------------- names

HOSTILE = ["}x{", "*", "?[a-z]", "a b", "h}:state", "{h}", "日本", "~", "%7D", "x" * 255]


@pytest.mark.parametrize("host", HOSTILE)
def test_hostile_hosts(server: servers.ServerStore, managers: Callable[..., PortAllocator], host: str) -> None:
    """A host's name, and an owner of ten kilobytes, get their own space and nobody else's; every key keeps its slot."""
    owner = "\x1b[31m}{*\n\0" + "x" * 10_000
    ports = managers()
    ports.acquire("r")
    before = {key: server.client.dump(key) for key in keys(SPACE)}
    port = ports.acquire("r", host=host, owner=owner)
    (shown,) = ports.status(host=host).hosts
    assert (host, [(100, owner)]) == (shown.host, [(seen.number, seen.owner) for seen in shown.ports])
    found: Any = server.client.keys("clusterports:*")
    spaces = {key.decode().partition("{")[2].rpartition("}")[0] for key in found} - {""}
    assert {SPACE, host_space(host)} == spaces
    assert 2 == len({key_slot(key) for key in found if b"{" in key})
    assert [] == [space for space in spaces if set(space) & set("{}*?[] \n")]
    port.release()
    assert before == {key: server.client.dump(key) for key in keys(SPACE)}


@pytest.mark.parametrize("host", ["", "a\n", "a\0b", "\x1b[31m", "x" * 256])
def test_impossible_hosts(server: servers.ServerStore, managers: Callable[..., PortAllocator], host: str) -> None:
    """What cannot be shown is no host's name: it is refused by its key, and nothing is written."""
    ports = managers()
    with pytest.raises(ConfigurationError, match=r"^host: ") as no:
        ports.acquire("r", host=host)
    assert str(no.value).isprintable()
    assert [] == server.client.keys("clusterports:1:{*")


# -------------------------------------------------------------------- versions


def test_newer_schema_on_one_host(server: servers.ServerStore, managers: Callable[..., PortAllocator]) -> None:
    """Data of a later version is refused for what it is; heartbeats of other hosts go on, of this one later."""
    ports = managers()
    here, there = ports.acquire("r"), ports.acquire("r", host="there")
    server.client.hset(STATE, "schema", "2")
    before, deadline = server.client.hgetall(STATE), here.expires_in
    beat(ports, "there")
    with pytest.raises(IncompatibleSchema, match="has schema 2; this clusterports knows schema 1 only"):
        ports.acquire("r")
    assert (101, True) == (ports.acquire("r", host="there").number, there.valid)
    assert before == server.client.hgetall(STATE)
    assert here.expires_in < deadline
    server.client.hset(STATE, "schema", "1")
    beat(ports, "h", "there")
    assert ([True, True], 101) == ([here.valid, there.valid], ports.acquire("r").number)


@pytest.mark.parametrize(
    "arguments",
    [("acquire", "--range", "backup"), ("status",), ("run", "--range", "backup", "--", "echo", "started")],
    ids=lambda arguments: arguments[0],
)
def test_newer_schema_on_the_command_line(
    valkey: servers.ServerStore, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    """The command line says so too, by code 5 and without a traceback; nothing is started."""
    valkey.client.hset(STATE, "schema", "2")
    valkey.client.sadd("clusterports:1:spaces", SPACE)
    environment = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
    environment |= {"CLUSTERPORTS_URL": valkey.url, "CLUSTERPORTS_HOST": "h", "HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "clusterports.cli", *arguments],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env=environment,
        timeout=60,
        check=False,
    )
    assert "has schema 2; this clusterports knows schema 1 only" in done.stderr
    assert (5, False, False) == (done.returncode, "Traceback" in done.stderr, "started" in done.stdout)
    assert {b"schema": b"2"} == valkey.client.hgetall(STATE)


def test_fields_of_a_later_version(server: servers.ServerStore, managers: Callable[..., PortAllocator]) -> None:
    """What a later version of the same schema keeps beside what we know is no reason to refuse, and is left alone."""
    ports = managers()
    ports.acquire("r")
    client, beside = server.client, f"clusterports:1:{{{SPACE}}}:zones"
    later = {"zone": "1", "zone/x": '{"a": [1]}'}
    client.hset(STATE, mapping=later)  # type: ignore[arg-type]
    client.set(beside, "x")
    held: Any = ports.acquire("r", count=2)
    beat(ports)
    held[0].release()
    assert [100, 102] == [port.number for port in ports.allocations()]
    assert [100, 102] == [port.number for host in ports.status().hosts for port in host.ports]
    ports.close()
    kept: Any = [*client.hmget(STATE, list(later)), client.get(beside)]
    assert [*later.values(), "x"] == [text.decode() for text in kept]


# -------------------------------------------------------------------- many ports


def test_large_death(server: servers.ServerStore) -> None:
    """The holder of 20,000 ports dies: whatever call comes next does a small part of what is due, and nobody else's."""
    clock = servers.RedisClock(server.client)
    with server.connect(virtual=True) as backend:
        dead, alive = opened(backend, "dead", TTL), opened(backend, "alive", 2 * TTL)
        for number in range(1, 21):
            taken(backend, dead, number, 10_000, 1000)
        own = list(taken(backend, alive, 1, 1000, 10))
        requests = 1

        def acquire() -> None:
            nonlocal requests
            requests += 1
            own.extend(taken(backend, alive, requests, 1000))

        def renew() -> None:
            assert [Renewed] == [type(reply) for reply in backend.renew([Renewal(SPACE, alive, requests + 1)])]

        steps: list[Callable[[], object]] = [
            acquire,
            renew,
            lambda: backend.release(SPACE, alive, [own.pop()]),
            lambda: backend.reclaim(SPACE),
            lambda: backend.open(SPACE, "alive", token="ab", ttl=round(2 * TTL * SECOND)),
            lambda: backend.mark_foreign(SPACE, alive, [], range="r", duration=SECOND, most=9),
        ]

        def left() -> tuple[int, int]:
            """How many ports are held, and how many are not free."""
            held: Any = server.client.zlexcount(PORTS, f"[{dead.lease}/", f"({dead.lease}0")
            used: Any = server.client.bitcount(TCP)
            return held, used - len(own)

        assert (20_000, 20_000) == left()
        for _ in range(4):  # no silence that the dead one could be excused by
            clock.advance(TTL / 4)
            renew()
        clock.advance(1)  # and its quarantine is over
        before, calls, most = left(), 0, 0
        while before != (0, 0):
            steps[calls % len(steps)]()
            calls += 1
            now = left()
            most = max(most, before[0] - now[0] + before[1] - now[1])
            before = now
            assert calls < 1000
        assert STEP == most
        assert calls >= 2 * 20_000 // STEP


# -------------------------------------------------------------------- dead heartbeats


async def test_blocked_event_loop(server: servers.ServerStore) -> None:
    """While the event loop is blocked past the deadline, its ports are not valid and the callback is called in another
    thread; afterwards the lease goes on.
    """
    called = threading.Event()
    seen: list[Any] = []

    def on_jeopardy(held: list[Any]) -> None:
        seen.append((threading.current_thread(), [(port.number, port.valid) for port in held]))
        called.set()

    arguments: dict[str, Any] = {"host": "h", "ranges": [RANGE], "probe": False}
    async with AsyncPortAllocator(server.url, ttl=0.6, on_jeopardy=on_jeopardy, **arguments) as ports:
        held = await ports.acquire("r")
        assert called.wait(20)  # no heartbeat can be sent meanwhile
        assert not held.valid
        ((thread, what),) = seen
        assert ([(100, False)], False) == (what, thread is threading.main_thread())
        await eventually(True, lambda: held.valid)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_heartbeat_dies(server: servers.ServerStore, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A heartbeat that something has killed is missed at the deadline, told, and started again."""
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    jeopardy, lost = Told(), Told()
    kit = Kit(kind, server)
    backend: Any = RedisBackend.connect(server.url) if kind == "sync" else AsyncRedisBackend.connect(server.url)
    kills: list[BaseException] = [SystemExit() if kind == "sync" else asyncio.CancelledError()]
    renew = backend.renew

    def deadly(renewals: Any) -> Any:
        if kills:
            raise kills.pop()
        return renew(renewals)

    backend.renew = deadly
    ports = kit.allocator(
        backend=backend, ttl=0.6, host="h", ranges=[RANGE], probe=False, on_jeopardy=jeopardy, on_lost=lost
    )
    held = await result(ports.acquire("r"))
    assert [held] == (await jeopardy.wait())[0]
    assert "clusterports-callbacks" == jeopardy.threads[0]
    assert [] == kills
    await eventually(True, lambda: held.valid)
    assert [held] == await result(ports.allocations())
    assert [] == lost.what
    await kit.finish()
    await result(backend.close())
