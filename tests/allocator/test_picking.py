"""Which ports are given: strategies, blocks, limits, cooling, the cluster's numbers, dry runs, changed ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import HOST, Outside, begin, eventually, finished, numbers, result

from clusterports import (
    ClusterPortsError,
    ConfigurationError,
    ImpossibleRequest,
    LeaseLost,
    PortInUse,
    PortRange,
    PortRequest,
    PortsExhausted,
)

if TYPE_CHECKING:
    from allocator.kit import Kit


async def take(ports: Any, name: str, count: int, **arguments: Any) -> list[Any]:
    """So many single asks."""
    return [await result(ports.acquire(name, **arguments)) for _ in range(count)]


# -------------------------------------------------------------------- strategies


async def test_next(kit: Kit) -> None:
    """The next number after the last one comes, of whichever manager, and after the end the first."""
    span = PortRange("r", 100, 103, strategy="next")
    one, two = kit.allocator(ranges=[span]), kit.allocator(ranges=[span])
    first = await result(one.acquire("r"))
    await result(first.release())
    assert [101, 102] == [int(await result(ports.acquire("r"))) for ports in (two, one)]
    assert [103, 100] == numbers(await take(two, "r", 2))
    with pytest.raises(PortsExhausted):
        await result(one.acquire("r"))


async def test_next_passes_over(kit: Kit) -> None:
    """Held numbers are passed over, and who asks by number does not move the turn."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 109, strategy="next", exclude=[103])])
    await result(ports.acquire("r", port=101))
    await result(ports.acquire("r", port=108))
    assert [100, 102, 104] == numbers(await take(ports, "r", 3))


async def test_random(kit: Kit) -> None:
    """Each number comes once, and two managers hardly begin alike."""
    ports = kit.allocator(ranges=[PortRange("r", 20000, 29999, strategy="random", exclude=["20100-29899"])])
    held = numbers(await take(ports, "r", 20))
    assert 20 == len(set(held))
    assert sorted(held) != list(range(20000, 20020))  # one chance in 200 ** 19
    assert set(held) <= {*range(20000, 20100), *range(29900, 30000)}
    rest = numbers(await result(ports.acquire("r", count=180)))
    assert {*range(20000, 20100), *range(29900, 30000)} == {*held, *rest}


# -------------------------------------------------------------------- exclusion, band


async def test_excluded(kit: Kit) -> None:
    """Excluded numbers are never given, and refused by number."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 106, exclude=[100, "103-104", 106])])
    assert [101, 102, 105] == numbers(await result(ports.acquire("r", count=3)))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    with pytest.raises(ImpossibleRequest, match=r"^port: 103 is excluded from range 'r' \(100-106\)$"):
        await result(ports.acquire("r", port=103))
    with pytest.raises(ImpossibleRequest, match=r"^count: 4 .* has \(3\); left out are 4 excluded$"):
        await result(ports.acquire("r", count=4))


async def test_band(kit: Kit) -> None:
    """Numbers of the band come last, also within one ask."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 105, static_band=3)])
    assert 103 == int(await result(ports.acquire("r")))
    held = await result(ports.acquire("r", count=4))
    assert [104, 105, 100, 101] == numbers(held)
    await result(held[1].release())
    assert [105, 102] == numbers(await take(ports, "r", 2))


# -------------------------------------------------------------------- cooldown, limit


async def test_cooldown(kit: Kit) -> None:
    """A released port stays closed for the range's cooldown, also to who asks for it by number."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 101, cooldown=5)])
    first = await result(ports.acquire("r", owner="vm-1"))
    await result(first.release())
    assert {100: "cooling"} == kit.ports()
    assert 101 == int(await result(ports.acquire("r")))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    with pytest.raises(PortInUse, match=r"is cooling for another 5\.0 s, last held by .*, owner 'vm-1'"):
        await result(ports.acquire("r", port=100))
    kit.pass_time(5.1)
    again = await result(ports.acquire("r"))
    assert (100, True) == (again.number, again.fence > first.fence)


async def test_cooldown_at_the_end(kit: Kit) -> None:
    """Ports cool too when the allocator that held them is closed."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 101, cooldown=5)])
    await result(ports.acquire("r", count=2))
    await result(ports.close())
    assert ({100: "cooling", 101: "cooling"}, []) == (kit.ports(), kit.leases())
    kit.pass_time(5.1)
    assert {} == kit.ports()


