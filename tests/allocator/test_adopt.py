"""Ports of jobs that run already are taken as they are; ports that a job could not have are passed over."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import HOST, PATIENCE, Outside, Told, begin, eventually, finished, numbers, result
from allocator.test_lost_data import emptied

from clusterports import (
    BackendRecovering,
    BackendUnavailable,
    ConfigurationError,
    ImpossibleRequest,
    LeaseLost,
    PortInUse,
    PortRange,
    PortsExhausted,
)

if TYPE_CHECKING:
    from allocator.kit import Kit

RANGE = PortRange("r", 100, 103)
SINGLE = PortRange("single", 300, 300)
GATEWAY = PortRange("gateway", 200, 203, scope="cluster")
RESTING = PortRange("resting", 400, 401, cooldown=60.0)


async def taken(kit: Kit, *ports: int, **arguments: Any) -> list[Any]:
    """By another manager; without further words, of the first range."""
    asked: dict[str, Any] = {"range": "r", **arguments}
    other = kit.allocator(ranges=[RANGE, GATEWAY, RESTING])
    return [await result(other.acquire(**asked, port=port)) for port in ports]


# -------------------------------------------------------------------- adopt


async def test_free(kit: Kit) -> None:
    """A free port is taken, as by an acquire with its number."""
    ports = kit.allocator(ranges=[RANGE])
    port = await result(ports.adopt("r", port=101, owner="vm-1", labels={"job": "backup"}))

    assert (101, HOST, "r", "tcp", "vm-1", {"job": "backup"}, True) == (
        *(port.number, port.host, port.range, port.protocol),
        *(port.owner, port.labels, port.valid),
    )
    assert {101: "held"} == kit.ports()
    assert [port] == await result(ports.allocations())
    assert 100 == int(await result(ports.acquire("r")))
    await result(port.release())
    assert {100: "held"} == kit.ports()


async def test_not_probed(kit: Kit) -> None:
    """The job that has the port would make it look busy, so nobody looks; other calls look on."""
    outside = Outside(100)
    ports = kit.allocator(ranges=[RANGE], probe=outside)
    assert 100 == int(await result(ports.adopt("r", port=100)))
    assert [] == outside.asked
    assert 101 == int(await result(ports.acquire("r")))
    assert [(HOST, 101, "tcp")] == outside.asked


async def test_without_a_range(memory_kit: Kit) -> None:
    """Any port can be adopted, on any host."""
    ports = memory_kit.allocator()
    port = await result(ports.adopt(None, port=7, host="elsewhere", protocol="udp"))
    assert (7, "elsewhere", None, "udp") == (port.number, port.host, port.range, port.protocol)
    assert {7: "held"} == memory_kit.ports("elsewhere")


async def test_marked(kit: Kit) -> None:
    """A mark as foreign was of this very job."""
    marking = kit.allocator(ranges=[RANGE], probe=Outside(100))
    await result(marking.acquire("r"))
    assert {100: "foreign", 101: "held"} == kit.ports()
    assert 100 == int(await result(kit.allocator(ranges=[RANGE]).adopt("r", port=100)))
    assert {100: "held", 101: "held"} == kit.ports()


async def test_cooling_after_expiry(kit: Kit) -> None:
    """A port that cools since its manager died is taken, though nobody else would get it."""
    (old,) = await taken(kit, 100)
    kit.pass_time(35.0)
    assert {100: "cooling"} == kit.ports()
    ports = kit.allocator(ranges=[RANGE])
    with pytest.raises(PortInUse, match="cooling"):
        await result(ports.acquire("r", port=100))
    port = await result(ports.adopt("r", port=100))

    assert port.fence > old.fence
    assert {100: "held"} == kit.ports()


async def test_cooling_after_release(kit: Kit) -> None:
    """And one that cools since it was released."""
    (old,) = await taken(kit, 400, range="resting")
    await result(old.release())
    assert {400: "cooling"} == kit.ports()
    ports = kit.allocator(ranges=[RESTING])
    assert 400 == int(await result(ports.adopt("resting", port=400)))
    assert {400: "held"} == kit.ports()


@pytest.mark.parametrize(("cools", "wanted"), [("tcp", "both"), ("udp", "both"), ("both", "tcp"), ("both", "udp")])
async def test_cooling_protocols(kit: Kit, cools: str, wanted: str) -> None:
    """Whatever cools in the way is not in the way."""
    (old,) = await taken(kit, 400, range="resting", protocol=cools)
    await result(old.release())
    port = await result(kit.allocator(ranges=[RESTING]).adopt("resting", port=400, protocol=wanted))
    assert wanted == port.protocol
    assert [(400, wanted, "held")] == [(seen.number, seen.protocol, seen.state) for seen in kit.view().ports]


async def test_both_over_two_that_cool(kit: Kit) -> None:
    """There may be two of them."""
    for protocol in ("tcp", "udp"):
        (old,) = await taken(kit, 400, range="resting", protocol=protocol)
        await result(old.release())
    assert 400 == int(await result(kit.allocator(ranges=[RESTING]).adopt("resting", port=400, protocol="both")))
    assert [(400, "both", "held")] == [(seen.number, seen.protocol, seen.state) for seen in kit.view().ports]


async def test_half_of_it_held(kit: Kit) -> None:
    """What cools in the other protocol is left alone when the port is held in one of the two, whichever it is."""
    (old,) = await taken(kit, 400, range="resting", protocol="udp")
    await taken(kit, 400, range="resting", protocol="tcp")
    await result(old.release())
    with pytest.raises(PortInUse, match="held"):
        await result(kit.allocator(ranges=[RESTING]).adopt("resting", port=400, protocol="both"))


async def test_held(kit: Kit) -> None:
    """A port that somebody holds is his; the error says whose."""
    (theirs,) = await taken(kit, 100, owner="vm-9")
    ports = kit.allocator(ranges=[RANGE])
    with pytest.raises(PortInUse, match=r"held by .* owner 'vm-9'") as error:
        await result(ports.adopt("r", port=100))
    assert theirs.fence == error.value.holder.fence
    assert theirs.valid
    ours = await result(ports.adopt("r", port=101))
    with pytest.raises(PortInUse):
        await result(ports.adopt("r", port=101))
    assert [ours] == await result(ports.allocations())


async def test_past_the_queue(kit: Kit) -> None:
    """Nor do those who wait for it get a port on which a job runs: they go on waiting."""
    (old,) = await taken(kit, 400, range="resting")
    waiter = kit.allocator(ranges=[RESTING])
    call = begin(waiter.acquire, "resting", port=400, wait=PATIENCE)
    await eventually(1, kit.waiting)
    await result(old.release())
    found = await result(kit.allocator(ranges=[RESTING]).adopt("resting", port=400, owner="vm-1"))
    assert (400, 1, {400: "held"}) == (int(found), kit.waiting(), kit.ports())
    await result(found.release())
    await result(waiter.force_release(HOST, 400))  # it would cool
    assert 400 == int(await finished(call))


@pytest.mark.parametrize(
    ("port", "message"), [(104, r"port: 104 is not in range 'r' \(100-103\)"), (99, "port: 99 is not in")]
)
async def test_not_of_the_range(memory_kit: Kit, port: int, message: str) -> None:
    """A range has no ports but its own."""
    with pytest.raises(ImpossibleRequest, match=message):
        await result(memory_kit.allocator(ranges=[RANGE]).adopt("r", port=port))
    assert {} == memory_kit.ports()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"range": "nope", "port": 1}, "range: unknown range 'nope'"),
        ({"range": None, "port": 0}, "port: must be .* 1 to 65535, got 0"),
        ({"range": None, "port": 65536}, "port: must be .* 1 to 65535, got 65536"),
        ({"range": "r", "port": "100"}, "port: must be .* 1 to 65535, got '100'"),
        ({"range": "r", "port": None}, "port: must be .* 1 to 65535, got None"),
        ({"range": "r", "port": 100, "protocol": "sctp"}, "protocol: must be one of"),
        ({"range": "r", "port": 100, "owner": 5}, "owner: must be text"),
        ({"range": "r", "port": 100, "host": ""}, "host: "),
    ],
)
async def test_bad_arguments(memory_kit: Kit, arguments: dict[str, Any], message: str) -> None:
    """They are refused as those of an acquire, and nothing is asked for."""
    backend = memory_kit.flaky()
    ports = memory_kit.allocator(backend=backend, ranges=[RANGE])
    with pytest.raises(ConfigurationError, match=message):
        await result(ports.adopt(**arguments))
    assert [] == backend.calls


async def test_of_the_cluster(kit: Kit) -> None:
    """A number of the whole cluster is taken where it cools, and not from another host that holds it."""
    (held, old) = await taken(kit, 200, 201, range="gateway", host="a")
    ports = kit.allocator(ranges=[GATEWAY], host="b")
    with pytest.raises(PortInUse, match="held by"):
        await result(ports.adopt("gateway", port=200))
    await result(kit.allocator().force_release("a", 201))
    assert {200: "held", 201: "cooling"} == kit.ports("")
    port = await result(ports.adopt("gateway", port=201))
    assert ("b", 201) == (port.host, port.number)
    assert port.fence > old.fence
    assert held.valid
    assert {200: "held", 201: "held"} == kit.ports("")


async def test_limit(kit: Kit) -> None:
    """It is in use, however many its owner may have; and it counts for what the owner asks for next."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 103, limit=1)])
    await result(ports.adopt("r", port=103, owner="vm-1"))
    await result(ports.adopt("r", port=102, owner="vm-1"))
    assert {102: "held", 103: "held"} == kit.ports()
    with pytest.raises(PortsExhausted, match="owner 'vm-1' may hold at most 1 here"):
        await result(ports.acquire("r", owner="vm-1"))


