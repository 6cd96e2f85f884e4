# Generated from clusterports/_async/allocator.py by .ci/unasync.py; do not edit.

"""The allocator: leases, heartbeat and the calls that users make."""

from __future__ import annotations

import logging
import time
from dataclasses import fields
from datetime import UTC, datetime
from itertools import count as count_from
from secrets import token_hex
from typing import TYPE_CHECKING, Any, Literal, overload

from clusterports._acompat import Event, Lock, Worker
from clusterports._backends import connect, intact
from clusterports._lease import FORCED, HeldPort, HostLease, Process, monotonic
from clusterports._names import (
    CLUSTER_SPACE,
    check_name,
    default_host,
    default_instance,
    host_space,
    is_cluster_space,
    is_host_space,
    space_host,
    where,
)
from clusterports._requests import Ranges, check_port, overlap
from clusterports._text import show
from clusterports._wants import Want, check_wait
from clusterports._watchdog import Callbacks, Watchdog
from clusterports.abc import Capability, Gone, Granted, Holder, Occupied, Port, Released, Renewed
from clusterports.errors import (
    BackendError,
    BackendUnavailable,
    ClusterPortsError,
    ConfigurationError,
    LeaseLost,
    PortInUse,
)
from clusterports.probe import HeldSockets, bound, is_local, warn_ephemeral
from clusterports.ranges import PortRequest

from .acquire import FOREIGN, Taking
from .mending import Mending

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from clusterports._requests import Plan
    from clusterports.abc import (
        Ask,
        Backend,
        Full,
        Marked,
        Opened,
        PortView,
        Protocol4,
        Queued,
        Recovering,
        Stale,
        Wait,
    )
    from clusterports.events import PortEvent
    from clusterports.probe import Probe
    from clusterports.ranges import PortRange
    from clusterports.settings import Settings
    from clusterports.status import ClusterStatus

    from .events import EventLog

__all__ = ["Allocation", "PortAllocator"]

logger = logging.getLogger("clusterports")

MAX_FOREIGN = 3600.0
"""Seconds for which one word may mark a port."""

BEATS_PER_TTL = 4
"""Heartbeats in one TTL: three in a row may fail before the lease is in jeopardy."""


class Allocation(HeldPort):
    """A port that is ours until it is released. As a context manager it is released at the end."""

    __slots__ = ("_allocator",)
    _allocator: PortAllocator

    def release(self) -> None:
        """Give the port back; see :meth:`PortAllocator.release`."""
        self._allocator.release(self)

    def mark_foreign(self, seconds: float = FOREIGN) -> None:
        """Give back a port that something else has; see :meth:`PortAllocator.mark_foreign`."""
        self._allocator.mark_foreign(self, seconds)

    def socket(self, protocol: Literal["tcp", "udp"] | None = None) -> socket.socket:
        """A socket that is bound to the port on all addresses and, for TCP, listens: to be handed to the job.

        It is the caller's to close. ``protocol`` must be given for a port of both. With a
        :class:`~clusterports.probe.HeldSockets` as the allocator's probe it was bound before the port was given out,
        so nobody can have come between. Without, that may happen, and is an error here; the port stays held.

        :raises PortBusy: something else on this machine has the port.
        :raises BindError: it cannot be bound for another reason.
        :raises LeaseLost: the allocation is not valid.
        :raises ConfigurationError: the port is of another host, or of another protocol.
        """
        return self._allocator._socket(self, protocol)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._lease.ours():  # a forked child leaves the block; the port is the parent's
            return
        try:
            self.release()
        except BackendUnavailable as error:
            logger.warning("%s; the release is repeated with the next heartbeat", error)
        except LeaseLost:
            if value is None:
                raise


