"""``clusterports run``: a port for a command, for as long as the command runs."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest
import servers

from clusterports.abc import Closed, Holder
from clusterports.errors import BackendError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cli.conftest import Command

    from clusterports.abc import SpaceView

PATIENCE = 30
TINY = {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10810"}
FULL = "clusterports: Unable to find an unused port in range 'backup' (10809-10810)\n"


def look(store: servers.ServerStore) -> SpaceView:
    """What the store knows of host h."""
    with store.connect() as backend:
        (view,) = backend.read(["host:h"])
    assert not isinstance(view, BackendError)
    return view


def taken(store: servers.ServerStore) -> list[tuple[int, str]]:
    """Number and state of the ports of host h."""
    return [(port.number, port.state) for port in look(store).ports]


@contextmanager
def silent(store: servers.ServerStore) -> Iterator[None]:
    """Meanwhile the store answers nobody who wants to change something."""
    store.client.client_pause(600_000, all=False)
    try:
        yield
    finally:
        store.client.client_unpause()


def in_queue(store: servers.ServerStore) -> int:
    """How many wait for a port on host h."""
    return look(store).waiting


def wait_for_queue(store: servers.ServerStore, length: int) -> None:
    deadline = time.monotonic() + PATIENCE
    while in_queue(store) != length:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Wait until a process has ended that is not our child."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([handle], [], [], PATIENCE)[0])
    finally:
        os.close(handle)


def test_port_and_environment(command: Command, valkey: servers.ServerStore) -> None:
    """The command finds port and host in its words, and with the fence in its environment; its code is ours."""
    script = 'echo "$@" $CLUSTERPORTS_PORT $CLUSTERPORTS_HOST $(($CLUSTERPORTS_FENCE > 0)); exit 7'
    done = command("run", "--range", "backup", "--", "sh", "-c", script, "-", ":{port}", "{host}/{port}", "{fence}")

    assert (7, ":10809 h/10809 {fence} 10809 h 1\n", "") == (done.returncode, done.stdout, done.stderr)
    assert [] == taken(valkey)


def test_words_are_filled_in_once(command: Command) -> None:
    """A host that is called {port} is no port."""
    done = command("run", "--range", "backup", "--host", "{port}ü", "--", "echo", "{host}")

    assert (0, "{port}ü\n") == (done.returncode, done.stdout)


def test_without_dashes(command: Command) -> None:
    """What follows the command's first word is the command's, also without --."""
    done = command("run", "--range", "backup", "sh", "-c", "echo {port} --owner")

    assert (0, "10809 --owner\n") == (done.returncode, done.stdout)


def test_json(command: Command, valkey: servers.ServerStore) -> None:
    """With --json a line on stderr says what it got, in the layout of acquire, before the command starts."""
    process, _ = command.holding("--json", "--owner", "vm\x1b1", "--protocol", "both", "--instance", "one")
    assert process.stderr is not None
    said = json.loads(line := process.stderr.readline())
    expires_in = said.pop("expires_in_s")
    (port,) = look(valkey).ports
    process.terminate()

    assert line.isascii()
    assert 25 < expires_in <= 30
    assert {
        "schema": 1,
        "host": "h",
        "range": "backup",
        "protocol": "both",
        "ports": [10809],
        "lease": port.lease,
        "fence": [port.fence],
        "owner": "vm\x1b1",
        "instance": "one",
    } == said
    assert (143, "") == (process.wait(PATIENCE), process.stderr.read())


def test_verbose(command: Command) -> None:
    """With --verbose it is said in words; the command's own output is left alone."""
    done = command("run", "--verbose", "--instance", "one", "--", "echo", "{port}")

    assert (0, "10809\n") == (done.returncode, done.stdout)
    assert done.stderr.startswith("clusterports: took 10809/tcp (fence ")
    assert "on host 'h' under lease " in done.stderr
    assert 1 == done.stderr.count("\n")