async def test_recovering(kit: Kit) -> None:
    """While holders claim what a store has lost, nothing is adopted: it may be theirs."""
    ports = kit.allocator(ranges=[RANGE], ttl=30.0)
    await result(ports.acquire("r"))
    emptied(kit.store)
    with pytest.raises(BackendRecovering):
        await result(ports.adopt("r", port=103))
    kit.pass_time(30.0)
    assert 103 == int(await result(kit.allocator(ranges=[RANGE]).adopt("r", port=103)))


async def test_held_on(kit: Kit) -> None:
    """An adopted port is renewed as any other, and found again by the next process of this instance."""
    backend = kit.flaky()
    before = kit.allocator(backend=backend, instance="manager", ranges=[RANGE], ttl=0.8)
    port = await result(before.adopt("r", port=102, owner="vm-1"))
    for _ in range(3):
        kit.pass_time(0.6)
        await backend.wait("renew", 2)
    assert port.valid
    assert {102: "held"} == kit.ports()
    await result(before.detach())

    after = kit.allocator(instance="manager", ranges=[RANGE])
    (again,) = await result(after.allocations())
    assert (102, port.fence, "r", "vm-1") == (again.number, again.fence, again.range, again.owner)
    await result(again.release())
    assert {} == kit.ports()


async def test_store_away(memory_kit: Kit) -> None:
    """Nothing is adopted, nor is anything left half done."""
    (old,) = await taken(memory_kit, 400, range="resting")
    await result(old.release())
    backend = memory_kit.flaky()
    ports = memory_kit.allocator(backend=backend, ranges=[RESTING])
    backend.away()
    with pytest.raises(BackendUnavailable):
        await result(ports.adopt("resting", port=400))
    backend.back()
    assert {400: "cooling"} == memory_kit.ports()
    assert [] == await result(ports.allocations())
    assert 400 == int(await result(ports.adopt("resting", port=400)))


