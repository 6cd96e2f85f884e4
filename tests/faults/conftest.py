"""Servers that a test may stop: one, one with Sentinels, a Cluster."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
import servers
from faults.control import Cluster, Sentinels

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["valkey", "redis7"])
def binary(request: pytest.FixtureRequest) -> str:
    """Each real server's program."""
    request.getfixturevalue(request.param)  # skips where there is none
    return servers.find_valkey() if request.param == "valkey" else servers.find_redis()


@pytest.fixture
def own_server(binary: str) -> Iterator[tuple[str, int]]:
    """Each real server, for this test alone: its URL and its process."""
    with servers.running(binary) as url:
        with redis.Redis.from_url(url) as client:
            pid: int = client.info("server")["process_id"]
        yield url, pid


@pytest.fixture(scope="module")
def _sentinels(_valkey: servers.ServerStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sentinels]:
    with Sentinels(servers.find_valkey(), tmp_path_factory.mktemp("sentinels")) as sentinels:
        yield sentinels


@pytest.fixture(scope="module")
def _cluster(_valkey: servers.ServerStore, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(servers.find_valkey(), tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def sentinels(_sentinels: Sentinels) -> Sentinels:
    """A primary with two replicas and three sentinels, all well."""
    _sentinels.healthy()
    return _sentinels


@pytest.fixture
def cluster(_cluster: Cluster) -> Cluster:
    """Three primaries with a replica each, all well."""
    _cluster.healthy()
    return _cluster
