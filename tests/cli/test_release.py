"""``clusterports release``: a script gives back; an operator takes away."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

from clusterports import PortAllocator
from clusterports.cli import release
from clusterports_redis import RedisBackend

if TYPE_CHECKING:
    import servers
    from cli.conftest import Command, Look, Main

    from clusterports.abc import Closed, Gone, Marked, SpaceView

PATIENCE = 30


def ports(view: SpaceView) -> list[tuple[int, str, str]]:
    return [(port.number, port.protocol, port.state) for port in view.ports]


def test_lease(script: Main, look: Look) -> None:
    """Without fences all its ports are free at once, and the lease is gone; a second time that is what one is told."""
    _, lease, *_ = script("acquire", "--count", "2")[1].split()

    assert (0, "", "") == script("release", lease)
    assert ((), ()) == (look().leases, look().ports)
    assert (4, "") == script("release", lease)[:2]


def test_lost_reply(script: Main, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease that was live is ended by this call, whatever becomes of the reply that says so."""
    close = RedisBackend.close_lease

    def twice(*arguments: Any) -> Closed | Gone:
        close(*arguments)
        return close(*arguments)

    _, lease, _ = script("acquire")[1].split()
    monkeypatch.setattr(RedisBackend, "close_lease", twice)

    assert (0, "", "") == script("release", lease)
    assert () == look().leases


def test_fences(script: Main, look: Look) -> None:
    """With fences it is these ports, and the lease stays; what it does not hold is code 4, the rest is given back."""
    taken = json.loads(script("acquire", "--count", "3", "--json")[1])
    lease, fences = str(taken["lease"]), list(map(str, taken["fence"]))

    assert (0, "", "") == script("release", lease, fences[1])
    assert [10809, 10811] == [port.number for port in look().ports]
    told = (
        f"clusterports: Lease {lease} on host 'h' holds no port with fence 7, {fences[1]}: "
        "it was released before, taken by force, or never was\n"
    )
    assert (4, "", told) == script("release", lease, fences[1], fences[2], "7")
    assert [10809] == [port.number for port in look().ports]
    assert [int(lease)] == [one.lease for one in look().leases]


def test_many(script: Main, look: Look) -> None:
    """However many ports the lease holds."""
    _, lease, *_ = script("acquire", "--range", "display", "--count", "200")[1].split()
    said = json.loads(script("release", lease, "--json")[1])

    assert list(range(5900, 6100)) == said["ports"]
    assert True is said["ended"]
    assert ((), ()) == (look().leases, look().ports)


def test_bad_fence(main: Main) -> None:
    """What cannot be a fence is code 2, and no store was asked."""
    told = "clusterports: fence: must be a positive integer of at most 18 digits, got 'x'\n"

    assert (2, "", told) == main("release", "7", "8", "x", "--url", "redis://127.0.0.1:1")


# ---------------------------------------------------------------- what something else has


