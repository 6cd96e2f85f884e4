"""``clusterports renew``: what a script holds, for longer."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from clusterports.cli import renew
from clusterports.cli._lease import Found, find
from clusterports.cli.backup_xml import backup_xml
from clusterports.cli.renew import renew as renew_

if TYPE_CHECKING:
    import servers
    from cli.conftest import Look, Main

PATIENCE = 30


def test_full_ttl(script: Main, look: Look) -> None:
    """The lease runs for the TTL once more, from now on; its ports stay."""
    _, lease, _ = script("acquire", "--ttl", "600")[1].split()
    before = look()
    begun = time.monotonic()
    code, out, err = script("renew", lease)
    (left,) = [one.expires_in for one in look().leases]

    assert (0, "600\n", "") == (code, out, err)
    assert 600e6 - (time.monotonic() - begun) * 1e6 - 1_000 <= left
    assert [port.fence for port in before.ports] == [port.fence for port in look().ports]


def test_json(script: Main) -> None:
    """The same as a document."""
    taken = json.loads(script("acquire", "--count", "2", "--json")[1])
    said = json.loads(script("renew", str(taken["lease"]), "--json")[1])
    expires_in = said.pop("expires_in_s")

    assert 29 < expires_in <= 30
    assert {
        "schema": 1,
        "host": "h",
        "lease": taken["lease"],
        "instance": taken["instance"],
        "ports": [10809, 10810],
        "revoked": [],
    } == said


@pytest.mark.parametrize("command", ["renew", "release"])
def test_not_there(command: str, script: Main) -> None:
    """A lease that is gone is code 4, as one that never was, or is on another host: who named none is told to."""
    _, lease, _ = script("acquire", "--host", "far")[1].split()
    told = f"clusterports: There is no lease {lease} on host 'h': it ran out, was released, or never was"
    hint = "; if its ports are on another host, name that with --host"

    assert (4, "", f"{told}{hint}\n") == script(command, lease)
    assert (4, "", f"{told}\n") == script(command, lease, "--host", "h")
    assert (0, "") == script(command, lease, "--host", "far")[::2]


def test_ran_out(script: Main, valkey: servers.ServerStore, look: Look) -> None:
    """A lease that nobody renewed is gone after its TTL."""
    _, lease, _ = script("acquire", "--ttl", "0.1")[1].split()
    deadline = time.monotonic() + PATIENCE
    with valkey.connect() as backend:
        while look().leases:
            assert time.monotonic() < deadline
            backend.reclaim("host:h")
    code, out, _ = script("renew", lease)

    assert (4, "") == (code, out)
    assert ["cooling"] == [port.state for port in look().ports]


def test_taken_by_force(script: Main) -> None:
    """The script is told once which of its ports were taken by force; without any left it is code 4."""
    _, lease, _, _, _, _ = script("acquire", "--count", "2")[1].split()
    script("release", "--force", "--yes", "h", "10809")
    first, second = script("renew", lease, "--json"), script("renew", lease)
    script("release", "--force", "--yes", "h", "10810")
    third = script("renew", lease)

    assert (0, f"clusterports: Taken by force from lease {lease} on host 'h': 10809/tcp\n") == first[::2]
    assert ([10810], [10809]) == tuple(json.loads(first[1])[key] for key in ("ports", "revoked"))
    assert (0, "30\n", "") == second
    assert (4, "") == third[:2]
    assert [
        f"clusterports: Taken by force from lease {lease} on host 'h': 10810/tcp",
        f"clusterports: Lease {lease} on host 'h' holds no port any more",
    ] == third[2].splitlines()


def test_taken_in_between(script: Main, monkeypatch: pytest.MonkeyPatch, valkey: servers.ServerStore) -> None:
    """A port that is taken by force while its lease is renewed is not among those that are held."""
    _, lease, *_ = script("acquire", "--count", "2")[1].split()

    def found(*arguments: Any) -> Found:
        seen = find(*arguments)
        with valkey.connect() as backend:
            backend.force(seen.space, seen.ports[0])
        return seen

    monkeypatch.setattr(renew, "find", found)
    said = json.loads(script("renew", lease, "--json")[1])

    assert ([10810], [10809]) == (said["ports"], said["revoked"])


@pytest.mark.parametrize("command", ["renew", "release"])
def test_of_a_manager(command: str, script: Main, look: Look) -> None:
    """The lease of one that may be running is touched only by those who name it."""
    _, lease, _ = script("acquire", "--instance", "manager")[1].split()
    before = look()
    whose = f"lease {lease} on host 'h' is that of instance 'manager'"
    unnamed = f"lease: must be one of `acquire`; {whose}, which may be running; if it is not, name it with --instance"
    named = f"instance: must be the lease's; {whose}, got 'other'"

    assert (2, "", f"clusterports: {unnamed}\n") == script(command, lease)
    assert (2, "", f"clusterports: {named}\n") == script(command, lease, "--instance", "other")
    assert before.ports[0].fence == look().ports[0].fence
    assert 0 == script(command, lease, "--instance", "manager")[0]


def test_a_manager_hears_of_force_itself(script: Main) -> None:
    """Whoever renews in the name of a manager leaves it the news that a port of it was taken."""
    _, lease, *_ = script("acquire", "--count", "2", "--instance", "manager")[1].split()
    script("release", "--force", "--yes", "h", "10809")

    for _ in range(2):
        code, _, err = script("renew", lease, "--instance", "manager")
        assert 0 == code
        assert "10809/tcp" in err


README = Path(__file__).resolve().parents[2] / "README.md"

RENEWING = [
    pytest.param(loop, id=f"{name} {number}")
    for name, text in (("README", README.read_text()), ("renew", renew_.__doc__), ("backup-xml", backup_xml.__doc__))
    for number, loop in enumerate(re.findall(r"^ *(while sleep 20.*&)$", text or "", re.MULTILINE))
]


def test_loops_are_found() -> None:
    """One in each place."""
    assert {"README 0", "renew 0", "backup-xml 0"} == {loop.id for loop in RENEWING}


@pytest.mark.parametrize("loop", RENEWING)
def test_loop(loop: str, tmp_path: Path) -> None:
    """A script goes on renewing after a renewal that failed, as while the store is away, until the lease is gone."""
    fake = tmp_path / "clusterports"
    fake.write_text('#!/bin/sh\nread -r code <codes; sed -i 1d codes; echo "$*" >>asked; exit "$code"\n')
    fake.chmod(0o755)
    (tmp_path / "codes").write_text("0\n5\n1\n0\n4\n0\n")
    lines = f"set -euo pipefail\nlease=7\n{loop.replace('sleep 20', 'sleep 0.01')}\nwait $!"
    path = f"{tmp_path}{os.pathsep}{os.environ['PATH']}"
    subprocess.run(["bash", "-c", lines], cwd=tmp_path, env={"PATH": path}, timeout=PATIENCE, check=True)

    assert ["renew 7"] * 5 == (tmp_path / "asked").read_text().splitlines()


@pytest.mark.parametrize("word", ["0", "x", "1.5", "-1", "", "9" * 19, "٣", "1_0"])
@pytest.mark.parametrize("command", ["renew", "release"])
def test_bad_lease(command: str, word: str, main: Main) -> None:
    """What cannot be a lease is code 2, and no store was asked."""
    told = f"clusterports: lease: must be a positive integer of at most 18 digits, got {word!r}\n"

    assert (2, "", told) == main(command, "--url", "redis://127.0.0.1:1", "--", word)
