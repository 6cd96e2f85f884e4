"""Several requests at once, over ranges and hosts: all of them, or nothing anywhere, whatever ends the call."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import HOST, Fault, Kit, Outside, begin, eventually, finished, numbers, result
from allocator.test_cancel import cancelled_after, held_in, known_to

from clusterports import (
    BackendError,
    BackendUnavailable,
    BindError,
    ClusterPortsError,
    ConfigurationError,
    ImpossibleRequest,
    PortInUse,
    PortRange,
    PortRequest,
    PortsExhausted,
)
from clusterports._names import CLUSTER_SPACE, host_space
from clusterports.probe import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    import servers

R = PortRange("r", 100, 109)
S = PortRange("s", 200, 201)
GATEWAY = PortRange("gateway", 300, 301, scope="cluster")
RANGES = [R, S, GATEWAY]

OVER_HOSTS = [PortRequest("r", host=host) for host in ("c", "a", "b")]


def places(ports: list[Any]) -> list[tuple[str, int]]:
    return [(port.host, port.number) for port in ports]


def everywhere(kit: Kit) -> dict[str, dict[int, str]]:
    """What the store knows of the hosts and of the cluster, where there is anything."""
    hosts = ("", HOST, "a", "b", "c")
    return {host: ports for host in hosts if (ports := kit.ports(host))}


def fails_at(kit: Kit, flaky: Any, host: str, error: BaseException, *, after: bool = False) -> None:
    """What is asked for on this host fails; ``after``: it is carried out, and the answer is lost."""
    acquire = flaky.inner.acquire
    space = host_space(host)

    def fail(at: str, *args: Any) -> Any:
        if at == space and not after:
            raise error
        reply = acquire(at, *args)
        if at == space:
            raise error
        return reply

    async def fail_async(at: str, *args: Any) -> Any:
        if at == space and not after:
            raise error
        reply = await acquire(at, *args)
        if at == space:
            raise error
        return reply

    flaky.inner.acquire = fail if kit.kind == "sync" else fail_async


# -------------------------------------------------------------------- all


async def test_order(kit: Kit) -> None:
    """The ports come in the order of the requests, each with what its request said."""
    ports = kit.allocator(ranges=RANGES, instance="manager")
    requests = [
        PortRequest("s", host="b", owner="vm-1", labels={"role": "console"}),
        PortRequest("r", host="a", count=2, contiguous=True, align=2, owner="vm-2"),
        PortRequest("gateway", host="b"),
        PortRequest("r", protocol="both"),
        PortRequest(None, host="a", port=100, protocol="udp"),
        PortRequest("r", host="b", port=105),
        PortRequest("s", host="b"),
    ]
    held = await result(ports.acquire_many(iter(requests)))
    expected = [("b", 200), ("a", 100), ("a", 101), ("b", 300), (HOST, 100), ("a", 100), ("b", 105), ("b", 201)]
    assert expected == places(held)
    assert ["vm-1", "vm-2", "vm-2", "", "", "", "", ""] == [port.owner for port in held]
    assert ["s", "r", "r", "gateway", "r", None, "r", "s"] == [port.range for port in held]
    assert ["tcp", "tcp", "tcp", "tcp", "both", "udp", "tcp", "tcp"] == [port.protocol for port in held]
    assert ({"role": "console"}, True) == (held[0].labels, all(port.valid for port in held))
    assert sorted(expected) == places(await result(ports.allocations()))
    for port in held:
        await result(port.release())
    assert {} == everywhere(kit)


async def test_one_step_in_one_space(kit: Kit) -> None:
    """Everything on one host is one step, in which no number is given twice."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=[R, PortRange("over", 100, 103)], backend=flaky)
    held = await result(ports.acquire_many([PortRequest("over"), PortRequest("r", count=2), PortRequest("over")]))
    assert ([100, 101, 102, 103], 1) == (numbers(held), flaky.count("acquire"))
    assert len({port.fence for port in held}) == 4


async def test_nothing_asked(kit: Kit) -> None:
    """No requests give no ports, and nothing is sent."""
    flaky = kit.flaky()
    ports = kit.allocator(backend=flaky)
    assert ([], []) == (await result(ports.acquire_many([])), flaky.begun)


async def test_the_same_number_on_two_hosts(kit: Kit) -> None:
    """A number by name can be had on several hosts at once, and not twice on one."""
    ports = kit.allocator(ranges=RANGES)
    held = await result(ports.acquire_many([PortRequest("r", host=host, port=105) for host in ("a", "b")]))
    assert [("a", 105), ("b", 105)] == places(held)
    with pytest.raises((PortInUse, PortsExhausted)):
        await result(ports.acquire_many([PortRequest("r", host="c", port=105)] * 2))
    assert {"a": {105: "held"}, "b": {105: "held"}} == everywhere(kit)