def test_without_configuration(bare: Command) -> None:
    """With no store and no range named it is a file of this machine, and the range of backups."""
    done = bare("run", "--", sys.executable, "-m", "clusterports.cli", "status", "--json")
    (host,) = json.loads(done.stdout)["hosts"]

    assert (0, "") == (done.returncode, done.stderr)
    assert ("h", [(10809, "backup", "held")]) == (
        host["host"],
        [(port["number"], port["range"], port["state"]) for port in host["ports"]],
    )
    assert (bare.directory / "ports.db").is_file()


def test_udp_and_explicit_port(command: Command) -> None:
    """A port can be asked for by number; tcp and udp are independent."""
    command.holding("--port", "10811")
    done = command("run", "--range", "backup", "--port", "10811", "--protocol", "udp", "--", "echo", "{port}")

    assert (0, "10811\n") == (done.returncode, done.stdout)


def test_both_protocols(command: Command) -> None:
    """One number for TCP and UDP: it is free in both, and taken in both."""
    command.environment |= TINY
    command.holding("--port", "10809", "--protocol", "udp")
    command.holding("--protocol", "both", "--owner", "vm1")
    words = ("--", "echo", "{port}")
    tcp, both, again = (
        command("run", "--range", "backup", *more, *words)
        for more in (("--protocol", "tcp"), ("--protocol", "both"), ("--protocol", "udp"))
    )

    assert (0, "10809\n") == (tcp.returncode, tcp.stdout)
    assert (3, FULL) == (both.returncode, both.stderr)
    assert (3, FULL) == (again.returncode, again.stderr)


def test_wait(command: Command, valkey: servers.ServerStore) -> None:
    """With --wait a command starts once a port is given back, in the order of arrival."""
    command.environment |= TINY
    first, _ = command.holding("--port", "10809")
    command.holding("--port", "10810")
    waiting = []
    for place in (1, 2):
        script = f"echo {place} >> served; echo {{port}}"
        waiting.append(command.start("run", "--range", "backup", "--wait", "60", "--", "sh", "-c", script))
        wait_for_queue(valkey, place)
    first.terminate()
    told = [process.communicate(timeout=PATIENCE)[0] for process in waiting]

    assert 143 == first.wait(PATIENCE)
    assert ["10809\n", "10809\n"] == told
    assert [0, 0] == [process.returncode for process in waiting]
    assert "1\n2\n" == (command.directory / "served").read_text()
    assert 0 == in_queue(valkey)


def test_wait_in_vain(command: Command, valkey: servers.ServerStore) -> None:
    """When the time is over, it is as if there had been no wait, and the place is given up."""
    command.environment |= {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10809"}
    command.holding()
    done = command("run", "--range", "backup", "--wait", "0.3", "--", "echo", "started")

    assert (3, "") == (done.returncode, done.stdout)
    assert "clusterports: Unable to find an unused port in range 'backup' (10809-10809) within 0.3 s\n" == done.stderr
    assert 0 == in_queue(valkey)


def test_signal_while_waiting(command: Command, valkey: servers.ServerStore) -> None:
    """A signal ends a wait at once; the command never starts, and its lease is gone."""
    command.environment |= {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10809"}
    command.holding()
    process = command.start("run", "--range", "backup", "--wait", "3600", "--", "echo", "started")
    wait_for_queue(valkey, 1)
    process.terminate()
    out, err = process.communicate(timeout=PATIENCE)

    assert (143, "", "") == (process.returncode, out, err)
    assert [(10809, "held")] == taken(valkey)
    assert 1 == len(look(valkey).leases)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [("-1", "-1.0"), ("nan", "nan"), ("inf", "inf"), ("31536001", "31536001.0"), ("soon", "'soon'"), ("", "''")],
)
def test_bad_wait(seconds: str, shown: str, bare: Command) -> None:
    """A time that is none, or longer than a year, is refused before anything else happens."""
    done = bare("run", "--range", "backup", "--wait", seconds, "--", "echo", "started")

    told = f"clusterports: wait: must be a number of seconds from 0 to 31536000, got {shown}\n"
    assert (2, "", told) == (done.returncode, done.stdout, done.stderr)


def test_two_terminals(command: Command, valkey: servers.ServerStore) -> None:
    """Two commands on one host have two ports, and each comes back with its command."""
    first, _ = command.holding()
    second, _ = command.holding()

    assert [(10809, "held"), (10810, "held")] == taken(valkey)
    first.terminate()
    assert 143 == first.wait(PATIENCE)
    assert [(10810, "held")] == taken(valkey)
    second.terminate()
    assert 143 == second.wait(PATIENCE)
    assert [] == taken(valkey)


def test_seed_case(command: Command) -> None:
    """Two ports, three that ask: each is told what it must be told."""
    command.environment |= TINY
    run = ("run", "--range", "backup")
    first, _ = command.holding("--owner", "vm1", "--instance", "one")
    explicit = command(*run, "--port", "10809", "--", "echo", "started")
    second, _ = command.holding("--owner", "vm2")
    third = command(*run, "--", "echo", "started")
    first.terminate()
    assert 143 == first.wait(PATIENCE)
    again = command(*run, "--", "echo", "{port}")

    assert (3, "") == (explicit.returncode, explicit.stdout)
    assert explicit.stderr == (
        "clusterports: Port 10809/tcp on host 'h' is held by instance 'one', owner 'vm1' (range 'backup')\n"
    )
    assert None is second.poll()
    assert (3, "", FULL) == (third.returncode, third.stdout, third.stderr)
    assert (0, "10809\n") == (again.returncode, again.stdout)


@pytest.mark.parametrize(
    "name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGCONT"]
)
def test_signals_are_passed_on(name: str, command: Command, valkey: servers.ServerStore) -> None:
    """A signal that is sent to us reaches the command, which decides what it means."""
    process, _ = command.holding(script=f"signal.signal(signal.{name}, lambda *_: sys.exit(5))")
    process.send_signal(getattr(signal, name))

    assert 5 == process.wait(PATIENCE)
    assert [] == taken(valkey)


