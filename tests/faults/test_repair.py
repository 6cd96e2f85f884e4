"""A space altered by hand: no port is given out twice, nobody loses one unheard; doctor sees it, and mends it."""

from __future__ import annotations

import re
from contextlib import suppress
from typing import TYPE_CHECKING, TypeAlias, cast

import pytest
from faults.scene import DUE, FENCE, PORTS, SPACE, STATE, TCP, TTL, UDP, Scene

from clusterports.abc import Ask, Held, Holder, Opened, Renewal, Renewed
from clusterports.errors import BackendError
from clusterports_redis._compare import compare
from clusterports_redis._wire import keys

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis
    import servers

# -------------------------------------------------------------------- damages

ONE, TWO = FENCE, FENCE + 1
FIELDS = {
    *("schema", "clock", "seen", "fence", "min_ttl", "next", "born", "last/r", "foreign/r", "owned", "revoked", "wait"),
    *(f"{kind}/{lease}" for kind in ("lease", "done") for lease in (ONE, TWO)),
    *('name/"one"', "tcp/00010", "both/00020", "udp/00030", "tcp/00040", "tcp/00050", "tcp/00060"),
}
"""One of each sort; of some the rest of the name varies."""

UNSEEN = {
    *("last/r lost", "last/r low", "revoked lost"),
    *("born lost", "born low", "seen low", "min_ttl low", "next low"),
}
"""What a space may have lost, or what may be so, without a contradiction."""

Damage: TypeAlias = "Callable[[redis.Redis], object]"


def field(client: redis.Redis, sort: str) -> str:
    """The name of that field."""
    names = [name.decode() for name in cast("list[bytes]", client.hkeys(STATE))]
    return next(name for name in names if name == sort or name.startswith(f"{sort}/"))


def lost(sort: str) -> Damage:
    return lambda client: client.hdel(STATE, field(client, sort))


def altered(sort: str, value: str) -> Damage:
    return lambda client: client.hset(STATE, field(client, sort), value)


def replaced(sort: str, old: str, new: str) -> Damage:
    """The record, with something in it changed."""

    def damage(client: redis.Redis) -> None:
        record = cast("bytes", client.hget(STATE, field(client, sort))).decode()
        assert re.search(old, record)
        client.hset(STATE, field(client, sort), re.sub(old, new, record, count=1))

    return damage


def other_type(key: str) -> Damage:
    return lambda client: client.delete(key) and client.rpush(key, "text")


def deleted(key: str) -> Damage:
    return lambda client: client.delete(key)


def bit(key: str, number: int, value: int) -> Damage:
    return lambda client: client.setbit(key, number, value)


def with_member(key: str, name: str, score: float) -> Damage:
    return lambda client: client.zadd(key, {name: score})


def without(key: str, name: str) -> Damage:
    return lambda client: client.zrem(key, name)


