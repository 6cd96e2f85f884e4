"""A store for tasks, made from the same store for threads."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from .abc import AsyncBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from .abc import (
        Ask,
        Backend,
        Claim,
        Claimed,
        Closed,
        Events,
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
        Recovering,
        Released,
        Renewal,
        Renewed,
        Request,
        SpaceView,
        Stale,
        Wait,
    )
    from .errors import BackendError

__all__ = ["Delegate"]

P = ParamSpec("P")
T = TypeVar("T")


class Delegate(AsyncBackend):
    """Each step is that of another backend; where it is done is for :meth:`call` to decide."""

    def __init__(self, backend: Backend) -> None:
        self.name = backend.name
        self.capabilities = backend.capabilities
        self._sync = backend

    @abstractmethod
    async def call(self, step: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Do this step."""

    async def open(
        self,
        space: str,
        instance: str,
        *,
        token: str,
        ttl: int,
        supersede: int = 0,
        bound: bool = False,
        knew: int = 0,
    ) -> Opened | Occupied:
        return await self.call(
            self._sync.open, space, instance, token=token, ttl=ttl, supersede=supersede, bound=bound, knew=knew
        )

    async def acquire(
        self, space: str, holder: Holder, request: Request, asks: Sequence[Ask], wait: Wait | None = None
    ) -> Granted | Full | Queued | Recovering | Gone | Stale:
        return await self.call(self._sync.acquire, space, holder, request, asks, wait)

    async def claim(self, space: str, holder: Holder, request: Request, claims: Sequence[Claim]) -> Claimed | Gone:
        return await self.call(self._sync.claim, space, holder, request, claims)

    async def preview(self, space: str, asks: Sequence[Ask]) -> Granted | Full | Recovering:
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

    async def events(self, cursors: Mapping[str, str], limit: int) -> list[Events | BackendError]:
        return await self.call(self._sync.events, cursors, limit)

    async def close(self) -> None:
        await self.call(self._sync.close)
