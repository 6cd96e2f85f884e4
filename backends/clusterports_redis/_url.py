"""From a URL to the arguments of a connection. Pure: nothing is contacted."""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from redis.connection import parse_url

from clusterports.errors import ConfigurationError

__all__ = ["connection_arguments", "place"]

_SPELLINGS: Final = {"valkey": "redis", "valkeys": "rediss", "valkey+unix": "unix", "redis+unix": "unix"}


def connection_arguments(url: str, socket_timeout: float) -> dict[str, Any]:
    """Keyword arguments for redis-py's connection class, which is among them as ``connection_class`` unless plain TCP.

    :raises ConfigurationError: names what is wrong, and never the password.
    """
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(url)
        port = parts.port
        arguments = dict(parse_url(f"{_SPELLINGS.get(scheme, scheme)}://{rest}"))  # type: ignore[no-untyped-call]
    except ValueError as error:
        raise ConfigurationError(f"url: {place(url)} cannot be read: {error}") from None
    if port == 0:
        raise ConfigurationError(f"url: {place(url)}: port 0 is not in 1-65535")
    if scheme.endswith("unix"):
        if not arguments.get("path"):
            raise ConfigurationError(f"url: {place(url)} names no socket; like unix:///run/redis/redis.sock")
    else:
        database = parts.path.strip("/")
        if database and not (database.isascii() and database.isdigit()):
            raise ConfigurationError(f"url: {place(url)}: database {database!r} is not a number")
    for name in ("retry_on_timeout", "retry_on_error", "decode_responses", "protocol"):
        if name in arguments:
            raise ConfigurationError(f"url: {place(url)}: option {name!r} cannot be set here")
    return {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        **arguments,
        "driver_info": None,
        "decode_responses": True,
        "protocol": 3,
    }


def place(url: str) -> str:
    """The URL without user, password and options, for messages.

    All up to the last ``@`` may be a password, in which ``?`` or ``#`` was not percent-encoded.
    """
    scheme, _, rest = url.partition("://")
    rest = rest.rpartition("@")[2]
    return f"{scheme}://{rest.split('?', 1)[0].split('#', 1)[0]}"