async def test_limit(kit: Kit) -> None:
    """An owner has at most so many of a range on a host, over all managers; others have their own."""
    span = PortRange("r", 100, 109, limit=2)
    one, two = kit.allocator(ranges=[span]), kit.allocator(ranges=[span])
    first = await result(one.acquire("r", owner="vm-1"))
    await result(two.acquire("r", owner="vm-1", protocol="udp"))
    for ports, more in (
        (one, {}),
        (two, {"port": 109}),
        (two, {"port": 100}),
        (one, {"protocol": "udp"}),
        (two, {"dry_run": True}),
    ):
        with pytest.raises(PortsExhausted) as full:
            await result(ports.acquire("r", owner="vm-1", **more))
        expected = "Unable to find an unused port in range 'r' (100-109): owner 'vm-1' may hold at most 2 here"
        assert (expected, "limit", 2, "vm-1") == (
            str(full.value),
            full.value.why,
            full.value.limit,
            full.value.owner,
        )
    assert "vm-2" == (await result(two.acquire("r", owner="vm-2"))).owner
    assert "elsewhere" == (await result(two.acquire("r", owner="vm-1", host="elsewhere"))).host
    await result(first.release())
    assert 100 == int(await result(two.acquire("r", owner="vm-1")))


async def test_limit_in_one_ask(kit: Kit) -> None:
    """Who asks for more than the limit at once gets nothing, in one ask or in several."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 109, limit=2)])
    message = r"^Unable to find 3 unused ports in range 'r' \(100-109\): owner 'vm-1' may hold at most 2 here$"
    with pytest.raises(PortsExhausted, match=message):
        await result(ports.acquire("r", count=3, owner="vm-1"))
    with pytest.raises(PortsExhausted, match="at most 2 here"):
        await result(ports.acquire_many([PortRequest("r", owner="vm-1")] * 3))
    assert {} == kit.ports()
    assert 2 == len(await result(ports.acquire("r", count=2, owner="vm-1")))


async def test_limit_after_a_death(kit: Kit) -> None:
    """What an owner's dead manager held counts no longer once it cools."""
    span = PortRange("r", 100, 109, limit=1)
    dead, ports = kit.allocator(ranges=[span]), kit.allocator(ranges=[span], instance="alive")
    await result(dead.acquire("r", owner="vm-1"))
    kit.pass_time(31)
    assert {100: "cooling"} == kit.ports()
    assert 101 == int(await result(ports.acquire("r", owner="vm-1")))


# -------------------------------------------------------------------- protocols, blocks


