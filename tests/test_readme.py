"""Every example of the README is run and says what the README says it says."""

from __future__ import annotations

import contextlib
import doctest
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


@pytest.mark.parametrize("session", blocks("console"))
def test_console(session: str, valkey: ServerStore, tmp_path: Path) -> None:
    """A shell session runs as it stands, on a real server, and prints what is shown; ``...`` stands for anything."""
    assert valkey.url is not None
    head, *parts = re.split(r"^\$ ", session, flags=re.MULTILINE)
    assert head == ""
    commands = [part.partition("\n")[0] for part in parts]
    script = f"\necho '{MARK}'\n".join(commands).replace(URL, valkey.url)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {"PATH": path, "HOME": str(tmp_path), "LC_ALL": "C.UTF-8", "CLUSTERPORTS_HOST": "kvm-07"}
    result = subprocess.run(
        ["bash", "-u"], input=script, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, check=False, timeout=60,
    )  # fmt: skip
    outputs = result.stdout.replace(valkey.url, URL).split(f"{MARK}\n")
    expected = [part.partition("\n")[2].rstrip("\n") for part in parts]
    assert len(outputs) == len(expected), result.stdout
    checker = doctest.OutputChecker()
    for want, got in zip(expected, outputs, strict=True):
        shown = "\n".join(line.rstrip() for line in got.rstrip("\n").splitlines())
        assert checker.check_output(want, shown, doctest.ELLIPSIS), f"the README says\n{want}\nand it is\n{shown}"


def test_there_are_examples() -> None:
    """The examples are found at all."""
    assert min(len(blocks("python")), len(blocks("console"))) >= 3
