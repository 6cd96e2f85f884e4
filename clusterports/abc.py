"""The contract of a backend: where leases and ports are kept.

One call is one atomic step on one space. A backend decides nothing of its own: the rules of a step are those
of :class:`clusterports._space.Space`, and a backend is right when every reply and everything that
:meth:`Backend.read` shows equals what ``Space`` answers to the same calls at the same times. The suite in
:mod:`clusterports.testing` checks it.

Units: all times are integers in microseconds; durations and the lease clock never go back. Bounds of port
spans are inclusive.

Refusals are replies, failures are exceptions. A step that was refused for a reason that lies in the space
(`Gone`, `Stale`, `Full`, `Queued`, `Recovering`, `Occupied`) is an ordinary reply, and changed nothing but the space's
own progress (clock, reclaim). A store that cannot be reached, refuses the password or keeps damaged data raises a
:class:`~clusterports.errors.BackendError`.

Lost data. A store may come back with less than it knew: it was restarted empty, or from an old copy, or another took
over that lacks the last writes. Fences tell. Lease ids, incarnations and fences of a space come from one counter that
only grows, so a space knows which of them it can have given. A holder whose lease it cannot know, or that misses
ports of its own, opens the lease again and claims what it holds, and meanwhile the space gives nothing out (S7).

Repetition: a caller that got no reply may send the same request again, and a network may deliver it twice or
late. Every step is safe under that (see each method), so a backend may retry on its own until ``timeout``.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from types import TracebackType
    from typing import Any, Self

    from .errors import BackendError

__all__ = [
    "EVENTS",
    "Ask",
    "AsyncBackend",
    "AsyncWatch",
    "Backend",
    "Capability",
    "Claim",
    "Claimed",
    "Closed",
    "Driver",
    "Event",
    "EventKind",
    "Events",
    "Finding",
    "Full",
    "Gone",
    "Granted",
    "Held",
    "Holder",
    "LeaseView",
    "Marked",
    "Occupied",
    "Opened",
    "Port",
    "PortView",
    "Protocol4",
    "Queued",
    "Reclaimed",
    "Recovering",
    "Released",
    "Renewal",
    "Renewed",
    "Request",
    "SpaceView",
    "Stale",
    "Wait",
    "Watch",
]

Protocol4: TypeAlias = Literal["tcp", "udp", "both"]
"""The layer 4 protocol of a port. TCP and UDP have a number space each; ``both`` is one number, free in both."""

EventKind: TypeAlias = Literal[
    "acquired", "released", "expired", "reclaimed", "foreign", "refused", "recovered", "forced"
]
"""What a step did to a port.

It was given to a job; given back by it; its lease ran out, or was given up in doubt, so that it cools; it has cooled
off, or a foreign mark is over, and it is free; something outside has it; a request found nothing (`Full`); its holder
claimed it after the store lost it; it was taken away, by an operator or by a claim with a higher fence.
"""

EVENTS: Final = 500
"""How many events a space keeps, unless told otherwise."""


class Holder(NamedTuple):
    """Who asks: the proof of a lease. A step with another incarnation than the lease's own is refused (S2)."""

    instance: str
    lease: int
    incarnation: int


class Request(NamedTuple):
    """The identity of one logical acquire within an incarnation (S4, S5).

    ``number`` counts up from 1. ``floor`` is the lowest number whose outcome the caller does not know yet:
    everything below is settled, its record can be dropped, and if it arrives once more it is stale. ``knew``: a fence
    of this space that the caller knows of; if the space has not come to it, it lost what it knew, and is `Recovering`.
    """

    number: int
    floor: int
    knew: int = 0


class Ask(NamedTuple):
    """Some ports of one protocol, to be picked from spans of port numbers in the order given.

    What a strategy, an exclusion or a band means is decided by whoever makes the spans; the space picks the
    lowest free numbers of the first span, then of the next. Spans may overlap.
    """

    range: str
    """The name that it is booked under, as of a `PortRange`; "" for none."""
    spans: tuple[tuple[int, int], ...]
    count: int = 1  # type: ignore[assignment]  # hides tuple.count
    protocol: Protocol4 = "tcp"
    quarantine: int = 0
    """How long each port cools after its lease ran out."""
    owner: str = ""
    labels: Mapping[str, str] = {}
    cooldown: int = 0
    """How long each port cools after a release."""
    align: int = 0
    """0: any numbers. Else one block of adjacent numbers inside one span, the first a multiple of this."""
    rotate: int = 0
    """The first so many spans, which must ascend and lie apart, are searched in a circle: from the number after the
    last one that was given to an ask of this range with ``rotate``."""
    limit: int = 0
    """The most ports that this owner may hold in this range and space under asks with a limit; 0: any number."""
    explicit: bool = False
    """The one number of the one span is wanted, and no other: it is taken from under a foreign mark."""
    host: str = ""
    """Where the ports will be bound, in a space that is not one host's."""
    running: bool = False
    """The explicit number is that of a job that runs on it already: it is taken also while it cools, past the queue and
    over the limit."""


