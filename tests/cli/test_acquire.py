"""``clusterports acquire``: ports for a script, and nothing held by one that was not told of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from typing import TYPE_CHECKING

import pytest

from clusterports._space import GRAIN

if TYPE_CHECKING:
    import servers
    from cli.conftest import Command, Look, Main

PATIENCE = 30
ONE = {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10809"}
NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"


def test_words(script: Main, look: Look) -> None:
    """A line of port, lease and fence for each port; the lease is nobody's, and lasts for the TTL."""
    code, out, err = script("acquire", "--count", "2", "--ttl", "60", "--owner", "nightly", "--label", "job=7")
    view = look()
    (lease,) = view.leases

    assert (0, "") == (code, err)
    assert [f"{port.number} {lease.lease} {port.fence}" for port in view.ports] == out.splitlines()
    assert [(10809, "nightly", {"job": "7"}), (10810, "nightly", {"job": "7"})] == [
        (port.number, port.owner, port.labels) for port in view.ports
    ]
    assert lease.instance.startswith("acquire-")
    assert 24 == len(lease.instance)
    assert 60_000_000 == lease.ttl
    assert 50_000_000 < lease.expires_in <= 60_000_000


def test_json(script: Main, look: Look) -> None:
    """The same as a document."""
    code, out, _ = script("acquire", "--json", "--count", "2", "--contiguous", "--align", "4", "--protocol", "udp")
    said = json.loads(out)
    view = look()
    expires_in = said.pop("expires_in_s")

    assert 0 == code
    assert 29 < expires_in <= 30
    assert {
        "schema": 1,
        "host": "h",
        "range": "backup",
        "protocol": "udp",
        "ports": [10812, 10813],
        "lease": view.leases[0].lease,
        "fence": [port.fence for port in view.ports],
        "owner": "",
        "instance": view.leases[0].instance,
    } == said


def wait_for_queue(look: Look) -> None:
    deadline = time.monotonic() + PATIENCE
    while not look().waiting:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_full_ttl_after_a_wait(command: Command, script: Main, look: Look) -> None:
    """However long it took to get a port, its lease has the whole TTL before it."""
    first = script("acquire")[1].split()[1]
    process = command.start("acquire", "--wait", "60", "--ttl", "600", **ONE)
    wait_for_queue(look)
    begun = time.monotonic()
    script("release", first)
    assert process.stdout is not None
    lease = int(process.stdout.readline().split()[1])
    (left,) = [one.expires_in for one in look().leases if one.lease == lease]

    assert 600e6 - (time.monotonic() - begun) * 1e6 - GRAIN <= left <= 600e6
    assert 0 == process.wait(PATIENCE)


def test_any_port(script: Main) -> None:
    """Without --range, --port is any port there is; with it, one of that range."""
    code, out, _ = script("acquire", "--port", "2", "--json", "--host", "elsewhere")
    said = json.loads(out)

    assert (0, None, [2]) == (code, said["range"], said["ports"])
    assert (2, "", "clusterports: port: 2 is not in range 'backup' (10809-10872)\n") == script(
        "acquire", "--port", "2", "--range", "backup"
    )
    assert "10812 " == script("acquire", "--port", "10812", "--range", "backup")[1][:6]


def test_taken(script: Main, look: Look) -> None:
    """A port that somebody has is code 3, and no lease is left."""
    script("acquire", "--port", "10809", "--owner", "vm1", "--instance", "one")
    code, out, err = script("acquire", "--port", "10809")

    assert (3, "") == (code, out)
    assert "clusterports: Port 10809/tcp on host 'h' is held by instance 'one', owner 'vm1'\n" == err
    assert ["one"] == [lease.instance for lease in look().leases]


def test_all_or_nothing(script: Main, look: Look) -> None:
    """Of several ports all are given, or none."""
    script("acquire", "--port", "10810")
    code, out, err = script("acquire", "--count", "2", CLUSTERPORTS_RANGES__BACKUP__LAST="10810")

    assert (3, "") == (code, out)
    assert "clusterports: Unable to find 2 unused ports in range 'backup' (10809-10810)\n" == err
    assert [(10810, "held")] == [(port.number, port.state) for port in look().ports]


