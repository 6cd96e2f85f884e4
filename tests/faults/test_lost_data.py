"""Real servers that are stopped, killed, and come back with all, some or none of what they knew."""

from __future__ import annotations

import logging
import time
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest
import servers
from faults.control import Server, until

from clusterports import BackendError, BackendRecovering, LeaseLost, NotReplicated, PortAllocator, PortRange
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

TTL = 1.5
RANGE = PortRange("r", 20000, 20999, quarantine=1.0)
APPENDING = ("--appendonly", "yes", "--appendfsync", "always")

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.CRITICAL, "clusterports")


@contextmanager
def managers() -> Iterator[Callable[..., PortAllocator]]:
    """Makes allocators on one host, and ends them."""
    with ExitStack() as stack:

        def make(url: str, **arguments: Any) -> PortAllocator:
            settings: dict[str, Any] = {"host": "h", "ranges": [RANGE], "ttl": TTL, "probe": False} | arguments
            made = PortAllocator(url, **settings)
            stack.callback(made.detach)
            return made

        yield make


def held(server: Server) -> dict[int, int]:
    """Fences by number, as the server knows them."""
    with RedisBackend.connect(server.url) as backend:
        (view,) = backend.read(["host:h"])
    assert not isinstance(view, BackendError)
    return {port.number: port.fence for port in view.ports if port.state == "held"}


def fences(ports: Any) -> dict[int, int]:
    return {port.number: port.fence for port in ports}


def down(server: Server, seconds: float) -> None:
    """The silence is what is tested here, so it has to pass."""
    time.sleep(seconds)


def test_stopped_for_three_ttls(binary: str, tmp_path: Path) -> None:
    """A hundred holders keep their ports: they are warned at their deadline, and valid again soon after the outage."""
    lost: list[LeaseLost] = []
    warned: list[Any] = []
    again: dict[int, int] = {}
    ttl = 2 * TTL  # a hundred heartbeats in one process
    with Server(binary, tmp_path) as server, managers() as holders:
        made = [holders(server.url, ttl=ttl, on_lost=lost.append, on_jeopardy=warned.extend) for _ in range(100)]
        ports = [holder.acquire("r") for holder in made]
        server.pause()
        down(server, 3 * ttl)
        assert [False] * 100 == [port.valid for port in ports]
        server.resume()

        def all_again() -> bool:
            again.update(fences(port for port in ports if port.valid))
            return len(again) == 100

        until(all_again, what="each valid again")
        assert again == fences(ports) == fences(warned) == held(server)
        assert [] == lost


def test_killed_and_restarted_with_its_data(binary: str, tmp_path: Path) -> None:
    """The same for a server that was killed, and comes back with what it wrote down, after more than a TTL."""
    lost: list[LeaseLost] = []
    with Server(binary, tmp_path, *APPENDING) as server, managers() as holders:
        ports = [holders(server.url, on_lost=lost.append).acquire("r") for _ in range(20)]
        server.kill()
        down(server, 2 * TTL)
        server.start()
        until(lambda: all(port.valid for port in ports), what="all valid again")
        assert fences(ports) == held(server)
        assert [] == lost


@pytest.mark.parametrize("pause", [0.0, 2 * TTL], ids=["at-once", "after-two-ttls"])
def test_restarted_empty(binary: str, tmp_path: Path, pause: float) -> None:
    """Fifty ports are held by the same holders as before, none is issued again, and fences grow."""
    lost: list[LeaseLost] = []
    with Server(binary, tmp_path) as server, managers() as holders:
        made = [holders(server.url, on_lost=lost.append) for _ in range(5)]
        ports = [holder.acquire("r") for _ in range(10) for holder in made]
        before = fences(ports)
        server.kill()
        down(server, pause)
        server.start(empty=True)
        refused = 0
        for holder in made:  # each knew the host, and is the first or not
            try:
                holder.acquire("r")
            except BackendRecovering:
                refused += 1
        assert 5 == refused
        until(lambda: held(server) == before, what="all held again")
        until(lambda: all(port.valid for port in ports), what="all valid again")
        new = [holder.acquire("r", wait=3 * TTL) for holder in made]
        assert not fences(new).keys() & before.keys()
        assert min(fences(new).values()) > max(before.values())
        assert [] == lost


