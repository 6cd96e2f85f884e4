"""Work that goes on while a test breaks something."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from allocator.kit import begin

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Self

__all__ = ["PATIENCE", "Load"]

PATIENCE = 40.0
"""Seconds for a failover and what follows; none takes this long when all is well."""


class Load:
    """Workers that take a port on these hosts and give it back, over and over, until one of them is told an error.

    At the end of the block that error is raised. ``slowest``: seconds of the longest call.
    """

    def __init__(self, ports: Any, range: str, hosts: Sequence[str], workers: int = 3) -> None:
        self._ports = ports
        self._range = range
        self._hosts = hosts
        self._workers = workers
        self._tasks: list[asyncio.Task[None]] = []
        self._rounds = [0] * workers
        self._stop = False
        self.slowest = 0.0

    async def rounds(self, count: int = 3) -> None:
        """Wait until each worker has begun and done so many more."""
        targets = [done + count + 1 for done in self._rounds]
        deadline = time.monotonic() + PATIENCE
        while any(done < target for done, target in zip(self._rounds, targets, strict=True)):
            self._raise()
            assert time.monotonic() < deadline, f"{self._rounds} of {targets}"
            await asyncio.sleep(0.01)

    async def _work(self, index: int) -> None:
        while not self._stop:
            host = self._hosts[(index + self._rounds[index]) % len(self._hosts)]
            # A failover may lose the last writes; then nothing is given out for a TTL, unless one waits.
            port = await self._timed(self._ports.acquire, self._range, host=host, wait=PATIENCE)
            await self._timed(port.release)
            self._rounds[index] += 1

    async def _timed(self, call: Any, *args: Any, **kwargs: Any) -> Any:
        began = time.monotonic()
        try:
            return await begin(call, *args, **kwargs)
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _raise(self) -> None:
        for task in self._tasks:
            if task.done():
                task.result()

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._work(index)) for index in range(self._workers)]
        await self.rounds(1)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._stop = True
        await asyncio.wait(self._tasks)
        self._raise()
