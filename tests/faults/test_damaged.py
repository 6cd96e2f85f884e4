"""Spaces whose data somebody altered: each is told of itself, and nothing else suffers."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from clusterports.abc import Ask, Granted, Holder, Opened, Request, SpaceView
from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema
from clusterports_redis import RedisBackend
from clusterports_redis._wire import SPACES, all_keys, keys

if TYPE_CHECKING:
    from collections.abc import Callable

    import servers

SPACE = "host:b"
NAMES = ("host:a", SPACE, "host:c")
TTL = 30_000_000
LEASE = "123 4 4 5 ab"


def hset(field: str, value: str | bytes) -> Callable[[Any], None]:
    def damage(client: Any) -> None:
        client.hset(keys(SPACE)[0], field, value)

    return damage


def missing(part: int) -> Callable[[Any], None]:
    return lambda client: client.delete(keys(SPACE)[part])


def other_type(client: Any) -> None:
    client.set(keys(SPACE)[0], "text")


DAMAGES = {
    "no state": (missing(0), "state is missing"),
    "half a state": (hset("clock", "soon"), "state is incomplete"),
    "another type": (other_type, "WRONGTYPE"),
    "another version": (hset("schema", "2"), "has schema 2"),
    "port without a number": (hset("tcp/x", "h 1 2 3 4 {}"), "'tcp/x'"),
    "port of no state": (hset("udp/00010", 'x 1 2 3 4 {"i":"","l":{},"o":"","r":""}'), "'udp/00010'"),
    "port of too few words": (hset("both/00010", "h 1"), "'both/00010'"),
    "port without a note": (hset("tcp/00010", "h 1 2 3 4 {}"), "'tcp/00010'"),
    "port with another note": (hset("tcp/00010", "h 1 2 3 4 []"), "'tcp/00010'"),
    "not text": (hset("tcp/00010", b'h 1 2 3 4 {"i":"\xff","l":{},"o":"","r":""}'), "'tcp/00010'"),
    "lease without a number": (hset("lease/\x1b[31m", f'{LEASE} "one"'), r"'lease/\x1b[31m'"),
    "lease of too few words": (hset("lease/1", "1 2"), "'lease/1'"),
    "lease without a name": (hset("lease/1", f"{LEASE} one"), "'lease/1'"),
}


def opened(backend: Any, space: str) -> Holder:
    reply = backend.open(space, "one", token="a", ttl=TTL)
    assert isinstance(reply, Opened)
    return Holder("one", reply.lease, reply.incarnation)


@pytest.fixture
def backend(redis_store: servers.RedisStore) -> Any:
    backend = redis_store.connect()
    for space in NAMES:
        opened(backend, space)
    return backend


@pytest.mark.parametrize(("damage", "said"), DAMAGES.values(), ids=DAMAGES)
def test_read(redis_store: servers.RedisStore, backend: Any, damage: Callable[[Any], None], said: str) -> None:
    """An error stands for the damaged space; the others are shown, in the order asked for."""
    damage(redis_store.client)
    views = backend.read(["host:c", SPACE, "host:none", "host:a", SPACE])
    assert ["host:c", None, "host:none", "host:a", None] == [getattr(view, "space", None) for view in views]
    assert [IncompatibleSchema if "schema" in said else BackendError] * 2 == [type(views[1]), type(views[4])]
    assert said in str(views[1])
    assert str(views[1]).isprintable()


async def test_read_async(redis_store: servers.RedisStore, backend: Any) -> None:
    """The same for tasks."""
    redis_store.client.delete(keys(SPACE)[0])
    async with redis_store.connect_async() as tasks:
        shown, damaged, other = await tasks.read(NAMES)
    assert isinstance(shown, SpaceView)
    assert isinstance(other, SpaceView)
    assert "state is missing" in str(damaged)


def test_damaged_on_a_later_page(redis_store: servers.RedisStore, backend: Any) -> None:
    """A space that is read in several parts is damaged, or not, as a whole."""
    holder = opened(backend, SPACE)
    for number in range(3):
        reply = backend.acquire(SPACE, holder, Request(number + 1, 1), [Ask("r", ((1, 9999),), 1000)])
        assert isinstance(reply, Granted)
    hset("tcp/09999", "nonsense")(redis_store.client)
    first, damaged, last = backend.read(NAMES)
    assert isinstance(damaged, BackendError)
    assert ("host:a", "host:c") == (first.space, last.space)


def test_what_is_not_of_one_space(server: servers.ServerStore) -> None:
    """A user who may not look, and a server that is not there, are errors of the whole."""
    opened(server.connect(), SPACE)
    server.client.acl_setuser(
        "porter", reset=True, enabled=True, passwords=["+pw"], keys=["other:*"], commands=["+@all"]
    )
    forbidden = RedisBackend.connect(server.url.replace("redis://", "redis://porter:pw@"))
    with forbidden, pytest.raises(BackendError, match="forbids this user what is needed"):
        forbidden.read(NAMES)
    server.client.acl_deluser("porter")
    with RedisBackend.connect("redis://127.0.0.1:1/0", timeout=0.1) as away, pytest.raises(BackendUnavailable):
        away.read(NAMES)


# -------------------------------------------------------------------- drop


def drop(store: servers.RedisStore, kind: str, space: str) -> bool:
    if kind == "sync":
        with store.connect() as backend:
            return backend.drop(space)

    async def call() -> bool:
        async with store.connect_async() as backend:
            return await backend.drop(space)

    return asyncio.run(call())


@pytest.mark.parametrize("kind", ["sync", "async"])
def test_drop_leaves_no_key(redis_store: servers.RedisStore, kind: str) -> None:
    """Nothing of a dropped space is left, nor of a space that had lost all but its mask."""
    with redis_store.connect() as backend:
        holder = opened(backend, SPACE)
        backend.acquire(SPACE, holder, Request(1, 1), [Ask("r", ((1, 99),), 8, "both", align=8, rotate=1)])
        backend.close_lease(SPACE, holder)
    redis_store.client.set(all_keys("host:a")[6], "a mask")
    before = set(redis_store.client.keys("clusterports:1:{*"))
    assert {name.encode() for name in all_keys(SPACE)} & before
    assert [True, True] == [drop(redis_store, kind, space) for space in (SPACE, "host:a")]
    assert [] == redis_store.client.keys("clusterports:1:*")


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize("damage", ["no state", "another version", "no due", "no lists"])
def test_damaged_is_not_dropped(redis_store: servers.RedisStore, backend: Any, kind: str, damage: str) -> None:
    """A damaged space is not removed, whatever seems to be in it, and stays in the index."""
    client = redis_store.client
    if damage in ("no due", "no lists"):
        client.delete(*keys(SPACE)[1 : 2 if damage == "no due" else 3])
    else:
        DAMAGES[damage][0](client)
    before = {key: client.dump(key) for key in sorted(client.keys("clusterports:1:{*"))}
    with pytest.raises(BackendError, match=r"damaged|schema"):
        drop(redis_store, kind, SPACE)
    assert before == {key: client.dump(key) for key in sorted(client.keys("clusterports:1:{*"))}
    assert [*NAMES] == backend.spaces()


@pytest.mark.parametrize("when", ["before the script", "after the script"])
def test_opened_while_dropped(redis_store: servers.RedisStore, monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Whoever opens the space while it is dropped has a lease there, and it is in the index."""
    other, backend = redis_store.connect(), redis_store.connect()
    other.close_lease(SPACE, opened(other, SPACE))
    run = backend._run  # type: ignore[attr-defined]
    dropped = []

    def running(operation: str, *rest: Any) -> Any:
        if when == "before the script":
            opened(other, SPACE)
        dropped.append(run(operation, *rest))
        if when == "after the script":
            opened(other, SPACE)
        return dropped[0]

    monkeypatch.setattr(backend, "_run", running)
    assert (when == "after the script") == backend.drop(SPACE)
    (view,) = backend.read([SPACE])
    assert isinstance(view, SpaceView)
    assert ([SPACE], ["one"]) == (backend.spaces(), [lease.instance for lease in view.leases])


def test_index_is_made_good(redis_store: servers.RedisStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """When nobody can tell what became of it, the space stays in the index."""
    backend = redis_store.connect()
    opened(backend, SPACE)

    def lost(*_: Any) -> Any:
        assert not redis_store.client.sismember(SPACES, SPACE)
        raise BackendUnavailable("no answer", unknown=True)

    monkeypatch.setattr(backend, "_run", lost)
    with pytest.raises(BackendUnavailable):
        backend.drop(SPACE)
    assert [SPACE] == backend.spaces()