async def test_both(kit: Kit) -> None:
    """A port of both takes its number in TCP and in UDP, and needs both to be free."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 103)])
    tcp = await result(ports.acquire("r"))
    udp = await result(ports.acquire("r", port=101, protocol="udp"))
    both = await result(ports.acquire("r", protocol="both"))
    assert (102, "both") == (both.number, both.protocol)
    assert [101, 103] == numbers(await take(ports, "r", 2))
    assert [100, 103] == numbers(await take(ports, "r", 2, protocol="udp"))
    with pytest.raises(PortInUse, match=r"^Port 102/both on host"):
        await result(ports.acquire("r", port=102, protocol="udp"))
    with pytest.raises(PortInUse, match=r"^Port 100/tcp on host|^Port 100/udp on host"):
        await result(ports.acquire("r", port=100, protocol="both"))
    for port in (tcp, udp, both):
        await result(port.release())
    assert 102 == int(await result(ports.acquire("r", protocol="both")))


@pytest.mark.parametrize("strategy", ["lowest", "random", "next"])
async def test_block(kit: Kit, strategy: Any) -> None:
    """A block is adjacent, ascends, begins at a multiple, and is found when there is only one place for it."""
    ports = kit.allocator(ranges=[PortRange("r", 101, 120, strategy=strategy)])
    for number in (103, 107, 113, 118):
        await result(ports.acquire("r", port=number))
    block = await result(ports.acquire("r", count=4, contiguous=True, align=4, owner="job"))
    assert [108, 109, 110, 111] == numbers(block)
    assert {"job"} == {port.owner for port in block}
    message = r"^Unable to find a block of 5 unused ports in range 'r' \(101-120\)$"
    with pytest.raises(PortsExhausted, match=message):
        await result(ports.acquire("r", count=5, contiguous=True))
    await result(block[0].release())
    assert 108 == int(await result(ports.acquire("r", align=4, port=108)))


async def test_block_never_possible(kit: Kit) -> None:
    """A block that finds no place even in an empty range is refused as impossible, also with patience."""
    ports = kit.allocator(ranges=[PortRange("r", 101, 108, exclude=[104])])
    with pytest.raises(ImpossibleRequest, match=r"^count: .*5 contiguous"):
        await result(ports.acquire("r", count=5, contiguous=True, wait=60))
    with pytest.raises(ImpossibleRequest, match=r"^count: .*2 contiguous .*multiple of 64"):
        await result(ports.acquire("r", count=2, contiguous=True, align=64, wait=60))
    assert [105, 106, 107, 108] == numbers(await result(ports.acquire("r", count=4, contiguous=True)))


async def test_aligned_single_ports(kit: Kit) -> None:
    """One port can be asked for at a multiple, for what comes in pairs."""
    ports = kit.allocator(ranges=[PortRange("rtp", 5001, 5006)])
    assert [5002, 5004, 5006] == numbers(await take(ports, "rtp", 3, align=2))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("rtp", align=2))
    assert 5001 == int(await result(ports.acquire("rtp")))


# -------------------------------------------------------------------- without a range


async def test_without_a_range(kit: Kit) -> None:
    """Any number can be claimed without a range, and is nobody else's then, in a range or not."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 102)], instance="manager")
    inside = await result(ports.acquire(None, port=100, owner="vm-1"))
    outside = await result(ports.acquire(None, port=65535, protocol="udp"))
    assert ((None, HOST), (None, 65535)) == ((inside.range, inside.host), (outside.range, outside.number))
    assert 101 == int(await result(ports.acquire("r")))
    with pytest.raises(PortInUse) as taken:
        await result(ports.acquire("r", port=100))
    expected = "Port 100/tcp on host 'kvm-07' is held by instance 'manager', owner 'vm-1'"
    assert expected == str(taken.value)
    with pytest.raises(PortInUse):
        await result(ports.acquire(None, port=65535, protocol="udp"))
    [host] = (await result(ports.status())).hosts
    assert [(100, None), (101, "r"), (65535, None)] == [(port.number, port.range) for port in host.ports]
    await result(inside.release())
    assert 100 == int(await result(ports.acquire("r")))


async def test_without_a_range_comes_back(kit: Kit) -> None:
    """Also after a restart such a port has no range."""
    first = kit.allocator(instance="manager")
    await result(first.acquire(None, port=9999))
    await result(first.detach())
    [port] = await result(kit.allocator(instance="manager").allocations())
    assert (9999, None) == (port.number, port.range)


# -------------------------------------------------------------------- the cluster's numbers

GATEWAY = PortRange("gateway", 102, 103, scope="cluster")
AROUND = PortRange("around", 100, 105)


async def test_cluster_scope(kit: Kit) -> None:
    """A number of the cluster is held once over all hosts, and says on which."""
    ports, other = (kit.allocator(ranges=[GATEWAY, AROUND], instance=name) for name in ("one", "two"))
    first = await result(ports.acquire("gateway", host="a", owner="vm-1"))
    second = await result(other.acquire("gateway", host="b"))
    assert [(102, "a"), (103, "b")] == [(port.number, port.host) for port in (first, second)]
    with pytest.raises(PortsExhausted, match=r"'gateway' \(102-103\)"):
        await result(other.acquire("gateway", host="c"))
    with pytest.raises(PortInUse, match=r"^Port 102/tcp on host .* is held by instance 'one', owner 'vm-1'"):
        await result(other.acquire("gateway", port=102, host="b"))
    assert ({102: "held", 103: "held"}, {}, {}) == (kit.ports(""), kit.ports("a"), kit.ports("b"))
    status = await result(ports.status())
    assert [("", [(102, "a"), (103, "b")])] == [(h.host, [(p.number, p.host) for p in h.ports]) for h in status.hosts]
    await result(first.release())
    await result(first.release())
    assert {103: "held"} == kit.ports("")
    third = await result(other.acquire("gateway", host="c"))
    assert (102, "c") == (third.number, third.host)


