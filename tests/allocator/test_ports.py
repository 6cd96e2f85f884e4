"""Acquire, release, look: both kinds of allocators on each store."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

import pytest
from allocator.kit import BACKUP, HOST, result

from clusterports import ImpossibleRequest, LeaseLost, PortInUse, PortRange, PortsExhausted

if TYPE_CHECKING:
    from allocator.kit import Kit


async def test_the_main_case(kit: Kit) -> None:
    """Of two ports the lowest is given first, an explicit one only when free, and none when none is left."""
    ports = kit.allocator(instance="vm-host")
    first = await result(ports.acquire("backup", owner="vm-1"))
    assert 10809 == first.number

    with pytest.raises(PortInUse) as taken:
        await result(ports.acquire("backup", port=10809, owner="vm-2"))
    expected = "Port 10809/tcp on host 'kvm-07' is held by instance 'vm-host', owner 'vm-1' (range 'backup')"
    assert expected == str(taken.value)
    assert (first.fence, "vm-1") == (taken.value.holder.fence, taken.value.holder.owner)

    second = await result(ports.acquire("backup", owner="vm-2"))
    assert 10810 == second.number

    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("backup", owner="vm-3"))
    assert "Unable to find an unused port in range 'backup' (10809-10810)" == str(full.value)
    assert ("backup", 10809, 10810, 1) == (full.value.range, full.value.first, full.value.last, full.value.count)

    await result(first.release())
    again = await result(ports.acquire("backup", owner="vm-3"))
    assert (10809, True) == (again.number, again.fence > second.fence)


async def test_release_twice(kit: Kit) -> None:
    """The second release does nothing, also when the port is another's by then."""
    ports, others = kit.allocator(), kit.allocator()
    port = await result(ports.acquire("backup"))
    await result(port.release())
    theirs = await result(others.acquire("backup"))
    await result(port.release())
    await result(ports.release(port))
    assert (port.number, {10809: "held"}) == (theirs.number, kit.ports())


async def test_released_is_not_valid(kit: Kit) -> None:
    """A port is valid from the acquire to the release."""
    ports = kit.allocator()
    port = await result(ports.acquire("backup"))
    before = port.valid
    await result(port.release())
    assert (True, False) == (before, port.valid)


async def test_stale_release(kit: Kit) -> None:
    """Who let his lease run out frees nothing: not the port that another got, and is told what he lost."""
    slow, other = kit.allocator(instance="slow"), kit.allocator(instance="other")
    lost = await result(slow.acquire("backup", owner="vm-1"))
    kit.pass_time(30 + 15 + 1)
    theirs = await result(other.acquire("backup"))
    assert lost.number == theirs.number

    with pytest.raises(LeaseLost, match=r"instance 'slow' on host 'kvm-07' is lost.*ports: 10809/tcp") as told:
        await result(lost.release())
    assert ([lost], "revoked") == (told.value.allocations, told.value.reason)
    assert (False, {10809: "held"}) == (lost.valid, kit.ports())
    await result(theirs.release())
    assert {} == kit.ports()


async def test_lowest_free(kit: Kit) -> None:
    """After a release in the middle the next pick is there."""
    ports = kit.allocator(ranges=[PortRange("display", 5901, 5910)])
    held = [await result(ports.acquire("display")) for _ in range(3)]
    assert [5901, 5902, 5903] == [int(port) for port in held]
    await result(held[1].release())
    assert [5902, 5904] == [int(await result(ports.acquire("display"))) for _ in range(2)]


async def test_all_of_a_range(kit: Kit) -> None:
    """A range gives each of its numbers once, then nothing, and after a release exactly that number."""
    ports = kit.allocator(ranges=[PortRange("r", 10000, 10200)])
    held = {int(port): port for port in [await result(ports.acquire("r")) for _ in range(201)]}
    assert list(range(10000, 10201)) == list(held)
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    await result(held[10005].release())
    assert 10005 == int(await result(ports.acquire("r")))


async def test_several_at_once(kit: Kit) -> None:
    """Several ports come as a list, all or none of them."""
    ports = kit.allocator(ranges=[PortRange("r", 12000, 12015)])
    held = await result(ports.acquire("r", count=13, owner="job"))
    assert list(range(12000, 12013)) == [int(port) for port in held]
    assert sorted({port.fence for port in held}) == [port.fence for port in held]
    with pytest.raises(PortsExhausted, match=r"^Unable to find 4 unused ports in range 'r' \(12000-12015\)$"):
        await result(ports.acquire("r", count=4))
    assert held == await result(ports.allocations())
    with pytest.raises(ImpossibleRequest, match=r"count: 17 .*'r' \(12000-12015\).*16"):
        await result(ports.acquire("r", count=17))
    await result(held[5].release())
    assert [12005, 12013, 12014, 12015] == [int(port) for port in await result(ports.acquire("r", count=4))]


