"""Every difference between threads and tasks, in pairs. Whoever runs a loop imports asyncio, nobody else."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Callable, Coroutine

__all__ = ["AsyncEvent", "AsyncLock", "AsyncWorker", "Event", "Lock", "Worker", "cancels"]

Lock = threading.Lock


class AsyncLock:
    def __init__(self) -> None:
        import asyncio

        self._lock = asyncio.Lock()

    async def __aenter__(self) -> None:
        await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()


class Event:
    """Can be waited for with a limit in seconds; whether it was set then."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    def wait(self, seconds: float) -> bool:
        return self._event.wait(seconds)


class AsyncEvent:
    def __init__(self) -> None:
        import asyncio

        self._event = asyncio.Event()

    def set(self) -> None:
        self._event.set()

    def clear(self) -> None:
        self._event.clear()

    async def wait(self, seconds: float) -> bool:
        import asyncio

        try:
            async with asyncio.timeout(seconds):
                return await self._event.wait()
        except TimeoutError:
            return False


def cancels() -> int:
    """How often the current task was told to end."""
    import asyncio

    task = asyncio.current_task()
    return task.cancelling() if task else 0


class Worker:
    """A function in the background. ``ensure`` starts it again if it has died, and may be called by any thread."""

    def __init__(self, function: Callable[[], None], name: str) -> None:
        self._function = function
        self._name = name
        self._start()

    def _start(self) -> None:
        self._thread = threading.Thread(target=self._function, name=self._name, daemon=True)
        self._thread.start()

    def ensure(self) -> None:
        if not self._thread.is_alive():
            self._start()

    def join(self) -> None:
        if self._thread is not threading.current_thread():
            self._thread.join()


class AsyncWorker:
    def __init__(self, function: Callable[[], Coroutine[object, object, None]], name: str) -> None:
        self._function = function
        self._name = name
        import asyncio

        self._loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()
        self._start()

    def _start(self) -> None:
        self._task = self._loop.create_task(self._function(), name=self._name)

    def _restart(self) -> None:
        if self._task.done():
            self._start()

    def ensure(self) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nothing can run there any more
            self._loop.call_soon_threadsafe(self._restart)

    async def join(self) -> None:
        import asyncio

        if self._task is not asyncio.current_task():
            await asyncio.wait([self._task])
