"""The command, as its users start it: a process with a clean environment in a directory of its own."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import pytest

from clusterports import cli

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from clusterports.abc import SpaceView

    Main = Callable[..., tuple[int, str, str]]
    Look = Callable[..., SpaceView]

PATIENCE = 30
"""Seconds; only a test that fails waits for so long."""


def get(url: str, **headers: str) -> tuple[int, str]:
    """Status and text."""
    request = urllib.request.Request(url, headers=headers)  # noqa: S310
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE) as answer:  # noqa: S310
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


class Command:
    """``clusterports`` with a store, on a host of its own unless the arguments say otherwise."""

    def __init__(self, directory: Path, url: str | None) -> None:
        self.directory = directory
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
        # The first: output that cannot be written is noticed late. The others: pytest's workers inherit them.
        for name in ("PYTHONUNBUFFERED", "COLUMNS", "LINES"):
            self.environment.pop(name, None)
        self.environment |= {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "CLUSTERPORTS_HOST": "h"}
        self.environment["STATE_DIRECTORY"] = str(directory)  # where the store of those is who configured none
        if url is not None:
            self.environment["CLUSTERPORTS_URL"] = url
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def told(self, *arguments: str, output: Any = None, line: str = 'exec "$@"') -> subprocess.CompletedProcess[str]:
        """Run it to its end with its output there, by a shell line that may change its descriptors before."""
        return subprocess.run(
            ["sh", "-c", line, "-", sys.executable, "-m", "clusterports.cli", *arguments],
            stdout=output,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment,
            timeout=PATIENCE,
            check=False,
        )

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start it, in a process group of its own."""
        process = subprocess.Popen(
            [sys.executable, "-m", "clusterports.cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=self.directory,
            env=self.environment | environment,
            process_group=0,
        )
        self._started.append(process)
        return process

    def holding(self, *arguments: str, script: str = "") -> tuple[subprocess.Popen[str], int]:
        """Start ``run`` with a Python command that says its pid, and wait for that.

        ``script`` comes first; after it the command sleeps until a signal ends it.
        """
        body = f"import os, signal, sys, time\n{script}\nprint(os.getpid(), flush=True)\nwhile True: time.sleep(60)"
        process = self.start("run", "--range", "backup", *arguments, "--", sys.executable, "-c", body)
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said, process.communicate(timeout=PATIENCE)[1]
        return process, int(said)

    def kill_all(self) -> None:
        for process in self._started:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            for stream in (process.stdout, process.stderr):
                if stream is not None:
                    stream.close()
            process.wait(PATIENCE)


@pytest.fixture
def bare(tmp_path: Path) -> Iterator[Command]:
    """The command without a store."""
    command = Command(tmp_path, None)
    yield command
    command.kill_all()


@pytest.fixture
def command(tmp_path: Path, valkey: Any) -> Iterator[Command]:
    """The command with an empty store on a real server."""
    command = Command(tmp_path, valkey.url)
    yield command
    command.kill_all()


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Main]:
    """The command in this process, for what ends before a process would matter: code, output, error output."""
    for name in list(os.environ):
        if name.startswith("CLUSTERPORTS_"):
            monkeypatch.delenv(name)
    monkeypatch.delenv("COLUMNS", raising=False)
    for name in ("XDG_CONFIG_HOME", "STATE_DIRECTORY"):
        monkeypatch.setenv(name, str(tmp_path))
    logger = logging.getLogger("clusterports")
    monkeypatch.setattr(logger, "handlers", [])
    monkeypatch.setattr(logger, "level", logger.level)
    heard = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGHUP)}
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

    yield run
    for number, handler in heard.items():
        signal.signal(number, handler)


@pytest.fixture
def script(main: Main, valkey: Any, monkeypatch: pytest.MonkeyPatch) -> Main:
    """The same with an empty store on a real server, on a host that is not this machine."""
    monkeypatch.setenv("CLUSTERPORTS_URL", valkey.url)
    monkeypatch.setenv("CLUSTERPORTS_HOST", "h")
    return main


@pytest.fixture
def look(valkey: Any) -> Iterator[Look]:
    """How a space of that store stands; by default that of host h."""
    with valkey.connect() as backend:
        yield lambda space="host:h": backend.read([space])[0]