DAMAGES: dict[str, Damage] = {
    **{f"{key.rpartition(':')[2]} lost": deleted(key) for key in keys(SPACE)},
    **{f"{key.rpartition(':')[2]} of another type": other_type(key) for key in keys(SPACE)},
    **{f"{sort} lost": lost(sort) for sort in FIELDS},
    **{f"{sort} nonsense": altered(sort, "\x1b[31mx") for sort in FIELDS - {"schema"}},
    **{f"{sort} low": altered(sort, "7") for sort in FIELDS - {"schema"}},
    **{f"{sort} high": altered(sort, "9" * 17) for sort in ("clock", "fence", "min_ttl", "next", "born")},
    "held, now cooling": replaced("tcp/00010", "^h", "c"),
    "cooling, now held": replaced("tcp/00040", "^c", "h"),
    "marked, now held": replaced("tcp/00050", "^f", "h"),
    "held by another": replaced("tcp/00010", str(ONE), str(TWO)),
    "held by nobody": replaced("tcp/00010", str(ONE), "77"),
    "of another fence": replaced("tcp/00010", r"^(h \d+) \d+", rf"\1 {FENCE + 10**12}"),
    "note without an owner": replaced("tcp/00010", '"o":', '"x":'),
    "a port that is none": lambda client: client.hset(STATE, "tcp/99999", "h 1 2 3 4 {}"),
    "lease until the end of time": replaced(f"lease/{ONE}", r"^(\d+) \d+", r"\1 8000000000000000"),
    "lease of another name": replaced(f"lease/{ONE}", '"one"', '"two"'),
    "name of another lease": altered('name/"one"', str(TWO)),
    "place of nobody": replaced("wait", r"^\d+", "77"),
    **{
        f"{kind} {number} said to be {'used' if value else 'free'}": bit(key, number, value)
        for kind, key, numbers in (("tcp", TCP, (10, 20, 40)), ("udp", UDP, (20, 30)))
        for number, value in (*((number, 0) for number in numbers), (65, 1))
    },
    "tcp cut short": lambda client: client.set(TCP, cast("bytes", client.get(TCP))[:1]),
    **{
        f"{name} due {when}": with_member(DUE, name, score)
        for name in (f"lease/{ONE}", "tcp/00010", "both/00020", "tcp/00040", "tcp/00050", "tcp/00065", "lease/77", "x")
        for when, score in (("at once", 0), ("never", 8e15))
    },
    **{f"{name} not due": without(DUE, name) for name in (f"lease/{ONE}", "tcp/00040", "tcp/00050")},
    "place not due": lambda client: client.zrem(DUE, field(client, "wait")),
    "place not in ports": lambda client: client.zrem(PORTS, field(client, "wait")),
    **{
        f"{name} not in ports": without(PORTS, name)
        for name in (f"lease/{ONE}", f"{ONE}/tcp/00010", f"{ONE}/both/00020")
    },
    **{
        f"{name} in ports": with_member(PORTS, name, 0)
        for name in (f"{TWO}/tcp/00010", f"{TWO}/both/00020", f"{ONE}/tcp/00065", f"{ONE}/tcp/00040", "lease/77", "x")
    },
}

ENDS = {
    **{f"lease/{ONE} {how}": {"one"} for how in ("lost", "nonsense", "low")},
    **{f"lease/{TWO} {how}": {"two"} for how in ("lost", "nonsense", "low")},
    "clock high": {"one", "two"},
}
"""Whose lease is gone; they are told."""

CASES = [
    *(("valkey", name) for name in sorted(DAMAGES)),
    *(("redis7", name) for name in sorted(DAMAGES) if re.search(" lost$| type$|free$", name)),
    *(("fakeredis", name) for name in ("state lost", "tcp lost")),
]
"""The whole on one server; on the others what looks at them in each way."""


@pytest.fixture
def scene(redis_store: servers.RedisStore) -> Scene:
    return Scene(redis_store)


def test_whole(scene: Scene) -> None:
    """Of a space that nobody touched there is nothing to say; and each sort of field is in this one."""
    names = {name.decode() for name in cast("list[bytes]", scene.client.hkeys(STATE))}
    assert {name.partition("/")[0] for name in names} == {sort.partition("/")[0] for sort in FIELDS}
    for _ in range(10):
        assert [] == compare(scene.backend, [SPACE, "host:none"], mend=False)
        scene.pass_time(1)
    assert [] == compare(scene.backend, [SPACE], mend=True)
    scene.serves()


