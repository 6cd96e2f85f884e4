"""Sockets handed to a command by the LISTEN_FDS protocol: to one that checks it, and to real NBD servers."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clusterports._listenfd import hand_over, wrapped
from clusterports.errors import PortBusy
from clusterports.probe import bound

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

# prints what a command sees of the protocol, and which descriptors above stderr it has
LOOK = """
import json, os, signal, socket, sys
fds = sorted(int(fd) for fd in os.listdir("/proc/self/fd"))
fds = [fd for fd in fds if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
sockets = [socket.socket(fileno=fd) for fd in range(3, 3 + int(os.environ["LISTEN_FDS"]))]
print(json.dumps({
    "environment": dict(os.environ),
    "pid": os.getpid(),
    "argv": sys.argv[1:],
    "fds": fds,
    "ports": [s.getsockname()[1] for s in sockets],
    "kinds": [s.type for s in sockets],
    "listening": [bool(s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) for s in sockets],
}))
"""


@pytest.fixture
def sockets() -> Iterator[list[socket.socket]]:
    """A TCP and a UDP socket."""
    made: list[socket.socket] = []
    while len(made) < 2:
        try:
            made.append(bound(random.randint(20000, 30000), ("tcp", "udp")[len(made)]))
        except PortBusy:
            continue
    yield made
    for sock in made:
        sock.close()


def look(
    sockets: Sequence[socket.socket], *argv: str, names: str = "", environment: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """What the command saw, and the pid under which it was started."""
    fds = [sock.fileno() for sock in sockets]
    command = wrapped([sys.executable, "-I", "-c", LOOK, *argv], fds, names)
    with subprocess.Popen(command, pass_fds=fds, env=environment, stdout=subprocess.PIPE) as process:
        output, _ = process.communicate(timeout=60)
    assert 0 == process.returncode
    return {"started": process.pid, **json.loads(output)}


def test_one_socket(sockets: list[socket.socket]) -> None:
    """The socket is descriptor 3 and the only one, and LISTEN_PID is the pid that the starter knows."""
    seen = look(sockets[:1])
    assert seen["started"] == seen["pid"]
    assert (str(seen["pid"]), "1") == (seen["environment"]["LISTEN_PID"], seen["environment"]["LISTEN_FDS"])
    assert [3] == seen["fds"]
    assert [sockets[0].getsockname()[1]] == seen["ports"]
    assert [True] == seen["listening"]
    assert "LISTEN_FDNAMES" not in seen["environment"]


def test_several_sockets(sockets: list[socket.socket]) -> None:
    """Several become 3, 4, ... in their order."""
    sockets.reverse()
    seen = look(sockets, names="control:data")
    assert [3, 4] == seen["fds"]
    assert [sock.getsockname()[1] for sock in sockets] == seen["ports"]
    assert [socket.SOCK_DGRAM, socket.SOCK_STREAM] == seen["kinds"]
    assert ("2", "control:data") == (seen["environment"]["LISTEN_FDS"], seen["environment"]["LISTEN_FDNAMES"])


def test_environment_and_arguments(sockets: list[socket.socket]) -> None:
    """The command gets its environment and arguments as they are, but for what another activation left there."""
    odd = {"CLUSTERPORTS_PORT": "1", "not-an-identifier": "x y", "bytes": os.fsdecode(b"\xff\n"), "LC_ALL": "C.UTF-8"}
    stale = {"LISTEN_PID": "1", "LISTEN_FDS": "7", "LISTEN_FDNAMES": "old", "LISTEN_PIDFDID": "3"}
    argv = ["", "two words", "$HOME", "--", os.fsdecode(b"\xff")]
    seen = look(sockets[:1], *argv, environment={**odd, **stale})
    assert argv == seen["argv"]
    assert {**odd, "LISTEN_PID": str(seen["pid"]), "LISTEN_FDS": "1"} == seen["environment"]


def test_order_that_crosses(sockets: list[socket.socket]) -> None:
    """Sockets that lie on each other's places, 4 and 3, are exchanged."""
    # a process of its own, in which the places are free to be used
    arrange = (
        "import os, sys; a, b = map(int, sys.argv[1:3]); b = os.dup(b); a = os.dup(a);"
        "os.closerange(3, min(a, b)); os.dup2(a, 10); os.dup2(b, 11); os.dup2(10, 4); os.dup2(11, 3);"
        "os.closerange(5, 64); os.execv(sys.argv[3], sys.argv[3:])"
    )
    fds = [sock.fileno() for sock in sockets]
    inner = wrapped([sys.executable, "-I", "-c", LOOK], [4, 3])
    command = [sys.executable, "-I", "-c", arrange, *map(str, fds), *inner]
    output = subprocess.run(command, pass_fds=fds, check=True, capture_output=True, timeout=60).stdout
    seen = json.loads(output)
    assert [sock.getsockname()[1] for sock in sockets] == seen["ports"]
    assert [3, 4] == seen["fds"]


def test_signals_are_as_they_were(sockets: list[socket.socket]) -> None:
    """The command ignores no signal because of the process that was there before it."""
    fds = [sockets[0].fileno()]
    command = ["sh", "-c", "grep ^SigIgn: /proc/self/status"]
    plain = subprocess.run(command, check=True, capture_output=True, timeout=60).stdout
    started = subprocess.run(wrapped(command, fds), pass_fds=fds, check=True, capture_output=True, timeout=60).stdout
    assert plain == started


def test_exit_by_signal(sockets: list[socket.socket]) -> None:
    """What the starter waits for is the command itself: a signal that ends it is seen as such."""
    fds = [sockets[0].fileno()]
    ended = subprocess.run(wrapped(["sh", "-c", "kill -INT $$"], fds), pass_fds=fds, check=False, timeout=60)
    assert -signal.SIGINT == ended.returncode


def test_command_that_cannot_be_executed(sockets: list[socket.socket], tmp_path: Path) -> None:
    """It ends as in a shell: 127 when there is no such command, 126 when it cannot be run, and a line that says so."""
    fds = [sockets[0].fileno()]
    for command, code in ((str(tmp_path / "none"), 127), (str(tmp_path), 126)):
        ended = subprocess.run(wrapped([command], fds), pass_fds=fds, check=False, capture_output=True, timeout=60)
        assert code == ended.returncode
        assert ended.stderr.startswith(command.encode() + b": ")
        assert 1 == ended.stderr.count(b"\n")


def test_hand_over_in_a_forked_child(sockets: list[socket.socket]) -> None:
    """A child that execs by itself, and was there before its socket, gets the same from hand_over."""
    ours, theirs = socket.socketpair()
    read, write = os.pipe()
    inherited = {fd for fd in (int(entry.name) for entry in Path("/dev/fd").iterdir()) if is_inheritable(fd)}
    pid = os.fork()
    if pid == 0:
        try:
            _, fds, _, _ = socket.recv_fds(theirs, 1, 1)
            os.dup2(write, 1)
            environment = os.environb.copy()
            hand_over(fds, environment)
            os.execve(sys.executable, [sys.executable, "-I", "-c", LOOK], environment)  # noqa: S606
        finally:
            os._exit(1)
    theirs.close()
    os.close(write)
    with ours:
        socket.send_fds(ours, [b"."], [sockets[0].fileno()])
    with os.fdopen(read, "rb") as output:
        seen = json.loads(output.read())
    assert 0 == os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    assert (pid, str(pid)) == (seen["pid"], seen["environment"]["LISTEN_PID"])
    assert sorted({3, *inherited} - {0, 1, 2}) == seen["fds"]
    assert [sockets[0].getsockname()[1]] == seen["ports"]


def is_inheritable(fd: int) -> bool:
    try:
        return os.get_inheritable(fd)
    except OSError:  # the one that listed the others
        return False


@contextmanager
def serving(command: Sequence[str], sock: socket.socket) -> Iterator[int]:
    """The server runs on the socket, which this process has no longer; its port."""
    number: int = sock.getsockname()[1]
    with subprocess.Popen(wrapped(command, [sock.fileno()]), pass_fds=[sock.fileno()]) as process:
        try:
            sock.close()
            yield number
        finally:
            process.terminate()
            process.wait(timeout=60)


SERVERS = {
    "qemu-nbd": ["qemu-nbd", "--persistent", "--read-only", "--format=raw", "{disk}"],
    "nbdkit": ["nbdkit", "--foreground", "--readonly", "file", "{disk}"],
}


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
@pytest.mark.parametrize("server", SERVERS)
def test_nbd_server(server: str, address: str, sockets: list[socket.socket], tmp_path: Path) -> None:
    """A real NBD server serves its disk on the socket, to a client that may come before it is up."""
    if shutil.which(server) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{server} is not installed")
    disk = tmp_path / "disk"
    with disk.open("wb") as file:
        file.truncate(3 << 20)
    command = [part.format(disk=disk) for part in SERVERS[server]]
    with serving(command, sockets[0]) as number, socket.create_connection((address, number), timeout=60) as client:
        assert 3 << 20 == nbd_size(client)


def nbd_size(client: socket.socket) -> int:
    """The size of the default export: fixed newstyle handshake and NBD_OPT_EXPORT_NAME of NBD's proto.md."""
    answers = client.makefile("rb")  # reads on until it has all: a socket with a timeout does not, MSG_WAITALL or not
    assert b"NBDMAGICIHAVEOPT" == answers.read(18)[:16]
    client.sendall((1).to_bytes(4, "big") + b"IHAVEOPT" + (1).to_bytes(4, "big") + (0).to_bytes(4, "big"))
    return int.from_bytes(answers.read(8), "big")