def test_killed_command(command: Command, valkey: servers.ServerStore) -> None:
    """A command that a signal ended gives 128 and the signal's number, as in a shell."""
    process, pid = command.holding()
    os.kill(pid, signal.SIGKILL)

    assert 137 == process.wait(PATIENCE)
    assert [] == taken(valkey)


def test_sigkill_takes_the_command_along(command: Command, valkey: servers.ServerStore) -> None:
    """Killed without a chance to do anything, we leave no command behind; the port stays out of use."""
    process, pid = command.holding()
    process.kill()

    assert -9 == process.wait(PATIENCE)
    assert gone(pid)
    assert [(10809, "held")] == taken(valkey)


def test_signal_mask_and_handlers_are_as_usual(command: Command) -> None:
    """What we block and ignore for ourselves, the command does not inherit."""
    words = ["grep", "-E", "^Sig(Blk|Ign)", "/proc/self/status"]
    usual = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    done = command("run", "--range", "backup", "--", *words)
    assert usual == done.stdout


@contextmanager
def terminal() -> Iterator[tuple[int, int]]:
    master, slave = pty.openpty()
    try:
        yield master, slave
    finally:
        os.close(master)
        os.close(slave)


def test_ctrl_c_arrives_once(command: Command) -> None:
    """What a terminal sends to the whole group is not passed on a second time."""
    script = (
        "import os, signal, sys, time\n"
        "heard = []\n"
        "def hear(number, _):\n"
        "    heard.append(number)\n"
        "    os.write(1, b'%d\\n' % number)\n"
        "signal.signal(signal.SIGINT, hear)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(len(heard)))\n"
        "os.write(1, b'ready\\n')\n"
        "while True: time.sleep(60)\n"
    )
    run = [sys.executable, "-m", "clusterports.cli", "run", "--range", "backup", "--", sys.executable, "-c", script]
    with terminal() as (master, slave):
        process = subprocess.Popen(
            ["setsid", "--ctty", *run],
            stdin=slave,
            stdout=subprocess.PIPE,
            text=True,
            env=command.environment,
            cwd=command.directory,
            process_group=None,
        )
        try:
            assert process.stdout is not None
            assert "ready\n" == process.stdout.readline()
            # Stopped, we see the signal only after the command did: two that are pending at once would be one.
            process.send_signal(signal.SIGSTOP)
            os.write(master, b"\x03")
            assert f"{int(signal.SIGINT)}\n" == process.stdout.readline()
            process.send_signal(signal.SIGCONT)
            process.terminate()
            assert 1 == process.wait(PATIENCE)
        finally:
            process.kill()
            process.wait(PATIENCE)
            assert process.stdout is not None
            process.stdout.close()


