"""What a bad network does to allocators on real servers: replies lost, requests late or twice, holders cut off."""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import pytest_asyncio
import servers
from allocator.kit import HOST, PATIENCE, Kit, Told, begin, eventually, finished, numbers, result
from faults.proxy import Proxy

from clusterports import BackendUnavailable, LeaseLost, PortRange, PortRequest, PortsExhausted, Settings
from clusterports._names import host_space
from clusterports_redis._scripts import Scripts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from clusterports.abc import SpaceView

RANGE = PortRange("r", 1, 4, quarantine=0.5)
SCRIPTS = Scripts()

GIVES_UP = Settings(timeout=0.8)
"""Seconds after which a call gives up."""


def step(name: str) -> bytes:
    """What is in every request for this step."""
    return str(getattr(SCRIPTS, name).sha).encode()


class Network(Kit):
    """A kit whose allocators reach the server through the proxy. ``direct``: one that does not."""

    def __init__(self, kind: str, server: servers.ServerStore, proxy: Proxy) -> None:
        super().__init__(kind, server)
        self.proxy = proxy
        for name in ("open", "acquire", "renew", "release", "close", "reclaim", "held"):
            server.client.script_load(
                getattr(SCRIPTS, name).source
            )  # else the first request is not the one that counts

    def through(self, **more: Any) -> Any:
        return self.allocator(self.proxy.url, ranges=[RANGE], probe=False, **more)

    def direct(self, **more: Any) -> Any:
        return self.allocator(self.store.url, ranges=[RANGE], probe=False, **more)

    def look(self, host: str = HOST) -> SpaceView:
        with self.store.connect() as backend:
            return servers.view(backend, host_space(host))

    def held(self, host: str = HOST) -> list[tuple[int, str]]:
        """Number and instance of each port that the store says is held."""
        return [(port.number, port.instance) for port in self.look(host).ports if port.state == "held"]

    @contextmanager
    def nobody_gets_through(self) -> Iterator[None]:
        self.proxy.cut_off()
        yield
        self.proxy.heal()

    async def heartbeats(self) -> None:
        """Wait until one has been answered that was sent from now on."""
        for _ in range(2):  # the second is sent after the answer to the first
            await finished(begin(self.proxy.copy(step("renew")).wait))


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest_asyncio.fixture
async def net(kind: str, server: servers.ServerStore) -> AsyncIterator[Network]:
    with Proxy(int(server.client.connection_pool.connection_kwargs["port"])) as proxy:
        network = Network(kind, server, proxy)
        yield network
        proxy.heal()
        await network.finish()


def carried_out(reply: bytes) -> None:
    """The server ran the script, whatever it said."""
    assert reply
    assert not reply.startswith(b"-"), reply


# -------------------------------------------------------------------- a reply is lost after the commit


async def test_reply_to_acquire_lost(net: Network) -> None:
    """The retry returns what was granted; it is counted once."""
    ports = net.through(instance="m")
    await result(ports.acquire("r"))
    lost = net.proxy.drop_reply(step("acquire"))
    again = await result(ports.acquire("r", count=2))
    lost.wait()
    assert [2, 3] == numbers(again)
    assert [(1, "m"), (2, "m"), (3, "m")] == net.held()
    assert [4] == numbers(await result(ports.acquire("r")))


@pytest.mark.parametrize("host", ["a", "b"])
async def test_reply_to_acquire_many_lost(net: Network, host: str) -> None:
    """Over several hosts too, whichever host's reply it was."""
    ports = net.through(instance="m")
    wanted = [PortRequest("r", host=name, count=2) for name in "ab"]
    lost = net.proxy.drop_reply(step("acquire"), host_space(host).encode())
    given = await result(ports.acquire_many(wanted))
    lost.wait()
    assert [1, 2, 1, 2] == numbers(given)
    assert [[(1, "m"), (2, "m")]] * 2 == [net.held(name) for name in "ab"]


async def test_reply_to_release_lost(net: Network) -> None:
    """The retry does not touch the port, which is another's by then."""
    ports, other = net.through(), net.direct(instance="other")
    port = await result(ports.acquire("r"))
    lost = net.proxy.drop_reply(step("release"))
    net.proxy.refuse()
    release = begin(port.release)
    await finished(begin(lost.wait))
    assert [1] == numbers(await result(other.acquire("r")))
    retry = net.proxy.copy(step("release"))
    net.proxy.heal()
    await finished(release)
    carried_out(retry.deliver())  # once more
    assert [(1, "other")] == net.held()


async def test_reply_to_open_lost(net: Network) -> None:
    """The retry finds the lease that the first try made."""
    ports = net.through(instance="m")
    lost = net.proxy.drop_reply(step("open"))
    assert [1] == numbers(await result(ports.acquire("r")))
    lost.wait()
    (lease,) = net.look().leases
    assert ("m", [(1, "m")]) == (lease.instance, net.held())


