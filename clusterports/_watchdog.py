"""A thread that watches local deadlines and calls the user's callbacks.

It is a thread for the async allocator too, and it touches no connection: a blocked event loop or a hanging
socket cannot keep it from saying that a lease is in jeopardy.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from ._lease import monotonic

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from ._lease import HostLease

__all__ = ["Watchdog"]

logger = logging.getLogger("clusterports")


class Watchdog:
    """``leases`` gives those to watch; ``overdue`` is called once for each whose deadline has passed."""

    def __init__(self, leases: Callable[[], Iterable[HostLease]], overdue: Callable[[HostLease], None]) -> None:
        self._leases = leases
        self._overdue = overdue
        self._changed = threading.Condition()
        self._jobs: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Start it, or let it look again: a lease has come."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name="clusterports-watchdog", daemon=True)
                self._thread.start()
            self._changed.notify()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        """Call a user's function in the watchdog's thread; what it raises is logged."""
        with self._changed:
            self._jobs.append((function, arguments))
        self.start()

    def stop(self) -> None:
        """Let it finish the calls that are due, then end. Not waited for: a callback may wait for our caller."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        while True:
            with self._changed:
                if not self._jobs:
                    if self._stopping:
                        return
                    deadlines = [lease.until for lease in self._leases() if lease.state == "live"]
                    self._changed.wait(max(0.0, min(deadlines) - monotonic()) if deadlines else None)
                job = self._jobs.popleft() if self._jobs else None
            if job is not None:
                function, arguments = job
                try:
                    function(*arguments)
                except Exception:
                    logger.exception("a callback failed")
            now = monotonic()
            for lease in self._leases():
                if now >= lease.until:
                    self._overdue(lease)
