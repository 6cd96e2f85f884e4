"""A connection to one libvirt daemon, opened again when it breaks, and what is heard over it."""

from __future__ import annotations

import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import urlsplit

from clusterports._lease import Process
from clusterports._text import redact_url, show
from clusterports.errors import ClusterPortsError, ConfigurationError

from ._binding import binding, start_events

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Connect", "Connection"]

logger = logging.getLogger("clusterports")

Connect: TypeAlias = "str | Callable[[], Any] | Any"
"""A URI; or a function that gives an open connection, again after one has broken; or one connection."""

KEEPALIVE = (5, 5)
"""Seconds between two questions to a daemon whether it is there, and how many of them may stay without an answer."""


class Connection:
    """``heard`` is called in libvirt's event loop, with the UUID of a domain that ended or had a job that did; with ""
    when the connection broke.
    """

    def __init__(self, connect: Connect, *, host: str | None, events: bool, heard: Callable[[str], None]) -> None:
        if not (isinstance(connect, str) or callable(connect) or _is_connection(connect)):
            raise ConfigurationError(
                f"connect: must be a URI, a connection, or a function that opens one, got {show(connect)}"
            )
        self._connect = connect
        self._host = host
        self._events = events
        self._heard = heard
        self._lock = threading.Lock()
        self._open: Any = None
        self._registered: list[int] = []
        self._told_when_broken = False
        self.closed = False
        """For good: nothing is opened any more."""
        self._forks = Process.forks
        self.daemon = ""
        """Which of the daemons of a host: ``qemu:/system``, however it is reached; "" before the first time."""
        if isinstance(connect, str):
            self._check_host(connect)

    def get(self) -> Any:
        """The connection; a new one, if it was found broken.

        :raises libvirtError: the daemon is not there.
        :raises ConfigurationError: it is no connection, or of another host than this one.
        :raises ClusterPortsError: it was closed, or is the parent's.
        """
        if self._forks != Process.forks:
            raise ClusterPortsError("This connection belongs to the parent process; make one after the fork")
        with self._lock:
            if self.closed:
                raise ClusterPortsError("Nobody watches this host any more")
            if self._open is not None and self._open.isAlive():
                return self._open
            self._let_go()
            if self._events:
                start_events()
            connection = self._opened()
            try:
                self._check_host(uri := connection.getURI())
                self.daemon = f"{urlsplit(uri).scheme.partition('+')[0]}:{urlsplit(uri).path}"
                self._register(connection)
            except BaseException:
                self._open = connection
                self._let_go()
                raise
            self._open = connection
            return connection

    def close(self) -> None:
        with self._lock:
            self._let_go()

    def _opened(self) -> Any:
        if isinstance(self._connect, str):
            libvirt = binding()
            connection = libvirt.open(self._connect)
            with suppress(libvirt.libvirtError):  # a driver without a daemon has none
                connection.setKeepAlive(*KEEPALIVE)
            return connection
        connection = cast("Callable[[], Any]", self._connect)() if callable(self._connect) else self._connect
        if not _is_connection(connection):
            raise ConfigurationError(f"connect: the function must give an open connection, got {show(connection)}")
        return connection

    def _check_host(self, uri: str) -> None:
        try:
            elsewhere = urlsplit(uri).hostname
        except ValueError as error:
            raise ConfigurationError(f"connect: {show(redact_url(uri))} is not a URI: {error}") from None
        if self._host is None and elsewhere:
            raise ConfigurationError(
                f"host: must be given for a connection to another machine, {show(redact_url(uri))}: the name under"
                " which all managers know it"
            )

    def _register(self, connection: Any) -> None:
        libvirt = binding()
        for kind, ended in (
            (libvirt.VIR_DOMAIN_EVENT_ID_JOB_COMPLETED, self._job_ended),
            (libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lived),
        ):
            try:
                self._registered.append(connection.domainEventRegisterAny(None, kind, ended, libvirt))
            except libvirt.libvirtError as error:
                if not connection.isAlive():
                    raise
                logger.warning("no events from libvirt, jobs are looked at now and then: %s", error)
        with suppress(libvirt.libvirtError):  # one that is shared may have such a callback already
            connection.registerCloseCallback(self._broken, None)
            self._told_when_broken = True

    def _let_go(self) -> None:
        connection, self._open = self._open, None
        if connection is None:
            return
        for number in self._registered:
            with suppress(binding().libvirtError):  # it may be broken
                connection.domainEventDeregisterAny(number)
        if self._told_when_broken:
            with suppress(binding().libvirtError):
                connection.unregisterCloseCallback()
        self._registered, self._told_when_broken = [], False
        if isinstance(self._connect, str):
            with suppress(binding().libvirtError):
                connection.close()

    def _job_ended(self, _: object, domain: Any, *__: object) -> None:
        self._heard(domain.UUIDString())

    def _lived(self, _: object, domain: Any, event: int, __: int, libvirt: Any) -> None:
        if event in (libvirt.VIR_DOMAIN_EVENT_STOPPED, libvirt.VIR_DOMAIN_EVENT_CRASHED):
            self._heard(domain.UUIDString())

    def _broken(self, *_: object) -> None:
        self._heard("")


def _is_connection(given: object) -> bool:
    return hasattr(given, "domainEventRegisterAny")
