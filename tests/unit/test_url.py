"""From a URL to a connection: what is accepted, what is refused and how, and what is shown of it."""

from __future__ import annotations

from typing import Any

import pytest
import redis

from clusterports.errors import ConfigurationError
from clusterports_redis import connect, connect_async
from clusterports_redis._url import Address, connection_arguments, place, target
from clusterports_sqlite._url import file_of

SECRET = "s3cr3t"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://store", {"host": "store"}),
        ("valkey://store:7000/3", {"host": "store", "port": 7000, "db": 3}),
        ("redis://:pw@store/0", {"host": "store", "password": "pw", "db": 0}),
        ("redis://me:p%40w@store", {"username": "me", "password": "p@w"}),
        ("redis://[::1]:7000", {"host": "::1", "port": 7000}),
        ("redis://store?db=4", {"db": 4}),
        ("redis://store?client_name=x", {"client_name": "x"}),
        ("rediss://store", {"connection_class": redis.SSLConnection}),
        ("valkeys://store", {"connection_class": redis.SSLConnection}),
        ("unix:///run/s.sock", {"path": "/run/s.sock", "connection_class": redis.UnixDomainSocketConnection}),
        ("valkey+unix:///run/s.sock?db=2", {"path": "/run/s.sock", "db": 2}),
        ("unix://me:pw@/run/s.sock", {"username": "me", "password": "pw", "path": "/run/s.sock"}),
    ],
)
def test_accepted(url: str, expected: dict[str, Any]) -> None:
    """All spellings of a store's place, with user, password, database and redis-py's options."""
    arguments = connection_arguments(url, 2.5)
    assert expected == {key: arguments.get(key) for key in expected}


@pytest.mark.parametrize(
    ("url", "kind", "seeds"),
    [
        ("redis://store:7000/0", "server", ()),
        ("valkey+unix:///run/s.sock", "server", ()),
        ("redis+sentinel://a/ports", "sentinel", (("a", 26379),)),
        ("valkey+sentinel://a:1,b,c:3/ports", "sentinel", (("a", 1), ("b", 26379), ("c", 3))),
        ("rediss+sentinel://[::1],[fe80::1]:2/ports", "sentinel", (("::1", 26379), ("fe80::1", 2))),
        ("redis+cluster://a", "cluster", (("a", 6379),)),
        ("valkeys+cluster://a:1,[::1],c/0", "cluster", (("a", 1), ("::1", 6379), ("c", 6379))),
    ],
)
def test_several(url: str, kind: str, seeds: tuple[tuple[str, int], ...]) -> None:
    """One server, or a list of those who know where the servers are, each with its own port or the usual one."""
    found = target(url, 2.5)
    assert (kind, seeds, url) == (found.kind, found.seeds, found.where)
    assert (kind == "server") is ("host" in found.arguments or "path" in found.arguments)


@pytest.mark.parametrize(
    ("url", "service", "expected", "login"),
    [
        ("redis+sentinel://a,b/ports", "ports", {"username": None, "db": None, "connection_class": None}, {}),
        ("redis+sentinel://a/my-ports.1/3", "my-ports.1", {"db": 3}, {}),
        ("redis+sentinel://me:p%40w@a,b/ports?client_name=x", "ports", {"username": "me", "password": "p@w"}, {}),
        (
            "redis+sentinel://:pw@a/ports/2?sentinel_username=he&sentinel_password=s%40w",
            "ports",
            {"password": "pw", "db": 2, "sentinel_password": None},
            {"username": "he", "password": "s@w"},
        ),
        ("rediss+sentinel://a/ports?ssl_ca_certs=x.pem", "ports", {"connection_class": redis.SSLConnection}, {}),
        ("valkeys+cluster://me:pw@a,b", "", {"username": "me", "connection_class": redis.SSLConnection}, {}),
    ],
)
def test_logins(url: str, service: str, expected: dict[str, Any], login: dict[str, str]) -> None:
    """User, password, database and options are for the servers with the data; sentinels have a login of their own."""
    found = target(url, 2.5)
    assert (service, login) == (found.service, found.login)
    assert expected == {key: found.arguments.get(key) for key in expected}


@pytest.mark.parametrize("address", [Address("store", 1), Address("::1", 7000)])
def test_address(address: Address) -> None:
    """An address says itself as it is written in a URL."""
    assert (address,) == target(f"redis+cluster://{address}", 2.5).seeds


@pytest.mark.parametrize("url", ["redis://store", "rediss://store", "unix:///run/s.sock"])
def test_always(url: str) -> None:
    """Every connection has a limit in time and answers in text."""
    arguments = connection_arguments(url, 2.5)
    expected = {"socket_timeout": 2.5, "socket_connect_timeout": 2.5, "decode_responses": True, "protocol": 3}
    assert expected == {key: arguments[key] for key in expected}


def test_own_timeouts() -> None:
    """Who sets a limit in the URL gets that one."""
    arguments = connection_arguments("redis://store?socket_timeout=0.25&socket_connect_timeout=1", 2.5)
    assert (0.25, 1.0) == (arguments["socket_timeout"], arguments["socket_connect_timeout"])


