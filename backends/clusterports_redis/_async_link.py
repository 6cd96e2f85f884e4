"""How requests reach the server: connections of our own, or a client that the caller made."""

from __future__ import annotations

import os
import time
from collections import deque
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any, Final

from redis import exceptions as redis_errors
from redis.asyncio.connection import Connection

from clusterports._text import show
from clusterports.abc import AsyncWatch
from clusterports.errors import ConfigurationError

from . import _wire as wire
from ._failures import Fate, Unreached, fate, points_elsewhere, too_old
from ._url import Address, unfit

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from ._url import Target

__all__ = ["FAILURES", "CallersClient", "OwnConnections", "Subscription", "session"]

FAILURES: Final = (redis_errors.RedisError, Unreached, OSError)

_IDLE: Final = 64
"""How many connections wait for the next call; a burst may use more for a moment."""


class OwnConnections:
    """Connections of our own, made from a URL and never retried behind our back.

    A call takes one and gives it back; one on which a call was cut short is closed. redis-py's pool asks each
    connection whether it is still alive, which costs a fifth of a call; here a dead one is found by using it,
    which is safe because every request may be repeated. Where there are sentinels, each new one goes to whom they name.
    """

    def __init__(self, target: Target) -> None:
        self.where = target.where
        arguments = dict(target.arguments)
        self._class = arguments.pop("connection_class", Connection)
        self._class = _at_once(self._class)  # async-only
        self._arguments = arguments
        self._sentinels = _Sentinels(self._class, target) if target.kind == "sentinel" else None
        self._idle: deque[Any] = deque()
        self._closed = False
        self._pid = os.getpid()
        try:
            # Kept: redis-py's connections have destructors, and an interrupt that comes while one runs is lost.
            self._tried = self._class(**arguments)
        except (TypeError, ValueError, redis_errors.RedisError) as error:
            raise ConfigurationError(f"url: {self.where}: {unfit(error)}") from None
        for name in ("ssl_ca_certs", "ssl_ca_path", "ssl_certfile", "ssl_keyfile"):
            path = arguments.get(name)
            if path and not os.access(path, os.R_OK):
                raise ConfigurationError(f"url: {self.where}: {name}: {show(path)} cannot be read")

    async def call(self, *command: Any) -> Any:
        connection = await self._take()
        try:
            await connection.send_packed_command(wire.pack(connection, command), check_health=False)
            reply = await connection.read_response()
        except redis_errors.ResponseError as error:
            await self._put_back(connection, error)
            raise
        except BaseException:
            await self._discard(connection)
            raise
        await self._put_back(connection)
        return reply

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send all, then read all. An error reply stands for its own command."""
        connection = await self._take()
        replies: list[Any] = []
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            for _ in commands:
                try:
                    replies.append(await connection.read_response())
                except redis_errors.ResponseError as error:
                    replies.append(error)
        except BaseException:
            await self._discard(connection)
            raise
        await self._put_back(connection, *(reply for reply in replies if isinstance(reply, BaseException)))
        return replies

    async def together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As `calls`, and all of them on the one connection that the first command's key calls for."""
        return await self.calls(commands)

    async def sessions(self, keys: Sequence[str]) -> list[str]:
        """The run of the server that serves each key: a restart, or another server, makes it another. "": unknown."""
        return [await session(self.call)] * len(keys)

    def servers(self) -> list[OwnConnections]:
        """To each server that has data of its own."""
        return [self]

    def pubsub(self) -> Any:
        """For one who waits. redis-py may repeat a subscription as it likes."""
        from redis.asyncio.client import PubSub
        from redis.asyncio.connection import ConnectionPool

        return PubSub(ConnectionPool(connection_class=self._class, **self._arguments))

    async def close(self) -> None:
        self._closed = True
        await self._drop_idle()

    async def _take(self) -> Any:
        if self._pid != os.getpid():  # the parent goes on using its sockets
            self._pid, self._idle = os.getpid(), deque()
        try:
            return self._idle.pop()
        except IndexError:
            pass
        if self._sentinels is None:
            return await self._connect()
        address = await self._sentinels.primary()
        self._arguments = {**self._arguments, "host": address.host, "port": address.port}
        try:
            return await self._connect(master=True)
        except BaseException:
            self._sentinels.distrust()
            raise

    async def _connect(self, *, master: bool = False) -> Any:
        connection = self._class(**self._arguments)
        try:
            await connection.connect()
            await connection.send_command("HELLO")
            try:
                server = await connection.read_response()
            except redis_errors.ResponseError:  # a user who may not ask: the first script will tell
                server = {}
            if master and server.get("role", "master") != "master":
                spot = Address(connection.host, connection.port)
                raise redis_errors.ReadOnlyError(f"{spot}, which the sentinels name, is a {server['role']}")
        except BaseException as error:
            await connection.disconnect(nowait=True)
            if isinstance(error, (redis_errors.RedisError, OSError)):
                raise Unreached(error) from error
            raise
        old = wire.old_version(server.get("version", ""))
        if old:
            await connection.disconnect(nowait=True)
            raise too_old(old, self.where)
        return connection

    async def _discard(self, connection: Any) -> None:
        """Close it, and the idle ones with it: they go to the same server and most likely share its fate."""
        await connection.disconnect(nowait=True)
        await self._drop_idle()

    async def _put_back(self, connection: Any, *errors: BaseException) -> None:
        """Keep it for the next call, unless it leads to a server that is no longer the right one."""
        if any(points_elsewhere(error) for error in errors):
            await self._discard(connection)
        elif self._closed or len(self._idle) >= _IDLE:
            await connection.disconnect(nowait=True)
        else:
            self._idle.append(connection)

    async def _drop_idle(self) -> None:
        while True:
            try:
                connection = self._idle.pop()
            except IndexError:  # empty, or emptied by another thread
                return
            await connection.disconnect(nowait=True)