def test_probe(script: Main, look: Look) -> None:
    """A port of this machine that something else has is not given."""
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        code, out, err = script("acquire", "--port", port, "--host", socket.gethostname())

    assert (3, "") == (code, out)
    assert f"Port {port}/tcp" in err
    assert "in use by a process outside clusterports" in err
    assert () == look(f"host:{socket.gethostname()}").leases


def test_dry_run(script: Main, look: Look) -> None:
    """A dry run says the ports, in as many words, and takes nothing."""
    assert (0, "10809 - -\n10810 - -\n", "") == script("acquire", "--dry-run", "--count", "2")
    said = json.loads(script("acquire", "--dry-run", "--json")[1])
    assert ([10809], None, [], None) == tuple(said[key] for key in ("ports", "lease", "fence", "expires_in_s"))
    assert ((), ()) == (look().leases, look().ports)


def test_cluster_wide(script: Main, look: Look) -> None:
    """A port of a range of the cluster is renewed and released as any other."""
    scope = {"CLUSTERPORTS_RANGES__BACKUP__SCOPE": "cluster"}
    port, lease, fence = script("acquire", **scope)[1].split()
    (seen,) = look("cluster").ports

    assert ("10809", fence, "h") == (port, str(seen.fence), seen.host)
    assert (0, "30\n", "") == script("renew", lease)
    assert (0, "", "") == script("release", lease)
    assert () == look("cluster").ports


def test_instance_in_use(script: Main, look: Look) -> None:
    """Nobody takes over what is held under a name, on whatever host, by taking the name."""
    lease = json.loads(script("acquire", "--instance", "manager", "--host", "far", "--json")[1])["lease"]
    told = f"clusterports: instance: must be a name that holds no lease; 'manager' has lease {lease} on host 'far'\n"

    assert (2, "", told) == script("acquire", "--instance", "manager")
    assert [("manager", lease)] == [(one.instance, one.lease) for one in look("host:far").leases]
    assert () == look().leases


def test_instance_is_that_of_the_option(script: Main, look: Look) -> None:
    """A name in the settings is a manager's, and not that of a script."""
    script("acquire", CLUSTERPORTS_INSTANCE="manager")

    (lease,) = look().leases
    assert lease.instance.startswith("acquire-")


def test_control_characters(script: Main) -> None:
    """What a terminal might obey reaches none: in owners and labels, where anything may stand, nor in errors."""
    owner = "\x1b[31m[red]\x7f\r\n\u202e"
    _, out, err = script("acquire", "--port", "10809", "--owner", owner, "--label", f"{owner}={owner}", "--json", "-v")

    assert owner == json.loads(out)["owner"]
    for text in (out, err, script("acquire", "--port", "10809")[2], script("release", "--force", "h", "10809")[2]):
        assert text.replace("\n", "").isprintable()
        assert text.isascii()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ttl", "0"), "ttl: must be a number of seconds from 0.1 to 3600, got '0'"),
        (("--ttl", "3601"), "ttl: must be a number of seconds from 0.1 to 3600, got '3601'"),
        (("--ttl", "x"), "ttl: must be a number of seconds from 0.1 to 3600, got 'x'"),
        (("--wait", "-1"), "wait: must be a number of seconds from 0 to 31536000, got -1.0"),
        (("--wait", "1e9"), "wait: must be a number of seconds from 0 to 31536000, got 1000000000.0"),
        (("--wait", "nan"), "wait: must be a number of seconds from 0 to 31536000, got nan"),
        (("--count", "0"), "count: must be an integer of at least 1, got 0"),
        (("--count", "-3"), "count: must be an integer of at least 1, got -3"),
        (("--count", "1.5"), "count: must be an integer of at least 1, got '1.5'"),
        (("--count", "65"), "count: 65 ports are more than range 'backup' (10809-10872) has (64)"),
        (("--count", "2", "--port", "7"), "count: must be 1 when a port is asked for by number, got 2"),
        (("--align", "0"), "align: must be an integer of at least 1, got 0"),
        (("--align", "9" * 30), f"align: must be an integer of at least 1, got '{'9' * 30}'"),
        (("--align", "99999"), "align: range 'backup' (10809-10872) has no multiple of 99999"),
        (("--align", "2", "--count", "2"), "align: must be 1 when several ports need not be contiguous, got 2"),
        (("--port", "0"), "port: must be an integer from 1 to 65535, got 0"),
        (("--port", "65536"), "port: must be an integer from 1 to 65535, got 65536"),
        (("--port", "٣"), "port: must be an integer from 1 to 65535, got '٣'"),
        (("--port", "http"), "port: must be an integer from 1 to 65535, got 'http'"),
        (("--port", "80", "--range", "backup"), "port: 80 is not in range 'backup' (10809-10872)"),
        (
            ("--range", "bakcup"),
            (
                "range: unknown range 'bakcup', must be one of: backup, display, migration, websocket; "
                "did you mean 'backup'?"
            ),
        ),
        (("--label", "x"), "label: must be KEY=VALUE, got 'x'"),
        (
            ("--label", "libvirt.job=x"),
            "label: must not be one that clusterports sets itself, got 'libvirt.job'",
        ),
        (("--label", "a=b", "--label", "a=c"), "label: a is given twice"),
        (("--label", "a\x1b=b", "--label", "a\x1b=b"), "label: a\\x1b is given twice"),
        (("--instance", ""), f"instance: {NAME}, got ''"),
        (("--instance", "a\x1b[31m"), f"instance: {NAME}, got 'a\\x1b[31m'"),
        (("--host", "a\nb"), f"host: {NAME}, got 'a\\nb'"),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, main: Main) -> None:
    """One line that has key, bound and value; code 2, and no store was asked."""
    assert (2, "", f"clusterports: {message}\n") == main("acquire", "--url", "redis://127.0.0.1:1", *arguments)