class Wait(NamedTuple):
    """A place in the queue of those for whom too little is free.

    ``window``: how long the place is kept without being asked for again; 0: give it up, unless there is enough
    now. ``ticket``: as answered by the first `Queued`; 0: none yet. Whoever comes back with its ticket has its old
    place, even when it was given up meanwhile. ``keep``: keep the place also when the ask is met, until it is left by
    a renewal: for those who have yet to see whether what they get is of use.
    """

    window: int
    ticket: int = 0
    keep: bool = False


class Port(NamedTuple):
    """A port that was granted: its name for good is its fence."""

    number: int
    protocol: Protocol4
    fence: int


class Claim(NamedTuple):
    """A port that the caller holds, and how it was asked for: of the `Ask` only what matters after the grant."""

    port: Port
    ask: Ask


class Renewal(NamedTuple):
    """One heartbeat for one space. ``abandoned``: requests whose outcome the caller never learned. ``left``: tickets
    that it has no use for any more. ``heard``: fences of ports that `Renewed.revoked` told it of. ``ports``: how many
    it holds, if it is sure; else -1. ``knew``: as in `Request`.
    """

    space: str
    holder: Holder
    floor: int = 1
    abandoned: tuple[int, ...] = ()
    left: tuple[int, ...] = ()
    heard: tuple[int, ...] = ()
    ports: int = -1
    knew: int = 0


class Opened(NamedTuple):
    """The lease is ours. ``ports``: how many are held under it already (more than 0 after a resume)."""

    lease: int
    incarnation: int
    ports: int


class Occupied(NamedTuple):
    """A process that named itself with this token holds a live lease under this instance name."""

    incarnation: int
    token: str


class Granted(NamedTuple):
    """The ports, in the order of the asks. ``since``: the store's time."""

    ports: tuple[Port, ...]
    since: int


class Full(NamedTuple):
    """The ask with this index could not be met, so nothing was given.

    ``holder``: for an explicit ask, what is known of the port. ``backlog``: more can be reclaimed now. ``why``:
    too few are free; or the owner's limit would be passed; or others wait for some of these ports already.
    """

    ask: int
    holder: PortView | None
    backlog: bool
    why: Literal["taken", "limit", "queue"] = "taken"


class Queued(NamedTuple):
    """Nothing was given, and the caller has its place in the queue.

    ``first``: nobody before it waits for these ports, so it lacks nothing but free ports. ``due_in``: when the
    next thing in the space is due, and may free some; 0 or less: now.
    """

    ticket: int
    first: bool
    due_in: int


class Recovering(NamedTuple):
    """The space lost what it knew, and gives nothing out for another ``left``, so that holders can claim theirs."""

    left: int


class Claimed(NamedTuple):
    """The ports that the lease holds now, but for ``refused``: somebody was given these after they were lost."""

    refused: tuple[Port, ...] = ()


class Renewed(NamedTuple):
    """The lease runs for another full TTL. ``backlog``: the space has more to reclaim now. ``revoked``: ports that were
    taken from the lease by force, or claimed by one with a higher fence; told with every heartbeat until the holder has
    `Renewal.heard` of them. ``doubt``: the lease may not hold what the caller thinks. It has another number of
    ports than `Renewal.ports`; or the space has not come to `Renewal.knew`; or the store was restarted, or another took
    over, since the caller's last heartbeat.
    """

    backlog: bool
    revoked: tuple[Port, ...] = ()
    doubt: bool = False


class Released(NamedTuple):
    """``count`` of the ports were held and are free now; the others were no longer held (never an error). ``revoked``:
    those of them that were taken by force, of which the holder has not `Renewal.heard`.
    """

    count: int  # type: ignore[assignment]
    revoked: tuple[Port, ...] = ()


