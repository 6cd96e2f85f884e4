"""A manager in a process of its own, as tests see it: told what to do, stopped, killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from faults.history import Recorder

if TYPE_CHECKING:
    from typing import Self

    from faults.history import Kind

__all__ = ["Process"]

TESTS = Path(__file__).resolve().parents[1]


class Process:
    """``arguments``: of :class:`manager.Manager`. Its history is in the folder, under the name of the instance."""

    def __init__(self, folder: Path, url: str, instance: str, **arguments: Any) -> None:
        self.instance = instance
        self.history = folder / f"{instance}.jsonl"
        told = {"url": url, "instance": instance, "history": str(self.history), "host": "h"} | arguments
        # What the tests find is what it finds, wherever that is.
        paths = [str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            [sys.executable, str(TESTS / "faults" / "manager.py"), json.dumps(told)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={name: value for name, value in os.environ.items() if not name.startswith("CLUSTERPORTS_")}
            | {"PYTHONPATH": os.pathsep.join(paths)},
        )

    def ask(self, command: str, **arguments: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([command, arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, f"{self.instance} ended with {self._process.wait()}"
        return json.loads(line)

    def do(self, command: str, **arguments: Any) -> Any:
        self.ask(command, **arguments)
        return self.answer()

    def stop(self) -> None:
        self._stopped = time.monotonic()
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._process.send_signal(signal.SIGCONT)
        self._suffers("stopped", self._stopped)

    def kill(self) -> None:
        asked = time.monotonic()
        self._process.kill()
        self._process.wait()
        self._suffers("killed", asked)

    def _suffers(self, what: Kind, since: float) -> None:
        """Into the history with it."""
        recorder = Recorder(self.history.with_suffix(f".{what}.jsonl"), self.instance)
        recorder.write(what, since)
        recorder.close()

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.end()