async def test_reply_to_takeover_lost(net: Network) -> None:
    """A restarted manager that takes over its lease may ask for it twice, and finds its ports."""
    before = net.through(instance="m")
    await result(before.acquire("r", count=2))
    await result(before.detach())
    after = net.through(instance="m")
    lost = net.proxy.drop_reply(step("open"), b"m")
    assert [1, 2] == numbers(await result(after.allocations()))
    lost.wait()
    assert [3] == numbers(await result(after.acquire("r")))
    assert [(1, "m"), (2, "m"), (3, "m")] == net.held()


# -------------------------------------------------------------------- a request arrives late


async def give_up(net: Network, name: str, call: Any, *arguments: Any, **more: Any) -> Any:
    """Let the network keep the next request for this step, and its caller give up: the request."""
    held = net.proxy.hold(step(name))
    asked = begin(call, *arguments, **more)
    await finished(begin(held.wait))
    with net.nobody_gets_through(), pytest.raises(BackendUnavailable) as caught:
        await finished(asked)
    assert caught.value.unknown
    return held


async def test_acquire_after_its_caller_gave_up(net: Network) -> None:
    """Once a heartbeat has told that nobody waits for it, it gets nothing, however often it arrives."""
    ports = net.through(settings=GIVES_UP, ttl=3.0)
    await result(ports.acquire("r"))
    late = await give_up(net, "acquire", ports.acquire, "r", count=2)
    await net.heartbeats()
    for _ in range(2):
        carried_out(late.deliver())
    assert [(1, ports.instance)] == net.held()
    assert [2] == numbers(await result(ports.acquire("r")))
    carried_out(late.deliver())
    assert [(1, ports.instance), (2, ports.instance)] == net.held()


async def test_acquire_between_giving_up_and_the_heartbeat(net: Network) -> None:
    """What it gets before that is given back with the heartbeat."""
    ports = net.through(settings=GIVES_UP, ttl=3.0)
    await result(ports.acquire("r"))
    late = net.proxy.hold(step("acquire"))
    asked = begin(ports.acquire, "r", count=2)
    await finished(begin(late.wait))
    with net.nobody_gets_through():
        with pytest.raises(BackendUnavailable):
            await finished(asked)
        carried_out(late.deliver())
        assert 3 == len(net.held())
    await eventually([(1, ports.instance)], net.held)


async def test_acquire_after_its_caller_closed(net: Network) -> None:
    """Its lease is gone, and does not come back for it."""
    ports = net.through(settings=GIVES_UP, ttl=3.0)
    await result(ports.acquire("r"))
    late = await give_up(net, "acquire", ports.acquire, "r")
    await result(ports.close())
    carried_out(late.deliver())
    assert ((), ()) == (net.look().ports, net.look().leases)


async def test_release_after_its_caller_gave_up(net: Network) -> None:
    """It is made up for with a heartbeat; the late one does not free what the port is by then."""
    ports = net.through(settings=GIVES_UP, ttl=3.0)
    port = await result(ports.acquire("r"))
    late = await give_up(net, "release", port.release)
    await eventually([], net.held)
    again = await result(ports.acquire("r"))
    assert int(port) == int(again)
    carried_out(late.deliver())
    assert ([(1, ports.instance)], True) == (net.held(), again.valid)


async def test_open_after_its_caller_gave_up(net: Network) -> None:
    """It takes no lease from the process that has come under its name meanwhile."""
    ports, newer = net.through(instance="m", settings=GIVES_UP), net.direct(instance="m")
    late = await give_up(net, "open", ports.acquire, "r")
    kept = await result(newer.acquire("r"))
    (lease,) = net.look().leases
    carried_out(late.deliver())
    assert [lease.incarnation] == [other.incarnation for other in net.look().leases]
    assert [2] == numbers(await result(newer.acquire("r")))
    assert kept.valid


@pytest.mark.parametrize("name", ["renew", "close", "release"])
async def test_late_word_of_one_that_was_succeeded(net: Network, name: str) -> None:
    """Whatever an older process said last changes nothing for the one that came under its name."""
    # Its heartbeat would repeat a release.
    older = net.through(instance="m", settings=GIVES_UP, ttl=3.0 if name == "renew" else 60.0)
    port = await result(older.acquire("r"))
    if name == "renew":
        late = net.proxy.copy(step("renew"))
        await finished(begin(late.wait))
        await result(older.detach())
    else:
        late = await give_up(net, name, older.close if name == "close" else port.release)
    newer = net.direct(instance="m")
    assert [1] == numbers(await result(newer.allocations()))
    carried_out(late.deliver())
    assert [(1, "m")] == net.held()
    (kept,) = await result(newer.allocations())
    await result(kept.release())


# -------------------------------------------------------------------- a request arrives twice


