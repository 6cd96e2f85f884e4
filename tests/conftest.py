"""Fixtures that all tests share: ``store``, one test for each store; and each store by its name."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, NoReturn

import pytest
import servers
from hypothesis import Phase, settings

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

CI = os.environ.get("CI") == "true"

settings.register_profile(
    "clusterports",
    derandomize=CI,
    max_examples=100 if CI else 50,
    stateful_step_count=50,
    phases=[Phase.explicit, Phase.generate, Phase.shrink],
    deadline=None,
    database=None,
)
settings.load_profile("clusterports")


def missing(reason: object) -> NoReturn:
    """A server that is not here: no reason to stop a developer, but CI must not pass without it."""
    if CI:
        pytest.fail(str(reason))
    pytest.skip(str(reason))


def _running(name: str, find: Callable[[], str]) -> Iterator[servers.ServerStore]:
    try:
        binary = find()
    except servers.Missing as exc:
        missing(exc)
    with servers.running(binary) as url:
        store = servers.ServerStore(name, url)
        yield store
        store.client.close()


@pytest.fixture(scope="session")
def _valkey() -> Iterator[servers.ServerStore]:
    yield from _running("valkey", servers.find_valkey)


@pytest.fixture(scope="session")
def _redis7() -> Iterator[servers.ServerStore]:
    yield from _running("redis7", servers.find_redis)


@pytest.fixture
def memory() -> servers.MemoryStore:
    return servers.MemoryStore()


@pytest.fixture
def sqlite(tmp_path: Path) -> servers.SqliteStore:
    return servers.SqliteStore(tmp_path)


@pytest.fixture
def fake_redis() -> servers.FakeRedisStore:
    return servers.FakeRedisStore()


@pytest.fixture
def valkey(_valkey: servers.ServerStore) -> servers.ServerStore:
    _valkey.flush()
    return _valkey


@pytest.fixture
def redis7(_redis7: servers.ServerStore) -> servers.ServerStore:
    _redis7.flush()
    return _redis7


@pytest.fixture(params=["fakeredis", "valkey", "redis7"])
def redis_store(request: pytest.FixtureRequest) -> servers.RedisStore:
    """Each store that speaks Redis, empty."""
    return _store(request)  # type: ignore[no-any-return]


@pytest.fixture(params=["memory", "sqlite", "fakeredis", "valkey", "redis7"])
def store(request: pytest.FixtureRequest) -> servers.Store:
    """Each store, empty."""
    return _store(request)  # type: ignore[no-any-return]


@pytest.fixture(params=["valkey", "redis7"])
def server(request: pytest.FixtureRequest) -> servers.ServerStore:
    """Each real server, empty."""
    return _store(request)  # type: ignore[no-any-return]


def _store(request: pytest.FixtureRequest) -> Any:
    return request.getfixturevalue("fake_redis" if request.param == "fakeredis" else request.param)
