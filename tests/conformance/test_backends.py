"""The shipped suite on each of our stores: on a virtual clock, and a part of them in real time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from clusterports.testing import AsyncBackendConformance, BackendConformance, RealClock

if TYPE_CHECKING:
    import servers

    from clusterports.abc import AsyncBackend, Backend
    from clusterports.testing import Clock


@pytest.fixture(autouse=True)
def _emulated(request: pytest.FixtureRequest) -> None:
    """Redis has cjson, by which events are made brief; the emulator has none, and keeps them whole."""
    if "test_event_is_brief" in request.node.name and "fakeredis" in request.node.name:
        pytest.skip("fakeredis has no cjson")


class TestSync(BackendConformance):
    @pytest.fixture
    def clock(self, store: servers.Store) -> Clock:
        return store.clock

    @pytest.fixture
    def backend(self, store: servers.Store) -> Backend:
        return store.connect(virtual=True)

    @pytest.fixture
    def backend2(self, store: servers.Store) -> Backend:
        return store.connect(virtual=True)


class TestAsync(AsyncBackendConformance):
    @pytest.fixture
    def clock(self, store: servers.Store) -> Clock:
        return store.clock

    @pytest.fixture
    def backend(self, store: servers.Store) -> AsyncBackend:
        return store.connect_async(virtual=True)

    @pytest.fixture
    def backend2(self, store: servers.Store) -> AsyncBackend:
        return store.connect_async(virtual=True)


class ShortClock(RealClock):
    ttl = 0.5


class TestRealTime(BackendConformance):
    """Nothing replaced: the scripts as they are shipped, on a real server's time."""

    @pytest.fixture
    def clock(self) -> Clock:
        return ShortClock()

    @pytest.fixture
    def backend(self, server: servers.ServerStore) -> Backend:
        return server.connect()

    @pytest.fixture
    def backend2(self, server: servers.ServerStore) -> Backend:
        return server.connect()


class TestOneObjectOnly(BackendConformance):
    """A store that one object has for itself: what needs two is skipped."""

    @pytest.fixture
    def clock(self, memory: servers.MemoryStore) -> Clock:
        return memory.clock

    @pytest.fixture
    def backend(self, memory: servers.MemoryStore) -> Backend:
        return memory.connect(virtual=True)
