"""``clusterports acquire``: ports for a script, under a lease that nobody renews but the script."""

from __future__ import annotations

import contextlib
import sys
import threading
from secrets import token_hex
from typing import TYPE_CHECKING, Annotated

import typer

from clusterports._backends import intact
from clusterports._lease import monotonic
from clusterports._names import check_text, where
from clusterports._text import show
from clusterports.abc import Gone
from clusterports.errors import ClusterPortsError, ConfigurationError, LeaseLost
from clusterports.ranges import PORT_BOUND

from ._common import DEFAULT_RANGE, Common, Ttl, complete_range, end_in_order, say
from ._lease import SCRIPTS, renewed
from ._taking import (
    Labels,
    Owner,
    Protocol,
    Wait,
    check_number,
    check_pairs,
    check_seconds,
    in_words,
    to_dict,
    warn_ephemeral,
)

if TYPE_CHECKING:
    from clusterports import Allocation, PortAllocator
    from clusterports.abc import Backend

__all__ = ["acquire"]

LEAVE_AFTER = 0.5
"""Seconds that the store has to take everything back from one who is told to end."""

AT_LEAST_ONE = "an integer of at least 1"


def acquire(
    common: Common,
    range: Annotated[
        str | None, typer.Option(help="The range to take from. Default: backup.", autocompletion=complete_range)
    ] = None,
    port: Annotated[
        str | None, typer.Option(metavar="N", help="This port; without --range any from 1 to 65535 will do.")
    ] = None,
    count: Annotated[str, typer.Option(metavar="N", help="So many ports, or none.")] = "1",
    contiguous: Annotated[bool, typer.Option("--contiguous", help="Adjacent ones.")] = False,
    align: Annotated[str, typer.Option(metavar="N", help="The first is a multiple of this.")] = "1",
    protocol: Annotated[Protocol, typer.Option(help="tcp, udp, or both.")] = Protocol.tcp,
    owner: Owner = "",
    label: Labels = None,
    wait: Wait = "0",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be given, and take nothing.")] = False,
    ttl: Ttl = None,
) -> None:
    """Take ports for a script, for a limited time: prints PORT LEASE FENCE, a line for each port.

    Nobody renews the lease: after --ttl seconds the ports are taken back, unless `clusterports renew LEASE` comes
    first. `clusterports release LEASE` gives them back before. On any failure nothing is held. A job that can be run as
    one command is better off with `clusterports run`, which does all of this.

    \b
    Examples:
      read -r port lease fence < <(clusterports acquire --ttl 60 --owner nightly)
      clusterports acquire --count 2 --contiguous --align 2 --json
      clusterports acquire --port 8080 --protocol both --wait 30
    """
    wanted = None if port is None else check_number("port", port, PORT_BOUND)
    so_many, multiple = check_number("count", count, AT_LEAST_ONE), check_number("align", align, AT_LEAST_ONE)
    labels, patience = check_pairs(label), check_seconds(wait)
    check_text("owner", owner)
    if range is None and wanted is None:
        range = DEFAULT_RANGE
    instance = f"{SCRIPTS}{token_hex(8)}" if common.instance is None else common.instance
    settings = common.settings(ttl=ttl, instance=instance)
    if sys.__stdout__ is None:
        raise ClusterPortsError("stdout is closed: nobody would learn which port and lease it is")
    if range is not None and wanted is None:
        warn_ephemeral(common, settings, range)
    end_in_order()

    from clusterports import PortAllocator

    with common.backend(settings) as backend:
        if common.instance is not None:
            _check_unused(backend, instance)
        ports = PortAllocator(settings=settings, backend=backend)
        try:
            given = ports.acquire(
                range,
                port=wanted,
                count=so_many,
                contiguous=contiguous,
                align=multiple,
                protocol=protocol.value,
                owner=owner,
                labels=labels,
                wait=patience,
                dry_run=dry_run,
            )
            several = given if isinstance(given, list) else [given]
            _show(common, several, instance, None if dry_run else _prolong(backend, several[0], settings.ttl))
            ports.detach()
        except BaseException as error:
            _give_back(ports, None if isinstance(error, Exception) else LEAVE_AFTER)
            raise


def _show(common: Common, given: list[Allocation], instance: str, expires_in: float | None) -> None:
    """``expires_in``: None for a dry run. Returns when it is written."""
    if common.json:
        common.print_json(to_dict(given, None if expires_in is None else instance, expires_in))
    else:
        for port in given:
            print(port.number, *(("-", "-") if expires_in is None else (port.lease, port.fence)))
    sys.stdout.flush()
    if common.verbose and expires_in is not None:
        say(in_words(given, instance, expires_in))


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
