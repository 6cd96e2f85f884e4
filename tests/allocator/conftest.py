"""Fixtures of the allocator's tests: ``kit`` makes allocators of both kinds on each store."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
from allocator.kit import Kit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import servers

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What is set on the machine that runs the tests has no part in them."""
    for name in list(os.environ):
        if name.upper().startswith("CLUSTERPORTS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=["sync", "async"])
def kind(request: pytest.FixtureRequest) -> str:
    """Each kind of allocator."""
    kind: str = request.param
    return kind


SQLITE_TOO = ("test_heartbeat", "test_life", "test_lost_data", "test_many", "test_probing", "test_races")
"""All would run on SQLite; these do, because there its processes, threads and time matter."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def wanted(item: pytest.Item) -> bool:
        chosen = getattr(item, "callspec", None)
        on_sqlite = item.path.parent == HERE and chosen is not None and chosen.params.get("store") == "sqlite"
        return not on_sqlite or item.path.stem in SQLITE_TOO

    items[:] = filter(wanted, items)


@pytest.fixture(params=["memory", "sqlite", "fakeredis", "valkey"])
def store(request: pytest.FixtureRequest) -> servers.Store:
    """Each kind of store, empty. The other server passes the suite and the histories, and what is in `server_kit`."""
    found: servers.Store = request.getfixturevalue("fake_redis" if request.param == "fakeredis" else request.param)
    return found


@pytest_asyncio.fixture
async def kit(kind: str, store: servers.Store) -> AsyncIterator[Kit]:
    """Both kinds on each store."""
    kit = Kit(kind, store)
    yield kit
    await kit.finish()


@pytest_asyncio.fixture
async def memory_kit(kind: str, memory: servers.MemoryStore) -> AsyncIterator[Kit]:
    """Both kinds in memory: for what has nothing to do with the store."""
    kit = Kit(kind, memory)
    yield kit
    await kit.finish()


@pytest_asyncio.fixture
async def server_kit(kind: str, server: servers.ServerStore) -> AsyncIterator[Kit]:
    """Both kinds on each real server."""
    kit = Kit(kind, server)
    yield kit
    await kit.finish()
