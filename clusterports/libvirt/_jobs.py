"""The jobs of one host: their ports are given back when libvirt says that they are over, and found when it has more."""

from __future__ import annotations

import logging
import queue
import shlex
import threading
from abc import ABC, abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Generic
from weakref import WeakKeyDictionary

from clusterports._lease import LABEL_JOB, Process, monotonic
from clusterports._names import check_name
from clusterports._text import printable, show
from clusterports.errors import AllocationError, BackendError, ClusterPortsError, ConfigurationError

from ._attempt import attempt, give_back, take
from ._binding import binding, code
from ._connection import Connection
from ._ledger import LABEL_USE, J, Ledger, Using

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from clusterports import Allocation, PortAllocator, PortRequest

    from ._connection import Connect

__all__ = ["GONE", "LABEL_DOMAIN", "NO_DOMAIN", "HostJobs", "own_labels"]

logger = logging.getLogger("clusterports")

AGAIN: Final = 1.0
"""Seconds between two attempts to reach a daemon or a store that is away."""

LABEL_DOMAIN: Final = "libvirt.domain"
LABEL_DAEMON: Final = "libvirt.daemon"
OWN_LABELS: Final = frozenset((LABEL_JOB, LABEL_DOMAIN, LABEL_DAEMON, LABEL_USE))
"""Labels of the ports that are held for libvirt's jobs: which kind of job, the domain's UUID, which daemon of the host,
and what for, where a job may have several."""

BEGINS: Final = 3
"""How many jobs are begun at the same time. A daemon does five things at a time for one connection, so that others that
wait, up to 30 s for the job before, would hold up the watch.
"""

STARTING: Final = 10.0
"""Seconds for which the first comparison is waited for."""

CLOSING: Final = 5.0
"""Seconds for which the end of watching is waited for: a daemon that hangs must not hold up a program that ends."""

NO_DOMAIN: Final = 42
"""libvirt's error for a domain that is not there."""

GONE: Final = (NO_DOMAIN, 55)
"""The same, or it is not running: OPERATION_INVALID."""


_watched: WeakKeyDictionary[PortAllocator, set[tuple[str, str]]] = WeakKeyDictionary()
"""Which kind of job on which host somebody watches."""

_watching = threading.Lock()


def own_labels(kind: str, uuid: str, labels: Mapping[str, str] | None, use: str = "") -> dict[str, str]:
    """A user's labels and ours.

    :raises ConfigurationError: the user's have one of ours.
    """
    for key in labels or ():
        if key in OWN_LABELS:
            raise ConfigurationError(f"labels: {key!r} is set by clusterports itself")
    own = {LABEL_JOB: kind, LABEL_DOMAIN: uuid}
    return {**(labels or {}), **own, **({LABEL_USE: use} if use else {})}