def test_store_not_there(main: Main) -> None:
    """Without its store it is code 5, in one line."""
    code, out, err = main("acquire", "--url", "redis://:secret@127.0.0.1:1", CLUSTERPORTS_TIMEOUT="0.1")

    assert (5, "", 1) == (code, out, err.count("\n"))
    assert "secret" not in err


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_broken_pipe(more: tuple[str, ...], command: Command, look: Look) -> None:
    """When nobody reads which port it is, nothing is held."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = command.told("acquire", *more, output=pipe)

    assert (1, "") == (done.returncode, done.stderr)
    assert ((), ()) == (look().leases, look().ports)


def test_full_device(command: Command, look: Look) -> None:
    """Nor when it cannot be written."""
    with open("/dev/full", "w") as full:  # noqa: PTH123
        done = command.told("acquire", output=full)

    assert 1 == done.returncode
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr
    assert ((), ()) == (look().leases, look().ports)


def test_closed_stdout(command: Command, look: Look) -> None:
    """Nor without any output."""
    done = command.told("acquire", line='exec "$@" >&-')

    told = "clusterports: stdout is closed: nobody would learn which port and lease it is\n"
    assert (1, told) == (done.returncode, done.stderr)
    assert (0, (), ()) == look()[1:4]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["INT", "TERM"])
def test_signal_while_waiting(number: int, code: int, command: Command, script: Main, look: Look) -> None:
    """Who is told to end while waiting leaves neither lease nor place."""
    first = script("acquire")[1].split()[1]
    process = command.start("acquire", "--wait", "3600", **ONE)
    wait_for_queue(look)
    process.send_signal(number)
    out, err = process.communicate(timeout=PATIENCE)
    view = look()

    assert (code, "", "") == (process.returncode, out, err)
    assert ([int(first)], 0) == ([lease.lease for lease in view.leases], view.waiting)


def test_ctrl_c_while_the_store_hangs(command: Command, script: Main, valkey: servers.ServerStore, look: Look) -> None:
    """Who is told to end does not wait for a store that has stopped to answer; its place falls by itself."""
    script("acquire")
    process = command.start("acquire", "--wait", "3600", CLUSTERPORTS_TIMEOUT="3600", **ONE)
    wait_for_queue(look)
    valkey.client.client_pause(120_000, all=False)
    try:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)
    finally:
        valkey.client.client_unpause()

    assert (130, "", "") == (process.returncode, out, err)


def test_without_configuration(bare: Command) -> None:
    """With no store configured it is a file of this machine, which other commands see."""
    port, lease, fence = bare("acquire", "--owner", "vm1").stdout.split()
    renewed = bare("renew", lease)
    released = bare("release", lease, fence)

    assert "10809" == port
    assert (0, "30\n", "") == (renewed.returncode, renewed.stdout, renewed.stderr)
    assert (0, "", "") == (released.returncode, released.stdout, released.stderr)
    assert (bare.directory / "ports.db").is_file()