class PortAllocator:
    """Gives ports to jobs, and takes them back when a job, its manager or its host dies.

    ``url``: where the store is, such as ``redis://redis.example/0``; None: from the settings.
    ``host``: where the ports will be bound; default this machine's host name.
    ``instance``: the name of this manager. One that comes back under its name within the TTL finds its ports
    again, and an older process of the same name is fenced. Default: a name that no other process has.
    ``ranges``: instead of those in the settings. ``ttl``: seconds, 0.1 to 3600.
    ``on_lost`` is called with a :class:`LeaseLost` when ports are lost, all of a lease or some; ``on_jeopardy`` with
    the allocations when their lease could not be renewed in time: the holder may no longer rely on them, until a
    renewal succeeds. Both are called in a thread of this library, never in the event loop, so that nothing that
    blocks can hold them up. ``strict``: the deadline itself is a loss.
    ``probe``: whether a port is free on its host is tried before it is given. ``"auto"``: on this machine, by binding
    it, if the settings do not say otherwise; False: not at all; or a function of host, number and protocol, which says
    True for free and must not block for long. A port that something else has is marked as foreign for 30 seconds.
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
        probe: Probe | Literal["auto", False] = "auto",
        on_lost: Callable[[LeaseLost], object] | None = None,
        on_jeopardy: Callable[[list[Allocation]], object] | None = None,
        strict: bool | None = None,
        client: Any = None,
        backend: Backend | None = None,
    ) -> None:
        from clusterports.settings import Settings

        arguments: dict[str, Any] = {"url": url, "host": host, "instance": instance, "ttl": ttl, "strict": strict}
        given = Settings(**arguments) if settings is None else settings.override(**arguments)
        self.host = given.host or default_host()
        self.instance = given.instance or default_instance(self.host)
        self.ttl = given.ttl
        self._ranges = Ranges(given.port_ranges().values() if ranges is None else ranges)
        if probe is not False and probe != "auto" and not callable(probe):
            raise ConfigurationError(f'probe: must be "auto", False or a function, got {show(probe)}')
        self._probe: Probe | Literal["auto", False] = False if probe == "auto" and not given.probe else probe
        self._elsewhere: set[str] = set()  # hosts where no port is probed
        self._sockets = probe if isinstance(probe, HeldSockets) else None
        self._warned: set[str] = set()
        self._backend = backend or connect(
            given.url, timeout=given.timeout, events=given.events, client=client, origin=given.origins()["url"]
        )
        self._own_backend = backend is None
        self._named = given.instance is not None
        self._strict = given.strict
        self._on_lost = on_lost
        self._on_jeopardy = on_jeopardy
        self._process = token_hex(8)
        self._entered = count_from(1)
        self._leases: dict[str, HostLease] = {}  # by space, as all that follow
        self._forfeited: dict[int, HostLease] = {}  # given up by us, not yet ended in the store; by identity
        self._incarnations: dict[str, int] = {}  # the last one that we had
        self._known: dict[str, int] = {}  # the last one, also where there was nothing to come back to
        self._superseded: set[str] = set()
        self._started = False
        self._beating = False
        self._closed = False
        self._ended = False
        self._forks = Process.forks
        self._opening = Lock()
        self._mending = Mending(self)
        self._wake = Event()
        self._heart: Worker | None = None
        self._watchdog = Watchdog(lambda: list(self._leases.values()), self._overdue)
        self._callbacks = Callbacks()

    # ---------------------------------------------------------------- ports

    @overload
    def acquire(
        self,
        range: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        count: Literal[1] = 1,
        contiguous: bool = False,
        align: int = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
        dry_run: bool = False,
    ) -> Allocation: ...

    @overload
    def acquire(
        self,
        range: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        count: int,
        contiguous: bool = False,
        align: int = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
        dry_run: bool = False,
    ) -> Allocation | list[Allocation]: ...

    def acquire(
        self,
        range: str | None,
        *,
        host: str | None = None,
        port: int | None = None,
        count: int = 1,
        contiguous: bool = False,
        align: int = 1,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
        dry_run: bool = False,
    ) -> Allocation | list[Allocation]:
        """Take a port of a range, or the port with this number, or ``count`` ports at once.

        ``count`` of more than 1 gives a list, all or nothing; with ``contiguous`` they are adjacent and ascend, and
        the first is a multiple of ``align``. ``range=None`` with a ``port`` takes any port from 1 to 65535.
        ``protocol``: ``tcp``, ``udp``, or ``both`` for a number that is free in both. ``owner`` and ``labels`` are free
        text for people. ``wait``: seconds to wait for free ports, in the order in which callers came, of all processes;
        0: not at all. ``dry_run``: say what would be given, and take nothing; such an allocation is not valid.

        :raises PortsExhausted: too few are free now, or the owner has as many as the range's limit allows.
        :raises PortInUse: the port with this number is taken; says by whom.
        :raises ImpossibleRequest: the range can never give this.
        :raises BindError: this machine refuses the port for another reason than being in use.
        :raises ConfigurationError: an unknown range, or a value out of its bounds.
        :raises LeaseLost: a newer process runs under this instance name.
        :raises BackendRecovering: the store lost data of this host, and holders get time to claim theirs; not before
            ``wait`` is over.
        :raises NotReplicated: the store has fewer copies of it than its URL asks for.
        :raises BackendError: the store is away or refuses. Nothing is held then.
        """
        asked: dict[str, Any] = {}
        # With their types: 1.0 and True are equal to 1.
        if not (port is None and count == 1 == align and type(count) is int is type(align) and contiguous is False):
            asked = {"port": port, "count": count, "contiguous": contiguous, "align": align}
        at = self.host if host is None else host
        plan = self._ranges.plan(range, host=at, protocol=protocol, owner=owner, labels=labels, **asked)
        lease = self._leases.get(plan.space)
        reply = None
        seconds = 0.0
        if (
            wait != 0
            or dry_run
            or lease is None
            or self._forks != Process.forks
            or (at not in self._elsewhere and self._tries_out(plan))
        ):
            seconds = check_wait(wait)
            self._check_process()
            if not dry_run:
                self._start()
            lease = None
        else:
            given: list[Allocation] = []
            number = 0
            try:  # as in Taking, which can do everything and costs more
                request = lease.begin()
                number = request.number
                reply = self._backend.acquire(lease.space, lease.holder, request, (plan.ask,))
                if isinstance(reply, Granted):
                    now = time.time()
                    self._add(given, lease, plan, reply.ports, now)
                lease.settle(number)
            except BaseException as error:
                if isinstance(error, BackendError) and not error.unknown:
                    lease.settle(number)
                else:
                    self._abandon([(lease, number)], given)
                raise
            if isinstance(reply, Granted):
                if lease.lost():  # meanwhile; whoever was told did not hear of these
                    raise self._lost_error(lease, list(given))
                if lease.forced and any(port._revoked for port in given):
                    raise self._robbed(lease, given)
                return given if count > 1 else given[0]
        want = Want(self._ranges, range, host=at, protocol=protocol, owner=owner, labels=labels, **asked)
        taking = Taking(self, [want], seconds)
        (taking.preview() if dry_run else taking.run(lease, reply))
        given = list(want.given)  # type: ignore[arg-type]
        return given if count > 1 else given[0]

    def acquire_many(self, requests: Iterable[PortRequest]) -> list[Allocation]:
        """Take what several requests want, over ranges and hosts: all or nothing. In their order.

        In one space, normally a host, that is one step; over several it is undone if it fails on the way, and if this
        process dies on the way, the ports fall with their leases.

        :raises: what :meth:`acquire` raises, for the first request that cannot be met.
        """
        return self._acquire_all(requests)

    def _acquire_all(
        self, requests: Iterable[PortRequest], *, skip: Collection[int] = (), wait: float = 0.0
    ) -> list[Allocation]:
        """``skip``: numbers that none of them is to get, but who names one. Only a single request may ``wait``."""
        wants = []
        for request in requests:
            if not isinstance(request, PortRequest):
                raise ConfigurationError(f"requests: must be PortRequests, got {show(request)}")
            asked = {field.name: getattr(request, field.name) for field in fields(request)}
            name, host = asked.pop("range"), asked.pop("host")
            wants.append(Want(self._ranges, name, host=self.host if host is None else host, **asked))
        self._start()
        for want in wants:
            self._tries_out(want.plan)
            if skip and not want.ask.explicit:
                want.look_elsewhere(skip)
        Taking(self, wants, wait).run()
        return [port for want in wants for port in want.given]  # type: ignore[misc]

    def release(self, allocation: Allocation) -> None:
        """Give a port back. It is free at once; releasing it twice does nothing.

        The port must not be used afterwards, whatever is raised: a release that did not reach the store is
        repeated with the heartbeat.

        :raises ConfigurationError: it is another allocator's; nothing was touched.
        :raises LeaseLost: its lease is gone; the port may be another's by now and was not touched.
        :raises BackendError: the store is away; it is repeated with the heartbeat.
        """
        self._give_back(allocation)

    def mark_foreign(self, allocation: Allocation, seconds: float = FOREIGN) -> None:
        """Give back a port that the job cannot have, because something outside has it: it is passed over for a while.

        For whoever finds it out only by starting the job: on another machine no probe looks. ``seconds``: above 0, at
        most 3600. At most half of a range's ports are marked at a time, and none that was claimed without a range;
        others are just given back.

        :raises: what :meth:`release` raises.
        """
        if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_FOREIGN:
            raise ConfigurationError(f"seconds: must be above 0 and at most {MAX_FOREIGN:.0f}, got {show(seconds)}")
        self._give_back(allocation, seconds)

    def _give_back(self, allocation: Allocation, foreign: float = 0.0) -> None:
        if allocation._allocator is not self:
            raise ConfigurationError(f"allocation: must be one of this allocator, got {allocation!r}")
        if allocation._released:
            return
        lease = allocation._lease
        self._check_process()
        port = Port(allocation.number, allocation.protocol, allocation.fence)
        lease.unreleased[port.fence] = port  # first of all: from here on it is given back, whatever interrupts us
        allocation._released = True
        lease.ports.pop(port.fence, None)
        if allocation._revoked:
            lease.unreleased.pop(port.fence, None)
            raise self._taken_error(lease, [allocation])
        if lease.lost():
            raise self._lost_error(lease, [allocation])
        self._discard_socket(allocation)
        reply = self._freed(allocation, port, foreign)
        if isinstance(reply, Gone) and self._mending.ours_again(lease):
            reply = self._freed(allocation, port, foreign)
        lease.unreleased.pop(port.fence, None)
        if isinstance(reply, Gone):
            self._gone(lease, reply)
            raise self._lost_error(lease, [allocation])
        if isinstance(reply, Released) and reply.revoked:
            allocation._revoked = FORCED
            raise self._taken_error(lease, [allocation])

    def _freed(self, allocation: Allocation, port: Port, foreign: float) -> Released | Marked | Gone:
        lease = allocation._lease
        if not foreign:
            return self._backend.release(lease.space, lease.holder, (port,))
        return self._backend.mark_foreign(
            lease.space,
            lease.holder,
            (port,),
            range=allocation.range or "",
            duration=round(foreign * 1e6),
            most=self._ranges.marks(allocation.range or ""),
            host="" if is_host_space(lease.space) else allocation.host,
        )

    def adopt(
        self,
        range: str | None,
        *,
        port: int,
        host: str | None = None,
        protocol: Protocol4 = "tcp",
        owner: str = "",
        labels: Mapping[str, str] | None = None,
    ) -> Allocation:
        """Take the port of a job that runs already, though nobody holds it: its manager died, or never asked.

        As :meth:`acquire` with a ``port``, but the port is not probed, and taken also while it cools, past those who
        wait for it and over the range's limit: it is in use, whoever else wants it.

        :raises: what :meth:`acquire` raises; `PortInUse` if somebody holds it.
        """
        at = self.host if host is None else host
        check_port(port, protocol)  # it must not be None here
        want = Want(self._ranges, range, host=at, port=port, protocol=protocol, owner=owner, labels=labels)
        self._start()
        want.run_already()
        Taking(self, [want], probed=False).run()
        return want.given[0]  # type: ignore[return-value]

    def force_release(self, host: str, number: int, protocol: Protocol4 = "tcp", *, fence: int | None = None) -> bool:
        """Take a port from whoever has it; for operators, where a job or its manager cannot do it any more.

        A held port cools, for the quarantine of its range or until its lease would have run out, and its holder is told
        with its next heartbeat. A port that cools, or is marked as foreign, is free at once. ``fence``: only if it is
        still this allocation of the port.
        False: the port is free.

        :raises PortInUse: the port has another fence by now; says who has it.
        :raises ConfigurationError: a value out of its bounds.
        :raises BackendError: the store is away, or what it knows of this host is damaged.
        """
        self._check_process()
        check_port(number, protocol)
        spaces = [host_space(check_name("host", host)), CLUSTER_SPACE]
        found = []
        for space, view in zip(spaces, intact(self._backend.read(spaces)), strict=True):
            here = (port for port in view.ports if port.number == number and port.host in ("", host))
            found += [(space, port) for port in here if overlap(port.protocol, protocol)]
        wanted = [(space, port) for space, port in found if fence in (None, port.fence)]
        if found and not wanted:
            raise PortInUse(host, found[0][1])
        for space, port in wanted:
            self._force(space, host, port)
        return bool(wanted)

    def _force(self, space: str, host: str, port: PortView) -> None:
        if self._backend.force(space, port):
            return
        # It has changed meanwhile, perhaps by us: a reply that was lost.
        (view,) = intact(self._backend.read([space]))
        for other in view.ports:
            same = other.fence == port.fence
            if (other.number, other.protocol) == (port.number, port.protocol) and (
                other.state == port.state if same else other.state == "held"
            ):
                raise PortInUse(host, other)

    def allocations(self) -> list[Allocation]:
        """What this instance holds, by host and number; also what it held before it was restarted."""
        self._start()
        held = [port for lease in list(self._leases.values()) for port in list(lease.ports.values())]
        held.sort(key=lambda port: (port.host, port.number, port.protocol))
        return held  # type: ignore[return-value]

    def status(self, host: str | None = None, range: str | None = None) -> ClusterStatus:
        """How all hosts stand, or one host or one range. Changes nothing: no lease is opened or prolonged."""
        from clusterports.status import ClusterStatus

        if range is not None:
            self._ranges.check(range)
        self._check_process()
        names = self._backend.spaces() if host is None else [CLUSTER_SPACE, host_space(check_name("host", host))]
        return ClusterStatus.build(
            names=names,
            views=self._backend.read(names),
            ranges=list(self._ranges.by_name.values()),
            backend=self._backend.name,
            generated_at=datetime.now(UTC),
            host=host,
            range=range,
        )

    def event_log(
        self,
        *,
        host: str | None = None,
        range: str | None = None,
        port: int | None = None,
        owner: str | None = None,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> EventLog:
        """What happened to ports, to be followed: each ``read()`` gives what is new, the first one what :meth:`events`
        would.

        :raises ConfigurationError: a value out of its bounds.
        """
        from clusterports.events import EventFilter

        from .events import EventLog

        self._check_process()
        wanted = EventFilter(host, range, port, owner, since)
        return EventLog(self._backend, wanted, limit, self._check_process)

    def events(
        self,
        *,
        host: str | None = None,
        range: str | None = None,
        port: int | None = None,
        owner: str | None = None,
        since: datetime | None = None,
        limit: int = 1000,
    ) -> list[PortEvent]:
        """What happened to ports, oldest first: the last ``limit`` (1 to 1,000,000) of the events that match, as far
        back as the log of each host goes (see ``events`` of :class:`~clusterports.Settings`). Changes nothing.

        :raises ConfigurationError: a value out of its bounds.
        :raises BackendError: the store is away, or what it knows of this host is damaged.
        """
        log = self.event_log(host=host, range=range, port=port, owner=owner, since=since, limit=limit)
        return log.read()

    # ---------------------------------------------------------------- life

    def close(self, release: bool = True) -> None:
        """End the heartbeat and give back all ports; with ``release=False`` leave them, as :meth:`detach` does.

        Ports with the label ``libvirt.job`` are left in any case, since such a job outlives us: they fall when their
        lease has run out.

        :raises BackendError: the store is away; the ports are free when the lease has run out.
        """
        if self._forks != Process.forks:  # the parent's
            self._closed = True
            self._leases.clear()
            return
        with self._opening, self._mending.lock:  # a lease that is being opened comes first, and none after
            self._closed = True
        if self._ended:
            return
        self._wake.set()
        if self._heart is not None:
            self._heart.join()
        failed: BackendError | None = None
        if not release and self._leases:
            self._mending.before_we_go()
        for lease in [*self._leases.values(), *self._forfeited.values()]:
            try:
                self._leave(lease, release)
            except BackendError as error:
                failed = failed or error
        self._ended = True
        self._leases.clear()
        self._watchdog.stop()
        self._callbacks.stop()
        if self._own_backend:
            self._backend.close()
        if failed is not None:
            raise failed

    def detach(self) -> None:
        """End, but leave the leases: a process that comes back under this instance name in time finds its ports."""
        self.close(release=False)

    def __enter__(self) -> Self:
        self._start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
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

    def _start(self) -> None:
        """Find what an earlier process of this instance left behind."""
        self._check_process()
        if self._started:
            return
        with self._opening:
            self._check_process()
            complete = True
            if self._named and not self._started:
                for space in self._backend.spaces(self.instance):
                    if not is_host_space(space) and not is_cluster_space(space):
                        continue
                    try:
                        self._resume(space)
                    except BackendUnavailable:
                        raise
                    except (BackendError, LeaseLost) as error:  # one bad host must not cost the others their leases
                        logger.warning("not resumed: %s", error)
                        complete = False
            self._started = complete

    def _resume(self, space: str) -> None:
        if space not in self._leases:
            lease = self._enter(space)
            if lease.ports:
                self._keep(lease)
            else:  # it had run out: nothing to come back to
                self._end(lease)
                del self._incarnations[space]

    def _open(self, space: str) -> HostLease:
        self._check_process()
        with self._opening:
            self._check_process()
            lease = self._leases.get(space)
            if lease is None:
                lease = self._enter(space)
                self._keep(lease)
            return lease

    def _enter(self, space: str) -> HostLease:
        """Open or resume a lease. Nobody uses it before :meth:`_keep`."""
        if space in self._superseded:
            raise self._superseded_error(space)
        for forfeited in [lease for lease in list(self._forfeited.values()) if lease.space == space]:
            self._forfeit(forfeited)
        reply, holder, token, sent_at = self._take_lease(space, self._known.get(space, 0))
        host = space_host(space) if is_host_space(space) else ""
        lease = HostLease(space, host, holder, self.ttl, sent_at, strict=self._strict, token=token)
        if reply.ports:
            self._find_again(lease)
        return lease

    def _take_lease(self, space: str, knew: int) -> tuple[Opened, Holder, str, float]:
        """Open a lease, or take it over from an older process: as whom, by which token, and when it was asked for."""
        ttl = round(self.ttl * 1_000_000)
        # Never the same token twice: the attempt before may have opened a lease whose time began then, not now.
        token = f"{self._process}{next(self._entered):08x}"
        bound = not self._named  # else a process may come back under the name
        seen = 0
        while True:
            sent_at = monotonic()
            reply = self._backend.open(
                space, self.instance, token=token, ttl=ttl, supersede=seen, bound=bound, knew=knew
            )
            if seen:
                self._incarnations[space] = seen  # two that start at once: only one takes over from the other
            if not isinstance(reply, Occupied):
                break
            if self._outdated(space, reply):
                self._superseded.add(space)
                raise self._superseded_error(space)
            seen = reply.incarnation
        self._incarnations[space] = self._known[space] = reply.incarnation
        return reply, Holder(self.instance, reply.lease, reply.incarnation), token, sent_at

    def _outdated(self, space: str, other: Occupied) -> bool:
        """Whether the process that has the lease on this space is newer than we are, as far as one can tell."""
        if other.token.startswith(self._process):
            return False
        if self._superseded or other.incarnation > self._incarnations.get(space, other.incarnation):
            return True
        if not self._started or not self._incarnations:
            return False
        self._renew_all()  # it came after our start: is what was ours elsewhere still ours?
        return bool(self._superseded) or not self._leases

    def _superseded_error(self, space: str) -> LeaseLost:
        return LeaseLost(f"A newer process runs as instance {self.instance!r} {where(space)}")

    def _forfeit(self, lease: HostLease) -> None:
        """End a lease that we gave up: its jobs may still be stopping, so its ports cool."""
        self._end(lease, quarantine=True)
        self._forfeited.pop(id(lease), None)

    def _keep(self, lease: HostLease) -> None:
        self._leases[lease.space] = lease
        if self._heart is None:
            self._heart = Worker(self._beat, "clusterports-heartbeat")
        self._heart.ensure()
        self._watchdog.start()

    def _find_again(self, lease: HostLease) -> None:
        now = time.time()
        for seen in self._listed(lease) or ():
            port = Port(seen.number, seen.protocol, seen.fence)
            since = now - seen.age / 1e6
            allocation = Allocation(lease, port, seen.range, seen.owner, seen.labels, since, seen.host or lease.host)
            allocation._allocator = self
            lease.ports[port.fence] = allocation

    def _listed(self, lease: HostLease) -> list[PortView] | None:
        """What the store has under the lease; None when there is no such lease."""
        found: list[PortView] = []
        after: Port | None = None
        more = True
        while more:
            page = self._backend.held(lease.space, lease.holder, after)
            if isinstance(page, Gone):
                return None
            found += page.ports
            more = page.more
            if more:
                after = Port(found[-1].number, found[-1].protocol, found[-1].fence)
        return found

    def _leave(self, lease: HostLease, release: bool) -> None:
        if lease.lose():  # from here on its ports are not valid
            lease.left = True
        if release and any(port._stays for port in lease.ports.values()):
            release = False
            for port in lease.ports.values():
                if lease.left and not port._stays:
                    port._released = True
                    self._discard_socket(port)
                    lease.unreleased[port.fence] = Port(port.number, port.protocol, port.fence)
        if release:
            for port in lease.ports.values():
                port._released = lease.left
                self._discard_socket(port)
            self._end(lease, quarantine=not lease.left)
            return
        if lease.unreleased:
            self._backend.release(lease.space, lease.holder, list(lease.unreleased.values()))
        if not self._named and Capability.DEATHS in self._backend.capabilities:  # it is to outlive this process
            ttl = round(self.ttl * 1_000_000)
            self._backend.open(lease.space, self.instance, token=lease.token, ttl=ttl, bound=False)

    def _end(self, lease: HostLease, *, quarantine: bool = False) -> None:
        more = True
        while more:
            reply = self._backend.close_lease(lease.space, lease.holder, quarantine=quarantine)
            more = not isinstance(reply, Gone) and reply.more

    def _gone(self, lease: HostLease, gone: Gone) -> None:
        """The store says that there is no such lease."""
        if self._leases.get(lease.space) is lease:
            del self._leases[lease.space]
        if gone.reason == "superseded":
            self._superseded.add(lease.space)
        if lease.lose() and (lease.ports or gone.reason == "superseded"):
            self._tell_lost(lease)

    def _overdue(self, lease: HostLease) -> None:
        """The local deadline has passed. Called by the watchdog."""
        if not lease.overdue(monotonic()):
            return
        if self._heart is not None:
            self._heart.ensure()
        if self._strict:
            self._forfeited[id(lease)] = lease
            if self._leases.get(lease.space) is lease:
                del self._leases[lease.space]
            if lease.ports:
                self._tell_lost(lease)
        elif lease.ports:
            held = list(lease.ports.values())
            logger.warning("the lease %s is in jeopardy: %d ports", where(lease.space), len(held))
            if self._on_jeopardy is not None:
                self._callbacks.call(self._on_jeopardy, held)

    def _tell_lost(self, lease: HostLease) -> None:
        for port in list(lease.ports.values()):
            self._discard_socket(port)
        error = self._lost_error(lease, list(lease.ports.values()))
        logger.error("%s", error)
        if self._on_lost is not None:
            self._callbacks.call(self._on_lost, error)

    def _revoke(self, lease: HostLease, ports: Iterable[Port]) -> None:
        """The store says that these were taken from us by force."""
        taken = [port for port in (lease.hear(fence) for _, _, fence in ports) if port is not None]
        self._tell_taken(lease, taken)

    def _tell_taken(self, lease: HostLease, ports: list[HeldPort]) -> None:
        for port in ports:
            self._discard_socket(port)
        if ports:
            error = self._taken_error(lease, ports)
            logger.error("%s", error)
            if self._on_lost is not None:
                self._callbacks.call(self._on_lost, error)

    def _robbed(self, lease: HostLease, given: Sequence[HeldPort]) -> LeaseLost:
        """Give back what is left of these, of which some were taken by force before they could be handed over."""
        for port in given:
            if not port._revoked:
                self.release(port)  # type: ignore[arg-type]
        return self._taken_error(lease, [port for port in given if port._revoked])

    def _taken_error(self, lease: HostLease, allocations: list[HeldPort]) -> LeaseLost:
        message = (
            f"{allocations[0]._revoked} from instance {self.instance!r} {where(lease.space)}: {_numbers(allocations)}"
        )
        return LeaseLost(message, allocations=allocations, reason="revoked")

    def _lost_error(self, lease: HostLease, allocations: list[HeldPort]) -> LeaseLost:
        newer = lease.space in self._superseded
        why = "a newer process runs under this name" if newer else "it was not renewed in time"
        message = f"The lease of instance {self.instance!r} {where(lease.space)} is lost: {why}"
        return LeaseLost(f"{message}; ports: {_numbers(allocations)}", allocations=allocations, reason=lease.reason)

    # ---------------------------------------------------------------- acquire

    def _ask(
        self, lease: HostLease, asks: Sequence[Ask], wait: Wait | None, opened: list[tuple[HostLease, int]]
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        """One request. It is in ``opened`` while it may have been carried out: to be settled or abandoned."""
        request = lease.begin()
        opened.append((lease, request.number))
        try:
            reply = self._backend.acquire(lease.space, lease.holder, request, asks, wait)
        except BackendError as error:
            if not error.unknown:
                opened.pop()
                lease.settle(request.number)
            raise
        if not isinstance(reply, Granted):
            opened.pop()
            lease.settle(request.number)
        return reply

    def _abandon(self, opened: Sequence[tuple[HostLease, int]], given: Iterable[HeldPort]) -> None:
        """Let the next heartbeat undo what nobody waits for any more, and let it come soon."""
        for allocation in given:
            allocation._released = True
            allocation._lease.ports.pop(allocation.fence, None)
            self._discard_socket(allocation)
        for lease, number in opened:
            lease.abandon(number)
        if opened:
            self._wake.set()

    def _tries_out(self, plan: Plan) -> bool:
        """Whether ports there are probed. On this machine, a range is looked at when it is first used."""
        host, range = plan.host, plan.ask.range
        if is_local(host):
            if not plan.ask.explicit and range not in self._warned:
                self._warned.add(range)
                warn_ephemeral(range, *self._ranges.extent(range))
            return self._probe is not False
        if self._probe is False or self._probe == "auto":
            self._elsewhere.add(host)
            return False
        return True

    def _add(
        self, given: list[Allocation], lease: HostLease, plan: Plan, ports: Iterable[Port], acquired: float
    ) -> None:
        """Allocations for what was granted; each is in ``given`` as soon as it is among the lease's."""
        _, (range, _, _, _, _, owner, labels, *_), host = plan
        for port in ports:
            allocation = Allocation(lease, port, range, owner, labels, acquired, host)
            allocation._allocator = self
            given.append(allocation)
            lease.ports[port.fence] = allocation
            lease.highest = max(lease.highest, port.fence)
            if lease.forced:
                lease.took(port.fence)

    def _would_be(self, plan: Plan, port: Port) -> Allocation:
        """For a dry run: an allocation that is not held."""
        ask = plan.ask
        lease = HostLease(plan.space, plan.host, Holder(self.instance, 0, 0), self.ttl, float("-inf"))
        allocation = Allocation(lease, port, ask.range, ask.owner, ask.labels, time.time(), plan.host)
        allocation._allocator = self
        allocation._released = True
        return allocation

    def _socket(self, port: Allocation, protocol: Literal["tcp", "udp"] | None) -> socket.socket:
        kinds: tuple[Literal["tcp", "udp"], ...] = ("tcp", "udp") if port.protocol == "both" else (port.protocol,)
        kind = kinds[0] if protocol is None and len(kinds) == 1 else protocol
        if kind is None or kind not in kinds:
            raise ConfigurationError(f"protocol: must be {' or '.join(kinds)} for this port, got {show(protocol)}")
        if not is_local(port.host):
            raise ConfigurationError(f"host: a socket can be bound on this machine only, the port is on {port.host!r}")
        if not port.valid:
            raise self._lost_error(port._lease, [port])
        held = [] if self._sockets is None else self._sockets.take(port.number, port.protocol, kind)
        return held[0] if held else bound(port.number, kind)

    def _discard_socket(self, port: HeldPort) -> None:
        if self._sockets is not None:
            self._sockets.discard(port.number, port.protocol, port.host)

    # ---------------------------------------------------------------- heartbeat

    def _beat(self) -> None:
        interval = self.ttl / BEATS_PER_TTL
        pause = 0.0 if self._beating else interval  # started again: the beat before has failed
        self._beating = True
        while True:
            self._wake.wait(pause)
            self._wake.clear()
            if self._closed:
                return
            started = monotonic()
            try:
                healthy = self._renew_all()
                self._mending.all(started + interval / 2)
            except BackendError as error:
                logger.warning("no heartbeat: %s", error)
                healthy = False
            except Exception:
                logger.exception("the heartbeat failed; it goes on")
                healthy = False
            pause = max(0.0, started + interval - monotonic()) if healthy else min(interval, self.ttl / 20)

    def _renew_all(self) -> bool:
        healthy = self._renew(list(self._leases.values()))
        for lease in list(self._forfeited.values()):
            self._forfeit(lease)
        return healthy

    def _renew(self, leases: Sequence[HostLease]) -> bool:
        sent_at = monotonic()
        renewals = [lease.renewal() for lease in leases]
        outcomes = self._backend.renew(renewals)
        healthy = True
        backlogs: list[tuple[HostLease, bool]] = []
        for lease, renewal, outcome in zip(leases, renewals, outcomes, strict=True):
            if isinstance(outcome, Renewed):
                if outcome.doubt:
                    lease.suspect("doubt")
                lease.renewed(renewal, sent_at, doubt=outcome.doubt)
                if outcome.revoked:
                    self._revoke(lease, outcome.revoked)
                lease.give_back_strays()
                if lease.renewal().abandoned:  # more than one heartbeat may undo
                    self._wake.set()
                backlogs.append((lease, outcome.backlog))
            elif isinstance(outcome, Gone):
                if renewal.holder != lease.holder:  # it was opened anew meanwhile
                    continue
                # Doubt is told once; until the lease was mended, it stands.
                if outcome.reason == "unknown" or (outcome.forgotten and (outcome.doubt or lease.amiss)):
                    lease.suspect("gone")
                else:
                    self._gone(lease, outcome)
            else:
                healthy = False
                logger.warning("no heartbeat %s: %s", where(lease.space), outcome)
        self._watchdog.start()  # some may have a deadline again
        for lease, backlog in backlogs:  # only now: no lease must run out while another's leftovers are dealt with
            self._catch_up(lease, backlog=backlog, until=sent_at + self.ttl / (2 * BEATS_PER_TTL))
        return healthy

    def _catch_up(self, lease: HostLease, *, backlog: bool, until: float) -> None:
        """Releases that did not get through, and what others left behind; the heartbeat must not be late for it."""
        try:
            if lease.unreleased:
                ports = list(lease.unreleased.values())
                self._backend.release(lease.space, lease.holder, ports)
                for port in ports:
                    lease.unreleased.pop(port.fence, None)
            while backlog and monotonic() < until:
                backlog = self._backend.reclaim(lease.space).backlog
        except BackendError as error:
            logger.warning("%s: %s", where(lease.space), error)


def _numbers(allocations: list[HeldPort]) -> str:
    numbers = ", ".join(f"{port.number}/{port.protocol}" for port in allocations[:8])
    if len(allocations) > 8:
        numbers += f" and {len(allocations) - 8} more"
    return numbers or "none"
