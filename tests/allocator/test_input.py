"""What is refused before anything is sent: the class of the error, and that it names key, value and bound."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from allocator.kit import BACKUP, result

from clusterports import (
    AsyncPortAllocator,
    ClusterPortsError,
    ConfigurationError,
    ImpossibleRequest,
    PortAllocator,
    PortRange,
    Settings,
)

if TYPE_CHECKING:
    from pathlib import Path

    from allocator.kit import Kit

ASKS: list[tuple[dict[str, Any], type[ClusterPortsError], list[str]]] = [
    ({"range": "backups"}, ConfigurationError, ["range", "'backups'", "backup, many", "did you mean 'backup'?"]),
    ({"range": "b\x1b[0m"}, ConfigurationError, ["range", r"'b\x1b[0m'", "backup, many"]),
    ({"range": ""}, ConfigurationError, ["range", "''", "backup, many"]),
    ({"range": None}, ConfigurationError, ["port", "when range is None"]),
    ({"range": None, "port": 0}, ConfigurationError, ["port", "1 to 65535", "got 0"]),
    ({"range": None, "port": 65536}, ConfigurationError, ["port", "1 to 65535", "got 65536"]),
    ({"count": 2, "contiguous": 1}, ConfigurationError, ["contiguous", "True or False", "got 1"]),
    ({"align": 0}, ConfigurationError, ["align", "at least 1", "got 0"]),
    ({"align": 2, "count": 2}, ConfigurationError, ["align", "contiguous", "got 2"]),
    ({"align": 100}, ImpossibleRequest, ["align", "100", "'backup' (10809-10810)"]),
    ({"count": 2, "contiguous": True, "align": 2}, ImpossibleRequest, ["2 contiguous", "'backup' (10809-10810)"]),
    ({"wait": -1}, ConfigurationError, ["wait", "from 0 to 31536000", "got -1"]),
    ({"wait": float("nan")}, ConfigurationError, ["wait", "from 0 to 31536000", "got nan"]),
    ({"wait": None}, ConfigurationError, ["wait", "from 0 to 31536000", "got None"]),
    ({"wait": "5"}, ConfigurationError, ["wait", "from 0 to 31536000", "got '5'"]),
    ({"port": 10808}, ImpossibleRequest, ["port: 10808", "'backup' (10809-10810)"]),
    ({"port": 10811}, ImpossibleRequest, ["port: 10811", "'backup' (10809-10810)"]),
    ({"port": 0}, ImpossibleRequest, ["port: 0", "'backup' (10809-10810)"]),
    ({"port": -1}, ImpossibleRequest, ["port: -1", "'backup' (10809-10810)"]),
    ({"port": 65536}, ImpossibleRequest, ["port: 65536", "'backup' (10809-10810)"]),
    ({"port": "10809"}, ConfigurationError, ["port", "'10809'", "10809 to 10810"]),
    ({"port": 10809.0}, ConfigurationError, ["port", "10809.0", "10809 to 10810"]),
    ({"port": True}, ConfigurationError, ["port", "True", "10809 to 10810"]),
    ({"port": 10809, "count": 2}, ConfigurationError, ["count", "must be 1", "got 2"]),
    ({"count": 0}, ConfigurationError, ["count", "at least 1", "got 0"]),
    ({"count": -1}, ConfigurationError, ["count", "at least 1", "got -1"]),
    ({"count": 1.0}, ConfigurationError, ["count", "at least 1", "got 1.0"]),
    ({"count": True}, ConfigurationError, ["count", "at least 1", "got True"]),
    ({"count": "1"}, ConfigurationError, ["count", "at least 1", "got '1'"]),
    ({"count": 3}, ImpossibleRequest, ["count: 3", "'backup' (10809-10810)", "(2)"]),
    ({"protocol": "sctp"}, ConfigurationError, ["protocol", "tcp, udp", "'sctp'"]),
    ({"protocol": "TCP"}, ConfigurationError, ["protocol", "tcp, udp", "'TCP'"]),
    ({"protocol": None}, ConfigurationError, ["protocol", "tcp, udp", "None"]),
    ({"host": ""}, ConfigurationError, ["host", "1 to 255 bytes", "''"]),
    ({"host": " "}, ConfigurationError, ["host", "1 to 255 bytes", "' '"]),
    ({"host": "a\nb"}, ConfigurationError, ["host", "control characters", r"'a\nb'"]),
    ({"host": "a\0"}, ConfigurationError, ["host", "control characters", r"'a\x00'"]),
    ({"host": "é" * 128}, ConfigurationError, ["host", "1 to 255 bytes", "éé"]),
    ({"host": "\ud800"}, ConfigurationError, ["host", "UTF-8", r"'\ud800'"]),
    ({"host": 7}, ConfigurationError, ["host", "got 7"]),
    ({"owner": "é" * 5121}, ConfigurationError, ["owner", "at most 10240 bytes", "10242 bytes"]),
    ({"owner": None}, ConfigurationError, ["owner", "None"]),
    ({"owner": 7}, ConfigurationError, ["owner", "got 7"]),
    ({"labels": {"": "x"}}, ConfigurationError, ["label key", "''"]),
    ({"labels": {"k": 7}}, ConfigurationError, ["label 'k'", "got 7"]),
    ({"labels": {7: "v"}}, ConfigurationError, ["label key", "got 7"]),
    ({"labels": {str(n): "" for n in range(65)}}, ConfigurationError, ["labels", "at most 64", "got 65"]),
]


def name(value: object) -> str:
    return ascii(value)[:40] if isinstance(value, dict) else ""


@pytest.mark.parametrize("lease", [False, True], ids=["first call", "later"])
@pytest.mark.parametrize(("ask", "error", "parts"), ASKS, ids=name)
async def test_acquire(
    memory_kit: Kit, ask: dict[str, Any], error: type[ClusterPortsError], parts: list[str], lease: bool
) -> None:
    """An ask that can never be met is refused, whether or not the store is known already; nothing is written."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky, ranges=[BACKUP, PortRange("many", 20000, 29999)])
    if lease:
        await result((await result(ports.acquire("backup"))).release())
    before = list(flaky.calls)
    with pytest.raises(ClusterPortsError) as caught:
        await result(ports.acquire(**{"range": "backup", **ask}))
    assert error is type(caught.value)
    message = str(caught.value)
    assert [] == [part for part in parts if part not in message], message
    assert message.isprintable()
    assert before == flaky.calls


