"""A server that a test may stop."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import redis
import servers

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(params=["valkey", "redis7"])
def own_server(request: pytest.FixtureRequest) -> Iterator[tuple[str, int]]:
    """Each real server, for this test alone: its URL and its process."""
    store: servers.ServerStore = request.getfixturevalue(request.param)  # skips where there is none
    find = servers.find_valkey if store.name == "valkey" else servers.find_redis
    with servers.running(find()) as url:
        with redis.Redis.from_url(url) as client:
            pid: int = client.info("server")["process_id"]
        yield url, pid
