"""A `Space` that is kept in rows. It decides nothing: it knows what changed, and how that is written and read.

Only what cannot be worked out is stored. What numbers are taken, what is due and who owns how many is built anew from
the rows; and rows that contradict each other are refused, so that a port is never given twice because of a row that
somebody altered or took away.
"""

from __future__ import annotations

import json
import os
import sqlite3
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

from clusterports._space import _OVER, Space, _count_up, _Lease, _Port, member, parse_member
from clusterports.abc import Ask, Granted, Port
from clusterports.ranges import MAX_PORT

from ._process import Process

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterports.abc import SpaceView

__all__ = ["TABLES", "Damaged", "StoredSpace", "Tie", "is_empty", "remove", "wakes_of"]

TABLES: Final = """
CREATE TABLE space (
    name TEXT NOT NULL PRIMARY KEY, version INTEGER NOT NULL, seen INTEGER NOT NULL,
    clock INTEGER NOT NULL, fence INTEGER NOT NULL, born INTEGER NOT NULL, recovering INTEGER NOT NULL,
    ended TEXT NOT NULL,
    wakes INTEGER NOT NULL,
    leases INTEGER NOT NULL, ports INTEGER NOT NULL, places INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE lease (
    space TEXT NOT NULL, id INTEGER NOT NULL, instance TEXT NOT NULL, named INTEGER NOT NULL,
    incarnation INTEGER NOT NULL, token TEXT NOT NULL, ttl INTEGER NOT NULL, nominal INTEGER NOT NULL,
    expires INTEGER NOT NULL, floor INTEGER NOT NULL, done TEXT NOT NULL, revoked TEXT NOT NULL, pid INTEGER NOT NULL,
    start INTEGER NOT NULL, namespaces TEXT NOT NULL, boot TEXT NOT NULL, bound INTEGER NOT NULL,
    PRIMARY KEY (space, id)
) WITHOUT ROWID;
CREATE TABLE port (
    space TEXT NOT NULL, name TEXT NOT NULL, state TEXT NOT NULL, lease INTEGER NOT NULL, instance TEXT NOT NULL,
    fence INTEGER NOT NULL, since INTEGER NOT NULL, until INTEGER, ask TEXT NOT NULL,
    PRIMARY KEY (space, name)
) WITHOUT ROWID;
CREATE TABLE place (
    space TEXT NOT NULL, ticket INTEGER NOT NULL, lease INTEGER NOT NULL, until INTEGER NOT NULL, ask TEXT NOT NULL,
    PRIMARY KEY (space, ticket)
) WITHOUT ROWID;
CREATE TABLE last (
    space TEXT NOT NULL, "range" TEXT NOT NULL, number INTEGER NOT NULL,
    PRIMARY KEY (space, "range")
) WITHOUT ROWID;
CREATE TABLE change (
    space TEXT NOT NULL, version INTEGER NOT NULL, port TEXT NOT NULL,
    PRIMARY KEY (space, version, port)
) WITHOUT ROWID;
"""
"""Lease ids, incarnations, fences and tickets of a space all come from its one fence. Times are on the clock of the
space; but ``seen`` and ``since`` are on the machine's. ``change``: the latest versions and the ports that each of them
changed ("": none), so that a process that looked not long ago reads only those again.
"""

STEP: Final = 2**20
"""The most by which a version grows, at random: two histories that part, because somebody puts an older copy in the
place of the file, have no version in common afterwards.
"""

LOGGED: Final = 100 * STEP // 2
"""How far back changes are kept: some 100 versions, and twice as many before they are thrown away."""

MOST_LOGGED: Final = 1000
"""Ports that one version may change; with more, everybody reads all of them again."""

_OF_A_SPACE: Final = ("lease", "port", "place", "last", "change")

_NOTHING: Final = Ask("", (), 1)

_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


class Damaged(Exception):
    """The rows of a space are not what a space can be."""


class Tie(NamedTuple):
    """To whom a lease is tied: the process that opened it last, and whether it ends with it."""

    process: Process
    bound: bool


class _Touched:
    """What was set or taken away since it was written last."""

    def __init__(self) -> None:
        self.names: set[str] = set()
        self.leases: set[int] = set()
        self.ports: set[str] = set()
        self.due: set[str] = set()
        self.queue: set[int] = set()
        self.last: set[str] = set()


class _Noting(dict[_Key, _Value]):
    """A dict that notes which of its keys are set or taken away."""

    def __init__(self, touched: set[_Key]) -> None:
        super().__init__()
        self._touched = touched

    def __setitem__(self, key: _Key, value: _Value) -> None:
        self._touched.add(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: _Key) -> None:
        self._touched.add(key)
        super().__delitem__(key)

    def pop(self, key: _Key, *default: Any) -> Any:
        self._touched.add(key)
        return super().pop(key, *default)