async def test_protocols(kit: Kit) -> None:
    """tcp and udp each have all the numbers."""
    ports = kit.allocator()
    tcp = [await result(ports.acquire("backup")) for _ in range(2)]
    udp = await result(ports.acquire("backup", protocol="udp"))
    assert [(10809, "tcp"), (10810, "tcp"), (10809, "udp")] == [(p.number, p.protocol) for p in (*tcp, udp)]
    await result(udp.release())
    assert {10809: "held", 10810: "held"} == kit.ports()


async def test_hosts(kit: Kit) -> None:
    """Each host has all the numbers, and one manager serves many hosts."""
    ports = kit.allocator(ranges=[PortRange("r", 10, 20)])
    held = [await result(ports.acquire("r", host=host)) for host in ("a", "b") for _ in range(11)]
    assert 22 == len({(port.host, port.number) for port in held})
    for host in ("a", "b"):
        with pytest.raises(PortsExhausted):
            await result(ports.acquire("r", host=host))
    assert HOST == (await result(ports.acquire("r"))).host
    await result(held[0].release())
    assert (0, 11) == (len([n for n in kit.ports("a") if n == 10]), len(kit.ports("b")))


async def test_explicit(kit: Kit) -> None:
    """Both ends of a range can be asked for by number, and nothing outside; a pick passes over what is held."""
    ports = kit.allocator(ranges=[PortRange("nodes", 30000, 32767)])
    assert [30000, 32767] == [int(await result(ports.acquire("nodes", port=n))) for n in (30000, 32767)]
    for number in (29999, 32768, -2, 0, 70000):
        with pytest.raises(ImpossibleRequest, match=rf"^port: {number} is not in range 'nodes' \(30000-32767\)$"):
            await result(ports.acquire("nodes", port=number))
    assert 30001 == int(await result(ports.acquire("nodes")))
    assert [30000, 30001, 32767] == [int(port) for port in await result(ports.allocations())]


async def test_overlapping_ranges(kit: Kit) -> None:
    """Ranges that overlap never give one number twice."""
    ports = kit.allocator(ranges=[PortRange("a", 100, 104), PortRange("b", 102, 106)])
    held = [int(await result(ports.acquire(name))) for name in ("a", "b", "a", "b", "a", "b")]
    assert [100, 102, 101, 103, 104, 105] == held
    with pytest.raises(PortsExhausted, match=r"'a' \(100-104\)"):
        await result(ports.acquire("a"))
    with pytest.raises(PortInUse, match=r"\(range 'a'\)$"):
        await result(ports.acquire("b", port=104))


async def test_two_managers(kit: Kit) -> None:
    """Two managers on one host share a range without sharing a port; one is told who has what it asked for."""
    one, two = kit.allocator(instance="one"), kit.allocator(instance="two")
    await result(one.acquire("backup"))
    with pytest.raises(PortInUse, match="held by instance 'one'"):
        await result(two.acquire("backup", port=10809))
    assert 10810 == int(await result(two.acquire("backup")))
    held = [[int(port) for port in await result(ports.allocations())] for ports in (one, two)]
    assert [[10809], [10810]] == held


async def test_cooling(kit: Kit) -> None:
    """A port whose holder died stays closed for its quarantine, to picks and to requests by number, then is free."""
    dead, ports = kit.allocator(instance="dead"), kit.allocator(instance="alive")
    await result(dead.acquire("backup", owner="vm-1"))
    kit.pass_time(31)
    assert {10809: "cooling"} == kit.ports()
    assert 10810 == int(await result(ports.acquire("backup")))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("backup"))
    with pytest.raises(PortInUse, match=r"is cooling for another 14\.0 s, last held by instance 'dead', owner 'vm-1'"):
        await result(ports.acquire("backup", port=10809))


