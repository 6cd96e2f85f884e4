"""The shape of the repository, and what must never get into it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

ROOT_NAMES = {
    ".ci", ".gitattributes", ".github", ".gitignore", "LICENSE", "Makefile", "README.md", "backends", "clusterports",
    "deploy", "pyproject.toml", "tests",
}  # fmt: skip

# Somebody's machine, or the place somebody installs from.
FOREIGN = re.compile(
    r"(?<![\w.])/(home|root|Users|opt|work|mnt|srv)/\w|\bpypi\.|\bnpmjs\.|python[h]osted|\bindex[-]url\b|\bproxy\.golang"
)


@pytest.fixture(scope="module")
def tracked() -> list[str]:
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as exc:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"not a git checkout: {exc}")
    return [name for name in listing.split("\0") if name and (ROOT / name).is_file()]


def test_root_is_clean(tracked: list[str]) -> None:
    """The root holds the agreed names and no others."""
    unknown = {name.split("/")[0] for name in tracked} - ROOT_NAMES
    assert unknown == set()


def test_backends_is_a_folder_not_a_package(tracked: list[str]) -> None:
    """Each adapter is an import package of its own, with its types; the folder around them is none."""
    packages = {name.split("/")[1] for name in tracked if name.startswith("backends/")}
    assert "__init__.py" not in packages
    assert [p for p in sorted(packages) if f"backends/{p}/__init__.py" not in tracked] == []
    assert [p for p in sorted(packages) if f"backends/{p}/py.typed" not in tracked] == []


def test_nothing_of_one_machine(tracked: list[str]) -> None:
    """No file names a path of one machine or the host of a package registry."""
    found = []
    for name in tracked:
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), 1):
            if match := FOREIGN.search(line):
                found.append(f"{name}:{number}: {match[0]}")
    assert found == []


@pytest.mark.parametrize("heavy", ["redis", "typer", "rich", "click", "tenacity"])
def test_import_is_light(heavy: str) -> None:
    """``import clusterports`` loads neither a store's client nor the command line's libraries."""
    code = f"import clusterports, sys; sys.exit({heavy!r} in sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], check=False, capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")
