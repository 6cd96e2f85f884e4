"""The allocator: leases, heartbeat and the calls that users make."""

from __future__ import annotations

import logging
import time
from datetime import UTC, datetime
from itertools import count as count_from
from secrets import token_hex
from types import NoneType
from typing import TYPE_CHECKING, Any, Literal, overload

from clusterports._acompat import AsyncEvent, AsyncLock, AsyncWorker
from clusterports._backends import connect_async
from clusterports._lease import HeldPort, HostLease, Process, monotonic
from clusterports._names import check_name, default_host, default_instance, host_space, space_host
from clusterports._requests import Ranges
from clusterports._watchdog import Callbacks, Watchdog
from clusterports.abc import Full, Gone, Granted, Holder, Occupied, Port, Renewed
from clusterports.errors import (
    BackendError,
    BackendUnavailable,
    ClusterPortsError,
    LeaseLost,
    PortInUse,
    PortsExhausted,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from types import TracebackType
    from typing import Self

    from clusterports.abc import Ask, AsyncBackend, Protocol4
    from clusterports.ranges import PortRange
    from clusterports.settings import Settings
    from clusterports.status import ClusterStatus

__all__ = ["AsyncAllocation", "AsyncPortAllocator"]

logger = logging.getLogger("clusterports")

BEATS_PER_TTL = 4
"""Heartbeats in one TTL: three in a row may fail before the lease is in jeopardy."""


class AsyncAllocation(HeldPort):
    """A port that is ours until it is released. As a context manager it is released at the end."""

    __slots__ = ("_allocator",)
    _allocator: AsyncPortAllocator

    async def release(self) -> None:
        """Give the port back; see :meth:`AsyncPortAllocator.release`."""
        await self._allocator.release(self)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lease.ours():  # a forked child leaves the block; the port is the parent's
            return
        try:
            await self.release()
        except BackendUnavailable as error:
            logger.warning("%s; the release is repeated with the next heartbeat", error)
        except LeaseLost:
            if value is None:
                raise


class AsyncPortAllocator:
    """Gives ports to jobs, and takes them back when a job, its manager or its host dies.

    ``url``: where the store is, such as ``redis://redis.example/0``; None: from the settings.
    ``host``: where the ports will be bound; default this machine's host name.
    ``instance``: the name of this manager. One that comes back under its name within the TTL finds its ports
    again, and an older process of the same name is fenced. Default: a name that no other process has.
    ``ranges``: instead of those in the settings. ``ttl``: seconds, 0.1 to 3600.
    ``on_lost`` is called with a :class:`LeaseLost` when ports are lost, ``on_jeopardy`` with the allocations
    when their lease could not be renewed in time: the holder may no longer rely on them, until a renewal
    succeeds. Both are called in a thread of this library, never in the event loop, so that nothing that
    blocks can hold them up. ``strict``: the deadline itself is a loss.
    ``client``: a redis client that the caller has already (also fakeredis). ``backend``: any backend; neither is
    closed by the allocator.

    Nothing is contacted before the first call.

    :raises ConfigurationError: for a value out of its bounds; names the key, the value and the bound.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        host: str | None = None,
        instance: str | None = None,
        ranges: Iterable[PortRange] | None = None,
        ttl: float | None = None,
        settings: Settings | None = None,
        on_lost: Callable[[LeaseLost], object] | None = None,
        on_jeopardy: Callable[[list[AsyncAllocation]], object] | None = None,
        strict: bool | None = None,
        client: Any = None,
        backend: AsyncBackend | None = None,
    ) -> None:
        from clusterports.settings import Settings

        arguments: dict[str, Any] = {"url": url, "host": host, "instance": instance, "ttl": ttl, "strict": strict}
        given = Settings(**arguments) if settings is None else settings.override(**arguments)
        self.host = given.host or default_host()
        self.instance = given.instance or default_instance(self.host)
        self.ttl = given.ttl
        self._ranges = Ranges(given.port_ranges().values() if ranges is None else ranges)
        self._backend = backend or connect_async(given.url, timeout=given.timeout, client=client)
        self._own_backend = backend is None
        self._named = given.instance is not None
        self._strict = given.strict
        self._on_lost = on_lost
        self._on_jeopardy = on_jeopardy
        self._process = token_hex(8)
        self._entered = count_from(1)
        self._leases: dict[str, HostLease] = {}
        self._forfeited: dict[int, HostLease] = {}  # given up by us, not yet ended in the store; by incarnation
        self._incarnations: dict[str, int] = {}  # the last one that we had on each host
        self._superseded: set[str] = set()
        self._started = False
        self._beating = False
        self._closed = False
        self._ended = False
        self._forks = Process.forks
        self._opening = AsyncLock()
        self._wake = AsyncEvent()
        self._heart: AsyncWorker | None = None
        self._watchdog = Watchdog(lambda: list(self._leases.values()), self._overdue)
        self._callbacks = Callbacks()

    # ---------------------------------------------------------------- ports

    @overload
    async def acquire(
        self,
        range: str,
        *,
        host: str | None = None,
        port: int | None = None,
        count: Literal[1] = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> AsyncAllocation: ...

    @overload
    async def acquire(
        self,
        range: str,
        *,
        host: str | None = None,
        port: int | None = None,
        count: int,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> AsyncAllocation | list[AsyncAllocation]: ...

    async def acquire(
        self,
        range: str,
        *,
        host: str | None = None,
        port: int | None = None,
        count: int = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> AsyncAllocation | list[AsyncAllocation]:
        """Take the lowest free port of a range, or the port with this number, or ``count`` ports at once.

        ``count`` of more than 1 gives a list, all or nothing. ``owner`` and ``labels`` are free text for people.

        :raises PortsExhausted: too few are free now.
        :raises PortInUse: the port with this number is taken; says by whom.
        :raises ImpossibleRequest: the range can never give this.
        :raises ConfigurationError: an unknown range, or a value out of its bounds.
        :raises LeaseLost: a newer process runs under this instance name.
        :raises BackendError: the store is away or refuses. Nothing is held then.
        """
        ask = self._ranges.ask(range, port, count, protocol, owner, labels)
        lease = self._leases.get(self.host if host is None else host) if type(host) in (NoneType, str) else None
        if lease is None or self._forks != Process.forks:
            name = self.host if host is None else check_name("host", host)
            await self._start()
            lease = await self._open(name)
        granted = await self._acquire(lease, ask, port)
        return granted if count > 1 else granted[0]

    async def release(self, allocation: AsyncAllocation) -> None:
        """Give a port back. It is free at once; releasing it twice does nothing.

        The port must not be used afterwards, whatever is raised: a release that did not reach the store is
        repeated with the heartbeat.

        :raises LeaseLost: its lease is gone; the port may be another's by now and was not touched.
        :raises BackendError: the store is away; it is repeated with the heartbeat.
        """
        if allocation._released:
            return
        lease = allocation._lease
        self._check_process()
        port = Port(allocation.number, allocation.protocol, allocation.fence)
        lease.unreleased[port.fence] = port  # first of all: from here on it is given back, whatever interrupts us
        allocation._released = True
        lease.ports.pop(port.fence, None)
        if lease.state == "lost":
            raise self._lost_error(lease, [allocation])
        reply = await self._backend.release(lease.space, lease.holder, (port,))
        lease.unreleased.pop(port.fence, None)
        if isinstance(reply, Gone):
            self._gone(lease, reply)
            raise self._lost_error(lease, [allocation])

    async def allocations(self) -> list[AsyncAllocation]:
        """What this instance holds, by host and number; also what it held before it was restarted."""
        await self._start()
        held = [port for lease in list(self._leases.values()) for port in list(lease.ports.values())]
        held.sort(key=lambda port: (port.host, port.number, port.protocol))
        return held  # type: ignore[return-value]

    async def status(self, host: str | None = None, range: str | None = None) -> ClusterStatus:
        """How all hosts stand, or one host or one range. Changes nothing: no lease is opened or prolonged."""
        from clusterports.status import ClusterStatus

        if range is not None:
            self._ranges.check(range)
        self._check_process()
        names = await self._backend.spaces() if host is None else [host_space(check_name("host", host))]
        return ClusterStatus.build(
            spaces=await self._backend.read(names),
            ranges=list(self._ranges.by_name.values()),
            backend=self._backend.name,
            generated_at=datetime.now(UTC),
            host=host,
            range=range,
        )

    # ---------------------------------------------------------------- life

    async def close(self, release: bool = True) -> None:
        """End the heartbeat and give back all ports; with ``release=False`` leave them, as :meth:`detach` does.

        :raises BackendError: the store is away; the ports are free when the lease has run out.
        """
        if self._forks != Process.forks:  # the parent's
            self._closed = True
            self._leases.clear()
            return
        async with self._opening:  # a lease that is being opened comes first, and none after
            self._closed = True
        if self._ended:
            return
        self._wake.set()
        if self._heart is not None:
            await self._heart.join()
        failed: BackendError | None = None
        for lease in [*self._leases.values(), *self._forfeited.values()]:
            try:
                await self._leave(lease, release)
            except BackendError as error:
                failed = failed or error
        self._ended = True
        self._leases.clear()
        self._watchdog.stop()
        self._callbacks.stop()
        if self._own_backend:
            await self._backend.close()
        if failed is not None:
            raise failed

    async def detach(self) -> None:
        """End, but leave the leases: a process that comes back under this instance name in time finds its ports."""
        await self.close(release=False)

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            await self.close()
        except BackendError as error:
            if value is None:
                raise
            logger.warning("%s; the ports are free when the lease has run out", error)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._backend.name} host={self.host!r} instance={self.instance!r}>"

    # ---------------------------------------------------------------- leases

    def _check_process(self) -> None:
        if self._forks != Process.forks:
            raise ClusterPortsError("This allocator belongs to the parent process; make one after the fork")
        if self._closed:
            raise ClusterPortsError("This allocator is closed")

    async def _start(self) -> None:
        """Find what an earlier process of this instance left behind."""
        self._check_process()
        if self._started:
            return
        async with self._opening:
            self._check_process()
            complete = True
            if self._named and not self._started:
                for space in await self._backend.spaces(self.instance):
                    try:
                        await self._resume(space_host(space))
                    except BackendUnavailable:
                        raise
                    except (BackendError, LeaseLost) as error:  # one bad host must not cost the others their leases
                        logger.warning("not resumed: %s", error)
                        complete = False
            self._started = complete

    async def _resume(self, host: str) -> None:
        if host not in self._leases:
            lease = await self._enter(host)
            if lease.ports:
                self._keep(lease)
            else:  # it had run out: nothing to come back to
                await self._end(lease)
                del self._incarnations[host]

    async def _open(self, host: str) -> HostLease:
        self._check_process()
        async with self._opening:
            self._check_process()
            lease = self._leases.get(host)
            if lease is None:
                lease = await self._enter(host)
                self._keep(lease)
            return lease

    async def _enter(self, host: str) -> HostLease:
        """Open or resume a lease. Nobody uses it before :meth:`_keep`."""
        if host in self._superseded:
            raise self._superseded_error(host)
        for forfeited in [lease for lease in list(self._forfeited.values()) if lease.host == host]:
            await self._forfeit(forfeited)
        space = host_space(host)
        ttl = round(self.ttl * 1_000_000)
        sent_at = monotonic()
        # Never the same token twice: the attempt before may have opened a lease whose time began then, not now.
        token = f"{self._process}{next(self._entered):08x}"
        reply = await self._backend.open(space, self.instance, token=token, ttl=ttl)
        while isinstance(reply, Occupied):
            if await self._outdated(host, reply):
                self._superseded.add(host)
                raise self._superseded_error(host)
            seen = reply.incarnation
            sent_at = monotonic()
            reply = await self._backend.open(space, self.instance, token=token, ttl=ttl, supersede=seen)
            self._incarnations[host] = seen  # two that start at once: only one takes over from the other
        self._incarnations[host] = reply.incarnation
        holder = Holder(self.instance, reply.lease, reply.incarnation)
        lease = HostLease(space, host, holder, self.ttl, sent_at, strict=self._strict)
        if reply.ports:
            await self._find_again(lease)
        return lease

    async def _outdated(self, host: str, other: Occupied) -> bool:
        """Whether the process that has the lease on this host is newer than we are, as far as one can tell."""
        if other.token.startswith(self._process):
            return False
        if self._superseded or other.incarnation > self._incarnations.get(host, other.incarnation):
            return True
        if not self._started or not self._incarnations:
            return False
        await self._renew_all()  # it came after our start: is what was ours elsewhere still ours?
        return bool(self._superseded) or not self._leases

    def _superseded_error(self, host: str) -> LeaseLost:
        return LeaseLost(f"A newer process runs as instance {self.instance!r} on host {host!r}")

    async def _forfeit(self, lease: HostLease) -> None:
        """End a lease that we gave up: its jobs may still be stopping, so its ports cool."""
        await self._end(lease, quarantine=True)
        self._forfeited.pop(lease.holder.incarnation, None)

    def _keep(self, lease: HostLease) -> None:
        self._leases[lease.host] = lease
        if self._heart is None:
            self._heart = AsyncWorker(self._beat, "clusterports-heartbeat")
        self._heart.ensure()
        self._watchdog.start()

    async def _find_again(self, lease: HostLease) -> None:
        after: Port | None = None
        more = True
        now = time.time()
        while more:
            page = await self._backend.held(lease.space, lease.holder, after)
            if isinstance(page, Gone):
                return
            for seen in page.ports:
                after = Port(seen.number, seen.protocol, seen.fence)
                self._allocation(lease, after, seen.range, seen.owner, seen.labels, now - seen.age / 1e6)
            more = page.more

    async def _leave(self, lease: HostLease, release: bool) -> None:
        if lease.lose():  # from here on its ports are not valid
            lease.left = True
        if release:
            for port in lease.ports.values():
                port._released = lease.left
            await self._end(lease, quarantine=not lease.left)
        elif lease.unreleased:
            await self._backend.release(lease.space, lease.holder, list(lease.unreleased.values()))

    async def _end(self, lease: HostLease, *, quarantine: bool = False) -> None:
        more = True
        while more:
            reply = await self._backend.close_lease(lease.space, lease.holder, quarantine=quarantine)
            more = not isinstance(reply, Gone) and reply.more

    def _gone(self, lease: HostLease, gone: Gone) -> None:
        """The store says that there is no such lease."""
        if self._leases.get(lease.host) is lease:
            del self._leases[lease.host]
        if gone.reason == "superseded":
            self._superseded.add(lease.host)
        if lease.lose() and (lease.ports or gone.reason == "superseded"):
            self._tell_lost(lease)

    def _overdue(self, lease: HostLease) -> None:
        """The local deadline has passed. Called by the watchdog."""
        if not lease.overdue(monotonic()):
            return
        if self._heart is not None:
            self._heart.ensure()
        if self._strict:
            self._forfeited[lease.holder.incarnation] = lease
            if self._leases.get(lease.host) is lease:
                del self._leases[lease.host]
            if lease.ports:
                self._tell_lost(lease)
        elif lease.ports:
            held = list(lease.ports.values())
            logger.warning("the lease on host %r is in jeopardy: %d ports", lease.host, len(held))
            if self._on_jeopardy is not None:
                self._callbacks.call(self._on_jeopardy, held)

    def _tell_lost(self, lease: HostLease) -> None:
        error = self._lost_error(lease, list(lease.ports.values()))
        logger.error("%s", error)
        if self._on_lost is not None:
            self._callbacks.call(self._on_lost, error)

    def _lost_error(self, lease: HostLease, allocations: list[HeldPort]) -> LeaseLost:
        why = "a newer process runs under this name" if lease.host in self._superseded else "it was not renewed in time"
        numbers = ", ".join(f"{port.number}/{port.protocol}" for port in allocations[:8])
        if len(allocations) > 8:
            numbers += f" and {len(allocations) - 8} more"
        message = f"The lease of instance {self.instance!r} on host {lease.host!r} is lost: {why}"
        return LeaseLost(f"{message}; ports: {numbers or 'none'}", allocations=allocations, reason=lease.reason)

    # ---------------------------------------------------------------- acquire

    async def _acquire(self, lease: HostLease, ask: Ask, port: int | None) -> list[AsyncAllocation]:
        reopened = False
        while True:
            number = 0
            given: list[AsyncAllocation] = []
            try:
                request = lease.begin()
                number = request.number
                reply = await self._backend.acquire(lease.space, lease.holder, request, (ask,))
                if isinstance(reply, Granted):
                    now = time.time()
                    given.extend(self._allocation(lease, p, ask.range, ask.owner, ask.labels, now) for p in reply.ports)
                lease.settle(number)
            except BaseException as error:
                if isinstance(error, BackendError) and not error.unknown:
                    lease.settle(number)
                else:  # it may have been carried out: undone by the heartbeat, which should come soon
                    for allocation in given:
                        lease.ports.pop(allocation.fence, None)
                    lease.abandon(number)
                    self._wake.set()
                raise
            if isinstance(reply, Granted):
                if lease.state == "lost":  # meanwhile; whoever was told did not hear of these
                    raise self._lost_error(lease, list(given))
                return given
            if isinstance(reply, Gone):
                self._gone(lease, reply)
                if reopened or reply.reason == "superseded":
                    raise self._lost_error(lease, list(lease.ports.values()))
                reopened = True
                lease = await self._open(lease.host)
            elif isinstance(reply, Full):
                if reply.backlog:
                    while (await self._backend.reclaim(lease.space)).backlog:
                        pass
                elif port is not None and reply.holder is not None:
                    raise PortInUse(lease.host, reply.holder)
                else:
                    (first, last), *_ = ask.spans
                    raise PortsExhausted(ask.range, first, last, ask.count)
            # Stale: the answer to an earlier copy of this request was lost on the way. It gave nothing; ask anew.

    def _allocation(
        self, lease: HostLease, port: Port, range: str, owner: str, labels: Mapping[str, str], acquired: float
    ) -> AsyncAllocation:
        allocation = AsyncAllocation(lease, port, range, owner, labels, acquired)
        allocation._allocator = self
        lease.ports[port.fence] = allocation
        return allocation

    # ---------------------------------------------------------------- heartbeat

    async def _beat(self) -> None:
        interval = self.ttl / BEATS_PER_TTL
        pause = 0.0 if self._beating else interval  # started again: the beat before has failed
        self._beating = True
        while True:
            await self._wake.wait(pause)
            self._wake.clear()
            if self._closed:
                return
            started = monotonic()
            try:
                healthy = await self._renew_all()
            except BackendError as error:
                logger.warning("no heartbeat: %s", error)
                healthy = False
            except Exception:
                logger.exception("the heartbeat failed; it goes on")
                healthy = False
            pause = max(0.0, started + interval - monotonic()) if healthy else min(interval, self.ttl / 20)

    async def _renew_all(self) -> bool:
        leases = list(self._leases.values())
        sent_at = monotonic()
        renewals = [lease.renewal() for lease in leases]
        outcomes = await self._backend.renew(renewals)
        healthy = True
        for lease, renewal, outcome in zip(leases, renewals, outcomes, strict=True):
            if isinstance(outcome, Renewed):
                lease.renewed(renewal, sent_at)
                if lease.renewal().abandoned:  # more than one heartbeat may undo
                    self._wake.set()
                await self._catch_up(lease, backlog=outcome.backlog, until=sent_at + self.ttl / (2 * BEATS_PER_TTL))
            elif isinstance(outcome, Gone):
                self._gone(lease, outcome)
            else:
                healthy = False
                logger.warning("no heartbeat on host %r: %s", lease.host, outcome)
        for lease in list(self._forfeited.values()):
            await self._forfeit(lease)
        self._watchdog.start()
        return healthy

    async def _catch_up(self, lease: HostLease, *, backlog: bool, until: float) -> None:
        """Releases that did not get through, and what others left behind; the heartbeat must not be late for it."""
        try:
            if lease.unreleased:
                ports = list(lease.unreleased.values())
                await self._backend.release(lease.space, lease.holder, ports)
                for port in ports:
                    lease.unreleased.pop(port.fence, None)
            while backlog and monotonic() < until:
                backlog = (await self._backend.reclaim(lease.space)).backlog
        except BackendError as error:
            logger.warning("on host %r: %s", lease.host, error)
