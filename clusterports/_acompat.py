"""Every difference between threads and tasks, in pairs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

__all__ = ["AsyncEvent", "AsyncLock", "AsyncWorker", "Event", "Lock", "Worker"]

Lock = threading.Lock
AsyncLock = asyncio.Lock


class Event:
    """Set once; can be waited for with a limit in seconds."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


class AsyncEvent:
    def __init__(self) -> None:
        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(seconds):
                return await self._event.wait()
        except TimeoutError:
            return False


class Worker:
    """A function in the background."""

    def __init__(self, function: Callable[[], None], name: str) -> None:
        self._thread = threading.Thread(target=function, name=name, daemon=True)
        self._thread.start()

    def alive(self) -> bool:
        return self._thread.is_alive()

    def join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join()


class AsyncWorker:
    def __init__(self, function: Callable[[], Awaitable[None]], name: str) -> None:
        async def run() -> None:
            await function()

        self._task = asyncio.get_running_loop().create_task(run(), name=name)

    def alive(self) -> bool:
        return not self._task.done()

    async def join(self) -> None:
        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task])
