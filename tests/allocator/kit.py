"""What the tests of the allocators share: both kinds under one roof, and a store that can be told to fail.

A test is written once, as a coroutine. ``await result(ports.acquire("backup"))`` is right for both kinds.
"""

from __future__ import annotations

import asyncio
import inspect
import random
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clusterports import AsyncPortAllocator, PortAllocator, PortRange
from clusterports._names import CLUSTER_SPACE, host_space
from clusterports.abc import AsyncBackend, Backend
from clusterports.errors import BackendError, BackendUnavailable
from clusterports.probe import probe

if TYPE_CHECKING:
    from collections.abc import Callable

    import servers

    from clusterports.abc import SpaceView

__all__ = [
    "BACKUP",
    "HOST",
    "PATIENCE",
    "Fault",
    "Flaky",
    "Kit",
    "Outside",
    "Told",
    "begin",
    "eventually",
    "finished",
    "listener",
    "numbers",
    "result",
    "serve_in_pairs",
    "serve_in_process",
    "unused",
]

PATIENCE: Final = 15.0
"""Seconds until a test gives up waiting; none takes this long when all is well."""

HOST: Final = "kvm-07"

BACKUP: Final = PortRange("backup", 10809, 10810, quarantine=15)


async def result(value: Any) -> Any:
    """What a call gave, whichever kind of allocator it was."""
    return await value if inspect.isawaitable(value) else value


def begin(call: Callable[..., Any], *args: Any, **kwargs: Any) -> asyncio.Future[Any]:
    """The call goes on by itself, whichever kind of allocator it is of: in a thread, or as a task."""
    asked = call(*args, **kwargs) if inspect.iscoroutinefunction(call) else asyncio.to_thread(call, *args, **kwargs)
    return asyncio.ensure_future(asked)


async def finished(call: asyncio.Future[Any]) -> Any:
    """What became of it."""
    return await asyncio.wait_for(call, PATIENCE)


def numbers(ports: Any) -> list[int]:
    """Of one allocation, or of several in their order."""
    return [int(port) for port in (ports if isinstance(ports, list) else [ports])]


async def eventually(expected: object, seen: Callable[[], Any]) -> None:
    """Wait until this is seen."""
    deadline = time.monotonic() + PATIENCE
    while (last := await result(seen())) != expected:
        assert time.monotonic() < deadline, f"expected {expected!r}, and at last saw {last!r}"
        await asyncio.sleep(0.01)


def unused(count: int) -> int:
    """The first of so many adjacent ports that nothing on this machine has, nor gets from the kernel meanwhile."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for first in random.sample(range(max(1024, low - 16000), low - count), 200):
        if all(probe(first + index, "both").state == "free" for index in range(count)):
            return first
    raise AssertionError("no unused ports")


def listener(number: int, family: socket.AddressFamily = socket.AF_INET) -> socket.socket:
    """A listener of somebody else, on this family's wildcard alone."""
    sock = socket.socket(family)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
    sock.bind(("::" if family == socket.AF_INET6 else "0.0.0.0", number))
    sock.listen()
    return sock


class Outside:
    """A probe that finds these numbers busy, on every host, and remembers what it was asked."""

    def __init__(self, *busy: int) -> None:
        self.busy = set(busy)
        self.asked: list[tuple[str, int, str]] = []

    def __call__(self, host: str, number: int, protocol: str) -> bool:
        self.asked.append((host, number, protocol))
        return number not in self.busy


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


STEPS: Final = (
    "open",
    "acquire",
    "claim",
    "preview",
    "mark_foreign",
    "force",
    "drop",
    "renew",
    "release",
    "close_lease",
    "reclaim",
    "held",
    "read",
    "spaces",
)


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
        self.says: Callable[[str, Any], Any] = lambda step, reply: reply  # what becomes of a reply
        self._held: dict[str, threading.Event] = {}

    def hold_request(self, step: str) -> Callable[[], None]:
        """The next requests of this step wait until the function that this returns is called."""
        fault = self.faults[step] = Fault(gate=threading.Event())

        def go_on() -> None:
            assert fault.gate is not None
            del self.faults[step]
            fault.gate.set()

        return go_on

    def hold_reply(self, step: str) -> Callable[[], None]:
        """The same for replies: the request is carried out."""
        gate = self._held[step] = threading.Event()

        def go_on() -> None:
            del self._held[step]
            gate.set()

        return go_on

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
            if step in self._held:
                self._held[step].wait(PATIENCE)
            if fault.error is not None:
                raise fault.error
            return self.says(step, reply)
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
            if step in self._held:
                await asyncio.to_thread(self._held[step].wait, PATIENCE)
            if fault.error is not None:
                raise fault.error
            await asyncio.sleep(0)
            return self.says(step, reply)
        finally:
            self._end(step, args)

    return call


def _close(self: Flaky) -> Any:
    return self.inner.close()


def _watch(self: Flaky, space: str, ticket: int) -> Any:
    return self.inner.watch(space, ticket)


_REST: Final = {"close": _close, "watch": _watch}
_SYNC: Final[Any] = type("FlakyBackend", (Flaky, Backend), {step: _blocking(step) for step in STEPS} | _REST)
_ASYNC: Final[Any] = type("AsyncFlakyBackend", (Flaky, AsyncBackend), {step: _awaiting(step) for step in STEPS} | _REST)


# -------------------------------------------------------------------- both kinds


def _space(host: str) -> str:
    return host_space(host) if host else CLUSTER_SPACE


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
                while visitor.reclaim(_space(host)).backlog:
                    pass

    def view(self, host: str = HOST) -> SpaceView:
        """What the store itself knows of the host; of what is unique in the cluster for ""."""
        with self.store.connect(virtual=True) as visitor:
            (view,) = visitor.read([_space(host)])
        return view  # type: ignore[no-any-return]

    def ports(self, host: str = HOST) -> dict[int, str]:
        """State by number."""
        return {port.number: port.state for port in self.view(host).ports}

    def leases(self, host: str = HOST) -> list[str]:
        """The instances that have a lease there."""
        return [lease.instance for lease in self.view(host).leases]

    def waiting(self, host: str = HOST) -> int:
        """How many places in the queue are taken."""
        return self.view(host).waiting

    async def finish(self) -> None:
        for allocator in self._allocators:
            if isinstance(allocator._backend, Flaky):
                allocator._backend.back()
        for allocator in self._allocators:
            with suppress(BackendError):  # the test took the store away
                await result(allocator.close())
        for backend in self._backends:
            await result(backend.close())


# -------------------------------------------------------------------- many at once


async def serve_in_pairs(allocator: Any, asks: int) -> list[int]:
    """So many asks for two ports each, five at a time; the numbers that came."""
    left = iter(range(asks))
    given: list[int] = []

    async def ask() -> None:
        for _ in left:
            given.extend(numbers(await result(allocator.acquire("r", count=2))))

    def ask_blocking() -> None:
        for _ in left:
            given.extend(numbers(allocator.acquire("r", count=2)))

    waits = isinstance(allocator, AsyncPortAllocator)
    await asyncio.gather(*(ask() if waits else asyncio.to_thread(ask_blocking) for _ in range(5)))
    return given


def serve_in_process(kind: str, url: str, span: PortRange, asks: int) -> list[int]:
    """The same, for a process of its own. Its ports stay held."""

    async def serve() -> list[int]:
        allocator = (PortAllocator if kind == "sync" else AsyncPortAllocator)(url, host=HOST, ranges=[span])
        try:
            return await serve_in_pairs(allocator, asks)
        finally:
            await result(allocator.detach())

    return asyncio.run(serve())