class StoredSpace(Space):
    """``wall``: the time of day, from which fences are made: the machine's own clock begins anew with each boot.

    ``alive``: whether a process is. One that is has been kept from renewing by the store, and gets time to do so.
    """

    def __init__(self, name: str, wall: Callable[[], int], alive: Callable[[Process], bool | None]) -> None:
        super().__init__(name)
        self._patient = True
        self._wall = wall
        self._alive = alive
        self._touched = _Touched()
        self._names = _Noting(self._touched.names)
        self._leases = _Noting(self._touched.leases)
        self._ports = _Noting(self._touched.ports)
        self._due = _Noting(self._touched.due)
        self._queue = _Noting(self._touched.queue)
        self._last = _Noting(self._touched.last)
        self.ties: dict[int, Tie] = {}
        self.wakes = 0
        self.version = 0
        self._ended_text = "[]"
        self._row: tuple[Any, ...] = ()
        self._lease_rows: dict[int, tuple[Any, ...]] = {}

    def _next_fence(self, now: int, count: int = 1) -> int:
        return super()._next_fence(self._wall(), count)

    def _drop(self, lease: _Lease) -> None:
        super()._drop(lease)
        self._ended_text = json.dumps(list(self._ended))

    def _may_wait(self, lease: int) -> bool:
        tie = self.ties.get(lease)
        return tie is not None and self._alive(tie.process) is not False

    # ---------------------------------------------------------------- deaths

    def dead(self, us: Process) -> set[int]:
        """The leases of those who cannot renew any more: all of a former boot, and those bound to dead processes."""
        return {
            id
            for id, (process, bound) in self.ties.items()
            if self._leases[id].expires > self._clock
            and (process.ended_with_boot(us) or (bound and self._alive(process) is False))
        }

    def bury_dead(self, now: int, us: Process) -> None:
        """End the leases of those who cannot renew any more."""
        dead = self.dead(us)
        if dead:
            self.bury(now, dead)

    def shown(self, now: int, us: Process) -> SpaceView:
        """What anybody may see: a lease that the next step ends has run out."""
        view, dead = self.view(now), self.dead(us)
        leases = (
            lease._replace(expires_in=min(0, lease.expires_in), grace=False) if lease.lease in dead else lease
            for lease in view.leases
        )
        return view._replace(leases=tuple(leases))

    def overdue(self, now: int, us: Process) -> tuple[int, int]:
        """Leases that have run out, and others whose process is known to be dead."""
        clock = self._clock_at(now)
        graced = {lease.id for lease in self._graced(now)}
        expired = {lease.id for lease in self._leases.values() if lease.expires <= clock and lease.id not in graced}
        dead = self.dead(us) | {id for id, tie in self.ties.items() if self._alive(tie.process) is False}
        return len(expired), len(dead - expired)

    # ---------------------------------------------------------------- writing

    def touch(self, lease: int) -> None:
        """Something of this lease may have changed."""
        self._touched.leases.add(lease)

    def save(self, db: sqlite3.Connection) -> None:
        """Write what has changed since it was loaded or saved."""
        if self._seen is None:  # nobody has opened it
            return
        name = self.name
        touched = self._touched
        ids, ports, places = touched.leases, touched.ports, touched.queue
        for due in touched.due:
            kind, _, rest = due.partition("/")
            if kind == "lease":
                ids.add(int(rest))
            elif kind == "wait":
                places.add(int(rest))
            else:
                ports.add(due)
        if touched.names:
            ids.update(lease.id for lease in self._leases.values() if lease.instance in touched.names)

        changed = self._save_leases(db, ids) | self._save_ports(db, ports) | self._save_places(db, places)
        last = [(name, range, self._last[range]) for range in touched.last]
        changed |= _write(db, "last", '"range"', last, [])
        row = (self._seen, self._clock, self._fence, self._born, self._recovering, self._ended_text)
        if changed or self.stirred or row != self._row:
            self._save_own(db, row, ports)
        self._clean()

    def _save_own(self, db: sqlite3.Connection, row: tuple[Any, ...], ports: set[str]) -> None:
        before = self.version
        version = self.version = before + 1 + int.from_bytes(os.urandom(4)) % STEP
        self.wakes += self.stirred
        self.stirred = False
        self._row = row
        if len(ports) > MOST_LOGGED:
            db.execute("DELETE FROM change WHERE space = ?", (self.name,))
            ports = set()
        elif before // LOGGED != version // LOGGED:
            db.execute("DELETE FROM change WHERE space = ? AND version < ?", (self.name, version - LOGGED))
        db.executemany("INSERT INTO change VALUES (?,?,?)", [(self.name, version, port) for port in ports or ("",)])
        sizes = len(self._leases), len(self._ports), len(self._queue)
        db.execute(
            "REPLACE INTO space VALUES (?,?,?,?,?,?,?,?,?,?,?,?)", (self.name, version, *row, self.wakes, *sizes)
        )

    def _clean(self) -> None:
        for keys in vars(self._touched).values():
            keys.clear()

    def _save_leases(self, db: sqlite3.Connection, ids: set[int]) -> bool:
        put, gone = [], []
        for id in ids:
            lease = self._leases.get(id)
            if lease is None:
                self.ties.pop(id, None)
                if self._lease_rows.pop(id, None) is not None:
                    gone.append((self.name, id))
                continue
            row = self._lease_row(lease)
            if row != self._lease_rows.get(id):
                self._lease_rows[id] = row
                put.append(row)
        return _write(db, "lease", "id", put, gone)

    def _save_ports(self, db: sqlite3.Connection, names: set[str]) -> bool:
        put, gone = [], []
        asks: dict[int, str] = {}
        for name in names:
            port = self._ports.get(name)
            if port is None:
                gone.append((self.name, name))
                continue
            ask = asks.get(id(port.ask)) or asks.setdefault(id(port.ask), _dump(_booked(port.ask)))
            held_by = port.lease.id, port.lease.instance
            put.append((self.name, name, port.state, *held_by, port.fence, port.since, port.until, ask))
        return _write(db, "port", "name", put, gone)

    def _save_places(self, db: sqlite3.Connection, tickets: set[int]) -> bool:
        put, gone = [], []
        for ticket in tickets:
            place = self._queue.get(ticket)
            if place is None:
                gone.append((self.name, ticket))
            else:
                lease, ask = place
                put.append((self.name, ticket, lease.id, self._due[f"wait/{ticket:016d}"], _dump(ask)))
        return _write(db, "place", "ticket", put, gone)

    def _lease_row(self, lease: _Lease) -> tuple[Any, ...]:
        (pid, start, where, boot), bound = self.ties[lease.id]
        done = [[number, _record(known)] for number, known in lease.done.items()]
        revoked = list(lease.revoked)
        return (
            *(self.name, lease.id, lease.instance, int(self._names.get(lease.instance) == lease.id)),
            *(lease.incarnation, lease.token, lease.ttl, lease.nominal, lease.expires),
            *(lease.floor, json.dumps(done) if done else "[]", json.dumps(revoked) if revoked else "[]"),
            *(pid, start, where, boot, int(bound)),
        )

    # ---------------------------------------------------------------- reading

    def load(self, db: sqlite3.Connection) -> bool:
        """Take over what others have written since; False when that cannot be told, and a new object is to do it.

        :raises Damaged: the rows are not what can have been written.
        """
        row = self._select(db, "SELECT * FROM space WHERE name = ?").fetchone()
        if row is None:
            if self.version:
                return False
            if any(self._select(db, f"SELECT 1 FROM {table} WHERE space = ?").fetchone() for table in _OF_A_SPACE):  # noqa: S608
                raise Damaged("the row of the space is missing")
            self.version = int.from_bytes(os.urandom(7))  # one that is dropped and made anew must not look the same
            return True
        before = self.version
        try:
            if before == row[1]:
                return True
            logged = "SELECT 1 FROM change WHERE space = ? AND version = ? LIMIT 1"
            if before and self._select(db, logged, before).fetchone() is None:
                return False
            self._restore(db, row)
        except (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError) as error:
            raise Damaged(f"a row cannot be read: {error}") from error
        except sqlite3.OperationalError as error:
            if getattr(error, "sqlite_errorname", None) is not None:
                raise
            raise Damaged(str(error)) from error  # Python's own: bytes that are no text
        return True

    def _select(self, db: sqlite3.Connection, query: str, *values: object) -> sqlite3.Cursor:
        return db.execute(query, (self.name, *values))

    def _restore(self, db: sqlite3.Connection, row: tuple[Any, ...]) -> None:
        before = self.version
        _, self.version, *own, self.wakes, leases, ports, places = row
        self._seen, self._clock, self._fence, self._born, self._recovering, self._ended_text = own
        self._row = tuple(own)
        numbers = (self.version, *own[:-1], self.wakes, leases, ports, places)
        if not (_are(int, *numbers) and _are(str, self._ended_text) and 0 < self._born <= self._fence):
            raise Damaged("the row of the space")
        self._ended.clear()
        self._ended.extend(json.loads(self._ended_text))
        if not _are(int, *self._ended):
            raise Damaged("the leases that ended")
        self._restore_leases(self._select(db, "SELECT * FROM lease WHERE space = ?").fetchall())
        self._restore_ports(db, before)
        self._restore_places(self._select(db, "SELECT * FROM place WHERE space = ?").fetchall())
        for _, range, number in self._select(db, "SELECT * FROM last WHERE space = ?"):
            if not (_are(str, range) and _are(int, number) and 0 < number <= MAX_PORT):
                raise Damaged(f"the last number of range {range!r}")
            self._last[range] = number
        found = [len(self._leases), len(self._ports), len(self._queue)]
        if found != [leases, ports, places]:
            raise Damaged(f"{found} leases, ports and places where {[leases, ports, places]} were written")
        self.stirred = False  # whoever freed something has told of it
        self._clean()

    def _restore_leases(self, rows: list[tuple[Any, ...]]) -> None:
        for id in self._leases.keys() - {row[1] for row in rows}:
            del self._leases[id], self._due[f"lease/{id}"], self._lease_rows[id], self.ties[id]
        self._names.clear()
        for row in rows:
            if row != self._lease_rows.get(row[1]):
                self._restore_lease(row)
            _, id, instance, named, *_ = row
            if named:
                if instance in self._names:
                    raise Damaged(f"two leases of instance {instance!r}")
                self._names[instance] = id

    def _restore_lease(self, row: tuple[Any, ...]) -> None:
        _, id, instance, named, incarnation, token, ttl, nominal, expires, floor, done, revoked, *tie = row
        pid, start, where, boot, bound = tie
        if not (
            _are(int, id, named, incarnation, ttl, nominal, expires, floor, pid, start, bound)
            and _are(str, instance, token, done, revoked, where, boot)
            and 0 < id <= incarnation <= self._fence
            and ttl > 0
            and nominal <= expires
        ):
            raise Damaged(f"lease {id!r}")
        lease = self._leases.get(id)
        if lease is None:
            lease = self._leases[id] = _Lease(id, instance)
        lease.begin(incarnation, token, ttl)
        lease.nominal, lease.expires, lease.floor = nominal, expires, floor
        lease.done = {number: _known(known) for number, known in json.loads(done)}
        lease.revoked = dict.fromkeys(map(_port, json.loads(revoked)))
        self._put_due(f"lease/{id}", expires)
        self.ties[id] = Tie(Process(pid, start, where, boot), bool(bound))
        self._lease_rows[id] = row

    def _restore_places(self, rows: list[tuple[Any, ...]]) -> None:
        for ticket in self._queue:
            del self._due[f"wait/{ticket:016d}"]
        self._queue.clear()
        for _, ticket, lease, until, text in rows:
            if not (_are(int, ticket, lease, until) and 0 < ticket <= self._fence and lease in self._leases):
                raise Damaged(f"the place with ticket {ticket!r}")
            self._queue[ticket] = self._leases[lease], _parse(text)
            self._put_due(f"wait/{ticket:016d}", until)

    def _restore_ports(self, db: sqlite3.Connection, before: int) -> None:
        rows: list[tuple[Any, ...]]
        if not before:
            rows = self._select(db, "SELECT * FROM port WHERE space = ?").fetchall()
        else:
            query = (
                "SELECT DISTINCT change.port, port.* FROM change"
                " LEFT JOIN port ON port.space = change.space AND port.name = change.port"
                " WHERE change.space = ? AND change.version > ?"
            )
            changed = self._select(db, query, before).fetchall()
            for name, *_ in changed:
                if name in self._ports:  # it is not as we know it any more
                    self._free(name)
            rows = [row[1:] for row in changed if row[1] is not None]
        former: dict[int, _Lease] = {}
        asks: dict[str, Ask] = {}
        for row in rows:
            self._restore_port(row, asks, former)

    def _restore_port(self, row: tuple[Any, ...], asks: dict[str, Ask], former: dict[int, _Lease]) -> None:
        """There may be tens of thousands of them."""
        _, name, state, lease_id, instance, fence, since, until, text = row
        protocol, number = parse_member(name)
        lease = self._leases.get(lease_id)
        held = state == "held"
        if not (
            protocol in _OVER
            and 0 < number <= MAX_PORT
            and name == member(protocol, number)
            and (held or state == "cooling" or state == "foreign")  # noqa: PLR1714  # faster than a tuple
            and type(lease_id) is type(fence) is type(since) is int
            and type(instance) is str
            and 0 < fence <= self._fence
            and (lease is not None and until is None if held else type(until) is int)
        ):
            raise Damaged(f"port {name!r}")
        taken = self._taken
        if taken[protocol][number] if protocol != "both" else taken["tcp"][number] or taken["udp"][number]:
            raise Damaged(f"port {name!r} twice")
        if lease is None:  # it has ended
            lease = former.get(lease_id) or former.setdefault(lease_id, _Lease(lease_id, instance))
        ask = asks.get(text) or asks.setdefault(text, _parse(text))
        port = self._ports[name] = _Port(lease, fence, since, ask)
        self._set_taken(protocol, number, 1)
        if held:
            lease.ports.add(name)
            if ask.limit:
                _count_up(self._owned, (ask.range, ask.owner))
        elif until is not None:
            port.state, port.until = state, until
            self._put_due(name, until)
            if state == "foreign":
                _count_up(self._foreign, ask.range)