@pytest.mark.parametrize(("redis_store", "name"), CASES, indirect=["redis_store"])
def test_damage(scene: Scene, name: str) -> None:
    """Nobody is given what another relies on; it is seen; after a repair all is well, and what was held is held."""
    DAMAGES[name](scene.client)
    found = compare(scene.backend, [SPACE], mend=False)
    assert (name in UNSEEN) == (not found)
    scene.pass_time(1)
    compare(scene.backend, [SPACE], mend=True)
    assert [] == [one.texts for one in compare(scene.backend, [SPACE], mend=False)]
    stranger = scene.manager("stranger")  # who comes before any heartbeat
    assert set() == stranger.take_all() & (scene.one.relies_on() | scene.two.relies_on())
    scene.view()
    scene.pass_time(2)
    scene.serves()
    scene.pass_time(4)
    assert [] == [one.texts for one in compare(scene.backend, [SPACE], mend=False)]
    ended = {manager.instance for manager in (scene.one, scene.two) if manager.ended}
    assert ended == ENDS.get(name, set())
    kept = {port[:2] for manager in (scene.one, scene.two) if not manager.ended for port in manager.held}
    assert kept <= {port[:2] for port in scene.running()}
    if not ended:
        assert {port[:2] for port in scene.going} - kept == ({(10, "tcp")} if name == "held by another" else set())


UNMENDED = [name for name in sorted(DAMAGES) if re.search("ports| due|free|held|fence|another", name)]


def records(scene: Scene) -> dict[str, str]:
    fields = cast("dict[bytes, bytes]", scene.client.hgetall(STATE)) if scene.client.type(STATE) == b"hash" else {}
    return {name.decode(): record.decode() for name, record in fields.items()}


@pytest.mark.parametrize("name", UNMENDED)
def test_nobody_mends(valkey: servers.ServerStore, name: str) -> None:
    """Where nothing is mended, nobody is shown, closes or outlives its way into ports that another relies on."""
    scene = Scene(valkey)
    DAMAGES[name](scene.client)
    one, two = scene.one, scene.two
    with suppress(BackendError):
        reply = scene.backend.open(SPACE, "one", token="ab", ttl=TTL)
        assert isinstance(reply, Opened)
        assert reply.lease != two.holder.lease
    with suppress(BackendError):
        shown = scene.backend.held(SPACE, two.holder)
        assert isinstance(shown, Held)
        assert {port.number for port in shown.ports} <= {port.number for port in two.held} | {65} | (
            {10} if name == "held by another" else set()
        )
    of_one = {name: record for name, record in records(scene).items() if record.startswith(f"h {one.holder.lease} ")}
    for quarantine in (True, False):
        with suppress(BackendError):
            scene.backend.close_lease(SPACE, two.holder, quarantine=quarantine)
    assert of_one.items() <= records(scene).items()
    two.held.clear()
    one.beat()
    assert set() == scene.other.take_all() & one.relies_on()
    scene.pass_time(8)


SAID = {
    *("state lost", "state of another type", "ports of another type"),
    *("tcp lost", "tcp cut short", "tcp of another type"),
}


@pytest.mark.parametrize("name", sorted(SAID))
def test_says_so(valkey: servers.ServerStore, name: str) -> None:
    """Who asks for a port is told that the data is damaged, and not that no port is free."""
    scene = Scene(valkey)
    scene.quiet()
    DAMAGES[name](scene.client)
    for count in (1, 2):
        with pytest.raises(BackendError, match=r"damaged|WRONGTYPE"):
            scene.other.acquire(Ask("r", ((12001, 12009),), count))


def test_fence_beyond_count(valkey: servers.ServerStore) -> None:
    """No fence is given that would be rounded."""
    scene = Scene(valkey)
    scene.client.hset(STATE, "fence", 2**53)
    with pytest.raises(BackendError, match="damaged"):
        scene.other.acquire(Ask("r", ((12001, 12009),)))


def test_heartbeats_of_others(valkey: servers.ServerStore) -> None:
    """A damaged space fails its own heartbeat, and no other that goes with it."""
    scene = Scene(valkey)
    reply = scene.backend.open("host:b", "two", token="ab", ttl=TTL)
    assert isinstance(reply, Opened)
    altered("revoked", "x")(scene.client)
    other = Renewal("host:b", Holder("two", reply.lease, reply.incarnation))
    outcomes = scene.backend.renew([Renewal(SPACE, scene.two.holder), other])
    assert [BackendError, Renewed] == [type(outcome) for outcome in outcomes]
