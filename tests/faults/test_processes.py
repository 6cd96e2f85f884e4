"""Whole processes on real servers: hammered, killed, stopped; and servers that stop. Judged from what they recorded."""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from faults.checker import breaches
from faults.history import Event, Recorder, read
from faults.process import Process
from faults.uses import GRAIN
from servers import view

from clusterports import AllocationError, PortAllocator, PortRange
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    import servers

    from clusterports.abc import Backend

FULL = os.environ.get("CLUSTERPORTS_FULL") == "1"

PATIENCE = 60.0
"""Seconds until a test gives up waiting; a busy machine may take its time."""


BEATS = 8
"""How many heartbeats of a neighbour may find something of the dead: 1,000 ports are 32 visits, and a heartbeat that
finds more goes on at once. However slow the machine is, it is the store's clock that says what should be free."""


class Look(NamedTuple):
    """What was left of a dead holder's ports. ``due``: by the store's own clock all of it should be free."""

    asked: float
    answered: float
    left: int
    due: bool


def look(backend: Backend, dead: str, quarantine: float) -> Look:
    asked = time.monotonic()
    space = view(backend, "host:h")
    ports = [port.free_in for port in space.ports if port.instance == dead]
    leases = [lease for lease in space.leases if lease.instance == dead]
    over = all(lease.expires_in <= -quarantine * 1e6 and not lease.grace for lease in leases)
    due = over and all(free_in is None or free_in <= 0 for free_in in ports)
    return Look(asked, time.monotonic(), len(ports), due)


def watch(url: str, dead: str, quarantine: float) -> list[Look]:
    """Look on, without touching anything, until nothing is left."""
    looks: list[Look] = []
    with RedisBackend.connect(url) as backend:
        while not looks or looks[-1].left:
            looks.append(look(backend, dead, quarantine))
            assert looks[-1].answered < looks[0].asked + PATIENCE
            time.sleep(0.01)
    return looks


