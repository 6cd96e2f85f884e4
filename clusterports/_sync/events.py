# Generated from clusterports/_async/events.py by .ci/unasync.py; do not edit.

"""Reads the logs of a store."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from heapq import merge
from operator import attrgetter
from typing import TYPE_CHECKING, Final

from clusterports._names import CLUSTER_SPACE, host_space, is_cluster_space, is_host_space, where
from clusterports.errors import BackendError
from clusterports.events import MOST, check_limit

if TYPE_CHECKING:
    from collections.abc import Callable

    from clusterports.abc import Backend
    from clusterports.events import EventFilter, PortEvent

__all__ = ["EventLog"]

logger = logging.getLogger("clusterports")

_AT_ONCE: Final = 50
"""How many logs are in memory at a time before only what is wanted is kept."""


class EventLog:
    """What happened, and from then on what happens. ``limit``: how many events the first read gives at most, the last
    ones. ``check``: raises when the store may not be used any more.
    """

    def __init__(
        self, backend: Backend, wanted: EventFilter, limit: int, check: Callable[[], None] = lambda: None
    ) -> None:
        self._backend = backend
        self._check = check
        self._wanted = wanted
        self._limit: int | None = check_limit(limit)
        self._cursors: dict[str, str] = {}
        self._unreadable: set[str] = set()

    @property
    def is_whole(self) -> bool:
        """Whether no log had to be passed over yet."""
        return not self._unreadable

    def read(self) -> list[PortEvent]:
        """What is new since the last read, oldest first. Changes nothing in the store.

        A host whose log cannot be read is passed over, with a warning, unless it is the one that was asked for.

        :raises BackendError: the store is away, or that host's log is damaged.
        :raises ClusterPortsError: the allocator is closed, or belongs to the parent process.
        """
        self._check()
        host = self._wanted.host
        if host is None:
            names = [name for name in self._backend.spaces() if is_host_space(name) or is_cluster_space(name)]
        else:
            names = [CLUSTER_SPACE, host_space(host)]
        limit = MOST if self._limit is None else self._limit
        most = MOST if self._wanted.is_narrow else limit
        found: list[list[PortEvent]] = []
        cursors: dict[str, str] = {}
        for start in range(0, len(names), _AT_ONCE):
            part = {name: self._cursors.get(name, "") for name in names[start : start + _AT_ONCE]}
            logs = self._backend.events(part, most)
            now = datetime.now(UTC)
            for name, log in zip(part, logs, strict=True):
                if isinstance(log, BackendError):
                    self._pass_over(name, log)
                else:
                    cursors[name] = log.cursor
                    found.append(self._wanted.pick(log, now))
            if sum(map(len, found)) > 2 * limit:
                found = [_last(found, limit)]
        self._limit = None
        self._cursors |= cursors  # also of spaces that are not listed just now
        return _last(found, limit)

    def _pass_over(self, name: str, error: BackendError) -> None:
        if self._wanted.host is not None and name == host_space(self._wanted.host):
            raise error
        if name not in self._unreadable:
            self._unreadable.add(name)
            logger.warning("the events %s cannot be read: %s", where(name), error)


def _last(found: list[list[PortEvent]], limit: int) -> list[PortEvent]:
    return list(merge(*found, key=attrgetter("at")))[-limit:]
