"""What the command says to bad input, and with which code it ends. Nothing is contacted, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
from typer.testing import CliRunner

from clusterports import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    import servers
    from cli.conftest import Command

    Main = Callable[..., tuple[int, str, str]]

NOWHERE = "redis://127.0.0.1:1/0"
RUN = ("run", "--range", "backup")
NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Main:
    """The command in this process, for what ends before a process would matter: code, output, error output."""
    for name in list(os.environ):
        if name.startswith("CLUSTERPORTS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clusterports", *arguments])
        for name, text in environment.items():
            monkeypatch.setenv(name, text)
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capsys.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, out, err

    return run


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
        (("--label", "x"), "label: must be KEY=VALUE, got 'x'"),
        (("--label", "=x"), "label: must be KEY=VALUE, got '=x'"),
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


@pytest.mark.parametrize("port", ["80", "0", "-1", "10873", "70000"])
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


@pytest.mark.parametrize("arguments", [(*RUN, "--", "true"), ("status",)])
def test_no_store(arguments: tuple[str, ...], main: Main) -> None:
    """Without a URL the command says how to give one."""
    code, _, err = main(*arguments)

    assert 2 == code
    assert err.startswith("clusterports: url: there is no store to use; give --url redis://")
    for way in ("--url", "CLUSTERPORTS_URL", "clusterports.toml"):
        assert way in err


@pytest.mark.parametrize("arguments", [(*RUN, "--", "true"), ("status",)])
def test_unknown_scheme(arguments: tuple[str, ...], main: Main) -> None:
    """A URL of a store that nobody made a backend for is refused, without its password."""
    code, _, err = main(*arguments, CLUSTERPORTS_URL="redsi://:secret@x")

    assert 2 == code
    assert "url: unknown scheme 'redsi', must be one of " in err
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
        ("run", "--", "true"),
        RUN,
        (*RUN, "--port", "x", "--", "true"),
        (*RUN, "--protocol", "sctp", "--", "true"),
        (*RUN, "--on-lost", "panic", "--", "true"),
        ("status", "--frobnicate"),
    ],
)
def test_wrong_usage(arguments: tuple[str, ...]) -> None:
    """What the parser refuses is code 2."""
    assert 2 == CliRunner().invoke(cli.app, arguments).exit_code


def test_full_device(command: Command) -> None:
    """Output that cannot be written is an error, not a traceback."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "clusterports.cli", "status"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=command.environment,
            cwd=command.directory,
            timeout=30,
            check=False,
        )

    assert 1 == done.returncode
    assert "No space left on device" in done.stderr
    assert "Traceback" not in done.stderr


def test_broken_pipe(command: Command) -> None:
    """A reader that goes away is no reason to say anything."""
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        done = subprocess.run(
            [sys.executable, "-m", "clusterports.cli", "status", "--json"],
            stdout=pipe,
            stderr=subprocess.PIPE,
            text=True,
            env=command.environment,
            cwd=command.directory,
            timeout=30,
            check=False,
        )

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

    monkeypatch.setattr(cli, "app", fail)

    assert (1, "", "clusterports: unexpected KeyError: 'x\\x1b[31m' (python -X dev shows where)\n") == main("status")
