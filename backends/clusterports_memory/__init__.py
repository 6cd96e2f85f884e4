"""``memory://``: spaces in this process's memory, for tests and for a manager that is alone.

``memory://`` is private to the backend that it makes; ``memory://name`` is shared within the process, and keeps as many
events as the first who names it says. Time is monotonic, and can be passed in for tests.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from contextlib import suppress
from itertools import islice, takewhile
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast
from urllib.parse import urlsplit

from clusterports._delegate import Delegate
from clusterports._events import is_repeated
from clusterports._space import Space
from clusterports.abc import EVENTS, AsyncWatch, Backend, Capability, Events, Watch
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from clusterports.abc import (
        Ask,
        Claim,
        Claimed,
        Closed,
        Event,
        Full,
        Gone,
        Granted,
        Held,
        Holder,
        Marked,
        Occupied,
        Opened,
        Port,
        PortView,
        Queued,
        Reclaimed,
        Recovering,
        Released,
        Renewal,
        Renewed,
        Request,
        SpaceView,
        Stale,
        Wait,
    )
    from clusterports.errors import BackendError

P = ParamSpec("P")
T = TypeVar("T")

__all__ = ["AsyncMemoryBackend", "MemoryBackend", "Store", "connect", "connect_async"]


def monotonic_us() -> int:
    return time.monotonic_ns() // 1000


class Store:
    """All spaces, under one mutex. Nobody can be cut off from it, so a silence is the holder's own.

    ``events``: how many of them the log of a space keeps.
    """

    def __init__(self, clock: Callable[[], int] = monotonic_us, events: int = EVENTS) -> None:
        self.clock = clock
        self.events = events
        self.lock = threading.Lock()
        self.spaces: dict[str, Space] = {}
        self.logs: dict[str, deque[tuple[int, int, Event]]] = {}  # number, time, event
        self._written = 0

    def step(self, name: str, step: Callable[[Space, int], T]) -> T:
        """Do it, and write down what it did."""
        with self.lock:
            space, now = self.space(name), self.clock()
            if self.events:
                space.told = []
            reply = step(space, now)
            if space.told:
                self._write(name, space.told, now)
            return reply

    def _write(self, name: str, told: list[Event], now: int) -> None:
        log = self.logs.get(name)
        if log is None:
            log = self.logs[name] = deque(maxlen=self.events)
        for event in told:
            if event.kind == "refused" and is_repeated(event, ((at, one) for _, at, one in reversed(log)), now):
                continue
            self._written += 1
            log.append((self._written, now, event))

    def read_log(self, name: str, cursor: str, limit: int) -> Events:
        with self.lock:
            now, after = self.clock(), int(cursor or 0)
            new = islice(takewhile(lambda entry: entry[0] > after, reversed(self.logs.get(name, ()))), limit)
            events = [event._replace(labels=dict(event.labels), age=max(0, now - at)) for _, at, event in new]
            return Events(name, tuple(reversed(events)), str(self._written))

    def space(self, name: str) -> Space:
        """One that nobody opened yet is empty, and not kept."""
        return self.spaces.get(name) or WatchedSpace(name)


class WatchedSpace(Space):
    """A space that tells those who wait when their turn may have come."""

    def __init__(self, name: str) -> None:
        self.wakes: set[Callable[[], object]] = set()
        super().__init__(name)

    @property
    def stirred(self) -> bool:
        return False

    @stirred.setter
    def stirred(self, value: bool) -> None:
        for wake in self.wakes if value else ():
            wake()


class MemoryWatch(Watch):
    """Woken by the step that frees something."""

    def __init__(self, store: Store, space: str) -> None:
        self._store = store
        self._space = cast("WatchedSpace", store.space(space))
        self._event = threading.Event()
        with store.lock:
            self._space.wakes.add(self._event.set)

    def wait(self, seconds: float) -> None:
        self._event.wait(seconds)
        self._event.clear()

    def close(self) -> None:
        with self._store.lock:
            self._space.wakes.discard(self._event.set)


class AsyncMemoryWatch(AsyncWatch):
    """The same for tasks."""

    def __init__(self, store: Store, space: str) -> None:
        self._store = store
        self._space = cast("WatchedSpace", store.space(space))
        self._event = asyncio.Event()
        loop = asyncio.get_running_loop()

        def wake() -> None:
            with suppress(RuntimeError):  # its loop is closed, and nobody waits there any more
                loop.call_soon_threadsafe(self._event.set)

        self._wake = wake
        with store.lock:
            self._space.wakes.add(wake)

    async def wait(self, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()

    async def close(self) -> None:
        with self._store.lock:
            self._space.wakes.discard(self._wake)


_shared: dict[str, Store] = {}
_shared_lock = threading.Lock()


def _store(url: str, client: Any, events: int) -> Store:
    if client is not None:
        raise ConfigurationError(f"client: memory:// has no client, got {type(client).__name__}")
    parts = urlsplit(url)
    if parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigurationError(f"url: memory:// takes at most a name (memory://name), got {url!r}")
    if not parts.netloc:
        return Store(events=events)
    with _shared_lock:
        return _shared.setdefault(parts.netloc, Store(events=events))


class MemoryBackend(Backend):
    """`Space` as it is."""

    name = "memory"
    capabilities = frozenset({Capability.EVENTS, Capability.WAKES})

    def __init__(self, store: Store | None = None) -> None:
        self._store = store or Store()

    def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        store = self._store

        def step(found: Space, now: int) -> Opened | Occupied:
            store.spaces[space] = found
            return found.open(now, instance, token, ttl, supersede, knew)

        return store.step(space, step)

    def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        return self._store.step(space, lambda found, now: found.acquire(now, holder, request, asks, wait))

    def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        return self._store.step(space, lambda found, now: found.claim(now, holder, request, claims))

    def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        store = self._store
        with store.lock:
            return store.space(space).preview(store.clock(), asks)

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        return [self._renew(renewal) for renewal in renewals]

    def _renew(self, renewal: Renewal) -> Renewed | Gone:
        return self._store.step(renewal.space, lambda found, now: found.renew(now, renewal))

    def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        return self._store.step(space, lambda found, now: found.release(now, holder, ports))

    def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        return self._store.step(
            space,
            lambda found, now: found.mark_foreign(
                now, holder, ports, range=range, duration=duration, most=most, host=host
            ),
        )

    def force(self, space: str, port: PortView) -> bool:
        return self._store.step(space, lambda found, now: found.force(now, port))

    def drop(self, space: str) -> bool:
        store = self._store
        with store.lock:
            empty = store.space(space).empty()
            if empty:
                store.spaces.pop(space, None)
                store.logs.pop(space, None)
            return empty

    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        return self._store.step(space, lambda found, now: found.close(now, holder, quarantine=quarantine))

    def reclaim(self, space: str) -> Reclaimed:
        return self._store.step(space, lambda found, now: found.reclaim(now))

    def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        store = self._store
        with store.lock:
            return store.space(space).held(holder, store.clock(), after)

    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        store = self._store
        with store.lock:
            return [store.space(name).view(store.clock()) for name in spaces]

    def spaces(self, instance: str | None = None) -> list[str]:
        store = self._store
        with store.lock:
            return sorted(n for n, space in store.spaces.items() if instance is None or space.has(instance))

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        return [self._store.read_log(space, cursor, limit) for space, cursor in cursors.items()]

    def watch(self, space: str, ticket: int) -> Watch:
        return MemoryWatch(self._store, space)

    def close(self) -> None:
        pass


class AsyncMemoryBackend(Delegate):
    """The same for tasks: a step takes microseconds, so it is done where it is called."""

    _sync: MemoryBackend

    def __init__(self, store: Store | None = None) -> None:
        super().__init__(MemoryBackend(store))

    async def call(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return step(*args, **kwargs)

    async def watch(self, space: str, ticket: int) -> AsyncWatch:
        return AsyncMemoryWatch(self._sync._store, space)


def connect(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> MemoryBackend:
    return MemoryBackend(_store(url, client, events))


def connect_async(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> AsyncMemoryBackend:
    return AsyncMemoryBackend(_store(url, client, events))