MAKES: list[tuple[dict[str, Any], list[str]]] = [
    ({"ttl": 0}, ["ttl", "0.1 to 3600", "got 0"]),
    ({"probe": "on"}, ["probe", '"auto", False or a function', "got 'on'"]),
    ({"probe": True}, ["probe", '"auto", False or a function', "got True"]),
    ({"ttl": -1}, ["ttl", "0.1 to 3600", "got -1"]),
    ({"ttl": 0.05}, ["ttl", "0.1 to 3600", "got 0.05"]),
    ({"ttl": 3601}, ["ttl", "0.1 to 3600", "got 3601"]),
    ({"ttl": float("nan")}, ["ttl", "0.1 to 3600", "got nan"]),
    ({"ttl": float("inf")}, ["ttl", "0.1 to 3600", "got inf"]),
    ({"ttl": "soon"}, ["ttl", "0.1 to 3600", "got 'soon'"]),
    ({"ttl": True}, ["ttl", "0.1 to 3600", "got True"]),
    ({"host": ""}, ["host", "1 to 255 bytes", "''"]),
    ({"host": "a\x1b[0m"}, ["host", "control characters", r"'a\x1b[0m'"]),
    ({"instance": ""}, ["instance", "1 to 255 bytes", "''"]),
    ({"instance": "x" * 256}, ["instance", "1 to 255 bytes", "xxx"]),
    ({"url": ""}, ["url", "redis://host", "''"]),
    ({"url": "store:6379"}, ["url", "redis://host", "'store:6379'"]),
    ({"url": "redis://a b"}, ["url", "redis://host", "'redis://a b'"]),
    ({"url": "redsi://store"}, ["url", "'redsi'", "must be one of memory, redis", "did you mean 'redis'?"]),
    ({"url": "http://store"}, ["url", "'http'", "must be one of memory, redis"]),
    ({"url": "redis://:s3cr3t@store:0"}, ["url", "redis://store:0", "1-65535"]),
    ({"url": "redis://:s3cr3t@store/zero"}, ["url", "redis://store/zero", "not a number"]),
    ({"url": "redis://:s3cr3t@store?tmeout=1"}, ["url", "redis://store", "tmeout"]),
    ({"url": "unix://"}, ["url", "unix:///run/redis/redis.sock"]),
    ({"url": "memory://name/path"}, ["url", "memory://name", "memory://name/path"]),
    ({"url": "memory://", "client": object()}, ["client", "object"]),
    ({}, ["url", "no store is configured", "CLUSTERPORTS_URL"]),
    ({"strict": "perhaps"}, ["strict", "true or false", "'perhaps'"]),
]


