"""``clusterports exporter``: what a scrape gets, and how the server begins and ends."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from typing import TYPE_CHECKING

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clusterports.cli._listen import Address
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path

    import servers
    from cli.conftest import Command, Main

PATIENCE = 30
ANY = ("--listen", "127.0.0.1:0")


def started(command: Command, *arguments: str) -> tuple[subprocess.Popen[str], str]:
    """The exporter, and where it serves."""
    process = command.start("exporter", *arguments)
    assert process.stdout is not None
    said = process.stdout.readline()
    assert said.startswith("Serving http://127.0.0.1:"), process.communicate(timeout=PATIENCE)
    return process, said.split()[1]


def ended(process: subprocess.Popen[str], signum: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def scrape(url: str) -> dict[str, dict[tuple[str, ...], float]]:
    """By name, then by the values of the labels in the order of the labels."""
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310
        assert 200 == answer.status
        text = answer.read().decode()
    return {
        family.name: {tuple(value for _, value in sorted(one.labels.items())): one.value for one in family.samples}
        for family in text_string_to_metric_families(text)
    }


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_story(signum: int, command: Command) -> None:
    """The figures are those of ``status --json``, and each of the usual signals ends it in order."""
    lease = json.loads(command("acquire", "--owner", "vm-1", "--json").stdout)
    process, url = started(command, *ANY)
    figures = scrape(url)
    (backup,) = [one for one in json.loads(command("status", "--json").stdout)["ranges"] if one["name"] == "backup"]

    assert lease
    assert 1 == figures["clusterports_up"][()]
    assert [there | {"held": 1} for there in backup["hosts"]] == backup["hosts"]
    for state in ("held", "cooling", "foreign", "free", "excluded"):
        assert backup["hosts"][0][state] == figures["clusterports_ports"]["h", "backup", state]
    assert 0 < figures["process_resident_memory_bytes"][()]
    assert (0, "", "") == ended(process, signum)


def test_store_away_and_back(bare: Command, tmp_path: Path) -> None:
    """It starts without a store, says so as a figure and in one line, and serves on when the store is there."""
    store = tmp_path / "folder" / "ports.db"
    store.parent.mkdir()
    store.write_text("this is no database, but for a while")
    process, url = started(bare, *ANY, "--url", f"sqlite:///{store}")
    seen = [scrape(url)["clusterports_up"][()], scrape(url)["clusterports_up"][()]]
    store.unlink()
    taken = bare("acquire", "--url", f"sqlite:///{store}")
    figures = scrape(url)
    code, out, err = ended(process)

    assert ([0, 0], 0, 1) == (seen, taken.returncode, figures["clusterports_up"][()])
    assert 1 == figures["clusterports_ports"]["h", "backup", "held"]
    assert (0, "") == (code, out)
    assert ["the store cannot be read", "the store can be read again"] == [
        line.removeprefix("clusterports: warning: ").partition(":")[0] for line in err.splitlines()
    ]


def test_health(bare: Command, tmp_path: Path) -> None:
    """Whether it lives can be asked without a look into the store, which may be away."""
    (tmp_path / "ports.db").write_text("this is no database")
    process, url = started(bare, *ANY, "--url", f"sqlite:///{tmp_path}/ports.db")
    with urllib.request.urlopen(url.replace("/metrics", "/healthz"), timeout=PATIENCE) as answer:  # noqa: S310
        assert (200, b"ok\n") == (answer.status, answer.read())

    assert (0, "", "") == ended(process)  # a look would have been told


def test_no_secret(bare: Command) -> None:
    """The password of the store is neither in a scrape nor in what is said."""
    process, url = started(bare, *ANY, "--url", "redis://:hunter2@127.0.0.1:1/0")
    with urllib.request.urlopen(url, timeout=PATIENCE) as answer:  # noqa: S310
        text = answer.read().decode()
    code, out, err = ended(process)

    assert "\nclusterports_up 0.0\n" in text
    assert 0 == code
    assert "the store cannot be read" in err
    assert "hunter2" not in text + out + err


def test_json(bare: Command) -> None:
    """A program is told the address as JSON."""
    process = bare.start("exporter", *ANY, "--json")
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())

    assert {"schema", "url"} == set(told)
    assert scrape(told["url"])
    assert (0, "", "") == ended(process)


def test_bad_clients(command: Command) -> None:
    """A client that speaks no HTTP, sends too much or goes away costs the others nothing, and is not told of."""
    process, url = started(command, *ANY)
    place = ("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
    with socket.create_connection(place, PATIENCE) as client:
        client.sendall(b"GET /" + 70_000 * b"x")
        assert client.recv(100).startswith(b"HTTP/1.0 414 ")
    with socket.create_connection(place, PATIENCE) as client:
        client.sendall(b"\x16\x03\x01 no HTTP\r\n\r\n")
        assert b" 400 " in client.recv(1000)
    for said in (b"", b"GET /metrics HT", b"GET /metrics HTTP/1.1\r\n\r\n"):
        with socket.create_connection(place, PATIENCE) as client:
            client.sendall(said)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with a reset

    assert 1 == scrape(url)["clusterports_up"][()]
    assert (0, "", "") == ended(process)


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:9809", Address("127.0.0.1", 9809)),
        ("localhost:0", Address("localhost", 0)),
        ("[::1]:65535", Address("::1", 65535)),
    ],
)
def test_addresses(text: str, address: Address) -> None:
    """An address and a port, as they are written."""
    assert address == Address.parse(text, 9809)
    assert text == str(address)


@pytest.mark.parametrize(
    "text",
    ["", ":9809", "localhost", "9809", "::1:9809", "[::1]", "[]:1", "[localhost]:1", "h:65536", "h:-1", "h:1_0", "h:٣"],
)
def test_no_addresses(text: str, main: Main) -> None:
    """Anything else is refused with key, value and bound."""
    bound = "must be ADDRESS:PORT such as 127.0.0.1:9809 or [::1]:9809, with a port from 0 to 65535"
    message = f"listen: {bound}; got {text!r}"
    with pytest.raises(ConfigurationError) as refused:
        Address.parse(text, 9809)

    assert message == str(refused.value)
    assert (2, "", f"clusterports: {message}\n") == main("exporter", "--listen", text)


@pytest.mark.parametrize("host", ["192.0.2.1", "a..b"])
def test_address_of_somebody_else(host: str, main: Main) -> None:
    """An address that this machine does not have: code 2."""
    code, out, err = main("exporter", "--listen", f"{host}:9809")

    assert (2, "") == (code, out)
    assert err.startswith(f"clusterports: listen: '{host}:9809' cannot be used: ")
    assert 1 == len(err.splitlines())


def test_port_in_use(main: Main) -> None:
    """A port that something else has: code 3."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        place = f"127.0.0.1:{other.getsockname()[1]}"

        assert (3, "", f"clusterports: listen: {place} is in use by another process\n") == main(
            "exporter", "--listen", place
        )


def test_without_the_extra(bare: Command) -> None:
    """It says what to install."""
    code = (
        "import sys\nsys.modules['prometheus_client'] = None\nsys.argv = ['clusterports', 'exporter']\n"
        "from clusterports.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=bare.environment, cwd=bare.directory,
    )  # fmt: skip

    assert (1, "", "clusterports: metrics: needs prometheus-client: pip install clusterports[metrics]\n") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_one_host(sqlite: servers.SqliteStore, bare: Command) -> None:
    """With --host it is this host's figures."""
    for host in ("a", "b"):
        assert 0 == bare("acquire", "--url", sqlite.url, "--host", host).returncode
    process, url = started(bare, *ANY, "--url", sqlite.url, "--host", "a")

    assert {("a",)} == set(scrape(url)["clusterports_host_readable"])
    assert (0, "", "") == ended(process)
