"""What the steps did, for people. Nothing depends on this table: a file from before there were events has none, damage
to it costs no step, and a row that cannot be read is passed over.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Any, Final

from clusterports._events import LATEST, is_repeated, readable
from clusterports.abc import Event, Events

from ._file import is_busy, is_full

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["append", "begin_anew", "forget", "look", "read"]

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS event (
    space TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (space, number)
) WITHOUT ROWID
"""
"""``number``: counts up from the time of a log's first, so that no two logs of one space share any. ``at``: the time of
day in microseconds, which goes on over a reboot. ``event``: the fields of `Event`, as JSON.
"""

_ROWS: Final = """
SELECT number, at, CAST(event AS BLOB) FROM event
WHERE space = ? AND number > ? AND typeof(number) = 'integer' AND typeof(at) = 'integer' ORDER BY number DESC LIMIT ?
"""
_LAST: Final = "SELECT number FROM event WHERE space = ? AND typeof(number) = 'integer' ORDER BY number DESC LIMIT 1"
_CUT: Final = """
DELETE FROM event WHERE space = ?1 AND number <= min(?2, (SELECT min(number) FROM event WHERE space = ?1) + 999)
"""
"""Not all at once where very many are too many: others wait."""

_SLACK: Final = 32
"""How many more than it should the log of a space keeps, since it is not cut each time."""


def append(db: sqlite3.Connection, space: str, at: int, events: Iterable[Event], kept: int) -> None:
    """Write them down, and let go of those that are too many; or nothing, if the table is damaged.

    :raises sqlite3.Error: the file has no room, or others are in the way.
    """
    db.execute("SAVEPOINT event")
    try:
        _append(db, space, at, events, kept)
    except (OverflowError, TypeError, ValueError, sqlite3.Error) as error:
        if isinstance(error, sqlite3.Error) and (is_full(error) or is_busy(error)):
            raise
        db.execute("ROLLBACK TO event")
    db.execute("RELEASE event")


def _append(db: sqlite3.Connection, space: str, at: int, events: Iterable[Event], kept: int) -> None:
    try:
        last = db.execute(_LAST, (space,)).fetchone()
    except sqlite3.OperationalError as error:
        if not _is_missing(error):
            raise
        db.execute(_TABLE)
        last = None
    (number,) = last or (at,)
    for event in events:
        if event.kind == "refused":
            rows = db.execute(_ROWS, (space, -1, LATEST)).fetchall()
            if is_repeated(event, ((then, _event(then, text, at)) for _, then, text in rows), at):
                continue
        number += 1
        row = space, number, at, json.dumps(event)
        db.execute("INSERT INTO event (space, number, at, event) VALUES (?,?,?,?)", row)
        if number % _SLACK == 0:
            db.execute(_CUT, (space, number - kept))


def read(db: sqlite3.Connection, space: str, cursor: str, limit: int, now: int) -> Events:
    """The last of them after the cursor."""
    try:
        last = db.execute(_LAST, (space,)).fetchone()
        if last is None:
            return Events(space, (), cursor)
        after = int(cursor or -1)
        rows = db.execute(_ROWS, (space, after if after <= last[0] else -1, limit)).fetchall()
    except sqlite3.OperationalError as error:
        if not _is_missing(error):
            raise
        return Events(space, (), cursor)
    found = (_event(at, text, now) for _, at, text in reversed(rows))
    return Events(space, tuple(event for event in found if event is not None), str(last[0]))


def _event(at: int, text: Any, now: int) -> Event | None:
    try:
        kind, number, protocol, range, owner, labels, instance, lease, fence, _, host = json.loads(text.decode())
        age = max(0, now - at)
    except (AttributeError, RecursionError, TypeError, ValueError):
        return None
    return readable(kind, number, protocol, range, owner, labels, instance, lease, fence, age, host)


def forget(db: sqlite3.Connection, space: str) -> None:
    """Of a space that is no more."""
    try:
        db.execute("DELETE FROM event WHERE space = ?", (space,))
    except sqlite3.Error as error:
        if is_full(error) or is_busy(error):
            raise


def look(db: sqlite3.Connection) -> str:
    """Why nothing can be written down; "" when it can.

    :raises sqlite3.Error: the table cannot be read.
    """
    if (kind := _kind(db)) is None:
        return ""
    columns = {name for (name,) in db.execute("SELECT name FROM pragma_table_info('event')")}
    if kind != "table" or not columns >= {"space", "number", "at", "event"}:
        return "it has another layout"
    (last,) = db.execute("SELECT max(number) FROM event WHERE typeof(number) = 'integer'").fetchone()
    return "its numbers are used up" if (last or 0) >= 2**62 else ""


def begin_anew(db: sqlite3.Connection) -> None:
    """Forget all that happened."""
    if kind := _kind(db):
        db.execute(f"DROP {kind} event")


def _kind(db: sqlite3.Connection) -> str | None:
    """A table, as it is to be, or a view; None: there is none yet."""
    found = db.execute("SELECT type FROM sqlite_master WHERE lower(name) = 'event' AND type IN ('table', 'view')")
    return (found.fetchone() or (None,))[0]


def _is_missing(error: sqlite3.OperationalError) -> bool:
    return "no such table" in str(error)
