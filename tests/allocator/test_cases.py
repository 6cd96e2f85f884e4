"""What users of the systems that do this job today rely on, under those systems' names.

Numbers and counts are those of the systems' own tests and change notes.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import socket
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import HOST, Outside, listener, numbers, result, serve_in_pairs, serve_in_process, unused

from clusterports import (
    ConfigurationError,
    ImpossibleRequest,
    PortInUse,
    PortRange,
    PortRequest,
    PortsExhausted,
    Settings,
)
from clusterports._names import host_space
from clusterports.abc import Port, Released

if TYPE_CHECKING:
    from allocator.kit import Kit

three_stores = pytest.mark.parametrize("store", ["memory", "fakeredis", "valkey"], indirect=True)


async def take(ports: Any, name: str, count: int, **arguments: Any) -> list[int]:
    """The numbers of so many single asks."""
    return [int(await result(ports.acquire(name, **arguments))) for _ in range(count)]


async def counts(ports: Any, host: str = HOST) -> tuple[int, int]:
    """How many numbers of the only range are held on a host, and how many are free."""
    [only] = (await result(ports.status(host))).ranges
    [here] = only.hosts
    return here.held, here.free


# -------------------------------------------------------------------- libvirt


@three_stores
async def test_libvirt_busy_ports(kit: Kit) -> None:
    """Ports that are busy are passed over, and the end of the range is told with its bounds."""
    ports = kit.allocator(ranges=[PortRange("display", 5900, 5909)], probe=Outside(5900, 5904, 5905, 5906))
    assert [5901, 5902, 5903, 5907, 5908, 5909] == await take(ports, "display", 6)
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("display"))
    assert "Unable to find an unused port in range 'display' (5900-5909)" == str(full.value)


@pytest.mark.parametrize("ipv6", [True, False])
async def test_libvirt_busy_families(memory_kit: Kit, ipv6: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port is busy when it is so on IPv4 or on IPv6 alone; a machine without IPv6 is judged by IPv4."""
    first = unused(10)
    busy = {0: "46", 4: "4", 5: "6", 6: "6"} if ipv6 else dict.fromkeys((0, 4, 5, 6), "4")
    families = {"4": socket.AF_INET, "6": socket.AF_INET6}
    if not ipv6:
        monkeypatch.setattr(socket, "has_ipv6", False)
    with ExitStack() as opened:
        for index, on in busy.items():
            for family in on:
                opened.enter_context(listener(first + index, families[family]))
        ports = memory_kit.allocator(host=socket.gethostname(), ranges=[PortRange("display", first, first + 9)])
        assert [first + index for index in (1, 2, 3, 7, 8, 9)] == await take(ports, "display", 6)
        with pytest.raises(PortsExhausted, match=rf"'display' \({first}-{first + 9}\)$"):
            await result(ports.acquire("display"))


@three_stores
async def test_libvirt_lowest_after_a_release(kit: Kit) -> None:
    """What was released is the next to be given, when it is the lowest."""
    ports = kit.allocator(ranges=[PortRange("display", 5900, 5910)], probe=Outside(5900))
    held = [await result(ports.acquire("display")) for _ in range(3)]
    assert [5901, 5902, 5903] == numbers(held)
    await result(held[1].release())
    assert 5902 == int(await result(ports.acquire("display")))


@three_stores
async def test_libvirt_claimed_twice(kit: Kit) -> None:
    """A port is claimed once, passed over by who asks for any, and may be released twice."""
    ports = kit.allocator(ranges=[PortRange("display", 5901, 5910)])
    claimed = await result(ports.acquire("display", port=5901))
    with pytest.raises(PortInUse):
        await result(ports.acquire("display", port=5901))
    assert 5902 == int(await result(ports.acquire("display")))
    await result(claimed.release())
    await result(claimed.release())
    assert {5902: "held"} == kit.ports()


