"""deploy/systemd: units that systemd takes, that keep what they know from others, and that start what they say."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from deploy.kit import DEPLOY, PATIENCE, check, get

if TYPE_CHECKING:
    from collections.abc import Iterator

UNITS = ["clusterports-exporter.service", "clusterports-serve.service"]
INSTALLED = "/usr/local/lib/clusterports/bin/clusterports"
SECRET = "wanted-by-nobody-0123456789"


def values(text: str, key: str) -> list[str]:
    return re.findall(rf"^{key}=(.*)$", text, re.MULTILINE)


@pytest.fixture(params=UNITS)
def unit(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A unit, with a command that is there."""
    command = tmp_path / "clusterports"
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m clusterports.cli "$@"\n')
    command.chmod(0o755)
    text = (DEPLOY / "systemd" / request.param).read_text("utf-8")
    assert text.count(INSTALLED) == 1
    path = tmp_path / str(request.param)
    path.write_text(text.replace(INSTALLED, str(command)))
    return path


def test_verify(unit: Path) -> None:
    """systemd has nothing to say against it."""
    said = check("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unit)
    assert [] == [line for line in said.splitlines() if unit.name in line], "other units of this machine are not ours"


def test_exposure(unit: Path) -> None:
    """What systemd counts as exposed is 1.5 of 10 at most: the network, and little else."""
    said = check("systemd-analyze", "security", "--offline=true", "--no-pager", "--threshold=15", unit)
    assert "Overall exposure level" in said


@pytest.fixture
def started(unit: Path, tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """The command of the unit as systemd starts it, and where it serves."""
    text, credentials = unit.read_text(), tmp_path / "credentials"
    credentials.mkdir()
    for name, source in (line.split(":") for line in values(text, "LoadCredential")):
        assert source.startswith("/etc/clusterports/")
        said = SECRET if name == "token" else f'url = "redis://x:{SECRET}@127.0.0.1:1/0"\ntimeout = 0.1\n'
        (credentials / name).write_text(said)
    environment = {"PATH": os.environ["PATH"], "CREDENTIALS_DIRECTORY": str(credentials)}
    environment |= dict(line.replace("%d", str(credentials)).split("=", 1) for line in values(text, "Environment"))
    (line,) = values(text, "ExecStart")
    words = shlex.split(line.replace("${CREDENTIALS_DIRECTORY}", str(credentials)))
    process = subprocess.Popen(
        [*words, "--listen", "127.0.0.1:0"], cwd="/", env=environment, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        said = process.stdout.readline()
        assert said.startswith("Serving http://127.0.0.1:")
        yield process, said.split()[1].replace("/metrics", "/")
    finally:
        process.terminate()
        process.communicate(timeout=PATIENCE)


def test_no_secret_is_seen(started: tuple[subprocess.Popen[str], str]) -> None:
    """It starts with what systemd hands it, lives while the store is away, and no list of processes has a secret."""
    process, url = started
    assert get(f"{url}healthz").startswith("ok")
    for file in ("cmdline", "environ"):
        assert SECRET not in Path(f"/proc/{process.pid}/{file}").read_text()