def beats_in_vain(events: list[Event], client: str, looks: list[Look]) -> int:
    """How many heartbeats of this client came after all was due, and left something."""
    due = min((one.answered for one in looks if one.due), default=float("inf"))
    left = max(one.asked for one in looks if one.left)
    return len([e for e in events if (e.client, e.event) == (client, "beat") and due < e.asked and e.answered < left])


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts managers, and ends them."""
    processes: list[Process] = []

    def start(*arguments: Any, **more: Any) -> Process:
        processes.append(Process(tmp_path, *arguments, **more))
        return processes[-1]

    yield start
    for process in processes:
        process.end()


def history(folder: Path) -> list[Event]:
    return read(sorted(folder.glob("*.jsonl")))


def last_beat(events: list[Event], client: str) -> Event:
    return max((e for e in events if (e.client, e.event) == (client, "beat")), key=lambda event: event.asked)


@pytest.mark.timeout(180)
def test_hammer(valkey: servers.ServerStore, start: Callable[..., Process], tmp_path: Path) -> None:
    """Sixteen processes, four on each of four hosts, two threads each, at one range: no port is ever held twice."""
    seconds = 20.0 if FULL else 6.0
    settings = {"first": 10809, "last": 10872, "ttl": 10.0, "quarantine": 1.0}
    hosts = [f"kvm-{number}" for number in range(4)]
    managers = [start(valkey.url, f"{host}-{n}", host=host, **settings) for host in hosts for n in range(4)]
    for manager in managers:
        assert [] == manager.do("told")
    until = time.monotonic() + seconds
    for manager in managers:
        manager.ask("hammer", until=until, threads=2, seed=manager.instance)
    done = [manager.answer() for manager in managers]
    with PortAllocator(valkey.url) as look:
        left = [port for host in look.status().hosts for port in host.ports]
        leases = [lease.instance for host in look.status().hosts for lease in host.leases]
    for manager in managers:
        manager.do("close")
    with PortAllocator(valkey.url) as look:
        leases_left = [lease for host in look.status().hosts for lease in host.leases]

    events = history(tmp_path)
    given, refused = (sum(column) for column in zip(*done, strict=True))
    ports = len([event for event in events if event.event == "granted"])
    print(
        f"\n{given} acquires ({ports} ports) and as many releases, {refused} refusals, by 16 processes"
        f" on 4 hosts in {seconds:g} s; {len(events)} events judged"
    )
    assert [] == breaches(events, ttl=10.0, quarantine=1.0)
    assert (16, [], []) == (len(leases), left, leases_left)
    assert min(given, refused) > 100
    assert ports == len([event for event in events if event.event == "released"])


@pytest.mark.timeout(120)
def test_kill(server: servers.ServerStore, start: Callable[..., Process], tmp_path: Path) -> None:
    """A manager of 1,000 ports is killed: none is given before TTL + quarantine are over, all soon after."""
    ttl, quarantine = 2.0, 1.0
    settings = {"first": 20000, "last": 20999, "ttl": ttl, "quarantine": quarantine}
    doomed = start(server.url, "doomed", **settings)
    numbers = doomed.do("acquire", count=1000)
    assert list(range(20000, 21000)) == numbers
    survivor = start(server.url, "survivor", **(settings | {"first": 1, "last": 1}))
    survivor.do("acquire")
    time.sleep(ttl / 2)  # some heartbeats, so that the last one is not the opening
    doomed.kill()
    killed = time.monotonic()

    recorder = Recorder(tmp_path / "taker.jsonl", "taker")
    ranges = [PortRange("r", 20000, 20999, quarantine=quarantine)]
    given: list[float] = []
    due = False
    with (
        PortAllocator(server.url, host="h", instance="taker", ranges=ranges, ttl=30) as taker,
        RedisBackend.connect(server.url) as backend,
    ):
        while len(given) < 1000:
            asked = time.monotonic()
            assert asked < killed + PATIENCE
            try:
                port = taker.acquire("r")
            except AllocationError:
                assert not due
                due = look(backend, "doomed", quarantine).due
                continue
            given.append(time.monotonic())
            recorder.write("granted", asked, given[-1], "h", port.number, "tcp", port.fence)
        recorder.close()
    events = history(tmp_path)
    beat = last_beat(events, "doomed")
    first, last = given[0] - beat.asked, given[-1] - beat.answered
    print(f"\nfirst port given {first:.3f} s after the last heartbeat, the thousandth {last:.3f} s")
    assert [] == breaches(events, ttl=ttl, quarantine=quarantine)
    assert first >= ttl + quarantine - GRAIN
    assert survivor.do("valid") == [True]


@pytest.mark.timeout(120)
def test_kill_unattended(server: servers.ServerStore, start: Callable[..., Process], tmp_path: Path) -> None:
    """Nobody asks for the dead manager's ports: the heartbeats of a neighbour alone make all of them free, in time."""
    ttl, quarantine = 2.0, 1.0
    settings = {"first": 20000, "last": 20999, "ttl": ttl, "quarantine": quarantine}
    doomed = start(server.url, "doomed", **settings)
    doomed.do("acquire", count=1000)
    survivor = start(server.url, "survivor", **(settings | {"first": 1, "last": 1}))
    survivor.do("acquire")
    time.sleep(ttl / 2)
    doomed.kill()
    looks = watch(server.url, "doomed", quarantine)
    events = history(tmp_path)
    beat = last_beat(events, "doomed")
    free = looks[-1].answered - beat.answered
    print(
        f"\nall 1,000 free {free:.3f} s after the last heartbeat ({ttl + quarantine:g} s, and a beat of {ttl / 4:g} s)"
    )
    early = [one for one in looks if one.left < 1000 and one.answered < beat.asked + ttl + quarantine - GRAIN]
    assert [] == early
    assert beats_in_vain(events, "survivor", looks) <= BEATS