def test_libvirt_backup_range() -> None:
    """The range of backups has libvirt's bounds, until it is configured."""
    default = Settings().port_ranges()["backup"]
    mine = Settings(ranges={"backup": {"first": 20000, "last": 20010}}).port_ranges()["backup"]
    assert ((10809, 10872), (20000, 20010)) == ((default.first, default.last), (mine.first, mine.last))


@pytest.mark.parametrize(
    ("first", "last", "bad"),
    [(20010, 20000, "first"), (0, 20000, "first"), (20000, 65536, "last")],
    ids=["min above max", "min 0", "max above 65535"],
)
def test_libvirt_bad_range(first: int, last: int, bad: str) -> None:
    """A range that is none is refused at the start, with the key and the value."""
    message = rf"ranges\.backup\.{bad}: must be .*, got {first if bad == 'first' else last}$"
    with pytest.raises(ConfigurationError, match=message):
        Settings(ranges={"backup": {"first": first, "last": last}})
    with pytest.raises(ConfigurationError, match=message):
        PortRange("backup", first, last)


@three_stores
async def test_libvirt_backups_of_three(kit: Kit) -> None:
    """Two ports serve three machines one after the other."""
    ports = kit.allocator(ranges=[PortRange("backup", 10809, 10810)])
    first = await result(ports.acquire("backup", owner="vm1"))
    assert 10809 == first.number
    with pytest.raises(PortInUse, match=r"^Port 10809/tcp on host 'kvm-07' is held by .*, owner 'vm1'"):
        await result(ports.acquire("backup", port=10809, owner="vm2"))
    assert 10810 == int(await result(ports.acquire("backup", owner="vm2")))
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("backup", owner="vm3"))
    assert "Unable to find an unused port in range 'backup' (10809-10810)" == str(full.value)
    await result(first.release())
    assert 10809 == int(await result(ports.acquire("backup", owner="vm3")))


# -------------------------------------------------------------------- Kubernetes


@three_stores
async def test_kubernetes_all_of_a_range(kit: Kit) -> None:
    """Each number is given once and counted, the next ask is refused, and what is released is given again."""
    ports = kit.allocator(ranges=[PortRange("nodes", 10000, 10200)])
    held: dict[int, Any] = {}
    every = 20 if kit.store.name == "fakeredis" else 1  # an emulator is slow
    for given in range(1, 202):
        port = await result(ports.acquire("nodes"))
        held[port.number] = port
        if given % every == 0:
            assert (given, 201 - given) == await counts(ports)
    assert set(range(10000, 10201)) == set(held)
    with pytest.raises(PortsExhausted, match=r"\(10000-10200\)$"):
        await result(ports.acquire("nodes"))
    assert (201, 0) == await counts(ports)

    await result(held[10005].release())
    assert (200, 1) == await counts(ports)
    assert 10005 == int(await result(ports.acquire("nodes")))
    assert (201, 0) == await counts(ports)


@three_stores
async def test_kubernetes_not_in_the_range(kit: Kit) -> None:
    """What lies outside is refused with the range, what is held as being in use; nothing is counted for either."""
    ports = kit.allocator(ranges=[PortRange("nodes", 10000, 10200)])
    held = await result(ports.acquire("nodes", count=201))
    await result(held[5].release())
    assert (200, 1) == await counts(ports)
    for number in (1, 20000, 10201):
        with pytest.raises(ImpossibleRequest, match=rf"^port: {number} is not in range 'nodes' \(10000-10200\)$"):
            await result(ports.acquire("nodes", port=number))
    with pytest.raises(PortInUse, match=r"^Port 10001/tcp on host 'kvm-07' is held"):
        await result(ports.acquire("nodes", port=10001))
    assert (200, 1) == await counts(ports)