@pytest.mark.parametrize(
    ("url", "part"),
    [
        (f"redis://:{SECRET}@store:70000/0", "the port must be a number from 1 to 65535"),
        (f"redis://:{SECRET}@store:abc/0", "the port must be a number from 1 to 65535"),
        (f"redis://:{SECRET}@store:0/0", "port 0 is not in 1-65535"),
        (f"redis://:{SECRET}@[::1/0", "Invalid IPv6 URL"),
        (f"redis://:{SECRET}@store/zero", "database 'zero' is not a number"),
        (f"redis://:{SECRET}@store/-1", "database '-1' is not a number"),
        (f"redis://:{SECRET}@store/0/1", "database '0/1' is not a number"),
        (f"redis://:{SECRET}@store/²", "database '²' is not a number"),
        (f"redis://:{SECRET}@store/0?socket_timeout=soon", "socket_timeout"),
        (f"redis://:{SECRET}@store/0?db=first", "db"),
        (f"redis://:{SECRET}@store/0?decode_responses=no", "option 'decode_responses' cannot be set here"),
        (f"redis://:{SECRET}@store/0?protocol=2", "option 'protocol' cannot be set here"),
        (f"redis://:{SECRET}@store/0?retry_on_timeout=yes", "option 'retry_on_timeout' cannot be set here"),
        (f"redis://:{SECRET}@store/0?retry_on_error=x", "option 'retry_on_error' cannot be set here"),
        (f"unix://:{SECRET}@", "names no socket"),
        (f"redis://:{SECRET}/{SECRET}@store", "percent-encode the password"),
        (f"redis://:1234#{SECRET}@store/0", "percent-encode the password"),
        (f"redis://store/0?password=a@{SECRET}", "percent-encode the password"),
        (
            f"redis://store:6379/0&password={SECRET}",
            "redis://store:6379/0: only options may follow, which begin with ?",
        ),
        (
            f"redis://store:6379/0;password={SECRET}",
            "redis://store:6379/0: only options may follow, which begin with ?",
        ),
        (f"redis://store:6379,password={SECRET}", "redis://store:6379: only options may follow, which begin with ?"),
        (f"redis://store&pw={SECRET}/0?db=1", "redis://store: only options may follow, which begin with ?"),
        (f"redis://password={SECRET}", "redis://password: only options may follow, which begin with ?"),
        (f"redis://store:{SECRET}", "redis://store:***: the port must be a number from 1 to 65535"),
        (f"redis://store:{SECRET}/0", "redis://store:***/0: the port must be a number from 1 to 65535"),
        (f"unix:///run/s.sock&password={SECRET}", "unix:///run/s.sock: only options may follow, which begin with ?"),
        (f"unix:///run/s.sock;db=1;password={SECRET}", "in the path of a socket & is %26, ; is %3B, and , is %2C"),
        (f"unix://&password={SECRET}", "unix://: only options may follow"),
        (f"redis+sentinel://:{SECRET}@a,b", "redis+sentinel://a,b: names no service; must be like redis+sentinel://"),
        (f"redis+sentinel://:{SECRET}@a,b/", "names no service"),
        (f"redis+sentinel://:{SECRET}@a//2", "names no service"),
        (f"redis+sentinel://:{SECRET}@a/my~ports", "service 'my~ports' is not of letters, digits and ._- alone"),
        (f"redis+sentinel://:{SECRET}@a/ports/x", "database 'x' is not a number"),
        (f"redis+sentinel://:{SECRET}@a,,b/ports", "a host is empty; must be like redis+sentinel://host:26379,host"),
        (f"redis+sentinel://:{SECRET}@/ports", "a host is empty"),
        (f"redis+sentinel://:{SECRET}@:26379/ports", "a host is empty"),
        (f"redis+sentinel://:{SECRET}@a,b:70000/ports", "the port must be a number from 1 to 65535"),
        (f"redis+sentinel://a,b:{SECRET}/ports", "redis+sentinel://a,b:***/ports: the port must be a number"),
        (f"redis+sentinel://:{SECRET}@a,b:0/ports", "port 0 is not in 1-65535"),
        (f"redis+sentinel://:{SECRET}@a,[::1/ports", "Invalid IPv6 URL"),
        (f"redis+sentinel://a,b,password={SECRET}/ports", "redis+sentinel://a,b,password: only options may follow"),
        (f"redis+sentinel://a/ports&password={SECRET}", "redis+sentinel://a/ports: only options may follow"),
        (f"redis+sentinel://:{SECRET}/{SECRET}@a/ports", "redis+sentinel://a/ports: percent-encode the password"),
        (f"redis+sentinel://a/ports?sentinel_password=a@{SECRET}", "redis+sentinel://...: percent-encode the password"),
        (f"redis+sentinel://:{SECRET}@a/ports?port=1", "option 'port' cannot be set here"),
        (f"redis+sentinel://:{SECRET}@a/ports?protocol=2", "option 'protocol' cannot be set here"),
        (f"redis+cluster://:{SECRET}@a,b/1", "redis+cluster://a,b/1: database 1 is not 0, all that a cluster has"),
        (f"redis+cluster://:{SECRET}@a,b?db=2", "database 2 is not 0, all that a cluster has"),
        (f"redis+cluster://:{SECRET}@a/ports", "database 'ports' is not a number"),
        (f"redis+cluster://:{SECRET}@", "a host is empty; must be like redis+cluster://host:6379,host:6379"),
        (f"redis+cluster://:{SECRET}@a?host=b", "option 'host' cannot be set here"),
        (f"unix+cluster://:{SECRET}@/run/s.sock", "must be like redis+cluster://host:6379,host:6379, or the same with"),
        (f"unix+sentinel://:{SECRET}@/run/s.sock", "must be like redis+sentinel://"),
    ],
)
def test_refused(url: str, part: str) -> None:
    """A URL that cannot work is refused before anything is contacted: names the key and the fault, not the password."""
    with pytest.raises(ConfigurationError) as caught:
        target(url, 2.5)
    message = str(caught.value)
    assert message.startswith("url: ")
    assert part in message
    assert SECRET not in message


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://store:6379/0", "redis://store:6379/0"),
        (f"redis://:{SECRET}@store:6379/0", "redis://store:6379/0"),
        (f"redis://me:{SECRET}@store/0?password={SECRET}", "redis://store/0"),
        (f"redis://me:{SECRET}@store/0#{SECRET}", "redis://store/0"),
        (f"redis://me:@{SECRET}@store/0", "redis://store/0"),
        (f"unix://me:{SECRET}@/run/s.sock?db=1", "unix:///run/s.sock"),
        (f"redis://me:{SECRET}/@store/0", "redis://store/0"),
        (f"redis://me:{SECRET}?{SECRET}@store/0", "redis://..."),
        (f"redis://me:{SECRET}&x={SECRET}@[::1]:7000/0&password={SECRET}", "redis://[::1]:7000/0"),
        ("redis://[fe80::1%25eth0]/0", "redis://[fe80::1%25eth0]/0"),
        (f"redis://store:{SECRET}/0", "redis://store:***/0"),
        (f"unix:///run/s.sock;password={SECRET}", "unix:///run/s.sock"),
        ("unix:///run/a&b;c,d.sock", "unix:///run/a&b;c,d.sock"),
        (f"redis+sentinel://me:{SECRET}@a:1,[::1]:2/ports/0?password={SECRET}", "redis+sentinel://a:1,[::1]:2/ports/0"),
        (f"redis+sentinel://a:{SECRET},b:{SECRET}/ports", "redis+sentinel://a:***,b:***/ports"),
        (f"redis+cluster://a:1,b;password={SECRET}", "redis+cluster://a:1,b"),
    ],
)
def test_place(url: str, expected: str) -> None:
    """What is shown of a URL is where the store is: no user, no password, whatever the password contains."""
    assert expected == place(url)


