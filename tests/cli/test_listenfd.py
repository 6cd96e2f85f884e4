"""``clusterports run --listen-fd``: the command inherits its port's socket, and nobody comes between."""

from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import servers

from clusterports.probe import FREE, bound, probe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cli.conftest import Command

PATIENCE = 30
SIZE = 4

# prints what a command sees of the protocol, and which descriptors above stderr it has
LOOK = """
import json, os, socket
fds = [int(fd) for fd in os.listdir("/proc/self/fd") if int(fd) > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
sockets = [socket.socket(fileno=fd) for fd in range(3, 3 + int(os.environ["LISTEN_FDS"]))]
print(json.dumps({
    "pid": os.environ["LISTEN_PID"] == str(os.getpid()),
    "fds": sorted(fds),
    "port": int(os.environ["CLUSTERPORTS_PORT"]),
    "sockets": [(s.getsockname()[1], s.type, s.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)) for s in sockets],
}))
"""


def unused(count: int) -> int:
    """The first of so many adjacent ports on which there is nothing, and which the kernel gives to nobody."""
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    while True:
        first = random.randint(max(1024, low - 16_000), low - count)
        if all(probe(number, "both") == FREE for number in range(first, first + count)):
            return first


@pytest.fixture
def first(command: Command) -> int:
    """The first port of range ``nbd``, which has four, on this machine."""
    first = unused(SIZE)
    command.environment |= {
        "CLUSTERPORTS_HOST": "localhost",
        "CLUSTERPORTS_RANGES__NBD__FIRST": str(first),
        "CLUSTERPORTS_RANGES__NBD__LAST": str(first + SIZE - 1),
    }
    return first


RUN = ("run", "--range", "nbd", "--listen-fd")
PYTHON = (sys.executable, "-I", "-S", "-c")


def held(store: servers.ServerStore) -> list[int]:
    with store.connect() as backend:
        found = servers.view(backend, "host:localhost").ports
    return [port.number for port in found if port.state == "held"]


@pytest.mark.parametrize(
    ("protocol", "sockets"),
    [
        ("tcp", [(socket.SOCK_STREAM, 1)]),
        ("udp", [(socket.SOCK_DGRAM, 0)]),
        ("both", [(socket.SOCK_STREAM, 1), (socket.SOCK_DGRAM, 0)]),
    ],
)
def test_sockets(
    protocol: str, sockets: list[tuple[int, int]], command: Command, first: int, valkey: servers.ServerStore
) -> None:
    """The descriptors from 3 on are the port's sockets, TCP before UDP and listening, and there are no others."""
    done = command(*RUN, "--protocol", protocol, "--", *PYTHON, LOOK)
    assert (0, "") == (done.returncode, done.stderr)
    assert {
        "pid": True,
        "fds": [3, 4][: len(sockets)],
        "port": first,
        "sockets": [[first, *sock] for sock in sockets],
    } == json.loads(done.stdout)
    assert [] == held(valkey)


def test_the_port_may_be_named_too(command: Command, first: int) -> None:
    """What a command without --listen-fd finds in its words, it finds with it; and no socket without it."""
    script = "echo {port} ${LISTEN_FDS-none}; test -S /proc/self/fd/3 && echo socket"
    with_socket = command(*RUN, "--port", str(first + 1), "--", "sh", "-c", script)
    without = command("run", "--range", "nbd", "--", "sh", "-c", script)
    assert f"{first + 1} 1\nsocket\n" == with_socket.stdout
    assert f"{first} none\n" == without.stdout


def test_the_socket_is_the_commands_alone(command: Command, first: int) -> None:
    """Once the command has closed it, the port is free on this machine: nobody else has kept a copy."""
    script = "import os, sys; os.close(3); print('closed', flush=True); sys.stdin.read()"
    process = command.start(*RUN, "--", "sh", "-c", 'exec "$@" <&0', "-", *PYTHON, script)
    assert process.stdout is not None
    assert "closed\n" == process.stdout.readline()
    assert FREE == probe(first)
    assert 0 == process.wait(PATIENCE)


def test_an_early_client_waits(command: Command, first: int) -> None:
    """Whoever connects before the command serves is served when it does."""
    script = "import socket, sys; print(1, flush=True); print(socket.socket(fileno=3).accept()[0].recv(5).decode())"
    os.mkfifo(command.directory / "gate")
    process = command.start(*RUN, "--", "sh", "-c", 'echo up; read go < "$0"; exec "$@"', "gate", *PYTHON, script)
    assert process.stdout is not None
    assert "up\n" == process.stdout.readline()
    with socket.create_connection(("127.0.0.1", first), timeout=PATIENCE) as client:
        client.sendall(b"early")
        (command.directory / "gate").write_text("go\n")
        out, _ = process.communicate(timeout=PATIENCE)
    assert "1\nearly\n" == out