async def test_cluster_numbers_are_carved_out(kit: Kit) -> None:
    """A range of hosts that overlaps with one of the cluster never gives its numbers, whichever way it is asked."""
    ports = kit.allocator(ranges=[GATEWAY, AROUND])
    assert [100, 101, 104, 105] == numbers(await result(ports.acquire("around", count=4)))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("around"))
    with pytest.raises(ImpossibleRequest, match=r"^port: 102 of range 'around' .* belongs to range 'gateway'"):
        await result(ports.acquire("around", port=102))
    with pytest.raises(ImpossibleRequest, match="2 of ranges with scope 'cluster'"):
        await result(ports.acquire("around", count=5))
    with pytest.raises(ImpossibleRequest, match="3 contiguous"):
        await result(ports.acquire("around", count=3, contiguous=True))
    held = await result(ports.acquire(None, port=102))
    assert (None, HOST, {102: "held"}) == (held.range, held.host, kit.ports(""))
    assert 103 == int(await result(ports.acquire("gateway")))
    with pytest.raises(PortInUse):
        await result(ports.acquire(None, port=103, host="elsewhere"))


async def test_cluster_scope_comes_back(kit: Kit) -> None:
    """A manager that comes back under its name finds what it held of the cluster, with the host of each."""
    first = kit.allocator(ranges=[GATEWAY, AROUND], instance="manager")
    for name, host in (("gateway", "a"), ("gateway", "b"), ("around", "a")):
        await result(first.acquire(name, host=host))
    await result(first.detach())
    again = kit.allocator(ranges=[GATEWAY, AROUND], instance="manager")
    held = await result(again.allocations())
    expected = [("a", 100, "around"), ("a", 102, "gateway"), ("b", 103, "gateway")]
    assert expected == [(port.host, port.number, port.range) for port in held]
    for port in held:
        await result(port.release())
    assert ({}, {}, {}) == (kit.ports(""), kit.ports("a"), kit.ports("b"))


async def test_cluster_scope_is_lost(kit: Kit) -> None:
    """The lease on the cluster runs out like any other, and its ports cool for all hosts."""
    dead, ports = (kit.allocator(ranges=[GATEWAY]) for _ in range(2))
    lost = await result(dead.acquire("gateway", host="a"))
    kit.pass_time(31, "")
    assert {102: "cooling"} == kit.ports("")
    assert 103 == int(await result(ports.acquire("gateway", host="b")))
    with pytest.raises(LeaseLost, match="102/tcp"):
        await result(lost.release())
    kit.pass_time(15, "")
    assert {103: "held"} == kit.ports("")


async def test_cluster_limit(kit: Kit) -> None:
    """The limit of a range of the cluster counts over all hosts."""
    ports = kit.allocator(ranges=[PortRange("gateway", 100, 109, scope="cluster", limit=2)])
    for host in ("a", "b"):
        await result(ports.acquire("gateway", host=host, owner="vm-1"))
    with pytest.raises(PortsExhausted, match="at most 2 here"):
        await result(ports.acquire("gateway", host="c", owner="vm-1"))


async def test_a_host_called_cluster(kit: Kit) -> None:
    """A host may have the name of the cluster's space; its numbers are its own."""
    ports = kit.allocator(ranges=[GATEWAY, AROUND])
    held = [await result(ports.acquire(name, host="cluster")) for name in ("gateway", "around")]
    assert [("cluster", 102), ("cluster", 100)] == [(port.host, port.number) for port in held]
    assert ({102: "held"}, {100: "held"}) == (kit.ports(""), kit.ports("cluster"))


# -------------------------------------------------------------------- dry runs


def raw(kit: Kit) -> dict[bytes, Any]:
    """All that the server keeps, as it keeps it."""
    return {key: kit.store.client.dump(key) for key in sorted(kit.store.client.keys())}


async def test_dry_run(kit: Kit) -> None:
    """Such an allocation says what would be given; it is not held, and to release it does nothing."""
    ports = kit.allocator()
    would = await result(ports.acquire("backup", owner="vm-1", labels={"job": "nightly"}, dry_run=True))
    assert (10809, HOST, "tcp", "backup") == (would.number, would.host, would.protocol, would.range)
    assert ("vm-1", {"job": "nightly"}, False) == (would.owner, would.labels, would.valid)
    assert ({}, [], []) == (kit.ports(), kit.leases(), await result(ports.allocations()))
    await result(would.release())
    assert 10809 == int(await result(ports.acquire("backup")))
    await result(would.release())
    await result(ports.release(would))
    assert {10809: "held"} == kit.ports()