async def test_after_a_loss(kit: Kit) -> None:
    """A lease that ran out is opened anew on the way."""
    ports = kit.allocator(ranges=RANGES)
    for port in await result(ports.acquire_many(OVER_HOSTS)):
        await result(port.release())
    for host in ("a", "c"):
        kit.pass_time(65, host)
    held = await result(ports.acquire_many(OVER_HOSTS))
    assert [("c", 100), ("a", 100), ("b", 100)] == places(held)
    for port in held:
        await result(port.release())


# -------------------------------------------------------------------- or nothing


@pytest.mark.parametrize("full", ["a", "b", "c", ""])
async def test_one_is_full(kit: Kit, full: str) -> None:
    """When one of the hosts, or the cluster, has too few, nothing stays anywhere, and what was there is as before."""
    holder, ports = (kit.allocator(ranges=RANGES) for _ in range(2))
    name = "s" if full else "gateway"
    await result(holder.acquire(name, count=2, host=full or "z"))
    before = everywhere(kit)
    requests = [*OVER_HOSTS, PortRequest(name, host=full or "a"), PortRequest("r", host="b", count=3)]
    with pytest.raises(PortsExhausted, match=rf"range '{name}'"):
        await result(ports.acquire_many(requests))
    assert (before, []) == (everywhere(kit), await result(ports.allocations()))
    assert 100 == int(await result(ports.acquire("r", host="a")))


async def test_the_first_that_fails_is_told(kit: Kit) -> None:
    """In one step the first request that cannot be met is told, with its range and its count."""
    ports = kit.allocator(ranges=RANGES)
    await result(ports.acquire("s"))
    requests = [PortRequest("r"), PortRequest("s", count=2), PortRequest("s"), PortRequest("r", port=100)]
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire_many(requests))
    assert ("s", 200, 201, 2) == (full.value.range, full.value.first, full.value.last, full.value.count)
    with pytest.raises(PortInUse, match=r"^Port 200/tcp"):
        await result(ports.acquire_many([PortRequest("r"), PortRequest("s", port=200)]))
    assert {HOST: {200: "held"}} == everywhere(kit)


async def test_a_bad_request(kit: Kit) -> None:
    """One that is wrong or impossible refuses all of them, before anything is sent."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky)
    bad: list[tuple[PortRequest, type[ClusterPortsError]]] = [
        (PortRequest("q"), ConfigurationError),
        (PortRequest("r", host=""), ConfigurationError),
        (PortRequest("r", port=100, count=2), ConfigurationError),
        (PortRequest("r", owner="\ud800"), ConfigurationError),
        (PortRequest(None), ConfigurationError),
        (PortRequest("s", count=3), ImpossibleRequest),
        (PortRequest("r", port=99), ImpossibleRequest),
    ]
    for request, error in bad:
        with pytest.raises(error):
            await result(ports.acquire_many([PortRequest("r"), request, PortRequest("s")]))
    assert ([], {}) == (flaky.begun, everywhere(kit))


async def test_what_is_no_request(memory_kit: Kit) -> None:
    """Something that is no request is refused as such."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=RANGES, backend=flaky)
    for wrong in (["r"], [None], [("r", 100)], [R]):
        with pytest.raises(ConfigurationError, match=r"^requests: must be PortRequests, got "):
            await result(ports.acquire_many(wrong))
    assert [] == flaky.begun


async def test_a_closed_allocator(kit: Kit) -> None:
    """An end is an end, also of nothing."""
    ports = kit.allocator(ranges=RANGES)
    await result(ports.close())
    for requests in ([], OVER_HOSTS):
        with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
            await result(ports.acquire_many(requests))


# -------------------------------------------------------------------- the store fails half-way


@pytest.mark.parametrize("unknown", [False, True])
async def test_the_store_fails_half_way(kit: Kit, unknown: bool) -> None:
    """What was taken, also where nobody knows it, is undone with the next heartbeat, which comes soon."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky)
    kept = await result(ports.acquire("r", host="a"))
    acquire = flaky.inner.acquire
    fails_at(kit, flaky, "b", BackendUnavailable("the store is away", unknown=unknown), after=unknown)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire_many(OVER_HOSTS))
    assert [kept] == await result(ports.allocations())
    flaky.inner.acquire = acquire
    await eventually({"a": {100: "held"}}, lambda: everywhere(kit))
    assert kept.valid
    held = await result(ports.acquire_many(OVER_HOSTS))
    assert [("c", 100), ("a", 101), ("b", 100)] == places(held)


async def test_the_store_stays_away(kit: Kit) -> None:
    """While the store is away nothing can be undone; it is when it is back."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky, ttl=2)
    holder = kit.allocator(ranges=RANGES)
    await result(holder.acquire("s", host="b", count=2))
    flaky.faults["renew"] = Fault(BackendUnavailable("the store is away"))
    with pytest.raises(PortsExhausted):  # not the failure of undoing it
        await result(ports.acquire_many([*OVER_HOSTS, PortRequest("s", host="b")]))
    assert {"a": {100: "held"}, "b": {200: "held", 201: "held"}} == everywhere(kit)
    assert [] == await result(ports.allocations())
    flaky.back()
    await eventually({"b": {200: "held", 201: "held"}}, lambda: everywhere(kit))


