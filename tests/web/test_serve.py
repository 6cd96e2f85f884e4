"""``clusterports serve`` as a process: how it begins and ends, and who reaches it."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cli.conftest import get
from conftest import missing
from web.conftest import PATIENCE, TOKEN

from clusterports.web import check_token

if TYPE_CHECKING:
    from typing import Self

    import servers
    from cli.conftest import Command, Main
    from web.conftest import Serve

NOISE = b"\x16\x03\x01 no HTTP\r\n\r\n"
ADDRESS = "must be ADDRESS:PORT such as 127.0.0.1:9810 or [::1]:9810, with a port from 0 to 65535"


def ended(process: subprocess.Popen[str], signum: int = signal.SIGTERM) -> tuple[int, str, str]:
    process.send_signal(signum)
    out, err = process.communicate(timeout=PATIENCE)
    return process.returncode, out, err


def place(url: str) -> tuple[str, int]:
    host, _, port = url.removeprefix("http://").rpartition(":")
    return host, int(port)


def said(url: str, request: bytes) -> bytes:
    """What comes back for these bytes."""
    with socket.create_connection(place(url), PATIENCE) as client:
        client.sendall(request)
        answer = b""
        while part := client.recv(65_536):
            answer += part
        return answer


def keep_sending(client: socket.socket) -> None:
    until = time.monotonic() + PATIENCE
    while time.monotonic() < until:
        client.sendall(b"x")
        time.sleep(0.05)


class Stream:
    """Somebody who follows."""

    def __init__(self, url: str) -> None:
        self._client = socket.create_connection(place(url), PATIENCE)
        self._client.sendall(b"GET /api/stream HTTP/1.1\r\nHost: localhost\r\n\r\n")
        self._file = self._client.makefile("rb")
        self.head = self._until(b"\r\n")

    def next(self, kind: str) -> dict[str, Any]:
        """The next event of that kind."""
        while True:
            lines = dict(line.split(": ", 1) for line in self._until(b"\n").decode().splitlines() if ": " in line)
            if lines.get("event") == kind:
                return dict(json.loads(lines["data"]), id=lines.get("id"))

    def rest(self) -> bytes:
        return self._file.read()

    def _until(self, empty: bytes) -> bytes:
        found = b""
        while (line := self._file.readline()) not in (empty, b""):
            found += line
        return found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._client.close()


def test_story(command: Command, serve: Serve) -> None:
    """It shows what is held, tells those who follow what changes, and SIGTERM ends it at once and in order, with
    somebody following.
    """
    assert 0 == command("acquire", "--owner", "vm-1").returncode
    process, url = serve(command)
    with Stream(url) as stream:
        while not (first := stream.next("map"))["hosts"]:
            pass
        assert 0 == command("acquire", "--owner", "vm-2", "--host", "far").returncode
        event, change = stream.next("event"), stream.next("map")
        shown = json.loads(get(f"{url}/api/status")[1])
        told = json.loads(command("status", "--json").stdout)
        began = time.monotonic()
        result = ended(process)
        took = time.monotonic() - began
        rest = stream.rest()

    assert b"content-type: text/event-stream" in stream.head
    assert ["h"] == [one["host"] for one in first["hosts"]]
    assert ("acquired", "far", 10809, "vm-2") == tuple(event[key] for key in ("kind", "host", "number", "owner"))
    assert (False, ["far"], []) == (change["all"], [one["host"] for one in change["hosts"]], change["gone"])
    assert [["far", "h"], ["far", "h"]] == [[one["host"] for one in each["hosts"]] for each in (shown, told)]
    assert (0, "", "") == result
    assert 1.5 > took
    assert rest.endswith(b"0\r\n\r\n")


def test_store_away_and_back(bare: Command, serve: Serve, tmp_path: Path) -> None:
    """It starts without a store, says so in one line and at /readyz, and goes on when the store is there."""
    store = tmp_path / "folder" / "ports.db"
    store.parent.mkdir()
    store.write_text("this is no database, but for a while")
    process, url = serve(bare, "--url", f"sqlite:///{store}")
    with Stream(url) as stream:
        while stream.next("map")["store"]["readable"]:
            pass
        health = get(f"{url}/readyz"), get(f"{url}/healthz"), get(f"{url}/")[0]
        store.unlink()
        assert 0 == bare("acquire", "--url", f"sqlite:///{store}").returncode
        while not (back := stream.next("map"))["hosts"]:
            pass
        ready = get(f"{url}/readyz")
        code, out, err = ended(process)

    assert ((503, "unavailable\n"), (200, "ok\n"), 200) == health
    assert (True, ["h"]) == (back["store"]["readable"], [one["host"] for one in back["hosts"]])
    assert (200, "ok\n") == ready
    assert (0, "") == (code, out)
    assert ["the store cannot be read", "the store can be read again"] == [
        line.removeprefix("clusterports: warning: ").partition(":")[0] for line in err.splitlines()
    ]


def test_no_secret(bare: Command, serve: Serve) -> None:
    """Neither the token nor the password of the store is in what is served or said."""
    environment = {"CLUSTERPORTS_WEB_TOKEN": TOKEN, "CLUSTERPORTS_TIMEOUT": "0.2"}
    process, url = serve(bare, "--url", "redis://:hunter2@127.0.0.1:1/0", "--verbose", **environment)
    bearer = {"Authorization": f"Bearer {TOKEN}"}
    until = time.monotonic() + PATIENCE
    while "cannot" not in (answer := get(f"{url}/api/map", **bearer)[1]) and '"readable": true' in answer:
        assert time.monotonic() < until
        time.sleep(0.02)
    answers = [get(f"{url}{path}", **bearer)[1] for path in ("/", "/api/status", "/api/events", "/metrics", "/no")]
    answers += [get(f"{url}/api/map")[1], get(f"{url}/api/map", Authorization=f"Bearer x{TOKEN}")[1]]
    code, out, err = ended(process)

    assert 0 == code
    assert '"readable": false' in answer
    for secret in (TOKEN, "hunter2"):
        assert secret not in "".join([answer, *answers, out, err])


def test_token_file(bare: Command, serve: Serve, tmp_path: Path) -> None:
    """The token may be in a file, with the end of a line after it; then nothing is served without it."""
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    process, url = serve(bare, "--token-file", "token", CLUSTERPORTS_WEB_TOKEN="another-token-of-somebody")

    assert 401 == get(f"{url}/api/map")[0]
    assert 200 == get(f"{url}/api/map", Authorization=f"Bearer {TOKEN}")[0]
    assert (0, "", "") == ended(process)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGHUP])
def test_json(signum: int, bare: Command) -> None:
    """A program is told the address as JSON; each of the usual signals ends it in order."""
    process = bare.start("serve", "--listen", "127.0.0.1:0", "--json")
    assert process.stdout is not None
    told = json.loads(process.stdout.readline())

    assert {"schema", "url"} == set(told)
    assert 200 == get(told["url"])[0]
    assert (0, "", "") == ended(process, signum)


def test_bad_clients(command: Command, serve: Serve) -> None:
    """Who sends too much, or no HTTP, or tricks, gets a clear answer of 4xx; nobody else notices, nothing is said."""
    process, url = serve(command)
    with Stream(url) as stream:
        stream.next("map")
        large = said(url, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + 10_000_000 * b"x" + b"\r\n\r\n")
        line = said(url, b"GET /" + 10_000_000 * b"x" + b" HTTP/1.1\r\nHost: localhost\r\n\r\n")
        noise = said(url, NOISE)
        for path in (b"/../../etc/passwd", b"/static/../../_app.py", b"/static/%2e%2e/_app.py", b"//", b"//etc/passwd",
                     b"/%00", b"/static/app.js%00", b"/..%2f..%2fetc/passwd", b"/./", b"/static//app.js", b"*",
                     b"http://evil.example/api/map", b"/\\..\\"):  # fmt: skip
            tricked = said(url, b"GET " + path + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            assert tricked.startswith((b"HTTP/1.1 404 ", b"HTTP/1.1 400 ")), (path, tricked)
        long = said(url, b"GET /" + 5000 * b"x" + b" HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        upgrade = said(
            url,
            b"GET /api/stream HTTP/1.1\r\nHost: evil.example\r\nConnection: upgrade, close\r\nUpgrade: websocket\r\n"
            b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n\r\n",
        )
        alive = get(f"{url}/api/map")[0]
        result = ended(process)

    assert [b"HTTP/1.1 400 "] * 3 == [answer[:13] for answer in (large, line, noise)]
    assert [b"HTTP/1.1 414 ", b"HTTP/1.1 421 "] == [long[:13], upgrade[:13]]
    assert (200, (0, "", "")) == (alive, result)


def test_silent_clients(bare: Command, serve: Serve) -> None:
    """Who connects and does not ask to the end, at first or again, is shown out after some seconds."""
    process, url = serve(bare)
    again = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\nGET /"
    begun = (b"", b"GET / HT", again, NOISE)
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.create_connection(place(url), PATIENCE)) for _ in begun]
        for client, part in zip(clients, begun, strict=True):
            client.sendall(part)
        for client in clients:
            with suppress(ConnectionResetError):
                while client.recv(65_536):
                    pass
        with pytest.raises((BrokenPipeError, ConnectionResetError)):  # after an answer, but before long
            keep_sending(clients[-1])
        with Stream(url) as stream, socket.create_connection(place(url), PATIENCE) as refused:
            stream.next("map")
            refused.sendall(NOISE)
            assert refused.recv(100).startswith(b"HTTP/1.1 400 ")
            assert (0, "", "") == ended(process)


def test_many_follow(bare: Command, serve: Serve) -> None:
    """No more than 64 follow at the same time; who leaves makes room."""
    process, url = serve(bare)
    with ExitStack() as stack:
        followers = [stack.enter_context(Stream(url)) for _ in range(64)]
        for one in followers:
            one.next("map")
        refused = get(f"{url}/api/stream")
        followers[0].__exit__()
        until = time.monotonic() + PATIENCE
        room = False
        while not room:
            with Stream(url) as stream:
                room = stream.head.startswith(b"HTTP/1.1 200 ")
            assert time.monotonic() < until

    assert (503, {"error": "stream: at most 64 may follow at the same time"}) == (refused[0], json.loads(refused[1]))
    assert (0, "", "") == ended(process)


def test_no_version_of_the_server(bare: Command, serve: Serve) -> None:
    """What serves is not told."""
    process, url = serve(bare)
    answer = said(url, b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")

    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"\nserver:" not in answer.lower()
    assert (0, "", "") == ended(process)


def test_token_of_the_readme(tmp_path: Path) -> None:
    """What the README does with the token shows it to nobody else: neither the files, nor what a command is given."""
    readme = (Path(__file__).parents[2] / "README.md").read_text("utf-8")
    block = next(one for one in re.findall(r"^```sh\n(.*?)```", readme, re.MULTILINE | re.DOTALL) if "web-token" in one)
    lines = block.splitlines()
    for line in lines[:2]:
        subprocess.run(["sh", "-c", f"umask 022; {line}"], cwd=tmp_path, check=True)
    token = (tmp_path / "web-token").read_text().strip()

    assert f"Authorization: Bearer {check_token(token)}\n" == (tmp_path / "web-header").read_text()
    assert {0o600} == {one.stat().st_mode & 0o777 for one in tmp_path.iterdir()}
    assert ["clusterports serve", "curl --header @web-header"] == [" ".join(lines[2].split()[:2]), lines[3][:25]]
    assert [] == [line for line in lines[2:] if "$" in line]


# ---------------------------------------------------------------------- what is refused at the start


@pytest.mark.parametrize("listen", ["0.0.0.0:0", "[::]:0", "[::ffff:0.0.0.0]:0", "192.0.2.1:0"])
def test_others_need_a_token(listen: str, main: Main) -> None:
    """Any address but one of this machine alone is refused without a token, before anything is served."""
    message = (
        "listen: must be an address of this machine alone where there is no token (--token-file, "
        f"CLUSTERPORTS_WEB_TOKEN); got '{listen}'"
    )
    assert (2, "", f"clusterports: {message}\n") == main("serve", "--listen", listen)


@pytest.mark.parametrize(
    ("arguments", "token", "message"),
    [
        (("--listen", "here"), None, f"listen: {ADDRESS}; got 'here'"),
        (("--every", "0"), None, "every: must be a number of seconds from 1 to 3600, got '0'"),
        (("--every", "soon"), None, "every: must be a number of seconds from 1 to 3600, got 'soon'"),
        (("--token-file", "none"), None, "token-file: 'none' cannot be read: No such file or directory"),
        (("--token-file", "."), None, "token-file: '.' cannot be read: Is a directory"),
        ((), "guess", "token: must be 16 to 1024 printable ASCII characters without blanks, got 5 characters"),
        ((), "", "token: must be 16 to 1024 printable ASCII characters without blanks, got 0 characters"),
    ],
)  # fmt: skip
def test_bad_values(arguments: tuple[str, ...], token: str | None, message: str, main: Main) -> None:
    """Errors name the key, the value unless it is the token, and the bound."""
    environment = {} if token is None else {"CLUSTERPORTS_WEB_TOKEN": token}

    assert (2, "", f"clusterports: {message}\n") == main("serve", *arguments, **environment)


def test_port_in_use(main: Main) -> None:
    """A port that something else has: code 3."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"

        assert (3, "", f"clusterports: listen: {taken} is in use by another process\n") == main(
            "serve", "--listen", taken
        )