async def test_acquire_delivered_twice(net: Network) -> None:
    """It is counted once, is not granted anew after its release, and not after its lease has ended."""
    ports = net.through(instance="m")
    twice = net.proxy.copy(step("acquire"))
    first, second = await result(ports.acquire("r", count=2))
    carried_out(twice.deliver())
    assert [(1, "m"), (2, "m")] == net.held()
    await result(first.release())
    carried_out(twice.deliver())
    assert [(2, "m")] == net.held()
    await result(second.release())
    await result(ports.acquire("r", port=4))
    carried_out(twice.deliver())
    assert [(4, "m")] == net.held()
    await result(ports.close())
    carried_out(twice.deliver())
    assert () == net.look().ports


async def test_release_delivered_twice(net: Network) -> None:
    """The second one frees nothing: neither another's port, nor the same client's next."""
    ports, other = net.through(instance="m"), net.direct(instance="other")
    twice = net.proxy.copy(step("release"))
    await result((await result(ports.acquire("r"))).release())
    taken = await result(other.acquire("r"))
    carried_out(twice.deliver())
    assert [(1, "other")] == net.held()
    await result(taken.release())
    await result(ports.acquire("r"))
    carried_out(twice.deliver())
    assert [(1, "m")] == net.held()


async def test_old_heartbeat(net: Network) -> None:
    """One that arrives after the release gives nothing back, and after the end of its lease it brings none back."""
    ports = net.through(instance="m", ttl=1.0)
    port = await result(ports.acquire("r"))
    old = net.proxy.copy(step("renew"))
    await finished(begin(old.wait))
    await result(port.release())
    carried_out(old.deliver())
    assert () == net.look().ports
    await result(ports.close())
    carried_out(old.deliver())
    assert () == net.look().leases


# -------------------------------------------------------------------- a holder is cut off


def cut_off(net: Network, how: str) -> None:
    if how == "stalled":
        net.proxy.stall()
    else:
        net.proxy.cut_off()


@pytest.mark.parametrize("how", ["refused", "stalled"])
async def test_cut_off(net: Network, how: str) -> None:
    """At its deadline its ports are not valid, and it is told so, without a network; back in time, they are again."""
    jeopardy, lost = Told(), Told()
    ports = net.through(ttl=1.0, settings=GIVES_UP, on_jeopardy=jeopardy, on_lost=lost)
    held = await result(ports.acquire("r", count=2))
    cut = time.monotonic()
    deadline = cut + held[0].expires_in
    cut_off(net, how)
    assert [held] == await jeopardy.wait()
    assert [False, False] == [port.valid for port in held]
    assert deadline <= jeopardy.at[0] < cut + 1.0  # another may have the port no earlier than a TTL after the last beat
    net.proxy.heal()
    await eventually([True, True], lambda: [port.valid for port in held])
    assert ([], 2) == (lost.what, len(net.held()))


@pytest.mark.parametrize("how", ["refused", "stalled"])
async def test_cut_off_strictly(net: Network, how: str) -> None:
    """With ``strict`` the deadline is a loss, for good; back again, it gives up what it had."""
    lost = Told()
    ports = net.through(ttl=1.0, settings=GIVES_UP, on_lost=lost, strict=True)
    held = await result(ports.acquire("r", count=2))
    cut = time.monotonic()
    cut_off(net, how)
    (error,) = await lost.wait()
    assert lost.at[0] < cut + 1.0
    assert ("deadline", held, False) == (error.reason, error.allocations, held[0].valid)
    net.proxy.heal()
    await eventually([], net.held)
    assert [False, False] == [port.valid for port in held]
    with pytest.raises(LeaseLost):
        await result(held[0].release())


async def test_cut_off_for_long(net: Network) -> None:
    """After TTL and quarantine others have its ports; back again, it is told which, and gets none of them."""
    lost = Told()
    ports = net.through(ttl=1.0, settings=GIVES_UP, on_lost=lost)
    held = await result(ports.acquire("r", count=4))
    other = net.direct(instance="other", ttl=1.0)
    await result(other.acquire(None, port=50000))
    await net.heartbeats()
    cut = time.monotonic()
    net.proxy.cut_off()
    taken = [await result(other.acquire("r", wait=PATIENCE)) for _ in range(4)]
    assert time.monotonic() - cut > 1.0  # the last heartbeat was at most a quarter of a second before
    assert [False] * 4 == [port.valid for port in held]
    assert [] == lost.what
    net.proxy.heal()
    (error,) = await lost.wait()
    assert ("revoked", [1, 2, 3, 4]) == (error.reason, sorted(numbers(error.allocations)))
    assert [] == await result(ports.allocations())
    for port in held:
        with pytest.raises(LeaseLost):
            await result(port.release())
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    await net.heartbeats()
    assert [(1, "other"), (2, "other"), (3, "other"), (4, "other"), (50000, "other")] == net.held()
    assert [True] * 4 == [port.valid for port in taken]
