"""Every example of the README is run and says what the README says it says."""

from __future__ import annotations

import contextlib
import io
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from servers import ServerStore

README = Path(__file__).resolve().parents[1] / "README.md"
URL = "redis://redis.example/0"
MARK = "-- next command --"
VARYING = {r"\b\d{16}\b": "FENCE", r"(?m)^\d\d:\d\d:\d\d ": "TIME ", r"\b\d+\.\d ?s\b": "SECONDS"}


def blocks(language: str) -> list[object]:
    """The fenced blocks of a language, each with the line it begins on as its name."""
    text = README.read_text(encoding="utf-8")
    found = re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [pytest.param(match[1], id=f"line {text[: match.start()].count(chr(10)) + 1}") for match in found]


@pytest.mark.parametrize("code", blocks("python"))
def test_python(code: str) -> None:
    """A Python example runs as it stands, and prints what its ``# ->`` comments say, line by line."""
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(compile(code, str(README), "exec"), {"__name__": "__main__"})  # noqa: S102
    assert output.getvalue().splitlines() == re.findall(r"# -> (.*)", code)


def normal(text: str) -> str:
    """Without what differs from run to run, and without blanks at the ends of lines."""
    for pattern, name in VARYING.items():
        text = re.sub(pattern, name, text)
    return "\n".join(line.rstrip() for line in text.strip().splitlines())


@pytest.mark.parametrize("session", blocks("console"))
def test_console(session: str, valkey: ServerStore, tmp_path: Path) -> None:
    """A shell session runs as it stands, on a real server, and prints what is shown."""
    head, *parts = re.split(r"^\$ ", session, flags=re.MULTILINE)
    assert head == ""
    script = f"\necho '{MARK}'\n".join(part.partition("\n")[0] for part in parts)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    own = {"HOME": str(tmp_path), "STATE_DIRECTORY": str(tmp_path)}
    environment = {"PATH": path, "LC_ALL": "C.UTF-8", "CLUSTERPORTS_HOST": "kvm-07"} | own
    result = subprocess.run(
        ["bash", "-u"], input=script.replace(URL, valkey.url), cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False, timeout=60,
    )  # fmt: skip
    expected = [normal(part.partition("\n")[2]) for part in parts]
    assert expected == [normal(output) for output in result.stdout.split(f"{MARK}\n")]


def test_there_are_examples() -> None:
    """The examples are found at all."""
    assert min(len(blocks("python")), len(blocks("console"))) >= 3
