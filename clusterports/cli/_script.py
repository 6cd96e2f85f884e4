"""Ports for a script: under a lease that nobody renews but the script."""

from __future__ import annotations

import contextlib
import sys
import threading
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NamedTuple

from clusterports._backends import intact
from clusterports._lease import monotonic
from clusterports._names import where
from clusterports._text import show
from clusterports.abc import Gone
from clusterports.errors import ClusterPortsError, ConfigurationError, LeaseLost

from ._common import Common, end_in_order
from ._lease import SCRIPTS, renewed
from ._taking import in_words, to_dict

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterports import Allocation, PortAllocator, Settings
    from clusterports.abc import Backend

__all__ = ["Taken", "script_settings", "take"]

LEAVE_AFTER = 0.5
"""Seconds that the store has to take everything back from one who is told to end."""


class Taken(NamedTuple):
    """What a script gets. ``expires_in``: in seconds; None for a dry run, which takes nothing."""

    ports: list[Allocation]
    instance: str
    expires_in: float | None

    def lines(self) -> str:
        """Port, lease and fence of each port."""
        return "\n".join(
            f"{port.number} - -" if self.expires_in is None else f"{port.number} {port.lease} {port.fence}"
            for port in self.ports
        )

    def to_dict(self) -> dict[str, Any]:
        """The same as a document."""
        return to_dict(self.ports, None if self.expires_in is None else self.instance, self.expires_in)

    def in_words(self) -> str:
        """The same for a person."""
        if self.expires_in is None:
            ports = ", ".join(f"{port.number}/{port.protocol}" for port in self.ports)
            return f"would take {ports} {where(self.ports[0]._lease.space)}"
        return in_words(self.ports, self.instance, self.expires_in)


def script_settings(common: Common, ttl: str | None) -> Settings:
    """The settings, with the instance under which a script's lease is held.

    :raises ConfigurationError: for a value that cannot be.
    :raises ClusterPortsError: when nobody would hear what is taken.
    """
    instance = f"{SCRIPTS}{token_hex(8)}" if common.instance is None else common.instance
    settings = common.settings(ttl=ttl, instance=instance)
    if sys.__stdout__ is None:
        raise ClusterPortsError("stdout is closed: nobody would learn which port and lease it is")
    return settings


def take(
    common: Common,
    settings: Settings,
    show_it: Callable[[Taken], None],
    range: str | None,
    *,
    dry_run: bool = False,
    **request: Any,
) -> None:
    """Take ports for a script, and leave them to it.

    When it is told, in ``show_it``, the lease has its whole TTL before it. Nothing stays held after any failure, also
    one to tell it. ``request``: as for ``acquire`` of an allocator.
    """
    end_in_order()

    from clusterports import PortAllocator

    instance = settings.instance
    assert instance is not None
    with common.backend(settings) as backend:
        if common.instance is not None:
            _check_unused(backend, instance)
        ports = PortAllocator(settings=settings, backend=backend)
        try:
            given = ports.acquire(range, dry_run=dry_run, **request)
            several = given if isinstance(given, list) else [given]
            show_it(Taken(several, instance, None if dry_run else _prolong(backend, several[0], settings.ttl)))
            ports.detach()
        except BaseException as error:
            _give_back(ports, None if isinstance(error, Exception) else LEAVE_AFTER)
            raise


def _prolong(backend: Backend, allocation: Allocation, ttl: float) -> float:
    """Let the lease run for a full TTL from now, however long it took to get so far: seconds that are left."""
    sent_at = monotonic()
    lease = allocation._lease
    if isinstance(renewed(backend, lease.renewal()), Gone):
        raise LeaseLost(
            f"The lease {where(lease.space)} is lost already, its TTL is {ttl:g} s", allocations=[allocation]
        )
    return sent_at + ttl - monotonic()


def _check_unused(backend: Backend, instance: str) -> None:
    """Whoever takes a name takes all that is held under it, from a process that may well be running."""
    spaces = backend.spaces(instance)
    for view in intact(backend.read(spaces)):
        for lease in view.leases:
            if lease.instance == instance and (lease.expires_in > 0 or lease.grace):
                raise ConfigurationError(
                    f"instance: must be a name that holds no lease; {show(instance)} has lease {lease.lease} "
                    f"{where(view.space)}"
                )


def _give_back(ports: PortAllocator, seconds: float | None) -> None:
    """End the lease. The store may not answer: then it ends when its time is over."""

    def close() -> None:
        with contextlib.suppress(Exception):
            ports.close()

    closing = threading.Thread(target=close, name="clusterports-close", daemon=True)
    closing.start()
    closing.join(seconds)
