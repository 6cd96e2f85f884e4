"""The one reader of the store, whatever number of people look at the page."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
from collections import deque
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from math import inf
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar, cast

from clusterports._names import CLUSTER_SPACE, check_name, host_space
from clusterports._sync.events import EventLog
from clusterports.errors import BackendError
from clusterports.events import EventFilter
from clusterports.status import ClusterStatus

from ._map import COLUMNS, SCHEMA, Row, as_json, in_jeopardy, only_range, range_document, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clusterports._sync.allocator import PortAllocator
    from clusterports.abc import Backend
    from clusterports.events import PortEvent
    from clusterports.ranges import PortRange
    from clusterports.status import HostStatus

__all__ = ["Body", "Busy", "Cluster", "in_thread"]

logger = logging.getLogger("clusterports")

T = TypeVar("T")

AWAY = 2.0
"""Seconds between two attempts to read a store that is away."""

FOLLOW = 1.0
"""Seconds between two looks at the log of events."""

SHARE = 0.1
"""The part of the time that may go into reading the log, or the whole cluster, again and again."""

MANY = 100
"""Hosts with news at once for which everything is read."""

KEPT = 1000
"""Events, and names of hosts that are gone, for those who were away for a moment."""

READERS, WIDE = 8, 2
"""Reads of the store at the same time, of those that only one asks for; those of all hosts."""

ASKING = 40
"""Those who ask for such reads at the same time, and wait; who comes then is sent away."""

WORKERS = 4
"""What else is done in threads at the same time."""


class Busy(Exception):
    """So many ask that one more is to come again."""


class Body:
    """Bytes of a document, compressed once when somebody first wants them so."""

    def __init__(self, plain: bytes) -> None:
        self.plain = plain
        self._packed: bytes | None = None

    def packed(self) -> bytes:
        if self._packed is None:
            self._packed = gzip.compress(self.plain, 1, mtime=0)
        return self._packed


class Read(NamedTuple):
    """What a read of the store found. ``began`` and ``ended``: by the monotonic clock, in seconds."""

    cluster: ClusterStatus
    jeopardy: dict[str, int]
    began: float
    ended: float

    @property
    def took(self) -> float:
        return self.ended - self.began


class Cluster:
    """The cluster as it was last read, and everything that is served of it.

    ``ranges``: all that are configured. ``only``: this host, and the whole cluster's ports. ``every``: seconds between
    two reads of everything; longer when a read takes a tenth of that or more. In between the log of events says which
    hosts to read again. To be used on one event loop; the store is read in threads, which end with the process.
    """

    def __init__(
        self,
        backend: Backend,
        ranges: Iterable[PortRange],
        *,
        allocator: PortAllocator,
        only: str | None = None,
        every: float = 10.0,
    ) -> None:
        self.backend = backend
        self.ranges = sorted(ranges, key=lambda one: one.name)
        self._allocator = allocator
        self.only = None if only is None else check_name("host", only)
        self._every = every
        self._boot = os.urandom(4).hex()
        self._readers, self._wide = asyncio.Semaphore(READERS), asyncio.Semaphore(WIDE)
        self._workers = asyncio.Semaphore(WORKERS)
        self._asking = 0

        self._hosts: dict[str, HostStatus] = {}
        self._rows: dict[str, Row] = {}
        self._unreadable: dict[str, str] = {}
        # When the read began that what is shown of a host comes from: what an earlier one found is older.
        self._as_of: dict[str, float] = {}
        self._read_at: datetime | None = None
        self._all_read_at: datetime | None = None
        self._seen = -inf
        self._pause = every
        self._trouble = ""
        self._log_trouble = ""
        self._follows = False
        self._since = datetime.now(UTC)

        # A row, a host that is gone and an event know the version of the whole with which they came.
        self._version = 0
        self._changed: dict[str, int] = {}
        self._gone: dict[str, int] = {}
        self._oldest = 0
        self._events: deque[tuple[int, dict[str, Any]]] = deque(maxlen=KEPT)
        self._news = asyncio.Event()
        self._closed = False

        self._reading: asyncio.Task[Read] | None = None
        self._last: Read | None = None
        self._status: tuple[Read, asyncio.Future[Body]] | None = None
        self._map: tuple[int, Body] | None = None

    # ------------------------------------------------------------------ reading

    async def follow(self) -> None:
        """Read, for ever."""
        log = self._allocator.event_log(limit=1, host=self.only)
        told = False
        while True:
            # Whether the store is away, only this says: a log may be damaged alone. Whatever it is, this goes on.
            with suppress(Exception):
                await self.whole()
            if self._trouble:
                self._log_trouble = ""
            elif self._log_trouble and not told:
                logger.warning("the events cannot be read, so changes show late: %s", self._log_trouble)
            told = bool(self._log_trouble)
            until = monotonic() + (AWAY if self._trouble else self._pause)
            pause = FOLLOW if self._follows or self._trouble or told else 0.0
            while (left := until - monotonic()) > 0:
                await asyncio.sleep(min(left, pause))
                if self._trouble:
                    pause = FOLLOW
                    continue
                start = monotonic()
                until = min(until, await self._catch_up(log))
                pause = max(FOLLOW, (monotonic() - start) / SHARE)

    async def whole(self) -> Read:
        """Everything, read now; those who ask meanwhile share the read.

        :raises BackendError: the store is away.
        """
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read_all())
            self._reading.add_done_callback(lambda task: task.cancelled() or task.exception())
        return await asyncio.shield(self._reading)

    async def recent(self) -> Read:
        """Everything, read not longer ago than such a read takes: the store has half of its time for others."""
        last = self._last
        if last is not None and not self._trouble and monotonic() - last.ended < last.took:
            return last
        return await self.whole()

    async def work(self, function: Callable[[], T]) -> T:
        """What the function gives, which does not read the store, called in a thread."""
        return await _in_turn(function, self._workers)

    async def ask(self, function: Callable[[], T], wide: bool = False) -> T:
        """What the function reads of the store for one who asks; ``wide``: of all hosts.

        :raises Busy: too many ask.
        """
        if self._asking >= ASKING:
            raise Busy
        self._asking += 1
        try:
            return await _in_turn(function, self._wide if wide else self._readers)
        finally:
            self._asking -= 1

    async def _read_all(self) -> Read:
        try:
            read = await in_thread(partial(self._read, None))
        except Exception as error:
            self._is_away(error)
            raise
        self._last = read
        self._pause = max(self._every, read.took / SHARE)
        self._all_read_at = read.cluster.generated_at
        self._take(read, {*self._rows, *self._unreadable})
        return read

    def _soonest(self) -> float:
        """When everything may be read again, out of turn."""
        return 0.0 if self._last is None else self._last.ended + self._last.took / SHARE

    async def _catch_up(self, log: EventLog) -> float:
        """Read what the log says has changed. When, by the monotonic clock, everything is to be read at the latest."""
        had_trouble = bool(self._log_trouble)
        try:
            events = await in_thread(log.read)
        except Exception as error:  # noqa: BLE001
            self._log_trouble = _told(error)
            # Whether it is the store that is away, the read of everything says.
            return inf if had_trouble else self._soonest()
        self._seen = monotonic()
        self._log_trouble = ""
        if not self._follows:
            self._follows = True
            return 0.0  # with what came before the log was followed
        if not events:
            return inf
        hosts = {event.host for event in events}
        self._events.extend((self._version + 1, event.to_dict()) for event in events)
        if len(hosts) > MANY:
            self._bump()
            return self._soonest()
        spaces = [CLUSTER_SPACE, *(host_space(host) for host in sorted(hosts) if host)]
        try:
            read = await in_thread(partial(self._read, spaces))
        except Exception:  # noqa: BLE001
            return self._soonest()
        self._take(read)
        return inf

    def _read(self, spaces: list[str] | None) -> Read:
        began = monotonic()
        if spaces is None:
            one = self.only
            spaces = self.backend.spaces() if one is None else [CLUSTER_SPACE, host_space(one)]
        views = self.backend.read(spaces)
        cluster = ClusterStatus.build(
            names=spaces,
            views=views,
            ranges=self.ranges,
            backend=self.backend.name,
            generated_at=datetime.now(UTC),
        )
        ended = monotonic()
        return Read(cluster, in_jeopardy(spaces, views), began, ended)

    def _take(self, read: Read, known: set[str] | None = None) -> None:
        """Make it the state that is shown, but for hosts that were read later. ``known``, after a read of everything:
        the hosts that are gone unless it found them.
        """
        version = self._version + 1
        found = {
            row.host: (status, row)
            for status, row in zip(read.cluster.hosts, rows(read.cluster, read.jeopardy), strict=True)
            # An event names the host where a port is bound, which for one of the whole cluster may have no space.
            if known is not None or row.host in self._rows or status.leases or status.ports
        }
        damaged = {one.host: one.error for one in read.cluster.unreadable}
        for host in {*found, *damaged, *(known or ())}:
            if read.began < self._as_of.get(host, read.began):
                continue
            self._as_of[host] = read.began
            self._unreadable.pop(host, None)
            if host in damaged:
                self._unreadable[host] = damaged[host]
            if host in found:
                self._hosts[host], row = found[host]
                if self._rows.get(host) != row:
                    self._rows[host] = row
                    self._changed[host] = version
                    self._gone.pop(host, None)
            elif host in self._rows:
                del self._rows[host], self._hosts[host], self._changed[host]
                self._gone[host] = version
        if known is not None:
            self._as_of = {host: began for host, began in self._as_of.items() if began >= read.began}
        if len(self._gone) > KEPT:
            self._gone.clear()
            self._oldest = version
        self._read_at = read.cluster.generated_at
        self._seen = read.ended
        if self._trouble:
            logger.warning("the store can be read again")
            self._trouble, self._since = "", datetime.now(UTC)
        self._bump()

    def _is_away(self, error: Exception) -> None:
        if not self._trouble:
            self._trouble = _told(error)
            logger.warning("the store cannot be read: %s", self._trouble)
            self._since = datetime.now(UTC)
            self._bump()

    def _bump(self) -> None:
        self._version += 1
        self._news.set()
        self._news = asyncio.Event()

    # ------------------------------------------------------------------ what is served

    @property
    def ready(self) -> bool:
        """Whether the store was read lately."""
        return not self._trouble and monotonic() - self._seen < 3 * self._pause

    def head(self) -> dict[str, Any]:
        """The state of the store, and as of when the map is; ``all_read_at``: all of it, not only what changed."""
        return {
            "generated_at": _iso(self._read_at),
            "all_read_at": _iso(self._all_read_at),
            "store": {"readable": not self._trouble, "since": _iso(self._since), "error": self._trouble},
            "unreadable": [{"host": host, "error": text} for host, text in sorted(self._unreadable.items())],
        }

    def map(self) -> Body:
        """``/api/map``."""
        if self._map is None or self._map[0] != self._version:
            document = {
                "schema": SCHEMA,
                "id": self.id,
                "backend": self.backend.name,
                "columns": COLUMNS,
                "ranges": [range_document(one) for one in self.ranges],
                "hosts": [row.to_dict() for _, row in sorted(self._rows.items())],
            }
            self._map = self._version, Body(as_json(document | self.head()))
        return self._map[1]

    async def status(self) -> Body:
        """``/api/status`` of everything."""
        read = await self.recent()
        if self._status is None or self._status[0] is not read:
            made = asyncio.ensure_future(self.work(lambda: Body(as_json(read.cluster.to_dict()))))
            self._status = read, made
        return await asyncio.shield(self._status[1])

    async def of_range(self, range: str) -> Body:
        """``/api/status`` of a range, on all hosts.

        :raises ConfigurationError: there is no such range.
        """
        read = await self.recent()
        return await self.work(lambda: Body(as_json(only_range(read.cluster, range).to_dict())))

    def part(self, host: str, range: str | None) -> ClusterStatus:
        """A host read now, as ``status`` does; with "", the cluster's ports only. Blocks.

        :raises ConfigurationError: there is no such range.
        :raises BackendError: the store is away.
        """
        spaces = [CLUSTER_SPACE, host_space(host)] if host else [CLUSTER_SPACE]
        return ClusterStatus.build(
            names=spaces,
            views=self.backend.read(spaces),
            ranges=self.ranges,
            backend=self.backend.name,
            generated_at=datetime.now(UTC),
            host=host or None,
            range=range,
        )

    async def events(self, **wanted: Any) -> list[PortEvent]:
        """Those that are wanted, as :meth:`PortAllocator.events` has them."""
        everywhere = wanted["host"] is None
        if everywhere and any(one.name == wanted.get("range") and one.scope == "cluster" for one in self.ranges):
            limit = wanted.pop("limit")
            log = EventLog(cast("Backend", _ClusterSpace(self.backend)), EventFilter(**wanted), limit)
            return await self.ask(log.read)
        return await self.ask(partial(self._allocator.events, **wanted), everywhere)

    def hosts(self) -> list[HostStatus]:
        """As they were last read, by name."""
        return [status for _, status in sorted(self._hosts.items())]

    # ------------------------------------------------------------------ news

    @property
    def id(self) -> str:
        """Names this state of the map: who has it needs only what came later."""
        return f"{self._boot}-{self._version}"

    @property
    def closed(self) -> bool:
        """Whether those who follow are to go."""
        return self._closed

    def close(self) -> None:
        """Tell all who follow to go."""
        self._closed = True
        self._bump()

    async def news(self, seconds: float) -> bool:
        """Wait for the next change, at most so long. Whether there is one."""
        try:
            return await asyncio.wait_for(self._news.wait(), seconds)
        except TimeoutError:
            return False

    def since(self, id: str) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
        """What changed in the map, None for nothing, and the events, since it was in the state ``id``. All of the map,
        marked as such, when that state is of another process or too long ago; then the events are left out.
        """
        boot, _, digits = id.partition("-")
        version = int(digits) if digits.isascii() and digits.isdecimal() and len(digits) < 16 else -1
        if boot != self._boot or not self._oldest <= version <= self._version:
            everything = [row.to_dict() for _, row in sorted(self._rows.items())]
            return {"all": True, "hosts": everything, "gone": []} | self.head(), []
        if version == self._version:
            return None, []
        changed = [self._rows[host].to_dict() for host, came in sorted(self._changed.items()) if came > version]
        gone = sorted(host for host, went in self._gone.items() if went > version)
        events = [event for came, event in self._events if came > version]
        return {"all": False, "hosts": changed, "gone": gone} | self.head(), events


class _ClusterSpace:
    """A store as if it had the space of the cluster only."""

    def __init__(self, backend: Backend) -> None:
        self.events = backend.events

    def spaces(self) -> list[str]:
        return [CLUSTER_SPACE]


async def _in_turn(function: Callable[[], T], slots: asyncio.Semaphore) -> T:
    await slots.acquire()
    return await in_thread(function, slots.release)


async def in_thread(function: Callable[[], T], ended: Callable[[], None] = lambda: None) -> T:
    """What the function gives, called in a thread that does not keep the process from ending. ``ended`` is called on
    the loop when the thread is done, also when nobody waits for it any more.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T, error: BaseException | None) -> None:
        ended()
        if future.done():  # whoever waited has gone
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)

    def run() -> None:
        result: Any = None
        error: BaseException | None = None
        try:
            result = function()
        except BaseException as caught:  # noqa: BLE001  it goes to whoever waits
            error = caught
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(settle, result, error)

    Thread(target=run, daemon=True).start()
    return await future


def _told(error: Exception) -> str:
    return str(error) if isinstance(error, BackendError) else f"unexpected {type(error).__name__}: {error}"


def _iso(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds")