@pytest.mark.timeout(120)
def test_stopped_holder(server: servers.ServerStore, start: Callable[..., Process], tmp_path: Path) -> None:
    """A holder that was stopped longer than its TTL knows before it uses its port; its release is refused, harmless."""
    settings = {"first": 5, "last": 6, "ttl": 1.0, "quarantine": 0.5}
    sleeper = start(server.url, "sleeper", **settings)
    assert [5, 6] == sleeper.do("acquire", count=2)
    assert [True, True] == sleeper.do("valid")
    time.sleep(0.5)  # some heartbeats
    other = start(server.url, "other", **settings)
    sleeper.stop()
    stopped = time.monotonic()
    taken: list[int] = []
    while not taken:
        assert time.monotonic() < stopped + PATIENCE
        taken = other.do("try_acquire")
        time.sleep(0.02)
    sleeper.ask("valid")  # waits in the pipe: the first thing it does when it goes on
    sleeper.ask("release")
    sleeper.go_on()
    assert ([False, False], [False, False]) == (sleeper.answer(), sleeper.answer())
    assert "lost" in sleeper.do("told", wait="lost")
    assert [True] == other.do("valid")
    with PortAllocator(server.url) as look:
        (host,) = look.status().hosts
        held = [(port.number, port.instance) for port in host.ports]
    assert [(5, "other")] == held
    assert [True] == other.do("release")
    assert [] == breaches(history(tmp_path), ttl=1.0, quarantine=0.5)


@pytest.mark.timeout(120)
def test_stopped_server(start: Callable[..., Process], tmp_path: Path, own_server: tuple[str, int]) -> None:
    """A server that was stopped for three TTLs takes no port from the living: they are warned, then valid again."""
    url, pid = own_server
    settings = {"first": 1, "last": 500, "ttl": 1.0, "quarantine": 0.5}
    managers = [start(url, f"m{number}", **settings) for number in range(4)]
    for manager in managers:
        manager.do("acquire", count=100)
    time.sleep(0.5)
    os.kill(pid, signal.SIGSTOP)
    try:
        time.sleep(3.0)
        for manager in managers:
            assert [False] * 100 == manager.do("valid")
    finally:
        os.kill(pid, signal.SIGCONT)
    for manager in managers:
        assert manager.do("recovered")
        assert ["jeopardy"] == manager.do("told")
    with PortAllocator(url, host="h", ranges=[PortRange("r", 1, 500)]) as other:
        taken: Any = other.acquire("r", count=100)
        assert 100 == len(taken)
        with pytest.raises(AllocationError):
            other.acquire("r")
    time.sleep(1.5)
    for manager in managers:
        assert [True] * 100 == manager.do("release")
    assert [] == breaches(history(tmp_path), ttl=1.0, quarantine=0.5)


@pytest.mark.timeout(120)
def test_stopped_server_and_a_dead_holder(
    start: Callable[..., Process], tmp_path: Path, own_server: tuple[str, int]
) -> None:
    """The ports of one who died in an outage are free again two TTLs and a quarantine after it, at the latest."""
    url, pid = own_server
    settings = {"first": 1, "last": 100, "ttl": 1.0, "quarantine": 0.5}
    doomed, alive = (start(url, name, **settings) for name in ("doomed", "alive"))
    doomed.do("acquire", count=99)
    alive.do("acquire")
    os.kill(pid, signal.SIGSTOP)
    try:
        doomed.kill()
        time.sleep(3.0)
    finally:
        os.kill(pid, signal.SIGCONT)
    resumed = time.monotonic()
    looks = watch(url, "doomed", 0.5)
    took = looks[-1].answered - resumed
    print(f"\n99 ports of a holder that died in an outage: free {took:.3f} s after it")
    assert beats_in_vain(history(tmp_path), "alive", looks) <= BEATS
    assert alive.do("recovered")
    assert [True] == alive.do("release")
