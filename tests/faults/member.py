"""One of many managers in a soak: it takes ports on many hosts, holds them for a while and gives them back, at random.

``python member.py '{"url": ..., "client": ..., "history": ..., "hosts": [...], "seed": ..., ...}'``. SIGTERM: it gives
everything back and ends. SIGUSR1: it ends and leaves its ports to whoever comes under its name.
"""

from __future__ import annotations

import json
import logging
import random
import signal
import sys
import threading
import time
from collections import Counter
from contextlib import suppress
from heapq import heappop, heappush
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.history import Recorder
from faults.uses import SHARE

from clusterports import (
    Allocation,
    AllocationError,
    BackendError,
    BackendRecovering,
    LeaseLost,
    PortAllocator,
    PortInUse,
    PortRange,
    PortRequest,
)
from clusterports._backends import connect
from clusterports._lease import HostLease, monotonic
from clusterports._names import space_host
from clusterports._sync import allocator

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clusterports.abc import Backend, Protocol4

FIRST, LAST = 1000, 1009

BLINK = 0.05
"""Seconds."""

MOST = 40
"""Ports that one client holds at most."""


class Reliance:
    """Writes down until when leases are relied upon, as their holder sees it; those of one heartbeat together."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._lock = threading.Lock()
        self._asked = 0.0
        self._hosts: list[str] = []
        # A pause between the two readings makes it smaller, never larger.
        self._offset = max(monotonic() - time.monotonic() for _ in range(100))
        outer = self

        class Lease(HostLease):
            def __setattr__(self, name: str, value: Any) -> None:
                if name == "until":
                    # One that was in jeopardy is valid from now on: that must be known before it is.
                    outer.prolonged(self, value, urgent=getattr(self, "until", 0.0) < monotonic())
                super().__setattr__(name, value)

        setattr(allocator, "HostLease", Lease)  # noqa: B010  # not to be seen by a type checker

    def prolonged(self, lease: HostLease, until: float, *, urgent: bool) -> None:
        asked = until - lease.ttl * SHARE - self._offset
        with self._lock:
            if asked != self._asked:
                self._write()
                self._asked = asked
            self._hosts.append(lease.host)
            if urgent:
                self._write()

    def flush(self) -> None:
        with self._lock:
            self._write()

    def _write(self) -> None:
        if self._hosts:
            self._recorder.write("beat", self._asked, host=" ".join(self._hosts))
            self._hosts.clear()


def last_words(backend: Backend, asked: dict[str, float]) -> Backend:
    """The same backend. ``asked``: for each host when the last request began that may have told of a loss; with
    "claim " before it, when the last claim did.
    """

    def noting(step: Any, spaces: Callable[..., Iterable[str]]) -> Any:
        def noted(*arguments: Any) -> Any:
            now = time.monotonic()
            asked.update((space_host(space), now) for space in spaces(*arguments))
            if step == claim:
                asked[f"claim {space_host(arguments[0])}"] = now
            return step(*arguments)

        return noted

    claim = backend.claim
    for name in ("claim", "release", "acquire"):
        setattr(backend, name, noting(getattr(backend, name), lambda space, *_: [space]))
    backend.renew = noting(backend.renew, lambda renewals: [renewal.space for renewal in renewals])  # type: ignore[method-assign]
    return backend


class Member:
    def __init__(
        self,
        *,
        url: str,
        client: str,
        instance: str | None,
        history: str,
        hosts: list[str],
        seed: str,
        ttl: float,
        quarantine: float,
        longest: float,
    ) -> None:
        self.recorder = Recorder(Path(history), client)
        self.reliance = Reliance(self.recorder)
        self.asked: dict[str, float] = {}
        self.hosts = hosts
        self.dice = random.Random(seed)
        self.longest = longest
        ranges = [
            PortRange("low", FIRST, FIRST + 5, quarantine=quarantine),
            PortRange("high", FIRST + 3, LAST, quarantine=quarantine, strategy="next"),
        ]
        self.ports = PortAllocator(
            host=hosts[0],
            instance=instance,
            ranges=ranges,
            ttl=ttl,
            probe=False,
            backend=last_words(connect(url, timeout=ttl / 2), self.asked),
            on_lost=self._lost,
            on_jeopardy=self._jeopardy,
        )
        self.held: list[tuple[float, int, Allocation]] = []  # by when it is to be given back
        self.counts: Counter[str] = Counter()
        self.told: list[int] = []
        self._numbers = count()

    def _lost(self, error: LeaseLost) -> None:
        how = "claim " if "Given to another" in str(error) else ""
        for port in error.allocations:
            asked = self.asked.get(how + port.host, time.monotonic())
            self.recorder.write("lost", asked, None, port.host, port.number, port.protocol, port.fence)

    def _jeopardy(self, held: list[Allocation]) -> None:
        for host in {port.host for port in held}:
            self.recorder.write("jeopardy", time.monotonic(), host=host)

    def notice_pauses(self) -> None:
        """A machine that is too busy stops processes too: whoever sleeps for a moment sees it."""
        while True:
            asked = time.monotonic()
            time.sleep(BLINK)
            self.reliance.flush()
            if time.monotonic() - asked > 4 * BLINK:
                self.recorder.write("stopped", asked)

    # ---------------------------------------------------------------- life

    def run(self) -> None:
        threading.Thread(target=self.notice_pauses, daemon=True).start()
        self.come_back()
        while not self.told:
            try:
                self.step()
                self.counts["done"] += 1
            except AllocationError:
                self.counts["full"] += 1
            except LeaseLost:
                self.counts["lost"] += 1
            except BackendRecovering:
                self.counts["recovering"] += 1
            except BackendError:
                self.counts["failed"] += 1
            if not self.told:
                time.sleep(self.dice.expovariate(8))
        self.end()
        print(json.dumps(self.counts))

    def come_back(self) -> None:
        """What an earlier process left."""
        while not self.told:
            asked = time.monotonic()
            try:
                found = self.ports.allocations()
            except BackendError:
                time.sleep(0.1)
                continue
            answered = time.monotonic()
            for port in found:
                self.recorder.write("found", asked, answered, port.host, port.number, port.protocol, port.fence)
                self._hold(port)
            self.recorder.write("returned", asked, answered)
            return

    def end(self) -> None:
        with suppress(BackendError):  # then the leases run out
            if signal.SIGUSR1 in self.told:
                self.recorder.write("detached", time.monotonic())
                self.ports.detach()
                return
            for _, _, port in self.held:
                now = time.monotonic()
                self.recorder.write("releasing", now, now, port.host, port.number, port.protocol, port.fence)
            self.ports.close()

    # ---------------------------------------------------------------- steps

    def step(self) -> None:
        now = time.monotonic()
        if self.held and (self.held[0][0] <= now or len(self.held) > MOST):
            self.release(heappop(self.held)[2])
            return
        kind = self.dice.random()
        if kind < 0.15:
            self.look()
        elif kind < 0.3:
            self.acquire_many()
        else:
            self.acquire()

    def look(self) -> None:
        self.reliance.flush()
        for _, _, port in self.dice.sample(self.held, min(5, len(self.held))):
            asked = time.monotonic()
            if port.valid:
                self.recorder.write("relied", asked, None, port.host, port.number, port.protocol, port.fence)

    def acquire(self) -> None:
        dice = self.dice
        request: dict[str, Any] = {"host": dice.choice(self.hosts), "protocol": self._protocol()}
        kind = dice.random()
        if kind < 0.3:
            self.explicit(dice.randint(FIRST, LAST), **request)
            return
        if kind < 0.45:
            request |= {"count": dice.randint(2, 3), "contiguous": dice.random() < 0.5}
        elif kind < 0.55:
            request["wait"] = dice.random() * 2
        self._take(self.ports.acquire, dice.choice(["low", "high"]), **request)

    def explicit(self, number: int, **request: Any) -> None:
        asked = time.monotonic()
        try:
            # Without a range its quarantine would be another.
            self._take(self.ports.acquire, "low" if number < FIRST + 6 else "high", port=number, **request)
        except PortInUse as error:
            port = error.holder
            self.recorder.write("denied", asked, None, request["host"], port.number, port.protocol, port.fence)
            raise

    def acquire_many(self) -> None:
        dice = self.dice
        hosts = dice.sample(self.hosts, min(len(self.hosts), dice.randint(1, 3)))
        requests = [PortRequest(dice.choice(["low", "high"]), host=host, protocol=self._protocol()) for host in hosts]
        self._take(self.ports.acquire_many, requests)

    def _protocol(self) -> Protocol4:
        return self.dice.choice(("tcp", "tcp", "udp", "both"))

    def _take(self, call: Any, *arguments: Any, **request: Any) -> None:
        asked = time.monotonic()
        got = call(*arguments, **request)
        answered = time.monotonic()
        for port in got if isinstance(got, list) else [got]:
            self.recorder.write("granted", asked, answered, port.host, port.number, port.protocol, port.fence)
            self._hold(port)

    def _hold(self, port: Allocation) -> None:
        heappush(self.held, (time.monotonic() + self.dice.random() * self.longest, next(self._numbers), port))

    def release(self, port: Allocation) -> None:
        asked = time.monotonic()
        name = (port.host, port.number, port.protocol, port.fence)
        self.recorder.write("releasing", asked, asked, *name)
        try:
            port.release()
        except LeaseLost:
            self.recorder.write("refused", asked, None, *name)
            raise
        self.recorder.write("released", asked, None, *name)


def main() -> None:
    logging.disable()
    member = Member(**json.loads(sys.argv[1]))
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, lambda number, _: member.told.append(number))
    member.run()


if __name__ == "__main__":
    main()
