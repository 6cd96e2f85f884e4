"""The file: how it is made and opened, one transaction at a time, and what its errors mean.

One connection for each object, one thread in it at a time. A connection does not survive a fork: the child makes its
own, and the parent's is never touched there, not even to be closed, because that could remove what the parent needs.
"""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import quote
from weakref import WeakSet

from clusterports._text import printable
from clusterports.errors import BackendError, BackendUnavailable, IncompatibleSchema

from ._stored import TABLES
from ._url import shown

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["APPLICATION", "SCHEMA", "File", "is_busy", "translate"]

APPLICATION: Final = 0x63707274
"""``cprt``: what the header of our files says about whose they are."""

SCHEMA: Final = 1

T = TypeVar("T")

_files: WeakSet[File] = WeakSet()


class File:
    """``timeout``: seconds that one call may wait for others."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.cache: dict[str, Any] = {}
        """What the owner knows of this very file; forgotten with the connection, and when a transaction fails."""
        self._lock = threading.Lock()
        self._db: sqlite3.Connection | None = None
        self._identity = (0, 0)
        _files.add(self)

    def write(self, work: Callable[[sqlite3.Connection], T], until: float | None = None) -> T:
        """Do all of it or nothing, with nobody else writing meanwhile. It is done again when others are in the way.

        ``until``: on the monotonic clock, when to give up.

        :raises BackendError: nothing was changed.
        """
        return self._run(work, "BEGIN IMMEDIATE", until)  # type: ignore[return-value]  # it makes the file

    def read(self, work: Callable[[sqlite3.Connection], T]) -> T | None:
        """Look at one state of the file; None when there is no file, or an empty one."""
        return self._run(work, "BEGIN", None)

    def checkpoint(self) -> int:
        """Write the journal back into the file, if nobody is in the way; how many bytes it had.

        :raises BackendError: it could not be written.
        """
        with self._lock:
            try:
                db = self._connection(create=False)
                journal = Path(f"{self.path}-wal")
                size = journal.stat().st_size if db is not None and journal.exists() else 0
                busy = db is None or db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
            except sqlite3.Error as error:
                raise translate(error, self.path, self.timeout) from error
            return 0 if busy else size

    def close(self) -> None:
        """Give up the connection; the next transaction makes a new one."""
        with self._lock:
            self._close()

    # ---------------------------------------------------------------- transactions

    def _run(self, work: Callable[[sqlite3.Connection], T], begin: str, until: float | None) -> T | None:
        if until is None:
            until = time.monotonic() + self.timeout
        if not self._lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise BackendUnavailable(f"Other threads used {self.shown} for more than {self.timeout:g} s")
        try:
            pause = 0.0002
            while True:
                try:
                    db = self._connection(create=begin != "BEGIN")
                    if db is None:
                        return None
                    db.execute(begin)
                    try:
                        result = work(db)
                        db.execute("COMMIT")
                    except BaseException:
                        self.cache.clear()  # it may be ahead of the file
                        raise
                    return result
                except sqlite3.Error as error:
                    self._undo()
                    left = until - time.monotonic()
                    if not is_busy(error) or left <= 0:
                        raise translate(error, self.path, self.timeout) from error
                    time.sleep(min(left, pause * random.uniform(0.5, 1.5)))
                    pause = min(pause * 1.5, 0.01)
                except BaseException:
                    self._undo()
                    raise
        finally:
            self._lock.release()

    def _undo(self) -> None:
        if self._db is not None and self._db.in_transaction:
            try:
                self._db.execute("ROLLBACK")
            except sqlite3.Error:
                self._close()

    # ---------------------------------------------------------------- the connection

    @property
    def shown(self) -> str:
        return shown(self.path)

    def _connection(self, *, create: bool) -> sqlite3.Connection | None:
        """None for a reader of a file that is not there. Whoever replaces the file is noticed."""
        try:
            now = os.stat(self.path)  # noqa: PTH116  # once for each transaction
        except (FileNotFoundError, NotADirectoryError) as error:
            if self._db is not None:
                self._close()
            if not create:
                if isinstance(error, NotADirectoryError):
                    raise self._not_opened(error) from error
                return None
            self._make()
        except OSError as error:
            raise self._not_opened(error) from error
        else:
            if self._db is not None and (now.st_dev, now.st_ino) == self._identity:
                return self._db
        self._close()
        return self._open(create=create)

    def _make(self) -> None:
        """An empty file. In a directory that is made for it, it is its owner's; else whose the umask says."""
        parent = Path(self.path).parent
        try:
            missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(0o700, exist_ok=True)
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600 if missing else 0o666))
        except OSError as error:
            raise self._not_opened(error) from error

    def _not_opened(self, error: OSError) -> BackendError:
        where = f" ({printable(repr(error.filename))})" if error.filename not in (None, self.path) else ""
        return BackendError(f"Unable to open {self.shown}: {error.strerror}{where}")

    def _open(self, *, create: bool) -> sqlite3.Connection | None:
        uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        db = sqlite3.connect(uri, timeout=0, isolation_level=None, check_same_thread=False, uri=True)
        try:
            if not self._is_ours(db):
                if not create:
                    db.close()
                    return None
                db.execute("PRAGMA journal_mode = WAL")
                db.execute("BEGIN IMMEDIATE")
                if not self._is_ours(db):
                    for statement in TABLES.split(";"):
                        db.execute(statement)
                    db.execute(f"PRAGMA application_id = {APPLICATION}")
                    db.execute(f"PRAGMA user_version = {SCHEMA}")
                db.execute("COMMIT")
            # After a power failure some commits may be missing, but every lease ended with the boot anyway.
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA cell_size_check = ON")
            now = os.stat(self.path)  # noqa: PTH116
        except BaseException as error:
            db.close()
            if isinstance(error, OSError):
                raise self._not_opened(error) from error
            raise
        self._identity = now.st_dev, now.st_ino
        self._db = db
        return db

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """False for an empty file."""
        # Looked at first: whoever makes the file meanwhile makes tables and application in one transaction.
        tables = db.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchone()
        (application,) = db.execute("PRAGMA application_id").fetchone()
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if application == APPLICATION:
            if version != SCHEMA:
                raise IncompatibleSchema(
                    f"The data in {self.shown} has schema {version}; this clusterports knows schema {SCHEMA} only"
                )
            return True
        if application or version or tables:
            raise BackendError(
                f"{self.shown} is the database of another application, and was not touched; name another file"
            )
        return False

    def _close(self) -> None:
        db, self._db = self._db, None
        self.cache.clear()
        if db is not None:
            db.close()

    def _forked(self) -> None:
        self._lock = threading.Lock()
        self.cache.clear()
        db, self._db = self._db, None
        if db is not None:
            import ctypes

            ctypes.pythonapi.Py_IncRef(ctypes.py_object(db))  # never finalized: that would close it


