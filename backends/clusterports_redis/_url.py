"""From a URL to the arguments of a connection. Pure: nothing is contacted."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple
from urllib.parse import parse_qs, urlsplit

from redis.connection import parse_url

from clusterports._text import show
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = ["Address", "Target", "connection_arguments", "place", "target", "unfit"]

_SPELLINGS: Final = {"valkey": "redis", "valkeys": "rediss", "valkey+unix": "unix", "redis+unix": "unix"}

_EXAMPLES: Final = {
    "sentinel": "redis+sentinel://host:26379,host:26379/service",
    "cluster": "redis+cluster://host:6379,host:6379",
}

_PORTS: Final = {"sentinel": 26379, "cluster": 6379}

_SERVICE: Final = re.compile(r"[A-Za-z0-9._-]+")
"""What a sentinel accepts as the name of what it watches."""

_NO_PLACES: Final = re.compile(r"[^\w.:\[\]/%~,-]")
"""As `_NO_PLACE`, where there may be several hosts."""

_NO_PLACE: Final = re.compile(r"[^\w.:\[\]/%~-]")
"""What is in no host, port or database: an option begins there that lacks its question mark."""

_NO_PATH: Final = re.compile(r"[&;,][^=&;,/]*=")
"""The same for the path of a socket, in which nearly anything may be."""

_UNKNOWN: Final = re.compile(r"unexpected keyword argument '(.+?)'(?:$|\. )")
"""Python's own words."""

_NO_PORT: Final = re.compile(r":(?!\d{1,5}(?:[/,]|$))[^/,\]]*(?=[/,]|$)")
"""A colon outside of brackets that no port follows: a password may have lost its ``@``."""


class Address(NamedTuple):
    """Of a server. It says itself as in a URL."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


class Target(NamedTuple):
    """What a URL says. ``arguments``: of a connection to a server that holds data.

    ``seeds``: those who know where such servers are. ``service``: what the sentinels call the primary; ``login``: for
    connections to them.
    """

    kind: Literal["server", "sentinel", "cluster"]
    where: str
    arguments: dict[str, Any]
    seeds: tuple[Address, ...] = ()
    service: str = ""
    login: Mapping[str, str] = {}


def target(url: str, socket_timeout: float) -> Target:
    """Where to go, and how.

    :raises ConfigurationError: names what is wrong, and never the password.
    """
    scheme, _, rest = url.partition("://")
    where = place(url)
    base, _, kind = scheme.rpartition("+")
    if kind not in _EXAMPLES:
        return Target("server", where, connection_arguments(url, socket_timeout))
    like = f"must be like {_EXAMPLES[kind]}"
    if base not in ("redis", "rediss", "valkey", "valkeys"):
        raise ConfigurationError(f"url: {where}: {like}, or the same with rediss, valkey or valkeys")
    _check(scheme, rest, where)
    path, service = rest[_authority(rest) :], ""
    login, at, hosts = rest[: _authority(rest)].rpartition("@")
    if kind == "sentinel":
        service, slash, beyond = _before_options(path).removeprefix("/").partition("/")
        path = f"{slash}{beyond}{path[len(_before_options(path)) :]}"
    found = [
        connection_arguments(f"{base}://{login}{at}{host}{path}", socket_timeout, where) for host in hosts.split(",")
    ]
    for name in ("host", "port"):
        if name in parse_qs(urlsplit(f"//host{path}").query):  # a list of hosts is no part of a URL to all of Python
            raise ConfigurationError(f"url: {where}: option {name!r} cannot be set here")
    if not all(given.get("host") for given in found):
        raise ConfigurationError(f"url: {where}: a host is empty; {like}")
    seeds = tuple(Address(given["host"], given.get("port", _PORTS[kind])) for given in found)
    arguments = {name: value for name, value in found[0].items() if name not in ("host", "port")}
    if kind == "cluster":
        if arguments.get("db"):
            raise ConfigurationError(f"url: {where}: database {arguments['db']} is not 0, all that a cluster has")
        return Target("cluster", where, arguments, seeds)
    if not _SERVICE.fullmatch(service):
        fault = f"service {show(service)} is not of letters, digits and ._- alone" if service else "names no service"
        raise ConfigurationError(f"url: {where}: {fault}; {like}")
    words = {name: arguments.pop(f"sentinel_{name}", None) for name in ("username", "password")}
    return Target("sentinel", where, arguments, seeds, service, {name: word for name, word in words.items() if word})


def connection_arguments(url: str, socket_timeout: float, where: str = "") -> dict[str, Any]:
    """Keyword arguments for redis-py's connection class, which is among them as ``connection_class`` unless plain TCP.

    ``where``: what errors call it, if not this URL.

    :raises ConfigurationError: names what is wrong, and never the password.
    """
    scheme, _, rest = url.partition("://")
    where = where or place(url)
    _check(scheme, rest, where)
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


def _check(scheme: str, rest: str, where: str) -> None:
    """Of what a person forgets when a password is in the URL."""
    beyond = rest[_authority(rest) :]
    if "@" in beyond and not (scheme.endswith("unix") and "?" not in beyond):
        raise ConfigurationError(f"url: {where}: percent-encode the password (@ is %40, / is %2F, ? is %3F, # is %23)")
    if _misplaced(scheme, _spot(rest)) is not None:
        encode = "; in the path of a socket & is %26, ; is %3B, and , is %2C" if scheme.endswith("unix") else ""
        raise ConfigurationError(f"url: {where}: only options may follow, which begin with ?, as in ?db=1{encode}")


def _before_options(rest: str) -> str:
    return rest.replace("#", "?").partition("?")[0]


def _spot(rest: str) -> str:
    return _before_options(rest).rpartition("@")[2]


def _misplaced(scheme: str, spot: str) -> int | None:
    """Where options begin that nothing would read as such; there may be a password among them."""
    several = scheme.rpartition("+")[2] in _EXAMPLES
    found = (_NO_PATH if scheme.endswith("unix") else _NO_PLACES if several else _NO_PLACE).search(spot)
    return None if found is None else found.start()


def _authority(rest: str) -> int:
    """How long user, password, host and port are."""
    return min((index for index in map(rest.find, "/?#") if index >= 0), default=len(rest))
