"""A lease that a script got from ``acquire``, found again by its number."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

from clusterports._backends import intact
from clusterports._names import CLUSTER_SPACE, default_host, host_space, where
from clusterports._text import show
from clusterports.abc import Holder
from clusterports.errors import ConfigurationError, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Iterable

    from clusterports import Settings
    from clusterports.abc import Backend, Gone, LeaseView, Port, PortView, Renewal, Renewed, SpaceView

    from ._common import Common

__all__ = ["SCRIPTS", "Found", "check_positive", "find", "named", "renewed", "views"]

SCRIPTS = "acquire-"
"""How the instances begin under which ``acquire`` takes ports: nobody runs under these names."""


class Found(NamedTuple):
    """``host``: as it was asked for. ``ports``: those that the lease holds."""

    host: str
    space: str
    lease: LeaseView
    ports: tuple[PortView, ...]

    @property
    def holder(self) -> Holder:
        return Holder(self.lease.instance, self.lease.lease, self.lease.incarnation)

    def lost(self, gone: Gone) -> LeaseLost:
        """The error for a lease that was there a moment ago."""
        why = "a newer process runs under its name" if gone.reason == "superseded" else "it ran out, or was released"
        return LeaseLost(f"Lease {self.lease.lease} {where(self.space)} is gone: {why}")


def check_positive(key: str, text: str) -> int:
    """The number of a lease, or a fence.

    :raises ConfigurationError: when it cannot be one.
    """
    if not re.fullmatch("[0-9]{1,18}", text) or int(text) == 0:
        raise ConfigurationError(f"{key}: must be a positive integer of at most 18 digits, got {show(text)}")
    return int(text)


def views(backend: Backend, host: str) -> list[SpaceView]:
    """Where a port of this host may be: its own space, and the cluster's.

    :raises BackendError: also when one of the two is damaged.
    """
    return intact(backend.read([host_space(host), CLUSTER_SPACE]))


def find(common: Common, backend: Backend, settings: Settings, number: int) -> Found:
    """The lease with this number. Only with its instance's name it may be one that ``acquire`` did not name itself.

    :raises LeaseLost: there is none.
    :raises ConfigurationError: it may be that of a running manager.
    """
    host, instance = settings.host or default_host(), common.instance
    refused: ConfigurationError | None = None
    for view in views(backend, host):
        for lease in view.leases:
            if lease.lease != number:
                continue
            if lease.instance == instance or (instance is None and lease.instance.startswith(SCRIPTS)):
                ports = tuple(port for port in view.ports if port.state == "held" and port.lease == number)
                return Found(host, view.space, lease, ports)
            whose = f"lease {number} {where(view.space)} is that of instance {lease.instance!r}"
            if instance is None:
                whose += ", which may be running; if it is not, name it with --instance"
                refused = ConfigurationError(f"lease: must be one of `acquire`; {whose}")
            else:
                refused = ConfigurationError(f"instance: must be the lease's; {whose}, got {show(instance)}")
    if refused is not None:
        raise refused
    elsewhere = "" if common.host is not None else "; if its ports are on another host, name that with --host"
    raise LeaseLost(f"There is no lease {number} on host {host!r}: it ran out, was released, or never was{elsewhere}")


def renewed(backend: Backend, renewal: Renewal) -> Renewed | Gone:
    """One heartbeat for one lease."""
    (outcome,) = backend.renew([renewal])
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def named(ports: Iterable[Port | PortView]) -> str:
    """Ports for people."""
    return ", ".join(f"{port.number}/{port.protocol}" for port in ports) or "none"