@pytest.mark.parametrize(("word", "code"), [("no-such-command", 127), ("/etc/passwd", 126), ("/", 126)])
def test_no_command(word: str, code: int, command: Command, valkey: servers.ServerStore) -> None:
    """A command that is not there, or cannot be executed, is told as by a shell, and gives its port back."""
    done = command("run", "--range", "backup", "--", word)

    assert (code, "") == (done.returncode, done.stdout)
    assert done.stderr.startswith(f"clusterports: {word}: ")
    assert 1 == done.stderr.count("\n")
    assert [] == taken(valkey)


def end_lease(store: servers.ServerStore) -> None:
    """The lease ends in the store, as if it had run out there."""
    with store.connect() as backend:
        (lease,) = servers.view(backend, "host:h").leases
        holder = Holder(lease.instance, lease.lease, lease.incarnation)
        assert Closed(False) == backend.close_lease("host:h", holder, quarantine=True)


def test_store_emptied(command: Command, valkey: servers.ServerStore) -> None:
    """A store that lost its data costs no command its port."""
    process, _ = command.holding("--ttl", "1")
    valkey.client.flushall()
    deadline = time.monotonic() + PATIENCE
    while [(10809, "held")] != taken(valkey):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert None is process.poll()
    process.terminate()
    assert 143 == process.wait(PATIENCE)
    assert [] == taken(valkey)


def test_lost_lease(command: Command, valkey: servers.ServerStore) -> None:
    """When the lease is gone, the command is ended and told why: code 4."""
    process, pid = command.holding("--ttl", "1", script="signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))")
    end_lease(valkey)
    _, err = process.communicate(timeout=PATIENCE)

    assert 4 == process.returncode
    assert "10809/tcp; ending the command\n" in err
    assert gone(pid)


def test_taken_over(command: Command) -> None:
    """Of two that run under one name on one host, the older one is told to end."""
    older, _ = command.holding("--instance", "one", "--ttl", "1")
    newer, _ = command.holding("--instance", "one", "--ttl", "1")
    _, err = older.communicate(timeout=PATIENCE)

    assert 4 == older.returncode
    assert "a newer process runs under this name" in err
    assert None is newer.poll()


def test_lost_lease_with_warning_only(command: Command, valkey: servers.ServerStore) -> None:
    """With --on-lost warn the command goes on, and its code is ours."""
    process, _ = command.holding("--ttl", "1", "--on-lost", "warn")
    end_lease(valkey)
    assert process.stderr is not None
    assert "10809/tcp\n" in process.stderr.readline()
    process.terminate()

    assert 143 == process.wait(PATIENCE)


def test_taken_by_force(command: Command, valkey: servers.ServerStore) -> None:
    """When an operator takes the port away, the command is ended and told why: code 4, and the port cools."""
    process, pid = command.holding("--ttl", "1", "--owner", "vm1")
    forced = command("release", "--force", "--yes", "h", "10809")
    _, err = process.communicate(timeout=PATIENCE)

    assert (0, 4) == (forced.returncode, process.returncode)
    assert err.startswith("clusterports: Taken by force from instance ")
    assert err.endswith("10809/tcp; ending the command\n")
    assert gone(pid)
    assert [(10809, "cooling")] == taken(valkey)


def test_taken_by_force_with_warning_only(command: Command) -> None:
    """With --on-lost warn the command goes on, and its code is ours."""
    process, _ = command.holding("--ttl", "1", "--on-lost", "warn")
    command("release", "--force", "--yes", "h", "10809")
    assert process.stderr is not None
    assert process.stderr.readline().endswith(": 10809/tcp\n")
    process.terminate()

    assert 143 == process.wait(PATIENCE)


