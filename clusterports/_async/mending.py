"""What a holder does about a store that may have lost some of what it knew."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from clusterports._acompat import AsyncLock
from clusterports._lease import monotonic
from clusterports._names import is_cluster_space, where
from clusterports.abc import Claim, Gone, Port
from clusterports.errors import BackendError, LeaseLost

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterports._lease import HeldPort, HostLease

    from .allocator import AsyncPortAllocator

__all__ = ["AsyncMending"]

logger = logging.getLogger("clusterports")

CLAIMED_AT_ONCE: Final = 64
"""Ports in one claim, which is one step of the store; others wait for it."""


class AsyncMending:
    """Opens leases anew that the store lost, claims the ports that it lacks, and gives back those it has too much.

    ``lock``: one at a time, and none once the allocator is closed.
    """

    def __init__(self, allocator: AsyncPortAllocator) -> None:
        self._allocator = allocator
        self.lock = AsyncLock()
        self._turn = 0

    async def ours_again(self, lease: HostLease) -> bool:
        """Whether a lease that the store did not know is ours all the same: it lost what it knew, and was told."""
        if lease.lost():
            return False
        # Under the name that it has now: it may have been opened anew since we asked.
        await self._allocator._renew([lease])
        await self._one(lease)
        return not lease.lost()

    async def all(self, until: float) -> None:
        """As many as there is time for, and one in any case; the rest follows the next heartbeat, which comes soon. One
        that cannot be mended must not keep the others from it.
        """
        amiss = [lease for lease in self._allocator._leases.values() if lease.amiss]
        self._turn += 1
        first = self._turn % max(1, len(amiss))
        for lease in [*amiss[first:], *amiss[:first]]:
            try:
                await self._one(lease, until)
            except BackendError as error:
                logger.warning("what the store lost %s is not made good yet: %s", where(lease.space), error)
            if monotonic() >= until:
                self._allocator._wake.set()
                return

    async def before_we_go(self) -> None:
        """One more heartbeat: whoever comes after us is to find all that we hold, with a full TTL to do so."""
        try:
            await self._allocator._renew(list(self._allocator._leases.values()))
            for lease in list(self._allocator._leases.values()):
                await self._mend(lease, float("inf"))
        except BackendError as error:
            logger.warning("%s; the leases are left as they are", error)

    async def _one(self, lease: HostLease, until: float = float("inf")) -> None:
        async with self.lock:
            if not self._allocator._closed:
                await self._mend(lease, until)

    async def _mend(self, lease: HostLease, until: float) -> None:
        if lease.lost():
            return
        allocator = self._allocator
        if lease.amiss == "gone":
            try:
                _, holder, token, sent_at = await allocator._take_lease(lease.space, lease.highest)
            except LeaseLost:
                allocator._gone(lease, Gone("superseded"))
                return
            lease.moved(holder, token, sent_at)
            logger.warning("the store lost the lease %s; it was opened anew", where(lease.space))
        doubts = lease.doubts
        if lease.amiss == "doubt" and await self._compare(lease, until):
            lease.claimed(doubts)
            allocator._watchdog.start()  # it may have a deadline again

    async def _compare(self, lease: HostLease, until: float) -> bool:
        """Claim what the store lacks, and give back what it has too much. False: there is more to do."""
        before = dict(lease.ports)
        listed = await self._allocator._listed(lease)
        if listed is None:
            lease.suspect("gone")
            return False
        known = {port.fence: Port(port.number, port.protocol, port.fence) for port in listed}
        lease.seen(known)
        lease.give_back_strays()
        lost = [port for fence, port in before.items() if fence not in known and fence in lease.ports]
        while lost:
            part, lost = lost[:CLAIMED_AT_ONCE], lost[CLAIMED_AT_ONCE:]
            if not await self._claim(lease, part):
                return False
            logger.warning("ports that the store had lost were claimed again %s: %d", where(lease.space), len(part))
            if lost and monotonic() >= until:
                return False
        return True

    async def _claim(self, lease: HostLease, ports: Sequence[HeldPort]) -> bool:
        allocator = self._allocator
        cluster = is_cluster_space(lease.space)
        claims = [
            Claim(Port(port.number, port.protocol, port.fence), allocator._ranges.booked(port, cluster=cluster))
            for port in ports
        ]
        request = lease.begin()
        try:
            reply = await allocator._backend.claim(lease.space, lease.holder, request, claims)
        except BaseException:
            lease.abandon(request.number)
            raise
        lease.settle(request.number)
        if isinstance(reply, Gone):
            lease.suspect("gone")
            return False
        refused = {port.fence for port in reply.refused}
        for port, claim in zip(ports, claims, strict=True):
            if port.fence not in lease.ports and port.fence not in refused:  # it was released meanwhile
                lease.unreleased[port.fence] = claim.port
        taken = [port for port in (lease.ports.pop(fence, None) for fence in refused) if port is not None]
        for port in taken:
            port._revoked = "Given to another, after the store had lost them,"
        allocator._tell_taken(lease, taken)
        return True