@three_stores
async def test_kubernetes_both_ends(kit: Kit) -> None:
    """The first and the last number can be had, and those beside them can not."""
    ports = kit.allocator(ranges=[PortRange("nodes", 30000, 32767)])
    assert [30000, 32767] == [int(await result(ports.acquire("nodes", port=number))) for number in (30000, 32767)]
    for number in (29999, 32768, -2):
        with pytest.raises(ImpossibleRequest, match=rf"^port: {number} is not in range 'nodes' \(30000-32767\)$"):
            await result(ports.acquire("nodes", port=number))


@three_stores
@pytest.mark.parametrize("strategy", ["lowest", "random", "next"])
async def test_kubernetes_static_band(kit: Kit, strategy: Any) -> None:
    """Nobody who asks for any port gets one of the band while there is another, so all of it can be claimed."""
    ports = kit.allocator(ranges=[PortRange("nodes", 30000, 30128, static_band=16, strategy=strategy)])
    assert set(range(30016, 30129)) == set(await take(ports, "nodes", 113))
    for number in range(30000, 30016):
        assert number == int(await result(ports.acquire("nodes", port=number)))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("nodes"))


@three_stores
@pytest.mark.parametrize("strategy", ["lowest", "random", "next"])
async def test_kubernetes_band_as_a_fallback(kit: Kit, strategy: Any) -> None:
    """When the rest is full, the band is used."""
    ports = kit.allocator(ranges=[PortRange("nodes", 30000, 30127, static_band=16, strategy=strategy)])
    assert set(range(30016, 30128)) == set(await take(ports, "nodes", 112))
    assert int(await result(ports.acquire("nodes"))) in range(30000, 30016)


@three_stores
async def test_kubernetes_dry_run(kit: Kit) -> None:
    """A dry run says what would be, may be repeated, and changes nothing."""
    ports = kit.allocator(ranges=[PortRange("nodes", 10000, 10200)])
    for number in (10000, 10010, 10020):
        await result(ports.acquire("nodes", port=number))
    before = kit.view()
    for _ in range(2):
        with pytest.raises(PortInUse):
            await result(ports.acquire("nodes", port=10000, dry_run=True))
        assert 10030 == int(await result(ports.acquire("nodes", port=10030, dry_run=True)))
        assert 10001 == int(await result(ports.acquire("nodes", dry_run=True)))
    assert (before, (3, 198)) == (kit.view(), await counts(ports))
    assert 10030 == int(await result(ports.acquire("nodes", port=10030)))


async def test_kubernetes_three_processes(kind: str, valkey: Any) -> None:
    """Three processes, each with 1,200 asks for two ports, five at a time: 7,200 numbers, none of them twice."""
    span = PortRange("r", 20000, 27199)
    with ProcessPoolExecutor(3, multiprocessing.get_context("spawn")) as pool:
        loop = asyncio.get_running_loop()
        served = [loop.run_in_executor(pool, serve_in_process, kind, valkey.url, span, 1200) for _ in range(3)]
        given = [number for numbers in await asyncio.gather(*served) for number in numbers]
    assert list(range(20000, 27200)) == sorted(given)


@pytest.mark.parametrize(("store", "asks"), [("memory", 1200), ("fakeredis", 50)], indirect=["store"])
async def test_kubernetes_three_managers(kit: Kit, asks: int) -> None:
    """The same of three managers in one process."""
    span = PortRange("r", 20000, 20000 + 3 * asks * 2 - 1)
    managers = [kit.allocator(ranges=[span]) for _ in range(3)]
    served = await asyncio.gather(*(serve_in_pairs(manager, asks) for manager in managers))
    assert list(range(20000, span.last + 1)) == sorted(number for numbers in served for number in numbers)


# -------------------------------------------------------------------- Nomad


