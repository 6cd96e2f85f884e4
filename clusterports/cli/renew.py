"""``clusterports renew``: what ``acquire`` gave is kept for longer."""

from __future__ import annotations

import contextlib
from typing import Annotated

import typer

from clusterports._lease import monotonic
from clusterports._names import where
from clusterports.abc import Gone, Renewal
from clusterports.errors import BackendError, LeaseLost

from ._common import Common, say
from ._lease import SCRIPTS, check_positive, find, named, renewed

__all__ = ["renew"]


def renew(
    common: Common,
    lease: Annotated[str, typer.Argument(metavar="LEASE", help="The second word that `acquire` printed.")],
) -> None:
    """Let the lease of `acquire` run for another full TTL: prints for how many seconds.

    Exits with 4 when it has run out, was released or never was, and when all of its ports were taken by force. On
    another host than the one where the ports are, name that with --host. After any other failure, as while the store is
    away, try again: the lease may still be there.

    \b
    Examples:
      clusterports renew "$lease"
      while sleep 20; do clusterports renew "$lease" >/dev/null || [ $? != 4 ] || break; done &
    """
    number = check_positive("lease", lease)
    settings = common.settings()
    with common.backend(settings) as backend:
        found = find(common, backend, settings, number)
        sent_at = monotonic()
        reply = renewed(backend, Renewal(found.space, found.holder))
        expires_in = sent_at + found.lease.ttl / 1e6 - monotonic()
        if isinstance(reply, Gone):
            raise found.lost(reply)
        taken = {port.fence for port in reply.revoked}
        if reply.revoked:
            say(f"Taken by force from lease {number} {where(found.space)}: {named(reply.revoked)}")
            if found.lease.instance.startswith(SCRIPTS):  # else it is for the manager to hear
                with contextlib.suppress(BackendError):  # then it is told once more with the next renewal
                    renewed(backend, Renewal(found.space, found.holder, heard=tuple(taken)))
    ports = [port for port in found.ports if port.fence not in taken]
    if not ports:
        raise LeaseLost(f"Lease {number} {where(found.space)} holds no port any more")
    if common.json:
        common.print_json(
            {
                "host": found.host,
                "lease": number,
                "instance": found.lease.instance,
                "expires_in_s": round(expires_in, 3),
                "ports": [port.number for port in ports],
                "revoked": [port.number for port in reply.revoked],
            }
        )
    else:
        print(f"{found.lease.ttl / 1e6:g}")
    if common.verbose:
        say(f"lease {number} of instance {found.lease.instance!r} {where(found.space)} holds {named(ports)}")