@pytest.mark.parametrize("kind", [PortAllocator, AsyncPortAllocator])
@pytest.mark.parametrize(("arguments", "parts"), MAKES, ids=name)
def test_allocator(kind: Any, arguments: dict[str, Any], parts: list[str]) -> None:
    """An allocator that can never work is not made; the error names the key, the value and the bound, no password."""
    with pytest.raises(ConfigurationError) as caught:
        kind(**arguments)
    message = str(caught.value)
    assert [] == [part for part in parts if part not in message], message
    assert message.isprintable()
    assert "s3cr3t" not in message


@pytest.mark.parametrize(
    ("toml", "parts"),
    [
        ("ttl = 0", ["ttl", "clusterports.toml", "0.1 to 3600", "got 0"]),
        ("ttl = ", ["clusterports.toml", "TOML"]),
        ("[ranges.backup]\nfirst = 0", ["ranges.backup.first", "clusterports.toml", "1 to 65535", "got 0"]),
        ("[ranges.backup]\nfirst = 40000\nlast = 30000", ["ranges.backup.first", "30000", "40000"]),
        ("tll = 3", ["tll", "clusterports.toml", "did you mean ttl"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
@pytest.mark.parametrize("kind", [PortAllocator, AsyncPortAllocator])
def test_configuration_file(kind: Any, toml: str, parts: list[str], tmp_path: Path) -> None:
    """A fault in the configuration is told with the file, whatever the arguments are."""
    (tmp_path / "clusterports.toml").write_text(toml)
    with pytest.raises(ConfigurationError) as caught:
        kind("memory://")
    message = str(caught.value)
    assert [] == [part for part in parts if part not in message], message


def test_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is set outside counts where no argument says otherwise, and is told when it is wrong."""
    monkeypatch.setenv("CLUSTERPORTS_URL", "memory://")
    monkeypatch.setenv("CLUSTERPORTS_INSTANCE", "from-outside")
    with PortAllocator(host="a") as ports:
        assert ("from-outside", "a") == (ports.instance, ports.host)
    monkeypatch.setenv("CLUSTERPORTS_TTL", "never")
    with pytest.raises(ConfigurationError, match=r"ttl \(CLUSTERPORTS_TTL\).*0\.1 to 3600.*'never'"):
        PortAllocator()


@pytest.mark.parametrize("ask", [{"host": ""}, {"host": "a\n"}, {"range": "backups"}], ids=name)
async def test_status(memory_kit: Kit, ask: dict[str, Any]) -> None:
    """A look at what cannot exist is refused too."""
    flaky = memory_kit.flaky()
    ports = memory_kit.allocator(backend=flaky)
    with pytest.raises(ConfigurationError, match=next(iter(ask))):
        await result(ports.status(**ask))
    assert [] == flaky.calls


@pytest.mark.parametrize("kind", [PortAllocator, AsyncPortAllocator])
@pytest.mark.parametrize(
    ("url", "told"),
    [
        ("redis://store:99999", "redis://store:99999: the port must be a number"),
        ("http://store", "unknown scheme 'http'"),
        ("sqlite://", "must be like sqlite:///"),
    ],
)
def test_where_a_wrong_url_was_set(kind: Any, url: str, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What only the store finds wrong with its URL is told with the place that set it, unless that is the call."""
    monkeypatch.setenv("CLUSTERPORTS_URL", url)
    with pytest.raises(ConfigurationError) as caught:
        kind()
    assert str(caught.value).startswith(f"url (CLUSTERPORTS_URL): {told}")
    with pytest.raises(ConfigurationError) as caught:
        kind(url)
    assert str(caught.value).startswith(f"url: {told}")


def test_settings_and_arguments() -> None:
    """Settings can be handed over; an argument beside them counts more."""
    settings = Settings(url="memory://", host="a", instance="manager", ttl=7)
    with PortAllocator(settings=settings, host="b") as ports:
        assert ("b", "manager", 7.0) == (ports.host, ports.instance, ports.ttl)
    with pytest.raises(ConfigurationError, match="ttl"):
        PortAllocator(settings=settings, ttl=0)