# -------------------------------------------------------------------- mark_foreign


async def test_passed_over(kit: Kit) -> None:
    """A port that something else has is not given out for thirty seconds; then it is."""
    ports = kit.allocator(ranges=[RANGE])
    port = await result(ports.acquire("r", owner="vm-1"))
    await result(port.mark_foreign())

    assert not port.valid
    assert [] == await result(ports.allocations())
    assert [(100, "foreign", "")] == [(seen.number, seen.state, seen.owner) for seen in kit.view().ports]
    assert 101 == int(await result(kit.allocator(ranges=[RANGE]).acquire("r")))
    kit.pass_time(29.0)
    assert "foreign" == kit.ports()[100]
    kit.pass_time(1.5)
    assert 100 == int(await result(kit.allocator(ranges=[RANGE]).acquire("r")))


@pytest.mark.parametrize("seconds", [0.5, 3600])
async def test_so_many_seconds(kit: Kit, seconds: float) -> None:
    """Or for as long as one says."""
    port = await result(kit.allocator(ranges=[RANGE]).acquire("r"))
    await result(port.mark_foreign(seconds))
    (seen,) = kit.view().ports
    assert ("foreign", round(seconds * 1e6)) == (seen.state, seen.free_in)


@pytest.mark.parametrize("seconds", [0, -1, 3600.1, float("nan"), float("inf"), True, "30", None])
async def test_seconds_out_of_bounds(memory_kit: Kit, seconds: Any) -> None:
    """A mark is neither for ever nor for nothing; the port stays held."""
    port = await result(memory_kit.allocator(ranges=[RANGE]).acquire("r"))
    with pytest.raises(ConfigurationError, match="seconds: must be above 0 and at most 3600, got ") as error:
        await result(port.mark_foreign(seconds))
    assert str(error.value).endswith(repr(seconds))
    assert port.valid
    assert {100: "held"} == memory_kit.ports()


async def test_half_of_a_range(kit: Kit) -> None:
    """At most half of a range is marked, the rest is just given back."""
    ports = kit.allocator(ranges=[RANGE, SINGLE])
    for port in await result(ports.acquire("r", count=3)):
        await result(port.mark_foreign())
    assert {100: "foreign", 101: "foreign"} == kit.ports()
    single = await result(ports.acquire("single"))
    await result(single.mark_foreign())
    assert {100: "foreign", 101: "foreign"} == kit.ports()