@three_stores
async def test_nomad_excluded(kit: Kit) -> None:
    """Of a range that excludes all but two ports, these two can be had."""
    ports = kit.allocator(ranges=[PortRange("dynamic", 20000, 32000, exclude=["20000-31998"])])
    assert [31999, 32000] == numbers(await result(ports.acquire("dynamic", count=2)))
    with pytest.raises(PortsExhausted, match=r"\(20000-32000\)$"):
        await result(ports.acquire("dynamic"))
    for number in (20000, 31998):
        with pytest.raises(ImpossibleRequest, match=rf"^port: {number} is excluded from range 'dynamic'"):
            await result(ports.acquire("dynamic", port=number))


@three_stores
async def test_nomad_two_of_one(kit: Kit) -> None:
    """Of a range of one port one can be had; who asks for two has none afterwards."""
    ports = kit.allocator(ranges=[PortRange("dynamic", 20000, 20000)])
    with pytest.raises(ImpossibleRequest, match=r"^count: 2 .* 'dynamic' \(20000-20000\)"):
        await result(ports.acquire("dynamic", count=2))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire_many([PortRequest("dynamic"), PortRequest("dynamic")]))
    assert {} == kit.ports()
    assert [20000] == await take(ports, "dynamic", 1)


# -------------------------------------------------------------------- Agones


@three_stores
async def test_agones_two_ranges(kit: Kit) -> None:
    """One request takes ports of two ranges, all of them or none."""
    ports = kit.allocator(ranges=[PortRange("default", 10, 50), PortRange("other", 51, 100)])
    held = await result(ports.acquire_many([PortRequest("default"), PortRequest("other", count=49)]))
    assert [10, *range(51, 100)] == numbers(held)
    assert {"default", "other"} == {port.range for port in held}
    with pytest.raises(PortsExhausted, match=r"2 unused ports in range 'other' \(51-100\)"):
        await result(ports.acquire_many([PortRequest("default"), PortRequest("other", count=2)]))
    assert set(numbers(held)) == set(kit.ports())
    rest = await result(ports.acquire_many([PortRequest("default"), PortRequest("other")]))
    assert [11, 100] == numbers(rest)


@three_stores
async def test_agones_two_hosts(kit: Kit) -> None:
    """Eleven numbers on two hosts are twenty-two ports, each number at most once on a host."""
    ports = kit.allocator(ranges=[PortRange("default", 10, 20)])
    held = [await result(ports.acquire("default", host=host)) for _ in range(11) for host in ("a", "b")]
    assert {(host, number) for host in ("a", "b") for number in range(10, 21)} == {(p.host, p.number) for p in held}
    for host in ("a", "b"):
        with pytest.raises(PortsExhausted):
            await result(ports.acquire("default", host=host))


@three_stores
async def test_agones_five_threads(kit: Kit) -> None:
    """Of five times ten asks on two hosts 22 are served and 28 find nothing, whatever comes first."""
    ports = kit.allocator(ranges=[PortRange("default", 10, 20)])

    async def ask() -> list[tuple[str, int] | None]:
        got: list[tuple[str, int] | None] = []
        for _ in range(10):
            for host in ("a", "b"):
                try:
                    port = await result(ports.acquire("default", host=host))
                except PortsExhausted:
                    continue
                got.append((port.host, port.number))
                break
            else:
                got.append(None)
        return got

    if kit.kind == "sync":
        outcomes = await asyncio.gather(*(asyncio.to_thread(asyncio.run, ask()) for _ in range(5)))
    else:
        outcomes = await asyncio.gather(*(ask() for _ in range(5)))
    served = [one for got in outcomes for one in got]
    assert (50, 28) == (len(served), served.count(None))
    assert {(host, number) for host in ("a", "b") for number in range(10, 21)} == set(served) - {None}


