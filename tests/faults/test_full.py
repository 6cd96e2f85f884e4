"""A server whose memory is full: no more ports are given out, and nobody who has some loses them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from servers import view

from clusterports.abc import (
    Ask,
    Claim,
    Claimed,
    Closed,
    Granted,
    Holder,
    Marked,
    Occupied,
    Opened,
    Reclaimed,
    Released,
    Renewal,
    Renewed,
    Request,
)
from clusterports.errors import BackendError
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Iterator

    from clusterports.abc import Port

SPACE = "host:a"
TTL = 30_000_000


def opened(backend: Any, instance: str) -> Holder:
    reply = backend.open(SPACE, instance, token="a", ttl=TTL)
    assert isinstance(reply, Opened)
    return Holder(instance, reply.lease, reply.incarnation)


class Full:
    """A server filled with ports until it took no more."""

    def __init__(self, client: redis.Redis, backend: RedisBackend) -> None:
        self.client = client
        self.backend = backend
        self.one, self.two = opened(backend, "one"), opened(backend, "two")
        self.last: tuple[Port, ...] = ()
        self.fill()

    def fill(self) -> None:
        memory: Any = self.client.info("memory")
        self.client.config_set("maxmemory", memory["used_memory"] + 500_000)
        self.client.config_set("maxmemory-policy", "noeviction")
        self.number = 0
        with pytest.raises(BackendError, match="is out of memory"):
            self.take_all()

    def take_all(self) -> None:
        while self.number < 100:
            self.number += 1
            self.last = self.acquire(self.number)

    def acquire(self, number: int, count: int = 500) -> tuple[Port, ...]:
        asks = [Ask("r", ((1, 65535),), count, quarantine=TTL)]
        granted = self.backend.acquire(SPACE, self.one, Request(number, number), asks)
        assert isinstance(granted, Granted)
        return granted.ports

    def state(self) -> dict[Any, object]:
        return {key: self.client.dump(key) for key in self.client.keys("clusterports:1:{*")}


@pytest.fixture
def full(own_server: tuple[str, int]) -> Iterator[Full]:
    with redis.Redis.from_url(own_server[0]) as client, RedisBackend.connect(own_server[0], timeout=2.0) as backend:
        yield Full(client, backend)


def test_acquire(full: Full) -> None:
    """An acquire fails, names the memory, and changes nothing. With memory it works again."""
    before = full.state()
    for count in (1, 500):
        with pytest.raises(BackendError, match="is out of memory"):
            full.acquire(full.number, count)
    assert before == full.state()
    full.client.config_set("maxmemory", 0)
    assert 500 == len(full.acquire(full.number))


def test_restarted_manager(full: Full) -> None:
    """A manager that comes back under its name takes its lease over, and finds its ports."""
    now = full.backend.open(SPACE, "one", token="b", ttl=TTL)
    assert isinstance(now, Occupied)
    resumed = full.backend.open(SPACE, "one", token="b", ttl=TTL, supersede=now.incarnation)
    assert isinstance(resumed, Opened)
    assert (full.one.lease, len(view(full.backend, SPACE).ports)) == (resumed.lease, resumed.ports)


def test_holder_after_lost_data(full: Full) -> None:
    """What the store lost is claimed again, though there is no memory for anything new."""
    kept = full.last[0]
    full.client.delete(*full.client.keys("clusterports:1:{*"))
    full.client.config_set("maxmemory", 0)
    full.client.set("other", b"-" * 2_000_000)
    full.client.config_set("maxmemory", full.client.info("memory")["used_memory"] - 1_000_000)
    opening = full.backend.open(SPACE, "one", token="a", ttl=TTL, knew=full.one.incarnation)
    assert isinstance(opening, Opened)
    holder = Holder("one", opening.lease, opening.incarnation)
    assert Claimed() == full.backend.claim(SPACE, holder, Request(1, 1), [Claim(kept, Ask("r", ()))])
    with pytest.raises(BackendError, match="is out of memory"):
        full.backend.acquire(SPACE, holder, Request(2, 2), [Ask("r", ((1, 9),))])
    assert [kept.number] == [port.number for port in view(full.backend, SPACE).ports]


@pytest.mark.parametrize("flush", [False, True], ids=["known", "unknown"])
def test_holders(full: Full, flush: bool) -> None:
    """Whoever holds ports renews, releases and marks them, and ends its lease, also when the server has to be sent the
    script anew; and what others left is reclaimed and freed by force."""

    def step() -> None:
        if flush:
            full.client.script_flush()

    backend, one, ports = full.backend, full.one, full.last
    held = len(view(backend, SPACE).ports)
    step()
    assert [Renewed(False)] == backend.renew([Renewal(SPACE, one)])
    step()
    assert Released(3) == backend.release(SPACE, one, ports[:3])
    step()
    assert Released(1) == backend.release(SPACE, one, ports[3:4])
    step()
    assert Marked(1) == backend.mark_foreign(SPACE, one, ports[4:5], range="r", duration=TTL, most=9)
    step()
    assert Reclaimed(False) == backend.reclaim(SPACE)
    step()
    shown = view(backend, SPACE).ports
    assert held - 4 == len(shown)
    step()
    assert backend.force(SPACE, next(port for port in shown if port.state == "foreign"))
    step()
    assert Closed(True) == backend.close_lease(SPACE, one)
    step()
    assert Closed(True) == backend.close_lease(SPACE, one, quarantine=True)
    assert held - 4 - 1 - 64 == len(view(backend, SPACE).ports)
    assert Closed(False) == backend.close_lease(SPACE, full.two)
