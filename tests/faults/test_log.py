"""The log of events on real servers: it stays small, it may be damaged or forbidden, and nothing depends on it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from clusterports.abc import Ask, Events, Full, Granted, Holder, Opened, Port, Released, Request, SpaceView
from clusterports_memory import MemoryBackend
from clusterports_redis import RedisBackend
from clusterports_redis._wire import all_keys

if TYPE_CHECKING:
    import servers

    from clusterports.abc import Backend

SPACE = "host:a"
LOG = all_keys(SPACE)[-1]
TTL = 30_000_000
RANGE = ((1, 99),)


def opened(backend: Backend) -> Holder:
    reply = backend.open(SPACE, "one", token="a", ttl=TTL)
    assert isinstance(reply, Opened)
    return Holder("one", reply.lease, reply.incarnation)


def take(backend: Backend, holder: Holder, number: int, ask: Ask) -> tuple[Port, ...]:
    reply = backend.acquire(SPACE, holder, Request(number, number), [ask])
    assert isinstance(reply, Granted)
    return reply.ports


def told(backend: Backend, cursor: str = "") -> Events:
    (log,) = backend.events({SPACE: cursor}, 1000)
    assert isinstance(log, Events)
    return log


LONG = {
    "owner": ("o" * 10_000, {}),
    "owner of wide characters": ("täglich \N{GRINNING FACE}" * 100, {}),
    "labels": ("vm-1", {f"label-{number}": "x" * 100 for number in range(64)}),
    "one label": ("vm-1", {"k": "\N{GRINNING FACE}" * 130}),
    "labels at the bound": ("o" * 512, {"k": "v" * 511}),
    "labels beyond it": ("o" * 513, {"k": "v" * 512}),
    "quotes": ('"\\' * 400, {'"': '\\"' * 100}),
}


@pytest.mark.parametrize("text", LONG)
def test_brief(server: servers.ServerStore, text: str) -> None:
    """Of a long owner or of long labels a log keeps little, the same as the model; the port itself keeps all."""
    owner, labels = LONG[text]
    stories = []
    for backend in (server.connect(), MemoryBackend()):
        holder = opened(backend)
        for ask in (Ask("r", RANGE, 1, "tcp", 0, owner, labels), Ask("r", RANGE, 2, "tcp", 0, owner, labels)):
            granted = take(backend, holder, ask.count, ask)
            (view,) = backend.read([SPACE])
            assert isinstance(view, SpaceView)
            assert [(owner, labels)] * len(granted) == [(port.owner, port.labels) for port in view.ports]
            assert Released(len(granted)) == backend.release(SPACE, holder, granted)
        full = backend.acquire(SPACE, holder, Request(3, 3), [Ask("r", ((1, 1),), 2, "tcp", 0, owner, labels)])
        assert isinstance(full, Full)
        stories.append([(event.kind, event.number, event.owner, event.labels) for event in told(backend).events])
    assert stories[0] == stories[1]
    assert 7 == len(stories[0])
    client: Any = server.client
    assert all(len(entry[b"e"]) < 3000 for _, entry in client.xrange(LOG))


def test_refused_by_the_server(server: servers.ServerStore) -> None:
    """Who may not write the log is refused once in each step, however many ports it is about."""
    client: Any = server.client
    client.execute_command("ACL SETUSER", "mute", "reset", "on", ">pw", "~*", "&*", "+@all", "-xadd")
    try:
        with RedisBackend.connect(server.url.replace("redis://", "redis://mute:pw@")) as backend:
            holder = opened(backend)
            client.acl_log_reset()
            granted = take(backend, holder, 1, Ask("r", RANGE, 50))
            assert 50 == len(granted)
            assert Released(50) == backend.release(SPACE, holder, granted)
            assert 2 == sum(entry["count"] for entry in client.acl_log() if entry["object"] == "xadd")
            assert () == told(backend).events
    finally:
        client.execute_command("ACL DELUSER", "mute")


def test_refusals_unseen(server: servers.ServerStore) -> None:
    """Who may not look at the log writes no refusals, of which it could not know how often they are there already."""
    client: Any = server.client
    client.execute_command("ACL SETUSER", "blind", "reset", "on", ">pw", "~*", "&*", "+@all", "-xrevrange")
    try:
        with RedisBackend.connect(server.url.replace("redis://", "redis://blind:pw@")) as backend:
            holder = opened(backend)
            take(backend, holder, 1, Ask("r", ((1, 1),)))
            assert isinstance(backend.acquire(SPACE, holder, Request(2, 2), [Ask("r", ((1, 1),))]), Full)
        assert ["acquired"] == [event.kind for event in told(server.connect()).events]
    finally:
        client.execute_command("ACL DELUSER", "blind")


def test_begun_anew(redis_store: servers.RedisStore) -> None:
    """Who follows a log that was lost, and begun anew while the clock was behind, is told all of the new one."""
    client: Any = redis_store.client
    backend = redis_store.connect()
    holder = opened(backend)
    client.xadd(LOG, {"e": "of a server that was ahead"}, id="9999999999999-1")
    cursor = told(backend).cursor
    assert "9999999999999-1" == cursor
    client.delete(LOG)
    assert Events(SPACE, (), cursor) == told(backend, cursor)
    granted = take(backend, holder, 1, Ask("r", RANGE))
    found = told(backend, cursor)
    assert ["acquired"] == [event.kind for event in found.events]
    backend.release(SPACE, holder, granted)
    assert ["released"] == [event.kind for event in told(backend, found.cursor).events]


NO_EVENTS = {
    "another kind": "resumed 1 tcp/00010 h 1 2 3 0 {}",
    "no port": 'acquired 1 t\x1b[31m/00010 h 1 2 3 0 {"i":"","l":{},"o":"","r":""}',
    "number too high": 'acquired 1 tcp/99999 h 1 2 3 0 {"i":"","l":{},"o":"","r":""}',
    "owner of another type": 'acquired 1 tcp/00010 h 1 2 3 0 {"i":"","l":{},"o":5,"r":""}',
    "labels of another type": 'acquired 1 tcp/00010 h 1 2 3 0 {"i":"","l":[],"o":"","r":""}',
    "long ago": 'acquired -99999999999999999999 tcp/00010 h 1 2 3 0 {"i":"","l":{},"o":"","r":""}',
    "no note": "acquired 1 tcp/00010 h 1 2 3 0",
    "deep": "acquired 1 tcp/00010 h 1 2 3 0 " + "[" * 100_000,
    "nothing": "",
    "no text": b"\xff\xfe",
}


@pytest.mark.parametrize("entry", NO_EVENTS)
def test_not_understood(redis_store: servers.RedisStore, entry: str) -> None:
    """An entry that is no event, or one of a later version, is passed over; the others are shown."""
    client: Any = redis_store.client
    backend = redis_store.connect()
    holder = opened(backend)
    granted = take(backend, holder, 1, Ask("r", RANGE))
    client.xadd(LOG, {"e": NO_EVENTS[entry]})
    backend.release(SPACE, holder, granted)
    assert ["acquired", "released"] == [event.kind for event in told(backend).events]
