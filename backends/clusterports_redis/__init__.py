"""Redis and Valkey, by URL:

- ``redis://host:6379/0``, with TLS ``rediss://``; ``unix:///path``
- ``redis+sentinel://host:26379,host:26379/service/0``: the primary that sentinels name; with TLS to both,
  ``rediss+sentinel://``. User and password are for the servers; the options ``sentinel_username`` and
  ``sentinel_password`` for the sentinels
- ``redis+cluster://host:6379,host:6379``: some nodes, through which all others are found; with TLS ``rediss+cluster://``

and the same with ``valkey`` (``valkeys`` for TLS).

Needs Redis 7.0 or Valkey 7.2, or newer. Nothing of redis-py is loaded before a backend is made.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from clusterports.abc import EVENTS

if TYPE_CHECKING:
    from ._async import AsyncRedisBackend
    from ._sync import RedisBackend

__all__ = ["AsyncRedisBackend", "RedisBackend", "connect", "connect_async"]


def connect(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> RedisBackend:
    from ._sync import RedisBackend

    return RedisBackend.connect(url, timeout=timeout, client=client, events=events)


def connect_async(url: str, *, timeout: float = 5.0, client: Any = None, events: int = EVENTS) -> AsyncRedisBackend:
    from ._async import AsyncRedisBackend

    return AsyncRedisBackend.connect(url, timeout=timeout, client=client, events=events)


def __getattr__(name: str) -> Any:
    if name == "RedisBackend":
        from ._sync import RedisBackend

        return RedisBackend
    if name == "AsyncRedisBackend":
        from ._async import AsyncRedisBackend

        return AsyncRedisBackend
    raise AttributeError(name)
