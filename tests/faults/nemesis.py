"""Who breaks things in a soak, see ``soak.py``: starts many clients, harms something every two seconds, and judges.

What is done to servers and to the network is in ``phases.py``.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from faults.checker import breaches
from faults.history import Recorder, read

from clusterports._backends import connect
from clusterports._names import space_host
from clusterports.abc import PortView, SpaceView

if TYPE_CHECKING:
    from collections.abc import Callable

    from faults.uses import Breach

__all__ = ["TTL", "Outcome", "Phase"]

TESTS: Final = Path(__file__).resolve().parents[1]

TTL: Final = 3.0
QUARANTINE: Final = 1.0
EVERY: Final = 2.0
"""Seconds from one fault to the next."""

HOSTS_EACH: Final = 40
LONGEST: Final = 10.0
"""Seconds that a port is held at most, if all is well."""

ENDED: Final = (0, -signal.SIGKILL, -signal.SIGTERM, -signal.SIGUSR1)
"""How a client may end; by a signal that came before it had begun, too."""

SLACK: Final = 1.0
"""Seconds by which a machine with two cores and twenty-odd busy processes may be late."""


class Client:
    """A manager, with all the processes that were one after another under its name."""

    def __init__(self, folder: Path, name: str, *, named: bool, **told: Any) -> None:
        self.folder, self.name, self.named, self.told = folder, name, named, told
        self.generation = 0
        self.stopped = 0.0
        self.leaving = False
        self.start()

    @property
    def process_name(self) -> str:
        """Processes of one instance are told apart by "#"."""
        return f"{self.name}{'#' if self.named else '.'}{self.generation}"

    def start(self) -> None:
        self.generation += 1
        self.leaving = False
        name = self.process_name
        told = self.told | {
            "client": name,
            "instance": self.name if self.named else None,
            "history": str(self.folder / f"{name}.jsonl"),
            "seed": f"{self.told['seed']}-{name}",
        }
        with (self.folder / f"{name}.log").open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(TESTS / "faults" / "member.py"), json.dumps(told)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
                | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep)},
            )

    def signal(self, number: int) -> None:
        self.process.send_signal(number)


@dataclass
class Outcome:
    """Of one phase. ``granted``: ports; ``steps``: what clients that ended by themselves did."""

    name: str
    seconds: float = 0.0
    events: Counter[str] = field(default_factory=Counter)
    steps: Counter[str] = field(default_factory=Counter)
    faults: Counter[str] = field(default_factory=Counter)
    breaches: list[Breach] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def clean(self) -> bool:
        return self.events["granted"] > 0 and not (self.breaches or self.left or self.failed)

    def __str__(self) -> str:
        def listed(counts: Counter[str]) -> str:
            return ", ".join(f"{what} {number}" for what, number in sorted(counts.items()))

        done = sum(self.events[kind] for kind in ("granted", "released", "refused", "denied", "found"))
        return "\n".join(
            [
                f"{self.name}, {self.seconds:.0f} s: {done} operations on ports ({listed(self.events)})",
                f"  steps of clients that could tell: {listed(self.steps)}",
                f"  {sum(self.faults.values())} faults: {listed(self.faults)}",
                f"  {len(self.breaches)} breaches, {len(self.left)} ports left, {len(self.failed)} clients failed",
                *map(str, [*self.breaches, *self.left, *self.failed]),
            ]
        )


class Phase:
    """Clients, servers, and what is done to them. A fault is a method that begins it and puts its end on the agenda.

    ``stack``: what ends the servers.
    """

    name: str

    def __init__(self, stack: ExitStack, folder: Path, *, seed: int, clients: int, hosts: int) -> None:
        self.folder = folder
        self.dice = random.Random(f"{seed}-{self.name}")
        self.seed, self.number_of_clients, self.number_of_hosts = seed, clients, hosts
        self.clients: list[Client] = []
        self.outcome = Outcome(self.name)
        self.agenda: list[tuple[float, int, Callable[[], None]]] = []
        self.busy = False
        self.ending = False
        self._numbers = count()
        self.recorder = Recorder(folder / "world.jsonl", "")
        self.faults: dict[Callable[[], bool], int] = {
            self.kill_client: 4,
            self.stop_client: 4,
            self.end_client: 1,
            self.detach_client: 2,
            self.flush_scripts: 1,
        }

    def url(self, index: int) -> str:
        """Of the store, for this client."""
        raise NotImplementedError

    def direct(self) -> redis.Redis:
        """To the server that counts."""
        raise NotImplementedError

    # ---------------------------------------------------------------- the run

    def play(self, seconds: float) -> Outcome:
        try:
            for index in range(self.number_of_clients):
                hosts = self.dice.sample(range(self.number_of_hosts), min(HOSTS_EACH, self.number_of_hosts))
                told = {"url": self.url(index), "hosts": [f"h{host:03}" for host in hosts], "seed": str(self.seed)}
                times = {"ttl": TTL, "quarantine": QUARANTINE, "longest": LONGEST}
                self.clients.append(Client(self.folder, f"c{index:02}", named=index % 2 == 0, **told, **times))
            self._wait_for_clients()
            began = time.monotonic()
            next_fault = began + EVERY
            while time.monotonic() < began + seconds:
                self._do_what_is_due()
                self._look_after_clients()
                if time.monotonic() >= next_fault:
                    next_fault += EVERY
                    self._break_something()
                time.sleep(0.02)
            self._heal()
            self._end_clients()
            self._find_leftovers()
        finally:
            for client in self.clients:
                client.process.kill()
                client.process.wait()
            self.recorder.close()
        self.outcome.seconds = time.monotonic() - began
        self._judge()
        return self.outcome

    def _wait_for_clients(self) -> None:
        """Until each has found the store: there is nothing to break before."""
        deadline = time.monotonic() + 60
        for client in self.clients:
            history = self.folder / f"{client.process_name}.jsonl"
            while not history.exists() or '"returned"' not in history.read_text("utf-8"):
                if time.monotonic() > deadline or client.process.poll() is not None:
                    raise RuntimeError(f"{client.process_name} did not start")
                time.sleep(0.05)

    def _do_what_is_due(self) -> None:
        while self.agenda and self.agenda[0][0] <= time.monotonic():
            heappop(self.agenda)[2]()

    def _after(self, seconds: float, step: Callable[[], None]) -> None:
        heappush(self.agenda, (time.monotonic() + seconds, next(self._numbers), step))

    def _break_something(self) -> None:
        left = dict(self.faults)
        while left:
            fault = self.dice.choices(list(left), list(left.values()))[0]
            if fault():
                self.outcome.faults[fault.__name__.replace("_", " ")] += 1
                return
            del left[fault]

    def _heal(self) -> None:
        self.ending = True
        while self.agenda:
            heappop(self.agenda)[2]()

    def _look_after_clients(self) -> None:
        for client in self.clients:
            if client.process.poll() not in (None, *ENDED):
                self._failed(client, f"ended with {client.process.poll()}")
                client.start()

    def _failed(self, client: Client, what: str) -> None:
        said = (self.folder / f"{client.process_name}.log").read_text("utf-8", "replace")
        self.outcome.failed.append(f"{client.process_name} {what}: {said[-3000:]}")

    def _end_clients(self) -> None:
        for client in self.clients:
            if client.process.poll() is None:
                client.signal(signal.SIGTERM)
        deadline = time.monotonic() + 30
        for client in self.clients:
            try:
                code = client.process.wait(max(0.1, deadline - time.monotonic()))
            except subprocess.TimeoutExpired:
                self._failed(client, "did not end")
            else:
                if code not in ENDED:
                    self._failed(client, f"ended with {code}")

    def _find_leftovers(self) -> None:
        """Visit all spaces until nothing is held there, or until all must be free."""
        deadline = time.monotonic() + 2 * TTL + QUARANTINE + SLACK
        found: list[tuple[str, Any]] = []
        with connect(self.url(0), timeout=10.0) as store:
            while time.monotonic() < deadline:
                found.clear()
                spaces = store.spaces()
                for space in spaces:
                    while store.reclaim(space).backlog:
                        pass
                for space, view in zip(spaces, store.read(spaces), strict=True):
                    left = [*view.ports, *view.leases] if isinstance(view, SpaceView) else [view]
                    found += [(space, what) for what in left]
                if not found:
                    return
                time.sleep(0.2)
        now = time.monotonic()
        for space, what in found:
            self.outcome.left.append(f"{space}: {what}")
            if isinstance(what, PortView):
                host = space_host(space)
                self.recorder.write("left", now, now, host, what.number, what.protocol, what.fence)

    def _judge(self) -> None:
        events = read(sorted(self.folder.glob("*.jsonl")))
        self.outcome.events.update(event.event for event in events)
        for log in self.folder.glob("*.log"):
            with suppress(ValueError):  # of one that was killed
                self.outcome.steps.update(json.loads(log.read_text("utf-8")))
        self.outcome.breaches = breaches(events, ttl=TTL, quarantine=QUARANTINE, slack=SLACK)

    # ---------------------------------------------------------------- faults of clients

    def _victim(self) -> Client | None:
        alive = [client for client in self.clients if not (client.stopped or client.leaving)]
        return self.dice.choice(alive) if alive else None

    def kill_client(self) -> bool:
        client = self._victim()
        if client is None:
            return False
        asked = time.monotonic()
        client.process.kill()
        client.process.wait()
        self.recorder.write("killed", asked, client=client.process_name)
        self._succeed(client, self.dice.random() * 1.5 * TTL)
        return True

    def stop_client(self) -> bool:
        client = self._victim()
        if client is None:
            return False
        client.stopped = time.monotonic()
        client.signal(signal.SIGSTOP)

        def go_on() -> None:
            client.signal(signal.SIGCONT)
            self.recorder.write("stopped", client.stopped, client=client.process_name)
            client.stopped = 0.0

        self._after(self.dice.uniform(0.2, 2 * TTL), go_on)
        return True

    def end_client(self) -> bool:
        return self._ask_to_end(signal.SIGTERM)

    def detach_client(self) -> bool:
        return self._ask_to_end(signal.SIGUSR1)

    def _ask_to_end(self, number: int) -> bool:
        client = self._victim()
        if client is None:
            return False
        client.signal(number)
        self._succeed(client, self.dice.random() * TTL)
        return True

    def _succeed(self, client: Client, after: float) -> None:
        """Another takes its place when it has ended."""
        client.leaving = True

        def start() -> None:
            if self.ending:
                return
            if client.process.poll() is None:
                self._after(0.1, start)
            else:
                client.start()

        self._after(after, start)

    def flush_scripts(self) -> bool:
        with suppress(redis.RedisError, TimeoutError), self.direct() as client:
            client.script_flush()
            return True
        return False
