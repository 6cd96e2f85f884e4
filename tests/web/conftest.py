"""The page: in this process over a store in memory, and as a command."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

import pytest
from cli.conftest import Command, bare, command, main
from starlette.testclient import TestClient

from clusterports import PortAllocator, PortRange
from clusterports.web import application

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator

    import servers

    from clusterports.abc import Backend

    Serve = Callable[..., tuple[subprocess.Popen[str], str]]

__all__ = ["PATIENCE", "TOKEN", "Site", "bare", "command", "main"]

PATIENCE = 30
"""Seconds; only a test that fails waits for so long."""

TOKEN = "correct-horse-battery"

RANGES = (
    PortRange("backup", 10809, 10816),
    PortRange("spare", 20000, 20003, exclude=((20003, 20003),)),
    PortRange("gateway", 30000, 30003, scope="cluster"),
)


class Site(NamedTuple):
    """The page, who takes ports, and the store of both."""

    client: TestClient
    ports: PortAllocator
    backend: Backend


@contextmanager
def site(backend: Backend, token: str | None = None, **options: object) -> Iterator[Site]:
    """The page over this store, as a browser on this machine asks for it."""
    with PortAllocator(backend=backend, host="h", ranges=RANGES, probe=False, instance="i") as ports:
        given = {"allocator": ports, "token": token, "every": 3600.0} | options
        page, _ = application(backend, RANGES, **given)  # type: ignore[arg-type]
        with TestClient(page, "http://127.0.0.1:9810", follow_redirects=False) as client:
            yield Site(client, ports, backend)


@pytest.fixture
def page(memory: servers.MemoryStore) -> Iterator[Site]:
    """Without a token."""
    with site(memory.connect()) as made:
        yield made


@pytest.fixture
def guarded(memory: servers.MemoryStore) -> Iterator[Site]:
    """With a token."""
    with site(memory.connect(), TOKEN) as made:
        yield made


@pytest.fixture
def serve() -> Serve:
    """``clusterports serve`` on a free port of the loopback: the process, and where it serves."""

    def start(command: Command, *arguments: str, **environment: str) -> tuple[subprocess.Popen[str], str]:
        process = command.start("serve", "--listen", "127.0.0.1:0", *arguments, **environment)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving http://127.0.0.1:"), process.communicate(timeout=PATIENCE)
        return process, said.split()[1].removesuffix("/")

    return start