def _after_fork() -> None:
    for file in list(_files):
        file._forked()


os.register_at_fork(after_in_child=_after_fork)


# -------------------------------------------------------------------- errors


def is_busy(error: sqlite3.Error) -> bool:
    """Somebody else is in the way, and will not be for long."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or ""


def translate(error: sqlite3.Error, path: str, timeout: float) -> BackendError:
    """What an error says to an operator. The transaction was not carried out."""
    name, file, said = _name(error), shown(path), " ".join(str(error).split())
    if is_busy(error):
        return BackendUnavailable(f"{file} was locked by another process for more than {timeout:g} s")
    match name.split("_")[1] if name.startswith("SQLITE_") else "":
        case "FULL":
            return BackendError(f"No space is left on the disk for {file}: {said}")
        case "CORRUPT" | "NOTADB":
            return _damaged(file, said)
        case "READONLY" | "PERM" | "AUTH":
            return BackendError(f"This user may not write {file}: {said}")
        case "CANTOPEN":
            return BackendError(f"Unable to open {file}: {said}; this user needs to write it and its directory")
        case "IOERR":
            return BackendError(f"The disk refuses {file}: {said} ({name}); is it full, or failing?")
        case "NOMEM":
            return BackendError(f"Too little memory is left for {file}: {said}")
        case "ERROR" if "no such table" in said or "no such column" in said or "values were supplied" in said:
            return _damaged(file, said)
    if "decode to UTF-8" in said:
        return _damaged(file, said)
    return BackendError(f"SQLite failed on {file}: {said}" + (f" ({name})" if name else ""))


def _damaged(file: str, said: str) -> BackendError:
    return BackendError(f"{file} is damaged, so nothing is allocated there: {said}; see `clusterports doctor`")