class Closed(NamedTuple):
    """``more`` is True while ports are left: call again. Otherwise the lease is gone."""

    more: bool


class Marked(NamedTuple):
    """``count`` of the ports are marked as foreign now; others that were held are free."""

    count: int  # type: ignore[assignment]


class Reclaimed(NamedTuple):
    """``backlog``: the space has more to reclaim now."""

    backlog: bool


class Gone(NamedTuple):
    """There is no such lease. ``reason``: it expired; or was taken over by a newer incarnation; or it is one that this
    space has not given, so the store lost what it knew. ``doubt``: it may have lost it in any case: it was restarted,
    or another took over, since the caller's last heartbeat. ``forgotten``: there is no trace of it; a lease that ended
    not long ago leaves one.
    """

    reason: Literal["expired", "superseded", "unknown"]
    doubt: bool = False
    forgotten: bool = False


class Stale(NamedTuple):
    """The request with this number was settled before, or abandoned by its caller. Nothing was done."""

    number: int


class Held(NamedTuple):
    """A page of the ports that a lease holds, in ascending order; ``more`` when the page was full."""

    ports: tuple[PortView, ...]
    more: bool


class LeaseView(NamedTuple):
    """What anybody may see of a lease. ``expires_in`` is negative once it has run out. ``grace``: it has, but after the
    silence since the last visit the next one will give it a full TTL to renew.
    """

    lease: int
    instance: str
    incarnation: int
    ttl: int
    expires_in: int
    grace: bool = False


class PortView(NamedTuple):
    """What anybody may see of a port that is not free.

    ``age``: since it was granted. ``free_in``: until it is free again; None while it is held. ``instance``: who
    holds it, or held it last, or saw that something foreign has it. ``host``: "" in the space of a host.
    """

    number: int
    protocol: Protocol4
    state: Literal["held", "cooling", "foreign"]
    range: str
    owner: str
    labels: Mapping[str, str]
    instance: str
    lease: int
    fence: int
    age: int
    free_in: int | None
    host: str = ""


class SpaceView(NamedTuple):
    """A space as it stands: leases by id, ports by protocol and number; ``waiting``: how many places are taken.
    ``recovering``: how long it gives nothing out, because it lost what it knew.
    """

    space: str
    fence: int
    leases: tuple[LeaseView, ...]
    ports: tuple[PortView, ...]
    waiting: int = 0
    recovering: int = 0


class Event(NamedTuple):
    """What a step did to a port: for people, nothing is decided by it. ``age``: since then. Of a request that was
    refused, ``fence`` is 0, and so is ``number`` unless it was for this very one. The rest is as in `PortView`, and as
    it was then; but of a long ``owner`` there are the first 512 bytes of UTF-8, cut between characters, and ``labels``
    whose keys and values have more than 512 bytes together are left out.
    """

    kind: EventKind
    number: int
    protocol: Protocol4
    range: str
    owner: str
    labels: Mapping[str, str]
    instance: str
    lease: int
    fence: int
    age: int
    host: str = ""


class Events(NamedTuple):
    """A part of the log of a space, oldest first. ``cursor``: where the next part begins."""

    space: str
    events: tuple[Event, ...]
    cursor: str


class Finding(NamedTuple):
    """One line of a diagnosis. ``check``: what was looked at, in a word or two. ``cure``: what to do about it; "" when
    it is well. ``mended``: a repair did that just now. ``unknown``: it could not be looked at, so nothing is known.
    """

    check: str
    level: Literal["ok", "warning", "error"]
    text: str
    cure: str = ""
    mended: bool = False
    unknown: bool = False


class Capability(StrEnum):
    """What a backend can do beyond the contract; declared, never found out by trying."""

    DEATHS = "deaths"
    """A lease that was opened with ``bound`` runs out when its process dies."""

    EVENTS = "events"
    """Each step writes what it did to the log of its space; see :meth:`Backend.events`."""

    PROCESSES = "processes"
    """Several processes see the same store."""

    WAKES = "wakes"
    """A :class:`Watch` is told when its turn may have come; without it, it only sleeps."""


class Watch:
    """Where somebody who was `Queued` waits between two asks. This one sleeps, and is right for any store.

    A wake-up is a hint: it may be lost, and may come for nothing. So the pauses are to be short.
    """

    def wait(self, seconds: float) -> None:
        """Return when the turn may have come, or after so many seconds."""
        time.sleep(seconds)

    def close(self) -> None:
        """Give up what it holds; a second time does nothing."""


