"""The file: how it is made and opened, one transaction at a time, and what its errors mean.

One connection for each object, one thread in it at a time. No connection is there during a fork: SQLite notes for the
whole process which locks it has, and a child, which inherits the notes and not the locks, would be wrong about them,
until somebody takes the journal away from under it. So a fork waits for the transactions of other threads that are
under way (not for those that wait for their turn) and closes all connections; parent and child open new ones when they
need them. What forks without Python's hooks (PyOS_BeforeFork) has to do so before the store is used.
"""

from __future__ import annotations

import fcntl
import os
import random
import sqlite3
import stat
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

__all__ = ["APPLICATION", "SCHEMA", "File", "is_busy", "is_damage", "is_full", "translate"]

APPLICATION: Final = 0x63707274
"""``cprt``: what the header of our files says about whose they are."""

SCHEMA: Final = 2

T = TypeVar("T")

_files: WeakSet[File] = WeakSet()

_forking = threading.RLock()
"""Held by who forks: no file begins to be meanwhile."""

_held: list[File] = []
"""By who forks."""

_left: list[sqlite3.Connection] = []
"""Of files that nobody has closed, and nobody knows any more."""


class File:
    """``timeout``: seconds that one call may wait for others."""

    def __init__(self, path: str, timeout: float) -> None:
        self.path = path
        self.timeout = timeout
        self.cache: dict[str, Any] = {}
        """What the owner knows of this very file; forgotten with the connection, and when a transaction fails."""
        self._lock = threading.RLock()
        self._inside = False
        self._db: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        with _forking:
            _files.add(self)

    def __del__(self) -> None:
        if self._db is not None:
            _left.append(self._db)
            _close_left()

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
        pause = 0.0002
        while True:
            lock = self._enter(until)
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
                left = until - time.monotonic()
                again = is_busy(error) or self._is_another() or self._closed_by_fork(error)
                self._undo()
                if left <= 0 or not again or lock is not self._lock:
                    raise translate(error, self.path, self.timeout) from error
            except BaseException:
                self._undo()
                raise
            finally:
                self._inside = False
                lock.release()
            time.sleep(min(left, pause * random.uniform(0.5, 1.5)))  # in nobody's way, also not in that of a fork
            pause = min(pause * 1.5, 0.01)

    def _enter(self, until: float) -> threading.RLock:
        lock = self._lock  # a child has another one
        if not lock.acquire(timeout=max(0.0, until - time.monotonic())):
            raise BackendUnavailable(f"Other threads used {self.shown} for more than {self.timeout:g} s")
        if self._inside:
            lock.release()
            raise BackendUnavailable(f"This thread was interrupted while it used {self.shown}")
        self._inside = True
        return lock

    def _is_another(self) -> bool:
        """Whether somebody has taken away, or replaced, the file that we have opened."""
        try:
            return self._found() != self._identity
        except BackendError:
            return False

    def _closed_by_fork(self, error: sqlite3.Error) -> bool:
        """By a signal handler of this very thread, that is: others wait."""
        return self._db is None and isinstance(error, sqlite3.ProgrammingError)

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
        while True:  # what was opened may be another one than was found
            found = self._found()
            if self._db is not None and found == self._identity:
                return self._db
            self._close()
            self._identity = found
            if found is None:
                if not create:
                    return None
                self._make()
            elif not self._open(create=create):
                return None

    def _found(self) -> tuple[int, int] | None:
        """Which file is at the path now."""
        try:
            now = os.stat(self.path)  # noqa: PTH116  # once for each transaction
        except FileNotFoundError:
            return None
        except OSError as error:
            raise self._not_opened(error) from error
        return now.st_dev, now.st_ino

    def _make(self) -> None:
        """An empty file. In a directory that is made for it, it is its owner's; else whose the umask says.

        It is not opened: whoever closes a file gives up all locks that the process has on it, also another object's.
        Who still works in a file that was taken away has its journal open: the new file must not share that.
        """
        path = os.path.realpath(self.path)  # it may be a link to a file that is still to be made
        parent = Path(path).parent
        try:
            missing = [folder for folder in (parent, *parent.parents) if not folder.exists()]
            for folder in reversed(missing):
                folder.mkdir(0o700, exist_ok=True)
            makers = os.open(parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                fcntl.flock(makers, fcntl.LOCK_EX | fcntl.LOCK_NB)  # until it is closed
                if self._found() is None:
                    for suffix in ("-wal", "-shm"):
                        Path(f"{path}{suffix}").unlink(missing_ok=True)
                    os.mknod(path, stat.S_IFREG | (0o600 if missing else 0o666))
            finally:
                os.close(makers)
        except (BlockingIOError, FileExistsError) as error:
            busy = sqlite3.OperationalError("somebody else makes it, or another file in this directory")
            busy.sqlite_errorname = "SQLITE_BUSY"
            raise busy from error
        except OSError as error:
            raise self._not_opened(error) from error

    def _not_opened(self, error: OSError) -> BackendError:
        where = f" ({printable(repr(error.filename))})" if error.filename not in (None, self.path) else ""
        return BackendError(f"Unable to open {self.shown}: {error.strerror}{where}")

    def _open(self, *, create: bool) -> bool:
        """False when it is empty, and is not to be made."""
        uri = f"file:{quote(os.fsencode(self.path))}?mode=rw"
        db = sqlite3.connect(uri, timeout=0, isolation_level=None, check_same_thread=False, uri=True)
        self._db = db
        try:
            db.execute("BEGIN")  # others may make the file meanwhile: we see all of that, or nothing
            ours = self._is_ours(db)
            db.execute("ROLLBACK")
            if not ours:
                if not create:
                    self._close()
                    return False
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
        except BaseException:
            self._close()
            raise
        return True

    def _is_ours(self, db: sqlite3.Connection) -> bool:
        """False for an empty file."""
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

    # ---------------------------------------------------------------- forks

    @staticmethod
    def _before_fork() -> None:
        _forking.acquire()
        for file in list(_files):
            file._lock.acquire()
            _held.append(file)
            file._close()
        _close_left()

    @staticmethod
    def _after_in_parent() -> None:
        while _held:
            _held.pop()._lock.release()
        _forking.release()
        _close_left()

    @staticmethod
    def _after_in_child() -> None:
        global _forking  # noqa: PLW0603
        _forking = threading.RLock()
        _held.clear()
        for file in list(_files):
            file._lock = threading.RLock()
            file._inside = False


def _close_left() -> None:
    if _forking.acquire(blocking=False):  # or who forks does it: the thread may be one that this one waits for
        try:
            while _left:
                _left.pop().close()
        finally:
            _forking.release()


os.register_at_fork(
    before=File._before_fork, after_in_parent=File._after_in_parent, after_in_child=File._after_in_child
)


# -------------------------------------------------------------------- errors


def is_busy(error: sqlite3.Error) -> bool:
    """Somebody else is in the way, and will not be for long."""
    return _name(error).startswith(("SQLITE_BUSY", "SQLITE_LOCKED", "SQLITE_PROTOCOL"))


def _name(error: sqlite3.Error) -> str:
    return getattr(error, "sqlite_errorname", None) or ""


def is_full(error: BaseException | None) -> bool:
    """Whether the disk, or this process's share of it, may have had no room."""
    return isinstance(error, sqlite3.Error) and _name(error).startswith(("SQLITE_FULL", "SQLITE_IOERR"))


def is_damage(error: BaseException | None) -> bool:
    """Whether what was looked for is not as it was written, or is something else."""
    return isinstance(error, sqlite3.Error) and _name(error).startswith(("SQLITE_CORRUPT", "SQLITE_ERROR"))


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
