"""One call to acquire: it asks, probes and waits, and gives everything back when not all can be had."""

from __future__ import annotations

import asyncio  # async-only
import logging
import random
import time
from itertools import islice
from typing import TYPE_CHECKING, Literal

from clusterports._acompat import cancels  # async-only
from clusterports._lease import monotonic
from clusterports._names import where
from clusterports.abc import AsyncWatch, Full, Gone, Granted, Port, Queued, Recovering, Wait
from clusterports.errors import BackendError, BackendRecovering, BindError, ClusterPortsError
from clusterports.probe import HeldSockets, check

if TYPE_CHECKING:
    from collections.abc import Sequence

    from clusterports._lease import HeldPort, HostLease
    from clusterports._wants import Want
    from clusterports.abc import Stale
    from clusterports.probe import Probe, Verdict

    from .allocator import AsyncAllocation, AsyncPortAllocator

    Reply = Granted | Full | Queued | Recovering | Gone | Stale

__all__ = ["AsyncTaking"]

logger = logging.getLogger("clusterports")

WINDOW = 3.0
"""Seconds that the place of one who waits is kept without being asked for."""

PAUSE = 1.0
"""Seconds between two asks of one who waits, unless it is woken."""

LEAST_PAUSE = 0.005

AGAIN = 3.0
"""Seconds after which one who waits tries again what this machine refused."""

TRIES = 256
"""How often one call lets itself be refused by this machine."""

FOREIGN = 30.0
"""Seconds for which a port that something else has is marked."""


