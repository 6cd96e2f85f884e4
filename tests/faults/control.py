"""Servers that a test starts, stops, kills and brings back: one, one with replicas and Sentinels, or a Cluster.

All are bound to the loopback, keep their data in a folder that the test gives them, and end with the thread that
started them.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import redis
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Self

__all__ = ["SERVICE", "Cluster", "Sentinels", "Server", "free_port", "until"]

SERVICE: Final = "ports"
"""What the sentinels call the primary that they watch."""

_DOWN_AFTER: Final = 1000
"""Milliseconds of silence after which a server counts as dead, for sentinels and for the nodes of a cluster."""

_PACE: Final = ("info-period", 300, "publish-period", 200, "ping-period", 300, "ask-period", 100)
"""Milliseconds; a sentinel's own pace is for networks. One not heard of for five pings is not promoted."""


def free_port() -> int:
    """One that the kernel gives to nobody meanwhile, so that a server finds it free when it is started again."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    for port in random.sample(range(max(1024, low - 20000), low - 16000), 100):
        with socket.socket() as probe, suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free ports")


def until(met: Callable[[], Any], timeout: float = 15.0, what: str = "") -> Any:
    """What it gives, once that is true. A server that is away makes it false."""
    deadline = time.monotonic() + timeout
    while True:
        last: object = None
        try:
            if result := met():
                return result
        except redis.RedisError as error:
            last = error
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout:g} s: {what or met} ({last or 'no error'})")
        time.sleep(0.02)


class Server:
    """One server. ``arguments``: options, after the path of a configuration file if there is one.

    Without options for it, it keeps nothing on disk. A cluster's node gets a port for its bus too.
    """

    def __init__(self, binary: str, folder: Path, *arguments: str, port: int | None = None) -> None:
        self.folder = folder
        self._binary = binary
        self._arguments = arguments
        self._fixed = port is not None
        self.port = port or free_port()
        self.bus = free_port() if "--cluster-enabled" in arguments else 0
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"redis://{self.address}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    @property
    def log(self) -> str:
        return (self.folder / "server.log").read_text("utf-8", "replace")

    def client(self, **options: Any) -> redis.Redis:
        """A client that repeats nothing and waits for nothing long."""
        options = {"socket_timeout": 2.0, "decode_responses": True, **options}
        return redis.Redis("127.0.0.1", self.port, retry=Retry(NoBackoff(), 0), **options)

    def ask(self, *command: Any) -> Any:
        """Send one command, on a connection of its own."""
        with self.client() as client:
            return client.execute_command(*command)

    def start(self, *, empty: bool = False) -> None:
        """Return when it answers. ``empty``: without the data that it left on disk."""
        assert self._process is None, "runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        if empty:
            shutil.rmtree(self.folder / "appendonlydir", ignore_errors=True)
            for path in self.folder.glob("*.rdb"):
                path.unlink()
        for _ in range(5):
            self._spawn()
            if self._answers():
                return
            self.kill()
            if self._fixed:
                break
            # Somebody took the port between the look at it and the start of the server.
            self.port, self.bus = free_port(), free_port() if self.bus else 0
        raise RuntimeError(f"{self._binary} did not start: {self.log[-1000:]}")

    def pause(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """At once, as a machine that fails. A second time does nothing."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """In order: it writes down what it keeps on disk, if it keeps anything there."""
        self._end(signal.SIGTERM)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            self._process.wait()
            self._process = None

    def _spawn(self) -> None:
        head, options = list(self._arguments[:1]), list(self._arguments[1:])
        if head and head[0].startswith("--"):
            head, options = [], [*head, *options]
        ours = ["--bind", "127.0.0.1", "--port", str(self.port), "--dir", str(self.folder)]
        if "--sentinel" not in options:
            ours += ["--save", "", "--appendonly", "no"]
        if self.bus:
            ours += ["--cluster-port", str(self.bus)]
        # A preexec_fn would do the same, but is not safe beside threads.
        guard = [path, "--pdeathsig", "KILL", "--"] if (path := shutil.which("setpriv")) else []
        with (self.folder / "server.log").open("ab") as log:
            command = [*guard, self._binary, *head, *ours, *options]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def _answers(self) -> bool:
        assert self._process is not None
        deadline = time.monotonic() + 10
        while self._process.poll() is None and time.monotonic() < deadline:
            try:
                if self.ask("INFO", "server")["process_id"] == self.pid:
                    self._fixed = True  # others know it by this address from now on
                    return True
            except redis.BusyLoadingError:
                pass
            except redis.RedisError as error:
                if "NOAUTH" in str(error) or isinstance(error, redis.AuthenticationError):
                    return True
            time.sleep(0.02)
        return False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


class Sentinels:
    """One primary with two replicas, and three sentinels that agree by two. ``options``: for the three servers."""

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self._binary = binary
        self._folder = folder
        self._options = options
        self._stack = ExitStack()
        self.servers: list[Server] = []
        self.sentinels: list[Server] = []

    @property
    def url(self) -> str:
        return f"redis+sentinel://{','.join(sentinel.address for sentinel in self.sentinels)}/{SERVICE}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for index in range(3):
                self.servers.append(stack.enter_context(self._server(index)))
            for index in range(3):
                self.sentinels.append(stack.enter_context(self._sentinel(index)))
            for sentinel in self.sentinels:
                sentinel.ask("SENTINEL", "DEBUG", *_PACE)
            self.healthy()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def primary(self) -> Server:
        """The one that most sentinels name, and that knows of it."""
        return until(self._primary, what="a primary")  # type: ignore[no-any-return]

    def failover(self) -> Server:
        """As an operator orders it, with both sides alive: the new primary."""
        self.healthy()
        before = self.primary()
        # A sentinel refuses for a while after another has done it.
        until(lambda: any(self._ordered(sentinel) for sentinel in self.sentinels), 30, "a sentinel that obeys")
        return until(lambda: (now := self._primary()) is not before and now, 30, "another primary")  # type: ignore[no-any-return]

    def healthy(self, timeout: float = 30.0) -> None:
        """Wait until a primary has two replicas that follow it, and all sentinels know each other and them."""
        until(self._healthy, timeout, "a primary with two replicas")

    def _server(self, index: int) -> Server:
        folder = self._folder / f"server-{index}"
        folder.mkdir(parents=True)
        # Sentinel writes the roles into the file, so that a server that comes back has its last one.
        file = folder / "server.conf"
        file.write_text(f"replicaof 127.0.0.1 {self.servers[0].port}\n" if index else "")
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1", "--repl-timeout", "5")
        return Server(self._binary, folder, str(file), *quick, *self._options)

    def _sentinel(self, index: int) -> Server:
        folder = self._folder / f"sentinel-{index}"
        folder.mkdir(parents=True)
        file = folder / "sentinel.conf"
        file.write_text(
            f"sentinel monitor {SERVICE} 127.0.0.1 {self.servers[0].port} 2\n"
            f"sentinel down-after-milliseconds {SERVICE} {_DOWN_AFTER}\n"
            f"sentinel failover-timeout {SERVICE} 3000\n"
        )
        return Server(self._binary, folder, str(file), "--sentinel")

    def _ordered(self, sentinel: Server) -> bool:
        try:
            return bool(sentinel.ask("SENTINEL", "FAILOVER", SERVICE))
        except redis.ResponseError:  # NOGOODSLAVE, INPROG
            return False

    def _primary(self) -> Server | None:
        votes = []
        for sentinel in self.sentinels:
            with suppress(redis.ConnectionError, redis.TimeoutError):
                votes.append(int(sentinel.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)[1]))
        for server in self.servers:
            if votes.count(server.port) >= 2 and server.ask("ROLE")[0] == "master":
                return server
        return None

    def _healthy(self) -> bool:
        primary = self._primary()
        if primary is None or len([entry for entry in primary.ask("ROLE")[2] if _follows(primary, entry)]) != 2:
            return False
        return all(self._knows_all(sentinel, primary) for sentinel in self.sentinels)

    def _knows_all(self, sentinel: Server, primary: Server) -> bool:
        with sentinel.client() as client:
            state: Any = client.sentinel_master(SERVICE)
            replicas: Any = client.sentinel_slaves(SERVICE)
        follow = [
            replica
            for replica in replicas
            if replica["master-link-status"] == "ok" and replica["master-port"] == primary.port
        ]
        return (
            state["port"] == primary.port
            and state["flags"] == "master"
            and state["num-other-sentinels"] == 2
            and len(follow) == len(replicas) == 2
            and all(replica["flags"] == "slave" for replica in follow)
        )


def _follows(primary: Server, entry: Any) -> bool:
    """Whether the replica that ROLE lists is online; its offset is 0 until it is."""
    with primary.client() as client:
        info: Any = client.info("replication")
    found = [info[key] for key in info if key.startswith("slave") and isinstance(info[key], dict)]
    return any(int(entry[1]) == replica["port"] and replica["state"] == "online" for replica in found)


class Cluster:
    """Three primaries with a replica each. ``nodes``: the first three are primaries at the start."""

    slots: Final = 16384

    def __init__(self, binary: str, folder: Path, *options: str) -> None:
        self._stack = ExitStack()
        quick = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        own = ("--cluster-enabled", "yes", "--cluster-node-timeout", str(_DOWN_AFTER))
        self.nodes = [Server(binary, folder / f"node-{index}", *own, *quick, *options) for index in range(6)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{self.nodes[0].address},{self.nodes[1].address}"

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            for node in self.nodes:
                stack.enter_context(node)
            self._meet()
            self.healthy()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def slot(self, key: str) -> int:
        return int(key_slot(key.encode()))

    def owner(self, key: str) -> Server:
        """The node that serves the key, as most nodes see it."""
        slot = self.slot(key)
        return until(lambda: self._owner(slot), what=f"an owner of slot {slot}")  # type: ignore[no-any-return]

    def slots_of(self, node: Server) -> set[int]:
        """The slots that this node says it serves."""
        mine = [range(first, last + 1) for first, last, owner, *_ in _slots(node) if owner[1] == node.port]
        return {slot for span in mine for slot in span}

    def replica(self, primary: Server) -> Server:
        """The one that follows it."""
        name = primary.ask("CLUSTER", "MYID")
        return next(node for node in self.nodes if node is not primary and self._master_of(node) == name)

    def migrate(self, slot: int, to: Server) -> Iterator[str]:
        """The steps of an operator who moves a slot, each taken when it is asked for; yields what was done.

        "importing", "migrating", then "key" once for each key that was moved, and "moved".
        """
        source = until(lambda: self._owner(slot), what=f"an owner of slot {slot}")
        ours, theirs = source.ask("CLUSTER", "MYID"), to.ask("CLUSTER", "MYID")
        to.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", ours)
        yield "importing"
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", theirs)
        yield "migrating"
        while keys := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 1):
            source.ask("MIGRATE", "127.0.0.1", to.port, keys[0], 0, 5000)
            yield "key"
        for node in (to, source):  # the new owner first, so that somebody has it at any time
            node.ask("CLUSTER", "SETSLOT", slot, "NODE", theirs)
        yield "moved"

    def healthy(self, timeout: float = 30.0) -> None:
        """Wait until all nodes say so, and each of three primaries is followed by a replica."""
        until(self._healthy, timeout, "a cluster that is well")

    def _meet(self) -> None:
        primaries, replicas = self.nodes[:3], self.nodes[3:]
        share = self.slots // 3
        for index, node in enumerate(primaries):
            last = self.slots - 1 if index == 2 else (index + 1) * share - 1
            node.ask("CLUSTER", "ADDSLOTSRANGE", index * share, last)
        for index, node in enumerate(self.nodes):
            node.ask("CLUSTER", "SET-CONFIG-EPOCH", index + 1)
        for node in self.nodes:
            for other in self.nodes:
                if other is not node:
                    node.ask("CLUSTER", "MEET", "127.0.0.1", other.port, other.bus)
        for primary, replica in zip(primaries, replicas, strict=True):
            name = primary.ask("CLUSTER", "MYID")
            until(partial(replica.ask, "CLUSTER", "REPLICATE", name), what="REPLICATE")

    def _owner(self, slot: int) -> Server | None:
        seen: list[int] = []
        for node in self.nodes:
            with suppress(redis.ConnectionError, redis.TimeoutError):
                seen += [owner[1] for first, last, owner, *_ in _slots(node) if first <= slot <= last]
        for node in self.nodes:
            if seen.count(node.port) > len(seen) / 2:
                return node
        return None

    def _master_of(self, node: Server) -> str:
        lines = node.ask("CLUSTER NODES")
        myself: dict[str, Any] = next(line for line in lines.values() if "myself" in line["flags"])
        return str(myself["master_id"])

    def _healthy(self) -> bool:
        maps = []
        for node in self.nodes:
            if node.ask("CLUSTER INFO")["cluster_state"] != "ok":
                return False
            info: Any = node.ask("INFO", "replication")
            if info["role"] == "slave" and info["master_link_status"] != "up":
                return False
            maps.append({(first, last): [owner[1] for owner in owners] for first, last, *owners in _slots(node)})
        flat = [{span: (ports[0], *sorted(ports[1:])) for span, ports in found.items()} for found in maps]
        followed = all(len(ports) >= 2 for ports in flat[0].values())
        return followed and all(found == flat[0] for found in flat)


def _slots(node: Server) -> list[Any]:
    return node.ask("CLUSTER", "SLOTS")  # type: ignore[no-any-return]