def test_stubborn_command(command: Command, valkey: servers.ServerStore) -> None:
    """A command that does not end when its lease is lost is killed."""
    body = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(600)"
    script = f"""
import sys
from clusterports import cli
from clusterports.cli import run
run.KILL_AFTER = 0.2
sys.argv = ["clusterports", "run", "--range", "backup", "--ttl", "1", "--", sys.executable, "-c", {body!r}]
cli.main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", script],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=command.environment,
        cwd=command.directory,
    )
    try:
        assert process.stdout is not None
        assert "1\n" == process.stdout.readline()
        end_lease(valkey)
        _, err = process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait(PATIENCE)

    assert 4 == process.returncode
    assert "ending the command" in err


def test_jeopardy(command: Command, valkey: servers.ServerStore) -> None:
    """A store that is silent for longer than the TTL is a warning, and the command goes on."""
    process, _ = command.holding("--ttl", "1")
    assert process.stderr is not None
    with silent(valkey):
        said = process.stderr.readline()
    process.terminate()

    assert "clusterports: warning: the lease of port 10809 was not renewed in time, and may be lost\n" == said
    assert 143 == process.wait(PATIENCE)


def test_quiet(command: Command, valkey: servers.ServerStore) -> None:
    """With --quiet there are no warnings."""
    command.environment["CLUSTERPORTS_TIMEOUT"] = "1"
    process, _ = command.holding("--quiet")
    with silent(valkey):
        process.terminate()
        assert ("", "") == process.communicate(timeout=PATIENCE)
    assert [(10809, "held")] == taken(valkey)


def test_strict(command: Command, valkey: servers.ServerStore) -> None:
    """With --strict the same is a loss."""
    process, pid = command.holding("--ttl", "1", "--strict")
    with silent(valkey):
        _, err = process.communicate(timeout=PATIENCE)

    assert 4 == process.returncode
    assert "it was not renewed in time; ports: 10809/tcp; ending the command\n" in err
    assert gone(pid)


def test_signal_while_waiting_for_the_store(command: Command) -> None:
    """A signal ends us although the store does not answer; the command never starts."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.settimeout(PATIENCE)
        process = command.start(
            "run", "--range", "backup", "--", "echo", "started",
            CLUSTERPORTS_URL=f"redis://127.0.0.1:{silent.getsockname()[1]}/0",
            CLUSTERPORTS_TIMEOUT="3600",
        )  # fmt: skip
        connection, _ = silent.accept()
        with connection:
            process.terminate()
            out, _ = process.communicate(timeout=PATIENCE)

    assert (143, "") == (process.returncode, out)


def test_signal_before_the_command_starts(command: Command, valkey: servers.ServerStore) -> None:
    """A signal that comes while a port is being acquired leaves neither command nor port."""
    host, port = "127.0.0.1", int(valkey.url.rpartition(":")[2].partition("/")[0])

    def pump(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
            sink.shutdown(socket.SHUT_WR)

    with socket.create_server((host, 0)) as proxy, socket.create_connection((host, port)) as server:
        proxy.settimeout(PATIENCE)
        process = command.start(
            "run", "--range", "backup", "--", "echo", "started",
            CLUSTERPORTS_URL=f"redis://{host}:{proxy.getsockname()[1]}/0",
        )  # fmt: skip
        client, _ = proxy.accept()
        with client:
            process.terminate()
            threads = [threading.Thread(target=pump, args=pair) for pair in ((client, server), (server, client))]
            for thread in threads:
                thread.start()
            out, err = process.communicate(timeout=PATIENCE)
            for thread in threads:
                thread.join(PATIENCE)

    assert (143, "", "") == (process.returncode, out, err)
    assert [] == taken(valkey)


def test_store_away_at_the_end(command: Command, valkey: servers.ServerStore) -> None:
    """A port that cannot be given back is a warning; the code is the command's."""
    process, _ = command.holding(script="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))")
    command.environment["CLUSTERPORTS_TIMEOUT"] = "1"
    impatient, _ = command.holding(script="signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))")
    with silent(valkey):
        impatient.terminate()
        _, err = impatient.communicate(timeout=PATIENCE)

    assert 7 == impatient.returncode
    assert err.startswith("clusterports: warning: port 10810 was not given back, its lease will run out: ")
    assert 1 == err.count("\n")
    process.terminate()
    assert 7 == process.wait(PATIENCE)
