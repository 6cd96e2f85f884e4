# Generated from backends/clusterports_redis/_async_link.py by .ci/unasync.py; do not edit.

"""How requests reach the server: connections of our own, or a client that the caller made."""

from __future__ import annotations

import os
import time
from collections import deque
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_errors
from redis.connection import Connection

from clusterports.abc import Watch
from clusterports.errors import ConfigurationError

from . import _wire as wire
from ._failures import Unreached, points_elsewhere, too_old
from ._url import connection_arguments, place, unfit

if TYPE_CHECKING:
    from collections.abc import Sequence

__all__ = ["CallersClient", "OwnConnections", "Subscription"]

_IDLE: Final = 64
"""How many connections wait for the next call; a burst may use more for a moment."""


class OwnConnections:
    """Connections of our own, made from a URL and never retried behind our back.

    A call takes one and gives it back; one on which a call was cut short is closed. redis-py's pool asks each
    connection whether it is still alive, which costs a fifth of a call; here a dead one is found by using it,
    which is safe because every request may be repeated.
    """

    def __init__(self, url: str, socket_timeout: float) -> None:
        self.where = place(url)
        arguments = connection_arguments(url, socket_timeout)
        self._class = arguments.pop("connection_class", Connection)
        self._arguments = arguments
        self._idle: deque[Any] = deque()
        self._closed = False
        self._pid = os.getpid()
        try:
            self._class(**arguments)
        except (TypeError, ValueError, redis_errors.RedisError) as error:
            raise ConfigurationError(f"url: {self.where}: {unfit(error)}") from None

    def call(self, *command: Any) -> Any:
        connection = self._take()
        try:
            connection.send_packed_command(wire.pack(connection, command), check_health=False)
            reply = connection.read_response()
        except redis_errors.ResponseError as error:
            self._put_back(connection, error)
            raise
        except BaseException:
            self._discard(connection)
            raise
        self._put_back(connection)
        return reply

    def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send all, then read all. An error reply stands for its own command."""
        connection = self._take()
        replies: list[Any] = []
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(connection.read_response())
                except redis_errors.ResponseError as error:
                    replies.append(error)
        except BaseException:
            self._discard(connection)
            raise
        self._put_back(connection, *(reply for reply in replies if isinstance(reply, BaseException)))
        return replies

    def pubsub(self) -> Any:
        """For one who waits. redis-py may repeat a subscription as it likes."""
        from redis.client import PubSub
        from redis.connection import ConnectionPool

        return PubSub(ConnectionPool(connection_class=self._class, **self._arguments))

    def close(self) -> None:
        self._closed = True
        self._drop_idle()

    def _take(self) -> Any:
        if self._pid != os.getpid():  # the parent goes on using its sockets
            self._pid, self._idle = os.getpid(), deque()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        connection = self._class(**self._arguments)
        try:
            connection.connect()
            connection.send_command("HELLO")
            try:
                server = connection.read_response()
            except redis_errors.ResponseError:  # a user who may not ask: the first script will tell
                server = {}
        except BaseException as error:
            connection.disconnect()
            if isinstance(error, (redis_errors.RedisError, OSError)):
                raise Unreached(error) from error
            raise
        old = wire.old_version(server.get("version", ""))
        if old:
            connection.disconnect()
            raise too_old(old, self.where)
        return connection

    def _discard(self, connection: Any) -> None:
        """Close it, and the idle ones with it: they go to the same server and most likely share its fate."""
        connection.disconnect()
        self._drop_idle()

    def _put_back(self, connection: Any, *errors: BaseException) -> None:
        """Keep it for the next call, unless it leads to a server that is no longer the right one."""
        if any(points_elsewhere(error) for error in errors):
            self._discard(connection)
        elif self._closed or len(self._idle) >= _IDLE:
            connection.disconnect()
        else:
            self._idle.append(connection)

    def _drop_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # empty, or emptied by another thread
                return
            connection.disconnect()


class CallersClient:
    """A redis client that the caller made (also fakeredis). Whatever it retries is harmless here."""

    def __init__(self, client: Any) -> None:
        execute = getattr(client, "execute_command", None)
        wanted = execute is not None and not iscoroutinefunction(execute)
        if not wanted:
            library = "redis"
            raise ConfigurationError(f"client: must be a redis client of {library}, got {type(client).__name__}")
        self.where = "the client that was passed in"
        self._client = client

    def call(self, *command: Any) -> Any:
        return self._client.execute_command(*command)

    def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = pipe.execute(raise_on_error=False)
        return replies

    def pubsub(self) -> Any:
        """With a connection of its own: a pool may have few, and a heartbeat must not lack one for those who wait."""
        from redis.connection import BlockingConnectionPool, ConnectionPool

        pool: Any = getattr(self._client, "connection_pool", None)
        if type(pool) not in (ConnectionPool, BlockingConnectionPool):  # such as Sentinel's: not to be made from parts
            return None
        return type(self._client)(
            connection_pool=ConnectionPool(connection_class=pool.connection_class, **pool.connection_kwargs)
        ).pubsub()

    def close(self) -> None:
        pass


class Subscription(Watch):
    """A channel of our own, on which a script that frees something publishes."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    @classmethod
    def begin(cls, pubsub: Any, channel: str, seconds: float) -> Subscription:
        try:
            pubsub.subscribe(channel)
            if pubsub.get_message(timeout=seconds) is None:  # the confirmation
                raise redis_errors.TimeoutError("no answer to SUBSCRIBE")
        except BaseException:
            pubsub.close()
            raise
        return cls(pubsub)

    def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        left = seconds
        try:
            while left > 0:
                message = self._pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
                if message is not None:
                    return
                left = until - time.monotonic()
        except (redis_errors.RedisError, OSError):  # a lost hint; the next pause tries again
            super().wait(max(0.0, until - time.monotonic()))

    def close(self) -> None:
        self._pubsub.close()
