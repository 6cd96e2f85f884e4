"""The two parts of a soak: on one server behind a bad network, and on a primary with replicas and sentinels."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import TYPE_CHECKING, Final

import redis
import servers
from faults.control import Sentinels, Server, until
from faults.nemesis import TTL, Outcome, Phase
from faults.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["PHASES", "play"]


class Alone(Phase):
    """One server with its data on disk."""

    name = "one server"

    def __init__(self, stack: ExitStack, folder: Path, **numbers: int) -> None:
        super().__init__(stack, folder, **numbers)
        options = ("--appendonly", "yes", "--appendfsync", "everysec")
        self.server = stack.enter_context(Server(servers.find_valkey(), folder / "server", *options))
        self.proxy = stack.enter_context(Proxy(self.server.port))
        self.faults |= {
            self.pause_server: 2,
            self.restart_server: 2,
            self.restart_server_empty: 2,
            self.flush_data: 1,
            self.cut_connections: 1,
            self.cut_off: 2,
            self.stall: 1,
            self.slow_down: 1,
        }

    def url(self, index: int) -> str:
        return self.proxy.url if index % 4 < 2 else self.server.url

    def direct(self) -> redis.Redis:
        return self.server.client()

    def pause_server(self) -> bool:
        if self.busy:
            return False
        self.busy, asked = True, time.monotonic()
        self.server.pause()

        def go_on() -> None:
            self.recorder.write("down", asked)
            self.server.resume()
            self.busy = False

        self._after(self.dice.uniform(0.2, 2 * TTL), go_on)
        return True

    def restart_server(self) -> bool:
        return self._restart(empty=False)

    def restart_server_empty(self) -> bool:
        return self._restart(empty=True)

    def _restart(self, *, empty: bool) -> bool:
        if self.busy:
            return False
        self.busy, asked = True, time.monotonic()
        self.server.kill()

        def start() -> None:
            self.recorder.write("down", asked)
            self.server.start(empty=empty)
            if empty:
                self.recorder.write("emptied", asked)
            self.busy = False

        self._after(self.dice.uniform(0, 2 * TTL), start)
        return True

    def flush_data(self) -> bool:
        if self.busy:
            return False
        asked = time.monotonic()
        until(lambda: self.server.ask("FLUSHALL"), what="FLUSHALL")  # it may still be loading its data
        self.recorder.write("emptied", asked)
        return True

    def cut_connections(self) -> bool:
        self.proxy.cut()
        return True

    def cut_off(self) -> bool:
        self.proxy.cut_off()
        return self._heal_network()

    def stall(self) -> bool:
        self.proxy.stall(self.dice.choice(("up", "down")))
        return self._heal_network()

    def slow_down(self) -> bool:
        self.proxy.slow(0.05)
        return self._heal_network()

    def _heal_network(self) -> bool:
        asked = time.monotonic()

        def heal() -> None:
            self.proxy.heal()
            self.recorder.write("stalled", asked)

        self._after(self.dice.uniform(0.2, 2 * TTL), heal)
        return True


class Watched(Phase):
    """A primary with two replicas, and three sentinels."""

    name = "sentinels"

    def __init__(self, stack: ExitStack, folder: Path, **numbers: int) -> None:
        super().__init__(stack, folder, **numbers)
        # One thread for all orders: the servers that it starts end with it.
        self._worker = stack.enter_context(ThreadPoolExecutor(1))
        self._order: Future[None] = self._worker.submit(lambda: None)
        self.group = stack.enter_context(Sentinels(servers.find_valkey(), folder / "group", "--appendonly", "yes"))
        self.faults |= {self.fail_over: 2, self.kill_primary: 2, self.pause_primary: 2, self.pause_replica: 1}

    def url(self, index: int) -> str:
        return f"{self.group.url}?min_replicas=1"

    def direct(self) -> redis.Redis:
        return self.group.primary().client()

    def fail_over(self) -> bool:
        """As an operator orders it."""
        return self._in_background(self.group.failover)

    def kill_primary(self) -> bool:
        return self._without_primary(Server.kill, Server.start)

    def pause_primary(self) -> bool:
        return self._without_primary(Server.pause, Server.resume)

    def _without_primary(self, take: Callable[[Server], None], bring: Callable[[Server], None]) -> bool:
        away = self.dice.uniform(0.2, 2 * TTL)

        def order() -> None:
            primary = self.group.primary()
            take(primary)
            time.sleep(away)
            bring(primary)
            self.group.healthy(60)

        return self._in_background(order)

    def pause_replica(self) -> bool:
        away = self.dice.uniform(0.2, 2 * TTL)

        def order() -> None:
            primary = self.group.primary()
            replica = next(server for server in self.group.servers if server is not primary)
            replica.pause()
            time.sleep(away)
            replica.resume()
            self.group.healthy(60)

        return self._in_background(order)

    def _in_background(self, order: Callable[[], object]) -> bool:
        """It takes its time, and clients are to be looked after meanwhile. The last writes may be lost by it."""
        if not self._order.done():
            return False

        def carry_out() -> None:
            asked = time.monotonic()
            try:
                order()
            except (TimeoutError, redis.RedisError):
                # Sentinels that were disturbed at the wrong moment may take minutes to agree. That is theirs.
                self.outcome.faults["slow to heal"] += 1
            self.recorder.write("rolled back", asked)

        self._order = self._worker.submit(carry_out)
        return True

    def _heal(self) -> None:
        super()._heal()
        self._order.result()
        self.group.healthy(150)


PHASES: Final[tuple[type[Phase], ...]] = (Alone, Watched)


def play(phase: type[Phase], folder: Path, seconds: float, *, clients: int, hosts: int, seed: int) -> Outcome:
    """One phase. What was written down stays in a folder of its own in ``folder``."""
    place = folder / phase.name.replace(" ", "-")
    place.mkdir(parents=True)
    with ExitStack() as stack:
        return phase(stack, place, seed=seed, clients=clients, hosts=hosts).play(seconds)
