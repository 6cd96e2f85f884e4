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
    where = place(url)
    beyond = rest[_authority(rest) :]
    if "@" in beyond and not (scheme.endswith("unix") and "?" not in beyond):
        raise ConfigurationError(f"url: {where}: percent-encode the password (@ is %40, / is %2F, ? is %3F, # is %23)")
    try:
        port = urlsplit(url).port
    except ValueError as error:  # whose text may show a piece of the password
        fault = "Invalid IPv6 URL" if "IPv6" in str(error) else "the port must be a number from 1 to 65535"
        raise ConfigurationError(f"url: {where}: {fault}") from None
    try:
        arguments = dict(parse_url(f"{_SPELLINGS.get(scheme, scheme)}://{rest}"))  # type: ignore[no-untyped-call]
    except ValueError as error:
        fault = str(error) if str(error).startswith("Invalid value for '") else "must be like redis://host:6379/0"
        raise ConfigurationError(f"url: {where}: {fault}") from None
    if port == 0:
        raise ConfigurationError(f"url: {where}: port 0 is not in 1-65535")
    if scheme.endswith("unix"):
        if not arguments.get("path"):
            raise ConfigurationError(f"url: {where} names no socket; like unix:///run/redis/redis.sock")
    else:
        database = urlsplit(url).path.strip("/")
        if database and not (database.isascii() and database.isdigit()):
            raise ConfigurationError(f"url: {where}: database {database!r} is not a number")
    for name in ("retry_on_timeout", "retry_on_error", "decode_responses", "protocol"):
        if name in arguments:
            raise ConfigurationError(f"url: {where}: option {name!r} cannot be set here")
    return {
        "socket_timeout": socket_timeout,
        "socket_connect_timeout": socket_timeout,
        **arguments,
        "driver_info": None,
        "decode_responses": True,
        "encoding_errors": "backslashreplace",  # of a damaged record, and no JSON then
        "protocol": 3,
    }


def place(url: str) -> str:
    """The URL without user, password and options, for messages. What might be a password is left out."""
    scheme, _, rest = url.partition("://")
    before_options = rest.replace("#", "?").partition("?")[0]
    if "@" in rest[len(before_options) :]:
        return f"{scheme}://..."
    return f"{scheme}://{before_options.rpartition('@')[2]}"


def _authority(rest: str) -> int:
    """How long user, password, host and port are."""
    return min((index for index in map(rest.find, "/?#") if index >= 0), default=len(rest))
