"""Whole processes on real servers: hammered, killed, stopped; and servers that stop. Judged from what they recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from faults.checker import breaches
from faults.history import Event, Recorder, read
from faults.uses import GRAIN

from clusterports import AllocationError, PortAllocator, PortRange

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import servers
    from faults.history import Kind

FULL = os.environ.get("CLUSTERPORTS_FULL") == "1" or os.environ.get("CI") == "true"

SLACK = 1.0
"""Seconds by which a busy machine may be late; half of what a lease is given after a silence."""

TESTS = Path(__file__).resolve().parents[1]


class Process:
    """A manager in a process of its own."""

    def __init__(self, folder: Path, url: str, instance: str, **arguments: Any) -> None:
        self.instance = instance
        self.history = folder / f"{instance}.jsonl"
        told = {"url": url, "instance": instance, "history": str(self.history), "host": "h"} | arguments
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "faults" / "manager.py"), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
            | {"PYTHONPATH": str(TESTS)},
        )

    def ask(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.instance} ended with {self._process.wait()}"
        return json.loads(line)

    def do(self, command: str, **arguments: Any) -> Any:
        self.ask(command, **arguments)
        return self.answer()

    def stop(self) -> None:
        self._stopped = time.monotonic()
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._suffers("stopped", self._stopped)

    def kill(self) -> None:
        asked = time.monotonic()
        self._process.kill()
        self._process.wait()
        self._suffers("killed", asked)

    def _suffers(self, what: Kind, since: float) -> None:
        """Into the history with it."""
        recorder = Recorder(self.history.with_suffix(f".{what}.jsonl"), self.instance)
        recorder.write(what, since)
        recorder.close()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()


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
    seconds = 20.0 if FULL else 4.0
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
    with PortAllocator(server.url, host="h", instance="taker", ranges=ranges, ttl=30) as taker:
        while len(given) < 1000:
            asked = time.monotonic()
            assert asked < killed + 20
            try:
                port = taker.acquire("r")
            except AllocationError:
                time.sleep(0.002)
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
    assert given[0] - beat.answered < ttl + quarantine + SLACK


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
    counts: list[tuple[float, int]] = []
    with PortAllocator(server.url, ranges=[PortRange("r", 20000, 20999)]) as look:
        while not counts or counts[-1][1]:
            (host,) = look.status().hosts
            counts.append((time.monotonic(), len([port for port in host.ports if port.number >= 20000])))
            assert len(counts) < 3000
            time.sleep(0.01)
    beat = last_beat(history(tmp_path), "doomed")
    free = counts[-1][0] - beat.answered
    print(
        f"\nall 1,000 free {free:.3f} s after the last heartbeat ({ttl + quarantine:g} s, and a beat of {ttl / 4:g} s)"
    )
    early = [(at, left) for at, left in counts if left < 1000 and at < beat.asked + ttl + quarantine - GRAIN]
    assert [] == early
    assert free < ttl + quarantine + ttl / 4 + SLACK


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
        assert time.monotonic() < stopped + 20
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
    left = 100
    with PortAllocator(url) as look:
        while left > 1:
            assert time.monotonic() < resumed + 20
            (host,) = look.status().hosts
            left = len(host.ports)
            time.sleep(0.02)
    took = time.monotonic() - resumed
    print(f"\n99 ports of a holder that died in an outage: free {took:.3f} s after it")
    assert took < 2 * 1.0 + 0.5 + 1.0
    assert alive.do("recovered")
    assert [True] == alive.do("release")
