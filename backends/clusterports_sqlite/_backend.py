"""The backend: each step is one transaction around the step of `Space`."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, TypeVar

from clusterports._text import printable
from clusterports.abc import EVENTS, Backend, Capability, Events, Opened, Watch
from clusterports.errors import BackendError

from . import _log
from ._file import File, is_damage, is_full
from ._process import Probe, monotonic_us, this_process, wall_us
from ._stored import Damaged, StoredSpace, Tie, is_empty, remove, wakes_of

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from clusterports.abc import (
        Ask,
        Claim,
        Claimed,
        Closed,
        Finding,
        Full,
        Gone,
        Granted,
        Held,
        Holder,
        Marked,
        Occupied,
        Port,
        PortView,
        Queued,
        Reclaimed,
        Recovering,
        Released,
        Renewal,
        Renewed,
        Request,
        SpaceView,
        Stale,
        Wait,
    )

    from ._process import Process

__all__ = ["POLL", "SqliteBackend", "SqliteWatch"]

POLL: Final = 0.03
"""Seconds between two looks of somebody who waits."""

KEPT: Final = 64
"""How many spaces are kept in memory; each takes 200 kB."""

T = TypeVar("T")


class SqliteBackend(Backend):
    """``path``: absolute. ``timeout``: seconds that one call may wait for others. ``events``: how many of them the log
    of a space keeps.

    For tests: ``clock``, the machine's monotonic clock, and ``wall``, the time of day, both in microseconds; ``boot``
    names the boot; ``alive`` says whether a process is.
    """

    name = "sqlite"
    capabilities = frozenset({Capability.DEATHS, Capability.EVENTS, Capability.PROCESSES, Capability.WAKES})

    def __init__(
        self,
        path: str,
        *,
        timeout: float = 5.0,
        events: int = EVENTS,
        clock: Callable[[], int] = monotonic_us,
        wall: Callable[[], int] = wall_us,
        boot: str | None = None,
        alive: Callable[[Process], bool | None] | None = None,
    ) -> None:
        self.file = File(path, timeout)
        self.clock = clock
        self._kept = events
        self._boot = boot
        self._wall = wall
        self._alive = alive or Probe()

    @property
    def process(self) -> Process:
        """The one we are."""
        return this_process() if self._boot is None else this_process()._replace(boot=self._boot)

    # ---------------------------------------------------------------- steps

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
        def step(found: StoredSpace, now: int) -> Opened | Occupied:
            reply = found.open(now, instance, token, ttl, supersede, knew)
            if isinstance(reply, Opened):
                found.ties[reply.lease] = Tie(self.process, bound)
                found.touch(reply.lease)
            return reply

        return self._step(space, step)

    def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        own = [ask._replace(labels=dict(ask.labels)) for ask in asks]  # written later too, and the caller's may change
        return self._step(space, lambda found, now: found.acquire(now, holder, request, own, wait), holder.lease)

    def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        own = [claim._replace(ask=claim.ask._replace(labels=dict(claim.ask.labels))) for claim in claims]

        def step(found: StoredSpace, now: int) -> Claimed | Gone:
            reply = found.claim(now, holder, request, own)
            for lease in found._leases:  # one of them may have lost a port
                found.touch(lease)
            return reply

        return self._step(space, step, holder.lease)

    def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
        return self._look(space, lambda found, now: found.preview(now, asks))

    def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        until = time.monotonic() + self.file.timeout
        return [self._renew(renewal, until) for renewal in renewals]

    def _renew(self, renewal: Renewal, until: float) -> Renewed | Gone | BaseException:
        try:
            return self._step(renewal.space, lambda found, now: found.renew(now, renewal), renewal.holder.lease, until)
        except BackendError as error:
            return error

    def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        return self._step(space, lambda found, now: found.release(now, holder, ports), holder.lease)

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
        return self._step(
            space,
            lambda found, now: found.mark_foreign(
                now, holder, ports, range=range, duration=duration, most=most, host=host
            ),
            holder.lease,
        )

    def force(self, space: str, port: PortView) -> bool:
        return self._step(space, lambda found, now: found.force(now, port), port.lease)

    def drop(self, space: str) -> bool:
        def work(db: sqlite3.Connection) -> bool:
            empty = is_empty(db, space)
            if empty:
                remove(db, space)
                _log.forget(db, space)
                self.file.cache.pop(space, None)
            return empty

        empty = self.file.read(lambda db: is_empty(db, space))
        return self.file.write(work) if empty else empty is None  # None: there is no file

    def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        return self._step(space, lambda found, now: found.close(now, holder, quarantine=quarantine), holder.lease)

    def reclaim(self, space: str) -> Reclaimed:
        return self._step(space, lambda found, now: found.reclaim(now))

    # ---------------------------------------------------------------- reads

    def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        return self._look(space, lambda found, now: found.held(holder, now, after))

    def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        return [self._read(space) for space in spaces]

    def _read(self, space: str) -> SpaceView | BackendError:
        try:
            return self._look(space, lambda found, now: found.shown(now, self.process))
        except DamagedSpaceError as error:
            return error

    def spaces(self, instance: str | None = None) -> list[str]:
        def work(db: sqlite3.Connection) -> list[tuple[str]]:
            if instance is None:
                return db.execute("SELECT name FROM space").fetchall()
            return db.execute("SELECT space FROM lease WHERE instance = ? AND named", (instance,)).fetchall()

        return sorted(name for (name,) in self.file.read(work) or ())

    def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        return [self._events(space, cursor, limit) for space, cursor in cursors.items()]

    def _events(self, space: str, cursor: str, limit: int) -> Events | BackendError:
        try:
            found = self.file.read(lambda db: _log.read(db, space, cursor, limit, self._wall()))
        except BackendError as error:
            if not is_damage(error.__cause__):
                raise
            return DamagedLogError(self.file.shown, error.__cause__)
        return found or Events(space, (), cursor)

    def watch(self, space: str, ticket: int) -> Watch:
        return SqliteWatch(self, space)

    def wakes(self, space: str) -> int:
        """How often those who wait in a space were woken."""
        return self.file.read(lambda db: wakes_of(db, space)) or 0

    def overdue(self, space: str) -> tuple[int, int, bool]:
        """Leases that have run out, others whose process has ended, and whether there is nothing in the space."""
        return self._look(space, lambda found, now: (*found.overdue(now, self.process), found.empty()))

    def diagnose(self, *, repair: bool = False) -> Iterator[Finding]:
        from ._doctor import diagnose

        return diagnose(self, repair=repair)

    def close(self) -> None:
        self.file.close()

    # ---------------------------------------------------------------- spaces and rows

    def _step(self, name: str, step: Callable[[StoredSpace, int], T], lease: int = 0, until: float | None = None) -> T:
        def work(db: sqlite3.Connection, kept: int = self._kept) -> T:
            space = self._find(db, name)
            now = self.clock()
            space.told = [] if kept else None
            space.bury_dead(now, self.process)
            space.touch(lease)
            reply = step(space, now)
            space.save(db)
            if space.told:
                _log.append(db, name, self._wall(), space.told, kept)
            return reply

        until = time.monotonic() + self.file.timeout if until is None else until
        try:
            return self.file.write(work, until)
        except BackendError as error:
            if not is_full(error.__cause__):
                raise
            return self.file.write(lambda db: work(db, 0), until)  # without events there may be room

    def _look(self, name: str, look: Callable[[StoredSpace, int], T]) -> T:
        reply = self.file.read(lambda db: look(self._find(db, name, keep=False), self.clock()))
        return look(StoredSpace(name, self._wall, self._alive), self.clock()) if reply is None else reply

    def _find(self, db: sqlite3.Connection, name: str, *, keep: bool = True) -> StoredSpace:
        """The space as it is in the file: the one in memory, with what others have changed since."""
        cache: dict[str, StoredSpace] = self.file.cache
        known = cache.pop(name, None)
        space = known or StoredSpace(name, self._wall, self._alive)
        try:
            if not space.load(db):
                space = StoredSpace(name, self._wall, self._alive)
                space.load(db)
        except Damaged as error:
            raise DamagedSpaceError(self.file.shown, name, error) from error
        if keep or known is not None:
            cache[name] = space
            if len(cache) > KEPT:
                del cache[next(iter(cache))]
        return space


class DamagedSpaceError(BackendError):
    """One space cannot be read; the others can."""

    def __init__(self, file: str, space: str, why: object) -> None:
        super().__init__(
            f"The data of space {printable(repr(space))} in {file} is damaged, so nothing is allocated there:"
            f" {printable(str(why))}; see `clusterports doctor`"
        )


class DamagedLogError(BackendError):
    """Nobody can tell what happened; nothing else is wrong."""

    def __init__(self, file: str, why: object) -> None:
        said = printable(" ".join(str(why).split()))
        super().__init__(f"The log of events in {file} cannot be read: {said}; see `clusterports doctor`")


class SqliteWatch(Watch):
    """Looks every few milliseconds whether the turn may have come."""

    def __init__(self, backend: SqliteBackend, space: str) -> None:
        self._backend = backend
        self._space = space
        self._seen: int | None = None
        self.woken()

    def woken(self) -> bool:
        """Whether something happened since the last look."""
        try:
            wakes = self._backend.wakes(self._space)
        except BackendError:  # whoever asks again will hear of it
            return False
        before, self._seen = self._seen, wakes
        return wakes != before

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self.woken() and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, POLL))