# -------------------------------------------------------------------- the file


def wakes_of(db: sqlite3.Connection, name: str) -> int:
    """How often those who wait in a space were woken; 0 when there is none."""
    found: tuple[int] | None = db.execute("SELECT wakes FROM space WHERE name = ?", (name,)).fetchone()
    return found[0] if found else 0


def remove(db: sqlite3.Connection, name: str) -> None:
    """Take away all rows of a space."""
    for table in _OF_A_SPACE:
        db.execute(f"DELETE FROM {table} WHERE space = ?", (name,))  # noqa: S608
    db.execute("DELETE FROM space WHERE name = ?", (name,))


def is_empty(db: sqlite3.Connection, name: str) -> bool:
    """Whether there is nothing in a space, and it is not recovering."""
    recovering = "SELECT 1 FROM space WHERE name = ? AND clock < recovering"
    return db.execute(recovering, (name,)).fetchone() is None and all(
        db.execute(f"SELECT 1 FROM {table} WHERE space = ? LIMIT 1", (name,)).fetchone() is None  # noqa: S608
        for table in ("lease", "port", "place")
    )


def _write(
    db: sqlite3.Connection, table: str, key: str, put: list[tuple[Any, ...]], gone: list[tuple[Any, ...]]
) -> bool:
    if gone:
        db.executemany(f"DELETE FROM {table} WHERE space = ? AND {key} = ?", gone)  # noqa: S608
    if put:
        db.executemany(f"REPLACE INTO {table} VALUES ({','.join('?' * len(put[0]))})", put)  # noqa: S608
    return bool(put or gone)