async def test_the_caller_dies_half_way(kit: Kit) -> None:
    """What a caller had taken when it died falls with its leases."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky)
    gone = BackendUnavailable("this process is no more")
    fails_at(kit, flaky, "b", gone)
    flaky.faults["renew"] = flaky.faults["close_lease"] = flaky.faults["release"] = Fault(gone)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire_many(OVER_HOSTS))
    assert {"a": {100: "held"}} == everywhere(kit)
    kit.pass_time(65, "a")
    assert {} == everywhere(kit)


async def test_cancelled_half_way(memory: servers.MemoryStore) -> None:
    """However far a call over three hosts and the cluster came: its caller got all of it, or nothing stays."""
    kit = Kit("async", memory)
    ports = kit.allocator(backend=kit.flaky(), ranges=RANGES, ttl=2)
    requests = [*OVER_HOSTS, PortRequest("gateway", host="b")]
    cut = 0
    for steps in range(60):
        held = await cancelled_after(steps, ports.acquire_many(requests))
        if held is None:
            cut += 1
        else:
            assert [("c", 100), ("a", 100), ("b", 100), ("b", 300)] == places(held)
            for port in held:
                await port.release()
        assert [] == await known_to(ports)
        await eventually({}, lambda: everywhere(kit))
    assert 0 < cut < 60
    await kit.finish()


async def test_cancelled_half_way_at_a_server(server: servers.ServerStore) -> None:
    """The same with connections of one's own, each answer on its own."""
    kit = Kit("async", server)
    ports = kit.allocator(server.url, ranges=[PortRange("r", 1, 1000)], ttl=2)
    got: list[tuple[str, int]] = []
    cut = 0
    for steps in range(0, 60, 2):
        held = await cancelled_after(steps, ports.acquire_many(OVER_HOSTS))
        cut += held is None
        got += places(held or [])
        fresh = await ports.acquire("r", host="elsewhere")  # the next call gets its own answer
        got += places([fresh])
    assert 0 < cut < 30
    assert sorted(got) == await known_to(ports)

    async def same() -> bool:
        return sorted(await held_in(ports)) == sorted(got)

    await eventually(True, same)
    await kit.finish()


@pytest.mark.parametrize("after", [False, True])
async def test_interrupted_half_way(memory_kit: Kit, after: bool) -> None:
    """An interrupt in the middle leaves nothing."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=RANGES, backend=flaky)
    fails_at(memory_kit, flaky, "b", KeyboardInterrupt(), after=after)
    with pytest.raises(KeyboardInterrupt):
        await result(ports.acquire_many(OVER_HOSTS))
    await eventually({}, lambda: everywhere(memory_kit))
    assert [] == await result(ports.allocations())


async def test_closed_half_way(memory_kit: Kit) -> None:
    """An allocator that is closed during a call ends it, and nothing stays."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=RANGES, backend=flaky)
    for port in await result(ports.acquire_many(OVER_HOSTS)):
        await result(port.release())
    gate = threading.Event()
    flaky.faults["acquire"] = Fault(gate=gate)
    begun = len(flaky.begun)
    call = begin(ports.acquire_many, OVER_HOSTS)
    await eventually(True, lambda: len(flaky.begun) > begun)
    await result(ports.close())
    gate.set()
    with pytest.raises(ClusterPortsError):
        await finished(call)
    assert {} == everywhere(memory_kit)


# -------------------------------------------------------------------- the probe


async def test_busy_ports(kit: Kit) -> None:
    """Ports that something outside has are passed over, on each host, and nothing else is lost."""
    outside = Outside(100, 102, 300)
    ports = kit.allocator(ranges=RANGES, probe=outside)
    requests = [PortRequest("r", host="b", count=2), PortRequest("r", host="a"), PortRequest("gateway", host="a")]
    held = await result(ports.acquire_many(requests))
    assert [("b", 101), ("b", 103), ("a", 101), ("a", 301)] == places(held)
    assert [("a", 101), ("a", 301), ("b", 101), ("b", 103)] == places(await result(ports.allocations()))
    status = await result(ports.status())
    foreign = [(host.host, port.number) for host in status.hosts for port in host.ports if port.state == "foreign"]
    assert [("", 300), ("a", 100), ("b", 100), ("b", 102)] == foreign


