"""The generator of the sync half, on a tree of its own."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

SOURCE = '''\
"""``await ports.close()``"""

import asyncio
from redis.asyncio import Redis


class AsyncPorts:
    async def __aenter__(self) -> "AsyncPorts":
        async with self.lock:
            return await self.open()

    async def close(self) -> None:
        try:
            await self.stop()
        except asyncio.CancelledError:  # async-only
            raise
        finally:
            # sync-only: self.join()
            pass

    @staticmethod
    def loop() -> None:  # async-only
        print(Redis)
'''

TARGET = '''\
# Generated from clusterports/_async/ports.py by .ci/unasync.py; do not edit.

"""``ports.close()``"""


class Ports:
    def __enter__(self) -> "Ports":
        with self.lock:
            return self.open()

    def close(self) -> None:
        try:
            self.stop()
        finally:
            self.join()
            pass
'''


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for name in (".ci", "clusterports/_async", "clusterports/_sync"):
        (tmp_path / name).mkdir(parents=True)
    shutil.copy(ROOT / ".ci/unasync.py", tmp_path / ".ci")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "clusterports/_async/ports.py").write_text(SOURCE)
    unasync(tmp_path)
    return tmp_path


def unasync(tree: Path, *arguments: str) -> tuple[int, list[str]]:
    command = [sys.executable, str(tree / ".ci/unasync.py"), *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    return result.returncode, [line for line in result.stderr.splitlines() if not line.startswith("rule ")]


def test_translation(tree: Path) -> None:
    """Keywords, names and docstrings lose what is async; what is marked is left out or put in."""
    assert (tree / "clusterports/_sync/ports.py").read_text() == TARGET


def test_differences_are_found(tree: Path) -> None:
    """A changed file and a file without a source are faults, and checking writes nothing."""
    assert unasync(tree, "--check")[1] == []
    target = tree / "clusterports/_sync/ports.py"
    target.write_text(TARGET + "\n")
    (tree / "clusterports/_sync/old.py").touch()
    assert unasync(tree, "--check") == (
        1,
        [
            "clusterports/_sync/ports.py: differs from what clusterports/_async/ports.py gives",
            "clusterports/_sync/old.py: has no source",
        ],
    )
    assert target.read_text() == TARGET + "\n"


def test_unused_rules_are_found(tree: Path) -> None:
    """A rule that applies nowhere is a fault."""
    (tree / "clusterports/_async/ports.py").write_text("x = 1\n")
    result = subprocess.run([sys.executable, tree / ".ci/unasync.py"], capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert r"rule '\\bawait ': never applied" in result.stderr


def test_mark_in_the_middle_is_refused(tree: Path) -> None:
    """A mark on a line where nothing begins would be lost in silence."""
    (tree / "clusterports/_async/ports.py").write_text("x = [\n    1,  # async-only\n]\n")
    assert unasync(tree) == (
        1,
        ["clusterports/_async/ports.py: no statement begins on line 2, which is marked async-only"],
    )
