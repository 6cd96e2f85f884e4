"""``sqlite:///path``: one file for all processes of one machine, without a server.

Slashes count as in SQLAlchemy's URLs: ``sqlite:///x.db`` is relative to the working directory, ``sqlite:////var/x.db``
is absolute; ``~`` is the user's home. Because all who use the file are on one machine, the store knows more of them
than a server could: a reboot ends every lease, and the ports of a process that has died cool at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clusterports.abc import EVENTS

if TYPE_CHECKING:
    from ._async import AsyncSqliteBackend
    from ._backend import SqliteBackend

__all__ = ["AsyncSqliteBackend", "SqliteBackend", "connect", "connect_async"]


def connect(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> SqliteBackend:
    from ._backend import SqliteBackend
    from ._url import file_of

    return SqliteBackend(file_of(url, client), timeout=timeout, events=events)


def connect_async(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> AsyncSqliteBackend:
    from ._async import AsyncSqliteBackend
    from ._url import file_of

    return AsyncSqliteBackend(file_of(url, client), timeout=timeout, events=events)


def __getattr__(name: str) -> Any:
    if name == "SqliteBackend":
        from ._backend import SqliteBackend

        return SqliteBackend
    if name == "AsyncSqliteBackend":
        from ._async import AsyncSqliteBackend

        return AsyncSqliteBackend
    raise AttributeError(name)