class HostJobs(ABC, Generic[J]):
    """What backups and displays have in common."""

    kind: str

    def __init__(
        self, ports: PortAllocator, connect: Connect, *, host: str | None, interval: float, events: bool
    ) -> None:
        good = isinstance(interval, int | float) and not isinstance(interval, bool) and 0.1 <= interval <= 3600
        if not good:
            raise ConfigurationError(f"interval: must be a number of seconds from 0.1 to 3600, got {show(interval)}")
        from clusterports import PortAllocator

        if not isinstance(ports, PortAllocator):
            raise ConfigurationError(f"ports: must be a PortAllocator, got {show(ports)}")
        self.host = ports.host if host is None else check_name("host", host)
        self._ports = ports
        self._interval = float(interval)
        self._heard: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._connection = Connection(connect, host=host, events=events, heard=self._heard.put)
        self._ledger: Ledger[J] = Ledger()
        self._comparing = threading.Lock()
        self._starting = threading.Lock()
        self._begins = threading.Semaphore(BEGINS)
        self._thread: threading.Thread | None = None
        self._compared = threading.Event()  # for the first time, or not: then `_fault` may say why
        self._fault: Exception | None = None
        self._forks = Process.forks
        self._closed = False
        self._trouble = ""
        self._of_others: set[int] = set()  # fences

    # ---------------------------------------------------------------- life

    def start(self) -> None:
        """Find again what runs on the host, and go on watching it. The first call that needs it does so too.

        A daemon or a store that is away is tried again every second; one that does not answer is waited for some
        seconds.

        :raises ConfigurationError: the connection is to another machine, and ``host`` does not say which; or another
            object watches the host already with this allocator.
        :raises LeaseLost: a newer process runs under the allocator's instance name.
        """
        binding()
        with self._starting:
            self._check()
            if self._thread is None:
                with _watching:
                    watched = _watched.setdefault(self._ports, set())
                    if (self.kind, self.host) in watched:  # two daemons of a host would end each other's jobs
                        raise ConfigurationError(
                            f"host: {self.host!r} is watched already, by another object with this allocator"
                        )
                    watched.add((self.kind, self.host))
                self._compared.clear()
                self._fault = None
                self._thread = threading.Thread(target=self._watch, name=f"clusterports-{self.kind}", daemon=True)
                self._thread.start()
        if not self._compared.wait(STARTING):
            logger.warning("host %r has not answered for %g s; it is watched when it does", self.host, STARTING)
        if self._fault is not None:
            raise self._fault

    def close(self) -> None:
        """End watching. Nothing is given back: jobs that run go on and keep their ports until the lease runs out,
        also when the allocator is closed. A process that comes before that under the same instance name finds them; so
        end with ``detach()`` if one will.
        """
        if self._forks != Process.forks:
            return
        self._closed = self._connection.closed = True
        self._heard.put(None)
        if self._thread is not None:
            self._thread.join(CLOSING)
            with _watching:
                _watched[self._ports].discard((self.kind, self.host))
        running = self.jobs()
        for job in running:
            job._end_of_watch(done=False)
        if running:
            names = ", ".join(printable(job.domain) for job in running)
            logger.warning("%s still running on host %r, and keep their ports: %s", self.kind, self.host, names)

    def _check(self) -> None:
        if self._forks != Process.forks:
            raise ClusterPortsError(
                f"This {type(self).__name__} belongs to the parent process; make one after the fork"
            )
        if self._closed:
            raise ClusterPortsError(f"This {type(self).__name__} is closed")
        if self._ports._superseded:
            raise self._ports._superseded_error(next(iter(self._ports._superseded)))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def jobs(self) -> list[J]:
        """Those that are not over, by name of the domain; also what an earlier process of this instance began."""
        return sorted(self._ledger, key=lambda job: job.domain)

    # ---------------------------------------------------------------- what the host does

    @abstractmethod
    def _using(self, domain: Any) -> Using:
        """Which ports this domain uses for jobs of this kind.

        :raises libvirtError: it cannot be asked.
        """

    @abstractmethod
    def _job(self, uuid: str, name: str, *, busy: bool = False) -> J:
        """A new one, of this domain."""

    @abstractmethod
    def _home(self, number: int, use: str = "") -> str | None:
        """The range that such a port belongs to; None: none."""

    def _begin(
        self,
        job: J,
        requests: Sequence[PortRequest],
        start: Callable[[Sequence[Allocation]], object],
        using: Callable[[], Using],
        until: float = 0.0,
    ) -> None:
        """Begin a job on the ports that it needs, as :func:`attempt` does.

        ``using``: what its domain uses. ``until``: on the monotonic clock, how long to wait for a free port.
        """

        def taken(skip: Collection[int]) -> Sequence[Allocation]:
            job.ports, job._numbers = [], frozenset()
            for port in take(self._ports, requests, max(0.0, until - monotonic()), skip):
                job._take(port)
            if self._closed:  # while we waited for a port
                for port in job.ports:
                    give_back(port)
                self._check()
            return job.ports

        def start_in_turn(given: Sequence[Allocation]) -> object:
            with self._begins:
                return start(given)

        def began() -> bool | None:
            try:
                return not job._is_over(using())
            except (binding().libvirtError, ClusterPortsError):
                return None

        try:
            self._ledger.enter(job)
            attempt(self._ports, taken, requests, start_in_turn, began)
            job._seen = True
        except BaseException:
            if all(port._released for port in job.ports):
                self._ledger.strike(job)
            raise
        finally:
            if self._ledger.begun(job):
                self._heard.put(job.uuid)
            if self._closed or self._ports._superseded:
                job._end_of_watch(done=False)

    def _look(self, uuid: str) -> None:
        """Something of this domain has ended: what, and does it go on with something else?"""
        begun = self._ledger.begun_of(uuid)  # before libvirt is asked: its answer says nothing of one begun later
        connection = self._connection.get()
        try:
            using = self._using(connection.lookupByUUIDString(uuid))
        except binding().libvirtError as error:
            if code(error) not in GONE:
                raise
            using = None
        for job in self._ledger.over(begun, using):
            self._finish(job)

    def reconcile(self) -> None:
        """Compare what is held with what runs on the host; a thread does so every ``interval`` seconds.

        Ports of jobs that nobody holds are claimed. Those of jobs that libvirt does not report, twice in a row, are
        given back.

        :raises libvirtError: the daemon is not there. Nothing is given back then.
        :raises BackendError: the store is away.
        :raises LeaseLost: a newer process runs under this instance name. What runs is for it to watch.
        """
        self.start()
        self._reconcile()

    def _reconcile(self) -> None:
        with self._comparing:
            before = {port.fence for job in self.jobs() for port in job.ports}
            using, names, unread = self._read()
            self._check()  # the daemon may have taken its time
            held = {port.fence: port for port in self._ports.allocations() if port.host == self.host}
            self._find_again(held.values(), before, names)
            for job in self._ledger.compare(using, unread, monotonic()):
                self._finish(job)
            for uuid, uses in using.items():
                known, lacking = self._ledger.lacking(uuid, uses or {}, held)
                for number in lacking:
                    known = self._adopt(uuid, names[uuid], number, (uses or {})[number], known)

    def _read(self) -> tuple[dict[str, Using], dict[str, str], set[str]]:
        """What each running domain uses; their names; and who could not be asked."""
        libvirt = binding()
        connection = self._connection.get()
        using: dict[str, Using] = {}
        names: dict[str, str] = {}
        unread: set[str] = set()
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            uuid = domain.UUIDString()
            names[uuid] = domain.name()
            try:
                using[uuid] = self._using(domain)
            except (ConfigurationError, libvirt.libvirtError) as error:  # the former: XML that is beyond us
                if code(error) not in GONE:
                    if not connection.isAlive():
                        raise
                    logger.debug("%r on host %r cannot be asked: %s", names[uuid], self.host, error)
                    unread.add(uuid)
        return using, names, unread

    def _find_again(self, held: Collection[Allocation], known: Collection[int], names: Mapping[str, str]) -> None:
        """What is held by these labels and was not known here before: an earlier process of this instance took it."""
        for port in held:
            uuid = port.labels.get(LABEL_DOMAIN, "")
            if port.labels.get(LABEL_JOB) != self.kind or port.fence in known:
                continue
            if port.labels.get(LABEL_DAEMON) != self._connection.daemon:
                if port.fence not in self._of_others:
                    self._of_others.add(port.fence)
                    logger.warning(
                        "%r is of another libvirt daemon than %s, and stays held. Watch that one; or once nothing runs"
                        " on it any more: clusterports release --force %s %d",
                        port,
                        self._connection.daemon,
                        shlex.quote(port.host),
                        port.number,
                    )
                continue
            jobs = self._ledger.of(uuid)
            if port._released or any(job._busy for job in jobs):  # it was given back, or taken, this moment
                continue
            mates = (job for job in jobs if port.number in job._numbers or not job._has(port.labels.get(LABEL_USE, "")))
            self._hold(port, next(mates, None), uuid, names.get(uuid))

    def _adopt(self, uuid: str, name: str, number: int, use: str, job: J | None) -> J | None:
        """Hold a port that a job of the host uses, unless another manager does."""
        before = next((port for port in (job.ports if job else ()) if port.number == number), None)
        own = {} if before is None else {key: value for key, value in before.labels.items() if key not in OWN_LABELS}
        try:
            port = self._ports.adopt(
                self._home(number, use),
                host=self.host,
                port=number,
                owner=name if before is None else before.owner,
                labels=self._labels(uuid, own, use),
            )
        except (AllocationError, ConfigurationError) as error:  # the latter: a name that is too long, perhaps
            logger.debug("%s", error)
            return job
        if self._closed:
            give_back(port)
            return job
        logger.info("claimed port %d on host %r: %s of %r uses it", number, self.host, self.kind, name)
        job = self._hold(port, job, uuid, name)
        job._seen = True
        self._heard.put(uuid)  # it may have ended since the list was read
        return job

    def _hold(self, port: Allocation, job: J | None, uuid: str, name: str | None) -> J:
        known = job or self._job(uuid, port.owner if name is None else name)
        known._take(port)
        if job is None:
            self._ledger.enter(known)
        return known

    def _labels(self, uuid: str, labels: Mapping[str, str] | None = None, use: str = "") -> dict[str, str]:
        if not self._connection.daemon:
            self._connection.get()
        return own_labels(self.kind, uuid, labels, use) | {LABEL_DAEMON: self._connection.daemon}

    def _finish(self, job: J) -> None:
        if self._ledger.strike(job):
            for port in job.ports:
                give_back(port)
            job._end_of_watch(done=True)

    # ---------------------------------------------------------------- watching

    def _watch(self) -> None:
        try:
            if self._compare_first():
                self._watch_on()
        finally:
            self._compared.set()
            self._connection.close()  # here, where nobody waits for a daemon that hangs

    def _compare_first(self) -> bool:
        """Whether there is something to watch."""
        try:
            self._reconcile()
        except ClusterPortsError as error:
            if not isinstance(error, BackendError):
                self._fault = error
                self._let_go()
                self._thread = None
                with _watching:
                    _watched[self._ports].discard((self.kind, self.host))
                return False
            self._note(error)
        except Exception as error:  # noqa: BLE001  # also one of the user's own function that connects
            self._note(error)
        self._compared.set()
        return True

    def _watch_on(self) -> None:
        due = self._next()
        while True:
            uuid: str | None = ""
            with suppress(queue.Empty):
                uuid = self._heard.get(timeout=max(0.0, due - monotonic()))
            if uuid is None:
                return
            try:
                if uuid:
                    self._look(uuid)
                    if monotonic() < due:
                        continue
                self._reconcile()
                self._note(None)
            except Exception as error:  # noqa: BLE001  # whatever it is, watching goes on
                self._note(error)
                if self._ports._superseded:
                    self._let_go()
                    return
            due = self._next()

    def _next(self) -> float:
        now = monotonic()
        return now + (AGAIN if self._trouble else min(self._interval, max(AGAIN, self._ledger.due - now)))

    def _let_go(self) -> None:
        """Nobody watches any more: what runs on the host, and its ports, are a newer process's of this instance."""
        for job in self.jobs():
            if self._ledger.strike(job):
                job._end_of_watch(done=False)

    def _note(self, error: Exception | None) -> None:
        """Say it once, not with each attempt."""
        before, self._trouble = self._trouble, "" if error is None else f"{type(error).__name__}: {error}"
        if self._closed or before == self._trouble:
            return
        if error is None:
            logger.warning("host %r is watched again", self.host)
        else:
            known = isinstance(error, (ClusterPortsError, binding().libvirtError))
            logger.warning("host %r is not watched: %s", self.host, printable(str(error)), exc_info=not known)