class AsyncTaking:
    """What a call wants of the spaces: all of it, or nothing.

    A request stays open until the whole call has succeeded. So whatever ends it before, an error, a cancelled task or
    the death of this process, the ports are given back: at once, with the next heartbeat, or with the lease.
    """

    def __init__(
        self, allocator: AsyncPortAllocator, wants: Sequence[Want], wait: float = 0.0, *, probed: bool = True
    ) -> None:
        self._allocator = allocator
        self._wants = wants
        self._probed = probed
        self._wait = wait
        self._until = monotonic() + wait if wait else 0.0
        self._cancels = cancels()  # async-only
        self._opened: list[tuple[HostLease, int]] = []

    async def run(self, lease: HostLease | None = None, reply: Reply | None = None) -> None:
        """Fill ``given`` of the wants. ``lease``, ``reply``: the only want was asked for there, and refused."""
        spaces: dict[str, list[Want]] = {}
        for want in self._wants:
            spaces.setdefault(want.plan.space, []).append(want)
        try:
            for space in sorted(spaces):  # one order for all, so that two callers do not wait for each other
                lease = lease or await self._allocator._open(space)
                await self._take(lease, spaces[space], reply)
                lease = None
            for lease, _ in self._opened:
                given = [port for want in self._wants for port in want.given]
                if lease.lost():  # meanwhile; whoever was told did not hear of these
                    raise self._allocator._lost_error(lease, given)
                forced = [port for port in given if port._revoked]
                if forced:
                    raise self._allocator._taken_error(lease, forced)
        except ClusterPortsError as error:
            if isinstance(error, BackendError):
                self._abandon(self._opened)
            else:
                await self._undo(self._opened)
            raise
        except BaseException:  # no time for a word with the store
            self._abandon(self._opened)
            raise
        for lease, number in self._opened:
            lease.settle(number)

    async def preview(self) -> None:
        """Fill ``given`` with what would be given now, and take nothing."""
        backend = self._allocator._backend
        # To look is enough: a socket that is kept may be that of somebody who takes the port meanwhile.
        by = "auto" if isinstance(self._allocator._probe, HeldSockets) else self._allocator._probe
        self._until = 0.0
        for want in self._wants:
            looked = False
            while True:
                reply = await backend.preview(want.plan.space, (want.ask,))
                if isinstance(reply, Granted):
                    want.given = [self._allocator._would_be(want.plan, port) for port in reply.ports]
                    refused = self._refused(want, by)
                    if not refused:
                        break
                    want.look_elsewhere(port.number for port, _ in refused)
                    if len(want.refused) >= TRIES:
                        raise want.none_free(0.0)
                elif isinstance(reply, Recovering):
                    raise BackendRecovering(where(want.plan.space), reply.left / 1e6)
                elif reply.backlog and not looked:  # as it will be, once somebody has looked
                    looked = True
                    while (await backend.reclaim(want.plan.space)).backlog:
                        pass
                else:
                    raise want.refusal(reply, 0.0)

    # ---------------------------------------------------------------- one space

    async def _take(self, lease: HostLease, wants: list[Want], reply: Reply | None) -> None:
        allocator = self._allocator
        backend = allocator._backend
        answer = reply
        keep = self._probed and any(allocator._tries_out(want.plan) for want in wants)
        reopened = False
        ticket = tries = 0
        looked_at = monotonic()
        watch: AsyncWatch | None = None
        try:
            while True:
                if answer is None:
                    left = self._until - monotonic()
                    wait = Wait(round(WINDOW * 1e6) if left > 0 else 0, ticket, keep) if self._wait else None
                    answer = await allocator._ask(lease, [want.ask for want in wants], wait, self._opened)
                    if isinstance(answer, Granted):
                        self._hand_over(lease, wants, answer)
                        if await self._try_out(lease, wants):
                            if ticket and keep:
                                await self._leave(lease, ticket)
                            return
                        tries += 1
                        if any(want.ask.explicit for want in wants):
                            await self._sleep(watch, PAUSE)
                        elif tries >= TRIES or 0 < self._until <= monotonic():
                            if monotonic() >= self._until:
                                raise next(want for want in wants if want.refused).none_free(self._wait)
                            await self._sleep(watch, PAUSE)
                            tries = 0
                if isinstance(answer, Queued):
                    reopened = False
                    ticket = answer.ticket
                    if watch is None:
                        watch = await backend.watch(lease.space, ticket)  # and ask again: what happened before it?
                    elif answer.due_in <= 0:
                        await backend.reclaim(lease.space)
                    else:
                        soon = answer.due_in / 1e6 if answer.first else PAUSE
                        await self._sleep(watch, min(soon, PAUSE * random.uniform(0.7, 1)))
                        if monotonic() - looked_at >= AGAIN:
                            looked_at = monotonic()
                            for want in wants:
                                want.look_again()
                elif isinstance(answer, Recovering):
                    if monotonic() >= self._until:
                        raise BackendRecovering(where(lease.space), answer.left / 1e6)
                    await self._sleep(watch, min(answer.left / 1e6, PAUSE))
                elif isinstance(answer, Gone):
                    if not await allocator._mending.ours_again(lease):
                        allocator._gone(lease, answer)
                        if reopened or answer.reason == "superseded":
                            raise allocator._lost_error(lease, list(lease.ports.values()))
                        reopened = True
                        lease = await allocator._open(lease.space)
                elif isinstance(answer, Full):
                    if not answer.backlog:
                        raise wants[answer.ask].refusal(answer, 0.0 if answer.why == "limit" else self._wait)
                    while (await backend.reclaim(lease.space)).backlog:
                        pass
                # Stale: the answer to an earlier copy of the request was lost on the way. It gave nothing; ask anew.
                answer = None
                allocator._check_process()
                if cancels() > self._cancels:  # async-only
                    # A client library took it for a timeout of its own, and went on.
                    raise asyncio.CancelledError
        except BaseException:
            if ticket:
                lease.leave(ticket)
                allocator._wake.set()
            raise
        finally:
            if watch is not None:
                await watch.close()

    async def _leave(self, lease: HostLease, ticket: int) -> None:
        """Let the next one have its turn: what was given was found good."""
        lease.leave(ticket)
        try:
            await self._allocator._renew([lease])
        except BackendError as error:
            logger.warning("%s; the place in the queue is given up with the next heartbeat", error)

    async def _sleep(self, watch: AsyncWatch | None, seconds: float) -> None:
        left = max(0.0, self._until - monotonic())
        await (watch or AsyncWatch()).wait(min(left, max(LEAST_PAUSE, seconds)))

    def _hand_over(self, lease: HostLease, wants: list[Want], granted: Granted) -> None:
        now = time.time()
        ports = iter(granted.ports)
        for want in wants:
            given: list[AsyncAllocation] = []
            want.given = given
            self._allocator._add(given, lease, want.plan, islice(ports, want.ask.count), now)

    # ---------------------------------------------------------------- the probe

    def _refused(self, want: Want, by: Probe | Literal["auto", False]) -> list[tuple[HeldPort, Verdict]]:
        """The ports that this machine does not have free. The error is raised where it is of no use to look on."""
        probed = [(port, check(by, port.host, port.number, port.protocol)) for port in want.given]
        refused = [(port, verdict) for port, verdict in probed if verdict.state != "free"]
        for port, verdict in refused:
            if want.ask.explicit and verdict.state == "busy":
                if monotonic() >= self._until:
                    raise want.in_use(port.number)
            elif verdict.fatal or want.ask.explicit:
                raise BindError(verdict)
            elif verdict.state == "error":
                want.fault = verdict
        return refused

    async def _try_out(self, lease: HostLease, wants: list[Want]) -> bool:
        """Probe what was granted. If not all of it is free, it is given back: to be asked for anew, elsewhere."""
        by = self._allocator._probe
        if by is False or not self._probed:
            return True
        marked = 0
        clean = True
        for want in wants:
            refused = self._refused(want, by)
            if not refused:
                continue
            clean = False
            busy = [port for port, verdict in refused if verdict.state == "busy"]
            if busy and not want.ask.explicit:
                # Not ours from here on, so not to be claimed where the store seems to lack them.
                for port in busy:
                    lease.ports.pop(port.fence, None)
                await self._allocator._backend.mark_foreign(
                    lease.space,
                    lease.holder,
                    [Port(port.number, port.protocol, port.fence) for port in busy],
                    range=want.ask.range,
                    duration=round(FOREIGN * 1e6),
                    most=want.most_marks(),
                    host=want.ask.host,
                )
                marked += len(busy)
                logger.info("ports that something else has on host %r: %s", busy[0].host, [int(port) for port in busy])
            if not want.ask.explicit:
                want.look_elsewhere(port.number for port, _ in refused)
        if clean:
            return True
        if marked == sum(want.ask.count for want in wants):
            _, number = self._opened.pop()
            self._allocator._abandon((), self._given(lease))
            lease.settle(number)
        else:
            await self._undo(self._opened[-1:])
            self._opened.pop()
        return False

    # ---------------------------------------------------------------- giving back

    def _given(self, lease: HostLease) -> list[HeldPort]:
        return [port for want in self._wants for port in want.given if port._lease is lease]

    def _abandon(self, opened: Sequence[tuple[HostLease, int]]) -> None:
        self._allocator._abandon(opened, [port for lease, _ in opened for port in self._given(lease)])

    async def _undo(self, opened: Sequence[tuple[HostLease, int]]) -> None:
        """Now if the store answers, else with the heartbeat."""
        self._abandon(opened)
        leases = list({lease.space: lease for lease, _ in opened if lease.state != "lost"}.values())
        if leases:
            try:
                await self._allocator._renew(leases)
            except BackendError as error:
                logger.warning("%s; what was taken is given back with the next heartbeat", error)
