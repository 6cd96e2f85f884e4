"""What the command says to bad input, and with which code it ends. Nothing is contacted, nothing written."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from contextlib import ExitStack, closing, suppress
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from typer.testing import CliRunner

from clusterports.cli import _app

if TYPE_CHECKING:
    from collections.abc import Iterator

    import servers
    from cli.conftest import Command, Main

PATIENCE = 30
NOWHERE = "redis://127.0.0.1:1/0"
RUN = ("run", "--range", "backup")
NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"


def test_version(main: Main) -> None:
    """The version is that of the distribution."""
    assert (0, f"clusterports {version('clusterports')}\n", "") == main("--version")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--ttl", "0"), "ttl: must be a number of seconds from 0.1 to 3600, got '0'"),
        (("--ttl", "nan"), "ttl: must be a number of seconds from 0.1 to 3600, got 'nan'"),
        (("--ttl", "soon"), "ttl: must be a number of seconds from 0.1 to 3600, got 'soon'"),
        (("--host", ""), f"host: {NAME}, got ''"),
        (("--host", "a\x1b[31mb\n"), f"host: {NAME}, got 'a\\x1b[31mb\\n'"),
        (("--instance", ""), f"instance: {NAME}, got ''"),
        (
            ("--url", "nonsense:secret@x"),
            "url: must be a URL such as redis://host:6379/0 without blanks or control characters, got 'nonsense:***@x'",
        ),
        (("--port", "x"), "port: must be an integer from 1 to 65535, got 'x'"),
        (("--label", "x"), "label: must be KEY=VALUE, got 'x'"),
        (("--label", "=x"), "label: must be KEY=VALUE, got '=x'"),
        (("--label", "a=b", "--label", "c=d", "--label", "a=b"), "label: a is given twice"),
        (("--config", "missing.toml"), "config: there is no file 'missing.toml'"),
        (
            ("--url", "memory://x"),
            (
                "url: must be a store that several processes share, such as redis://host:6379/0; "
                "got 'memory://x', which one process has to itself"
            ),
        ),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, main: Main) -> None:
    """One line that has key, bound and value; code 2."""
    url = () if "--url" in arguments else ("--url", NOWHERE)

    assert (2, "", f"clusterports: {message}\n") == main(*RUN, *url, *arguments, "--", "echo", "started")


@pytest.mark.parametrize("port", ["0", "-1", "10873"])
def test_port_outside(port: str, bare: Command) -> None:
    """A port that the range does not have can never be given: code 2, and the command is not started."""
    done = bare(*RUN, "--url", NOWHERE, "--port", port, "--", "echo", "started")

    assert (2, "", f"clusterports: port: {port} is not in range 'backup' (10809-10872)\n") == (
        done.returncode,
        done.stdout,
        done.stderr,
    )


def test_owner_too_long(main: Main) -> None:
    """Ten kilobytes of owner are accepted, more are refused."""
    code, _, err = main(*RUN, "--url", NOWHERE, "--owner", "x" * 10_241, "--", "echo", "started")

    assert 2 == code
    assert err.startswith("clusterports: owner: must be text of at most 10240 bytes in UTF-8, got 10241 bytes")


@pytest.mark.parametrize("arguments", [("run", "--range", "bakcup", "--", "true"), ("status", "--range", "bakcup")])
def test_unknown_range(arguments: tuple[str, ...], bare: Command) -> None:
    """An unknown range is refused with those that there are."""
    done = bare(*arguments, CLUSTERPORTS_URL=NOWHERE)

    assert 2 == done.returncode
    assert (
        "clusterports: range: unknown range 'bakcup', must be one of: backup, display, migration, websocket; "
        "did you mean 'backup'?\n"
    ) == done.stderr


WRONG_URLS = [
    ("redis://h:99999", "redis://h:99999: the port must be a number from 1 to 65535"),
    ("redis://h/zero", "redis://h/zero: database 'zero' is not a number"),
    ("redis://h?foo=bar", "redis://h: unknown parameter 'foo'"),
    ("sqlite://", "must be like sqlite:///relative/path.db or sqlite:////absolute/path.db, and names no file; got "),
    ("http://h", "unknown scheme 'http', must be one of "),
    ("memory://x", "must be a store that several processes share, such as redis://host:6379/0; got 'memory://x'"),
]


@pytest.mark.parametrize(("url", "told"), WRONG_URLS)
@pytest.mark.parametrize("arguments", [("status",), ("acquire",)])
def test_where_a_wrong_url_was_set(arguments: tuple[str, ...], url: str, told: str, main: Main) -> None:
    """What only the store finds wrong with its URL is told with the variable or the line that set it."""
    Path("clusterports.toml").write_text(f"\nurl = '{url}'")
    for place, environment in (("clusterports.toml:2", {}), ("CLUSTERPORTS_URL", {"CLUSTERPORTS_URL": url})):
        code, out, err = main(*arguments, **environment)

        assert (2, "") == (code, out)
        assert err.startswith(f"clusterports: url ({place}): {told}")


@pytest.mark.parametrize(("url", "told"), WRONG_URLS)
def test_a_wrong_url_as_an_argument(url: str, told: str, main: Main) -> None:
    """One on the command line needs no place."""
    code, out, err = main("status", "--url", url)

    assert (2, "") == (code, out)
    assert err.startswith(f"clusterports: url: {told}")


@pytest.mark.parametrize("home", [None, "/nonexistent"])
def test_no_home(home: str | None, bare: Command) -> None:
    """Who has no home directory does without it, when the store is elsewhere."""
    for name in ("HOME", "XDG_CONFIG_HOME"):
        del bare.environment[name]
    done = bare("acquire", **({} if home is None else {"HOME": home}))

    assert (0, "10809", "") == (done.returncode, done.stdout[:5], done.stderr)
    assert (bare.directory / "ports.db").is_file()


@pytest.mark.parametrize("arguments", [(*RUN, "--", "true"), ("status",)])
def test_unknown_scheme(arguments: tuple[str, ...], main: Main) -> None:
    """A URL of a store that nobody made a backend for is refused, without its password."""
    code, _, err = main(*arguments, CLUSTERPORTS_URL="redsi://:secret@x")

    assert 2 == code
    assert "url (CLUSTERPORTS_URL): unknown scheme 'redsi', must be one of " in err
    assert "did you mean 'redis'?" in err
    assert "secret" not in err


def test_server_not_there(bare: Command) -> None:
    """A server that does not answer is code 5, within the time given, and the command is not started."""
    bare.environment |= {"CLUSTERPORTS_URL": "redis://:secret@127.0.0.1:1/0", "CLUSTERPORTS_TIMEOUT": "0.3"}
    for arguments in ((*RUN, "--", "echo", "started"), ("status",)):
        done = bare(*arguments)

        assert (5, "") == (done.returncode, done.stdout)
        assert 1 == done.stderr.count("\n")
        assert "127.0.0.1:1" in done.stderr
        assert "secret" not in done.stderr


def test_wrong_toml(main: Main) -> None:
    """A file that cannot be read as TOML is code 2."""
    Path("clusterports.toml").write_text("ttl = = 5")
    message = "clusterports.toml: must be valid TOML in UTF-8: Invalid value (at line 1, column 7)"

    assert (2, "", f"clusterports: {message}\n") == main("status")


@pytest.mark.parametrize(
    "arguments",
    [
        ("frobnicate",),
        RUN,
        (*RUN, "--protocol", "sctp", "--", "true"),
        (*RUN, "--on-lost", "panic", "--", "true"),
        ("status", "--frobnicate"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """What the parser refuses is code 2."""
    assert 2 == CliRunner().invoke(_app.app, arguments).exit_code


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("statsu",), "No such command 'statsu'; did you mean 'status'?"),
        (("relaese", "7"), "No such command 'relaese'; did you mean 'release'?"),
        (("frobnicate",), "No such command 'frobnicate'"),
        (("a\x1b[31m",), "No such command 'a\\x1b[31m'"),
        (("--jsn", "status"), "No such option: --jsn (Possible options: --json)"),
        (("status", "--rnage", "backup"), "No such option: --rnage (Possible options: --range)"),
        (("acquire", "--cuont", "2"), "No such option: --cuont (Possible options: --config, --contiguous, --count)"),
        (("acquire", "--\x1b[31m"), "No such option: --\\x1b[31m"),
    ],
)
def test_did_you_mean(arguments: tuple[str, ...], told: str, main: Main) -> None:
    """A mistyped command or option is told with what may have been meant, and nothing that a terminal obeys."""
    code, out, err = main(*arguments)

    assert (2, "", f"Error: {told}") == (code, out, err.splitlines()[-1])
    assert err.replace("\n", "").isprintable()


@pytest.mark.parametrize("name", _app.COMMANDS)
def test_help(name: str, main: Main) -> None:
    """Every command explains itself and its options, also on a narrow terminal."""
    code, out, err = main(name, "--help", COLUMNS="40")
    text, _, options = out.partition("\nOptions:\n")
    told, _, examples = text.partition("\n  Examples:\n")

    assert (0, "") == (code, err)
    assert out.startswith(f"Usage: clusterports {name} ")
    assert f"    clusterports {name}" in examples
    for option in ("--url", "--host", "--instance", "--config", "--json", "--quiet", "--verbose"):
        assert f"  {option} " in options or f", {option} " in options
    assert 50 >= max(map(len, [*told.splitlines(), *options.splitlines()]))  # as narrow as the parser writes


def test_full_device(command: Command) -> None:
    """Output that cannot be written is an error, not a traceback."""
    with Path("/dev/full").open("w") as full:
        done = command.told("status", output=full)

    assert 1 == done.returncode
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_pipe(command: Command) -> None:
    """A reader that goes away is no reason to say anything."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = command.told("status", "--json", output=pipe)

    assert (1, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_light(arguments: list[str], bare: Command) -> None:
    """Neither help nor `run` waits for the import of what it does not use."""
    code = (
        f"import sys\nsys.argv = ['clusterports', *{arguments!r}]\nfrom clusterports.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'rich.console', 'rich.table', 'redis', 'pydantic_settings'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert "[]\n" == done.stderr


@pytest.fixture
def locked(valkey: servers.ServerStore) -> Iterator[str]:
    """The URL of a server that wants a password, without it."""
    valkey.client.config_set("requirepass", "right")
    yield valkey.url
    with redis.Redis.from_url(valkey.url, password="right") as client:
        client.config_set("requirepass", "")


@pytest.mark.parametrize("secret", ["", ":wr0ng@"])
def test_wrong_password(secret: str, bare: Command, locked: str) -> None:
    """A password that is missing, or that the server refuses, is code 5, and is not shown."""
    done = bare("status", "--url", locked.replace("://", f"://{secret}"))

    assert 5 == done.returncode
    assert 1 == done.stderr.count("\n")
    assert "wr0ng" not in done.stderr


def test_mistakes_are_told_in_one_line(main: Main, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even a mistake of our own reaches nobody as a traceback, unless Python runs in development mode."""

    def fail(**_: Any) -> None:
        raise KeyError("x\x1b[31m")

    monkeypatch.setattr(_app, "app", fail)

    assert (1, "", "clusterports: unexpected KeyError: 'x\\x1b[31m' (python -X dev shows where)\n") == main("status")


ASKING = {
    "run": ("--", "echo", "started"),
    "status": (),
    "hosts": (),
    "acquire": (),
    "renew": ("7",),
    "release": ("7",),
    "release --force": ("--force", "--yes", "h", "7"),
    "backup-xml": ("in.xml",),
    "doctor": (),
    "gc": (),
}


def test_ctrl_c(bare: Command) -> None:
    """Ctrl-C ends every command at once and in silence, although its store does not answer."""
    (bare.directory / "in.xml").write_text("<domainbackup mode='pull'/>")
    with ExitStack() as stack:
        started = {}
        for name, arguments in ASKING.items():
            silent = stack.enter_context(socket.create_server(("127.0.0.1", 0)))
            silent.settimeout(PATIENCE)
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            words = (name.split()[0], "--url", url, *arguments)
            started[name] = silent, bare.start(*words, CLUSTERPORTS_TIMEOUT="3600")
        outcomes = {}
        for name, (silent, process) in started.items():
            stack.enter_context(silent.accept()[0])
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=PATIENCE)
            outcomes[name] = process.returncode, "started" in out, err

    assert dict.fromkeys(ASKING, (130, False, "")) == outcomes


def has_opened(pid: int, path: Path) -> bool:
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # it was closed meanwhile, or has no name
            if file.samefile(path):
                return True
    return False


@pytest.mark.parametrize("arguments", [("acquire",), ("run", "--", "echo", "started")])
def test_ctrl_c_while_the_file_is_locked(arguments: tuple[str, ...], bare: Command) -> None:
    """The same goes for a file that somebody else keeps locked."""
    path = bare.directory / "ports.db"
    bare("acquire")
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        process = bare.start(*arguments, CLUSTERPORTS_TIMEOUT="3600")
        deadline = time.monotonic() + PATIENCE
        while not has_opened(process.pid, path):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=PATIENCE)

    assert (130, "", "") == (process.returncode, out, err)


@pytest.mark.parametrize("arguments", [("status",), ("ranges",), ("doctor",)])
def test_closed_stdout(arguments: tuple[str, ...], bare: Command) -> None:
    """Who started it without any output wants none."""
    done = bare.told(*arguments, line='exec "$@" >&-')

    assert (0, "") == (done.returncode, done.stderr)


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("sta", ["status"]),
        ("re", ["renew", "release"]),
        ("acquire --range ba", ["backup"]),
        ("run --range ", ["backup", "display", "migration", "websocket"]),
        ("acquire --conti", ["--contiguous"]),
        ("status --range nothing", []),
    ],
)
def test_completion(words: str, offered: list[str], main: Main) -> None:
    """The shell is offered commands, options and the names of the ranges."""
    given = f"clusterports {words}"
    code, out, err = main(
        _CLUSTERPORTS_COMPLETE="complete_bash", COMP_WORDS=given, COMP_CWORD=str(len(given.split(" ")) - 1)
    )

    assert (0, offered, "") == (code, out.split(), err)


def test_completion_without_settings(main: Main) -> None:
    """A file that cannot be read is no matter for one who presses the tabulator."""
    Path("clusterports.toml").write_text("ttl = = 5")
    code, out, err = main(
        _CLUSTERPORTS_COMPLETE="complete_bash", COMP_WORDS="clusterports run --range ba", COMP_CWORD="3"
    )

    assert (0, "", "") == (code, out.strip(), err)


def test_completion_is_light(bare: Command) -> None:
    """To complete the name of a command loads neither stores nor settings nor tables."""
    code = (
        "import sys\nfrom clusterports.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "heavy = {'rich.console', 'rich.table', 'redis', 'sqlite3', 'pydantic_settings'}\n"
        "print(sorted(heavy & set(sys.modules)), file=sys.stderr)"
    )
    asked = {"_CLUSTERPORTS_COMPLETE": "complete_bash", "COMP_WORDS": "clusterports sta", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env=bare.environment | asked,
        timeout=PATIENCE,
        check=False,
    )

    assert ("status", "[]") == (done.stdout.strip(), done.stderr.strip())


def test_show_completion(bare: Command) -> None:
    """The shell's own script can be had for its configuration."""
    done = subprocess.run(
        ["bash", "-c", '"$@"; exit $?', "-", sys.executable, "-m", "clusterports.cli", "--show-completion"],
        capture_output=True,
        text=True,
        env=bare.environment,
        timeout=PATIENCE,
        check=False,
    )

    assert (0, "") == (done.returncode, done.stderr)
    assert "_CLUSTERPORTS_COMPLETE=complete_bash" in done.stdout