@pytest.mark.parametrize("store", ["fakeredis", "valkey", "redis7"], indirect=True)
async def test_dry_run_writes_nothing(kit: Kit) -> None:
    """Not a byte of the store is changed, whatever is asked for."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 110, strategy="next", limit=3, cooldown=5), GATEWAY])
    dead = kit.allocator(ranges=[PortRange("r", 100, 110, quarantine=1)])
    await result(dead.acquire("r"))
    held = await result(ports.acquire("r", count=2))
    await result(held[0].release())
    await result(ports.acquire("r", port=110))
    ports._probe = Outside(105)
    before = raw(kit)
    for ask, expected in (
        ({}, [106]),
        ({"protocol": "both"}, [106]),
        ({"count": 3}, [106, 107, 108]),
        ({"count": 2, "contiguous": True, "align": 2}, [106, 107]),
        ({"port": 109}, [109]),
        ({"host": "a", "wait": 60}, [100]),
    ):
        would = await result(ports.acquire("r", owner="vm-1", dry_run=True, **ask))
        assert expected == numbers(would), ask
    assert [102] == numbers(await result(ports.acquire("gateway", dry_run=True)))
    assert [99] == numbers(await result(ports.acquire(None, port=99, dry_run=True)))
    for number in (110, 105):
        with pytest.raises(PortInUse):
            await result(ports.acquire("r", port=number, dry_run=True))
    assert before == raw(kit)


async def test_dry_run_as_it_will_be(kit: Kit) -> None:
    """What a dead manager held, and nobody has reclaimed yet, would be free."""
    dead, ports = (kit.allocator(ranges=[PortRange("r", 100, 100, quarantine=0)]) for _ in range(2))
    await result(dead.acquire("r"))
    kit.pass_time(29)
    kit.store.clock.advance(2)
    if kit.store.name != "memory":
        kit.pass_time(31)  # a silence before it: the holder might have been cut off
    assert 100 == int(await result(ports.acquire("r", dry_run=True)))


async def test_dry_run_waits_for_nothing(kit: Kit) -> None:
    """However much patience is given, a dry run answers at once."""
    outside = Outside(10810)
    ports = kit.allocator(probe=outside)
    await result(ports.acquire("backup"))
    for ask in ({}, {"port": 10809}, {"port": 10810}):
        with pytest.raises((PortsExhausted, PortInUse)):
            await finished(begin(ports.acquire, "backup", wait=60, dry_run=True, **ask))
    assert 0 == kit.waiting()


async def test_dry_run_and_the_queue(kit: Kit) -> None:
    """What others wait for would not be given."""
    ports, waiting = kit.allocator(ranges=[PortRange("r", 100, 101)]), kit.allocator(ranges=[PortRange("r", 100, 101)])
    held = await result(ports.acquire("r", count=2))
    pair = begin(waiting.acquire, "r", count=2, wait=60)
    await eventually(1, kit.waiting)
    await result(held[0].release())
    with pytest.raises(PortsExhausted, match="others wait for them already"):
        await result(ports.acquire("r", dry_run=True))
    await result(held[1].release())
    assert [100, 101] == numbers(await finished(pair))


async def test_dry_run_of_several(kit: Kit) -> None:
    """All or nothing holds for a dry run too."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 102)])
    held = await result(ports.acquire("r"))
    would = await result(ports.acquire("r", count=2, dry_run=True))
    assert ([101, 102], [False, False]) == (numbers(would), [port.valid for port in would])
    with pytest.raises(PortsExhausted, match="3 unused ports"):
        await result(ports.acquire("r", count=3, dry_run=True))
    with pytest.raises(ImpossibleRequest):
        await result(ports.acquire("r", count=4, dry_run=True))
    with pytest.raises(PortInUse):
        await result(ports.acquire("r", port=held.number, dry_run=True))


async def test_dry_run_of_a_closed_allocator(kit: Kit) -> None:
    """An end is an end."""
    ports = kit.allocator()
    await result(ports.close())
    with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
        await result(ports.acquire("backup", dry_run=True))


# -------------------------------------------------------------------- ranges that change