def test_restarted_from_an_older_snapshot(binary: str, tmp_path: Path) -> None:
    """Grants that the snapshot lacks are claimed, releases that it lacks are made again; leases that it lacks too."""
    with Server(binary, tmp_path) as server, managers() as holders:
        holder = holders(server.url)
        ports = [holder.acquire("r") for _ in range(4)]
        server.ask("SAVE")
        ports.pop(0).release()
        ports.append(holder.acquire("r", port=20500))
        younger = holders(server.url)
        ports.append(younger.acquire("r", port=20501))  # not what the holder has given back, which would tell it
        server.kill()
        server.start()
        assert 4 == len(held(server))
        until(lambda: held(server) == fences(ports), what="as the holders know it")
        until(lambda: all(port.valid for port in ports), what="all valid again")


def test_copy_of_a_write(binary: str, tmp_path: Path) -> None:
    """With min_replicas what the replica did not get in time is undone, and clearly refused; else it is given."""
    with Server(binary, tmp_path / "primary") as primary:
        address = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        with Server(binary, tmp_path / "replica", *address) as replica, managers() as holders:
            until(lambda: primary.ask("WAIT", 1, 100) == 1, what="the replica")
            holder = holders(f"{primary.url}?min_replicas=1")
            first = holder.acquire("r")
            assert fences([first]) == held(replica)
            replica.pause()
            with pytest.raises(NotReplicated, match="on 0 of the 1 replicas wanted") as no:
                holder.acquire("r")
            assert not no.value.unknown
            assert fences([first]) == held(primary)
            replica.resume()
            until(lambda: primary.ask("WAIT", 1, 100) == 1, what="the replica")
            second = holder.acquire("r")
            assert [20000, 20001] == [first.number, second.number]
            two = holders(f"{primary.url}?min_replicas=2")
            with pytest.raises(NotReplicated, match="on 1 of the 2 replicas wanted"):
                two.acquire("r")
            assert fences([first, second]) == held(primary)


def test_copy_is_lost_with_its_primary(binary: str, tmp_path: Path) -> None:
    """Without min_replicas a failover may lose a grant: the holder claims it from the new primary."""
    with Server(binary, tmp_path / "primary") as primary:
        address = ("--replicaof", f"127.0.0.1 {primary.port}", "--repl-diskless-sync-delay", "0")
        with Server(binary, tmp_path / "replica", *address) as replica, managers() as holders:
            until(lambda: primary.ask("WAIT", 1, 100) == 1, what="the replica")
            holder = holders(primary.url)
            ports = [holder.acquire("r")]
            until(lambda: held(replica) == fences(ports), what="the first")
            replica.ask("REPLICAOF", "NO", "ONE")  # one that is only stopped finds the rest in its socket
            ports.append(holder.acquire("r"))
            port = primary.port
            primary.kill()
            assert 1 == len(held(replica))
            replica.ask("CONFIG", "SET", "port", port)  # as where a name, or an address, moves to the new primary
            replica.port = port
            until(lambda: held(replica) == fences(ports), what="both on the new primary")
            until(lambda: all(port.valid for port in ports), what="all valid again")


def test_on_disk(tmp_path: Path, valkey: servers.ServerStore) -> None:
    """With fsync what is given is on the disk of the server; one that keeps nothing there cannot promise it."""
    with (
        Server(servers.find_valkey(), tmp_path / "a", "--appendonly", "yes", "--appendfsync", "everysec") as server,
        managers() as holders,
    ):
        port = holders(f"{server.url}?fsync=yes").acquire("r")
        server.kill()
        server.start()
        assert fences([port]) == held(server)
    with Server(servers.find_valkey(), tmp_path / "b") as server, managers() as holders:
        with pytest.raises(NotReplicated, match="numlocal is set but appendonly is disabled"):
            holders(f"{server.url}?fsync=yes").acquire("r")
        assert {} == held(server)


def test_on_disk_of_an_old_server(tmp_path: Path, redis7: servers.ServerStore) -> None:
    """A server that does not know WAITAOF is named as the reason, and nothing stays held."""
    with Server(servers.find_redis(), tmp_path) as server, managers() as holders:
        with pytest.raises(NotReplicated, match=r"does not know WAITAOF, which fsync needs: Redis 7\.2 or Valkey"):
            holders(f"{server.url}?fsync=yes").acquire("r")
        assert {} == held(server)


def test_a_script_flushed_with_copies(binary: str, tmp_path: Path) -> None:
    """Copies are waited for also where the server has to be taught the script first."""
    with Server(binary, tmp_path / "primary") as primary, managers() as holders:
        holder = holders(f"{primary.url}?min_replicas=1")
        with pytest.raises(NotReplicated):
            holder.acquire("r")
        primary.ask("SCRIPT", "FLUSH")
        with pytest.raises(NotReplicated):
            holder.acquire("r")
        assert {} == held(primary)
