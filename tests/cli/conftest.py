"""The command, as its users start it: a process with a clean environment in a directory of its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PATIENCE = 30
"""Seconds; only a test that fails waits for so long."""


class Command:
    """``clusterports`` with a store, on a host of its own unless the arguments say otherwise."""

    def __init__(self, directory: Path, url: str | None) -> None:
        self.directory = directory
        self.environment = {name: text for name, text in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
        self.environment |= {"HOME": str(directory), "XDG_CONFIG_HOME": str(directory), "CLUSTERPORTS_HOST": "h"}
        if url is not None:
            self.environment["CLUSTERPORTS_URL"] = url
        self._started: list[subprocess.Popen[str]] = []

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it to its end."""
        process = self.start(*arguments, **environment)
        out, err = process.communicate(timeout=PATIENCE)
        assert "Traceback" not in err
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

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
