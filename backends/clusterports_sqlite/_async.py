"""The backend for tasks: the other one, in a thread of its own.

A step takes tens of microseconds, but may have to wait for another process. The event loop's own pool of threads will
not do: a program that fills it with work of its own would hold up the heartbeat.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from clusterports._delegate import Delegate
from clusterports.abc import AsyncWatch

from ._backend import POLL, SqliteBackend, SqliteWatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from concurrent.futures import ThreadPoolExecutor


__all__ = ["AsyncSqliteBackend"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSqliteBackend(Delegate):
    """Arguments as of `SqliteBackend`. The steps are done in a thread of its own."""

    _sync: SqliteBackend

    def __init__(self, path: str, **arguments: Any) -> None:
        super().__init__(SqliteBackend(path, **arguments))
        self._thread: ThreadPoolExecutor | None = None
        self._pid = 0

    async def call(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do this in the thread. Once it has begun, a cancel does not keep it from being done."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if self._thread is None or self._pid != os.getpid():  # no thread survives a fork
            self._thread, self._pid = ThreadPoolExecutor(1, "clusterports-sqlite"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(step, *args, **kwargs))

    async def watch(self, space: str, ticket: int) -> AsyncWatch:
        return AsyncSqliteWatch(self, await self.call(SqliteWatch, self._sync, space))

    async def close(self) -> None:
        if self._thread is None:
            return
        await super().close()
        if self._thread is not None:
            self._thread.shutdown(wait=False)
            self._thread = None


class AsyncSqliteWatch(AsyncWatch):
    """Looks every few milliseconds whether the turn may have come."""

    def __init__(self, backend: AsyncSqliteBackend, watch: SqliteWatch) -> None:
        self._backend = backend
        self._watch = watch

    async def wait(self, seconds: float) -> None:
        import asyncio

        until = asyncio.get_running_loop().time() + seconds
        while not await self._backend.call(self._watch.woken):
            left = until - asyncio.get_running_loop().time()
            if left <= 0:
                return
            await asyncio.sleep(min(left, POLL))
