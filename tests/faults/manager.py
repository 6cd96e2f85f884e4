"""A manager in a process of its own, for tests that hammer, stop and kill it.

``python manager.py '{"url": ..., "host": ..., "instance": ..., "history": ..., ...}'`` answers each line on its
standard input with one on its standard output, both JSON: a command with its arguments, and what came of it.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.history import Recorder, recording

from clusterports import Allocation, AllocationError, LeaseLost, PortAllocator, PortRange, Settings
from clusterports._backends import connect

if TYPE_CHECKING:
    from collections.abc import Callable


class Manager:
    def __init__(
        self, *, url: str, host: str, instance: str, history: str, first: int, last: int, ttl: float, quarantine: float
    ) -> None:
        self.recorder = Recorder(Path(history), instance)
        self.first, self.last = first, last
        backend = recording(connect(url, timeout=Settings().timeout), self.recorder)
        self.ports = PortAllocator(
            host=host,
            instance=instance,
            ranges=[PortRange("r", first, last, quarantine=quarantine)],
            ttl=ttl,
            backend=backend,
            on_lost=self._lost,
            on_jeopardy=self._jeopardy,
        )
        self.held: list[Allocation] = []
        self.told: list[str] = []

    def _lost(self, error: LeaseLost) -> None:
        self.recorder.write("lost", time.monotonic(), host=error.allocations[0].host if error.allocations else "")
        self.told.append("lost")

    def _jeopardy(self, held: list[Allocation]) -> None:
        self.recorder.write("jeopardy", time.monotonic(), host=held[0].host)
        self.told.append("jeopardy")

    # ---------------------------------------------------------------- steps, recorded

    def acquire(self, **request: Any) -> list[Allocation]:
        asked = time.monotonic()
        got = self.ports.acquire("r", **request)
        answered = time.monotonic()
        ports = got if isinstance(got, list) else [got]
        for port in ports:
            self.recorder.write("granted", asked, answered, port.host, port.number, port.protocol, port.fence)
        return ports

    def release(self, port: Allocation) -> bool:
        asked = time.monotonic()
        try:
            port.release()
        except LeaseLost:
            self.recorder.write("refused", asked, None, port.host, port.number, port.protocol, port.fence)
            return False
        self.recorder.write("released", asked, None, port.host, port.number, port.protocol, port.fence)
        return True

    def hammer(self, until: float, seed: str) -> tuple[int, int]:
        """Acquire, hold for a moment, release; at random, until the time. How often it got it, or not."""
        dice = random.Random(seed)
        held: list[Allocation] = []
        given = refused = 0
        while time.monotonic() < until:
            if held and (len(held) > 6 or dice.random() < 0.5):
                self.release(held.pop(dice.randrange(len(held))))
                continue
            request: dict[str, Any] = {"protocol": dice.choice(["tcp", "tcp", "udp"])}
            kind = dice.random()
            if kind < 0.2:
                request["port"] = dice.randint(self.first, self.last)
            elif kind < 0.4:
                request["count"] = dice.randint(2, 4)
            try:
                held += self.acquire(**request)
                given += 1
            except AllocationError:
                refused += 1
            if dice.random() < 0.2:
                time.sleep(dice.random() * 0.005)
        for port in held:
            self.release(port)
        return given, refused

    # ---------------------------------------------------------------- commands

    def do_acquire(self, **request: Any) -> list[int]:
        self.held += self.acquire(**request)
        return [port.number for port in self.held]

    def do_try_acquire(self) -> list[int]:
        """What it holds then: nothing when nothing is free."""
        try:
            return self.do_acquire()
        except AllocationError:
            return []

    def do_valid(self) -> list[bool]:
        """Whether each port is valid; asked before anything else is done."""
        return [port.valid for port in self.held]

    def do_release(self) -> list[bool]:
        """Whether each was freed, or refused."""
        released = [self.release(port) for port in self.held]
        self.held.clear()
        return released

    def do_told(self, wait: str = "") -> list[str]:
        """What it was told so far, or when this has been among it."""
        deadline = time.monotonic() + 30
        while wait and wait not in self.told and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.told

    def do_recovered(self) -> bool:
        """Wait until all ports are valid."""
        deadline = time.monotonic() + 30
        while not all(port.valid for port in self.held):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.005)
        self.recorder.write("recovered", time.monotonic())
        return True

    def do_hammer(self, until: float, threads: int, seed: str) -> list[int]:
        done: list[tuple[int, int]] = []
        workers = [
            threading.Thread(target=lambda n=n: done.append(self.hammer(until, f"{seed}-{n}"))) for n in range(threads)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        if len(done) != threads:
            raise RuntimeError("a thread failed")
        return [sum(column) for column in zip(*done, strict=True)]

    def do_close(self) -> None:
        self.ports.close()


def main() -> None:
    manager = Manager(**json.loads(sys.argv[1]))
    for line in sys.stdin:
        name, arguments = json.loads(line)
        command: Callable[..., Any] = getattr(manager, f"do_{name}")
        print(json.dumps(command(**arguments)), flush=True)
    manager.ports.close()


if __name__ == "__main__":
    main()
