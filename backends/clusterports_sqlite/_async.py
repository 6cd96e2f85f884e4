"""The backend for tasks: the other one, in a thread of its own.

A step takes tens of microseconds, but may have to wait for another process. The event loop's own pool of threads will
not do: a program that fills it with work of its own would hold up the heartbeat.
"""

from __future__ import annotations

import os
from functools import partial
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from clusterports.abc import AsyncBackend, AsyncWatch

from ._backend import POLL, SqliteBackend, SqliteWatch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import ThreadPoolExecutor

    from clusterports.abc import (
        Ask,
        Closed,
        Full,
        Gone,
        Granted,
        Held,
        Holder,
        Marked,
        Occupied,
        Opened,
        Port,
        PortView,
        Queued,
        Reclaimed,
        Released,
        Renewal,
        Renewed,
        Request,
        SpaceView,
        Stale,
        Wait,
    )
    from clusterports.errors import BackendError

__all__ = ["AsyncSqliteBackend"]

P = ParamSpec("P")
T = TypeVar("T")


class AsyncSqliteBackend(AsyncBackend):
    """Arguments as of `SqliteBackend`."""

    name = SqliteBackend.name
    capabilities = SqliteBackend.capabilities

    def __init__(self, path: str, **arguments: Any) -> None:
        self._sync = SqliteBackend(path, **arguments)
        self._thread: ThreadPoolExecutor | None = None
        self._pid = 0

    async def call(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do this in the thread. Once it has begun, a cancel does not keep it from being done."""
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        if self._thread is None or self._pid != os.getpid():  # no thread survives a fork
            self._thread, self._pid = ThreadPoolExecutor(1, "clusterports-sqlite"), os.getpid()
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(step, *args, **kwargs))

    async def open(
        self, space: str, instance: str, *, token: str, ttl: int, supersede: int = 0, bound: bool = False
    ) -> Opened | Occupied:
        return await self.call(self._sync.open, space, instance, token=token, ttl=ttl, supersede=supersede, bound=bound)

    async def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Gone | Stale:
        return await self.call(self._sync.acquire, space, holder, request, asks, wait)

    async def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full:
        return await self.call(self._sync.preview, space, asks)

    async def mark_foreign(
        self,
        space: str,
        holder: Holder,
        ports: Sequence[Port],
        *,
        range: str,
        duration: int,
        most: int,
        host: str = "",
    ) -> Marked | Gone:
        return await self.call(
            self._sync.mark_foreign, space, holder, ports, range=range, duration=duration, most=most, host=host
        )

    async def renew(self, renewals: Sequence[Renewal]) -> list[Renewed | Gone | BaseException]:
        return await self.call(self._sync.renew, renewals)

    async def release(self, space: str, holder: Holder, ports: Sequence[Port]) -> Released | Gone:
        return await self.call(self._sync.release, space, holder, ports)

    async def force(self, space: str, port: PortView) -> bool:
        return await self.call(self._sync.force, space, port)

    async def drop(self, space: str) -> bool:
        return await self.call(self._sync.drop, space)

    async def close_lease(self, space: str, holder: Holder, *, quarantine: bool = False) -> Closed | Gone:
        return await self.call(self._sync.close_lease, space, holder, quarantine=quarantine)

    async def reclaim(self, space: str) -> Reclaimed:
        return await self.call(self._sync.reclaim, space)

    async def held(self, space: str, holder: Holder, after: Port | None = None) -> Held | Gone:
        return await self.call(self._sync.held, space, holder, after)

    async def read(self, spaces: Sequence[str]) -> list[SpaceView | BackendError]:
        return await self.call(self._sync.read, spaces)

    async def spaces(self, instance: str | None = None) -> list[str]:
        return await self.call(self._sync.spaces, instance)

    async def watch(self, space: str, ticket: int) -> AsyncWatch:
        return AsyncSqliteWatch(self, await self.call(SqliteWatch, self._sync, space))

    async def close(self) -> None:
        if self._thread is None:
            return
        await self.call(self._sync.close)
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
