"""Our side of a lease: what we hold under it, and until when we may rely on it. No I/O.

The store counts a lease from when a renewal arrived, we count from before it was sent, and we stop a margin
earlier. So whatever the network does, we stop relying on a port before the store may give it to another (H1).
"""

from __future__ import annotations

import os
import time
from datetime import UTC, datetime
from threading import Lock
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

from .abc import Holder, Port, Renewal, Request

if TYPE_CHECKING:
    from collections.abc import Mapping

    from .abc import Protocol4

__all__ = ["LABEL_JOB", "HeldPort", "HostLease", "Process", "State"]

MARGIN: Final = 0.1
"""The share of the TTL by which we stop before the store does."""

LABEL_JOB: Final = "libvirt.job"
"""A label of ports on which libvirt has QEMU serve: which kind of job it is."""

FORCED: Final = "Taken by force"

ABANDONED_AT_ONCE: Final = 100
"""How many abandoned requests one heartbeat undoes; more follow with the next. The same goes for all else it tells."""

State: TypeAlias = Literal["live", "jeopardy", "lost"]

Amiss: TypeAlias = Literal["", "doubt", "gone"]
"""Whether the store may know something else of a lease than we do, or does not know it any more."""

if hasattr(time, "CLOCK_BOOTTIME"):

    def monotonic() -> float:
        """Seconds that never step and, unlike CLOCK_MONOTONIC, go on while the machine is suspended."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

else:
    monotonic = time.monotonic


class Process:
    """Tells a forked child from its parent without a system call."""

    forks = 0

    @classmethod
    def forked(cls) -> None:
        cls.forks += 1


os.register_at_fork(after_in_child=Process.forked)


class HostLease:
    """The lease of this process on one space. Used by several threads.

    ``until``: the local deadline, on the monotonic clock; ``strict``: passing it is a loss. A request number is
    *open* while its outcome is awaited, and *abandoned* when nobody waits any more but the store may have carried
    it out: the next heartbeat undoes it.
    """

    def __init__(
        self,
        space: str,
        host: str,
        holder: Holder,
        ttl: float,
        sent_at: float,
        *,
        strict: bool = False,
        token: str = "",
    ) -> None:
        self.space = space
        self.host = host
        self.holder = holder
        self.token = token
        self.ttl = ttl
        self.strict = strict
        self.state: State = "live"
        self.reason: Literal["revoked", "deadline"] = "revoked"  # of a loss
        self.left = False  # given up by our own close
        self.until = sent_at + ttl * (1 - MARGIN)
        self.ports: dict[int, HeldPort] = {}  # by fence
        self.unreleased: dict[int, Port] = {}  # a release that did not reach the store; repeated with the heartbeat
        self._forks = Process.forks
        self._lock = Lock()
        self._last = 0
        self._open: set[int] = set()
        self._abandoned: set[int] = set()
        self._left: set[int] = set()
        self._heard: set[int] = set()
        self.forced: set[int] = set()  # fences of ports taken from us by force that we did not know yet
        self.amiss: Amiss = ""
        self.doubts = 0
        self.highest = holder.incarnation  # of the fences that we know of
        self._claiming = False  # until our claims are answered, others may have our ports
        self._confirmed = sent_at  # when the last renewal was sent that succeeded
        self._strays: dict[int, tuple[Port, int]] = {}  # by fence, with the last request when it was seen

    # ---------------------------------------------------------------- requests

    def begin(self) -> Request:
        """A new request, with the floor below which all is settled."""
        with self._lock:
            self._last = number = self._last + 1
            self._open.add(number)
            floor = number if len(self._open) == 1 else min(self._open)
            if self._abandoned:
                floor = min(floor, *self._abandoned)
            return Request(number, floor, self.highest)

    def settle(self, number: int) -> None:
        """Its outcome is known."""
        self._open.discard(number)

    def abandon(self, number: int) -> None:
        """Its outcome is not known and nobody waits for it."""
        with self._lock:
            self._open.discard(number)
            self._abandoned.add(number)

    def leave(self, ticket: int) -> None:
        """Nobody waits any more at this place in the queue."""
        with self._lock:
            self._left.add(ticket)

    def hear(self, fence: int) -> HeldPort | None:
        """The port with this fence was taken from us by force: the allocation that we had of it.

        None when we have none; if that is because the reply is still on its way, `took` will tell.
        """
        with self._lock:
            self._heard.add(fence)
            if self._open:
                self.forced.add(fence)  # before we look, so that one of us two sees it
            else:
                self.forced.clear()
        port = self.ports.pop(fence, None)
        if port is not None:
            port._revoked = FORCED
        return port

    def took(self, fence: int) -> None:
        """The port with this fence was granted, and is among ours. It may have been taken by force already."""
        if fence in self.forced:
            port = self.ports.pop(fence, None)
            if port is not None:
                port._revoked = FORCED

    # ---------------------------------------------------------------- lost data

    def moved(self, holder: Holder, token: str, sent_at: float) -> None:
        """The store lost it, and it was opened anew. Our ports are not relied on any longer than before until they are
        `claimed`: it may have run out after all, and others may have them.
        """
        with self._lock:
            self.holder, self.token = holder, token
            self.highest = max(self.highest, holder.incarnation)
            self._left.clear()
            self._heard.clear()
            self._strays.clear()
            self._claiming, self._confirmed = True, sent_at
            self.amiss = "doubt"

    def suspect(self, what: Amiss) -> None:
        """The store may have lost something of it, or all."""
        with self._lock:
            self.doubts += 1
            if self.amiss != "gone":
                self.amiss = what

    def claimed(self, doubts: int) -> None:
        """The store knows of all that we hold, and we of all that others were given; unless there was another doubt
        after the first so many.
        """
        with self._lock:
            if self.doubts == doubts:
                self.amiss = ""
                self._claiming = False
                self._prolong()

    def seen(self, listed: Mapping[int, Port]) -> None:
        """The store has these under the lease. Those that are not ours are strays, unless a request is on its way that
        took them: a release of theirs was lost.
        """
        with self._lock:
            for fence, port in listed.items():
                if fence not in self.ports and fence not in self.unreleased:
                    self._strays.setdefault(fence, (port, self._last))

    def give_back_strays(self) -> None:
        """Release those of which it is certain by now that nobody here has them."""
        with self._lock:
            oldest = min([*self._open, *self._abandoned], default=self._last + 1)
            for fence, (port, last) in list(self._strays.items()):
                if oldest > last:
                    del self._strays[fence]
                    if fence not in self.ports:
                        self.unreleased[fence] = port

    def renewal(self) -> Renewal:
        with self._lock:
            abandoned = sorted(self._abandoned)
            told, untold = abandoned[:ABANDONED_AT_ONCE], abandoned[ABANDONED_AT_ONCE:]
            floor = min([*self._open, *untold[:1]], default=self._last + 1)
            left, heard = sorted(self._left)[:ABANDONED_AT_ONCE], sorted(self._heard)[:ABANDONED_AT_ONCE]
            sure = not (self._open or abandoned or heard or self.unreleased or self._strays)
            held = len(self.ports) if sure else -1
            return Renewal(self.space, self.holder, floor, tuple(told), tuple(left), tuple(heard), held, self.highest)

    # ---------------------------------------------------------------- time

    def renewed(self, renewal: Renewal, sent_at: float, *, doubt: bool = False) -> None:
        """The store has it for another TTL. With a ``doubt`` our ports are not relied on any longer than before until
        they are `claimed`.
        """
        with self._lock:
            self._claiming = self._claiming or doubt
            self._abandoned.difference_update(renewal.abandoned)
            self._left.difference_update(renewal.left)
            self._heard.difference_update(renewal.heard)
            self._confirmed = max(self._confirmed, sent_at)
            if not self._claiming:
                self._prolong()

    def _prolong(self) -> None:
        if self.state != "lost" and not (self.strict and monotonic() >= self.until):
            self.until = max(self.until, self._confirmed + self.ttl * (1 - MARGIN))
            if monotonic() < self.until:  # one that was sent too long ago rescues nothing
                self.state = "live"

    def overdue(self, now: float) -> bool:
        """Note that the deadline has passed, which is a loss if strict; True the first time."""
        with self._lock:
            if self.state != "live" or now < self.until:
                return False
            self.state = "jeopardy"
            if self.strict:
                self.state, self.reason = "lost", "deadline"
            return True

    def lose(self) -> bool:
        """The store says that it is gone; True the first time."""
        with self._lock:
            was, self.state = self.state, "lost"
            return was != "lost"

    def lost(self) -> bool:
        return self.state == "lost"

    def reliable(self) -> bool:
        return self.state != "lost" and monotonic() < self.until and self.ours()

    def ours(self) -> bool:
        """False in a forked child."""
        return self._forks == Process.forks


class HeldPort:
    """One port, held under a lease. What both kinds of allocations have in common."""

    __slots__ = (
        *("_acquired", "_lease", "_released", "_revoked"),
        *("fence", "host", "labels", "number", "owner", "protocol", "range"),
    )

    number: int
    """The port number, 1 to 65535; ``int(allocation)`` too."""
    host: str
    range: str | None
    """None for a port that was claimed without one."""
    protocol: Protocol4
    owner: str
    labels: Mapping[str, str]
    fence: int
    """Names this allocation for good; a later holder of the same port has a higher one."""

    def __init__(
        self,
        lease: HostLease,
        port: Port,
        range: str,
        owner: str,
        labels: Mapping[str, str],
        acquired: float,
        host: str | None = None,
    ) -> None:
        self.number, self.protocol, self.fence = port
        self.host = lease.host if host is None else host
        self.range = range or None
        self.owner = owner
        self.labels = labels
        self._lease = lease
        self._acquired = acquired
        self._released = False
        self._revoked = ""  # how it was taken from us

    @property
    def valid(self) -> bool:
        """Whether the holder may rely on the port now, as far as it can know without the network.

        False after the release, when the lease was not renewed in time (until it is), when it is lost, when the port
        was taken by force, and in a forked child.
        """
        return not (self._released or self._revoked) and self._lease.reliable()

    @property
    def _stays(self) -> bool:
        """Whether something runs on it that outlives us: whoever ends does not give it back."""
        return LABEL_JOB in self.labels

    @property
    def acquired_at(self) -> datetime:
        """When it was acquired, by this machine's wall clock; for people only."""
        return datetime.fromtimestamp(self._acquired, UTC)

    @property
    def lease(self) -> int:
        """The id of the lease under which it is held."""
        return self._lease.holder.lease

    @property
    def expires_in(self) -> float:
        """Seconds until it may no longer be relied upon if no renewal succeeds; 0 or less: not valid."""
        return self._lease.until - monotonic()

    def __int__(self) -> int:
        return self.number

    __index__ = __int__

    def __repr__(self) -> str:
        state = "valid" if self.valid else "released" if self._released else "not valid"
        return (
            f"<{type(self).__name__} {self.number}/{self.protocol} on {self.host!r}"
            f" range={self.range!r} fence={self.fence} {state}>"
        )