class AsyncWatch:
    """The same for tasks."""

    async def wait(self, seconds: float) -> None:
        """See :meth:`Watch.wait`."""
        import asyncio  # imported by those who run a loop

        await asyncio.sleep(seconds)

    async def close(self) -> None:
        """See :meth:`Watch.close`."""


class Backend(ABC):
    """A store, for threads. All methods may be called from several threads at once."""

    name: str
    """What ``status`` calls it: ``memory``, ``redis``."""

    capabilities: frozenset[Capability] = frozenset()

    @abstractmethod
    def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        """Open the lease of an instance on a space, or resume it.

        ``token`` names the calling process, in hexadecimal digits. Without a live lease under ``instance``, a new
        one is made. With one, and the same token: nothing changes, it is answered again. With another token:
        `Occupied`, unless ``supersede`` is that lease's incarnation: then the caller takes it over with all its
        ports as a newer incarnation, and the older one is refused from now on. So a late or repeated call never
        takes a lease from anybody but the incarnation that its sender saw.

        ``bound``: nobody will come back under this name once the calling process is dead. A store that can see that
        may end the lease then (`Capability.DEATHS`); for others it runs out in its time.

        ``knew``: the highest fence that the caller knows of this space, 0: none. If the space is too new for it, or has
        not come to it yet, it lost what it knew: it is `Recovering` for ``ttl``, and fences go on from there.
        """

    @abstractmethod
    def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        """Give all of the asks, or nothing.

        A request number that was granted before is answered with the same ports, and one that was `Queued` with the
        same ticket while its place is kept; one that was answered `Full` or `Recovering`, was abandoned, or is below
        the lease's floor is `Stale`: begin again with a new number.

        Places in the queue are in the order of tickets. Nothing is given from spans that somebody before it waits
        for. With ``wait`` there must be one ask alone. One that would pass the owner's limit does not wait.
        """

    @abstractmethod
    def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        """Take back ports that the store has lost, under the fences by which they were granted; at most 250 at a time.

        One for which somebody was given a higher fence since is refused; whoever has it with a lower fence loses it,
        and is told by `Renewed.revoked`. Ports that the lease has already stay. If there was anything to take back, the
        space is `Recovering` for the lease's TTL. A number that was settled or abandoned changes nothing, and is
        answered with what is held now.
        """

    @abstractmethod
    def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        """What :meth:`acquire` would give now, with 0 for fences and time. Reads only: nothing is reclaimed."""

    @abstractmethod
    def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        """Turn ports that the lease holds with these very fences into foreign ones, for ``duration``.

        At most ``most`` ports of ``range``, under which they were taken, are marked at a time; the others are freed.
        ``host``: as in `Ask`.
        """

    def watch(self, space: str, ticket: int) -> Watch:
        """Where the holder of this ticket waits. An event between this call and the wait counts."""
        return Watch()

    @abstractmethod
    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        """One heartbeat for each space, however many ports: expiry is a full TTL from now.

        Abandoned requests are undone if they were carried out, and refused if they arrive later; with them, and with
        the tickets that are ``left``, places in the queue are given up. One outcome
        for each renewal, in order; an exception stands for that one alone.
        """

    @abstractmethod
    def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        """Free these ports, or let them cool for their cooldown.

        One that is not held under this lease with this very fence is passed over.
        """

    @abstractmethod
    def force(self, space: str, port: PortView) -> bool:
        """For operators: take a port from whoever holds it, if it is still as this view shows it, fence and state.

        A held port cools for its quarantine, or longer, until its lease would have run out: before that its holder
        either hears of it with a heartbeat, or knows that it cannot rely on it. One that cools, or is marked as
        foreign, is free. False: it is not as it was, and was not touched.
        """

    @abstractmethod
    def drop(self, space: str) -> bool:
        """Remove a space in which there is nothing; the next `open` begins it anew.

        False: there is a lease, a port that is not free, or a place in the queue, and nothing was touched.
        """

    @abstractmethod
    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        """Release up to 64 ports of the lease, or, with ``quarantine``, let them cool for it; then end the lease.

        To be called until `Closed.more` is False. In between the lease is as live as ever.
        """

    @abstractmethod
    def reclaim(self, space: str) -> Reclaimed:
        """Visit a space: let its clock advance and reclaim up to 64 ports that are due."""

    @abstractmethod
    def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        """The ports of a lease, after a given one. Reads only."""

    @abstractmethod
    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        """How these spaces stand now. Reads only: nothing is reclaimed, no lease is prolonged.

        A large space may be read in several parts, so a port may be shown as it was a moment before another. An error
        stands for that one space, whose data is damaged or of another version; what keeps all from being read is
        raised.
        """

    @abstractmethod
    def spaces(self, instance: str | None = None) -> list[str]:
        """The spaces known to the store, sorted; with ``instance``, those in which it has a lease. Reads only."""

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        """For each of these spaces the last events of its log after the cursor, at most ``limit``; "": from its
        beginning. Reads only.

        A step writes its events with all else that it does, or not at all: those of one port are in the order in which
        they happened. A refusal is left out when one of the last 16 events is a refusal less than 60 s old with the
        same number, protocol, range, owner, labels and host, whoever asked. A space keeps about as many events as its
        writers were told to (see `Driver`), and none once it is dropped. A cursor that is ahead of its log, which was
        lost or begun anew, stands for the beginning. An entry that is not an event is passed over; an error stands for
        one space, whose log cannot be read.
        """
        return [Events(space, (), cursor) for space, cursor in cursors.items()]

    def diagnose(self, *, repair: bool = False) -> Iterator[Finding]:
        """What an operator should know of the store, as it is found out. The first is called "store": whether it can be
        reached.

        With ``repair`` what can be mended without a loss is. Never raises a `BackendError`: that is a finding.
        """
        return iter(())

    @abstractmethod
    def close(self) -> None:
        """Give up connections; a second time does nothing. Leases are not touched."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


class AsyncBackend(ABC):
    """The same store, for tasks of one event loop. Each method means what its namesake in :class:`Backend` means.

    A cancelled call may or may not have been carried out; its connection is not used again.
    """

    name: str
    capabilities: frozenset[Capability] = frozenset()

    @abstractmethod
    async def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        """See :meth:`Backend.open`."""

    @abstractmethod
    async def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        """See :meth:`Backend.acquire`."""

    @abstractmethod
    async def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        """See :meth:`Backend.claim`."""

    @abstractmethod
    async def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        """See :meth:`Backend.preview`."""

    @abstractmethod
    async def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        """See :meth:`Backend.mark_foreign`."""

    async def watch(self, space: str, ticket: int) -> AsyncWatch:
        """See :meth:`Backend.watch`."""
        return AsyncWatch()

    @abstractmethod
    async def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        """See :meth:`Backend.renew`."""

    @abstractmethod
    async def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        """See :meth:`Backend.release`."""

    @abstractmethod
    async def force(self, space: str, port: PortView) -> bool:
        """See :meth:`Backend.force`."""

    @abstractmethod
    async def drop(self, space: str) -> bool:
        """See :meth:`Backend.drop`."""

    @abstractmethod
    async def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        """See :meth:`Backend.close_lease`."""

    @abstractmethod
    async def reclaim(self, space: str) -> Reclaimed:
        """See :meth:`Backend.reclaim`."""

    @abstractmethod
    async def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        """See :meth:`Backend.held`."""

    @abstractmethod
    async def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        """See :meth:`Backend.read`."""

    @abstractmethod
    async def spaces(self, instance: str | None = None) -> list[str]:
        """See :meth:`Backend.spaces`."""

    async def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        """See :meth:`Backend.events`."""
        return [Events(space, (), cursor) for space, cursor in cursors.items()]

    @abstractmethod
    async def close(self) -> None:
        """See :meth:`Backend.close`."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


class Driver(Protocol):
    """What an entry point of the group ``clusterports.backends`` loads, usually a module.

    The entry point's name is the URL's scheme.
    """

    def connect(self, url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> Backend:
        """A backend for this URL; nothing is contacted yet.

        ``timeout``: seconds that one call may take, with its retries. ``client``: a connected client object of
        the store's own library, used instead of the URL and not closed by the backend. ``events``: how many events
        its steps leave in the log of a space, 0: they write none (`Capability.EVENTS`).

        :raises ConfigurationError: for a URL or a client that can never work.
        """
        ...

    def connect_async(
        self, url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS
    ) -> AsyncBackend:
        """The same for tasks."""
        ...