@pytest.mark.parametrize("make", [connect, connect_async])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://store?foo=bar", "url: redis://store: unknown parameter 'foo'"),
        ("unix:///s.sock?host=h", "url: unix:///s.sock: unknown parameter 'host'"),
        ("redis://store?%1b[31m=1", r"url: redis://store: unknown parameter '\x1b[31m'"),
        (
            "redis://store?ssl_cert_reqs=none",
            "url: redis://store: unknown parameter 'ssl_cert_reqs'; it is for rediss://",
        ),
        ("redis+sentinel://a/ports?foo=bar", "url: redis+sentinel://a/ports: unknown parameter 'foo'"),
        (
            "redis+cluster://a?sentinel_password=x",
            "url: redis+cluster://a: unknown parameter 'sentinel_password'",
        ),
        (
            "redis+cluster://a?ssl_ca_certs=x",
            "url: redis+cluster://a: unknown parameter 'ssl_ca_certs'; it is for rediss://",
        ),
        ("rediss://store?ssl_cert_reqs=x", "url: rediss://store: Invalid SSL Certificate Requirements Flag: x"),
    ],
)
def test_unknown_parameter(make: Any, url: str, told: str) -> None:
    """An option that a connection does not have, or a value that it does not take, is told in terms of the URL."""
    with pytest.raises(ConfigurationError) as caught:
        make(url)
    assert told == str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        f"sqlite:///x.db&password={SECRET}",
        f"sqlite:////x.db;password={SECRET}/",
        f"sqlite:///x.db,pw={SECRET}",
        f"sqlite:///x.db?password={SECRET}",
        f"sqlite:///password={SECRET}",
        f"sqlite://password={SECRET}",
    ],
)
def test_password_for_a_file(url: str) -> None:
    """A file has no password, and one that is given to it all the same becomes no part of its name."""
    with pytest.raises(ConfigurationError) as caught:
        file_of(url)
    message = str(caught.value)
    assert message.startswith("url: must be like sqlite:///")
    assert message.endswith("=***'")
    assert SECRET not in message
