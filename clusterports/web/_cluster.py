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
from threading import Thread
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from clusterports._names import CLUSTER_SPACE, check_name, host_space
from clusterports.errors import BackendError
from clusterports.status import ClusterStatus

from ._map import COLUMNS, SCHEMA, Row, as_json, in_jeopardy, range_document, rows

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from clusterports._sync.allocator import PortAllocator
    from clusterports._sync.events import EventLog
    from clusterports.abc import Backend
    from clusterports.events import PortEvent
    from clusterports.ranges import PortRange
    from clusterports.status import HostStatus

__all__ = ["Body", "Cluster"]

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

READERS = 8
"""Reads of the store at the same time."""


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
    """What a read of the store found. ``took``: seconds; ``ended``: by the monotonic clock."""

    cluster: ClusterStatus
    jeopardy: dict[str, int]
    took: float
    ended: float


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
        self._slots = asyncio.Semaphore(READERS)

        self._hosts: dict[str, HostStatus] = {}
        self._rows: dict[str, Row] = {}
        self._unreadable: dict[str, str] = {}
        self._read_at: datetime | None = None
        self._seen = -float("inf")
        self._pause = every
        self._trouble = ""
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
        begun = False
        while True:
            # Whether the store is away, only this says: a log may be damaged alone. Whatever it is, this goes on.
            with suppress(Exception):
                await self.whole()
                if not begun:
                    await self.thread(log.read)
                    begun = True
                    continue  # with what came between the two
            until = monotonic() + (self._pause if begun and not self._trouble else AWAY)
            pause = FOLLOW
            while (left := until - monotonic()) > 0:
                await asyncio.sleep(min(left, pause))
                if self._trouble or not begun:
                    continue
                start = monotonic()
                try:
                    if await self._catch_up(log):
                        break
                except Exception:  # noqa: BLE001
                    break
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

    async def thread(self, function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
        """What the function gives, called in a thread that does not keep the process from ending."""
        await self._slots.acquire()
        return await _thread(partial(function, *args, **kwargs), self._slots.release)

    async def _read_all(self) -> Read:
        try:
            read = await self.thread(self._read, None)
        except Exception as error:
            self._is_away(error)
            raise
        self._last = read
        self._pause = max(self._every, read.took / SHARE)
        gone = set(self._rows) - {host.host for host in read.cluster.hosts}
        self._take(read, gone, set(self._unreadable))
        return read

    async def _catch_up(self, log: EventLog) -> bool:
        """Read what the log says has changed. Whether that is so much that everything is to be read instead."""
        events = await self.thread(log.read)
        self._seen = monotonic()
        if not events:
            return False
        hosts = {event.host for event in events}
        self._events.extend((self._version + 1, event.to_dict()) for event in events)
        if len(hosts) > MANY:
            self._bump()
            return True
        spaces = [CLUSTER_SPACE, *(host_space(host) for host in sorted(hosts) if host)]
        read = await self.thread(self._read, spaces)
        self._take(read, set(), hosts & set(self._unreadable))
        return False

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
        return Read(cluster, in_jeopardy(spaces, views), ended - began, ended)

    def _take(self, read: Read, gone: set[str], healed: set[str]) -> None:
        """Make it the state that is shown. ``gone``: hosts that are there no more; ``healed``: perhaps readable now."""
        version = self._version + 1
        for host in healed:
            del self._unreadable[host]
        for one in read.cluster.unreadable:
            self._unreadable[one.host] = one.error
        for host in gone:
            del self._rows[host], self._hosts[host], self._changed[host]
            self._gone[host] = version
        for status, row in zip(read.cluster.hosts, rows(read.cluster, read.jeopardy), strict=True):
            self._hosts[row.host] = status
            if self._rows.get(row.host) != row:
                self._rows[row.host] = row
                self._changed[row.host] = version
                self._gone.pop(row.host, None)
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
            what = str(error) if isinstance(error, BackendError) else f"unexpected {type(error).__name__}: {error}"
            logger.warning("the store cannot be read: %s", what)
            self._since = datetime.now(UTC)
            self._trouble = what
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
        """The state of the store, and as of when the map is."""
        return {
            "generated_at": None if self._read_at is None else _iso(self._read_at),
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
            made = asyncio.ensure_future(self.thread(lambda: Body(as_json(read.cluster.to_dict()))))
            self._status = read, made
        return await asyncio.shield(self._status[1])

    def part(self, host: str | None, range: str | None) -> ClusterStatus:
        """Read now, as ``status`` does; with "" for the host, of the cluster's ports only. Blocks.

        :raises ConfigurationError: there is no such range.
        :raises BackendError: the store is away.
        """
        if host is None:
            spaces = self.backend.spaces()
        else:
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
        return await self.thread(self._allocator.events, **wanted)

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


async def _thread(function: Callable[[], T], ended: Callable[[], None]) -> T:
    """``ended`` is called on the loop when the thread is done, also when nobody waits for it any more."""
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


def _iso(moment: datetime) -> str:
    return moment.isoformat(timespec="milliseconds")
