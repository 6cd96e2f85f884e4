"""Pull-mode backups: QEMU serves a domain's disks by NBD, on a port of the host."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any, Final

from clusterports._lease import Process, monotonic
from clusterports._text import show
from clusterports._wants import check_wait
from clusterports.errors import ClusterPortsError, ConfigurationError
from clusterports.ranges import PortRequest

from ._backup_xml import BackupXml
from ._binding import binding, code
from ._jobs import GONE, NO_DOMAIN, HostJobs
from ._ledger import Job, Using

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from types import TracebackType
    from typing import Self

    from clusterports import Allocation, PortAllocator

    from ._connection import Connect

__all__ = ["Backup", "BackupPorts"]

logger = logging.getLogger("clusterports")

NONE: Final = (3, 104, *GONE)
"""libvirt's errors for a domain without a backup job: also NO_SUPPORT of a driver that knows none, and
NO_DOMAIN_BACKUP.
"""

AGAIN: Final = 0.25
"""Seconds between two looks of one who waits for the end, should no event come."""


class Backup(Job):
    """A backup job of a domain. As a context manager it is ended at the end of the block."""

    _jobs: BackupPorts

    @property
    def port(self) -> Allocation:
        """The port that it serves on.

        :raises ClusterPortsError: it has none, and ``ports`` is empty: it serves on a unix socket, or pushes.
        """
        if not self.ports:
            raise ClusterPortsError(f"The backup of {self.domain!r} on host {self.host!r} has no port")
        return self.ports[0]

    def end(self, timeout: float = 60.0) -> None:
        """End the job, and wait until it is over and its port given back. Once it is over this does nothing.

        What is ended is the domain's job of this moment, so end no backup that ends by itself.

        :raises ClusterPortsError: it is not over after ``timeout`` seconds, and its port stays held until it is; or its
            host is not watched any more.
        :raises ConfigurationError: ``timeout`` is out of its bounds, 0 to a year.
        :raises libvirtError: the daemon is not there, or refuses.
        """
        check_wait(timeout, "timeout")
        if self.done:
            return
        self._jobs._check()
        until = monotonic() + timeout
        refused: list[Exception] = []
        # Where nobody waits for a daemon, or a QEMU, that hangs.
        threading.Thread(target=self._jobs._abort, args=(self, refused), name="clusterports-end", daemon=True).start()
        while not self.wait(min(AGAIN, max(0.0, until - monotonic()))):
            self._jobs._check()
            if refused:
                raise refused[0]
            if monotonic() >= until:
                raise ClusterPortsError(
                    f"The backup of {self.domain!r} on host {self.host!r} is not over after {timeout:g} s"
                )
            self._jobs._heard.put(self.uuid)  # should no event come

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._jobs._forks != Process.forks:  # a forked child leaves the block; the backup is the parent's
            return
        try:
            self.end()
        except (ClusterPortsError, binding().libvirtError) as error:
            if value is None:
                raise
            logger.warning("%s", error)


class BackupPorts(HostJobs[Backup]):
    """Gives each pull-mode backup of a host's domains a port of its own, from its begin until libvirt says it is over.

    ``ports``: the allocator; ``on_lost`` is its affair. ``connect``: the URI of the host's libvirt daemon; or a
    function that opens a connection to it, and is called again when one has broken; or one open connection.
    ``host``: the name under which all managers know the host; default that of the allocator, if the daemon is of this
    machine. ``range``: where ports come from. ``interval``: seconds between two comparisons of what is held with what
    runs, 0.1 to 3600. ``events``: run libvirt's event loop in a thread of this library; False: the program has one.

    :raises ConfigurationError: for a value out of its bounds.
    """

    kind = "backup"

    def __init__(
        self,
        ports: PortAllocator,
        connect: Connect = "qemu:///system",
        *,
        host: str | None = None,
        range: str = "backup",
        interval: float = 10.0,
        events: bool = True,
    ) -> None:
        ports._ranges.check(range)
        self._range = range
        super().__init__(ports, connect, host=host, interval=interval, events=events)

    def begin(
        self,
        domain: Any,
        xml: str,
        checkpoint: str | None = None,
        flags: int = 0,
        *,
        owner: str | None = None,
        labels: Mapping[str, str] | None = None,
        wait: float = 0.0,
    ) -> Backup:
        """Begin a backup, as libvirt's ``backupBegin`` does, on a port that is this backup's own.

        ``domain``: a ``virDomain``, of any connection to the host, or the name or UUID of one. ``xml``: the
        ``<domainbackup>``. A TCP server without a port gets one of the range; a port that is named is claimed, and not
        changed; what needs no port, a unix socket or push mode, is left alone. Where QEMU says that something else has
        the port, it is marked as foreign and the next one tried; name an IPv4 address for that, since QEMU is content
        with IPv6 where a name, or ``::``, stands for both and only IPv4 is in use. ``owner``: default the domain's
        name. ``wait``: seconds to wait for a free port.

        If the outcome of a begin is not known, since the connection broke, its port stays held until libvirt can be
        asked.

        :raises PortInUse: the port that is named is held, or something else has it. QEMU was not asked, or refused.
        :raises PortsExhausted: no port of the range is free.
        :raises ConfigurationError: the XML is none, or its port is no port; or the ``virDomain`` is of another host.
        :raises libvirtError: libvirt refuses the backup. Nothing stays held.
        :raises: what :meth:`PortAllocator.acquire` raises.
        """
        if not isinstance(domain, str) and not hasattr(domain, "UUIDString"):
            raise ConfigurationError(f"domain: must be a virDomain, or the name or UUID of one, got {show(domain)}")
        asked = BackupXml(xml)
        until = monotonic() + check_wait(wait)
        self.start()
        found = self._domain(domain)
        uuid, name = found.UUIDString(), found.name()
        request = PortRequest(
            self._range if asked.port is None else self._home(asked.port),
            host=self.host,
            port=asked.port,
            owner=name if owner is None else owner,
            labels=self._labels(uuid, labels),
        )
        job = self._job(uuid, name, busy=True)

        def start(given: Sequence[Allocation]) -> int:
            text = asked.with_port(given[0].number) if given else str(asked)
            return int(found.backupBegin(text, checkpoint, flags))

        self._begin(job, [request] if asked.tcp else [], start, lambda: self._using(found), until)
        return job

    def _domain(self, domain: Any) -> Any:
        """By our own connection: whatever is done with it is done on the host where its port is held."""
        connection = self._connection.get()
        named = isinstance(domain, str)
        try:
            return connection.lookupByUUIDString(domain if named else domain.UUIDString())
        except binding().libvirtError as error:
            if named:
                return connection.lookupByName(domain)
            if code(error) != NO_DOMAIN:
                raise
            raise ConfigurationError(f"domain: {show(domain.name())} is not on host {self.host!r}") from error

    def _abort(self, job: Backup, refused: list[Exception]) -> None:
        """``refused``: where to put what is in the way."""
        try:
            domain = self._connection.get().lookupByUUIDString(job.uuid)
            if not job._is_over(self._using(domain)):
                domain.abortJob()
        except (binding().libvirtError, ClusterPortsError) as error:
            if code(error) not in GONE:
                refused.append(error)

    def _using(self, domain: Any) -> Using:
        try:
            found = BackupXml(domain.backupGetXMLDesc())
        except binding().libvirtError as error:
            if code(error) in NONE:
                return None
            raise
        return {} if found.port is None else {found.port: ""}

    def _job(self, uuid: str, name: str, *, busy: bool = False) -> Backup:
        job = Backup(uuid, name, self.host, busy=busy)
        job._jobs = self
        return job

    def _home(self, number: int, use: str = "") -> str | None:
        return self._ports._ranges.home(self._range, number)