async def test_a_range_that_shrinks(kit: Kit) -> None:
    """What is held of a range that was made smaller stays held, is shown as outside, and can be released."""
    old = kit.allocator(ranges=[PortRange("r", 100, 105)], instance="old")
    new = kit.allocator(ranges=[PortRange("r", 102, 103)], instance="new")
    held = await result(old.acquire("r", count=3))
    assert [103] == numbers(await take(new, "r", 1))
    with pytest.raises(PortsExhausted, match=r"\(102-103\)"):
        await result(new.acquire("r"))
    status = await result(new.status())
    assert [(100, True), (101, True), (102, False), (103, False)] == [
        (port.number, port.outside) for port in status.hosts[0].ports
    ]
    [counted] = status.ranges[0].hosts
    assert (2, 0, 2) == (counted.held, counted.free, counted.outside)
    with pytest.raises(ImpossibleRequest):
        await result(new.acquire("r", port=101))
    with pytest.raises(PortInUse, match="held by instance 'old'"):
        await result(new.acquire(None, port=101))
    for port in held:
        await result(port.release())
    assert {103: "held"} == kit.ports()


async def test_a_range_that_moves_while_nobody_looks(kit: Kit) -> None:
    """A manager that comes back with other ranges finds what it held, and can release it."""
    first = kit.allocator(ranges=[PortRange("r", 100, 105), PortRange("gone", 200, 205)], instance="manager")
    for name in ("r", "gone"):
        await result(first.acquire(name, owner=name))
    await result(first.detach())
    again = kit.allocator(ranges=[PortRange("r", 300, 305)], instance="manager")
    held = await result(again.allocations())
    assert [(100, "r", True), (200, "gone", True)] == [(port.number, port.range, port.valid) for port in held]
    assert 300 == int(await result(again.acquire("r")))
    for port in held:
        await result(port.release())
    assert {300: "held"} == kit.ports()


async def test_a_range_that_becomes_the_clusters(kit: Kit) -> None:
    """Ports that were held on a host stay so when their range becomes one of the cluster, and can be released."""
    first = kit.allocator(ranges=[PortRange("r", 100, 101)], instance="manager")
    await result(first.acquire("r"))
    await result(first.detach())
    again = kit.allocator(ranges=[PortRange("r", 100, 101, scope="cluster")], instance="manager")
    [port] = await result(again.allocations())
    assert (HOST, 100, True) == (port.host, port.number, port.valid)
    await result(port.release())
    assert ({}, {}) == (kit.ports(), kit.ports(""))


async def test_a_limit_that_shrinks(kit: Kit) -> None:
    """A lower limit takes nothing away, and holds from the next ask on."""
    old = kit.allocator(ranges=[PortRange("r", 100, 109, limit=3)])
    new = kit.allocator(ranges=[PortRange("r", 100, 109, limit=1)])
    held = await result(old.acquire("r", count=3, owner="vm-1"))
    for port in held:
        with pytest.raises(PortsExhausted, match="at most 1 here"):
            await result(new.acquire("r", owner="vm-1"))
        await result(port.release())
    assert 100 == int(await result(new.acquire("r", owner="vm-1")))


# -------------------------------------------------------------------- never and now


async def test_never_possible_is_said_at_once(kit: Kit) -> None:
    """What can never be had is refused before anything is sent, with patience or without."""
    flaky = kit.flaky()
    ports = kit.allocator(backend=flaky)
    for ask in ({"count": 3}, {"port": 1}, {"count": 2, "contiguous": True, "align": 2}, {"align": 7919}):
        for more in ({}, {"wait": 60}, {"dry_run": True}):
            with pytest.raises(ImpossibleRequest, match=r"'backup' \(10809-10810\)"):
                await result(ports.acquire("backup", **ask, **more))
    with pytest.raises(ConfigurationError):
        await result(ports.acquire("backup", port=10809, count=2))
    assert [] == flaky.begun


async def test_full_now(kit: Kit) -> None:
    """What cannot be had now is told with what was asked for."""
    ports = kit.allocator()
    await result(ports.acquire("backup"))
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("backup", count=2, contiguous=True))
    told = full.value
    assert ("backup", 10809, 10810, 2, True) == (told.range, told.first, told.last, told.count, told.contiguous)
    assert ("taken", None, 0.0) == (told.why, told.limit, told.waited)
