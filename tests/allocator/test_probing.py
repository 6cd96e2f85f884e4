"""What the probe finds: other ports, marks, errors; and sockets that are bound before anybody can come between."""

from __future__ import annotations

import socket
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import (
    HOST,
    Fault,
    Kit,
    Outside,
    Told,
    begin,
    eventually,
    finished,
    listener,
    numbers,
    result,
    unused,
)

from clusterports import (
    BackendUnavailable,
    BindError,
    ClusterPortsError,
    ConfigurationError,
    LeaseLost,
    PortInUse,
    PortRange,
    PortRequest,
    PortsExhausted,
    Settings,
)
from clusterports.errors import PortBusy
from clusterports.probe import FREE, HeldSockets, Verdict, probe, warn_ephemeral

if TYPE_CHECKING:
    from pathlib import Path

    import servers

HERE = "localhost"
RANGE = PortRange("r", 100, 109)


def marked(kit: Kit, host: str = HOST) -> list[int]:
    """The foreign numbers, as the store knows them; there must be no others."""
    ports = kit.ports(host)
    assert {"foreign"} >= set(ports.values())
    return sorted(ports)


class Refusing:
    """A probe that knows another verdict for some numbers."""

    def __init__(self, verdicts: dict[int, Verdict]) -> None:
        self.verdicts = verdicts
        self.asked: list[int] = []

    def __call__(self, host: str, number: int, protocol: str) -> bool:
        self.asked.append(number)
        if number in self.verdicts:
            raise BindError(self.verdicts[number])
        return True


# -------------------------------------------------------------------- who is asked


