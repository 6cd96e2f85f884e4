"""Two threads that touch no connection: one watches local deadlines, one calls the user's functions.

They are threads for the async allocator too: neither a blocked event loop nor a hanging socket nor a slow
callback can keep them from noticing that a lease is in jeopardy.
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

__all__ = ["Callbacks", "Watchdog"]

logger = logging.getLogger("clusterports")


class _Loop:
    """A daemon thread that is started when first needed, and again should it have died."""

    name: str

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopping = False

    def start(self) -> None:
        """Start it, or let it look again."""
        with self._changed:
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
                self._thread.start()
            self._changed.notify()

    def stop(self) -> None:
        """Let it end when nothing is left to do. Not waited for: a callback may wait for our caller."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    def _run(self) -> None:
        raise NotImplementedError


class Callbacks(_Loop):
    """Calls the user's functions one after another; what they raise is logged."""

    name = "clusterports-callbacks"

    def __init__(self) -> None:
        super().__init__()
        self._jobs: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()

    def call(self, function: Callable[..., object], *arguments: Any) -> None:
        with self._changed:
            self._jobs.append((function, arguments))
        self.start()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._jobs:
                    if self._stopping:
                        return
                    self._changed.wait()
                function, arguments = self._jobs.popleft()
            try:
                function(*arguments)
            except BaseException:  # SystemExit too: it would end this thread and nothing else
                logger.exception("a callback failed")


class Watchdog(_Loop):
    """``leases`` gives those to watch; ``overdue`` is called for each whose deadline has passed."""

    name = "clusterports-watchdog"

    def __init__(self, leases: Callable[[], Iterable[HostLease]], overdue: Callable[[HostLease], None]) -> None:
        super().__init__()
        self._leases = leases
        self._overdue = overdue

    def _run(self) -> None:
        while True:
            with self._changed:
                if self._stopping:
                    return
                deadlines = [lease.until for lease in self._leases() if lease.state == "live"]
                self._changed.wait(max(0.0, min(deadlines) - monotonic()) if deadlines else None)
            now = monotonic()
            for lease in self._leases():
                if now >= lease.until:
                    self._overdue(lease)
