"""What the steps did, for people. Nothing depends on this table: a file from before there were events has none, and a
row that cannot be read is the log's fault alone.
"""

from __future__ import annotations

import json
import sqlite3
from typing import TYPE_CHECKING, Final, get_args

from clusterports.abc import Event, EventKind, Events

from ._stored import Damaged

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["append", "forget", "read"]

_TABLE: Final = """
CREATE TABLE IF NOT EXISTS event (
    space TEXT NOT NULL, number INTEGER NOT NULL, at INTEGER NOT NULL, event TEXT NOT NULL, PRIMARY KEY (space, number)
) WITHOUT ROWID
"""
"""``number``: counts up from the time of a log's first, so that no two logs of one space share any. ``at``: the time of
day in microseconds, which goes on over a reboot. ``event``: the fields of `Event`, as JSON.
"""

_SLACK: Final = 32
"""How many more than it should the log of a space keeps, since it is not cut each time."""


def append(db: sqlite3.Connection, space: str, at: int, events: Iterable[Event], kept: int) -> None:
    """Write them down, and let go of those that are too many."""
    latest = "SELECT number, event FROM event WHERE space = ? ORDER BY number DESC LIMIT 1"
    try:
        last = db.execute(latest, (space,)).fetchone()
    except sqlite3.OperationalError as error:
        if not _is_missing(error):
            raise
        db.execute(_TABLE)
        last = None
    number, text = last or (at, "")
    for event in events:
        before, text = text, json.dumps(event)
        if event.kind == "refused" and text == before:
            continue
        number += 1
        db.execute("INSERT INTO event (space, number, at, event) VALUES (?,?,?,?)", (space, number, at, text))
        if number % _SLACK == 0:
            db.execute("DELETE FROM event WHERE space = ? AND number <= ?", (space, number - kept))


def read(db: sqlite3.Connection, space: str, cursor: str, limit: int, now: int) -> Events:
    """The last of them after the cursor.

    :raises Damaged: a row cannot be read.
    """
    try:
        rows = db.execute(
            "SELECT number, at, event FROM event WHERE space = ? AND number > ? ORDER BY number DESC LIMIT ?",
            (space, int(cursor or 0), limit),
        ).fetchall()
    except sqlite3.OperationalError as error:
        if not _is_missing(error):
            raise
        rows = []
    events = tuple(_event(at, text, now) for _, at, text in reversed(rows))
    return Events(space, events, str(rows[0][0]) if rows else cursor)


def _event(at: int, text: str, now: int) -> Event:
    try:
        event = Event(*json.loads(text))
        if event.kind not in get_args(EventKind):
            raise ValueError(event.kind)
        return event._replace(age=max(0, now - at))
    except (RecursionError, TypeError, ValueError) as error:
        raise Damaged(f"an event cannot be read: {error}") from error


def forget(db: sqlite3.Connection, space: str) -> None:
    """Of a space that is no more."""
    try:
        db.execute("DELETE FROM event WHERE space = ?", (space,))
    except sqlite3.OperationalError as error:
        if not _is_missing(error):
            raise


def _is_missing(error: sqlite3.OperationalError) -> bool:
    return "no such table" in str(error)