async def test_what_is_kept(kit: Kit) -> None:
    """Owner, labels and time are those of the acquire, in the allocation and in the status."""
    ports = kit.allocator(instance="manager", virtual=False)
    labels = {"job": "nightly", "été": "\x1b[31m"}
    before = datetime.now(UTC)
    port = await result(ports.acquire("backup", owner="vm-1", labels=labels))
    assert ("backup", HOST, "tcp", "vm-1", labels) == (port.range, port.host, port.protocol, port.owner, port.labels)
    assert before - timedelta(seconds=1) <= port.acquired_at <= datetime.now(UTC)
    assert 0 < port.expires_in <= 27

    status = (await result(ports.status())).to_dict()
    (host,) = status["hosts"]
    (lease,) = host["leases"]
    (entry,) = host["ports"]
    assert (HOST, "manager", "live", 1) == (host["host"], lease["instance"], lease["state"], lease["ports"])
    assert 0 < lease["expires_in_s"] <= 30
    assert abs(datetime.fromisoformat(entry.pop("since")) - port.acquired_at) < timedelta(seconds=5)
    assert entry == {
        "number": 10809,
        "protocol": "tcp",
        "range": "backup",
        "state": "held",
        "owner": "vm-1",
        "labels": labels,
        "lease": port.lease,
        "instance": "manager",
        "fence": port.fence,
        "free_in_s": None,
        "host": HOST,
        "outside": False,
    }
    (range,) = status["ranges"]
    (counts,) = range["hosts"]
    expected = {"host": HOST, "held": 1, "cooling": 0, "foreign": 0, "free": 1}
    assert ("backup", expected) == (range["name"], {key: counts[key] for key in expected})


async def test_status_changes_nothing(kit: Kit) -> None:
    """A look at the cluster opens no lease, and may be at one host or one range."""
    ports = kit.allocator(ranges=[BACKUP, PortRange("display", 5900, 5901)])
    empty = await result(ports.status())
    assert ((), [], []) == (empty.hosts, kit.leases(), await result(ports.allocations()))

    for host, name in (("a", "backup"), ("b", "display")):
        await result(ports.acquire(name, host=host))
    other = kit.allocator(ranges=[BACKUP, PortRange("display", 5900, 5901)])

    async def seen(**only: str) -> dict[str, list[int]]:
        status = await result(other.status(**only))
        return {host.host: [port.number for port in host.ports] for host in status.hosts}

    assert {"a": [10809], "b": [5900]} == await seen()
    assert {"a": [10809]} == await seen(host="a")
    assert {"a": [10809], "b": []} == await seen(range="backup")
    assert 1 == len(kit.leases("a"))


async def test_context_managers(kit: Kit) -> None:
    """At the end of its block a port is free, and at the end of the allocator's block all are; errors too end it."""
    seen = []

    async def block() -> None:
        if kit.kind == "sync":
            with kit.allocator() as ports:
                with ports.acquire("backup"):
                    seen.append(kit.ports())
                seen.append(kit.ports())
                ports.acquire("backup", count=2)
                seen.append(kit.ports())
                raise ZeroDivisionError
        else:
            async with kit.allocator() as ports:
                async with await ports.acquire("backup"):
                    seen.append(kit.ports())
                seen.append(kit.ports())
                await ports.acquire("backup", count=2)
                seen.append(kit.ports())
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await block()
    assert [{10809: "held"}, {}, {10809: "held", 10810: "held"}] == seen
    assert ({}, []) == (kit.ports(), kit.leases())


async def test_hostile_names(kit: Kit) -> None:
    """Names that look like keys, patterns or commands stay names, each its own."""
    hosts = ["}x{", "*", "host:kvm", "a/b", "été", "kvm-0?", "%2A", "{kvm-07}"]
    for instance in ('"', "a b", "*}"):
        ports = kit.allocator(instance=instance)
        held = [await result(ports.acquire("backup", host=host, owner="\n\x1b[0m" * 10)) for host in hosts]
        assert sorted(hosts) == [port.host for port in await result(ports.allocations())]
        assert {10809} == {port.number for port in held}
        status = await result(ports.status())
        assert sorted(hosts) == [host.host for host in status.hosts]
        assert {instance} == {lease.instance for host in status.hosts for lease in host.leases}
        await result(ports.close())


async def test_texts(kit: Kit) -> None:
    """What is printed of an allocator says which it is."""
    ports = kit.allocator(instance="manager")
    kind = "PortAllocator" if kit.kind == "sync" else "AsyncPortAllocator"
    store = "memory" if kit.store.name == "memory" else "redis"
    assert f"<{kind} {store} host='kvm-07' instance='manager'>" == repr(ports)
