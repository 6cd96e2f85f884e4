"""``clusterports exporter``: what a scrape gets, and how the server begins and ends."""

from __future__ import annotations

import json
import signal
import socket
import struct
import subprocess
import sys
import urllib.request
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Semaphore, Thread
from typing import TYPE_CHECKING, Any, cast

import pytest
from cli.conftest import get
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from clusterports.cli import exporter
from clusterports.cli._listen import Address
from clusterports.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

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


def never(*_: object) -> Iterable[bytes]:
    raise AssertionError


@contextmanager
def serving(application: Callable[..., Iterable[bytes]]) -> Iterator[tuple[socket.socket, Callable[[], socket.socket]]]:
    """A client of a server with this application, and how to get more."""
    address = Address("127.0.0.1", 0)
    with exporter._Server(address, address.find()) as server:
        server.set_app(application)
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()

        def client() -> socket.socket:
            return socket.create_connection(("127.0.0.1", server.server_port), PATIENCE)

        try:
            with client() as first:
                yield first, client
        finally:
            server.shutdown()
            thread.join()


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


@pytest.mark.parametrize("path", ["", "metrics/", "favicon.ico", "healthz?", "metric"])
def test_paths(path: str, bare: Command, tmp_path: Path) -> None:
    """Elsewhere there is nothing, and the store is not read for that."""
    (tmp_path / "ports.db").write_text("this is no database")
    process, url = started(bare, *ANY, "--url", f"sqlite:///{tmp_path}/ports.db")
    told = (200, "ok\n") if path == "healthz?" else (404, "path: must be /metrics or /healthz\n")

    assert told == get(url.replace("metrics", path))
    assert (0, "", "") == ended(process)  # a look would have been told


def test_names(command: Command) -> None:
    """On this machine alone it is asked by a name of this machine, so that no page of the web can read it."""
    process, url = started(command, *ANY)
    place = url.removeprefix("http://").removesuffix("/metrics")
    port = place.rpartition(":")[2]

    for host in (place, f"localhost:{port}", f"[::1]:{port}"):
        assert 200 == get(url, Host=host)[0]
    message = "host: must be localhost or a loopback address; got 'a.example:1'\n"
    assert (421, message) == get(url, Host="a.example:1")
    assert (200, "ok\n") == get(url.replace("metrics", "healthz"), Host="a.example:1")
    assert (0, "", "") == ended(process)


@pytest.mark.parametrize(
    ("only", "asked", "status"),
    [
        ("H.example:9809", "h.example:9809", "figures"),  # a name that leads to this machine, as --listen has it
        ("h.example:9809", "h.example", "421 Misdirected Request"),
        ("h.example:9809", None, "figures"),  # no browser
        (None, "a.example", "figures"),  # others reach it anyway
    ],
)
def test_names_of_listen(only: str | None, asked: str | None, status: str) -> None:
    """The name at which it listens counts as well; at an address for others, any."""
    told = []
    environ = {"PATH_INFO": "/metrics"} | ({} if asked is None else {"HTTP_HOST": asked})

    def figures(_: object, start_response: Callable[..., None]) -> list[bytes]:
        start_response("figures", [])
        return []

    exporter._Gate(figures, only)(environ, lambda status, _: told.append(status))

    assert [status] == told


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


def test_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks while the store is read is told what comes of that; who comes later is told anew."""
    began, go, waiting = Event(), Event(), Semaphore(0)

    class Running(Future[list[Metric]]):
        def result(self, timeout: float | None = None) -> list[Metric]:
            waiting.release()
            return super().result(timeout)

    class Figures:
        reads = 0

        def describe(self) -> list[Metric]:
            return []

        def collect(self) -> list[Metric]:
            self.reads += 1
            began.set()
            assert go.wait(PATIENCE)
            if self.reads == 2:
                raise OSError(self.reads)
            return [Metric("reads", "", "gauge")]

    monkeypatch.setattr(exporter, "Future", Running)
    figures = Figures()
    shared = exporter._Shared(cast("Any", figures))
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shared.collect)
        assert began.wait(PATIENCE)
        others = [pool.submit(shared.collect) for _ in range(2)]
        for _ in others:
            assert waiting.acquire(timeout=PATIENCE)
        go.set()

        assert first.result() is others[0].result() is others[1].result()
    assert 1 == figures.reads
    with pytest.raises(OSError, match="2"):
        shared.collect()
    assert 1 == len(shared.collect())
    assert 3 == figures.reads


def test_crowd(command: Command) -> None:
    """However many take a connection and do not ask, there are threads for some, and who asks is answered at once."""
    process, url = started(command, *ANY)
    place = ("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0]))
    crowd = [socket.create_connection(place, PATIENCE) for _ in range(3 * exporter.CONNECTIONS)]
    for one in crowd:
        with one.dup() as client:
            try:
                client.sendall(b"GET /met")
            except OSError:  # sent away already
                continue

    assert 1 == scrape(url)["clusterports_up"][()]
    status = Path(f"/proc/{process.pid}/status").read_text()
    (threads,) = [int(line.split()[1]) for line in status.splitlines() if line.startswith("Threads:")]
    assert threads <= exporter.CONNECTIONS + 4
    assert is_over(crowd[0])
    for one in crowd:
        one.close()
    assert (0, "", "") == ended(process)


def is_over(client: socket.socket) -> bool:
    """Whether the server ended it, without an answer."""
    try:
        return client.recv(1) == b""
    except ConnectionResetError:
        return True


def test_full(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who is being answered is not sent away for another."""
    monkeypatch.setattr(exporter, "CONNECTIONS", 1)
    began, go = Event(), Event()

    def slow(_: object, start_response: Callable[..., Any]) -> list[bytes]:
        began.set()
        assert go.wait(PATIENCE)
        start_response("200 OK", [])
        return [b"figures"]

    with serving(slow) as (first, client):
        first.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert began.wait(PATIENCE)
        with client() as second:
            assert is_over(second)
        go.set()
        assert first.makefile("rb").read().endswith(b"figures")


def test_slow_to_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request has to be there as a whole in time; a byte now and then does not help."""
    monkeypatch.setattr(exporter, "ASKING", 0.2)
    with serving(never) as (client, _):
        client.settimeout(0.02)
        for _ in range(500):
            try:
                client.sendall(b"x")
                assert b"" == client.recv(1)
            except TimeoutError:
                continue
            except ConnectionError:
                pass
            break
        else:
            pytest.fail("it may ask for ever")


def test_slow_to_take(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """An answer that nobody takes ends in time, and nothing is told of it."""
    monkeypatch.setattr(exporter, "TAKING", 0.1)
    ended = Event()

    def leave(server: exporter._Server, client: socket.socket) -> None:
        left(server, client)
        ended.set()

    left = exporter._Server._leave
    monkeypatch.setattr(exporter._Server, "_leave", leave)

    def long(_: object, start_response: Callable[..., Any]) -> list[bytes]:
        start_response("200 OK", [])
        return [bytes(50_000_000)]

    with serving(long) as (client, _):
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert ended.wait(PATIENCE)
    assert "" == capsys.readouterr().err


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