@pytest.mark.parametrize("busy", [{"host": "b", "port": 105}, {"host": "a", "port": 105}])
async def test_a_busy_port_by_number(kit: Kit, busy: dict[str, Any]) -> None:
    """One by number that is busy refuses all of them, and everything is given back at once."""
    ports = kit.allocator(ranges=RANGES, probe=Outside(105, 100))
    with pytest.raises(PortInUse, match=r"^Port 105/tcp on host '[ab]' is in use by a process outside clusterports"):
        await result(ports.acquire_many([*OVER_HOSTS, PortRequest("r", **busy)]))
    states = {state for ports in everywhere(kit).values() for state in ports.values()}
    assert ({"foreign"} >= states, []) == (True, await result(ports.allocations()))


async def test_nothing_is_left_after_the_probe(kit: Kit) -> None:
    """When the probe leaves too few on the last host, the others are given back."""
    ports = kit.allocator(ranges=RANGES, probe=lambda host, number, protocol: host != "c")
    with pytest.raises(PortsExhausted, match=r"range 's' \(200-201\)"):
        await result(ports.acquire_many([PortRequest("s", host=host) for host in ("a", "b", "c")]))
    assert {"c": {200: "foreign"}} == everywhere(kit)


@pytest.mark.parametrize("error", [LookupError("b"), BindError(Verdict("error", "100/tcp", fatal=True))])
async def test_a_probe_that_fails(kit: Kit, error: Exception) -> None:
    """What the probe raises on one host takes back what was had on others."""

    def fail(host: str, number: int, protocol: str) -> bool:
        if host == "b":
            raise error
        return True

    ports = kit.allocator(ranges=RANGES, probe=fail)
    with pytest.raises(type(error)):
        await result(ports.acquire_many(OVER_HOSTS))
    assert [] == await result(ports.allocations())
    await eventually({}, lambda: everywhere(kit))


# -------------------------------------------------------------------- several callers


async def test_crosswise(kit: Kit) -> None:
    """Two who want the same two ports in opposite orders do not stop each other: one has both, the other none."""
    one, two = (kit.allocator(ranges=[PortRange("r", 100, 100)]) for _ in range(2))
    requests = [PortRequest("r", host=host) for host in ("a", "b")]
    for _ in range(10):
        calls = [begin(one.acquire_many, requests), begin(two.acquire_many, requests[::-1])]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        [held] = [outcome for outcome in outcomes if isinstance(outcome, list)]
        assert [PortsExhausted] == [type(outcome) for outcome in outcomes if not isinstance(outcome, list)]
        assert {("a", 100), ("b", 100)} == set(places(held))
        for port in held:
            await result(port.release())
        assert {} == everywhere(kit)


async def test_one_fixed_order(kit: Kit) -> None:
    """The spaces are asked in one order, however the requests are ordered."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky)
    orders = []
    requests = [*OVER_HOSTS, PortRequest("gateway")]
    for order in (requests, requests[::-1]):
        done = len(flaky.calls)
        for port in await result(ports.acquire_many(order)):
            await result(port.release())
        orders.append([args[0] for step, args in flaky.calls[done:] if step == "acquire"])
    spaces: Callable[[str], str] = host_space
    assert [sorted([CLUSTER_SPACE, spaces("a"), spaces("b"), spaces("c")])] * 2 == orders


async def test_many_callers(kit: Kit) -> None:
    """Whatever callers overlap, each has all or nothing, and nothing is lost in the end."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 102)])

    async def call() -> int:
        served = 0
        for _ in range(10):
            try:
                held = await result(ports.acquire_many([PortRequest("r", host=host, count=2) for host in ("a", "b")]))
            except PortsExhausted:
                await asyncio.sleep(0)
                continue
            assert 4 == len({(port.host, port.number) for port in held if port.valid})
            for port in held:
                await result(port.release())
            served += 1
        return served

    if kit.kind == "sync":
        outcomes = await asyncio.gather(*(asyncio.to_thread(asyncio.run, call()) for _ in range(4)))
    else:
        outcomes = await asyncio.gather(*(call() for _ in range(4)))
    assert sum(outcomes) > 0
    assert ({}, []) == (everywhere(kit), await result(ports.allocations()))


async def test_an_error_is_one_of_ours(kit: Kit) -> None:
    """A store that answers with an error ends the call with it, and nothing stays."""
    flaky = kit.flaky()
    ports = kit.allocator(ranges=RANGES, backend=flaky)
    fails_at(kit, flaky, "c", BackendError("no permission"))
    with pytest.raises(BackendError, match=r"^no permission$"):
        await result(ports.acquire_many(OVER_HOSTS))
    await eventually({}, lambda: everywhere(kit))