async def test_no_range_to_pass_it_over_in(kit: Kit) -> None:
    """A port without a range is given back, and so is one of a range that is configured elsewhere."""
    port = await result(kit.allocator().acquire(None, port=7))
    await result(port.mark_foreign())
    assert {} == kit.ports()

    before = kit.allocator(instance="manager", ranges=[RANGE])
    await result(before.acquire("r"))
    await result(before.detach())
    (port,) = await result(kit.allocator(instance="manager").allocations())
    await result(port.mark_foreign())
    assert {} == kit.ports()


async def test_mark_of_the_cluster(kit: Kit) -> None:
    """A mark in the whole cluster says on which host."""
    ports = kit.allocator(ranges=[GATEWAY])
    await result((await result(ports.acquire("gateway", host="a"))).mark_foreign())
    assert [(200, "foreign", "a")] == [(seen.number, seen.state, seen.host) for seen in kit.view("").ports]


async def test_no_cooldown(kit: Kit) -> None:
    """A port that was never used has nothing to cool from."""
    ports = kit.allocator(ranges=[RESTING])
    for port in await result(ports.acquire("resting", count=2)):
        await result(port.mark_foreign())
    assert {400: "foreign"} == kit.ports()


async def test_twice(kit: Kit) -> None:
    """What was given back, in either way, is not touched again."""
    ports = kit.allocator(ranges=[RANGE])
    marked, released = await result(ports.acquire("r", count=2))
    await result(marked.mark_foreign(60))
    await result(marked.mark_foreign(5))
    await result(marked.release())
    await result(released.release())
    await result(released.mark_foreign())
    assert [(100, 60_000_000)] == [(seen.number, seen.free_in) for seen in kit.view().ports]


async def test_of_another_allocator(memory_kit: Kit) -> None:
    """One marks only what is one's own."""
    (theirs,) = await taken(memory_kit, 100)
    ports = memory_kit.allocator(ranges=[RANGE])
    with pytest.raises(ConfigurationError, match="allocation: must be one of this allocator"):
        await result(ports.mark_foreign(theirs))
    assert theirs.valid


async def test_stale(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """A port whose lease ran out is another's by now, and stays so."""
    stale = await result(kit.allocator(ranges=[RANGE], ttl=30.0).acquire("r"))
    kit.pass_time(46.0)
    await taken(kit, 100)
    with caplog.at_level(logging.CRITICAL, "clusterports"), pytest.raises(LeaseLost, match=r"lost.*100/tcp"):
        await result(stale.mark_foreign())
    assert {100: "held"} == kit.ports()


async def test_taken_by_force(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """A port that an operator took goes on cooling; who has heard of it is told so once more."""
    told = Told()
    backend = kit.flaky()
    ports = kit.allocator(backend=backend, ranges=[RANGE], ttl=0.8, on_lost=told)
    heard, unheard = await result(ports.acquire("r", count=2))
    operator = kit.allocator()
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        await result(operator.force_release(HOST, 100))
        await told.wait()
        with pytest.raises(LeaseLost, match="Taken by force"):
            await result(heard.mark_foreign())
        go_on = backend.hold_request("renew")
        await result(operator.force_release(HOST, 101))
        await result(unheard.mark_foreign())
        go_on()
    assert {100: "cooling", 101: "cooling"} == kit.ports()
    assert [] == await result(ports.allocations())


async def test_mark_while_the_store_is_away(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """The port is given back with the next heartbeat that gets through, and not used any more."""
    backend = kit.flaky()
    ports = kit.allocator(backend=backend, ranges=[RANGE], ttl=0.8)
    port, other = await result(ports.acquire("r", count=2))
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        backend.away()
        with pytest.raises(BackendUnavailable):
            await result(port.mark_foreign())
        assert not port.valid
        backend.back()
        await eventually({101: "held"}, kit.ports)
    assert [101] == numbers(await result(ports.allocations()))
    assert int(other) == 101


async def test_reply_lost(kit: Kit, caplog: pytest.LogCaptureFixture) -> None:
    """A mark that was set, though the reply was lost, stays set: the heartbeat's release is of another fence."""
    backend = kit.flaky()
    ports = kit.allocator(backend=backend, ranges=[RANGE], ttl=0.8)
    port = await result(ports.acquire("r"))
    with caplog.at_level(logging.CRITICAL, "clusterports"):
        backend.away(unknown=True)
        with pytest.raises(BackendUnavailable):
            await result(port.mark_foreign())
        backend.back()
        await backend.wait("release")
    assert {100: "foreign"} == kit.ports()


async def test_store_emptied(kit: Kit) -> None:
    """A store that has lost the lease hears what is held; the port, which was given up, is not among it."""
    ports = kit.allocator(ranges=[RANGE], ttl=30.0)
    port, other = await result(ports.acquire("r", count=2))
    emptied(kit.store)
    await result(port.mark_foreign())
    assert {101: "held"} == kit.ports()
    assert not port.valid
    assert [other] == await result(ports.allocations())