def test_foreign_listener(command: Command, first: int, valkey: servers.ServerStore) -> None:
    """A port that something else has is passed over; asked for by number it is refused, and nothing stays behind."""
    with bound(first):
        other = command(*RUN, "--", "echo", "{port}")
        same = command(*RUN, "--port", str(first), "--", "echo", "started")
        assert [] == held(valkey)
    assert (0, f"{first + 1}\n", "") == (other.returncode, other.stdout, other.stderr)
    assert (3, "") == (same.returncode, same.stdout)
    told = f"Port {first}/tcp on host 'localhost' is in use by a process outside clusterports (range 'nbd')"
    assert f"clusterports: {told}\n" == same.stderr


@pytest.mark.parametrize("protocol", ["tcp", "both"])
def test_no_command(protocol: str, command: Command, first: int, valkey: servers.ServerStore) -> None:
    """A command that is not there is told as ever, also when the descriptors begin at 0, and leaves nothing bound."""
    done = command.told(*RUN, "--protocol", protocol, "--", "no-such-command", line='"$@" <&- >&-')
    assert (127, "clusterports: no-such-command: No such file or directory\n") == (done.returncode, done.stderr)
    assert [] == held(valkey)
    assert FREE == probe(first, "both")


def test_no_descriptors_left(command: Command) -> None:
    """A command that cannot get its socket is not started without it."""
    script = (
        "import resource\n"
        "from clusterports.cli._child import Child, NotStartedError\n"
        "from clusterports.probe import bound\n"
        "child = Child(['echo', 'started'])\n"
        "resource.prlimit(child.pid, resource.RLIMIT_NOFILE, (3, 3))\n"
        f"with bound({unused(1)}) as sock:\n"
        "    try: child.start(1, 'h', 1, [sock])\n"
        "    except NotStartedError as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=PATIENCE, check=True)
    assert "echo: Too many open files\n" == done.stdout


def test_another_host(command: Command, first: int) -> None:
    """A socket can only be bound on this machine: for another host it is a mistake, and nothing is started."""
    done = command(*RUN, "--host", "no-such-host.invalid", "--", "echo", "started")
    assert (2, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith("clusterports: host: must be this machine, ")
    assert done.stderr.endswith("with --listen-fd, which binds the port here; got 'no-such-host.invalid'\n")


# ---------------------------------------------------------------- real servers

SERVERS = {
    "qemu-nbd": ["qemu-nbd", "--persistent", "--read-only", "--format=raw", "disk"],
    "nbdkit": ["nbdkit", "--foreground", "--readonly", "file", "disk"],
}


@pytest.mark.parametrize("server", SERVERS)
def test_nbd_server(server: str, command: Command, first: int, valkey: servers.ServerStore) -> None:
    """A real NBD server serves its disk on the socket that it inherits, and the port comes back when it ends."""
    if shutil.which(server) is None:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(f"{server} is not installed")
    data = random.randbytes(1 << 20)
    (command.directory / "disk").write_bytes(data)
    # it says so when the socket is there; a client may come at once
    process = command.start(*RUN, "--", "sh", "-c", 'echo {port}; exec "$@"', "-", *SERVERS[server])
    assert process.stdout is not None
    assert f"{first}\n" == process.stdout.readline()
    for address in ("127.0.0.1", "::1"):
        with socket.create_connection((address, first), timeout=PATIENCE) as client:
            assert (len(data), data[4096:69632]) == nbd_read(client, 4096, 65536)
    process.terminate()
    process.communicate(timeout=PATIENCE)
    assert [] == held(valkey)
    assert FREE == probe(first)


def nbd_read(client: socket.socket, offset: int, length: int) -> tuple[int, bytes]:
    """Size and a part of the default export: fixed newstyle handshake, NBD_OPT_EXPORT_NAME and NBD_CMD_READ of
    NBD's proto.md."""
    answers = client.makefile("rb")  # reads on until it has all: a socket with a timeout does not, MSG_WAITALL or not
    assert b"NBDMAGICIHAVEOPT" == answers.read(18)[:16]
    no_zeroes = 3
    client.sendall(no_zeroes.to_bytes(4, "big") + b"IHAVEOPT" + (1).to_bytes(4, "big") + (0).to_bytes(4, "big"))
    size = int.from_bytes(answers.read(10)[:8], "big")
    read, disconnect = (0).to_bytes(4, "big"), (2).to_bytes(4, "big")
    request = bytes.fromhex("25609513")
    client.sendall(request + read + b"cookie__" + offset.to_bytes(8, "big") + length.to_bytes(4, "big"))
    assert bytes.fromhex("67446698") + bytes(4) + b"cookie__" == answers.read(16)
    data = answers.read(length)
    client.sendall(request + disconnect + b"cookie__" + bytes(12))
    return size, data


# ---------------------------------------------------------------- a thief

STARTS = 30
TRIES = 400

# Tries to have the port, in a tight loop. One that has it lets go at once and tries again a little later, so that a
# probe has a chance. Told that the port is a command's, it makes its tries at once, keeps the port if one of them has
# it, says how many there were and how many won, and lets go when told so.
THIEF = """
import os, select, socket, sys, time

def steal(number):
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("0.0.0.0", number))
        sock.listen()
        return sock
    except OSError:
        sock.close()
        return None

number, tries = map(int, sys.argv[1:])
while True:
    if select.select([0], [], [], 0)[0]:
        if not os.read(0, 1):
            break
        outcomes = [steal(number) for _ in range(tries)]
        print(len(outcomes), sum(sock is not None for sock in outcomes), flush=True)
        os.read(0, 1)
        del outcomes
    elif sock := steal(number):
        sock.close()
        time.sleep(0.002)
"""

# Starts the command line given, a process each; one that finds the port taken is repeated. All were imported once.
STARTER = """
import os, sys
import clusterports.cli.run, clusterports_redis._sync
from clusterports import PortAllocator, Settings, cli

codes = []
while len(codes) < int(sys.argv[1]):
    pid = os.fork()
    if pid == 0:
        sys.argv[1:2] = []
        try:
            cli.main()
        except SystemExit as done:
            os._exit(done.code)  # the interpreter's end takes longer than all before it
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code != 3:
        codes.append(code)
print(*codes)
"""

# Serves one client on the socket that it inherits, or on one of its own: 9 when it cannot have that.
SERVER = """
import os, socket, sys
number = int(os.environ["CLUSTERPORTS_PORT"])
if "LISTEN_FDS" in os.environ:
    sock = socket.socket(fileno=3)
else:
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(("0.0.0.0", number))
        sock.listen()
    except OSError:
        sock = None
os.write(1, b"bound\\n")
os.read(0, 1)
if sock is None:
    sys.exit(9)
client = socket.create_connection(("127.0.0.1", number))
sys.exit(sock.accept()[1][1] != client.getsockname()[1])
"""


class Robbery(NamedTuple):
    """``tries``: how often the thief tried while a command had the port; ``codes``: those of the commands."""

    tries: int
    wins: int
    codes: list[int]


@pytest.fixture
def processes() -> Iterator[list[subprocess.Popen[str]]]:
    started: list[subprocess.Popen[str]] = []
    yield started
    for process in started:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                stream.close()
        process.wait(PATIENCE)


def rob(command: Command, number: int, options: Sequence[str], processes: list[subprocess.Popen[str]]) -> Robbery:
    """Start the command again and again beside a thief."""
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    thief = subprocess.Popen([*PYTHON, THIEF, str(number), str(TRIES)], **pipes)
    processes.append(thief)
    # it says that it is there before the interpreter starts: that takes as long as a small server's own start
    words = ("sh", "-c", 'echo there; exec "$@"', "-", *PYTHON, SERVER)
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(STARTS), "run", "--range", "nbd", "--port", str(number), *options, *words],
        stderr=subprocess.DEVNULL,
        env=command.environment,
        cwd=command.directory,
        **pipes,
    )
    processes.append(starter)
    assert starter.stdin is not None
    assert starter.stdout is not None
    assert thief.stdin is not None
    assert thief.stdout is not None
    tries = wins = 0
    while (line := starter.stdout.readline()) == "there\n":
        thief.stdin.write("w")
        thief.stdin.flush()
        tried, won = map(int, thief.stdout.readline().split())
        tries += tried
        wins += won
        assert "bound\n" == starter.stdout.readline()
        thief.stdin.write("l")
        thief.stdin.flush()
        starter.stdin.write("\n")
        starter.stdin.flush()
    return Robbery(tries, wins, [int(code) for code in line.split()])


def test_thief(
    command: Command,
    first: int,
    processes: list[subprocess.Popen[str]],
    record_property: Callable[[str, object], None],
) -> None:
    """A process that keeps trying to take the port never has it while the command does, and every command serves.

    Without --listen-fd the same thief has its chance until the command binds the port; how often it won is told.
    """
    safe = rob(command, first, ["--listen-fd"], processes)
    unsafe = rob(command, first + 1, [], processes)
    for name, robbery in (("with --listen-fd", safe), ("without", unsafe)):
        told = f"{robbery.wins} times in {STARTS} starts, {robbery.codes.count(9)} commands without their port"
        record_property(f"stolen {name}", told)
        print(f"stolen {name}: {told}")
    assert Robbery(STARTS * TRIES, 0, [0] * STARTS) == safe
    assert STARTS * TRIES == unsafe.tries
