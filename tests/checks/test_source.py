"""Linters, type checkers and generated code: what ``make check`` runs."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = pytest.mark.timeout(400)


def unavailable(reason: str) -> None:
    """Skip where somebody sits at the keyboard, fail in CI."""
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    if importlib.util.find_spec(module) is None:
        unavailable(f"{module} is not installed")
    command = [sys.executable, "-m", module, *arguments]
    return subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)


@pytest.mark.parametrize("arguments", [("check", "--output-format=concise"), ("format", "--check")], ids=" ".join)
def test_ruff(arguments: tuple[str, ...]) -> None:
    """The linter and the formatter have nothing to say."""
    result = run("ruff", *arguments, "--quiet", ".")
    assert result.returncode == 0, result.stdout


def test_mypy() -> None:
    """Everything passes mypy in strict mode."""
    result = run("mypy")
    assert result.returncode == 0, result.stdout


def test_pyright() -> None:
    """Everything passes pyright."""
    result = run("pyright", "--outputjson", "--pythonpath", sys.executable)
    start = result.stdout.find("{")
    try:
        report = json.loads(result.stdout[start:])
    except ValueError:
        unavailable(f"pyright did not start (its JavaScript is fetched on first use): {result.stdout[-500:]}")
        return
    diagnostics = report["generalDiagnostics"]
    assert diagnostics == [], "\n".join(
        f"{item['file']}:{item['range']['start']['line'] + 1}: {item['message']}" for item in diagnostics
    )
    assert report["summary"]["filesAnalyzed"] > 0


def test_generated_code() -> None:
    """The sync half is what the generator makes of the async half, file by file; every rule of it applies."""
    command = [sys.executable, ".ci/unasync.py", "--check"]
    result = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    assert result.returncode == 0, result.stdout
