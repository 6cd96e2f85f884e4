"""Redis and Valkey: ``redis://``, ``rediss://`` (TLS), ``unix://``, and the same with ``valkey``.

Needs Redis 7.0 or Valkey 7.2, or newer. Nothing of redis-py is loaded before a backend is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._async import AsyncRedisBackend
    from ._sync import RedisBackend

__all__ = ["AsyncRedisBackend", "RedisBackend", "connect", "connect_async"]


def connect(url: str, *, timeout: float = 5.0, client: Any = None) -> RedisBackend:
    from ._sync import RedisBackend

    return RedisBackend.connect(url, timeout=timeout, client=client)


def connect_async(url: str, *, timeout: float = 5.0, client: Any = None) -> AsyncRedisBackend:
    from ._async import AsyncRedisBackend

    return AsyncRedisBackend.connect(url, timeout=timeout, client=client)


def __getattr__(name: str) -> Any:
    if name == "RedisBackend":
        from ._sync import RedisBackend

        return RedisBackend
    if name == "AsyncRedisBackend":
        from ._async import AsyncRedisBackend

        return AsyncRedisBackend
    raise AttributeError(name)
