"""What an operator should know of the file."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clusterports._text import printable
from clusterports.abc import Finding
from clusterports.errors import BackendError, IncompatibleSchema

from . import _log
from ._backend import DamagedSpaceError
from ._file import SCHEMA, is_damage
from ._url import file_system, is_network

if TYPE_CHECKING:
    import sqlite3
    from collections.abc import Iterator

    from ._backend import SqliteBackend

__all__ = ["LITTLE_SPACE", "diagnose"]

LITTLE_SPACE: Final = 16 * 2**20
"""Bytes that ought to be left on the disk."""

MOST_LINES: Final = 5
"""Of what SQLite says about a damage."""

_FROM_NEW: Final = "end the jobs on these ports, then move the file away and start anew"


def diagnose(backend: SqliteBackend, *, repair: bool) -> Iterator[Finding]:
    path = Path(backend.file.path)
    try:
        exists = backend.file.read(lambda _: True) is not None
    except BackendError as error:
        yield _unreadable(error)
        yield from _around(path)
        return
    if not exists:
        yield Finding("store", "ok", f"{backend.file.shown} will be made when it is first used")
        yield from _around(path)
        return
    try:
        yield _file(backend, path)
        yield from _around(path)
        yield from _inside(backend, repair)
        yield from _spaces(backend, repair)
        yield from _events(backend, repair)
    except (BackendError, OSError) as error:  # it has changed since the first look
        yield Finding("store", "error", printable(str(error)), "run this again")


def _unreadable(error: BackendError) -> Finding:
    if isinstance(error, IncompatibleSchema):
        cure = f"use the newer clusterports everywhere on this machine; if this is the newer one, {_FROM_NEW}"
        return Finding("schema", "error", str(error), cure)
    text = str(error)
    if "is damaged" in text:
        return Finding("store", "error", text, _FROM_NEW)
    return Finding(
        "store", "error", text, "name another file, or give this user read and write access to it and its directory"
    )


def _file(backend: SqliteBackend, path: Path) -> Finding:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    text = f"{backend.file.shown}: {found.st_size:,} bytes, owner {_owner(found.st_uid)}, mode {mode:04o}"
    return Finding("store", "ok", text)


def _owner(uid: int) -> str:
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _around(path: Path) -> Iterator[Finding]:
    """The directory, its disk and its file system."""
    kind = file_system(str(path))
    if is_network(kind):
        yield Finding("file system", "error", f"{kind}: locks on it cannot be relied on", "use a path on a local disk")
    elif kind:
        yield Finding("file system", "ok", kind)
    folder = next((folder for folder in path.parents if os.path.isdir(folder)), Path("/"))  # noqa: PTH112  # no error
    try:
        free = shutil.disk_usage(folder).free
    except OSError as error:
        yield Finding("disk space", "warning", f"unknown: {error.strerror}", "look at the disk")
    else:
        cure = "make room: with a full disk no port can be given out, and no lease renewed"
        text = f"{free // 2**20:,} MB are free"
        enough = free >= LITTLE_SPACE
        yield Finding("disk space", "ok" if enough else "warning", text, "" if enough else cure)
    for place in (path, path.parent):
        try:
            mode = place.stat().st_mode
        except OSError:
            continue
        if not os.access(place, os.W_OK):
            text = f"{printable(repr(str(place)))} cannot be written by this user, who can look only"
            yield Finding("access", "warning", text, "run this as the user or group that it belongs to")
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:  # in a sticky directory others cannot replace it
            text = f"{printable(repr(str(place)))} can be changed by every user of this machine"
            yield Finding("access", "warning", text, f"chmod o-w {printable(str(place))}")


def _inside(backend: SqliteBackend, repair: bool) -> Iterator[Finding]:
    file = backend.file
    yield Finding("schema", "ok", f"version {SCHEMA}")
    (mode,) = _pragma(backend, "journal_mode")
    if mode == "wal":
        yield Finding("journal", "ok", mode)
    else:
        cure = f"sqlite3 {printable(file.path)} 'PRAGMA journal_mode = wal'"
        yield Finding("journal", "warning", f"{mode}: those who only look wait for those who write", cure)
    try:
        faults = [fault for fault in _pragma(backend, "integrity_check") if fault != "ok"]
    except BackendError as error:
        faults = [str(error)]
    if faults:
        more = f"; and {len(faults) - MOST_LINES} more" if len(faults) > MOST_LINES else ""
        text = printable("; ".join(" ".join(fault.split()) for fault in faults[:MOST_LINES])) + more
        yield Finding("integrity", "error", text, _FROM_NEW)
    else:
        yield Finding("integrity", "ok", "whole")
    if boot := backend.process.boot:
        yield Finding("boot", "ok", boot)
    else:
        cure = "let /proc/sys/kernel/random/boot_id be that of the machine, and readable"
        yield Finding("boot", "warning", "not known, so a reboot does not end the leases at once", cure)
    if repair and not faults and (size := file.checkpoint()):
        yield Finding("journal", "ok", f"{size:,} bytes of it written back", mended=True)


def _spaces(backend: SqliteBackend, repair: bool) -> Iterator[Finding]:
    names = backend.spaces()
    expired = dead = unused = damaged = 0
    for name in names:
        try:
            late, orphaned, empty = backend.overdue(name)
            if repair:
                while (late or orphaned) and backend.reclaim(name).backlog:
                    pass
                empty = empty and backend.drop(name)
        except DamagedSpaceError as error:
            damaged += 1
            yield Finding("space", "error", str(error), _FROM_NEW)
            continue
        expired, dead, unused = expired + late, dead + orphaned, unused + empty
    if not damaged:
        yield Finding("spaces", "ok", f"{len(names)}")
    if unused:
        yield Finding("spaces", "ok", f"{unused} empty{', removed' if repair else ''}", mended=repair)
    if not expired:
        yield Finding("leases", "ok", "none has run out")
    elif repair:
        yield Finding("leases", "ok", f"{expired} had run out: reclaimed", mended=True)
    else:
        yield Finding("leases", "warning", f"{expired} ran out and nobody came to reclaim", "clusterports gc")
    if dead:
        text = f"the processes of {dead} have ended: they run out in their time, or with the next visit"
        yield Finding("leases", "ok", text)


def _events(backend: SqliteBackend, repair: bool) -> Iterator[Finding]:
    try:
        wrong = backend.file.read(_log.look)
    except BackendError as error:
        if not is_damage(error.__cause__):
            raise
        wrong = printable(str(error.__cause__))
    if not wrong:
        return
    if repair:
        backend.file.write(_log.begin_anew)
        yield Finding("events", "ok", f"the log of all spaces was begun anew: {wrong}", mended=True)
    else:
        text = f"what happens to ports is not written down, or cannot be read: {wrong}"
        yield Finding("events", "warning", text, "clusterports doctor --repair")


def _pragma(backend: SqliteBackend, name: str) -> list[str]:
    def work(db: sqlite3.Connection) -> list[str]:
        return [str(value) for (value, *_) in db.execute(f"PRAGMA {name}").fetchall()]

    return backend.file.read(work) or [""]
