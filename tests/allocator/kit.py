"""What the tests of the allocators share: both kinds under one roof, and a store that can be told to fail.

A test is written once, as a coroutine. ``await result(ports.acquire("backup"))`` is right for both kinds.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from clusterports import AsyncPortAllocator, PortAllocator, PortRange
from clusterports._names import host_space
from clusterports.abc import AsyncBackend, Backend
from clusterports.errors import BackendError, BackendUnavailable

if TYPE_CHECKING:
    from collections.abc import Callable

    import servers

__all__ = ["BACKUP", "HOST", "PATIENCE", "Fault", "Flaky", "Kit", "Told", "eventually", "result"]

PATIENCE: Final = 15.0
"""Seconds until a test gives up waiting; none takes this long when all is well."""

HOST: Final = "kvm-07"

BACKUP: Final = PortRange("backup", 10809, 10810, quarantine=15)


async def result(value: Any) -> Any:
    """What a call gave, whichever kind of allocator it was."""
    return await value if inspect.isawaitable(value) else value


async def eventually(expected: object, seen: Callable[[], Any]) -> None:
    """Wait until this is seen."""
    deadline = time.monotonic() + PATIENCE
    while (last := await result(seen())) != expected:
        assert time.monotonic() < deadline, f"expected {expected!r}, and at last saw {last!r}"
        await asyncio.sleep(0.01)


class Told:
    """A callback that remembers what it was told, in which thread and when."""

    def __init__(self) -> None:
        self.what: list[Any] = []
        self.threads: list[str] = []
        self.at: list[float] = []
        self._changed = threading.Condition()

    def __call__(self, what: Any) -> None:
        with self._changed:
            self.at.append(time.monotonic())
            self.threads.append(threading.current_thread().name)
            self.what.append(what)
            self._changed.notify_all()

    async def wait(self, count: int = 1) -> list[Any]:
        """Wait until it was told so often; the event loop goes on meanwhile."""

        def wait() -> bool:
            with self._changed:
                return self._changed.wait_for(lambda: len(self.what) >= count, PATIENCE)

        assert await asyncio.to_thread(wait)
        return self.what


# -------------------------------------------------------------------- a store that fails


@dataclass
class Fault:
    """``error`` is raised instead of the step, or ``after`` it; ``gate`` is waited for first; ``times``: how often."""

    error: BaseException | None = None
    after: bool = False
    gate: threading.Event | None = None
    times: int = 1_000_000_000


STEPS: Final = ("open", "acquire", "renew", "release", "close_lease", "reclaim", "held", "read", "spaces")


class Flaky:
    """Another backend's steps, with the faults that a test asks for. ``begun``: steps and when they
    began. ``calls``: those that have ended, with their arguments; both in order.
    """

    name = "flaky"

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.faults: dict[str, Fault] = {}
        self.calls: list[tuple[str, tuple[Any, ...]]] = []
        self.begun: list[tuple[str, float]] = []
        self.ended = threading.Condition()

    def away(self, *, unknown: bool = False) -> None:
        """Nothing gets through any more; with ``unknown``, only the replies are lost."""
        error = BackendUnavailable("the store is away", unknown=unknown)
        self.faults = {step: Fault(error, after=unknown) for step in STEPS}

    def back(self) -> None:
        for fault in self.faults.values():
            if fault.gate is not None:
                fault.gate.set()
        self.faults = {}

    def count(self, step: str) -> int:
        return len([name for name, _ in self.calls if name == step])

    async def wait(self, step: str, more: int = 1) -> None:
        """Wait until this step has ended so many times from now on."""
        count = self.count(step) + more

        def wait() -> bool:
            with self.ended:
                return self.ended.wait_for(lambda: self.count(step) >= count, PATIENCE)

        assert await asyncio.to_thread(wait)

    def _fault(self, step: str) -> Fault:
        self.begun.append((step, time.monotonic()))
        fault = self.faults.get(step)
        if fault is None or fault.times < 1:
            return Fault()
        fault.times -= 1
        return fault

    def _end(self, step: str, args: tuple[Any, ...]) -> None:
        with self.ended:
            self.calls.append((step, args))
            self.ended.notify_all()


def _blocking(step: str) -> Callable[..., Any]:
    def call(self: Flaky, *args: Any, **kwargs: Any) -> Any:
        fault = self._fault(step)
        try:
            if fault.gate is not None:
                fault.gate.wait(PATIENCE)
            if fault.error is not None and not fault.after:
                raise fault.error
            reply = getattr(self.inner, step)(*args, **kwargs)
            if fault.error is not None:
                raise fault.error
            return reply
        finally:
            self._end(step, args)

    return call


def _awaiting(step: str) -> Callable[..., Any]:
    async def call(self: Flaky, *args: Any, **kwargs: Any) -> Any:
        fault = self._fault(step)
        try:
            await asyncio.sleep(0)
            if fault.gate is not None:
                await asyncio.to_thread(fault.gate.wait, PATIENCE)
            if fault.error is not None and not fault.after:
                raise fault.error
            reply = await getattr(self.inner, step)(*args, **kwargs)
            if fault.error is not None:
                raise fault.error
            await asyncio.sleep(0)
            return reply
        finally:
            self._end(step, args)

    return call


def _close(self: Flaky) -> Any:
    return self.inner.close()


_SYNC: Final[Any] = type(
    "FlakyBackend", (Flaky, Backend), {step: _blocking(step) for step in STEPS} | {"close": _close}
)
_ASYNC: Final[Any] = type(
    "AsyncFlakyBackend", (Flaky, AsyncBackend), {step: _awaiting(step) for step in STEPS} | {"close": _close}
)


# -------------------------------------------------------------------- both kinds


class Kit:
    """Makes allocators of one kind on one store, and cleans up behind them.

    ``virtual``: the store's time stands still until :meth:`pass_time`; the allocators' own time goes on.
    """

    def __init__(self, kind: str, store: servers.Store) -> None:
        self.kind = kind
        self.store: Any = store
        self._allocators: list[Any] = []
        self._backends: list[Any] = []

    def backend(self, *, virtual: bool = True) -> Any:
        connect = self.store.connect if self.kind == "sync" else self.store.connect_async
        backend = connect(virtual=virtual)
        self._backends.append(backend)
        return backend

    def flaky(self) -> Any:
        return (_SYNC if self.kind == "sync" else _ASYNC)(self.backend())

    def allocator(self, url: str | None = None, *, virtual: bool = True, **arguments: Any) -> Any:
        """On this store, unless ``url``, ``backend`` or ``client`` says otherwise."""
        if url is None and not {"backend", "client", "settings"} & arguments.keys():
            arguments["backend"] = self.backend(virtual=virtual)
        arguments.setdefault("host", HOST)
        arguments.setdefault("ranges", [BACKUP])
        allocator = (PortAllocator if self.kind == "sync" else AsyncPortAllocator)(url, **arguments)
        self._allocators.append(allocator)
        return allocator

    def pass_time(self, seconds: float, host: str = HOST) -> None:
        """Let the store's time go on by this, with somebody visiting the host's space every five seconds."""
        with self.store.connect(virtual=True) as visitor:
            while seconds > 0:
                self.store.clock.advance(min(seconds, 5.0))
                seconds -= 5.0
                while visitor.reclaim(host_space(host)).backlog:
                    pass

    def ports(self, host: str = HOST) -> dict[int, str]:
        """What the store itself knows of the host's ports: state by number."""
        with self.store.connect(virtual=True) as visitor:
            (view,) = visitor.read([host_space(host)])
        return {port.number: port.state for port in view.ports}

    def leases(self, host: str = HOST) -> list[str]:
        """The instances that have a lease on the host, as the store knows them."""
        with self.store.connect(virtual=True) as visitor:
            (view,) = visitor.read([host_space(host)])
        return [lease.instance for lease in view.leases]

    async def finish(self) -> None:
        for allocator in self._allocators:
            if isinstance(allocator._backend, Flaky):
                allocator._backend.back()
        for allocator in self._allocators:
            with suppress(BackendError):  # the test took the store away
                await result(allocator.close())
        for backend in self._backends:
            await result(backend.close())