class _Sentinels:
    """Those who know the address of the primary.

    redis-py's client asks for the state of all that they watch instead, and takes a primary that the sentinel it asks
    finds silent for none.
    """

    def __init__(self, connection_class: Any, target: Target) -> None:
        self._class = connection_class
        self._service = target.service
        self._seeds = target.seeds
        others = ("connection_class", "username", "password", "db", "credential_provider")
        self._arguments = {name: value for name, value in target.arguments.items() if name not in others}
        for name in ("socket_timeout", "socket_connect_timeout"):  # for all of them
            self._arguments[name] /= len(self._seeds)
        self._arguments.update(target.login)

    async def primary(self) -> Address:
        """As the first says that answers.

        :raises Unreached: none does, or none knows the service.
        """
        said = []
        refused: Exception | None = None
        for seed in self._seeds:
            try:
                found = await self._ask(seed)
            except (redis_errors.RedisError, OSError) as error:
                said.append(f"{seed}: {error}")
                if fate(error) is Fate.FATAL:
                    error.args = (f"the sentinel at {seed} says: {error}",)
                    refused = error
                continue
            if found:
                self._seeds = (seed, *(other for other in self._seeds if other != seed))
                return Address(found[0], int(found[1]))
            said.append(f"{seed} does not know it")
        nobody = f"no sentinel names a primary of {self._service}: {'; '.join(said)}"
        raise Unreached(refused or redis_errors.ConnectionError(nobody))

    def distrust(self) -> None:
        """What the first said led nowhere; ask another next time."""
        self._seeds = (*self._seeds[1:], self._seeds[0])

    async def _ask(self, seed: Address) -> Any:
        connection = self._class(**self._arguments, host=seed.host, port=seed.port)
        try:
            await connection.connect()
            await connection.send_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
            return await connection.read_response()
        finally:
            await connection.disconnect(nowait=True)