@three_stores
async def test_agones_release_by_another(kit: Kit) -> None:
    """A release by somebody else changes nothing, 101 times."""
    ports, other = kit.allocator(instance="one"), kit.allocator(instance="other")
    held = await result(ports.acquire("backup"))
    theirs = await result(other.acquire("backup"))
    backend, space = kit.backend(), host_space(HOST)
    for _ in range(101):
        stolen = Port(held.number, held.protocol, held.fence)
        assert Released(0) == await result(backend.release(space, theirs._lease.holder, [stolen]))
    for _ in range(101):
        with pytest.raises(ConfigurationError, match=r"^allocation: "):
            await result(other.release(held))
    assert ({10809: "held", 10810: "held"}, True) == (kit.ports(), held.valid)
    await result(held.release())
    assert {10810: "held"} == kit.ports()


# -------------------------------------------------------------------- moby


@three_stores
async def test_moby_protocols(kit: Kit) -> None:
    """When TCP is full, UDP is not."""
    ports = kit.allocator(ranges=[PortRange("map", 8080, 8081)])
    await take(ports, "map", 2)
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("map"))
    assert [8080, 8081] == await take(ports, "map", 2, protocol="udp")
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("map", protocol="udp"))


@pytest.mark.parametrize(("first", "last"), [(0, 8082), (8081, 0), (8081, 8080)])
def test_moby_not_a_range(first: int, last: int) -> None:
    """These are no ranges."""
    with pytest.raises(ConfigurationError, match=r"^ranges\.map\.(first|last): must be .*, got (0|8081)$"):
        PortRange("map", first, last)


@three_stores
async def test_moby_foreign_listener(kit: Kit) -> None:
    """A port that something outside listens on is refused without a trace, and given once that is over."""
    outside = Outside(8081)
    ports = kit.allocator(ranges=[PortRange("map", 8080, 8089)], probe=outside)
    for _ in range(2):
        with pytest.raises(PortInUse) as taken:
            await result(ports.acquire("map", port=8081))
        expected = "Port 8081/tcp on host 'kvm-07' is in use by a process outside clusterports (range 'map')"
        assert (expected, {}) == (str(taken.value), kit.ports())
    outside.busy.clear()
    assert 8081 == int(await result(ports.acquire("map", port=8081)))


async def test_moby_foreign_socket(memory_kit: Kit) -> None:
    """The same of a real listener."""
    number = unused(1)
    ports = memory_kit.allocator(host="localhost", ranges=[PortRange("map", number, number)])
    with listener(number), pytest.raises(PortInUse, match="process outside clusterports"):
        await result(ports.acquire("map", port=number))
    assert {} == memory_kit.ports("localhost")
    assert number == int(await result(ports.acquire("map", port=number)))


# -------------------------------------------------------------------- Slurm


@three_stores
async def test_slurm_never_or_later(kit: Kit) -> None:
    """More than the range has can never be had; more than is free may be had later: two different errors."""
    ports = kit.allocator(ranges=[PortRange("srun", 12000, 12015)])
    with pytest.raises(ImpossibleRequest, match=r"^count: 17 .* 'srun' \(12000-12015\) has \(16\)"):
        await result(ports.acquire("srun", count=17))
    held = await result(ports.acquire("srun", count=13))
    with pytest.raises(PortsExhausted) as full:
        await result(ports.acquire("srun", count=4))
    assert "Unable to find 4 unused ports in range 'srun' (12000-12015)" == str(full.value)
    assert not issubclass(PortsExhausted, ImpossibleRequest)
    assert not issubclass(ImpossibleRequest, PortsExhausted)
    with pytest.raises(ImpossibleRequest):
        await result(ports.acquire("srun", count=17))
    await result(held[0].release())
    assert [12000, 12013, 12014, 12015] == numbers(await result(ports.acquire("srun", count=4)))


# -------------------------------------------------------------------- Nova


def test_nova_reversed_range() -> None:
    """A range whose bounds are exchanged is refused, and no default takes its place."""
    message = r"ranges\.display\.first: must be at most last \(30000\), got 40000$"
    with pytest.raises(ConfigurationError, match=message):
        Settings(ranges={"display": {"first": 40000, "last": 30000}})
    with pytest.raises(ConfigurationError, match=message):
        PortRange("display", 40000, 30000)