def test_marked(script: Main, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that the job found in use is passed over for 30 s: the next one is given."""
    mark = RedisBackend.mark_foreign
    durations = []

    def marked(*arguments: Any, duration: int, **more: Any) -> Marked | Gone:
        durations.append(duration)
        return mark(*arguments, duration=duration, **more)

    _, lease, _ = script("acquire")[1].split()
    monkeypatch.setattr(RedisBackend, "mark_foreign", marked)

    assert (0, "", "") == script("release", "--foreign", lease)
    assert [(10809, "tcp", "foreign")] == ports(look())
    assert () == look().leases
    assert [30_000_000] == durations
    assert 0 < (look().ports[0].free_in or 0) <= 30e6
    assert "10810" == script("acquire")[1].split()[0]


def test_marked_of_several(script: Main, look: Look) -> None:
    """With fences only these; the lease and what else it holds stay."""
    taken = json.loads(script("acquire", "--count", "3", "--json")[1])
    lease, fences = str(taken["lease"]), list(map(str, taken["fence"]))
    code, out, err = script("release", "--foreign", lease, fences[1], "--json", "--verbose")
    said = json.loads(out)

    assert (0, [10810], 1, False) == (code, said["ports"], said["foreign"], said["ended"])
    assert "clusterports: gave back 10810/tcp on host 'h'; 1 marked as foreign" in err
    states = {10809: "held", 10810: "foreign", 10811: "held"}
    assert states == {port.number: port.state for port in look().ports}
    assert [int(lease)] == [one.lease for one in look().leases]

    said = json.loads(script("release", "--foreign", lease, "--json")[1])
    assert ([10809, 10811], 2, True) == (said["ports"], said["foreign"], said["ended"])
    assert {(number, "tcp", "foreign") for number in states} == set(ports(look()))


def test_marked_at_most_half(script: Main, look: Look) -> None:
    """Half of the range stays open to others, and a port that was taken without a range is just free."""
    small = {"CLUSTERPORTS_RANGES__BACKUP__LAST": "10812"}
    taken = json.loads(script("acquire", "--count", "3", "--json", **small)[1])
    other = script("acquire", "--port", "8080")[1].split()[1]

    assert 2 == json.loads(script("release", "--foreign", str(taken["lease"]), "--json", **small)[1])["foreign"]
    assert 0 == json.loads(script("release", "--foreign", other, "--json")[1])["foreign"]
    assert (["foreign"] * 2, ()) == ([port.state for port in look().ports], look().leases)


def test_marked_in_the_cluster(script: Main, look: Look) -> None:
    """Where numbers are those of the whole cluster, the host is kept at which it was seen."""
    _, lease, _ = script("acquire", CLUSTERPORTS_RANGES__BACKUP__SCOPE="cluster")[1].split()

    assert 0 == script("release", "--foreign", lease)[0]
    assert [("foreign", "h")] == [(port.state, port.host) for port in look("cluster").ports]


def test_marked_in_a_file(bare: Command) -> None:
    """The same without a server."""
    _, lease, _ = bare("acquire").stdout.split()

    assert 0 == bare("release", "--foreign", lease).returncode
    assert "10810" == bare("acquire").stdout.split()[0]


# ---------------------------------------------------------------- by force


def test_held(script: Main, look: Look) -> None:
    """A held port cools until its lease would have run out; a second time it is free; a third time nothing is to do."""
    fence = script("acquire", "--owner", "vm1", "--instance", "one")[1].split()[2]
    force = ("release", "--force", "--yes", "h", "10809")
    whose = "instance 'one', owner 'vm1'"

    code, out, _ = script(*force)
    assert 0 == code
    assert out.startswith(f"Port 10809/tcp on host 'h' was taken from {whose}: it is free in ")
    assert out.endswith(" s, when its holder has heard of it\n")
    assert [(10809, "tcp", "cooling")] == ports(look())
    assert [int(fence)] == [port.fence for port in look().ports]
    told = f"Port 10809/tcp on host 'h' is free now: it was cooling, last held by {whose}"
    assert (0, f"{told}\n", "") == script(*force)
    assert [] == ports(look())
    assert (0, "Port 10809 on host 'h' is free\n", "") == script(*force)


def test_force_json(script: Main) -> None:
    """The same as documents."""
    fence = int(script("acquire", "--owner", "vm1", "--instance", "one", "--protocol", "udp")[1].split()[2])
    said = [json.loads(script("release", "--force", "-y", "h", "10809", "--json")[1]) for _ in range(3)]
    free_in = said[0].pop("free_in_s")
    taken = {"owner": "vm1", "instance": "one", "fence": fence}
    port = {"schema": 1, "host": "h", "number": 10809, "protocol": "udp"}

    assert 25 < free_in <= 30
    assert [
        port | taken | {"was": "held"},
        port | taken | {"was": "cooling", "free_in_s": 0.0},
        port | dict.fromkeys(taken) | {"was": "free", "protocol": None, "free_in_s": 0.0},
    ] == said


def test_foreign(script: Main, look: Look) -> None:
    """The mark that something foreign has a port is lifted."""
    with PortAllocator(os.environ["CLUSTERPORTS_URL"], host="h", probe=lambda _, number, __: number != 10809) as seen:
        seen.acquire("backup")
    code, out, _ = script("release", "--force", "--yes", "h", "10809")

    assert 0 == code
    assert out.startswith("Port 10809/tcp on host 'h' is free now: it was foreign, seen by instance ")
    assert [] == ports(look())


def test_protocols(script: Main, look: Look) -> None:
    """A number that is taken for tcp and for udp needs the protocol; one for both goes by any name."""
    for protocol in ("tcp", "udp"):
        script("acquire", "--port", "5060", "--protocol", protocol)
    script("acquire", "--port", "5061", "--protocol", "both")
    force = ("release", "--force", "--yes", "h")
    told = "clusterports: port: must be 5060/tcp or 5060/udp, which are taken each for itself; got 5060\n"

    assert (2, "", told) == script(*force, "5060")
    assert 0 == script(*force, "5060/udp")[0]
    assert 0 == script(*force, "5061/tcp")[0]
    assert [(5060, "tcp", "held"), (5060, "udp", "cooling"), (5061, "both", "cooling")] == sorted(ports(look()))


def test_cluster_wide(script: Main, look: Look) -> None:
    """A number that is unique in the whole cluster is taken from the host that has it, and from no other."""
    script("acquire", "--owner", "vm1", CLUSTERPORTS_RANGES__BACKUP__SCOPE="cluster")
    elsewhere = "Port 10809 is not held on host 'far'; in the whole cluster host 'h' has it\n"

    assert (0, elsewhere, "") == script("release", "--force", "--yes", "far", "10809")
    assert [(10809, "tcp", "held")] == ports(look("cluster"))
    assert 0 == script("release", "--force", "--yes", "h", "10809")[0]
    assert [(10809, "tcp", "cooling")] == ports(look("cluster"))


def test_nobody_to_ask(script: Main, look: Look) -> None:
    """Without a terminal nothing is taken away unless --yes says so."""
    script("acquire", "--owner", "vm1", "--instance", "one")
    told = "Port 10809/tcp on host 'h' is held by instance 'one', owner 'vm1' (range 'backup')"

    assert (2, "", f"clusterports: yes: must be given where nobody can be asked; {told}\n") == script(
        "release", "--force", "h", "10809"
    )
    assert [(10809, "tcp", "held")] == ports(look())


@pytest.mark.parametrize(
    ("answer", "code", "state"),
    [(b"Yes\n", 0, "cooling"), (b"\n", 1, "held"), (b"\x03", 130, "held")],
    ids=["Yes", "nothing", "Ctrl-C"],
)
def test_asked(answer: bytes, code: int, state: str, command: Command, script: Main, look: Look) -> None:
    """On a terminal it shows who has the port, and asks; only a yes takes it away."""
    script("acquire", "--owner", "vm\x1b1", "--instance", "one")
    master, slave = pty.openpty()
    process = subprocess.Popen(
        ["setsid", "--ctty", sys.executable, "-m", "clusterports.cli", "release", "--force", "h", "10809"],
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        env=command.environment,
        cwd=command.directory,
    )
    os.close(slave)
    said = b""
    try:
        while b"[y/N] " not in said:
            said += os.read(master, 4096)
        os.write(master, answer)
        process.communicate(timeout=PATIENCE)
    finally:
        process.kill()
        process.wait(PATIENCE)
        os.close(master)

    assert (code, state) == (process.returncode, ports(look())[0][2])
    assert b"Port 10809/tcp on host 'h' is held by instance 'one', owner 'vm\\x1b1' (range 'backup')" in said
    assert b"; lease " in said
    assert b"Take it away? [y/N] " in said


def test_changed_meanwhile(
    script: Main, valkey: servers.ServerStore, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A port that is another's by the time of the answer is left alone: code 3."""
    script("acquire")

    def answer(*_: object) -> bool:
        with valkey.connect() as backend, PortAllocator(backend=backend, host="h", instance="other") as other:
            for _state in ("held", "cooling"):
                assert backend.force("host:h", look().ports[0])
            other.acquire("backup")
            other.detach()
        return True

    monkeypatch.setattr(release, "_confirmed", answer)

    told = "clusterports: Port 10809/tcp on host 'h' is held by instance 'other' (range 'backup')\n"
    assert (3, "", told) == script("release", "--force", "h", "10809")
    assert [(10809, "tcp", "held")] == ports(look())


def test_ended_meanwhile(
    script: Main, valkey: servers.ServerStore, look: Look, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A holder that lost the port by the time of the answer has lost it: it cools, and is not freed at once."""
    script("acquire")

    def answer(*_: object) -> bool:
        with valkey.connect() as backend:
            return backend.force("host:h", look().ports[0])

    monkeypatch.setattr(release, "_confirmed", answer)
    said = json.loads(script("release", "--force", "h", "10809", "--json")[1])

    assert ("held", True) == (said["was"], said["free_in_s"] > 10)
    assert [(10809, "tcp", "cooling")] == ports(look())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--yes", "7"), "yes: must be given together with --force"),
        (("--foreign", "--force", "h", "1"), "foreign: must not be given together with --force"),
        (("--force", "h"), "force: must be given with HOST and PORT, got 'h'"),
        (("--force", "h", "1", "2"), "force: must be given with HOST and PORT, got 'h 1 2'"),
        (("--force", "h", "x"), "port: must be an integer from 1 to 65535, got 'x'"),
        (("--force", "h", "65536"), "port: must be an integer from 1 to 65535, got 65536"),
        (("--force", "h", "0"), "port: must be an integer from 1 to 65535, got 0"),
        (("--force", "h", "80/sctp"), "protocol: must be one of tcp, udp, both, got 'sctp'"),
        (("--force", "h", "80/"), "protocol: must be one of tcp, udp, both, got ''"),
        (("--force", "h", "80", "--host", "x"), "host: must be 'h', as before the port, or left out; got 'x'"),
        (
            ("--force", "\x1b[31m", "80"),
            (
                "host: must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end, "
                "got '\\x1b[31m'"
            ),
        ),
    ],
)
def test_bad_input(arguments: tuple[str, ...], message: str, main: Main) -> None:
    """One line that has key, bound and value; code 2, and no store was asked."""
    assert (2, "", f"clusterports: {message}\n") == main("release", "--url", "redis://127.0.0.1:1", *arguments)