# -------------------------------------------------------------------- single values


def _are(kind: type, *values: object) -> bool:
    return all(type(value) is kind for value in values)


def _booked(ask: Ask) -> Ask:
    """What matters of an ask once it was met."""
    return ask._replace(spans=(), count=1, protocol="tcp", align=0, rotate=0, explicit=False, running=False)


def _dump(ask: Ask) -> str:
    fields = zip(Ask._fields, ask, _NOTHING, strict=True)
    return json.dumps({name: value for name, value, usual in fields if value != usual}, ensure_ascii=True)


def _parse(text: str) -> Ask:
    fields = _NOTHING._asdict() | json.loads(text)
    fields["spans"] = tuple((first, last) for first, last in fields["spans"])
    ask = Ask(**fields)
    numbers = (ask.count, ask.quarantine, ask.cooldown, ask.align, ask.rotate, ask.limit)
    if not (
        _are(int, *numbers, *(number for span in ask.spans for number in span))
        and _are(str, ask.range, ask.owner, ask.host, *ask.labels, *ask.labels.values())
        and _are(bool, ask.explicit, ask.running)
        and ask.protocol in _OVER
        and min(numbers) >= 0
    ):
        raise Damaged(f"the request {text!r}")
    return ask


def _record(known: Granted | int | None) -> Any:
    return [known.since, known.ports] if isinstance(known, Granted) else known


def _known(record: Any) -> Granted | int | None:
    if isinstance(record, list):
        since, ports = record
        if _are(int, since):
            return Granted(tuple(map(_port, ports)), since)
    elif record is None or _are(int, record):
        return record  # type: ignore[no-any-return]
    raise Damaged("an answered request")


def _port(record: Any) -> Port:
    number, protocol, fence = record
    if not (_are(int, number, fence) and protocol in _OVER):
        raise Damaged("the ports of an answered request")
    return Port(number, protocol, fence)
