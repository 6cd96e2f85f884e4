# ruff: noqa: N802  # the names are libvirt's
"""libvirt's binding as far as backups use it, in memory: a daemon that can be told to break, to hang and to refuse."""

from __future__ import annotations

import re
import threading
import uuid
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final

from clusterports._lease import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    import pytest

__all__ = ["PATIENCE", "Daemon", "Domain", "FakeError", "passing"]

PATIENCE: Final = 15.0
"""Seconds until a test gives up waiting; none takes this long when all is well."""

INTERNAL, NO_SUPPORT, SYSTEM, NO_DOMAIN, INVALID, NO_BACKUP = 1, 3, 38, 42, 55, 104

COMPLETED, LIFECYCLE, STOPPED = 21, 0, 5


class FakeError(Exception):
    """An error of libvirt with its number."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self._code = code

    def get_error_code(self) -> int:
        return self._code


def binding(daemon: Daemon) -> Any:
    """The module."""
    return SimpleNamespace(
        libvirtError=FakeError,
        VIR_DOMAIN_EVENT_ID_JOB_COMPLETED=COMPLETED,
        VIR_DOMAIN_EVENT_ID_LIFECYCLE=LIFECYCLE,
        VIR_DOMAIN_EVENT_STOPPED=STOPPED,
        VIR_DOMAIN_EVENT_CRASHED=8,
        VIR_CONNECT_LIST_DOMAINS_ACTIVE=1,
        open=daemon.open,
    )


class Domain:
    """A running domain. ``document``: that of its backup job; None: it has none."""

    def __init__(self, daemon: Daemon, name: str) -> None:
        self.daemon, self.title = daemon, name
        self.uuid = str(uuid.uuid5(uuid.NAMESPACE_DNS, name))
        self.document: str | None = None

    @property
    def port(self) -> int | None:
        found = re.search(r"port=['\"](\d+)", self.document or "")
        return int(found[1]) if found else None

    def begin(self, text: str) -> None:
        """As QEMU does when it is asked to."""
        if self.document is not None:
            raise FakeError(INVALID, "another job is active")
        number = re.search(r"port=['\"](\d+)", text)
        if number and int(number[1]) in self.daemon.ports():
            raise FakeError(INTERNAL, "internal error: unable to execute 'nbd-server-start': Address already in use")
        self.document = text

    def end(self, *, tell: bool = True) -> None:
        """The job ends; ``tell``: with an event."""
        self.document = None
        if tell:
            self.daemon.tell(COMPLETED, self, SimpleNamespace())

    def kill(self) -> None:
        """QEMU dies."""
        del self.daemon.domains[self.title]
        self.document = None
        self.daemon.tell(LIFECYCLE, self, STOPPED, 0)


def passing(monkeypatch: pytest.MonkeyPatch, module: ModuleType) -> Callable[[float], None]:
    """Lets so many seconds pass each time, by the clock of this module."""
    passed = 0.0

    def pass_time(seconds: float) -> None:
        nonlocal passed
        passed += seconds

    monkeypatch.setattr(module, "monotonic", lambda: monotonic() + passed)
    return pass_time


class Daemon:
    """``on_begin``: called with the domain and the XML, instead of its begin. ``on_read``: after a job was looked at,
    before the answer arrives. ``foreign``: ports that something else has. ``mute``: no events are to be had.
    """

    def __init__(self) -> None:
        self.domains: dict[str, Domain] = {}
        self.foreign: set[int] = set()
        self.up = True
        self.mute = False
        self.uri = "qemu:///system"
        self.opened: list[Connection] = []
        self.begun: list[str] = []  # the documents, in order
        self.aborts = 0
        self.on_begin: Callable[[Domain, str], None] = Domain.begin
        self.on_read: Callable[[Domain], None] = lambda domain: None
        self.on_abort: Callable[[Domain], None] = Domain.end
        self.hangs = threading.Event()  # set: it does not hang
        self.hangs.set()

    def vm(self, name: str) -> Domain:
        self.domains[name] = Domain(self, name)
        return self.domains[name]

    def ports(self) -> set[int | None]:
        return self.foreign | {vm.port for vm in self.domains.values()}

    def open(self, uri: str | None = None) -> Connection:
        if not self.up:
            raise FakeError(SYSTEM, "Failed to connect socket: Connection refused")
        connection = Connection(self, uri or self.uri)
        self.opened.append(connection)
        return connection

    def tell(self, kind: int, domain: Domain, *what: Any) -> None:
        for connection in self.opened:
            for _, told, call, opaque in list(connection.calls):
                if told == kind and connection.alive:
                    call(connection, Handle(connection, domain), *what, opaque)

    def breaks(self, *, up: bool = False) -> None:
        """It is gone, and with it all connections; its domains run on. ``up``: it is there again at once."""
        self.up = up
        for connection in list(self.opened):  # who is told may open another at once
            if connection.alive:
                connection.alive = False
                if connection.closed is not None:
                    connection.closed(connection, 1, None)

    def comes_back(self) -> None:
        self.up = True


class Connection:
    """One connection. ``calls``: what is registered for events."""

    def __init__(self, daemon: Daemon, uri: str) -> None:
        self.daemon, self.uri = daemon, uri
        self.alive = True
        self.keepalive: tuple[int, int] | None = None
        self.calls: list[tuple[int, int, Callable[..., Any], Any]] = []
        self.closed: Callable[..., Any] | None = None
        self.closes = 0
        self._last = 0

    def asked(self) -> Daemon:
        """Each question to the daemon passes here."""
        assert self.daemon.hangs.wait(PATIENCE)
        if not self.alive:
            raise FakeError(INTERNAL, "internal error: client socket is closed")
        return self.daemon

    def isAlive(self) -> int:
        return int(self.alive)

    def getURI(self) -> str:
        self.asked()
        return self.uri

    def setKeepAlive(self, interval: int, count: int) -> None:
        self.keepalive = interval, count

    def listAllDomains(self, flags: int) -> list[Handle]:
        assert flags == 1
        return [Handle(self, domain) for domain in list(self.asked().domains.values())]

    def lookupByName(self, name: str) -> Handle:
        if name not in self.asked().domains:
            raise FakeError(NO_DOMAIN, f"Domain not found: no domain with matching name {name!r}")
        return Handle(self, self.daemon.domains[name])

    def lookupByUUIDString(self, text: str) -> Handle:
        found = [domain for domain in self.asked().domains.values() if domain.uuid == text]
        if not found:
            raise FakeError(NO_DOMAIN, "Domain not found: no domain with matching uuid")
        return Handle(self, found[0])

    def domainEventRegisterAny(self, domain: None, kind: int, call: Callable[..., Any], opaque: Any) -> int:
        if self.asked().mute:
            raise FakeError(NO_SUPPORT, "this function is not supported by the connection driver")
        self._last += 1
        self.calls.append((self._last, kind, call, opaque))
        return self._last

    def domainEventDeregisterAny(self, number: int) -> None:
        self.calls = [call for call in self.calls if call[0] != number]
        self.asked()

    def registerCloseCallback(self, call: Callable[..., Any], opaque: None) -> None:
        self.asked()
        if self.closed is not None:
            raise FakeError(INVALID, "A close callback is already registered")
        self.closed = call

    def unregisterCloseCallback(self) -> None:
        self.closed = None

    def close(self) -> int:
        self.alive = False
        self.closes += 1
        return 0


class Handle:
    """A ``virDomain``: a domain by way of a connection."""

    def __init__(self, connection: Connection, domain: Domain) -> None:
        self._connection, self._domain = connection, domain

    def name(self) -> str:
        return self._domain.title

    def UUIDString(self) -> str:
        return self._domain.uuid

    def backupBegin(self, text: str, checkpoint: str | None, flags: int) -> int:
        daemon = self._connection.asked()
        daemon.begun.append(text)
        daemon.on_begin(self._domain, text)
        self._connection.asked()
        return 0

    def backupGetXMLDesc(self) -> str:
        daemon = self._connection.asked()
        text = self._domain.document
        daemon.on_read(self._domain)
        if self._domain.title not in daemon.domains:
            raise FakeError(NO_DOMAIN, "Domain not found")
        if text is None:
            raise FakeError(NO_BACKUP, "Domain backup job id not found: no domain backup job present")
        return text

    def abortJob(self) -> None:
        daemon = self._connection.asked()
        if self._domain.document is None:
            raise FakeError(INVALID, "Requested operation is not valid: no job is active on the domain")
        daemon.aborts += 1
        daemon.on_abort(self._domain)