class CallersClient:
    """A redis client that the caller made (also fakeredis). Whatever it retries is harmless here."""

    def __init__(self, client: Any) -> None:
        execute = getattr(client, "execute_command", None)
        wanted = iscoroutinefunction(execute)  # async-only
        # sync-only: wanted = execute is not None and not iscoroutinefunction(execute)
        if not wanted:
            library = "redis.asyncio"
            raise ConfigurationError(f"client: must be a redis client of {library}, got {type(client).__name__}")
        self.where = "the client that was passed in"
        self._client = client

    async def call(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)

    async def calls(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        pipe = self._client.pipeline(transaction=False)
        for command in commands:
            pipe.execute_command(*command)
        replies: list[Any] = await pipe.execute(raise_on_error=False)
        return replies

    async def together(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """As `calls`, and all of them on the one connection that the first command's key calls for."""
        from redis.asyncio.cluster import RedisCluster

        if isinstance(self._client, RedisCluster):
            raise ConfigurationError(
                "client: a RedisCluster cannot keep several commands on one connection;"
                " pass a URL instead, like redis+cluster://host:6379"
            )
        return await self.calls(commands)

    async def sessions(self, keys: Sequence[str]) -> list[str]:
        """The run of the server that serves each key: a restart, or another server, makes it another. "": unknown."""
        node_of = getattr(self._client, "get_node_from_key", None)
        if node_of is None:
            return [await session(self.call)] * len(keys)
        nodes = [node_of(key) for key in keys]  # of a cluster
        ask = self._client.execute_command
        runs = {node: await session(partial(ask, target_nodes=node)) for node in dict.fromkeys(nodes)}
        return [runs[node] for node in nodes]

    def servers(self) -> list[CallersClient]:
        """To each server that has data of its own."""
        return [self]

    def pubsub(self) -> Any:
        """With a connection of its own: a pool may have few, and a heartbeat must not lack one for those who wait."""
        from redis.asyncio.connection import BlockingConnectionPool, ConnectionPool

        pool: Any = getattr(self._client, "connection_pool", None)
        if type(pool) not in (ConnectionPool, BlockingConnectionPool):  # such as Sentinel's: not to be made from parts
            return None
        return type(self._client)(
            connection_pool=ConnectionPool(connection_class=pool.connection_class, **pool.connection_kwargs)
        ).pubsub()

    async def close(self) -> None:
        pass


class Subscription(AsyncWatch):
    """A channel of our own, on which a script that frees something publishes."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    @classmethod
    async def begin(cls, pubsub: Any, channel: str, seconds: float) -> Subscription:
        try:
            await pubsub.subscribe(channel)
            if await pubsub.get_message(timeout=seconds) is None:  # the confirmation
                raise redis_errors.TimeoutError("no answer to SUBSCRIBE")
        except BaseException:
            await cls(pubsub).close()
            raise
        return cls(pubsub)

    async def wait(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        left = seconds
        try:
            while left > 0:
                message = await self._pubsub.get_message(ignore_subscribe_messages=True, timeout=left)
                if message is not None:
                    return
                left = until - time.monotonic()
        except (redis_errors.RedisError, OSError):  # a lost hint; the next pause tries again
            await super().wait(max(0.0, until - time.monotonic()))

    async def close(self) -> None:
        await self._pubsub.aclose()  # async-only
        # sync-only: self._pubsub.close()
        # A connection that was cut short in its handshake is nobody's, and open: the pool has it, which is our own.
        await self._pubsub.connection_pool.disconnect()


class _AtOnce:  # async-only
    """Closes at once, where redis-py leaves a TLS connection open until the other end agrees, and any until all is
    sent: a socket would outlive a loop that ends meanwhile.
    """

    _writer: Any

    async def disconnect(self, *arguments: Any, **named: Any) -> None:
        if self._writer is not None:
            self._writer.transport.abort()
        await super().disconnect(*arguments, **named)  # type: ignore[misc]


def _at_once(connection_class: type) -> Any:  # async-only
    """parse_url() names the blocking classes; the asyncio twin has the same name."""
    from redis.asyncio import connection

    return type(connection_class.__name__, (_AtOnce, getattr(connection, connection_class.__name__)), {})


async def session(call: Callable[..., Any]) -> str:
    """The run of the one server that answers, and of its data: one that follows another for a while has other data
    afterwards. "" if that is not known.
    """
    for _ in range(2):  # the first may meet a connection that has died
        try:
            info = wire.info(await call("INFO", "server", "replication"))
        except redis_errors.ResponseError:  # a user who may not ask
            break
        except FAILURES:
            continue
        return " ".join(filter(None, (info.get("run_id"), info.get("master_replid"))))
    return ""