@pytest.mark.parametrize("module", ["starlette", "uvicorn", "prometheus_client"])
def test_without_the_extra(module: str, bare: Command) -> None:
    """It says what to install."""
    code = (
        f"import sys\nsys.modules[{module!r}] = None\nsys.argv = ['clusterports', 'serve']\n"
        "from clusterports.cli import main\nmain()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=False,
        env=bare.environment, cwd=bare.directory,
    )  # fmt: skip

    assert (1, "", f"clusterports: web: needs {module}: pip install clusterports[web]\n") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_nothing_of_it_is_loaded_elsewhere(bare: Command) -> None:
    """Neither the library nor another command pays for the page."""
    code = (
        "import sys, clusterports, clusterports.cli.status, clusterports.cli._app\n"
        "print({'starlette', 'uvicorn', 'prometheus_client', 'clusterports.web'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=PATIENCE, check=True)

    assert "set()\n" == done.stdout


# ---------------------------------------------------------------------- from another machine


class Wire:
    """Two network namespaces with a wire between them, gone with the processes that hold them. Needs root."""

    SERVER, CLIENT = "192.0.2.1", "192.0.2.2"

    def __enter__(self) -> Self:
        if os.geteuid() != 0:
            pytest.skip("network namespaces need root")  # in CI these run as root, with those of libvirt
        if gone := [program for program in ("ip", "unshare", "nsenter") if shutil.which(program) is None]:
            missing(f"not in PATH: {', '.join(gone)}")
        with ExitStack() as stack:
            self._pids = [self._namespace(stack) for _ in range(2)]
            other = self._pids[1]
            wire = subprocess.run(
                [*self.inside(0), "ip", "link", "add", "wire", "type", "veth", "peer", "name", "wire", "netns", other],
                capture_output=True, text=True, check=False,
            )  # fmt: skip
            if wire.returncode:
                missing(f"no network namespaces: {wire.stderr}")
            for i, address in enumerate((self.SERVER, self.CLIENT)):
                for line in ("link set lo up", f"address add {address}/24 dev wire", "link set wire up"):
                    subprocess.run([*self.inside(i), "ip", *line.split()], check=True)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def inside(self, i: int) -> list[str]:
        """What makes a command run in there: 0, where it is served, or 1, from where it is asked for."""
        return ["nsenter", "--target", self._pids[i], "--net"]

    def get(self, url: str, *headers: str) -> int:
        """The status that somebody on the other side gets."""
        code = (
            "import sys, urllib.error, urllib.request as r\n"
            "request = r.Request(sys.argv[1], headers=dict(one.split(': ', 1) for one in sys.argv[2:]))\n"
            "try: print(r.urlopen(request, timeout=20).status)\n"
            "except urllib.error.HTTPError as error: print(error.code)"
        )
        command = [*self.inside(1), sys.executable, "-c", code, url, *headers]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE)
        return int(done.stdout)

    @staticmethod
    def _namespace(stack: ExitStack) -> str:
        ready = ["sh", "-c", "echo; exec sleep 600"]
        process = subprocess.Popen(
            ["unshare", "--net", *ready], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        stack.enter_context(process)
        stack.callback(process.kill)
        assert process.stdout is not None
        if not process.stdout.readline():
            missing(f"no network namespaces: {process.communicate()[1]}")
        return str(process.pid)


def test_from_another_machine(sqlite: servers.SqliteStore, bare: Command) -> None:
    """Who comes by the network gets 401 for everything without the token, by any name; with it, all."""
    with Wire() as wire:
        command = [*wire.inside(0), sys.executable, "-m", "clusterports.cli", "serve", "--listen", "192.0.2.1:9810"]
        environment = bare.environment | {"CLUSTERPORTS_URL": sqlite.url}
        options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        refused = subprocess.run(command, env=environment, timeout=PATIENCE, check=False, **options)
        with subprocess.Popen(command, env=environment | {"CLUSTERPORTS_WEB_TOKEN": TOKEN}, **options) as process:
            assert process.stdout is not None
            line = process.stdout.readline()
            base = "http://192.0.2.1:9810"
            paths = ("/", "/api/map", "/api/status", "/api/stream", "/metrics", "/static/app.js", "/nothing")
            without = {wire.get(base + path) for path in paths}
            named = wire.get(f"{base}/api/map", "Host: localhost")
            within = wire.get(f"{base}/api/map", f"Authorization: Bearer {TOKEN}")
            health = wire.get(f"{base}/healthz")
            result = ended(process)

    assert (2, "") == (refused.returncode, refused.stdout)
    assert "listen: must be an address of this machine alone where there is no token" in refused.stderr
    assert f"Serving {base}/\n" == line
    assert ({401}, 401, 200, 200) == (without, named, within, health)
    assert (0, "", "") == result
