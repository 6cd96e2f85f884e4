"""From a URL to the arguments of a connection. Pure: nothing is contacted."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from redis.connection import parse_url

from clusterports._text import show
from clusterports.errors import ConfigurationError

__all__ = ["connection_arguments", "place", "unfit"]

_SPELLINGS: Final = {"valkey": "redis", "valkeys": "rediss", "valkey+unix": "unix", "redis+unix": "unix"}

_NO_PLACE: Final = re.compile(r"[^\w.:\[\]/%~-]")
"""What is in no host, port or database: an option begins there that lacks its question mark."""

_NO_PATH: Final = re.compile(r"[&;,][^=&;,/]*=")
"""The same for the path of a socket, in which nearly anything may be."""

_UNKNOWN: Final = re.compile(r"unexpected keyword argument '(.+?)'(?:$|\. )")
"""Python's own words."""

_NO_PORT: Final = re.compile(r":(?!\d{1,5}(?:/|$))[^/\]]*(?=/|$)")
"""A colon outside of brackets that no port follows: a password may have lost its ``@``."""


def connection_arguments(url: str, socket_timeout: float) -> dict[str, Any]:
    """Keyword arguments for redis-py's connection class, which is among them as ``connection_class`` unless plain TCP.

    :raises ConfigurationError: names what is wrong, and never the password.
    """
    scheme, _, rest = url.partition("://")
    where = place(url)
    beyond = rest[_authority(rest) :]
    if "@" in beyond and not (scheme.endswith("unix") and "?" not in beyond):
        raise ConfigurationError(f"url: {where}: percent-encode the password (@ is %40, / is %2F, ? is %3F, # is %23)")
    if _misplaced(scheme, _spot(rest)) is not None:
        encode = "; in the path of a socket & is %26, ; is %3B, and , is %2C" if scheme.endswith("unix") else ""
        raise ConfigurationError(f"url: {where}: only options may follow, which begin with ?, as in ?db=1{encode}")
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
    before_options = _before_options(rest)
    if "@" in rest[len(before_options) :]:
        return f"{scheme}://..."
    spot = _spot(rest)
    spot = spot[: _misplaced(scheme, spot)]
    return f"{scheme}://{spot if scheme.endswith('unix') else _NO_PORT.sub(':***', spot)}"


def unfit(error: Exception) -> str:
    """What a connection does not like about its arguments, in terms of the URL."""
    found = _UNKNOWN.search(str(error))
    if found is None:
        return str(error)
    return f"unknown parameter {show(found[1])}" + ("; it is for rediss://" if found[1].startswith("ssl_") else "")


def _before_options(rest: str) -> str:
    return rest.replace("#", "?").partition("?")[0]


def _spot(rest: str) -> str:
    return _before_options(rest).rpartition("@")[2]


def _misplaced(scheme: str, spot: str) -> int | None:
    """Where options begin that nothing would read as such; there may be a password among them."""
    found = (_NO_PATH if scheme.endswith("unix") else _NO_PLACE).search(spot)
    return None if found is None else found.start()


def _authority(rest: str) -> int:
    """How long user, password, host and port are."""
    return min((index for index in map(rest.find, "/?#") if index >= 0), default=len(rest))