async def test_auto(memory_kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a probe of one's own, ports of this machine are tried by binding, and those of others are not."""
    asked: list[tuple[int, str]] = []

    def busy(number: int, protocol: str) -> Verdict:
        asked.append((number, protocol))
        return FREE if number > 100 else Verdict("busy", "100/tcp")

    monkeypatch.setattr("clusterports.probe.probe", busy)
    ports = memory_kit.allocator(ranges=[RANGE])
    assert [100, 101] == [int(await result(ports.acquire("r"))) for _ in range(2)]
    assert [] == asked
    for host in (HERE, socket.gethostname()):
        assert [101, 102] == [int(await result(ports.acquire("r", host=host))) for _ in range(2)]
        assert [(100, "tcp"), (101, "tcp"), (102, "tcp")] == asked
        asked.clear()
    await result(ports.acquire("r", host=HERE, protocol="both"))
    assert [(103, "both")] == asked


async def test_no_probe(memory_kit: Kit) -> None:
    """With False nothing is tried, nor by "auto" when the settings say so; a function is asked all the same."""
    number = unused(1)
    span = {"r": {"first": number, "last": number}}
    with listener(number):
        given: dict[str, Any] = {
            "ranges": [PortRange("r", number, number)],
            "backend": memory_kit.backend(),
            "host": HERE,
        }
        no: list[dict[str, Any]] = [{"probe": False}, {"settings": Settings(probe=False, ranges=span), "ranges": None}]
        for arguments in no:
            ports = memory_kit.allocator(**(given | arguments))
            assert number == int(await result(ports.acquire("r")))
            await result(ports.close())
        outside = Outside(number)
        ports = memory_kit.allocator(settings=Settings(probe=False), probe=outside, **given)
        with pytest.raises(PortsExhausted):
            await result(ports.acquire("r"))
        assert [(HERE, number, "tcp")] == outside.asked


async def test_a_function_is_asked(kit: Kit) -> None:
    """It gets host, number and protocol of what is about to be given, on any host."""
    outside = Outside()
    ports = kit.allocator(ranges=[RANGE, PortRange("gateway", 200, 209, scope="cluster")], probe=outside)
    await result(ports.acquire("r", protocol="udp"))
    await result(ports.acquire("r", host="elsewhere", protocol="both"))
    await result(ports.acquire("r", port=105))
    await result(ports.acquire(None, port=9999))
    await result(ports.acquire("gateway", host="elsewhere"))
    await result(ports.acquire("r", count=2))
    expected = [
        (HOST, 100, "udp"),
        ("elsewhere", 100, "both"),
        (HOST, 105, "tcp"),
        (HOST, 9999, "tcp"),
        ("elsewhere", 200, "tcp"),
        (HOST, 100, "tcp"),
        (HOST, 101, "tcp"),
    ]
    assert expected == outside.asked


# -------------------------------------------------------------------- marks


async def test_a_busy_port_is_marked(kit: Kit) -> None:
    """The same call takes the next one, and others need not find out for themselves, for thirty seconds."""
    outside = Outside(100, 101)
    one, two = (kit.allocator(ranges=[RANGE], probe=outside, instance=name) for name in ("one", "two"))
    assert 102 == int(await result(one.acquire("r")))
    assert 103 == int(await result(two.acquire("r")))
    assert [100, 101, 102, 103] == [number for _, number, _ in outside.asked]
    [host] = (await result(two.status())).hosts
    seen = [port for port in host.ports if port.state == "foreign"]
    assert [(100, "r", "one", ""), (101, "r", "one", "")] == [(p.number, p.range, p.instance, p.owner) for p in seen]
    assert [30.0, 30.0] == [port.free_in for port in seen]
    outside.busy.clear()
    kit.pass_time(29)
    assert 104 == int(await result(one.acquire("r")))
    kit.pass_time(1.1)
    assert [100, 101] == [int(await result(one.acquire("r"))) for _ in range(2)]


async def test_marks_are_few(kit: Kit) -> None:
    """Never more than half of the range is marked, however much is busy, and the others are tried each time."""
    outside = Outside(*range(100, 110))
    ports = kit.allocator(ranges=[RANGE], probe=outside)
    for _ in range(2):
        with pytest.raises(PortsExhausted) as full:
            await result(ports.acquire("r"))
        assert "Unable to find an unused port in range 'r' (100-109)" == str(full.value)
        assert [100, 101, 102, 103, 104] == marked(kit)
    assert 15 == len(outside.asked)
    outside.busy.remove(107)
    assert 107 == int(await result(ports.acquire("r")))


async def test_the_only_port_is_not_marked(kit: Kit) -> None:
    """Half of one port is none: the only port of a range is tried each time."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 100)], probe=Outside(100))
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    assert [] == marked(kit)


async def test_marks_of_the_cluster(kit: Kit) -> None:
    """A number of the cluster is marked with the host on which it is busy."""
    span = PortRange("gateway", 100, 109, scope="cluster")
    ports = kit.allocator(ranges=[span], probe=Outside(100), instance="manager")
    assert 101 == int(await result(ports.acquire("gateway", host="a")))
    [cluster] = (await result(ports.status())).hosts
    assert [(100, "foreign", "a"), (101, "held", "a")] == [(p.number, p.state, p.host) for p in cluster.ports]


async def test_a_mark_yields_to_who_asks_by_number(kit: Kit) -> None:
    """Who asks for a marked port by number gets it when the probe finds it free by then."""
    outside = Outside(100)
    ports = kit.allocator(ranges=[RANGE], probe=outside)
    await result(ports.acquire("r"))
    with pytest.raises(PortInUse, match="in use by a process outside clusterports"):
        await result(ports.acquire("r", port=100))
    outside.busy.clear()
    assert 100 == int(await result(ports.acquire("r", port=100)))
    assert {100: "held", 101: "held"} == kit.ports()


async def test_a_mark_that_is_not_written(memory_kit: Kit) -> None:
    """When the store goes away before the mark, the call fails, and nothing is held after it is back."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(ranges=[RANGE], probe=Outside(100), backend=flaky)
    flaky.faults["mark_foreign"] = Fault(BackendUnavailable("the store is away"), times=1)
    with pytest.raises(BackendUnavailable):
        await result(ports.acquire("r"))
    await eventually({}, memory_kit.ports)
    assert [] == await result(ports.allocations())
    assert 101 == int(await result(ports.acquire("r")))


async def test_a_lease_that_runs_out_during_the_probe(kit: Kit) -> None:
    """The call goes on under a new lease."""

    def slow(host: str, number: int, protocol: str) -> bool:
        if number == 100:
            kit.pass_time(60)
        return number != 100

    ports = kit.allocator(ranges=[RANGE], probe=slow)
    port = await result(ports.acquire("r"))
    assert (101, True) == (port.number, port.valid)
    assert [port] == await result(ports.allocations())
    await result(port.release())


async def test_a_port_that_is_lost_during_the_probe(kit: Kit) -> None:
    """Who is given a port whose lease ran out meanwhile finds out with the next heartbeat at the latest."""

    def slow(host: str, number: int, protocol: str) -> bool:
        kit.pass_time(60)
        return True

    lost = Told()
    ports = kit.allocator(ranges=[RANGE], probe=slow, on_lost=lost)
    port = await result(ports.acquire("r"))
    await result(ports._renew_all())
    [told] = await lost.wait()
    assert ([port], False, {}) == (told.allocations, port.valid, kit.ports())


# -------------------------------------------------------------------- several ports


async def test_several_of_which_some_are_busy(kit: Kit) -> None:
    """Several ports are given when enough are free, and none when not."""
    ports = kit.allocator(ranges=[RANGE], probe=Outside(100, 102, 105))
    assert [101, 103, 104] == numbers(await result(ports.acquire("r", count=3)))
    with pytest.raises(PortsExhausted, match="5 unused ports"):
        await result(ports.acquire("r", count=5))
    assert [101, 103, 104] == sorted(number for number, state in kit.ports().items() if state == "held")
    assert [106, 107, 108, 109] == numbers(await result(ports.acquire("r", count=4)))


@pytest.mark.parametrize("strategy", ["lowest", "random", "next"])
async def test_a_block_in_which_one_is_busy(kit: Kit, strategy: Any) -> None:
    """A block with a busy port inside moves on, and nothing of the first try stays."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 109, strategy=strategy)], probe=Outside(102, 107))
    block = await result(ports.acquire("r", count=4, contiguous=True))
    assert [103, 104, 105, 106] == numbers(block)
    assert {103, 104, 105, 106} == {number for number, state in kit.ports().items() if state == "held"}
    with pytest.raises(PortsExhausted, match="a block of 3 unused ports"):
        await result(ports.acquire("r", count=3, contiguous=True))
    for port in block:
        await result(port.release())
    assert {"foreign"} >= set(kit.ports().values())


async def test_limit_and_busy_ports(kit: Kit) -> None:
    """Ports that were only tried do not count for the owner's limit."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 119, limit=2)], probe=Outside(*range(100, 108)))
    held = [await result(ports.acquire("r", owner="vm-1")) for _ in range(2)]
    assert [108, 109] == numbers(held)
    with pytest.raises(PortsExhausted, match="at most 2 here"):
        await result(ports.acquire("r", owner="vm-1"))


async def test_cooldown_and_busy_ports(kit: Kit) -> None:
    """A port that was only tried does not cool: nobody had it."""
    ports = kit.allocator(ranges=[PortRange("r", 100, 109, cooldown=60)], probe=Outside(101))
    with pytest.raises(PortInUse):
        await result(ports.acquire("r", port=101))
    assert [100, 102] == numbers(await result(ports.acquire("r", count=2)))
    assert {100: "held", 101: "foreign", 102: "held"} == kit.ports()


# -------------------------------------------------------------------- by number


async def test_a_busy_port_by_number(kit: Kit) -> None:
    """It is refused, nothing of it stays, neither held nor cooling nor marked, and the lease has nothing."""
    ports = kit.allocator(ranges=[RANGE], probe=Outside(100, 9999))
    for ask in ({"range": "r", "port": 100}, {"range": None, "port": 9999}):
        with pytest.raises(PortInUse) as taken:
            await result(ports.acquire(**ask))
        said = f"Port {ask['port']}/tcp on host 'kvm-07' is in use by a process outside clusterports"
        assert str(taken.value).startswith(said)
        assert (ask["port"], "foreign") == (taken.value.holder.number, taken.value.holder.state)
        assert ({}, []) == (kit.ports(), await result(ports.allocations()))


# -------------------------------------------------------------------- errors


async def test_ports_that_cannot_be_bound(kit: Kit) -> None:
    """They are passed over without a mark, and the error says why when nothing else is left."""
    reason = "100/tcp on 0.0.0.0 (Permission denied)"
    refusing = Refusing(dict.fromkeys(range(100, 104), Verdict("error", reason)))
    ports = kit.allocator(ranges=[PortRange("r", 100, 104)], probe=refusing)
    assert 104 == int(await result(ports.acquire("r")))
    assert {104: "held"} == kit.ports()
    with pytest.raises(BindError) as refused:
        await result(ports.acquire("r"))
    assert (f"Unable to bind port {reason}", "error") == (str(refused.value), refused.value.verdict.state)
    assert not isinstance(refused.value, PortBusy)
    assert {104: "held"} == kit.ports()
    with pytest.raises(BindError, match="Permission denied"):
        await result(ports.acquire("r", port=103))
    with pytest.raises(PortInUse):
        await result(ports.acquire("r", port=104))
    assert {104: "held"} == kit.ports()


async def test_an_error_of_the_machine(kit: Kit) -> None:
    """When no port could be bound, say for want of descriptors, the first one ends the call."""
    refusing = Refusing({100: Verdict("error", "100/tcp on :: (Too many open files)", fatal=True)})
    ports = kit.allocator(ranges=[RANGE], probe=refusing)
    with pytest.raises(BindError, match="Too many open files"):
        await result(ports.acquire("r"))
    assert ([100], {}) == (refusing.asked, kit.ports())


async def test_busy_by_an_error(kit: Kit) -> None:
    """A probe may say busy by the error that a socket's bind gives."""
    ports = kit.allocator(ranges=[RANGE], probe=Refusing({100: Verdict("busy", "100/tcp on ::")}))
    assert 101 == int(await result(ports.acquire("r")))
    assert {100: "foreign", 101: "held"} == kit.ports()


@pytest.mark.parametrize("ask", [{"count": 3}, {"port": 102}, {"count": 3, "contiguous": True}])
async def test_a_probe_that_fails(kit: Kit, ask: dict[str, Any]) -> None:
    """What it raises comes out, and everything is given back."""

    def fail(host: str, number: int, protocol: str) -> bool:
        if number == 102:
            raise LookupError(host)
        return True

    ports = kit.allocator(ranges=[RANGE], probe=fail)
    with pytest.raises(LookupError, match=HOST):
        await result(ports.acquire("r", **ask))
    assert [] == await result(ports.allocations())
    await eventually({}, kit.ports)
    assert [100, 101] == numbers(await result(ports.acquire("r", count=2)))


async def test_a_probe_that_asks_its_allocator(memory: servers.MemoryStore) -> None:
    """A probe that looks at what its allocator holds is not locked out."""
    kit = Kit("sync", memory)
    seen: list[list[int]] = []

    def look(host: str, number: int, protocol: str) -> bool:
        seen.append(numbers(ports.allocations()))
        return True

    ports = kit.allocator(ranges=[RANGE], probe=look)
    ports.acquire("r")
    ports.acquire("r")
    assert [[100], [100, 101]] == seen
    await kit.finish()


# -------------------------------------------------------------------- sockets


@pytest.fixture
def first() -> int:
    """The first of ten ports that nothing on this machine has."""
    return unused(10)


def local(kit: Kit, first: int, **arguments: Any) -> Any:
    return kit.allocator(host=HERE, ranges=[PortRange("r", first, first + 9)], **arguments)


async def test_socket(memory_kit: Kit, first: int) -> None:
    """A socket that serves the port: it listens for TCP, and is the caller's."""
    ports = local(memory_kit, first)
    port = await result(ports.acquire("r"))
    with port.socket() as server:
        assert (first, socket.SOCK_STREAM) == (server.getsockname()[1], server.type)
        socket.create_connection(("127.0.0.1", first), 5).close()
        with pytest.raises(PortBusy, match=str(first)):
            port.socket()
        assert port.valid
    port.socket("tcp").close()
    await result(port.release())
    assert FREE == probe(first)


async def test_socket_protocols(memory_kit: Kit, first: int) -> None:
    """UDP too; a port of both has two, and it must be said which."""
    ports = local(memory_kit, first)
    udp = await result(ports.acquire("r", protocol="udp"))
    with udp.socket() as sock:
        assert (first, socket.SOCK_DGRAM) == (sock.getsockname()[1], sock.type)
    with pytest.raises(ConfigurationError, match=r"^protocol: must be udp for this port, got 'tcp'$"):
        udp.socket("tcp")
    both = await result(ports.acquire("r", protocol="both"))
    with pytest.raises(ConfigurationError, match=r"^protocol: must be tcp or udp for this port, got None$"):
        both.socket()
    with both.socket("udp") as datagrams, both.socket("tcp") as server:
        assert (socket.SOCK_DGRAM, socket.SOCK_STREAM) == (datagrams.type, server.type)


async def test_socket_refused(memory_kit: Kit, first: int) -> None:
    """There is none for a port of another machine, nor for one that is not held."""
    ports = local(memory_kit, first)
    elsewhere = await result(ports.acquire("r", host=HOST))
    with pytest.raises(ConfigurationError, match=rf"^host: .* on {HOST!r}$"):
        elsewhere.socket()
    port = await result(ports.acquire("r"))
    would = await result(ports.acquire("r", dry_run=True))
    await result(port.release())
    for gone in (port, would):
        with pytest.raises(LeaseLost):
            gone.socket()
    assert FREE == probe(first)


async def test_held_sockets(memory_kit: Kit, first: int) -> None:
    """With a probe that keeps what it bound, the socket is there before the port is given: nobody comes between."""
    with HeldSockets() as held, listener(first):
        ports = local(memory_kit, first, probe=held)
        port = await result(ports.acquire("r"))
        assert (first + 1, "busy") == (port.number, probe(first + 1).state)
        socket.create_connection(("127.0.0.1", port.number), 5).close()
        with port.socket() as server:
            assert port.number == server.getsockname()[1]
            assert [] == held.take(port.number, "tcp")
        assert FREE == probe(port.number)
        await result(port.release())
        assert {first: "foreign"} == memory_kit.ports(HERE)


def bound_now(first: int) -> list[int]:
    return [number for number in range(first, first + 10) if probe(number, "both") != FREE]


async def test_held_sockets_are_let_go(memory_kit: Kit, first: int) -> None:
    """After a release, or whatever else ends a call without a port, nothing is bound."""
    with HeldSockets() as held:
        ports = local(memory_kit, first, probe=held)
        both = await result(ports.acquire("r", protocol="both", count=2))
        assert [first, first + 1] == bound_now(first)
        for port in both:
            await result(port.release())
        assert [] == bound_now(first)

        far = memory_kit.allocator(host="far", ranges=[PortRange("r", first, first + 9)], probe=False)
        await result(far.acquire("r", count=10))
        with pytest.raises(PortsExhausted):  # "far" comes before this host, "zzz" behind it
            await result(ports.acquire_many([PortRequest("r", count=3), PortRequest("r", host="far")]))
        await result(far.acquire("r", count=10, host="zzz"))
        with pytest.raises(PortsExhausted):
            await result(ports.acquire_many([PortRequest("r", count=3), PortRequest("r", host="zzz")]))
        assert [] == bound_now(first)

        with listener(first + 2):
            assert [first + 3] == numbers(await result(ports.acquire("r", count=1, align=first + 3)))
            with pytest.raises(PortsExhausted):
                await result(ports.acquire("r", count=7, contiguous=True))
            with pytest.raises(PortInUse):
                await result(ports.acquire("r", port=first + 2))
            assert [first + 2, first + 3] == bound_now(first)


async def test_held_sockets_of_this_host_alone(memory_kit: Kit, first: int) -> None:
    """The release of the same number on another host lets go of nothing here."""
    with HeldSockets() as held:
        ports = local(memory_kit, first, probe=held)
        port = await result(ports.acquire("r"))
        far = await result(ports.acquire("r", host="far"))
        assert first == port.number == far.number
        await result(far.release())
        assert [first] == bound_now(first)


async def test_held_sockets_and_a_dry_run(memory_kit: Kit, first: int) -> None:
    """A dry run binds nothing, passes over what is busy, and takes no socket from who holds one."""
    with HeldSockets() as held:
        ports = local(memory_kit, first, probe=held)
        port = await result(ports.acquire("r"))
        with listener(first + 1):
            assert first + 2 == int(await result(ports.acquire("r", dry_run=True)))
            with pytest.raises(PortInUse):
                await result(ports.acquire("r", port=first + 1, dry_run=True))
        assert [first] == bound_now(first)
        with port.socket() as server:
            assert first == server.getsockname()[1]


async def test_held_sockets_and_a_dry_run_meanwhile(memory: servers.MemoryStore, first: int) -> None:
    """Nor from who takes the port between the answer of the store and the look of the dry run."""
    kit = Kit("sync", memory)
    with HeldSockets() as held:
        ports = local(kit, first, probe=held)
        flaky = kit.flaky()
        dry = local(kit, first, probe=held, backend=flaky)
        preview = flaky.inner.preview

        def slow(*asked: Any) -> Any:
            reply = preview(*asked)
            if not numbers(ports.allocations()):
                ports.acquire("r")
            return reply

        flaky.inner.preview = slow
        assert first + 1 == int(dry.acquire("r", dry_run=True))
        assert [first] == bound_now(first)
    await kit.finish()


async def test_held_sockets_and_the_end(memory_kit: Kit, first: int) -> None:
    """When the allocator gives its ports back at its end, it lets go of their sockets too."""
    with HeldSockets() as held:
        ports = local(memory_kit, first, probe=held)
        await result(ports.acquire("r", count=2))
        await result(ports.close())
        assert ({}, []) == (memory_kit.ports(HERE), bound_now(first))


async def test_held_sockets_and_a_failing_store(memory_kit: Kit, first: int) -> None:
    """A call that fails after the probe leaves no socket behind."""
    flaky = memory_kit.flaky()
    with HeldSockets() as held, listener(first + 1):
        ports = local(memory_kit, first, probe=held, backend=flaky)
        flaky.faults["mark_foreign"] = Fault(BackendUnavailable("the store is away"), times=1)
        with pytest.raises(BackendUnavailable):
            await result(ports.acquire("r", count=2))
        assert [first + 1] == bound_now(first)
        await eventually({}, partial(memory_kit.ports, HERE))


async def test_held_sockets_cancelled(memory_kit: Kit, first: int) -> None:
    """Nor does one that ends because its allocator is closed."""
    with HeldSockets() as held:
        ports = local(memory_kit, first, probe=held)
        far = memory_kit.allocator(host="far", ranges=[PortRange("r", first, first + 9)], probe=False)
        await result(far.acquire("r", count=10, host=HERE))
        waiter = begin(ports.acquire, "r", wait=60)
        await eventually(1, partial(memory_kit.waiting, HERE))
        await result(ports.close())
        with pytest.raises(ClusterPortsError, match=r"^This allocator is closed$"):
            await finished(waiter)
        assert [] == bound_now(first)


# -------------------------------------------------------------------- the kernel's own ports


@pytest.fixture
def ephemeral(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kernel that gives 32768-60999 to outgoing connections."""
    (tmp_path / "ip_local_port_range").write_text("32768\t60999\n")
    (tmp_path / "ip_local_reserved_ports").write_text("\n")
    warn = partial(warn_ephemeral, sysctl=tmp_path)
    monkeypatch.setattr(f"clusterports._{kind}.allocator.warn_ephemeral", warn)


@pytest.mark.usefixtures("ephemeral")
@pytest.mark.parametrize("call", ["acquire", "acquire_many"])
async def test_ephemeral_warning(memory_kit: Kit, call: str, caplog: pytest.LogCaptureFixture) -> None:
    """The first use on this machine of a range in the kernel's ephemeral ports is warned of, once, with the cure."""
    name = f"{call}-{memory_kit.kind}"  # each is told of once in a process
    below, other = f"{name}-below", f"{name}-other"
    spans = [PortRange(name, 49152, 49215), PortRange(below, 20000, 20009), PortRange(other, 50000, 50009)]
    ports = memory_kit.allocator(ranges=spans, host=HERE, probe=False)

    async def take(name: str, **more: Any) -> None:
        if call == "acquire":
            await result(ports.acquire(name, **more))
        else:
            await result(ports.acquire_many([PortRequest(name, **more)]))

    await take(other, host=HOST)
    await take(other, port=50009)
    await take(below)
    assert [] == caplog.messages
    await take(name)
    expected = (
        f"range '{name}' (49152-49215): ports 49152-49215 lie in the kernel's ephemeral ports 32768-60999, "
        "reserve them: sysctl -w net.ipv4.ip_local_reserved_ports=49152-49215"
    )
    assert [expected] == caplog.messages
    await take(name)
    again = memory_kit.allocator(ranges=spans, host=HERE, probe=False)
    await result(again.acquire(name))
    assert [expected] == caplog.messages


async def test_only_so_often(kit: Kit, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that refuses everything is not asked for ever: the call ends, also one that would wait for long."""
    for kind in ("sync", "async"):
        monkeypatch.setattr(f"clusterports._{kind}.acquire.TRIES", 4)
    busy = Outside(*range(100, 130))
    ports = kit.allocator(ranges=[PortRange("r", 100, 129)], probe=busy)
    with pytest.raises(PortsExhausted):
        await result(ports.acquire("r"))
    assert 4 == len(busy.asked)
    with pytest.raises(PortsExhausted, match=r"within 0\.1 s$"):
        await result(ports.acquire("r", wait=0.1))
    assert len(busy.asked) <= 12
