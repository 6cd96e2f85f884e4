"""What the command says to bad input, and with which code it ends. Nothing is contacted, nothing written."""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from clusterports.cli import app

if TYPE_CHECKING:
    from .conftest import Command  # type: ignore[import-not-found]

NOWHERE = "redis://127.0.0.1:1/0"
RUN = ("run", "--range", "backup")
NAME = "must be 1 to 255 bytes of UTF-8 without control characters or blanks at either end"


def test_version(bare: Command) -> None:
    """The version is that of the distribution."""
    done = bare("--version")

    assert (0, f"clusterports {version('clusterports')}\n") == (done.returncode, done.stdout)


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
            "url: must be a store that several processes share, such as redis://host:6379/0; "
            "got 'memory://x', which one process has to itself",
        ),
        (("--port", "80"), "port: 80 is not in range 'backup' (10809-10872)"),
        (("--port", "0"), "port: 0 is not in range 'backup' (10809-10872)"),
    ],
)
def test_bad_arguments(arguments: tuple[str, ...], message: str, bare: Command) -> None:
    """One line that has key, bound and value; code 2."""
    url = () if "--url" in arguments else ("--url", NOWHERE)
    done = bare(*RUN, *url, *arguments, "--", "echo", "started")

    assert (2, "", f"clusterports: {message}\n") == (done.returncode, done.stdout, done.stderr)


def test_owner_too_long(bare: Command) -> None:
    """Ten kilobytes of owner are accepted, more are refused."""
    done = bare(*RUN, "--url", NOWHERE, "--owner", "x" * 10_241, "--", "echo", "started")

    assert 2 == done.returncode
    assert done.stderr.startswith("clusterports: owner: must be text of at most 10240 bytes in UTF-8, got 10241 bytes")


def test_unknown_range(bare: Command) -> None:
    """An unknown range is refused with those that there are."""
    for arguments in (("run", "--range", "bakcup", "--", "true"), ("status", "--range", "bakcup")):
        done = bare(*arguments, CLUSTERPORTS_URL=NOWHERE)

        assert 2 == done.returncode
        assert (
            "clusterports: range: unknown range 'bakcup', must be one of: backup, display, migration, websocket; "
            "did you mean 'backup'?\n"
        ) == done.stderr


@pytest.mark.parametrize("arguments", [(*RUN, "--", "true"), ("status",)])
def test_no_store(arguments: tuple[str, ...], bare: Command) -> None:
    """Without a URL the command says how to give one."""
    done = bare(*arguments)

    assert 2 == done.returncode
    assert done.stderr.startswith("clusterports: url: there is no store to use; give --url redis://")
    for way in ("--url", "CLUSTERPORTS_URL", "clusterports.toml"):
        assert way in done.stderr


@pytest.mark.parametrize("arguments", [(*RUN, "--", "true"), ("status",)])
def test_unknown_scheme(arguments: tuple[str, ...], bare: Command) -> None:
    """A URL of a store that nobody made a backend for is refused, without its password."""
    done = bare(*arguments, "--url", "redsi://:secret@x") if arguments == ("status",) else bare(
        "run", "--url", "redsi://:secret@x", *arguments[1:]
    )

    assert 2 == done.returncode
    assert "url: unknown scheme 'redsi', must be one of " in done.stderr
    assert "did you mean 'redis'?" in done.stderr
    assert "secret" not in done.stderr


def test_server_not_there(bare: Command) -> None:
    """A server that does not answer is code 5, within the time given, and the command is not started."""
    bare.environment |= {"CLUSTERPORTS_URL": "redis://:secret@127.0.0.1:1/0", "CLUSTERPORTS_TIMEOUT": "0.3"}
    for arguments in ((*RUN, "--", "echo", "started"), ("status",)):
        done = bare(*arguments)

        assert (5, "") == (done.returncode, done.stdout)
        assert 1 == done.stderr.count("\n")
        assert "127.0.0.1:1" in done.stderr
        assert "secret" not in done.stderr


def test_wrong_toml(bare: Command) -> None:
    """A file that cannot be read as TOML is code 2."""
    (bare.directory / "clusterports.toml").write_text("ttl = = 5")
    done = bare("status")

    assert (2, "clusterports: clusterports.toml: must be valid TOML in UTF-8: Invalid value (at line 1, column 7)\n") == (
        done.returncode,
        done.stderr,
    )


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
    assert 2 == CliRunner().invoke(app, arguments).exit_code


def test_full_device(command: Command) -> None:
    """Output that cannot be written is an error, not a traceback."""
    with open("/dev/full", "w") as full:
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
        "print(sorted({'rich.table', 'rich.console', 'redis', 'pydantic'} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert "[]\n" == done.stderr


def test_wrong_password(bare: Command, locked: Any) -> None:
    """A password that the server refuses is code 5, and is not shown."""
    done = bare("status", "--url", locked.replace("://", "://:wr0ng@"))

    assert 5 == done.returncode
    assert "wr0ng" not in done.stderr
